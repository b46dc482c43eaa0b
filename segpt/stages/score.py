"""A model and a text to a Score: nothing else goes in, and what was proved comes out with it."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, assert_never

import numpy as np
import torch

import segpt
from segpt.artifact.container import unpack
from segpt.data.text import document_hash, text_digest
from segpt.data.tokenizer import load
from segpt.errors import ScoreError
from segpt.eval.ledger import Ledger, account
from segpt.eval.tally import Progress, Tally, tally
from segpt.model.model import Model
from segpt.spec.base import encode
from segpt.spec.score import Frozen, ScoreSpec, Sgd
from segpt.values import Artifact, Checkpoint, Origin, Quantized, Score, Text

from .models import from_checkpoint, from_quantized


def score(
    value: Artifact | Quantized | Checkpoint,
    text: Text,
    spec: ScoreSpec,
    *,
    device: str = "cpu",
    report: Callable[[Progress], None] = lambda _: None,
    limit_seconds: float | None = None,
) -> Score:
    """Bits per byte of a text under a model, with every target scored exactly once.

    Documents follow each other in one stream. If torch.distributed is initialised, the processes
    share the work and return the same nats.

    Args:
        value: the model and its tokenizer; of a checkpoint the visits that have joined run.
        text: raw documents. Bytes are counted on them, not on tokens.
        spec: windows and policy; the model's context if it names none.
        device: where to compute, in float32.
        report: told about progress after each batch of windows.
        limit_seconds: give up when the whole takes longer.

    Raises:
        ScoreError: if the model was trained on one of the documents, the tokens do not stand for
            the bytes, a number is not finite, or time is up.
        DataError: if there is no text.
        ArtifactError: if an artifact is damaged.
    """
    begun = time.perf_counter()

    def told(progress: Progress) -> None:
        if limit_seconds is not None and time.perf_counter() - begun > limit_seconds:
            raise ScoreError(
                f"{progress.done:,} of {progress.total:,} targets took more than the limit of "
                f"{limit_seconds:g} seconds; raise --limit or --stride, or score less text"
            )
        report(progress)

    source, model, origin = _open(value, device)
    documents = list(text)
    overlap = _overlap(source, documents)
    ledger = _ledger(source, documents)
    digest = text_digest(documents)
    context = spec.context or model.spec.context
    found = tally(model, ledger, spec, context, told)
    return Score(
        nats=found.nats,
        bytes=ledger.bytes,
        tokens=ledger.targets,
        seconds=time.perf_counter() - begun,
        model=source.fingerprint,
        text=text.name,
        denominator=ledger.denominator,
        policy=encode(spec.policy),
        conditions={
            "coverage": f"each of {ledger.targets:,} targets scored once, left to right",
            "causal": "by construction: only tokens before a target are looked at",
            "normalised": "softmax over the whole vocabulary",
            "order": _order(spec.policy, found),
            "bytes": _proof(ledger),
            "overlap": overlap,
            "text": digest,
            "documents": ledger.documents,
            "denominator": ledger.denominator,
            "raw_bytes": ledger.raw,
            "context": context,
            "model_context": model.spec.context,
            "beyond_model_context": context > model.spec.context,
            "stride": spec.stride,
            "batch": spec.batch,
            **_surroundings(device, found),
        },
        origin={**origin, "tokenizer": source.tokenizer.fingerprint, "text": digest},
    )


def _open(
    value: Artifact | Quantized | Checkpoint, device: str
) -> tuple[Quantized | Checkpoint, Model, Origin]:
    """The value that holds the weights, its model, and the fingerprints on the way there."""
    match value:
        case Artifact():
            quantized = dataclasses.replace(unpack(value), documents=value.documents)
            source, model, origin = _open(quantized, device)
            return source, model, {**origin, "artifact": value.digest}
        case Quantized():
            origin = {**value.origin, "quantized": value.fingerprint}
            return value, from_quantized(value, device), origin
        case Checkpoint():
            origin = {**value.origin, "checkpoint": value.fingerprint}
            return value, from_checkpoint(value, device), origin
        case _:
            assert_never(value)


def _overlap(source: Quantized | Checkpoint, documents: Sequence[bytes]) -> str:
    if source.documents is None:
        return "unchecked: no document list"
    hashes = np.array([document_hash(document) for document in documents], np.uint64)
    if seen := int(np.isin(hashes, source.documents).sum()):
        raise ScoreError(
            f"the model was trained on {seen:,} of the {len(documents):,} documents of this text; "
            "score text that was held out (segpt data check finds what two texts share)"
        )
    return "none"


def _ledger(source: Quantized | Checkpoint, documents: Sequence[bytes]) -> Ledger:
    codec = load(source.tokenizer)
    if codec.vocab > source.spec.vocab:
        raise ScoreError(
            f"the tokenizer has {codec.vocab:,} tokens, the model {source.spec.vocab:,}; they do "
            "not belong together"
        )
    return account(documents, codec)


def _order(policy: Frozen | Sgd, found: Tally) -> str:
    match policy:
        case Frozen():
            return "one pass, weights never change"
        case Sgd():
            return f"one pass, {found.updates:,} updates from chunks that had been scored"
        case _:
            assert_never(policy)


def _proof(ledger: Ledger) -> str:
    if ledger.denominator == "bytes":
        return "the tokens of each document give back its bytes"
    ratio = ledger.bytes / ledger.raw
    return f"the tokenizer loses text: its pieces spell {ratio:.6f} of the raw bytes"


def _surroundings(device: str, found: Tally) -> dict[str, Any]:
    return {
        "processes": found.processes,
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": {
            "segpt": segpt.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }
