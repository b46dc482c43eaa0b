"""The report of a run at every stage of its life, of damaged files and of hostile ones."""

import contextlib
import dataclasses
import json
import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from segpt.config.quant import QuantSpec
from segpt.config.recipe import read_recipe
from segpt.data.tokenizer import BYTES
from segpt.errors import SegptError
from segpt.report import gather, picture, rate_curve
from segpt.report.contents import Report
from segpt.report.page import page
from segpt.stages import (
    checkpoint_io,
    json_files,
    open_model,
    quantized_io,
    read_model,
    resolve_spec,
    run_directory,
    value_directory,
)
from segpt.stages.calibrate import quantize_on
from segpt.stages.commit import commit
from segpt.stages.pack import pack
from segpt.stages.prepare import prepare
from segpt.stages.score import score
from segpt.train.mesh import Mesh
from segpt.values import Text
from tests.reports import report_of
from tests.stages.running import train

RECIPE = """
name: tiny
about: a model <for> tests
tokenizer: {kind: bytes}
model:
  vocab: 257
  width: 32
  context: 32
  depth: 2
  layer:
    mixer: {heads: 2, kv_heads: 1, head_dim: 16, query_key: [norm]}
    feed: {hidden: 64}
train:
  {length: {kind: steps, count: 12}, batch: 8, save_every: 6, log_every: 2, validate_every: 6,
   validate_tokens: 512}
quantize: {calibration_tokens: 1024, report_tokens: 512, search: 0, tune_steps: 0, rate: 4.0}
pack: {budget: 100000}
score: {stride: 16}
adapt: {kind: sgd, chunk: 64, rate: 0.01}
"""
HOSTILE = "</p><script>alert('x')</script>{{ 7 * 7 }}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with everything in it."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    recipe = read_recipe(str(folder / "tiny.yaml"))
    train_text, validation = (
        Text(
            name,
            partial(iter, [(name.encode() + bytes(range(256))) * 5, f"{name} too".encode() * 40]),
        )
        for name in ("train", "validation")
    )
    tokens, held_out = prepare(train_text, validation, BYTES, folder / "data")
    run = folder / "run"
    train(recipe, tokens, held_out, run, Mesh(0, 1, torch.device("cpu")))
    checkpoint = checkpoint_io.read_checkpoint(run_directory.newest_checkpoint(run))
    spec = QuantSpec(search=0, tune_steps=0, rate=4.0, calibration_tokens=1024, report_tokens=512)
    quantized = quantize_on(checkpoint, spec, tokens, held_out)
    curve = rate_curve.curve(checkpoint, quantized, spec, tokens, held_out, rates=(3.0, 5.0))
    report = dataclasses.replace(report_of(quantized), budget=100_000, curve=curve.report())
    quantized = dataclasses.replace(quantized, report=report)
    quantized_io.save_quantized(run / gather.QUANTIZED, quantized)
    artifact, _ = pack(quantized, run / gather.ARTIFACT, 100_000)
    for name, policy in ((gather.SCORE, "none"), (gather.SCORE_TTT, "sgd")):
        how = resolve_spec.score_spec(checkpoint.spec, policy=policy, recipe=recipe)
        json_files.write_score(run / name, score(artifact, validation, how))
    row = {"step": "train", "bytes": None, "bpb": 2.5, "what": "a <row>"}
    json_files.write_json(run / gather.DEMO, {"rows": [row], "seconds": 12.0})
    texts = {"prompts": ["The "], "texts": ["end.\n"], "spec": {"temperature": 0.7, "seed": 1}}
    json_files.write_json(run / gather.SAMPLES, texts)
    return run


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def shown(found: Report) -> str:
    return page(found).decode()


@pytest.mark.slow
def test_a_whole_run_shows_everything(whole: Path) -> None:
    found = gather.gather(whole)
    assert found.missing == {}
    assert found.notices == ()
    assert found.training is not None
    assert found.training.steps == 12
    assert [line.step for line in found.training.lines] == [2, 4, 6, 8, 10, 12]
    assert found.training.rates.keys() == {"matrices", "tables, vectors"}
    assert found.quantization is not None
    assert [row.name for row in found.quantization.layers] == [
        *("embeddings, head", "layer 0", "layer 1")
    ]
    assert len(found.quantization.curve) == 2
    assert found.packed is not None
    assert found.packed.bytes == (whole / gather.ARTIFACT).stat().st_size
    assert sum(section.bytes for section in found.packed.sections) == found.packed.bytes
    assert found.packed.budget == 100_000
    environment = dict(found.environment)
    assert environment["trained on"].startswith("cpu, 1 process, ")
    assert f"torch {torch.__version__}" in environment["trained with"]
    assert environment["the whole demo"] == "12 s"
    lineage = dict(found.lineage)
    assert lineage["artifact"] == found.packed.digest
    assert {"checkpoint", "recipe", "tokens", "training text", "seed"} <= lineage.keys()
    text = shown(found)
    assert "a model &lt;for&gt; tests" in text
    assert "Drawn with temperature 0.7, seed 1." in text


