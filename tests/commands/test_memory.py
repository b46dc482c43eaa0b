"""What a command remembers of those before it: which text, which run, and how it was begun."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from segpt.eval.tally import score_stream
from segpt.stages import checkpoint_io, run_directory, unfinished, value_directory
from segpt.train import trainer
from segpt.values import QuantizeProgress
from tests import little_text, processes
from tests.commands.conftest import documents
from tests.commands.test_demo import TINY

pytestmark = pytest.mark.slow

Command = Callable[..., Result]
Run = Callable[..., Any]
BYTES = ("--tokenizer", "bytes")
FAST = ("--set", "quantize.report_tokens=256")


def done(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert isinstance(value, dict)
    return value


def refused(result: Result, *words: str, code: int = 2) -> str:
    assert result.exit_code == code, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("segpt:")]
    for word in words:
        assert word in line
    return line


@pytest.fixture
def place(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the tiny recipe and three texts, in which commands run."""
    monkeypatch.chdir(fresh)
    monkeypatch.setenv("CI", "1")
    (fresh / "other.jsonl").write_text(documents(60, start=3000))
    return fresh


@pytest.fixture
def mine(place: Path, segpt: Command) -> dict[str, Any]:
    """A text of the user's own, prepared."""
    assert place.is_dir()
    return done(segpt("data", "prepare", "train.jsonl", *BYTES, "--json"))


@pytest.fixture
def train(mine: dict[str, Any], segpt: Command) -> Command:
    """Train the tiny recipe on the text that was prepared last."""
    assert mine["tokens"]
    return lambda *args: segpt("train", "--recipe", "tiny.yaml", *args)


SMALL = (
    *("--set", "model.width=32", "--set", "model.depth=1", "--set", "model.context=32"),
    *("--set", "model.layer.mixer.heads=1", "--set", "model.layer.mixer.head_dim=16"),
    *("--set", "model.layer.mixer.query_key=[norm]", "--set", "model.layer.feed.hidden=32"),
    *("--set", "train.validate_tokens=512", "--steps", "3"),
)


# Which text.


def test_training_takes_the_text_that_was_prepared_last(place: Path, segpt: Command) -> None:
    # the built-in text took its place without a word, as the default vocabularies never agree
    text = done(segpt("data", "prepare", "train.jsonl", "--vocab", "300", "--json"))
    result = segpt("train", *SMALL, "--json")
    header = value_directory.read_header(Path(done(result)["checkpoint"]), "checkpoint")
    assert header["about"]["text"]["digest"] == text["digest"]
    assert header["spec"]["vocab"] == 300
    first, second = result.stderr.splitlines()[:2]
    assert "train.jsonl" in first
    assert "runs/data/train" in first
    assert f"{text['bytes']:,} bytes" in first
    assert "model.vocab=300" in second
    assert [split["split"] for split in done(result)["texts"]] == ["train", "validation"]
    assert str(place) not in first


def test_a_named_recipe_keeps_its_vocabulary(place: Path, segpt: Command) -> None:
    done(segpt("data", "prepare", "train.jsonl", "--vocab", "300", "--json"))
    line = refused(
        segpt("train", "--recipe", "demo", *SMALL),
        "runs/data/train",
        "vocabulary of 300",
        "4,096",
        "--data builtin",
    )
    added = line.partition("add ")[2].partition(" to train")[0]
    assert added.startswith("--set model.vocab=300")
    assert segpt("train", "--recipe", "demo", *SMALL, *shlex.split(added)).exit_code == 0
    own = refused(segpt("train", *SMALL, "--set", "model.vocab=301"), "vocabulary of 300")
    assert "301" in own
    assert not (place / "runs" / "data" / "builtin-4096").exists()


def test_a_text_that_is_gone_is_not_replaced_by_another(
    place: Path, mine: dict[str, Any], segpt: Command
) -> None:
    done(segpt("data", "prepare", "other.jsonl", *BYTES, "--json"))
    shutil.rmtree(place / "runs" / "data" / "other")
    args = ("train", "--recipe", "tiny.yaml")
    refused(segpt(*args), "runs/data/other", "is gone", "--data builtin")
    assert done(segpt(*args, "--data", mine["out"], "--json"))["steps"] == 30


