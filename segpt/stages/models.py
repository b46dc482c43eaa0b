"""Models from the values that carry them."""

import dataclasses
from pathlib import Path

from segpt.artifact.container import unpack
from segpt.model.build import build, load_weights
from segpt.model.model import Model
from segpt.spec.layout import layout
from segpt.spec.model import ModelSpec, settle
from segpt.spec.parts import Skip
from segpt.values import Arrays, Artifact, Checkpoint, Quantized

from .files import kind_of, newest_checkpoint, read_checkpoint, read_quantized
from .pack import read_artifact


def from_checkpoint(checkpoint: Checkpoint, device: str = "cpu") -> Model:
    """The model of a checkpoint in evaluation mode, running the visits that have joined by then.

    Raises:
        CheckpointError: if the weights are not those of the spec.
    """
    return _model(checkpoint.spec, checkpoint.weights, device).at(checkpoint.progress)


def from_quantized(quantized: Quantized, device: str = "cpu") -> Model:
    """The model of the decoded weights in evaluation mode.

    Raises:
        CheckpointError: if the weights are not those of the spec.
    """
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


def _model(spec: ModelSpec, weights: Arrays, device: str) -> Model:
    model = build(spec)
    load_weights(model, weights)
    return model.to(device).eval()


def read_model(path: Path) -> tuple[Artifact | Quantized | Checkpoint, ModelSpec]:
    """What can be scored at a path: an artifact, a quantized model, a checkpoint or a run.

    Raises:
        CheckpointError, ArtifactError: if it is none of these, or damaged.
    """
    match kind_of(path):
        case "file":
            artifact = read_artifact(path)
            return artifact, unpack(artifact).spec
        case "quantized":
            quantized = read_quantized(path)
            return quantized, quantized.spec
        case _:
            checkpoint = read_checkpoint(newest_checkpoint(path))
            return checkpoint, checkpoint.spec