def test_layers_account_for_every_weight(whole: Path) -> None:
    found = gather.gather(whole)
    assert found.quantization is not None
    assert found.packed is not None
    rows = found.quantization.layers
    total = sum(row.parameters for row in rows)
    assert total == found.packed.parameters
    mean = sum(row.parameters * row.bits for row in rows) / total
    assert mean == pytest.approx(found.quantization.bits)


def test_the_running_figures_end_at_the_scores(whole: Path) -> None:
    found = gather.gather(whole)
    for one in (found.plain, found.adapted):
        assert one is not None
        at, bpb = one.running()[-1]
        assert at == one.bytes
        assert bpb == pytest.approx(one.bpb, rel=1e-6)


def test_the_same_run_is_the_same_page(whole: Path, tmp_path: Path) -> None:
    sizes = [gather.write(gather.gather(whole), tmp_path / name) for name in ("a", "b")]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sizes[0] == (tmp_path / "a").stat().st_size <= 500_000


STAGES = {
    "training": ("metrics.jsonl", "step-*"),
    "quantization": (gather.QUANTIZED,),
    "bytes": ("*.segpt*",),
    "score": (gather.SCORE,),
    "ttt": (gather.SCORE_TTT,),
    "samples": (gather.SAMPLES,),
}


@pytest.mark.parametrize("kept", range(1, len(STAGES)))
def test_what_a_run_lacks_is_named_with_its_command(run: Path, kept: int) -> None:
    absent = list(STAGES)[kept:]
    for pattern in (pattern for part in absent for pattern in STAGES[part]):
        for path in list(run.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = gather.gather(run)
    assert list(found.missing) == absent
    text = shown(found)
    for part in absent:
        assert found.missing[part].startswith("segpt ")
        assert found.missing[part].split(" > ")[0].replace("'", "&#39;") in text


def test_a_run_without_metrics_and_one_without_checkpoints(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    assert "nothing to draw" in shown(gather.gather(run))
    for step in run.glob("step-*"):
        shutil.rmtree(step)
    found = gather.gather(run)
    assert found.training is None
    assert "training" in found.missing


@pytest.mark.parametrize("made", ["nothing", "an empty folder", "a file"])
def test_what_is_no_run_is_refused(tmp_path: Path, made: str) -> None:
    place = tmp_path / "x"
    if made == "an empty folder":
        place.mkdir()
    elif made == "a file":
        place.write_text("{}")
    with pytest.raises(SegptError, match=r"x (is no run folder|holds nothing of a run)"):
        gather.gather(place)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def rewrite(run: Path, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run / "metrics.jsonl").write_text(text)


def test_losses_that_are_no_numbers_leave_gaps(run: Path) -> None:
    rows = lines(run)
    rows[1]["loss"] = float("nan")
    rows[2]["gradient_norm"] = float("inf")
    rewrite(run, rows)
    found = gather.gather(run)
    assert found.training is not None
    assert found.training.lines[1].loss is None
    assert found.training.unfit == 2
    assert found.notices[0].startswith("2 logged lines hold figures that are no finite numbers")
    assert "nan" not in shown(found).split("<main")[1].split("</main>")[0].lower().split()


def test_empty_metrics_are_no_error(run: Path) -> None:
    (run / "metrics.jsonl").write_text("")
    assert "nothing to draw" in shown(gather.gather(run))


def test_steps_that_were_taken_again_count_once(run: Path) -> None:
    rows = lines(run)
    again = [row | {"loss": 1.5} for row in rows[3:]]
    rewrite(run, rows[:5] + again)
    found = gather.gather(run)
    assert found.training is not None
    assert [line.step for line in found.training.lines] == [2, 4, 6, 8, 10, 12]
    assert [line.loss for line in found.training.lines[3:]] == [1.5] * 3
    assert "2 logged steps were taken again; the last of each are shown." in found.notices


def test_a_last_line_that_a_kill_cut_short_is_left_out(run: Path) -> None:
    path = run / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step": 14, "lo')
    found = gather.gather(run)
    assert found.training is not None
    assert found.training.lines[-1].step == 12


DAMAGE = [
    ("metrics.jsonl", b'{"step": 2}\nrubbish\n{"step": 4}\n', "in line 2"),
    ("metrics.jsonl", b'{"step": "two"}\n', "expected a whole number"),
    ("metrics.jsonl", b'{"step": 2, "loss": "low"}\n', "expected a number"),
    ("metrics.jsonl", b"[1]\n", "in line 1"),
    ("metrics.jsonl", b'{"step": 2, "loss": 1' + b"0" * 400 + b"}\n", "in line 1"),
    ("metrics.jsonl", b"\xff\xfe\n", "in line 1"),
    ("score.json", b"{", "is not valid JSON"),
    ("score.json", b'{"bpb": "x", "policy": {}, "conditions": {}}', "is not what segpt writes"),
    ("score.json", b'{"bpb": 1, "policy": 3, "conditions": []}', "is not what segpt writes"),
    ("demo.json", b"[]", "is not what segpt writes"),
    ("demo.json", b'{"rows": [{"step": 1}], "seconds": 1}', "is not what segpt writes"),
    ("samples.json", b'{"prompts": ["a"], "texts": [], "spec": {}}', "is not what segpt writes"),
    ("samples.json", b'{"texts": []}', "'prompts' is missing"),
    ("quantized/header.json", b"{}", "expected a quantized"),
    ("quantized/header.json", b"[" * 100_000, "is damaged"),
    ("step-00000012/header.json", b"{}", "expected a checkpoint"),
    ("model.segpt", b"rubbish", "model.segpt"),
]


@pytest.mark.parametrize(("name", "data", "told"), DAMAGE)
def test_a_broken_file_is_one_clear_error(run: Path, name: str, data: bytes, told: str) -> None:
    (run / name).write_bytes(data)
    with pytest.raises(SegptError) as error:
        gather.gather(run)
    message = str(error.value)
    assert told in message
    assert name.split("/")[0] in message
    assert "\n" not in message
    assert error.value.exit_code == 2


ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 10**30, 1e308, -1e308, 1e-300, float("nan"), float("inf")),
    *("", "x", "<b>", [], [1], [[]], {}, {"a": 1}, {"kind": "x"}),
)


