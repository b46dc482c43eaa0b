"""Who answers: any causal language model, ours or another's, asked for logits at some positions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from segpt.errors import ScoreError
from segpt.eval.ledger import TextCodec
from segpt.kernels.cross_entropy import POSITIONS
from segpt.model.cache import KVCache, pick_rows
from segpt.model.model import Model

from . import pretrained


class Shared(NamedTuple):
    """Prefixes (prefixes, time) of equal length, and whose prefix each row continues (rows,)."""

    tokens: Tensor
    owner: Tensor


class Subject(Protocol):
    """A model and its tokenizer.

    ``context`` is how many tokens of a sequence it is given at most, the last one of which it
    only has to predict; None if there is no limit. ``start`` begins every sequence.
    """

    @property
    def context(self) -> int | None: ...
    @property
    def start(self) -> int: ...
    @property
    def vocab(self) -> int: ...
    @property
    def device(self) -> torch.device: ...

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without the start."""

    def logits(
        self, tokens: Tensor, rows: Tensor, columns: Tensor, shared: Shared | None
    ) -> Iterator[Tensor]:
        """Float32 logits of the token after each of some positions, a few positions at a time.

        Args:
            tokens: (rows, time), padded on the right with anything.
            rows: (positions,) the row of each position that is asked for.
            columns: (positions,) where in its row.
            shared: the prefixes that the rows continue, if they do.

        Yields:
            (some positions, vocab), which together are all positions in order.
        """


def of_model(model: Model, codec: TextCodec, context: int | None = None) -> Subject:
    """A model of ours; sequences are cropped to ``context`` tokens, its own if None."""
    return _Ours(model, codec, context or model.spec.context)


def of_hugging_face(
    name: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Subject:
    """A causal language model in the format of ``transformers``: a directory or a name on the hub.

    A directory is read without looking at the network, and no code that comes with a model runs.

    Raises:
        ScoreError: if transformers is missing, there is no such model, its weights are not all in
            its files, it cannot run or is not causal, or its tokenizer has no token to begin with.
    """
    model, tokenizer = pretrained.load(str(name), device, dtype)
    with pretrained.explained(str(name)):
        return _HuggingFace(str(name), model, tokenizer)


class _Ours:
    """The prefixes run once into the per-visit cache, which the rows then extend."""

    def __init__(self, model: Model, codec: TextCodec, context: int) -> None:
        self.model, self.codec, self.context = model, codec, context
        self.start, self.vocab = codec.start, codec.vocab

    @property
    def device(self) -> torch.device:
        return self.model.table.weight.device

    def encode(self, text: str) -> list[int]:
        return self.codec.encode(text.encode()).tolist()

    def logits(
        self, tokens: Tensor, rows: Tensor, columns: Tensor, shared: Shared | None
    ) -> Iterator[Tensor]:
        cache: KVCache | None = None
        begin = 0
        if shared is not None:
            cache, begin = self._remember(shared), shared.tokens.size(1)
        first = int(columns.min())
        hidden = self.model.hidden(tokens, cache, begin, tokens.size(1) - first).x
        for part in torch.split(hidden[rows, columns - first], POSITIONS):
            yield self.model.logits(part)

    def _remember(self, shared: Shared) -> KVCache:
        cache: KVCache = {}
        self.model.hidden(shared.tokens, cache, last=1)
        pick_rows(cache, shared.owner)
        return cache


class _HuggingFace:
    """Prefixes run once if the model keeps plain keys and values, else with every row."""

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        self.name, self.model, self.tokenizer = name, model, tokenizer
        config = model.config.get_text_config()
        self.vocab: int = config.vocab_size
        self.context = pretrained.context_of(config, tokenizer)
        added = sorted(tokenizer.get_added_vocab().values())
        starts = (tokenizer.bos_token_id, tokenizer.eos_token_id, *added[:1])
        try:
            self.start: int = next(token for token in starts if token is not None)
        except StopIteration:
            raise ScoreError(
                f"{name}: its tokenizer has neither a beginning nor an end nor any added token "
                "to begin a text with"
            ) from None
        self.forward = pretrained.Forward(name, model, self.vocab)

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    def encode(self, text: str) -> list[int]:
        with pretrained.explained(self.name):
            return self.tokenizer.encode(text, add_special_tokens=False)

    def logits(
        self, tokens: Tensor, rows: Tensor, columns: Tensor, shared: Shared | None
    ) -> Iterator[Tensor]:
        if shared is not None and not self.forward.reuses:
            columns = columns + shared.tokens.size(1)
            tokens, shared = torch.cat([shared.tokens[shared.owner], tokens], 1), None
        last = tokens.size(1) - int(columns.min())
        with pretrained.explained(self.name):
            if shared is None:
                computed = self.forward.full(tokens, last)
            else:
                computed = self.forward.after(shared.tokens, shared.owner, tokens, last)
            first = tokens.size(1) - computed.size(1)  # some families compute all positions anyway
            where = torch.stack([rows, columns - first], 1)
            for part in torch.split(where, POSITIONS):
                yield computed[part[:, 0], part[:, 1]].float()
