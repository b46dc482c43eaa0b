"""A model and a text to a Score: nothing else goes in, and what was proved comes out with it."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from segpt.config.conditions import Conditions, ReadingConditions, stored_policy
from segpt.config.parameter_golf import reference
from segpt.config.score import ScoreSpec
from segpt.data.shards import Shards
from segpt.data.text import UNLISTED, text_digest, trained_on
from segpt.data.tokenizer import Codec
from segpt.errors import InterruptError, ScoreError
from segpt.eval.ledger import EncodedText, account
from segpt.eval.tally import ScoreProgress, Tally, score_stream
from segpt.kernels import use_recipe
from segpt.values import Arrays, Checkpoint, Quantized, Score, Text

from .environment import environment
from .open_model import OpenedModel, open_model
from .read_model import Value

SAVE_EVERY = 30.0  # seconds, of a score that can be resumed


@dataclass(frozen=True)
class Accounted:
    """A text as tokens that are proved to stand for its bytes, and what else is known of it.

    ``seconds`` is what that took.
    """

    ledger: EncodedText
    digest: str
    overlap: str
    name: str
    seconds: float


class Breaks:
    """How a score is interrupted, and goes on in a later call.

    Args:
        should_stop: asked now and then; true means save and stop.
        save: given now and then what a later call can ``resume`` from.
        resume: what ``save`` was given, of the same model, text and spec.
    """

    def __init__(
        self,
        should_stop: Callable[[], bool] = lambda: False,
        save: Callable[[Arrays], None] | None = None,
        resume: Arrays | None = None,
    ) -> None:
        self.should_stop, self.save, self.resume = should_stop, save, resume
        self._saved = time.perf_counter()

    def pause(self, take: Callable[[], Arrays]) -> None:
        """Save what ``take`` gives if it is time, and stop if that is wanted.

        Raises:
            InterruptError: after saving, when ``should_stop`` says so.
        """
        stopping = self.should_stop()
        if self.save is not None and (stopping or time.perf_counter() - self._saved > SAVE_EVERY):
            self.save(take())
            self._saved = time.perf_counter()
        if stopping:
            kept = "" if self.save is None else "; what was scored is saved: go on with --resume"
            raise InterruptError(f"stopped before the whole text was scored{kept}")


def score(
    value: Value | OpenedModel,
    text: Text | Shards | Accounted,
    spec: ScoreSpec,
    *,
    device: str = "cpu",
    report: Callable[[ScoreProgress], None] = lambda _: None,
    limit_seconds: float | None = None,
    breaks: Breaks | None = None,
) -> Score:
    """Bits per byte of a text under a model, with every target scored exactly once.

    If torch.distributed is initialised, the processes share the work and return the same nats.

    Args:
        value: the model and its tokenizer; of a checkpoint the visits that have joined run.
        text: raw documents, on which bytes are counted, not on tokens; or token shards; or either
            as :func:`account_for` returned it for this value, so that it is tokenized only once.
        spec: how to read and what to learn; the model's context if it names none.
        device: where to compute; an opened model computes where it is.
        report: told about progress after each batch.
        limit_seconds: give up when the whole takes longer.
        breaks: how the score can be interrupted, and go on.

    Raises:
        ScoreError: if the model was trained on one of the documents, the tokens do not stand for
            the bytes, the model has no such loops, a number is not finite, or time is up.
        InterruptError: after saving, when ``breaks`` says so.
        DataError: if there is no text.
        ArtifactError: if an artifact is damaged.
    """
    begun = time.perf_counter() - (text.seconds if isinstance(text, Accounted) else 0.0)

    def watch(progress: ScoreProgress) -> None:
        if limit_seconds is not None and time.perf_counter() - begun > limit_seconds:
            raise ScoreError(
                f"{progress.done:,} of {progress.total:,} targets took more than the limit of "
                f"{limit_seconds:g} seconds; raise --limit or --stride, or score less text"
            )
        report(progress)

    opened = open_model(value, device)
    accounted = text if isinstance(text, Accounted) else account_for(opened, text)
    breaks = Breaks() if breaks is None else breaks
    with use_recipe(spec.kernels):
        scored = score_stream(
            opened.model.loops(spec.loops),
            accounted.ledger,
            spec,
            spec.reach(opened.spec.context),
            watch,
            pause=breaks.pause,
            resume=breaks.resume,
        )
    return _score_of(opened, accounted, spec, scored, time.perf_counter() - begun)


def _score_of(
    opened: OpenedModel, accounted: Accounted, spec: ScoreSpec, scored: Tally, seconds: float
) -> Score:
    """The sums of a score, with what was proved about it and where its parts came from."""
    ledger = accounted.ledger
    return Score(
        nats=math.fsum(scored.nats),
        bytes=ledger.bytes,
        tokens=ledger.targets,
        seconds=seconds,
        model=opened.source.fingerprint,
        text=accounted.name,
        denominator=ledger.denominator,
        policy=stored_policy(spec),
        seed=opened.seed,
        conditions=_conditions(opened, accounted, spec, scored),
        origin={
            **opened.origin,
            "tokenizer": opened.source.tokenizer.fingerprint,
            "text": accounted.digest,
        },
        by_document={
            "nats": ledger.by_document(scored.nats).tolist(),
            "bytes": ledger.by_document(ledger.sizes).tolist(),
        },
        by_target=scored.nats,
    )


def _conditions(
    opened: OpenedModel, accounted: Accounted, spec: ScoreSpec, scored: Tally
) -> Conditions:
    """What was proved or is known about a score."""
    ledger = accounted.ledger
    return Conditions(
        coverage=f"each of {ledger.targets:,} targets scored once",
        causal="by construction: a target is scored before it is shown to anything",
        normalised=_normalised(spec),
        order=_order(spec, scored),
        bytes=_proof(ledger),
        overlap=accounted.overlap,
        text=accounted.digest,
        documents=ledger.documents,
        denominator=ledger.denominator,
        raw_bytes=ledger.raw,
        contest=_contest(ledger),
        boundary_nats=float(scored.nats[ledger.borders].sum()),
        reading=ReadingConditions.of(spec, opened.spec.context),
        environment=environment(opened.device, scored.processes),
    )


def account_for(opened: OpenedModel, text: Text | Shards) -> Accounted:
    """The tokens of a text under a model's tokenizer, and what was proved about them.

    Raises:
        ScoreError: if the model was trained on one of the documents, or the tokens do not stand
            for the bytes.
        DataError: if there is no text.
    """
    begun, source = time.perf_counter(), opened.source
    if isinstance(text, Shards):
        ledger = EncodedText(text.ids, text.sizes, text.starts, text.raw, text.denominator)
        spelt = _spelt(opened.codec, text) if text.denominator == "bytes" else None
        overlap, digest = _overlap(source, spelt), text.digest
    else:
        documents = list(text)
        overlap = _overlap(source, documents)
        ledger, digest = account(documents, opened.codec), text_digest(documents)
    return Accounted(ledger, digest, overlap, text.name, time.perf_counter() - begun)


def _spelt(codec: Codec, shards: Shards) -> Iterator[bytes]:
    """The documents that the tokens of shards spell."""
    for first, stop in pairwise([*shards.starts.tolist(), len(shards.ids)]):
        yield codec.decode(shards.ids[first + 1 : stop])


def _overlap(source: Quantized | Checkpoint, documents: Iterable[bytes] | None) -> str:
    counts = trained_on(documents or (), source.documents)
    if counts is None:
        return UNLISTED
    if documents is None:
        return "unchecked: the tokens do not tell the text"
    seen, count = counts
    if seen:
        raise ScoreError(
            f"the model was trained on {seen:,} of the {count:,} documents of this text; "
            "score text that was held out (segpt data check finds what two texts share)"
        )
    return "none"


def _normalised(spec: ScoreSpec) -> str:
    whole = "softmax over the whole vocabulary"
    return whole if spec.ngram is None else f"{whole}, mixed with n-gram shares that sum to 1"


def _order(spec: ScoreSpec, scored: Tally) -> str:
    if scored.updates:
        order = f"one pass, {scored.updates:,} updates from chunks that had been scored"
    elif spec.policy.fast_weights:
        order = "one pass, fast weights follow chunks that had been read"
    else:
        order = "one pass, weights never change"
    return order + ("" if spec.ngram is None else "; n-grams of the targets before")


def _proof(ledger: EncodedText) -> str:
    match ledger.denominator:
        case "bytes":
            return "the tokens of each document give back its bytes"
        case "sidecar":
            return "as the sidecar says; the tokens alone do not tell"
        case "pieces" if ledger.raw:
            ratio = ledger.bytes / ledger.raw
            return f"the tokenizer loses text: its pieces spell {ratio:.6f} of the raw bytes"
        case _:
            return "what the pieces spell; the raw bytes are not known"


def _contest(ledger: EncodedText) -> str:
    """Whether the counts are those of the Parameter Golf contest; empty if not like them at all."""
    name, warning = reference(ledger.targets, ledger.bytes, ledger.documents)
    if warning is not None:
        return f"failed: {warning}"
    return "" if name is None else f"the targets and bytes of {name}"