def spoilt(value: Any, chance: random.Random, odds: float) -> Any:
    """``value`` with some of what is in it replaced, left out or doubled."""
    if chance.random() < odds:
        return chance.choice(ODD)
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if chance.random() > odds / 4}
        return {k: spoilt(v, chance, odds) for k, v in kept.items()}
    if isinstance(value, list):
        return [spoilt(v, chance, odds) for v in value for _ in range(1 + (chance.random() < odds))]
    return value


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_files_of_any_shape_are_shown_or_refused(whole: Path, run: Path, seed: int) -> None:
    chance = random.Random(seed)
    odds = chance.choice([0.3, 0.05, 0.01])
    name = chance.choice(["metrics", "score", "demo", "samples", "quantized", "checkpoint"])
    if name == "metrics":
        rows = [spoilt(row, chance, odds) for row in lines(whole)]
        rewrite(run, rows)
    elif name in ("quantized", "checkpoint"):
        key, place = "report", run / gather.QUANTIZED
        if name == "checkpoint":
            key, place = "about", run / "step-00000012"
        header, files = value_directory.read_value(place, name)
        changed = spoilt(header[key], chance, odds)
        if isinstance(changed, dict):
            header[key] = changed
        value_directory.write_value(place, name, header, files)
    else:
        path = run / f"{name}.json"
        path.write_text(json.dumps(spoilt(json.loads(path.read_text()), chance, odds)))
    with contextlib.suppress(SegptError):
        assert len(page(gather.gather(run))) <= 500_000


def test_one_changed_byte_of_a_header_is_found(run: Path) -> None:
    path = run / "step-00000012" / "header.json"
    path.write_text(path.read_text().replace('"seed": "1"', '"seed": "2"'))
    with pytest.raises(SegptError, match="its digest does not match"):
        gather.gather(run)


def test_hostile_texts_stay_texts(run: Path) -> None:
    plain = json.loads((run / "score.json").read_text())
    plain["text"] = plain["policy"]["kind"] = HOSTILE
    plain["conditions"] |= {HOSTILE: HOSTILE, "deep": {HOSTILE: [HOSTILE]}}
    plain["origin"][HOSTILE] = HOSTILE
    (run / "score.json").write_text(json.dumps(plain))
    texts = {"prompts": [HOSTILE], "texts": [HOSTILE + "\ufffd\x00"], "spec": {}}
    (run / "samples.json").write_text(json.dumps(texts))
    row = {"step": HOSTILE, "bytes": 1, "bpb": 1.0, "what": HOSTILE}
    (run / "demo.json").write_text(json.dumps({"rows": [row], "seconds": 1}))
    shutil.copy(run / "score.json", run / f"{HOSTILE[:3]}.json".replace("/", ""))
    renamed = run.rename(run.with_name("<img src=x>"))
    text = shown(gather.gather(renamed))
    assert "<script" not in text
    assert "<img" not in text
    assert text.count("{{ 7 * 7 }}") >= 6


