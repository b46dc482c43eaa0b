"""Bad input: one clear line, exit code 2, nothing lost."""

import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import processes

Run = Callable[..., Any]


def refused(done: Any, *words: str, code: int = 2) -> None:
    assert done.code == code, (done.stdout, done.stderr)
    lines = [x for x in done.stderr.splitlines() if x.startswith("segpt:")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0], lines[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("data", "prepare", "nowhere.txt"), ("nowhere.txt",)),
        (("train", "--data", "nowhere"), ("nowhere", "segpt data prepare")),
        (("train", "--recipe", "nowhere.yaml"), ("nowhere.yaml",)),
        (("train", "--recipe", "golf61"), ("golf61", "golf16")),
        (("quantize", "nowhere"), ("nowhere",)),
        (("pack", "nowhere"), ("nowhere",)),
        (("inspect", "nowhere.segpt"), ("nowhere.segpt",)),
        (("score", "nowhere.segpt"), ("nowhere.segpt",)),
        (("pack",), ("segpt quantize",)),
        (("score",), ("segpt pack",)),
        (("train", "--device", "abacus"), ("abacus", "auto, cpu, cuda")),
    ],
)
def test_wrong_paths_and_names(tmp_path: Path, run: Run, args: Any, words: Any) -> None:
    refused(run(tmp_path, *args), *words)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.batchh=3", ("train", "batchh", "'batch'")),
        ("model.layer.mixer.headss=3", ("mixer", "headss", "'heads'")),
        ("model.layer.feed.act=relu3", ("feed.act", "relu3", "relu2")),
        ("train.schedule.warmdown=2", ("train.schedule", "sum to at most 1")),
        ("train.batch", ("--set", "path=value")),
    ],
)
def test_unknown_keys_name_the_place_and_the_nearest(
    fresh: Path, run: Run, setting: str, words: Any
) -> None:
    refused(run(fresh, "train", "--recipe", "tiny.yaml", "--set", setting, "--dry-run"), *words)


def test_unknown_commands_and_flags_name_the_nearest(tmp_path: Path, run: Run) -> None:
    for args, near in ((("trian",), "train"), (("train", "--recpie", "demo"), "--recipe")):
        done = run(tmp_path, *args)
        assert done.code == 2
        assert near in done.stderr


def test_a_corrupt_shard_is_named(line: Any, workplace: Path, fresh: Path, run: Run) -> None:
    shutil.copytree(workplace / line["data"]["out"], fresh / "data")
    shard = next((fresh / "data" / "train").glob("*.bin"))
    shard = max((fresh / "data" / "train").glob("*.bin"), key=lambda p: p.stat().st_size)
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(damaged)
    refused(run(fresh, "train", "--recipe", "tiny.yaml", "--data", "data"), shard.name)


