"""Options that people know from elsewhere, sizes, and misuse: one line that says what to type."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from segpt.__main__ import load_commands
from segpt.config import synonyms
from segpt.config.recipe import read_recipe
from segpt.errors import SpecError
from segpt.stages.resolve_spec import score_spec

SMALL = read_recipe("demo").model


def segpt(*args: object) -> Result:
    words = [str(arg) for arg in args]
    return CliRunner().invoke(load_commands().main, words, prog_name="segpt")


def refused(*args: object) -> str:
    """The one line that refuses."""
    done = segpt(*args)
    lines = done.stderr.splitlines()
    assert done.exit_code == 2, done.output
    assert len(lines) == 1, done.output
    assert lines[0].startswith("segpt: ")
    return lines[0]


@pytest.mark.parametrize(
    ("command", "option", "answer"),
    [
        ("train", "--lr", "--set train.optimizer.matrix.rate="),
        ("train", "--learning-rate", "--set train.optimizer.matrix.rate="),
        ("demo", "--lr", "--set train.optimizer.matrix.rate="),
        ("train", "--batch", "--set train.batch="),
        ("train", "--batch_size", "--set train.batch="),
        ("train", "--batch-size", "--set train.batch="),
        ("train", "--context", "--set model.context="),
        ("train", "--block-size", "--set model.context="),
        ("train", "--seq-len", "--set model.context="),
        ("train", "--depth", "--set model.depth="),
        ("train", "--layers", "--set model.depth="),
        ("train", "--n-layer", "--set model.depth="),
        ("train", "--width", "--set model.width="),
        ("train", "--hidden", "--set model.width="),
        ("train", "--heads", "--set model.layer.mixer.heads="),
        ("train", "--vocab-size", "--set model.vocab="),
        ("train", "--vocab", "--set model.vocab="),
        ("train", "--epochs", "--set train.length.count="),
        ("train", "--iters", "--steps"),
        ("train", "--max-steps", "--steps"),
        ("demo", "--max-steps", "--set train.length.count="),
        ("train", "--warmup", "--set train.schedule.warmup="),
        ("train", "--weight-decay", "--set train.optimizer.matrix.decay="),
        ("train", "--dropout", "no dropout, because"),
        ("train", "--optimizer", "--set train.optimizer.matrix=adam"),
        ("train", "--dtype", "write --precision bfloat16"),
        ("train", "--gpu", "--device cuda"),
        ("score", "--gpu", "--device cuda"),
        ("train", "--output", "--out PATH"),
        ("quantize", "--output", "--out PATH"),
        ("pack", "-o", "--out PATH"),
        ("train", "--eval-every", "--set train.validate_every="),
        ("train", "--wandb", "metrics.jsonl"),
        ("train", "--config", "--recipe"),
        ("score", "--lr", "--set adapt.rate="),
        ("score", "--batch-size", "--set score.batch="),
        ("score", "--block-size", "--context"),
        ("score", "--model", "segpt score [MODEL]"),
        ("sample", "--max-new-tokens", "--tokens"),
        ("sample", "--topk", "--top-k"),
        ("quantize", "--lr", "for training write --set"),
        ("eval", "--num-fewshot", "--fewshot"),
        ("data prepare", "--vocab-size", "--vocab"),
        ("data prepare", "--seq-len", "for training write --set model.context="),
        ("tokenizer train", "--vocab-size", "--vocab"),
        ("train", "--recpie", "did you mean --recipe"),
        ("recipes show", "--lr", "--set train.optimizer.matrix.rate="),
    ],
)
def test_options_of_elsewhere_are_answered(command: str, option: str, answer: str) -> None:
    line = refused(*command.split(), option, "1")
    assert f"segpt {command} has no {option}; " in line
    assert answer in line


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("data", "prepar"), "segpt data has no command 'prepar'; did you mean 'prepare'?"),
        (("leaderboard", "chekc"), "did you mean 'check'?"),
        (("recipes", "shwo"), "did you mean 'show'?"),
        (("generate",), "write: segpt sample"),
        (("trian",), "did you mean 'train'?"),
    ],
)
def test_misspelt_subcommands_are_answered(words: Sequence[str], answer: str) -> None:
    assert answer in refused(*words)


@pytest.mark.parametrize(
    ("setting", "answer"),
    [
        ("lr=0.1", "--set train.optimizer.matrix.rate="),
        ("train.lr=0.1", "--set train.optimizer.matrix.rate="),
        ("batch_size=3", "--set train.batch="),
        ("batch=3", "--set train.batch="),
        ("train.batch_size=3", "--set train.batch="),
        ("n_layer=3", "--set model.depth="),
        ("model.n_layer=3", "--set model.depth="),
        ("model.layers=3", "--set model.depth="),
        ("model.d_model=3", "--set model.width="),
        ("model.layer.mixer.n_head=3", "--set model.layer.mixer.heads="),
        ("dropout=0.1", "no dropout, because"),
        ("model.dropout=0.1", "no dropout, because"),
        ("train.epochs=3", "--set train.length.count="),
        ("train.max_steps=3", "--set train.length.count="),
        ("train.warmup=0.1", "--set train.schedule.warmup="),
        ("train.weight_decay=0.1", "--set train.optimizer.matrix.decay="),
        ("train.grad_clip=0.1", "--set train.clip="),
        ("train.dtype=bf16", "--set train.precision="),
        ("train.eval_interval=9", "--set train.validate_every="),
        ("model.block_size=9", "--set model.context="),
        ("model.vocab_size=9", "--set model.vocab="),
        ("train.ema=0.9", "--set train.average.decay="),
        ("seed=9", "--set train.seed="),
    ],
)
def test_settings_of_elsewhere_are_answered(setting: str, answer: str) -> None:
    with pytest.raises(SpecError, match="unknown key") as caught:
        read_recipe("demo", [setting])
    assert answer in str(caught.value)


def changes(remedy: str) -> tuple[str, list[str]]:
    """The policy and the settings of a remedy."""
    words = shlex.split(remedy)
    policy = words[words.index("--ttt") + 1] if "--ttt" in words else "none"
    return policy, [words[i + 1] for i, word in enumerate(words) if word == "--set"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("area", "remedy"), [(area, r) for area, rows in synonyms.REMEDIES.items() for r in rows]
)
def test_every_answer_can_be_typed(area: str, remedy: str) -> None:
    policy, settings = changes(remedy)
    assert settings
    if area == "score":
        score_spec(SMALL, policy=policy, settings=settings)
    else:
        read_recipe("demo", settings)
    command = load_commands().main.get_command(click.Context(load_commands().main), area)
    assert command is not None
    command.make_context(area, shlex.split(remedy), resilient_parsing=False)


REMEDIES = [  # of messages elsewhere in the product, as they print them
    "train.compile=off",
    "train.accumulation=2",
    "train.order=sequential",
    "train.unique=true",
    "quantize.method=nearest",
    "train.optimizer.matrix.rate=0.01",
    "train.keep=6",
    "train.save_every=100",
    "train.batch=16",
    "train.batch=32",
    "model.route='0 (1)*3 2'",
    "model.start=1",
    "model.vocab=4096",
]


@pytest.mark.parametrize("setting", REMEDIES)
def test_remedies_of_messages_can_be_typed(setting: str) -> None:
    read_recipe("demo", [setting])


def test_all_remedies_of_messages_are_tried() -> None:
    """Every ``set X=Y`` that the product prints is one of the remedies above."""
    import re

    root = Path(__file__).parents[2]
    printed = {
        match[1]
        for folder in ("segpt", "commands")
        for file in (root / folder).rglob("*.py")
        if file.name != "synonyms.py"
        for match in re.finditer(
            r"set ['\"]?((?:train|model|quantize|score|adapt|pack)\.[a-z_.]+)=", file.read_text()
        )
    }
    tried = {setting.partition("=")[0] for setting in REMEDIES} | {"adapt.rate"}
    assert printed <= tried


@pytest.mark.parametrize("text", ["off", "no", "false", "False", "OFF"])
def test_switches_of_yaml_are_words_where_words_are_meant(text: str) -> None:
    assert read_recipe("demo", [f"train.compile={text}"]).train.compile == "off"
    assert read_recipe("demo", [f"train.average={text}"]).train.average is None
    assert read_recipe("demo", [f"train.kurtosis={text}"]).train.kurtosis is False
    assert read_recipe("demo", [f"adapt={text}"]).adapt == read_recipe("demo", ["adapt=none"]).adapt


@pytest.mark.parametrize("text", ["on", "yes", "true", "ON"])
def test_on_is_a_word_too(text: str) -> None:
    assert read_recipe("demo", [f"train.compile={text}"]).train.compile == "on"


def test_slices_are_no_times() -> None:
    settings = ["quantize.rules=[{role: matrix, bits: 4, layers: 1:3}]"]
    assert read_recipe("demo", settings).quantize.rules[0].layers == "1:3"


def test_policies_have_one_name_and_others_are_understood() -> None:
    for ours, theirs in (("low_rank", "lora"), ("in_place", "inplace"), ("none", "frozen")):
        assert score_spec(SMALL, policy=ours) == score_spec(SMALL, policy=theirs)
    assert read_recipe("demo", ["adapt=lora"]) == read_recipe("demo", ["adapt=low_rank"])
    assert read_recipe("demo", ["adapt={kind: inplace}"]).adapt.rate is None  # type: ignore[union-attr]
    shown = segpt("score", "--help").stdout
    assert "low_rank" in shown
    assert "lora" not in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16000000", 16_000_000),
        ("16_000_000", 16_000_000),
        ("16,000,000", 16_000_000),
        ("16MB", 16_000_000),
        ("16 MB", 16_000_000),
        ("16mb", 16_000_000),
        ("16m", 16_000_000),
        ("16M", 16_000_000),
        ("16e6", 16_000_000),
        ("1.6e7", 16_000_000),
        ("16MiB", 16 << 20),
        ("15.9MB", 15_900_000),
        ("900kB", 900_000),
        ("64KiB", 65536),
        ("1GB", 10**9),
        ("12b", 12),
    ],
)
@pytest.mark.parametrize("command", ["pack", "inspect", "quantize", "demo"])
def test_sizes_are_understood(command: str, text: str, size: int) -> None:
    main = load_commands().main
    found = main.get_command(click.Context(main), command)
    assert found is not None
    needed = ["x.segpt"] if command == "inspect" else []
    context = found.make_context(command, ["--budget", text, *needed])
    assert context.params["budget"] == size
    assert read_recipe("demo", [f"pack.budget={text}"]).pack.budget == size


@pytest.mark.parametrize(
    "text",
    ["16Mb", "1,5MB", "16.000.000", "0", "-3", "0.5", "1e99", "16XB", "MB", "", "nan", "9" * 5000],
)
def test_other_sizes_are_refused(text: str) -> None:
    line = refused("pack", "--budget", text)
    assert "--budget" in line
    assert len(line) < 300


@pytest.mark.parametrize("option", ["--ttt", "--core"])
def test_an_optional_value_does_not_swallow_the_model(option: str) -> None:
    done = segpt("score", option, "nowhere.segpt")
    assert done.exit_code == 2
    assert "write one of" not in done.stderr
    main = load_commands().main
    found = main.get_command(click.Context(main), "score")
    assert found is not None
    context = found.make_context("score", [option, "runs/a.segpt", "b.txt"])
    assert context.params["model"] == Path("runs/a.segpt")
    assert context.params["texts"] == (Path("b.txt"),)
    context = found.make_context("score", ["--ttt", "sgd", "a.segpt"])
    assert (context.params["policy"], context.params["model"]) == ("sgd", Path("a.segpt"))


def run(
    *args: str | bytes, setup: Callable[[], Any] | None = None, **more: Any
) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, "-m", "segpt", *args],
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=setup,
        check=False,
        timeout=120,
        **more,
    )


@pytest.mark.slow
def test_names_that_are_no_utf8_end_in_one_line(tmp_path: Path) -> None:
    for args in (
        (b"inspect", b"\xff\xfe.segpt"),
        (b"recipes", b"show", b"\xff.yaml"),
        (b"recipes", b"show", b"demo", b"--set", b"name=\xff", b"--json"),
        (b"\xff",),
    ):
        done = run(*args, cwd=tmp_path, capture_output=True)
        assert b"Traceback" not in done.stderr
        assert done.returncode in (0, 2)
        assert len(done.stderr.splitlines()) <= 1


@pytest.mark.slow
def test_a_closed_output_is_reported_and_a_closed_stderr_stops_nothing(tmp_path: Path) -> None:
    done = run("recipes", cwd=tmp_path, stderr=subprocess.PIPE, setup=lambda: os.close(1))
    assert done.returncode == 2
    assert done.stderr == b"segpt: standard output is closed, so the result cannot be printed\n"
    done = run("recipes", "--json", cwd=tmp_path, stdout=subprocess.PIPE, setup=lambda: os.close(2))
    assert done.returncode == 0
    assert b'"demo"' in done.stdout
    with Path("/dev/full").open("wb") as full:
        done = run("recipes", "--json", cwd=tmp_path, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr == b"segpt: the result cannot be written: No space left on device\n"


@pytest.mark.slow
# While torch is loaded, or the model is made; a little above the first, torch's own loader aborts.
@pytest.mark.parametrize("megabytes", [300, 1500])
def test_no_memory_is_one_line(tmp_path: Path, megabytes: int) -> None:
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    settings = ("model.width=4096", "model.depth=30", "model.layer.feed.hidden=16384")
    options = [word for setting in settings for word in ("--set", setting)]
    done = run("train", *options, cwd=tmp_path, capture_output=True, setup=limit)
    assert done.returncode == 2, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"segpt: the memory is not enough; " in done.stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("embedded null byte"), "NUL"),
        (MemoryError(), "the memory is not enough"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "the memory is"),
        (OSError(28, "No space left on device", "a.bin"), "a.bin: No space left on device"),
        (SpecError(f"a.bin cannot be read ({OSError(13, 'Permission denied')})"), "(Permission"),
    ],
)
def test_errors_of_the_machine_are_one_line(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("segpt.config.recipe.read_recipe", broken)
    told = refused("train")
    assert line in told
    assert "Errno" not in told


def test_errors_of_the_code_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("a mistake of ours")

    monkeypatch.setattr("segpt.config.recipe.read_recipe", broken)
    assert isinstance(segpt("train").exception, ValueError)
