"""Several tokenized texts that are trained on together: the value, its blocks and its record.

A block never crosses from one text into another, and :mod:`.interleaving` decides which text the
next one is of.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpt.config.base import canonical, fingerprint, variant
from segpt.config.run_about import Coverage, SourceCoverage
from segpt.errors import DataError
from segpt.values import Tokenizer, Tokens

from .batches import Blocks, Order
from .interleaving import Interleaving
from .ledger import CoverageLog
from .tokens import ids, overlap


@dataclass(frozen=True)
class MixedSource:
    """One text of a mix: its ``share`` of the blocks, and a ``limit`` of tokens that are read."""

    name: str
    tokens: Tokens
    share: Fraction
    limit: int | None = None

    @property
    def count(self) -> int:
        """How many of its tokens may be read."""
        return self.tokens.count if self.limit is None else min(self.limit, self.tokens.count)


@variant
@dataclass(frozen=True)
class Mix:
    """Texts of one tokenizer that are trained on together; shares sum to 1.

    It is described as :class:`segpt.values.Tokens` are. ``count`` is what may be read of all of
    them; ``bytes`` and ``documents`` are those of the whole texts.

    Raises:
        DataError: if the texts have different tokenizers, or two of them are the same.
    """

    sources: tuple[MixedSource, ...]

    def __post_init__(self) -> None:
        first = self.sources[0]
        for source in self.sources[1:]:
            if source.tokens.tokenizer.fingerprint != first.tokens.tokenizer.fingerprint:
                raise DataError(
                    f"{source.name} has another tokenizer than {first.name}; prepare the texts of "
                    "a mix with one tokenizer (segpt data prepare --tokenizer)"
                )
        names = {source.tokens.digest: source.name for source in self.sources}
        for source in self.sources:
            if (other := names[source.tokens.digest]) != source.name:
                raise DataError(f"{source.name} and {other} are the same text; name it once")

    @property
    def tokenizer(self) -> Tokenizer:
        return self.sources[0].tokens.tokenizer

    @property
    def split(self) -> str:
        return self.sources[0].tokens.split

    @property
    def count(self) -> int:
        return sum(source.count for source in self.sources)

    @property
    def bytes(self) -> int:
        return sum(source.tokens.bytes for source in self.sources)

    @cached_property
    def documents(self) -> NDArray[np.uint64]:
        """The hashes of the documents of all sources, sorted, (documents,)."""
        return np.sort(np.concatenate([source.tokens.documents for source in self.sources]))

    @property
    def comparable(self) -> bool:
        """Whether ``documents`` are hashes of the documents of every source."""
        return all(source.tokens.comparable for source in self.sources)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the texts and how they are mixed, whatever they are called."""
        parts = [[s.tokens.digest, str(s.share), s.limit] for s in self.sources]
        return hashlib.sha256(canonical({"mix": parts})).hexdigest()

    @property
    def text(self) -> str:
        parts = [f"{float(100 * s.share):.3g} % {s.name}" for s in self.sources]
        return f"mix of {', '.join(parts)}"

    @property
    def text_digest(self) -> str:
        parts = [[s.tokens.text_digest, str(s.share), s.limit] for s in self.sources]
        return hashlib.sha256(canonical({"mix": parts})).hexdigest()

    @property
    def fingerprint(self) -> str:
        return self.digest[:16]

    def repeated(self) -> int:
        """How many documents are in more than one of the sources."""
        own = [np.unique(source.tokens.documents) for source in self.sources]
        counts = np.unique(np.concatenate(own), return_counts=True)[1]
        return int((counts > 1).sum())

    def shared_with(self, held_out: Tokens) -> dict[str, int]:
        """How many documents each source has in common with a held-out text, where it has any."""
        sizes = {s.name: int(overlap(s.tokens, held_out).size) for s in self.sources}
        return {name: size for name, size in sizes.items() if size}


