"""``segpt sample``: from a model and prompts to text on stdout, as it comes."""

import json
import os
import pty
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import processes

Run = Callable[..., Any]
BRIEF = ("--tokens", 12)


@pytest.fixture
def here(segpt: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``here(*args)`` runs ``segpt`` in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return segpt


def refused(done: Any, *words: str) -> None:
    assert done.exit_code == 2, (done.stdout, done.stderr)
    lines = [x for x in done.stderr.splitlines() if x.startswith(("segpt:", "Error:"))]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0], lines[0]


@pytest.fixture
def model(line: Any, workplace: Path) -> Path:
    """The artifact of the tiny line."""
    return workplace / str(line["pack"]["out"])


@pytest.mark.slow
def test_one_json_object_tells_everything(model: Path, tmp_path: Path, run: Run) -> None:
    done = run(tmp_path, "sample", model, "Document 7.", "", *BRIEF, "--json")
    found = done.json
    assert done.stdout.count("\n") == 1
    assert found["prompts"] == ["Document 7.", ""]
    assert [len(found[key]) for key in ("texts", "ids", "ended")] == [2, 2, 2]
    assert found["tokens"] == sum(map(len, found["ids"]))
    assert 0 < found["first_token_seconds"] <= found["seconds"]
    assert found["tokens_per_second"] == pytest.approx(found["tokens"] / found["seconds"])
    assert found["spec"]["tokens"] == 12
    assert list(tmp_path.iterdir()) == []
    settings = ("--batch", 1, "--no-cache")
    again = run(tmp_path, "sample", model, "Document 7.", "", *BRIEF, *settings, "--json").json
    assert again["ids"] == found["ids"]


def test_every_knob_reaches_the_spec(model: Path, here: Run) -> None:
    knobs = {
        "tokens": 3,
        "temperature": 0.5,
        "top_k": 9,
        "top_p": 0.5,
        "repetition_penalty": 1.35,
        "seed": 4,
        "context": 7,
        "batch": 2,
    }
    words = [w for name, value in knobs.items() for w in (f"--{name.replace('_', '-')}", value)]
    found = json.loads(here("sample", model, *words, "--no-cache", "--json").stdout)
    assert found["spec"] == {"kind": "sample_spec", "cache": False} | knobs


@pytest.mark.parametrize("kind", ["checkpoint", "quantized"])
def test_models_before_packing(line: Any, workplace: Path, here: Run, kind: str) -> None:
    path = {"checkpoint": line["train"]["checkpoint"], "quantized": line["quantize"]["out"]}[kind]
    found = json.loads(here("sample", workplace / path, "Document", *BRIEF, "--json").stdout)
    assert found["tokens"] > 0


def test_the_newest_artifact_continues_a_lone_prompt(
    line: Any, workplace: Path, segpt: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    named = json.loads(segpt("sample", line["pack"]["out"], "Document 7.", *BRIEF, "--json").stdout)
    bare = json.loads(segpt("sample", "Document 7.", *BRIEF, "--json").stdout)
    assert bare["ids"] == named["ids"]
    nothing = json.loads(segpt("sample", *BRIEF, "--json").stdout)
    assert nothing["prompts"] == [""]


def test_text_goes_to_stdout_and_figures_to_stderr(model: Path, here: Run) -> None:
    found = json.loads(here("sample", model, "Document 7.", *BRIEF, "--json").stdout)
    done = here("sample", model, "Document 7.", *BRIEF)
    assert done.stdout == f"Document 7.{found['texts'][0]}\n"
    assert "12 tokens" in done.stderr
    assert "seed 1" in done.stderr
    several = here("sample", model, "Document 7.", "x", *BRIEF)
    assert several.stdout.startswith(f"--- 1 of 2\nDocument 7.{found['texts'][0]}\n--- 2 of 2\nx")


def test_prompts_from_the_standard_input(model: Path, tmp_path: Path, here: Run) -> None:
    found = json.loads(here("sample", model, "one", "zwei 🙂", "", *BRIEF, "--json").stdout)
    piped = processes.run(
        ["-m", "segpt", "sample", str(model), "-", "--tokens", "12", "--json"],
        cwd=tmp_path,
        input="one\nzwei 🙂\n\n".encode(),
        capture_output=True,
        check=True,
    )
    assert json.loads(piped.stdout)["prompts"] == ["one", "zwei 🙂", ""]
    assert json.loads(piped.stdout)["ids"] == found["ids"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("nowhere.segpt",), ("nowhere.segpt",)),
        (("runs/nowhere",), ("runs/nowhere",)),
        (("a prompt",), ("segpt pack",)),
        ((), ("segpt pack",)),
        (("file",), ("file", "not an artifact")),
        (("MODEL", "x", "--tokens", "0"), ("tokens",)),
        (("MODEL", "x", "--top-p", "2"), ("top_p",)),
        (("MODEL", "x", "--temperature", "nan"), ("temperature",)),
        (("MODEL", "x", "--repetition-penalty", "0.5"), ("repetition_penalty",)),
        (("MODEL", "x", "--seed", "-1"), ("seed",)),
        (("MODEL", "x", "--device", "abacus"), ("abacus", "auto, cpu, cuda")),
        (("MODEL", "-"), ("no prompt",)),
    ],
)
def test_bad_input_is_one_line(
    model: Path, tmp_path: Path, here: Run, args: Any, words: Any
) -> None:
    (tmp_path / "file").write_text("no model")
    shutil.copy(model, tmp_path / "m.segpt")
    given = ["m.segpt" if word == "MODEL" else word for word in args]
    refused(here("sample", *given), *words)


@pytest.mark.slow
def test_a_model_cannot_steer_the_terminal(model: Path, tmp_path: Path) -> None:
    """On a terminal, what is no text is spelt out; an untrained alphabet gives plenty of it."""
    shown = _on_a_terminal(tmp_path, model, "--temperature", "100", "--tokens", "600")
    raw = _on_a_terminal(tmp_path, model, "--temperature", "100", "--tokens", "600", "--json")
    (text,) = json.loads(raw)["texts"]
    assert "\x1b" in text
    assert "<1b>" in shown
    assert {c for c in shown if c < " " or c == "\x7f"} <= {"\n", "\t", "\r"}
    assert shown.count("\r") == shown.count("\r\n")


def _on_a_terminal(place: Path, model: Path, *words: str) -> str:
    """What ``segpt sample`` writes to a terminal."""
    ours, theirs = pty.openpty()
    knobs = ("--top-k", "0", "--top-p", "1")
    with processes.Popen(
        ["-m", "segpt", "sample", str(model), "x", *knobs, *words],
        cwd=place,
        stdout=theirs,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(theirs)
        found = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            found += part
        assert process.stderr is not None
        told = process.stderr.read()
    assert process.returncode == 0, told
    os.close(ours)
    return found.decode()