def test_a_model_is_scored_on_its_own_text(place: Path, train: Command, segpt: Command) -> None:
    # 3.0175, and 4.0634 after some other text was prepared
    checkpoint = done(train("--json"))["checkpoint"]
    quantized = done(segpt("quantize", "--bits", "6", *FAST, "--json"))["out"]
    artifact = done(segpt("pack", "--json"))["out"]
    models = (checkpoint, quantized, artifact)
    before = [done(segpt("score", model, "--json")) for model in models]
    done(segpt("data", "prepare", "other.jsonl", *BYTES, "--json"))
    for model, earlier in zip(models, before, strict=True):
        result = segpt("score", model, "--json")
        assert done(result)["nats"] == earlier["nats"]
        assert "train.jsonl" in result.stderr.splitlines()[0]
        assert done(result)["texts"][0]["digest"] == earlier["conditions"]["text"]
    again = done(segpt("quantize", "--bits", "6", "--out", "again", *FAST, "--json"))
    assert (
        again["bpb_before"] == done(segpt("quantize", "--bits", "6", *FAST, "--json"))["bpb_before"]
    )
    assert (place / "again").is_dir()


def test_a_text_is_known_wherever_it_lies(place: Path, train: Command, segpt: Command) -> None:
    checkpoint = done(train("--json"))["checkpoint"]
    nats = done(segpt("score", checkpoint, "--json"))["nats"]
    done(segpt("data", "prepare", "other.jsonl", *BYTES, "--json"))
    (place / "runs" / "data" / "train").rename(place / "runs" / "data" / "moved")
    result = segpt("score", checkpoint, "--json")
    assert done(result)["nats"] == nats
    assert "runs/data/moved" in result.stderr
    shutil.rmtree(place / "runs" / "data" / "moved")
    for args in (("score",), ("quantize", "--bits", "6")):
        refused(segpt(*args, checkpoint), "train.jsonl", "not here any more", "name")


def test_validation_text_is_that_of_the_run_and_not_of_a_namesake(
    place: Path, segpt: Command
) -> None:
    """Two texts with one training split and two validation splits."""
    for held, out in (("held.jsonl", "first"), ("other.jsonl", "second")):
        args = ("train.jsonl", "--validation", held, *BYTES, "--out", out)
        assert segpt("data", "prepare", *args).exit_code == 0
    trained = segpt("train", "--recipe", "tiny.yaml", "--data", "first", "--json")
    checkpoint = done(trained)["checkpoint"]
    assert "held.jsonl" in segpt("score", checkpoint).stderr.splitlines()[0]
    (place / "first").rename(place / "elsewhere")
    refused(segpt("score", checkpoint), "train.jsonl", "name one")
    assert segpt("score", checkpoint, "held.jsonl").exit_code == 0


def test_a_dry_run_names_the_text(mine: dict[str, Any], segpt: Command) -> None:
    result = segpt("train", "--recipe", "tiny.yaml", "--dry-run", "--json")
    texts = done(result)["texts"]
    assert texts[0]["tokens_digest"] == mine["digest"]
    assert texts[0]["digest"][:12] in result.stderr.splitlines()[0]


def test_the_built_in_text_is_taken_where_it_is_named(
    place: Path, train: Command, segpt: Command
) -> None:
    result = done(train("--steps", "2", "--data", "builtin", "--out", "run", "--json"))
    assert [text["name"] for text in result["texts"]] == ["builtin/train", "builtin/validation"]
    assert done(train("--steps", "2", "--json"))["texts"][0]["name"].startswith("train.jsonl")
    shutil.rmtree(place / "runs" / "data" / "builtin-bytes")
    again = done(segpt("quantize", "run", "--bits", "6", *FAST, "--json"))
    assert again["texts"] == [
        text | {"tokens_digest": None, "place": None} for text in result["texts"]
    ]


