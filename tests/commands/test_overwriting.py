"""No command overwrites what it did not write; every option that names a result is tried."""

import os
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from segpt.__main__ import load_commands
from segpt.atomic import write_file
from segpt.stages.pack import documents_path
from tests.leaderboard.small_records import packed

main = load_commands().main

# Every command and option that names a result, and what is typed to get there. A file or a
# directory that is somebody else's is put where it points to.
FILES = {
    ("compress", "--out"): ("text.txt", "--artifact", "model.segpt"),
    ("decompress", "--out"): ("text.segz", "--artifact", "model.segpt"),
    ("eval", "--out"): ("model.segpt", "--tasks", "x"),
    ("export gguf", "--out"): ("model.segpt",),
    ("pack", "--out"): ("quantized",),
    ("quantize", "--plot"): ("run",),
    ("report", "--out"): ("run",),
    ("report", "--png"): ("run",),
    ("score", "--out"): ("model.segpt", "text.txt"),
    ("tokenizer convert", "--out"): ("bytes",),
    ("tokenizer train", "--out"): ("text.txt", "--vocab", "300"),
}
DIRECTORIES = {
    ("average", "--out"): ("run",),
    ("data link", "--out"): (
        *("--train", "ids.npy", "--validation", "more.npy", "--tokenizer", "bytes"),
    ),
    ("data fetch", "--out"): ("core", "--url", "nowhere.zip"),
    ("data prepare", "--out"): ("text.jsonl", "--tokenizer", "bytes"),
    ("export hf", "--out"): ("model.segpt",),
    ("import gguf", "--out"): ("model.gguf",),
    ("import hf", "--out"): ("theirs",),
    ("leaderboard export", "--out"): (
        *("model.segpt", "--contest", "parameter-golf", "--score", "score.json"),
        *("--author", "Ada", "--name", "x"),
    ),
    ("quantize", "--out"): ("run",),
    ("tokenizer export", "--out"): ("bytes",),
}
ADDED_TO = {("demo", "--out"), ("train", "--out")}  # runs, which are claimed and gone on with


def options(command: click.Command, name: str = "") -> Iterator[tuple[str, str]]:
    """Every option of every command that may name a result."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for word in command.list_commands(context):
            inner = command.get_command(context, word)
            assert inner is not None
            yield from options(inner, f"{name} {word}".strip())
        return
    for parameter in command.params:
        for option in parameter.opts:
            if option in ("--out", "--plot", "--png"):
                yield name, option


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    packed(tmp_path / "model.segpt", 1)
    (tmp_path / "text.txt").write_text("A text of mine. " * 40)
    (tmp_path / "text.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "text.segz").write_bytes(b"compressed")
    (tmp_path / "score.json").write_text("{}")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text("{}")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    np.save(tmp_path / "ids.npy", np.array([256, 65, 66], np.uint16))
    np.save(tmp_path / "more.npy", np.array([256, 67, 68], np.uint16))
    return tmp_path


def test_every_option_that_names_a_result_is_known_here() -> None:
    assert {*FILES, *DIRECTORIES, *ADDED_TO} == {*options(main)}


@pytest.mark.slow
@pytest.mark.parametrize(("command", "option"), FILES)
@pytest.mark.parametrize("content", [b"my thesis", b"{}", b'{"kind": "mine"}'])
def test_a_file_of_somebody_else_stays(
    place: Path, command: str, option: str, content: bytes
) -> None:
    _small_run(place)
    (place / "mine").write_bytes(content)
    args = [*command.split(), *FILES[command, option], option, "mine"]
    done = CliRunner().invoke(main, args)
    assert done.exit_code == 2, done.output
    assert "--force" in done.output, done.output
    assert (place / "mine").read_bytes() == content
    assert not [path for path in place.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "option"), DIRECTORIES)
@pytest.mark.parametrize("where", ["mine", ".", "link"])
def test_a_directory_of_somebody_else_stays(
    place: Path, command: str, option: str, where: str
) -> None:
    _small_run(place)
    (place / "mine").mkdir()
    (place / "mine" / "header.json").write_text("{}")
    (place / "link").symlink_to(place / "mine")
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    args = [*command.split(), *DIRECTORIES[command, option], option, where]
    done = CliRunner().invoke(main, args)
    assert done.exit_code == 2, done.output
    assert len(done.output.strip().splitlines()) == 1, done.output
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_what_the_same_command_wrote_is_replaced(place: Path) -> None:
    train = ["tokenizer", "train", "text.txt", "--vocab", "270", "--out", "tokenizer.json"]
    score = ["score", "model.segpt", "text.jsonl", "--out", "result.json"]
    prepare = ["data", "prepare", "text.jsonl", "--held-out", "0.5", "--tokenizer", "bytes"]
    for args in (train, score):
        for _ in range(2):
            done = CliRunner().invoke(main, args)
            assert done.exit_code == 0, done.output
    for _ in range(2):
        CliRunner().invoke(main, [*prepare, "--out", "data"])
    (place / "result.json").write_text("mine")
    done = CliRunner().invoke(main, [*score, "--force"])
    assert done.exit_code == 0, done.output
    assert documents_path(place / "model.segpt").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    """What is no file is not replaced by one; never try this with a device of the machine."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_file(pipe, b"a result")
        assert os.read(reader, 100) == b"a result"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def _small_run(place: Path) -> None:
    """A run with two checkpoints, and a quantized model."""
    import numpy as np

    from segpt.artifact.container import unpack
    from segpt.stages.checkpoint_io import save_checkpoint
    from segpt.stages.pack import read_artifact
    from segpt.stages.quantized_io import save_quantized
    from segpt.stages.run_directory import checkpoint_name
    from segpt.values import Checkpoint

    value = unpack(read_artifact(place / "model.segpt"))
    weights = {name: coded.decoded().astype(np.float32) for name, coded in value.weights.items()}
    for step in (1, 2):
        checkpoint = Checkpoint(
            value.spec, weights, value.tokenizer, step, 1.0, np.array([1], np.uint64), {}
        )
        save_checkpoint(place / "run" / checkpoint_name(step), checkpoint)
    save_quantized(place / "quantized", value)
