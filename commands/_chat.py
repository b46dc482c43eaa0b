"""The conversation of ``segpt chat``: lines in, an answer out, and what was said so far."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import click

from segpt.config.precision import Precision, of_measuring
from segpt.config.sample import SampleSpec
from segpt.config.score import ScoreSpec
from segpt.data.chat import ChatMessage
from segpt.errors import DataError
from segpt.kernels.precision import computing
from segpt.stages.answer import Answer
from segpt.stages.chat_template import ModelTemplate, fit
from segpt.stages.open_model import OpenedModel
from segpt.stages.threads import one_thread

from . import _report
from ._sampling import visible
from ._signals import handled

HELP = "/reset begins anew, /exit or Ctrl-D ends, Ctrl-C stops an answer"


class Chat:
    """A conversation with a model.

    Attributes:
        messages: what was said, the system prompt first if there is one.
    """

    def __init__(
        self, opened: OpenedModel, template: ModelTemplate, spec: SampleSpec, system: str | None
    ) -> None:
        self.opened, self.template, self.spec = opened, template.template, spec
        self.system = [ChatMessage("system", system)] if system else []
        self.messages = list(self.system)
        self.turn = 0
        reach = ScoreSpec(mode="rolling", context=spec.context).reach(opened.spec.context)
        self.longest = max(1, reach - min(spec.tokens, reach // 2))

    def reset(self) -> None:
        """Forget what was said."""
        self.messages = list(self.system)

    def answer(self, text: str, show: Callable[[str], None], stopped: Callable[[], bool]) -> str:
        """Say something, and get the answer piece by piece; what is stopped stays as it is.

        Raises:
            DataError: if the message alone is too long; it is not part of the conversation then.
        """
        said = [*self.messages, ChatMessage("user", text)]
        fitted = fit(self.template, said, self.opened.codec, self.longest)
        if fitted.dropped:
            turns = "turn is" if fitted.dropped == 1 else f"{fitted.dropped} turns are"
            _report.notice(f"the model looks back no further: the oldest {turns} left out")
        spec = _with_seed(self.spec, self.spec.seed + self.turn)
        answer = Answer(self.opened, fitted.prompt, spec)
        pieces: list[str] = []
        while answer.finish is None and not stopped():
            if piece := answer.advance():
                pieces.append(piece)
                show(piece)
        self.turn += 1
        self.messages = [*fitted.messages, ChatMessage("assistant", "".join(pieces))]
        return "".join(pieces)


def _with_seed(spec: SampleSpec, seed: int) -> SampleSpec:
    import dataclasses

    return dataclasses.replace(spec, seed=seed)


class _Stop:
    """What Ctrl-C means: while an answer comes its end, and at the prompt a word of advice.

    Between the two it means nothing: a key that was pressed for an answer may come after its end.
    """

    def __init__(self) -> None:
        self.answering = self.prompting = self.asked = False

    def __call__(self) -> None:
        if self.prompting or (self.answering and self.asked):
            raise KeyboardInterrupt
        self.asked = self.answering


def run(chat: Chat, path: Path, template: ModelTemplate, precision: Precision) -> None:
    """Talk until the input ends."""
    if not template.instructed:
        _report.notice(
            f"{path} has no chat template, so it was not taught to answer: it continues what you "
            "write (--template names one)"
        )
    terminal = sys.stdin.isatty()
    if terminal:
        _report.notice(HELP)
    stop = _Stop()
    device = chat.opened.device
    with (
        handled(signal.SIGINT, stop),
        one_thread(device),
        computing(of_measuring(precision), device),
    ):
        while (text := _line(terminal, stop)) is not None:
            match text.strip():
                case "":
                    continue
                case "/exit" | "/quit":
                    return
                case "/reset":
                    chat.reset()
                    _report.notice("a new conversation")
                case "/help":
                    _report.notice(HELP)
                case word if word.startswith("/") and " " not in word and len(word) < 20:
                    _report.notice(f"no command {word}; {HELP}")
                case _:
                    _answer(chat, text, stop)


def _answer(chat: Chat, text: str, stop: _Stop) -> None:
    terminal = sys.stdout.isatty()

    def show(piece: str) -> None:
        click.echo(visible(piece) if terminal else piece, nl=False)
        _report.flush()

    stop.answering, stop.asked = True, False
    try:
        chat.answer(text, show, lambda: stop.asked)
    except KeyboardInterrupt:
        stop.asked = True  # a second Ctrl-C, in the middle of a step: this answer is forgotten
    except DataError as error:
        _report.notice(f"segpt: {error}")
        return
    finally:
        stop.answering = False
    click.echo()
    if stop.asked:
        _report.notice("stopped")


def _line(terminal: bool, stop: _Stop) -> str | None:
    """The next message, or None at the end."""
    while True:
        try:
            stop.prompting = True
            if terminal:
                import contextlib

                with contextlib.suppress(ImportError):
                    import readline  # noqa: F401 - gives `input` its history
                return input("> ")
            line = sys.stdin.buffer.readline()
            return line.decode("utf-8", "replace").rstrip("\r\n") if line else None
        except EOFError:
            click.echo()
            return None
        except UnicodeDecodeError:
            _report.notice("that was not UTF-8; write it again")
        except KeyboardInterrupt:
            if not terminal:
                raise
            _report.notice(f"\n{HELP}")
        finally:
            stop.prompting = False