@pytest.mark.slow
def test_a_changed_byte_in_a_checkpoint_is_named(
    line: Any, workplace: Path, fresh: Path, run: Run
) -> None:
    shutil.copytree(workplace / line["train"]["checkpoint"], fresh / "checkpoint")
    for name in ("weights.safetensors", "header.json"):
        file = fresh / "checkpoint" / name
        whole = file.read_bytes()
        damaged = bytearray(whole)
        damaged[len(damaged) // 2] ^= 1
        file.write_bytes(damaged)
        refused(run(fresh, "score", "checkpoint", "held.jsonl"), name)
        file.write_bytes(whole)
    assert run(fresh, "score", "checkpoint", "held.jsonl").code == 0


def test_one_changed_byte_in_an_artifact_is_found(
    line: Any, workplace: Path, fresh: Path, run: Run
) -> None:
    # a round trip that never reads the bytes back
    data = bytearray((workplace / line["pack"]["out"]).read_bytes())
    data[len(data) // 3] ^= 16
    (fresh / "bad.segpt").write_bytes(data)
    refused(run(fresh, "score", "bad.segpt", "held.jsonl"), "bad.segpt")


def test_empty_text(line: Any, workplace: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    artifact = workplace / line["pack"]["out"]
    refused(run(tmp_path, "score", artifact, "empty.txt"), "empty")
    refused(run(tmp_path, "data", "prepare", "empty.txt"), "empty")


def test_text_seen_in_training_is_refused(line: Any, workplace: Path, run: Run) -> None:
    refused(run(workplace, "score", line["pack"]["out"], "train.jsonl"), "trained on", "held out")


@pytest.mark.slow
def test_shared_documents_are_found(fresh: Path, run: Run) -> None:
    rows = (fresh / "train.jsonl").read_text().splitlines()
    (fresh / "leaky.jsonl").write_text((fresh / "held.jsonl").read_text() + rows[7] + "\n")
    args = ("--tokenizer", "bytes", "--out")
    refused(
        run(fresh, "data", "prepare", "train.jsonl", "--validation", "leaky.jsonl", *args, "both"),
        "1 documents are in both",
    )
    assert not (fresh / "both").exists()
    run(fresh, "data", "prepare", "train.jsonl", "--validation", "held.jsonl", *args, "a")
    run(fresh, "data", "prepare", "held.jsonl", "--validation", "leaky.jsonl", *args, "b")
    run(fresh, "data", "prepare", "leaky.jsonl", "--validation", "held.jsonl", *args, "c")
    clean = run(fresh, "data", "check", "a/train", "a/validation", "--json")
    assert clean.json == {"overlap": 0}


@pytest.mark.slow
def test_over_budget_writes_nothing(line: Any, workplace: Path, fresh: Path, run: Run) -> None:
    # fits 16 MB, it says, and is 20 MB
    size = line["pack"]["bytes"]
    source = workplace / line["quantize"]["out"]
    done = run(fresh, "pack", source, "--budget", size - 1, "--out", "over.segpt")
    refused(done, "1 over", code=1)
    assert not (fresh / "over.segpt").exists()
    assert run(fresh, "pack", source, "--budget", size, "--out", "just.segpt").code == 0
    assert (fresh / "just.segpt").stat().st_size == size
    assert run(fresh, "inspect", "just.segpt", "--budget", size).code == 0
    over = run(fresh, "inspect", "just.segpt", "--budget", size - 1)
    assert over.code == 1
    assert "1 bytes OVER" in over.stdout


def test_a_lossy_tokenizer_is_never_scored_as_raw_bytes(tmp_path: Path, run: Run) -> None:
    (tmp_path / "broken.model").write_bytes(b"\x0a\x05hello" * 9)
    (tmp_path / "a.txt").write_text("some text")
    refused(
        run(tmp_path, "data", "prepare", "a.txt", "--tokenizer", "broken.model"), "broken.model"
    )


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint(fresh: Path, run: Run) -> None:
    prepared = run(
        fresh,
        "data",
        "prepare",
        "train.jsonl",
        "--validation",
        "held.jsonl",
        "--tokenizer",
        "bytes",
    )
    assert prepared.code == 0
    assert run(fresh, "train", "--recipe", "tiny.yaml", "--steps", "30", "--out", "run").code == 0
    before = sorted(p.name for p in (fresh / "run").iterdir())
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000));"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from segpt.__main__ import main; main()"
    )
    assert resource.RLIMIT_FSIZE
    done = processes.run(
        ["-c", code, "train", "--recipe", "tiny.yaml", "--out", "other"],
        cwd=fresh,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [p for p in (fresh / "other").iterdir() if p.name != "metrics.jsonl"]
    assert sorted(p.name for p in (fresh / "run").iterdir()) == before
    assert run(fresh, "score", "run", "held.jsonl").code == 0


@pytest.mark.slow
def test_nothing_is_unpickled(tmp_path: Path, run: Run) -> None:
    # pickles run code when loaded
    import pickle

    class Canary:
        def __reduce__(self) -> Any:
            return (open, (str(tmp_path / "canary"), "w"))

    data = pickle.dumps(Canary())
    for name in ("a.segpt", "a.yaml", "a.model", "a.jsonl", "a.json"):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "b.yaml").write_text(
        f"name: !!python/object/apply:builtins.open ['{tmp_path / 'canary'}', 'w']\n"
    )
    for args in (
        ("inspect", "a.segpt"),
        ("score", "a.segpt"),
        ("train", "--recipe", "a.yaml"),
        ("train", "--recipe", "b.yaml"),
        ("data", "prepare", "a.jsonl"),
        ("data", "prepare", "a.jsonl", "--tokenizer", "a.model"),
        ("data", "prepare", "a.jsonl", "--tokenizer", "a.json"),
    ):
        assert run(tmp_path, *args).code == 2, args
    assert not (tmp_path / "canary").exists()
