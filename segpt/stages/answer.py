"""What a model says after a prompt: whole characters, up to where it ends, piece by piece."""

import codecs
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from segpt.config.model import ModelSpec
from segpt.config.parts import Position
from segpt.config.sample import SampleSpec
from segpt.data.chat import ChatPrompt
from segpt.data.tokenizer import Codec
from segpt.eval.continuation import Continuation, NextToken

from .open_model import OpenedModel

Finish = Literal["stop", "length"]


class SpelledToken(NamedTuple):
    """A token of an answer as bytes, and its probabilities as in ``NextToken``."""

    spelled: bytes
    logprob: float
    likeliest: tuple[tuple[bytes, float], ...]


@dataclass
class Answer:
    """An answer on its way; :meth:`advance` until there is a ``finish``.

    Attributes:
        opened: the model.
        prompt: what it continues, and what ends that.
        spec: how tokens are drawn, and how many at most.
        top: how many likeliest tokens each one comes with; no probabilities if None.
        deadline: the reading of ``time.monotonic`` at which the answer ends, as too long.
        tokens: how many have come, the one that ended the answer among them.
        spelled: the tokens with their probabilities, if asked for, without one that ended it.
        finish: ``stop`` where the model or a stop ended it, ``length`` where a limit did.
    """

    opened: OpenedModel
    prompt: ChatPrompt
    spec: SampleSpec
    top: int | None = None
    deadline: float = float("inf")
    tokens: int = field(default=0, init=False)
    spelled: list[SpelledToken] = field(default_factory=list, init=False)
    finish: Finish | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._text = StoppedText(self.prompt.stops)
        self._positions = positions(self.opened.spec)
        codec = self.opened.codec
        self._continuation = Continuation(
            self.opened.model, self.prompt.ids, self.spec, vocab=codec.vocab, top=self.top
        )

    def advance(self) -> str:
        """The next piece of the text, empty where nothing is complete; one step of the model.

        Raises:
            ScoreError: if the model gives no distribution.
        """
        if time.monotonic() > self.deadline:
            return self._end("length")
        previous = self._continuation.ids[-1]
        chosen = self._continuation.step()
        if chosen is None:
            return ""
        self.tokens += 1
        if chosen.token in self.prompt.end_ids:
            return self._end("stop")
        codec = self.opened.codec
        spelled = _spelled(codec, previous, chosen.token)
        if self.top is not None:
            self.spelled.append(_with_probabilities(codec, spelled, chosen))
        piece = self._text.add(spelled)
        if self._text.stopped:
            self.finish = "stop"
        elif self.tokens == self.spec.tokens or len(self._continuation.ids) > self._positions:
            piece += self._end("length")
        return piece

    def _end(self, finish: Finish) -> str:
        self.finish = finish
        return self._text.rest()


def positions(spec: ModelSpec) -> float:
    """How many tokens a model can read at most; no bound but for learned positions."""
    counts = [part.count for part in spec.embed if isinstance(part, Position)]
    return min(counts, default=math.inf)


class StoppedText:
    """Bytes on their way to a reader: whole characters, and nothing from a stop on.

    What could be the beginning of a stop waits until it is certain that it is none.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops, self.stopped = tuple(stops), False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def add(self, spelled: bytes) -> str:
        """What can be read after more bytes."""
        return self._release(self._decoder.decode(spelled))

    def rest(self) -> str:
        """What is left where the text ends; half a character is U+FFFD."""
        piece = self._release(self._decoder.decode(b"", final=True))
        if self.stopped:
            return piece
        piece, self._held = piece + self._held, ""
        return piece

    def _release(self, more: str) -> str:
        text = self._held + more
        places = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        waits = max((_overlap(text, stop) for stop in self.stops), default=0)
        self._held = text[len(text) - waits :]
        return text[: len(text) - waits]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of a stop."""
    most = min(len(text), len(stop) - 1)
    return next((n for n in range(most, 0, -1) if text.endswith(stop[:n])), 0)


def _spelled(codec: Codec, previous: int, token: int) -> bytes:
    """What a token spells after the one before it; some tokenizers drop a first space."""
    return codec.decode([previous, token])[len(codec.decode([previous])) :]


def _with_probabilities(codec: Codec, spelled: bytes, chosen: NextToken) -> SpelledToken:
    likeliest = tuple((codec.decode([i]), logprob) for i, logprob in chosen.likeliest)
    return SpelledToken(spelled, chosen.logprob, likeliest)
