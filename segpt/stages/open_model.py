"""Models from the values that carry them."""

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path

from segpt.artifact.reader import open_artifact
from segpt.config.layout import layout
from segpt.config.model import ModelSpec, settle
from segpt.config.parts import Skip
from segpt.data.sources import KINDS, form
from segpt.data.tokenizer import Codec, load
from segpt.errors import ArtifactError, CheckpointError, ScoreError
from segpt.model.build import build, load_weights
from segpt.model.model import Model
from segpt.values import Arrays, Artifact, Checkpoint, Quantized

from .checkpoint_io import kind_of, newest_checkpoint, read_checkpoint, read_quantized
from .pack import read_artifact


def from_checkpoint(checkpoint: Checkpoint, device: str = "cpu") -> Model:
    """The model of a checkpoint in evaluation mode, running the visits that have joined by then.

    Raises:
        CheckpointError: if the weights are not those of the spec.
    """
    _check_shapes(checkpoint.spec, {k: array.shape for k, array in checkpoint.weights.items()})
    return _model(checkpoint.spec, checkpoint.weights, device).at(checkpoint.progress)


def from_quantized(quantized: Quantized, device: str = "cpu") -> Model:
    """The model of the decoded weights in evaluation mode.

    Raises:
        CheckpointError: if the weights are not those of the spec.
    """
    _check_shapes(quantized.spec, {k: coded.shape for k, coded in quantized.weights.items()})
    weights = {name: coded.decoded() for name, coded in quantized.weights.items()}
    return _model(quantized.spec, weights, device)


def settled(checkpoint: Checkpoint) -> Checkpoint:
    """The same model without the visits that have not joined yet, nor their weights.

    Visits are numbered anew, and the weights of their parts are renamed to match. Weights that
    the spec does not know are kept, so that loading refuses them.
    """
    spec, kept = settle(checkpoint.spec, checkpoint.progress)
    gone = tuple(
        f"visits.{i}.{j}."
        for i, visit in enumerate(checkpoint.spec.visits)
        for j, part in enumerate(visit.join)
        if i not in kept or (isinstance(part, Skip) and part.source not in kept)
    )
    old = [w.name for w in layout(checkpoint.spec) if not w.name.startswith(gone)]
    names = dict(zip(old, (w.name for w in layout(spec)), strict=True))
    weights = {
        names.get(name, name): value
        for name, value in checkpoint.weights.items()
        if not name.startswith(gone)
    }
    return dataclasses.replace(checkpoint, spec=spec, weights=weights)


def _check_shapes(spec: ModelSpec, given: Mapping[str, tuple[int, ...]]) -> None:
    """Compare shapes before anything is allocated: a spec can name any size in a few bytes."""
    expected = {weight.name: weight.shape for weight in layout(spec)}
    if odd := sorted(expected.keys() ^ given.keys()):
        raise CheckpointError(f"weight {odd[0]!r} is in the model or in the file, but not in both")
    for name, shape in expected.items():
        if given[name] != shape:
            raise CheckpointError(f"weight {name!r} is {given[name]}, expected {shape}")


def _model(spec: ModelSpec, weights: Arrays, device: str) -> Model:
    model = build(spec)
    load_weights(model, weights)
    return model.to(device).eval()


def codec_of(source: Quantized | Checkpoint) -> Codec:
    """The tokenizer of a model at work.

    Raises:
        ScoreError: if it has tokens that the model does not know.
    """
    codec = load(source.tokenizer)
    if codec.vocab > source.spec.vocab:
        raise ScoreError(
            f"the tokenizer has {codec.vocab:,} tokens, the model {source.spec.vocab:,}; they do "
            "not belong together"
        )
    return codec


def read_model(path: Path) -> tuple[Artifact | Quantized | Checkpoint, ModelSpec]:
    """What can be scored at a path: an artifact, a quantized model, a checkpoint or a run.

    Raises:
        CheckpointError, ArtifactError: if it is none of these, or damaged.
    """
    match kind_of(path):
        case "file":
            artifact = _artifact(path)
            return artifact, open_artifact(artifact).header.model
        case "quantized":
            quantized = read_quantized(path)
            return quantized, quantized.spec
        case _:
            checkpoint = read_checkpoint(newest_checkpoint(path))
            return checkpoint, checkpoint.spec


def _artifact(path: Path) -> Artifact:
    try:
        return read_artifact(path)
    except ArtifactError:
        if form(path).kind not in KINDS:
            raise
        line = shlex.join(["segpt", "score", "MODEL", str(path)])
        raise ArtifactError(
            f"{path} is a text and not a model; name the model first, for example {line}"
        ) from None
