"""The session of ``docs/own-text.md``, as it is written there, on text that is made here.

Every command of the page runs in its own process, in the order of the page; ``^C`` is a SIGINT.
What the page shows of the output must come, but for numbers. Then files say which text and model
each command worked on.
"""

import json
import os
import random
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from segpt.config.layout import parameters
from segpt.config.recipe import read_recipe
from segpt.stages.estimate import artifact_bytes
from tests import processes

PAGE = Path(__file__).resolve().parents[2] / "docs" / "own-text.md"
WORDS = 300  # of which the texts are made
HIDDEN = {64: 192, 128: 320, 192: 512, 256: 704, 384: 1024}  # the feed of each width, as told there


class Line(NamedTuple):
    """A command of the session and what the page shows of its output."""

    command: str
    shown: tuple[str, ...]


def session(page: str) -> list[Line]:
    """The commands of all ``console`` blocks, in order."""
    lines: list[Line] = []
    for block in re.findall(r"^```console\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
        for text in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *shown = text.splitlines()
            lines.append(Line(command, tuple(shown)))
    return lines


def without_numbers(line: str) -> str:
    """A line in which every number, digest and stretch of space is alike."""
    line = re.sub(r"\b[0-9a-f]{12,64}\b", "DIGEST", line.strip())
    return re.sub(r"\s+", " ", re.sub(r"[+-]?\d[\d,.]*\d|\d", "N", line))


def prose(seed: int, paragraphs: int) -> list[str]:
    """Paragraphs of made-up words, in which some words are more common than others."""
    draw = random.Random(seed)
    letters = random.Random(1)  # the words are those of every text
    words = ["".join(letters.choices("aeioulnrstdm", k=2 + i % 6)) for i in range(WORDS)]
    weights = [1 / (i + 1) for i in range(WORDS)]
    return [" ".join(draw.choices(words, weights, k=60)) + "." for _ in range(paragraphs)]


def run(command: str, place: Path, *, interrupted: bool = False) -> tuple[int, str]:
    """The exit code of a command and all that it printed, with a SIGINT once it has trained."""
    words = shlex.split(command.partition(" > ")[0])
    segpt = words[0] == "segpt"
    process = (processes.Popen if segpt else subprocess.Popen)(
        ["-m", *words] if segpt else words,
        cwd=place,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if interrupted:
        log = place / "runs" / "demo" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (log.exists() and log.stat().st_size) and process.poll() is None:
            assert time.monotonic() < deadline, "no step was logged"
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    if " > " in command:
        (place / command.partition(" > ")[2]).write_bytes(output)
        return process.returncode, ""
    return process.returncode, output.decode()


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The directory after the whole session, and what each command printed."""
    place = tmp_path_factory.mktemp("own")
    (place / "my.txt").write_text("\n\n".join(prose(2, 350)))
    for name, seed in (("web.jsonl", 3), ("books.jsonl", 4)):
        rows = [json.dumps({"text": text}) for text in prose(seed, 60)]
        (place / name).write_text("\n".join(rows) + "\n")
    outputs: dict[str, str] = {}
    for line in session(PAGE.read_text(encoding="utf-8")):
        interrupted = "^C" in line.shown
        code, output = run(line.command, place, interrupted=interrupted)
        assert code == (130 if interrupted else 0), f"{line.command}: {output}"
        outputs[line.command] = output
    return place, outputs


def start_of(outputs: dict[str, str], command: str) -> str:
    (output,) = [text for line, text in outputs.items() if line.startswith(f"segpt {command}")]
    return output.splitlines()[0]


@pytest.mark.slow
def test_every_command_prints_what_the_page_shows(
    printed: tuple[Path, dict[str, str]],
) -> None:
    _, outputs = printed
    for line in session(PAGE.read_text(encoding="utf-8")):
        real = {without_numbers(text) for text in re.split(r"[\r\n]+", outputs[line.command])}
        for shown in line.shown:
            if shown not in ("...", "^C"):
                assert without_numbers(shown) in real, f"{line.command}: {shown}: {sorted(real)}"


@pytest.mark.slow
def test_the_command_that_goes_on_is_the_one_that_was_printed(
    printed: tuple[Path, dict[str, str]],
) -> None:
    place, outputs = printed
    (first,) = [text for line, text in outputs.items() if line.startswith("segpt train --steps")]
    again = re.findall(r"to go on: (segpt .*)$", first, re.MULTILINE)
    assert again == ["segpt train --resume runs/demo"]
    assert set(again) <= outputs.keys()
    log = (place / "runs" / "demo" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(text)["step"] for text in log]
    assert steps == sorted(set(steps))
    assert steps[-1] == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("train --steps", "my.txt"),
        ("train --resume", "my.txt"),
        ("quantize", "my.txt"),
        ("data prepare web", "web.jsonl"),
        ("score --out", "my.txt"),
        ("score runs/demo.segpt books", "books.jsonl"),
    ],
)
def test_every_command_reads_its_own_text(
    printed: tuple[Path, dict[str, str]], command: str, text: str
) -> None:
    _, outputs = printed
    assert start_of(outputs, command).startswith(f"text: {text}")


@pytest.mark.slow
def test_the_score_is_of_the_text_and_the_model_of_the_run(
    printed: tuple[Path, dict[str, str]],
) -> None:
    place, _ = printed
    score = json.loads((place / "runs/demo/score.json").read_bytes())
    known = json.loads((place / "runs/data/my/validation/manifest.json").read_bytes())
    assert score["conditions"]["text"] == known["text_digest"]
    assert score["bytes"] == known["bytes"] < (place / "my.txt").stat().st_size / 10
    assert score["conditions"]["overlap"] == "none"
    quantized = header(place / "runs" / "demo-quantized")
    trained = header(place / "runs" / "demo" / "step-00000200")
    assert quantized["origin"]["checkpoint"] == trained["fingerprint"]
    assert score["origin"]["checkpoint"] == trained["fingerprint"]


@pytest.mark.slow
def test_the_second_text_has_the_tokens_of_the_first(
    printed: tuple[Path, dict[str, str]],
) -> None:
    place, _ = printed
    first, second = (
        json.loads((place / "runs/data" / name / "train/manifest.json").read_bytes())
        for name in ("my", "web")
    )
    assert first["tokenizer"] == second["tokenizer"]


@pytest.mark.slow
def test_the_proof_gives_the_text_back(printed: tuple[Path, dict[str, str]]) -> None:
    place, outputs = printed
    assert (place / "again.txt").read_bytes() == (place / "my.txt").read_bytes()[-1000:]
    (proof,) = [text for line, text in outputs.items() if line.endswith("--prove")]
    assert "proof: 1,000 bytes of text" in proof
    assert (place / "runs/demo/report.html").stat().st_size > 10_000


def header(directory: Path) -> Any:
    return json.loads((directory / "header.json").read_bytes())


def test_the_table_of_sizes_is_right() -> None:
    """Parameters and bytes, as `segpt train --dry-run` says them."""
    page = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d,]+) \| (.*<br>.*) \|$", page, re.MULTILINE)
    assert len(rows) == 5
    for vocab, cells in rows:
        for (width, hidden), cell in zip(HIDDEN.items(), cells.split(" | "), strict=True):
            settings = (
                *(f"model.vocab={vocab.replace(',', '')}", f"model.width={width}"),
                *(f"model.layer.feed.hidden={hidden}", "quantize.rate=4"),
            )
            recipe = read_recipe("demo", settings)
            weights, size = parameters(recipe.model), artifact_bytes(recipe)[0]
            assert cell == f"{weights:,}<br>{size:,}"
            assert 1.0 < size / (weights / 2) < 1.06