def test_long_texts_are_cut(run: Path) -> None:
    texts = {"prompts": ["p" * 10**5] * 30, "texts": ["t" * 10**5] * 30, "spec": {}}
    (run / "samples.json").write_text(json.dumps(texts))
    row = {"step": "s" * 10**5, "bytes": 1, "bpb": 1.0, "what": "w" * 10**5}
    (run / "demo.json").write_text(json.dumps({"rows": [row] * 60, "seconds": 1}))
    assert len(page(gather.gather(run))) < 500_000


def test_other_files_in_the_folder_are_left_alone(run: Path) -> None:
    (run / "notes.json").write_text('{"mine": 1}')
    (run / "list.json").write_text("[1, 2]")
    assert gather.gather(run).missing == {}


def test_what_is_of_another_model_is_said(whole: Path, run: Path) -> None:
    plain = json.loads((run / "score.json").read_text())
    plain["origin"]["artifact"] = "0" * 64
    (run / "score.json").write_text(json.dumps(plain))
    shutil.rmtree(run / "step-00000012")
    notices = " ".join(gather.gather(run).notices)
    assert "The quantized model was made from checkpoint" in notices
    assert "The packed file was made from checkpoint" in notices
    assert "score.json is the score of another packed file" in notices
    assert gather.gather(whole).notices == ()


def test_values_beside_the_folder_are_found_if_they_are_of_the_run(run: Path) -> None:
    (run / gather.QUANTIZED).rename(run.with_name("run-quantized"))
    (run / gather.ARTIFACT).rename(run.with_name("run.segpt"))
    found = gather.gather(run)
    assert not {"quantization", "bytes"} & found.missing.keys()
    shutil.rmtree(run / "step-00000012")
    found = gather.gather(run)
    assert {"quantization", "bytes"} <= found.missing.keys()


def test_commands_quote_the_folder(run: Path) -> None:
    place = run.rename(run.with_name("my run; rm -rf x"))
    (place / "score.json").unlink()
    assert f"--out '{place / 'score.json'}'" in gather.gather(place).missing["score"]


@pytest.mark.slow
def test_a_picture_is_the_same_each_time(whole: Path, run: Path, tmp_path: Path) -> None:
    found = gather.gather(whole)
    pictures = [tmp_path / "new" / name for name in ("a.png", "b.png")]
    for path in pictures:
        picture.draw(found, path)
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    assert pictures[0].read_bytes().startswith(b"\x89PNG")
    rows = [row | {"bpb": None, "validation_bpb": None, "loss": float("nan")} for row in lines(run)]
    rewrite(run, rows)
    score_alone = dataclasses.replace(gather.gather(run), training=None, quantization=None)
    hostile = dataclasses.replace(found.scores[0], policy=r"_$\frac{$ <b>")
    for partial_run in (
        gather.gather(run),
        score_alone,
        dataclasses.replace(score_alone, scores=(hostile,)),
    ):
        picture.draw(partial_run, tmp_path / "c.png")
    with pytest.raises(SegptError, match="the run has no curve to draw"):
        picture.draw(Report("empty"), tmp_path / "d.png")


@pytest.mark.usefixtures("without_matplotlib")
def test_without_matplotlib_one_line_says_what_to_install(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(SegptError, match=r"pip install 'segpt\[plot\]'"):
        picture.draw(gather.gather(whole), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_models_read_what_the_report_was_made_of(whole: Path) -> None:
    opened = open_model.open_model(read_model.read_model(whole / gather.ARTIFACT))
    assert opened.spec.width == 32
    assert opened.identity == dict(gather.gather(whole).lineage)["artifact"]


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("how", ["detached", "loose", "packed", "linked"])
def test_the_commit_of_a_checkout(tmp_path: Path, how: str) -> None:
    git, root = tmp_path / ".git", tmp_path
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text(f"{COMMIT}\n" if how == "detached" else "ref: refs/heads/main\n")
    if how == "loose":
        (git / "refs" / "heads" / "main").write_text(f"{COMMIT}\n")
    if how in ("packed", "linked"):
        (git / "packed-refs").write_text(f"# pack-refs\n{COMMIT} refs/heads/main\n")
    if how == "linked":
        root, tree = tmp_path / "tree", git / "worktrees" / "tree"
        root.mkdir()
        tree.mkdir(parents=True)
        (root / ".git").write_text(f"gitdir: {tree}\n")
        (tree / "HEAD").write_text("ref: refs/heads/main\n")
        (tree / "commondir").write_text("../..\n")
    assert commit(root) == COMMIT


@pytest.mark.parametrize("head", [None, "", "ref: refs/heads/gone\n", "ref: ../../x\n", "\xff"])
def test_no_commit_where_there_is_none(tmp_path: Path, head: str | None) -> None:
    if head is not None:
        (tmp_path / ".git").mkdir()
        (tmp_path / ".git" / "HEAD").write_bytes(head.encode("latin-1"))
    assert commit(tmp_path) is None
