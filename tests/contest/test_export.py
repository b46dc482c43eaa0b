"""The exported folder runs by itself, prints what it claims, and is written whole or not at all."""

import json
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from segpt.config.base import fingerprint
from segpt.config.layout import Role, layout
from segpt.config.recipe import Recipe, read_recipe
from segpt.config.score import Frozen, ScoreSpec, Sgd
from segpt.contest import export as contest
from segpt.contest.bundle import unpack
from segpt.contest.export import Exported, export
from segpt.contest.folder_texts import LICENCE, About
from segpt.contest.read_folder import check_folder
from segpt.data.tokenizer import BYTES
from segpt.errors import CheckError, SegptError
from segpt.stages.checkpoint_io import read_checkpoint
from segpt.stages.json_files import write_score
from segpt.stages.link import link
from segpt.stages.pack import pack, read_artifact
from segpt.stages.run_directory import checkpoints
from segpt.stages.score import score
from segpt.stages.train import train
from segpt.train.mesh import Mesh
from segpt.values import Float16Weight, Quantized, Text, Tokenizer
from tests import little_text

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TEXT = b"A submission is one folder, and everything that it says can be computed again. " * 12
RECIPE = """
name: small
about: a model for tests
tokenizer: {kind: bytes}
model:
  vocab: 257
  width: 16
  context: 32
  depth: 2
  route: "0 (1)*2"
  layer:
    join: [mix_input]
    mixer: {heads: 1, kv_heads: 1, head_dim: 16, query_key: [norm, {kind: rope, dims: 8}]}
    feed: {hidden: 32}
train: {length: {kind: steps, count: 6}, batch: 4, log_every: 2, save_every: 6}
quantize: {calibration_tokens: 512, report_tokens: 512}
pack: {budget: 100000}
adapt: {kind: sgd, chunk: 64, rate: 0.05}
"""

# What a machine without segpt sees: nothing of this checkout, and no import hook but Python's own.
ALONE = f"""
import importlib.util, runpy, sys
sys.path[:] = [p for p in sys.path if p and not p.startswith({str(ROOT)!r}) or "site-packages" in p]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
assert importlib.util.find_spec("segpt") is None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def model(recipe: Recipe, seed: int) -> Quantized:
    draw = np.random.default_rng(seed)
    weights = {
        w.name: Float16Weight(draw.normal(w.role is Role.VECTOR, 0.1, w.shape).astype(np.float16))
        for w in layout(recipe.model)
    }
    origin = {"recipe": fingerprint(recipe), "seed": str(seed)}
    return Quantized(recipe.model, weights, Tokenizer("bytes", 257), origin)


class Place:
    """Artifacts of three seeds with their scores, and the recipe they are said to come from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "small.yaml").write_text(RECIPE)
        (path / "text.txt").write_bytes(TEXT)
        policy = Sgd(chunk=64, rate=0.05)
        reading = ScoreSpec(stride=16, batch=4, policy=policy)
        self.artifacts, self.scores = [], []
        for seed in (1, 2, 3):
            recipe = read_recipe(path / "small.yaml", [f"train.seed={seed}"])
            artifact, written = path / f"{seed}.segpt", path / f"score-{seed}.json"
            pack(model(recipe, seed), artifact)
            text = Text("text.txt", lambda: iter([TEXT]))
            write_score(written, score(read_artifact(artifact), text, reading))
            self.artifacts.append(artifact)
            self.scores.append(written)

    def export(
        self,
        out: str,
        seeds: int = 3,
        *,
        scores: Sequence[Path] | None = None,
        logs: Sequence[Path] = (),
        name: str = "parameter-golf",
        recipe: str | None = "small.yaml",
    ) -> Exported:
        return export(
            self.artifacts[:seeds],
            self.path / out,
            self.scores[:seeds] if scores is None else scores,
            logs,
            contest=name,
            about=About("Ada | <b>x</b>", "A small model", "2026-01-02"),
            recipe=str(self.path / recipe) if recipe == "small.yaml" else recipe,
        )


