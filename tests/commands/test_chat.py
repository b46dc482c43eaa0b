"""``segpt chat`` and ``segpt serve`` at work: lines, a terminal, Ctrl-C, and an orderly end."""

import contextlib
import importlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segpt.__main__ import load_commands
from tests import processes

pytestmark = pytest.mark.slow
Run = Callable[..., Any]
MODEL = Path(__file__).resolve().parents[2] / "artifacts" / "demo256-3.segpt"
GREEDY = ("--temperature", "0", "--max-tokens", "12")


@pytest.fixture
def model(line: Any, workplace: Path) -> Path:
    """The artifact of the tiny line."""
    return workplace / str(line["pack"]["out"])


def chat(place: Path, text: str, *args: object) -> "subprocess.CompletedProcess[str]":
    words = ["-m", "segpt", "chat", *map(str, args)]
    return processes.run(words, cwd=place, input=text, capture_output=True, text=True)


@pytest.mark.parametrize("kind", ["artifact", "quantized", "checkpoint"])
def test_a_greedy_answer_is_that_of_sample(
    line: Any, workplace: Path, model: Path, segpt: Run, tmp_path: Path, kind: str
) -> None:
    places = {"artifact": model, "quantized": workplace / line["quantize"]["out"]}
    path = places | {"checkpoint": workplace / line["train"]["checkpoint"]}
    sampled = segpt("sample", path[kind], "Document", "--temperature", 0, "--tokens", 12, "--json")
    done = chat(tmp_path, "Document\n/exit\nnever read\n", path[kind], *GREEDY)
    assert done.returncode == 0, done.stderr
    assert done.stdout == json.loads(sampled.stdout)["texts"][0] + "\n"
    assert "no chat template" in done.stderr


def test_a_conversation_goes_on_until_it_is_reset(model: Path, tmp_path: Path) -> None:
    done = chat(tmp_path, "One\nTwo\n/reset\n\nOne\n/what\n", model, *GREEDY, "--seed", "0")
    answers = done.stdout
    assert "a new conversation" in done.stderr
    assert "no command /what" in done.stderr
    first = chat(tmp_path, "One\n", model, *GREEDY, "--seed", "0").stdout
    assert answers.startswith(first)
    assert answers.endswith(first)
    assert len(answers) > 2 * len(first)


def test_the_template_is_applied_and_long_histories_are_cut(model: Path, tmp_path: Path) -> None:
    done = chat(tmp_path, "a\nb\nc\nd\n", model, "--template", "plain", *GREEDY)
    assert "left out" in done.stderr, done.stderr  # the context is 32 bytes
    long = chat(tmp_path, "x" * 200 + "\na\n", model, *GREEDY)
    assert long.returncode == 0
    assert "shorten it" in long.stderr
    assert long.stdout.strip()
    marked = chat(tmp_path, "a\n", model, "--template", "instruction", *GREEDY)
    assert "no chat template" not in marked.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--template", "chatlm"), "chatml"),
        (("--max-tokens", "0"), "at least 1"),
        (("--temperature", "-1"), "temperature"),
        (("--template", "gone.jinja"), "gone.jinja"),
    ],
)
def test_bad_options_are_one_line(
    model: Path, segpt: Run, args: tuple[str, ...], words: str
) -> None:
    for command in ("chat", "serve"):
        if command == "serve" and args[0] == "--temperature":
            continue
        done = segpt(command, model, *args)
        assert done.exit_code == 2
        assert words in done.stderr
        assert done.stderr.count("\n") == 1


class Terminal:
    """A process that believes that somebody sits before it."""

    def __init__(self, *words: object) -> None:
        self.main, other = pty.openpty()
        line = [sys.executable, "-m", "segpt", *map(str, words)]
        self.process = subprocess.Popen(
            line, stdin=other, stdout=other, stderr=other, start_new_session=True
        )
        os.close(other)
        self.seen = ""

    def until(self, *words: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not any(word in self.seen for word in words):
            assert time.monotonic() < end, self.seen
            if select.select([self.main], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.main, 65536).decode("utf-8", "replace")
                except OSError:  # it has ended
                    assert any(word in self.seen for word in words), self.seen

    def type(self, text: str) -> None:
        self.seen = ""
        os.write(self.main, text.encode())

    def interrupt(self, word: str) -> None:
        """Press Ctrl-C until a word is seen: readline may overlook one before it waits for keys."""
        self.seen = ""
        end = time.monotonic() + 180
        while word not in self.seen:
            assert time.monotonic() < end, self.seen
            os.kill(self.process.pid, signal.SIGINT)
            with contextlib.suppress(AssertionError):
                self.until(word, seconds=1)

    def close(self) -> int:
        return self.process.wait(30)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.main)


def test_ctrl_c_stops_an_answer_and_not_the_program() -> None:
    with Terminal("chat", MODEL, "--max-tokens", "1000000", "--temperature", "0") as terminal:
        terminal.until("> ")
        for _ in range(3):  # more often than a watch over signals would let pass
            terminal.type("The json module\n")
            time.sleep(1.2)
            os.kill(terminal.process.pid, signal.SIGINT)
            terminal.until("stopped\r\n> ")
        terminal.interrupt("/exit")
        time.sleep(2.5)
        terminal.type("/reset\n")
        terminal.until("a new conversation")
        terminal.type("/exit\n")
        assert terminal.close() == 0


def test_a_server_starts_answers_and_ends(model: Path, tmp_path: Path, segpt: Run) -> None:
    errors = tmp_path / "errors"
    with errors.open("w") as file:
        line = [sys.executable, "-m", "segpt", "serve", str(model), "--port", "0", "--name", "tiny"]
        process = subprocess.Popen(line, stderr=file, stdout=subprocess.PIPE)
    try:
        for _ in range(600):
            if address := re.search(r"http://127\.0\.0\.1:\d+/", errors.read_text()):
                break
            assert process.poll() is None, errors.read_text()
            time.sleep(0.1)
        assert address is not None
        body = {"model": "tiny", "prompt": "Document", "temperature": 0, "max_tokens": 12}
        body |= {"top_k": 50, "repetition_penalty": 1.15}
        request = urllib.request.Request(
            f"{address[0]}v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = json.load(answer)["choices"][0]["text"]
        done = segpt("sample", model, "Document", "--temperature", 0, "--tokens", 12, "--json")
        assert text == json.loads(done.stdout)["texts"][0]
        busy = segpt("serve", model, "--port", address[0].rpartition(":")[2].strip("/"))
        assert busy.exit_code == 2
        assert "--port" in busy.stderr
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert "Traceback" not in errors.read_text()
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def test_a_ctrl_c_that_comes_after_the_answer_means_nothing() -> None:
    load_commands()
    stop: Any = importlib.import_module("segpt.commands._chat")._Stop()
    stop()
    assert not stop.asked
    stop.answering = True
    stop()
    assert stop.asked
    with pytest.raises(KeyboardInterrupt):
        stop()
