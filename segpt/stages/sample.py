"""A model and prompts to texts, which are told piece by piece as they come."""

import codecs
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from segpt.config.base import encode
from segpt.config.precision import Precision, of_measuring
from segpt.config.sample import SampleSpec
from segpt.data.tokenizer import Codec
from segpt.errors import DataError
from segpt.eval.sample import generate
from segpt.kernels.precision import computing

from .open_model import OpenedModel, open_model
from .read_model import Value
from .threads import one_thread

# Gets the number of a prompt, and it, what comes next in its text, or None where that ends.
Show = Callable[[int, str | None], None]


@dataclass(frozen=True)
class Sampled:
    """What came after each of some prompts.

    ``ids`` are the tokens, with the one that ends a document where it came (``ended``).
    ``loading_seconds`` passed before the model was ready, ``first_token_seconds`` from there to
    the first token, and ``seconds`` from there to the end.
    """

    model: str
    spec: SampleSpec
    prompts: tuple[bytes, ...]
    texts: tuple[bytes, ...]
    ids: tuple[tuple[int, ...], ...]
    ended: tuple[bool, ...]
    seconds: float
    first_token_seconds: float
    loading_seconds: float

    @property
    def tokens(self) -> int:
        return sum(map(len, self.ids))

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    def plain(self) -> dict[str, Any]:
        """JSON values; bytes that are no UTF-8 become U+FFFD."""
        return {
            "prompts": [prompt.decode("utf-8", "replace") for prompt in self.prompts],
            "texts": [text.decode("utf-8", "replace") for text in self.texts],
            "ids": [list(ids) for ids in self.ids],
            "ended": list(self.ended),
            "tokens": self.tokens,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "first_token_seconds": self.first_token_seconds,
            "loading_seconds": self.loading_seconds,
            "model": self.model,
            "spec": encode(self.spec),
        }


def sample(
    value: Value | OpenedModel,
    prompts: Sequence[bytes],
    spec: SampleSpec,
    *,
    device: str = "cpu",
    precision: Precision = "auto",
    show: Show = lambda number, piece: None,
) -> Sampled:
    """Continue each prompt with what the model expects.

    Args:
        value: the model and its tokenizer; of a checkpoint the visits that have joined run.
        prompts: beginnings of documents, of any bytes that the tokenizer can spell.
        spec: how tokens are drawn.
        device: where to compute; on a CPU one thread does, so that texts repeat.
        precision: what the model multiplies in; ``auto`` is float32.
        show: told each prompt, then the pieces of its text as soon as they are characters.

    Raises:
        DataError: if there is no prompt, or the tokenizer cannot spell one.
        ScoreError: if the model gives no distribution.
        ArtifactError: if an artifact is damaged.
    """
    if not prompts:
        raise DataError("no prompt; give one, even if it is empty")
    begun = time.perf_counter()
    opened = open_model(value, device)
    codec = opened.codec
    starts = [_ids(codec, number, prompt) for number, prompt in enumerate(prompts, 1)]
    model = opened.model
    ready = time.perf_counter()
    texts = [_Text(codec, number, prompt, show) for number, prompt in enumerate(prompts)]
    coming = generate(model, starts, spec, start=codec.start, vocab=codec.vocab)
    first = 0.0
    with one_thread(opened.device), computing(of_measuring(precision), opened.device):
        for number, token in coming:
            first = first or time.perf_counter() - ready
            texts[number].add(token, spec.tokens)
    return Sampled(
        model=opened.identity,
        spec=spec,
        prompts=tuple(prompts),
        texts=tuple(codec.decode(text.ids) for text in texts),
        ids=tuple(tuple(text.ids) for text in texts),
        ended=tuple(text.ids[-1] == codec.start for text in texts),
        seconds=time.perf_counter() - ready,
        first_token_seconds=first,
        loading_seconds=ready - begun,
    )


class _Text:
    """A prompt and its text on their way to a reader, character by character."""

    def __init__(self, codec: Codec, number: int, prompt: bytes, show: Show) -> None:
        self.codec, self.number, self.show = codec, number, show
        self.ids: list[int] = []
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        # A prompt can end within a character, which the text then completes.
        self._tell(prompt, complete=False)

    def add(self, token: int, most: int) -> None:
        self.ids.append(token)
        complete = token == self.codec.start or len(self.ids) == most
        self._tell(self.codec.decode([token]), complete=complete)
        if complete:
            self.show(self.number, None)

    def _tell(self, spelt: bytes, *, complete: bool) -> None:
        if piece := self._characters.decode(spelt, final=complete):
            self.show(self.number, piece)


def _ids(codec: Codec, number: int, prompt: bytes) -> list[int]:
    try:
        tokens: list[int] = codec.encode(prompt).tolist()
    except DataError as error:
        raise DataError(f"prompt {number}: {error}") from error
    return tokens