def alone(
    folder: Path, *arguments: str, python: str = sys.executable, before: str = "", **more: str
) -> str:
    """What the script prints where segpt is not installed."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "DATA_PATH", "SEED")}
    done = subprocess.run(
        [python, "-I", "-c", before + ALONE, "train_gpt.py", *arguments],
        cwd=folder,
        env=kept | {"OMP_NUM_THREADS": "1"} | more,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def printed(output: str) -> float:
    return float(output.split("val_bpb:")[1].split()[0])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("contest"))


@pytest.fixture(scope="module")
def exported(place: Place) -> Exported:
    return place.export("out")


def test_the_folder_prints_what_it_claims(place: Place, exported: Exported) -> None:
    about = json.loads((exported.out / "submission.json").read_text())
    output = alone(exported.out, str(place.path / "text.txt"))
    assert printed(output) == pytest.approx(about["seed_results"]["1"]["val_bpb"], abs=1e-9)
    assert f"Total submission size: {about['seed_results']['1']['bytes_total']} bytes" in output
    again = alone(exported.out, DATA_PATH=str(place.path / "text.txt"))
    assert printed(again) == printed(output)


def test_what_is_counted_is_what_lies_there(exported: Exported) -> None:
    about = json.loads((exported.out / "submission.json").read_text())
    code = (exported.out / "train_gpt.py").stat().st_size
    largest = max(result["bytes_total"] for result in about["seed_results"].values())
    assert about["bytes_code"] == exported.code == code < 126_500
    assert about["bytes_total"] == exported.bytes == largest
    size = (exported.out / "model.segpt").stat().st_size
    assert about["seed_results"]["1"]["bytes_total"] == code + size
    assert exported.seeds == (1, 2, 3)


def test_an_exported_folder_contradicts_itself_nowhere(exported: Exported) -> None:
    assert check_folder(exported.out) == []


def test_the_same_input_gives_the_same_bytes(place: Place, exported: Exported) -> None:
    again = place.export("again").out
    files = [p.relative_to(again) for p in sorted(again.rglob("*")) if p.is_file()]
    assert len(files) >= 9
    for file in files:
        assert (again / file).read_bytes() == (exported.out / file).read_bytes(), file


def test_the_script_carries_no_more_than_it_uses(exported: Exported) -> None:
    script = (exported.out / "train_gpt.py").read_bytes()
    modules = unpack(script)
    assert script.startswith(b"# SPDX-License-Identifier: MIT\n")
    assert "segpt.stages.score" in modules
    foreign = ("segpt.leaderboard", "segpt.report", "commands")
    assert not any(name.startswith(foreign) for name in modules)
    assert "segpt.eval.lowrank" not in modules  # no policy of this submission has adapters
    assert "segpt.data.interleaving" not in modules  # nor does its recipe mix texts
    assert (exported.out / "LICENSE").read_text() == LICENCE == (ROOT / "LICENSE").read_text()


def test_hostile_names_stay_text(exported: Exported) -> None:
    page = (exported.out / "README.md").read_text()
    assert "<b>" not in page
    assert "Ada &#124; &#60;b&#62;" in page


def test_the_script_trains_the_recipe_anew(exported: Exported, tmp_path: Path) -> None:
    before = little_text.BEFORE.format(place=str(little_text.library(tmp_path / "library")))
    output = alone(exported.out, "train", str(tmp_path / "run"), before=before, SEED="7")
    assert output.startswith("seed: 7\n")
    assert "step:6 train_loss:" in output
    assert 0 < printed(output) < 9
    made = (tmp_path / "run" / "model.segpt").stat().st_size
    assert f"Serialized model: {made} bytes" in output


def shards(place: Path) -> Path:
    """Shards of the contest for training and validation, of single bytes."""
    place.mkdir()
    for split, repeats in (("train", 9), ("val", 2)):
        ids = np.array([256, *TEXT, *split.encode()] * repeats, "<u2")
        head = np.zeros(256, "<i4")
        head[:3] = 20240520, 1, len(ids)
        (place / f"fineweb_{split}_000000.bin").write_bytes(head.tobytes() + ids.tobytes())
    return place


def test_the_script_trains_on_shards_of_the_contest_as_segpt_does(
    exported: Exported, place: Place, tmp_path: Path
) -> None:
    data = shards(tmp_path / "datasets")
    run = tmp_path / "run"
    output = alone(exported.out, "train", str(run), DATA_PATH=str(data), SEED="7")
    assert 0 < printed(output) < 9
    recipe = read_recipe(place.path / "small.yaml", ["train.seed=7"])
    files = [[data / f"fineweb_{split}_000000.bin"] for split in ("train", "val")]
    tokens, held_out = link(files[0], files[1], BYTES, tmp_path / "linked", source={})
    trained = read_checkpoint(
        train(recipe, tokens, held_out, tmp_path / "segpt", Mesh(0, 1, torch.device("cpu")))
    )
    alone_trained = read_checkpoint(checkpoints(run)[-1])
    assert alone_trained.weights.keys() == trained.weights.keys()
    for name, weight in trained.weights.items():
        np.testing.assert_array_equal(alone_trained.weights[name], weight)


@pytest.fixture
def bundled(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script of the folder, which takes seconds to make, serves for others."""
    script = (exported.out / "train_gpt.py").read_bytes()
    monkeypatch.setattr(contest, "_script", lambda *_: (script, unpack(script)))


