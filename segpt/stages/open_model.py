"""Models from the values that carry them: read, checked and decoded once, whoever asks."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from segpt.artifact.container import unpack
from segpt.config.layout import layout
from segpt.config.model import ModelSpec, joined_visits
from segpt.config.parts import Skip
from segpt.data.tokenizer import Codec, load
from segpt.errors import CheckpointError, ScoreError
from segpt.model.build import build, load_weights
from segpt.model.model import Model
from segpt.values import Arrays, Artifact, Checkpoint, Origin, Quantized

from .read_model import Value, identity_of


@dataclass(frozen=True)
class OpenedModel:
    """A model at work, and what it came from. Nothing about it is decoded, built or loaded twice.

    Attributes:
        value: what was opened.
        source: what holds the weights and the tokenizer: an artifact that was unpacked, with the
            training documents if they are listed, or else the value itself.
        device: where the model computes.
    """

    value: Value
    source: Quantized | Checkpoint
    device: str = "cpu"

    @property
    def spec(self) -> ModelSpec:
        return self.source.spec

    def on(self, device: str) -> "OpenedModel":
        """The same on another device, decoded as it is."""
        return self if device == self.device else dataclasses.replace(self, device=device)

    @cached_property
    def model(self) -> Model:
        """In evaluation mode; of a checkpoint with the visits that had joined by then.

        Raises:
            CheckpointError: if the weights are not those of the spec.
        """
        if isinstance(self.source, Quantized):
            return from_quantized(self.source, self.device)
        return from_checkpoint(self.source, self.device)

    @cached_property
    def codec(self) -> Codec:
        """The tokenizer at work.

        Raises:
            ScoreError: if it has tokens that the model does not know.
        """
        return codec_of(self.source)

    @property
    def identity(self) -> str:
        """The digest of an artifact, or the fingerprint of what was opened."""
        return identity_of(self.value)

    @cached_property
    def origin(self) -> Origin:
        """Where the model came from, with the fingerprints on the way."""
        kind = "checkpoint" if isinstance(self.source, Checkpoint) else "quantized"
        origin = {**self.source.origin, kind: self.source.fingerprint}
        return origin | ({"artifact": self.identity} if isinstance(self.value, Artifact) else {})

    @property
    def seed(self) -> int | None:
        """That of its training, if it is known."""
        seed = self.source.origin.get("seed", "")
        return int(seed) if seed.isdecimal() else None


def open_model(value: "Value | OpenedModel", device: str = "cpu") -> OpenedModel:
    """The model of a value on ``device``; one that is open stays as it is, where it is.

    Raises:
        ArtifactError: if an artifact is damaged.
    """
    match value:
        case OpenedModel():
            return value
        case Artifact():
            source = dataclasses.replace(unpack(value), documents=value.documents)
            return OpenedModel(value, source, device)
        case _:
            return OpenedModel(value, value, device)


def from_checkpoint(checkpoint: Checkpoint, device: str = "cpu") -> Model:
    """The model of a checkpoint in evaluation mode, running the visits that have joined by then.

    Raises:
        CheckpointError: if the weights are not those of the spec.
    """
    _check_shapes(checkpoint.spec, {k: array.shape for k, array in checkpoint.weights.items()})
    return _model(checkpoint.spec, checkpoint.weights, device).set_progress(checkpoint.progress)


def from_quantized(quantized: Quantized, device: str = "cpu") -> Model:
    """The model of the decoded weights in evaluation mode.

    Raises:
        CheckpointError: if the weights are not those of the spec.
    """
    _check_shapes(quantized.spec, {k: coded.shape for k, coded in quantized.weights.items()})
    weights = {name: coded.decoded() for name, coded in quantized.weights.items()}
    return _model(quantized.spec, weights, device)


def without_unjoined_visits(checkpoint: Checkpoint) -> Checkpoint:
    """The same model without the visits that have not joined yet, nor their weights.

    Visits are numbered anew, and the weights of their parts are renamed to match. Weights that
    the spec does not know are kept, so that loading refuses them.
    """
    spec, kept = joined_visits(checkpoint.spec, checkpoint.progress)
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


def _check_shapes(spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare shapes before anything is allocated: a spec can name any size in a few bytes."""
    expected = {weight.name: weight.shape for weight in layout(spec)}
    if odd := sorted(expected.keys() ^ shapes.keys()):
        raise CheckpointError(f"weight {odd[0]!r} is in the model or in the file, but not in both")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise CheckpointError(f"weight {name!r} is {shapes[name]}, expected {shape}")


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