def test_another_text_of_that_name_is_not_calibrated_on(
    place: Path, train: Command, segpt: Command
) -> None:
    assert train().exit_code == 0
    other = done(segpt("data", "prepare", "other.jsonl", *BYTES, "--json"))["out"]
    refused(segpt("quantize", "--data", other), "other.jsonl", "train.jsonl", "--data")
    assert not (place / "runs" / "tiny-quantized").exists()


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"[]",
        b"null",
        b'{"data": 7, "checkpoint": null, "artifact": ["x"]}',
        b'{"data": "\\ud800", "checkpoint": "a\\u0000b"}',
        b"\xff\xfe{",
        b"[" * 100_000,
        b'{"data": ' + b"9" * 5000 + b"}",
    ],
)
def test_a_damaged_memory_is_an_empty_one(train: Command, segpt: Command, damage: bytes) -> None:
    assert train("--steps", "2").exit_code == 0
    for name in ("latest.json", "texts.json"):
        Path("runs", name).write_bytes(damage)
    assert done(train("--steps", "2", "--json"))["checkpoint"] == "runs/tiny-2/step-00000002"
    Path("runs", "latest.json").write_bytes(damage)
    assert "runs/tiny" in done(segpt("report", "--json"))["out"]  # what is on the disk counts
    assert done(segpt("runs", "--json"))["rows"]