@pytest.mark.usefixtures("bundled")
def test_over_the_cap_nothing_is_written(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "BYTES", 50_000)
    with pytest.raises(CheckError, match=r"nothing was written: [\d,]+ bytes of code"):
        place.export("over", seeds=1)
    assert not (place.path / "over").exists()


@pytest.mark.usefixtures("bundled")
def test_a_log_of_another_run_is_refused(place: Place) -> None:
    log = place.path / "train_seed1.log"
    log.write_text("seed: 5\nstep:1/6 train_loss:5.0 train_time:3ms\n")
    with pytest.raises(CheckError, match="is called seed 1, and was run with seed 5"):
        place.export("other", seeds=1, logs=[log])
    assert not (place.path / "other").exists()


def test_what_does_not_belong_together_is_refused(place: Place) -> None:
    with pytest.raises(SegptError, match="unknown contest"):
        place.export("x", name="parameter-gulf")
    with pytest.raises(SegptError, match="is of none of these artifacts"):
        place.export("x", seeds=1, scores=place.scores[:2])
    with pytest.raises(SegptError, match="no score of"):
        place.export("x", seeds=2, scores=place.scores[:1])
    with pytest.raises(SegptError, match="the one it was trained with"):
        place.export("x", seeds=1, recipe="demo")
    with pytest.raises(SegptError, match="its recipe is not known"):
        place.export("x", seeds=1, recipe=None)


def test_seeds_must_have_been_read_alike(place: Place) -> None:
    plain = place.path / "plain.json"
    text = Text("text.txt", lambda: iter([TEXT]))
    reading = ScoreSpec(stride=16, batch=4, policy=Frozen())
    write_score(plain, score(read_artifact(place.artifacts[1]), text, reading))
    with pytest.raises(SegptError, match="read in different ways"):
        place.export("x", seeds=2, scores=[place.scores[0], plain])


@pytest.mark.campaign
def test_the_folder_runs_in_a_fresh_environment(
    place: Place, exported: Exported, tmp_path: Path
) -> None:
    """With nothing installed but what its requirements name; downloads them."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    needs = exported.out / "requirements.txt"
    subprocess.run([python, "-m", "pip", "install", "-q", "-r", str(needs)], check=True)
    about = json.loads((exported.out / "submission.json").read_text())
    output = alone(exported.out, str(place.path / "text.txt"), python=python)
    assert printed(output) == pytest.approx(about["seed_results"]["1"]["val_bpb"], abs=1e-9)