@variant
class MixedBlocks:
    """Blocks of a mix by number, as :class:`segpt.data.batches.Blocks` gives those of a text.

    Each source keeps an order of its own, which depends on the seed and its text alone, and has its
    own epochs. A place is source, epoch and first token, (count, 3).
    """

    def __init__(self, mix: Mix, context: int, seed: int, order: Order = "shuffled") -> None:
        """Cut every source into blocks of ``context`` targets.

        Raises:
            DataError: naming the source that is shorter than one block.
        """
        self.mix, self.context, self.order = mix, context, order
        self.sources = [_blocks_of(source, context, seed, order) for source in mix.sources]
        self.targets = sum(blocks.targets for blocks in self.sources)
        self.epoch_blocks = sum(blocks.epoch_blocks for blocks in self.sources)
        self._interleaving = Interleaving([source.share for source in mix.sources], seed)
        self._marks: dict[int, tuple[int, ...]] = {0: (0,) * len(self.sources)}

    def batch(self, step: int, size: int) -> NDArray[np.int64]:
        """The batch of a step, (size, context + 1)."""
        return self.take(step * size, size)

    def take(self, first: int, count: int) -> NDArray[np.int64]:
        """Blocks number ``first`` and on, (count, context + 1)."""
        return self.read(self.places(first, count))

    def read(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The blocks (count, context + 1) at these places (count, 3)."""
        rows = [self.sources[source].read(place[None])[0] for source, place in _pairs(places)]
        return np.stack(rows)

    def places(self, first: int, count: int) -> NDArray[np.int64]:
        """Source, epoch and first token of blocks number ``first`` and on, (count, 3)."""
        self._seek(first)
        rows = np.empty((count, 3), np.int64)
        walk = self._interleaving
        for row in rows:
            source = walk.next()
            row[0], row[1:] = source, self.sources[source].places(walk.counts[source] - 1, 1)[0]
        return rows

    def restore(self, counts: Sequence[int]) -> None:
        """Go on after so many blocks of each source, without counting up to there.

        Raises:
            DataError: if no prefix of the interleaving has these.
        """
        self._interleaving.go(sum(counts), counts)
        self._marks[sum(counts)] = tuple(counts)

    def has_enough(self, blocks: int) -> bool:
        """Whether so many blocks repeat no target of any source."""
        return not self._short(blocks)

    def check_enough(self, blocks: int) -> None:
        """Refuse to take so many blocks if that would repeat a target.

        Raises:
            DataError: naming the source that is too short, and by how much.
        """
        documents = self.mix.repeated()
        if documents:
            raise DataError(
                f"{documents:,} documents are in more than one source of the mix, so that no "
                "target twice cannot be promised; remove them, or set train.unique=false"
            )
        for name, missing in self._short(blocks).items():
            raise DataError(
                f"a run of {blocks * self.context:,} tokens that takes none of them twice needs "
                f"{missing:,} tokens more of {name} than it gives in whole blocks; train for fewer "
                "steps, lower its weight or quota, give more text, or set train.unique=false"
            )

    def lines(self, blocks: int | None) -> list[str]:
        """What a run of so many blocks takes of each source, for people; None is not known."""
        return [
            source_line(source, own.epoch_blocks, self.context, blocks)
            for source, own in zip(self.mix.sources, self.sources, strict=True)
        ]

    def _short(self, blocks: int) -> dict[str, int]:
        """How many targets each source lacks; after so many blocks it has given at most these."""
        pairs = zip(self.mix.sources, self.sources, strict=True)
        needed = {s.name: math.ceil(s.share * blocks) - own.epoch_blocks for s, own in pairs}
        return {name: n * self.context for name, n in needed.items() if n > 0}

    def _seek(self, first: int) -> None:
        walk = self._interleaving
        if first != walk.position:
            mark = max(at for at in self._marks if at <= first)
            if not mark <= walk.position <= first:
                walk.go(mark, self._marks[mark])
            while walk.position < first:
                walk.next()
        # A batch may be asked for twice, so the last few places to begin at are kept.
        for old in sorted(self._marks)[1:-3]:
            del self._marks[old]
        self._marks[first] = tuple(walk.counts)


def source_line(source: MixedSource, epoch_blocks: int, context: int, blocks: int | None) -> str:
    """What a run takes of one source, for people."""
    line = f"{source.name}: {float(100 * source.share):.4g} % of the blocks"
    if blocks is not None:
        epochs = float(source.share * blocks / epoch_blocks)
        line += f", {round(source.share * blocks) * context:,} tokens, {epochs:.2f} epochs"
        line += " (it repeats)" if epochs > 1 else ""
    limit = "" if source.limit is None else f", its first {source.count:,} tokens"
    return f"{line}; an epoch is {epoch_blocks:,} blocks of {context}{limit}"


def _blocks_of(source: MixedSource, context: int, seed: int, order: Order) -> Blocks:
    stream = ids(source.tokens)
    if source.limit is not None:
        # Shuffled blocks leave out up to one, which a limit is not to lose.
        more = 1 if order == "sequential" else context + 1
        stream = stream.upto(min(len(stream), source.limit + more))
    own = int(fingerprint([seed, source.tokens.digest]), 16)
    try:
        return Blocks(stream, context, own, order)
    except DataError as error:
        raise DataError(f"{source.name}: {error}") from None


def _pairs(places: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]]:
    """Each source with the place of its block, (2,)."""
    return [(int(place[0]), place[1:]) for place in places]


@variant
class MixLog:
    """The record of a run on a mix: that of :class:`CoverageLog` for each source."""

    def __init__(self, blocks: MixedBlocks) -> None:
        """Nothing is trained on of the sources of ``blocks``."""
        self.names = [source.name for source in blocks.mix.sources]
        self.logs = [CoverageLog(b.targets, b.context, b.epoch_blocks) for b in blocks.sources]
        self.targets = blocks.targets

    @property
    def blocks(self) -> int:
        """How many blocks were trained on."""
        return sum(log.blocks for log in self.logs)

    @property
    def tokens(self) -> int:
        """How many targets were trained on, repeats included."""
        return sum(log.tokens for log in self.logs)

    @property
    def counts(self) -> list[int]:
        """How many blocks of each source were trained on."""
        return [log.blocks for log in self.logs]

    @property
    def in_order(self) -> bool:
        """Whether every source was read from its beginning on."""
        return all(log.in_order for log in self.logs)

    def record(self, places: NDArray[np.int64]) -> None:
        """Take in blocks that are trained on, (blocks, 3) of source, epoch and first target.

        Raises:
            DataError: naming the source of which a target was trained on before in its epoch.
        """
        for index, log in enumerate(self.logs):
            own = places[places[:, 0] == index, 1:]
            if len(own):
                try:
                    log.record(own)
                except DataError as error:
                    raise DataError(f"{self.names[index]}: {error}") from None

    def times(self) -> dict[int, int]:
        """How many targets of the texts were trained on how often."""
        total: Counter[int] = Counter()
        for log in self.logs:
            total.update(log.times())
        return dict(total)

    @property
    def left_out(self) -> int:
        """How many targets the cuts of the epochs that are over left out."""
        return sum(log.left_out for log in self.logs)

    def coverage(self) -> Coverage:
        """What a checkpoint says of it."""
        own = [log.coverage() for log in self.logs]
        times = self.times()
        return Coverage(
            tokens=self.tokens,
            blocks=self.blocks,
            epochs=self.tokens / self.targets,
            distinct=sum(each.distinct for each in own),
            times={str(often): targets for often, targets in sorted(times.items())},
            left_out=sum(each.left_out for each in own),
            in_order=self.in_order,
            digest=hashlib.sha256(canonical([each.digest for each in own])).hexdigest(),
            sources=tuple(
                SourceCoverage(
                    name=name,
                    tokens=each.tokens,
                    blocks=each.blocks,
                    epochs=each.epochs,
                    distinct=each.distinct,
                    digest=each.digest,
                )
                for name, each in zip(self.names, own, strict=True)
            ),
        )

    def state(self) -> dict[str, NDArray[Any]]:
        """What :meth:`restore` needs, as named arrays."""
        return {
            f"source {index}|{name}": array
            for index, log in enumerate(self.logs)
            for name, array in log.state().items()
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go back to where :meth:`state` was taken, on the same mix."""
        for index, log in enumerate(self.logs):
            log.restore({name: state[f"source {index}|{name}"] for name in log.state()})


TrainingText = Tokens | Mix


def blocks_of(text: TrainingText, context: int, seed: int, order: Order) -> Blocks | MixedBlocks:
    """The blocks of a text or a mix.

    Raises:
        DataError: if it is shorter than one block.
    """
    if isinstance(text, Mix):
        return MixedBlocks(text, context, seed, order)
    return Blocks(ids(text), context, seed, order)


def record_of(blocks: Blocks | MixedBlocks) -> CoverageLog | MixLog:
    """The empty record of a run on these blocks."""
    if isinstance(blocks, MixedBlocks):
        return MixLog(blocks)
    return CoverageLog(blocks.targets, blocks.context, blocks.epoch_blocks)