# Going on.


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """``stopped(command, steps)`` runs a training that a signal stops after so many steps."""
    train_step = trainer.Trainer.train_step

    def call(command: Callable[[], Result], steps: int) -> Result:
        left = iter(range(steps - 1))

        def then_stop(run: trainer.Trainer, *args: Any, **options: Any) -> Any:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGTERM)
            return train_step(run, *args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(trainer.Trainer, "train_step", then_stop)
            return command()

    return call


def remedy(result: Result) -> list[str]:
    """The command that an interruption names, as words after ``segpt``."""
    line = refused(result, "to go on: segpt ", code=143)
    return shlex.split(line.partition("to go on: segpt ")[2])


def test_resuming_works_as_printed(
    place: Path, train: Command, segpt: Command, stopped: Callable[..., Result]
) -> None:
    """From the same directory, however the run was begun, and after other texts and runs."""
    begun = ("--set", "train.batch=4", "--seed", "3", "--steps", "20")
    whole = done(train(*begun, "--out", "whole", "--json"))
    result = stopped(lambda: train(*begun, "--out", "a run"), 7)
    words = remedy(result)
    assert "a run" in words
    done(segpt("data", "prepare", "other.jsonl", *BYTES, "--json"))
    assert train("--steps", "2").exit_code == 0  # a newer run
    (place / "tiny.yaml").unlink()
    resumed = done(segpt(*words, "--json"))
    assert resumed["checkpoint"] == "a run/step-00000020"
    assert resumed["loss"] == pytest.approx(whole["loss"], abs=1.0)
    one, other = (checkpoint_io.read_checkpoint(Path(r["checkpoint"])) for r in (whole, resumed))
    assert one.fingerprint == other.fingerprint
    assert one.origin == other.origin


def test_a_run_goes_on_as_it_was_begun_with_init_and_seconds(
    train: Command, segpt: Command, stopped: Callable[..., Result]
) -> None:
    first = done(train("--steps", "3", "--json"))["checkpoint"]
    result = stopped(lambda: train("--init", first, "--steps", "8", "--out", "warm"), 4)
    header = done(segpt(*remedy(result), "--json"))
    assert header["checkpoint"] == "warm/step-00000008"
    assert value_directory.read_header(Path("warm/step-00000008"), "checkpoint")["origin"]["init"]
    result = stopped(lambda: train("--seconds", "2", "--out", "timed"), 4)
    assert done(segpt(*remedy(result), "--json"))["seconds"] >= 2


def test_resuming_bare_takes_the_newest_run(
    train: Command, segpt: Command, stopped: Callable[..., Result]
) -> None:
    stopped(lambda: train("--steps", "9"), 4)
    assert done(segpt("train", "--resume", "--json"))["checkpoint"] == "runs/tiny/step-00000009"


def test_a_finished_run_says_so_and_succeeds(place: Path, train: Command, segpt: Command) -> None:
    whole = done(train("--steps", "4", "--json"))
    shutil.rmtree(place / "runs" / "data")  # not needed any more
    for args in (("--resume",), ("--resume", "runs/tiny"), ("--out", "runs/tiny", "--resume")):
        result = segpt("train", *args, "--json")
        assert done(result)["checkpoint"] == whole["checkpoint"]
        assert "trained to its end" in result.stderr
        assert done(result)["bpb"] == whole["bpb"]


def test_what_a_kill_left_is_put_away_by_the_same_command(
    place: Path, train: Command, segpt: Command
) -> None:
    # the last act of each had been to remove something, and nothing was left to do afterwards
    done(train("--steps", "4", "--json"))
    code = "import os; print(os.getpid())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    number = int(ended.stdout)
    strays = [
        Path("runs/tiny") / f".step-00000002.{number}.tmp",
        Path("runs/data") / f"..train.unfinished.{number}.tmp",
    ]
    for stray in strays:
        stray.mkdir()
    done(segpt("train", "--resume", "--json"))
    done(segpt("data", "prepare", "train.jsonl", *BYTES, "--json"))
    assert not [stray for stray in strays if stray.exists()]


def test_a_refusal_names_what_differs(
    train: Command, segpt: Command, stopped: Callable[..., Result]
) -> None:
    # (1f2e..., now 9a0b...)
    stopped(lambda: train("--steps", "9", "--set", "train.batch=4"), 4)
    go_on = ("train", "--resume", "runs/tiny")
    refused(segpt(*go_on, "--set", "train.batch=16"), "train.batch 4, now 16")
    refused(segpt(*go_on, "--seed", "5"), "train.seed 1, now 5")
    refused(segpt(*go_on, "--steps", "90"), "train.length.count 9, now 90")
    refused(segpt(*go_on, "--set", "model.width=64"), "model")
    refused(train("--resume", "runs/tiny"), "train.batch 4, now 8")
    refused(segpt(*go_on, "--out", "runs/other"), "two places")
    free = ("--set", "train.save_every=2", "--set", "train.keep=5", "--set", "train.log_every=1")
    assert done(segpt(*go_on, *free, "--json"))["steps"] == 9
    assert len(run_directory.checkpoints(Path("runs/tiny"))) > 2


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    train: Command, segpt: Command, stopped: Callable[..., Result]
) -> None:
    whole = done(train("--steps", "12", "--out", "whole", "--json"))
    stopped(lambda: train("--steps", "12", "--set", "train.save_every=4", "--out", "run"), 9)
    newest = run_directory.checkpoints(Path("run"))[-1]
    state = newest / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-9])
    result = segpt("train", "--resume", "run", "--json")
    assert "step-00000009" in result.stderr
    assert "going on from run/step-00000008" in result.stderr
    one, other = (Path(r["checkpoint"]) for r in (whole, done(result)))
    assert (
        checkpoint_io.read_checkpoint(one).fingerprint
        == checkpoint_io.read_checkpoint(other).fingerprint
    )
    assert (Path("run") / "damaged-step-00000009" / "header.json").is_file()  # nothing is lost


