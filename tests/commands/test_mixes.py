"""``segpt train`` on mixes, on several validation sets and in stages, from the command line."""

import json
from pathlib import Path

import pytest

from segpt.stages.checkpoint_io import read_checkpoint

from .conftest import RECIPE, Segpt

pytestmark = pytest.mark.slow

STAGES = """
stages:
  stable:
    data: {sources: [{path: runs/data/a, weight: 1}, {path: runs/data/b, weight: 2}]}
  decay:
    start: {after: stable, optimizer: kept}
    data: {sources: [{path: runs/data/b, tokens: 1000}, {path: runs/data/a, tokens: 500}]}
    train: {seed: 2}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, run: Segpt) -> Path:
    """A directory with two prepared texts, a recipe and a mix."""
    place = tmp_path_factory.mktemp("mixes")
    for name in "ab":
        rows = [{"text": f"{name} {i} is {i * i % 97}. " * 9, "score": i % 4} for i in range(60)]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        options = ["--tokenizer", "bytes", "--keep", "score>=1", "--out", f"runs/data/{name}"]
        done = run(place, "data", "prepare", f"{name}.jsonl", *options, "--json")
        assert done.json["documents"] + done.json["validation"]["documents"] == 45
        assert "45 of 60 documents are kept by --keep score>=1" in done.stderr
    (place / "tiny.yaml").write_text(RECIPE)
    (place / "staged.yaml").write_text(RECIPE + STAGES)
    (place / "mix.yaml").write_text(
        "sources: [{path: runs/data/a, weight: 3}, {path: runs/data/b, weight: 1}]"
    )
    (place / "quotas.json").write_text('{"runs/data/a": 300, "runs/data/b": 100}')
    return place


def test_a_mix_is_trained_resumed_and_quantized(place: Path, run: Segpt) -> None:
    words = ["--recipe", "tiny.yaml", "--data", "mix.yaml", "--set", "train.horizon=30"]
    whole = run(place, "train", *words, "--out", "runs/whole", "--json").json
    run(place, "train", *words, "--steps", 10, "--out", "runs/half", "--json")
    done = run(place, "train", "--resume", "runs/half", "--steps", 30, "--json")
    first, second = (read_checkpoint(place / r["checkpoint"]) for r in (whole, done.json))
    assert first.fingerprint == second.fingerprint
    assert first.about.read == second.about.read
    assert [(s["name"], s["blocks"]) for s in whole["read"]["sources"]] == [("a", 180), ("b", 60)]
    assert list(whole["bpb_by_set"]) == ["a", "b"]
    assert whole["bpb_by_set"]["a"] == whole["bpb"]
    assert run(place, "quantize", "runs/whole", "--out", "runs/q", "--json").json["bits_per_weight"]
    assert run(place, "score", "runs/whole", "--json").json["bpb"] > 0
    refused = run(place, "quantize", "runs/whole", "--data", "runs/data/a", "--out", "runs/other")
    assert refused.code == 2
    assert "leave out --data" in refused.stderr


def test_what_a_mix_takes_is_said_before_and_refused_where_it_repeats(
    place: Path, run: Segpt
) -> None:
    words = ["train", "--recipe", "tiny.yaml", "--data", "quotas.json"]
    said = run(place, *words, "--dry-run").stderr
    assert "a: 75 % of the blocks, about 19.20 epochs (it repeats)" in said
    refused = run(place, *words, "--set", "train.unique=true", "--out", "runs/unique")
    assert refused.code == 2
    assert "tokens more of a than it gives" in refused.stderr
    assert not (place / "runs" / "unique").exists()
    (place / "gone.json").write_text('{"runs/data/gone": 5}')
    gone = run(place, "train", "--recipe", "tiny.yaml", "--data", "gone.json")
    assert gone.code == 2
    assert "the mix names runs/data/gone, which is not here" in gone.stderr


def test_sets_are_measured_by_name(place: Path, run: Segpt) -> None:
    words = ["train", "--recipe", "tiny.yaml", "--data", "runs/data/a", "--out", "runs/sets"]
    done = run(place, *words, "--validation", "far=runs/data/b", "--validation", "runs/data/a")
    assert done.code == 0
    assert "BPB by validation set: far " in done.stdout
    table = run(place, "train", "--resume", "runs/sets", "--json").json
    assert list(table["bpb_by_set"]) == ["far", "a"]
    run(place, "report", "runs/sets", "--json")
    assert "Bits per byte, by held-out text" in (place / "runs/sets/report.html").read_text()
    seen = run(place, *words[:-1], "runs/seen", "--validation", "x=runs/data/a/train")
    assert seen.code == 2
    assert "in both the training text and the validation set x" in seen.stderr
    twice = run(place, *words[:-1], "runs/t", "--validation", "x=a", "--validation", "x=b")
    assert twice.code == 2
    assert "--validation x is there twice" in twice.stderr


def test_a_stage_begins_where_the_one_before_it_ended(place: Path, run: Segpt) -> None:
    words = ["train", "--recipe", "staged.yaml", "--stage"]
    early = run(place, *words, "decay")
    assert early.code == 2
    assert "train it with --stage stable" in early.stderr
    stable = run(place, *words, "stable", "--json").json
    decay = run(place, *words, "decay", "--json")
    assert "begins with runs/tiny-stable, optimizer kept" in decay.stderr
    before = read_checkpoint(place / stable["checkpoint"])
    after = read_checkpoint(place / decay.json["checkpoint"])
    assert after.origin["init"] == before.fingerprint
    other = run(place, *words, "decay", "--set", "train.optimizer.matrix={kind: adam, rate: 0.01}")
    assert other.code == 2
    assert "is of other rules or weights" in other.stderr