def test_quantizing_goes_on_as_printed(
    place: Path, train: Command, segpt: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train().exit_code == 0
    begun = ("quantize", "--bits", "5", *FAST)
    whole = done(segpt(*begun, "--out", "whole", "--json"))
    save = unfinished.save_partial

    def then_stop(path: Path, partial: QuantizeProgress, origin: dict[str, str]) -> None:
        save(path, partial, origin)
        if partial.done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(unfinished, "save_partial", then_stop)
        words = remedy(segpt(*begun, "--out", "a model"))
    done(segpt("data", "prepare", "other.jsonl", *BYTES, "--json"))
    assert done(segpt(*words, "--json")) | {"out": ""} == whole | {"out": ""}
    again = segpt(*words, "--json")
    assert done(again)["bytes"] == whole["bytes"]
    assert "is finished" in again.stderr
    assert not (place / "a model.partial").exists()


def test_a_score_goes_on_without_its_options(
    train: Command, segpt: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = done(train("--json"))["checkpoint"]
    begun = ("score", model, "held.jsonl", "--ttt", "sgd", "--set", "adapt.chunk=64")
    whole = done(segpt(*begun, "--json"))

    def stop_soon(*args: Any, pause: Callable[[Any], None], **options: Any) -> Any:
        def first_pause(take: Any) -> None:
            pause(take)
            if not sent:
                sent.append(signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)

        sent: list[signal.Signals] = []
        return score_stream(*args, pause=first_pause, **options)

    for resume in (("score", "--resume"), ("score", model, "--resume")):
        with monkeypatch.context() as patch:
            patch.setattr("segpt.stages.score.score_stream", stop_soon)
            line = refused(segpt(*begun), "go on with --resume", code=143)
        assert shlex.split(line.rpartition("segpt ")[2]) == ["score", model, "--resume"]
        result = done(segpt(*resume, "--json"))
        assert result["nats"] == whole["nats"]
        assert result["policy"] == whole["policy"]
    again = segpt("score", "--resume", "--json")
    assert "is finished: nothing is left to do" in again.stderr
    assert done(again) == result


def test_the_demo_goes_on_where_it_was_interrupted(
    place: Path,
    segpt: Command,
    stopped: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In training, and between later stages: what is done is kept."""
    little_text.use(little_text.library(place / "library"), monkeypatch)
    settings = [word for setting in TINY for word in ("--set", setting)]
    begun = ("demo", "--budget", 100_000, "--seed", 3, *settings)
    words = remedy(stopped(lambda: segpt(*begun), 7))
    assert words[:2] == ["demo", "--resume"]
    result = done(segpt(*words, "--json"))
    assert (result["seed"], result["budget"]) == (3, 100_000)
    header = place / "runs" / "demo" / "quantized" / "header.json"
    made = header.stat().st_mtime_ns
    for name in ("demo.json", "score.json"):  # as if it had been killed there
        (place / "runs" / "demo" / name).unlink()
    again = done(segpt("demo", "--resume", "--json"))
    same = ("bytes", "bpb", "bpb_ttt", "bpb_float", "rows", "seed")
    assert {name: again[name] for name in same} == {name: result[name] for name in same}
    assert header.stat().st_mtime_ns == made
    finished = segpt("demo", "--resume", "runs/demo", "--json")
    assert done(finished) == again
    assert "is finished" in finished.stderr
    (Path("runs/demo") / "demo.json").write_text("[]")
    for line in ([], ["--json"]):
        refused(segpt("demo", "--resume", "runs/demo", *line), "demo.json")
    assert not (place / "runs" / "demo-2").exists()


# Several at once.


def start(place: Path, *args: str) -> "subprocess.Popen[str]":
    return processes.Popen(
        ["-m", "segpt", *args],
        cwd=place,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CI": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_three_runs_at_once_have_three_directories(place: Path, mine: dict[str, Any]) -> None:
    # all three wrote into one, and two results were lost
    line = ("train", "--recipe", "tiny.yaml", "--steps", "10", "--json", "--seed")
    runs = [start(place, *line, str(seed)) for seed in (1, 2, 3)]
    results = []
    for run in runs:
        stdout, stderr = run.communicate(timeout=300)
        assert run.returncode == 0, stderr
        results.append(json.loads(stdout))
    assert mine["tokens"]
    places = {Path(result["checkpoint"]).parent for result in results}
    assert places == {Path("runs/tiny"), Path("runs/tiny-2"), Path("runs/tiny-3")}
    for seed, result in enumerate(results, 1):
        header = value_directory.read_header(place / result["checkpoint"], "checkpoint")
        assert header["origin"]["seed"] == str(seed)
    assert Path(json.loads((place / "runs" / "latest.json").read_text())["run"]) in places


def test_a_second_writer_gets_one_line(place: Path, mine: dict[str, Any], segpt: Command) -> None:
    line = ("train", "--recipe", "tiny.yaml", "--out", "run", "--steps")
    first = start(place, *line, "100000", "--set", "train.save_every=5")
    try:
        deadline = time.monotonic() + 120
        while not run_directory.checkpoints(place / "run") and time.monotonic() < deadline:
            time.sleep(0.02)
        refused(segpt(*line, "5"), "run")
        refused(segpt("train", "--resume", "run"), "being written", "--out")
        (row,) = [r for r in done(segpt("runs", ".", "--json"))["rows"] if r["kind"] == "run"]
        assert row["state"] == "running"
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=60)
    finally:
        first.kill()
        first.communicate()
    (row,) = [r for r in done(segpt("runs", ".", "--json"))["rows"] if r["kind"] == "run"]
    assert row["state"] == "interrupted"
    assert mine["tokens"]


def test_nothing_is_the_newest_before_it_exists(train: Command, segpt: Command) -> None:
    first = done(train("--steps", "2", "--json"))["checkpoint"]
    # larger than the text allows, so that the run fails once it has begun
    failed = train("--steps", "2", "--set", "train.unique=true", "--set", "train.batch=100000")
    assert failed.exit_code == 2
    assert json.loads(Path("runs/latest.json").read_text())["checkpoint"] == "runs/tiny"
    assert not Path("runs/tiny-2").exists()
    assert done(segpt("quantize", "--bits", "6", *FAST, "--json"))["out"] == "runs/tiny-quantized"
    assert Path(first).is_dir()


def test_a_file_of_the_user_is_not_written_over(
    place: Path, train: Command, segpt: Command
) -> None:
    (place / "metrics.jsonl").write_text("mine\n")
    refused(train("--steps", "2", "--out", "."), "metrics.jsonl", "--out")
    assert (place / "metrics.jsonl").read_text() == "mine\n"
    assert segpt("runs").exit_code == 0


# What there is.


def test_runs_lists_what_was_made(
    place: Path, train: Command, segpt: Command, stopped: Callable[..., Result]
) -> None:
    whole = done(train("--steps", "4", "--json"))
    stopped(lambda: train("--steps", "9"), 4)
    assert segpt("quantize", "runs/tiny", "--bits", "6", *FAST).exit_code == 0
    packed = done(segpt("pack", "--json"))
    rows = done(segpt("runs", "--json"))["rows"]
    by_path = {row["path"]: row for row in rows}
    assert by_path["runs/data/train"]["kind"] == "text"
    assert by_path["runs/tiny"]["state"] == "finished"
    assert by_path["runs/tiny-2"]["state"] == "interrupted"
    assert by_path["runs/tiny"]["bpb"] == whole["bpb"]
    assert by_path["runs/tiny"]["bpb_of"]
    artifact = by_path[packed["out"]]
    assert (artifact["kind"], artifact["bytes"]) == ("artifact", packed["bytes"])
    for path in ("runs/tiny", "runs/tiny-quantized", packed["out"]):
        assert by_path[path]["text"].startswith("train.jsonl")
        assert by_path[path]["recipe"] == "tiny"
    damaged = place / "runs" / "tiny-quantized" / "header.json"
    damaged.write_text("{")
    (place / packed["out"]).write_bytes(b"no artifact")
    text = segpt("runs")
    assert text.exit_code == 0
    assert "damaged" in next(x for x in text.stdout.splitlines() if packed["out"] in x)
    refused(segpt("runs", "nowhere"), "nowhere")


def test_runs_needs_no_torch(place: Path, mine: dict[str, Any]) -> None:
    probe = (
        "import sys, segpt.__main__ as m\ntry: m.main()\nfinally: assert 'torch' not in sys.modules"
    )
    line = [sys.executable, "-c", probe, "runs", "--json"]
    ran = subprocess.run(line, cwd=place, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert [row["path"] for row in json.loads(ran.stdout)["rows"]] == [mine["out"]]
