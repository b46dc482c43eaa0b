"""What is to be quantized: from its beginning, or where an interrupted call stopped."""

import json
from pathlib import Path
from typing import NamedTuple

from segpt.config.base import decode, differences, encode, fingerprint
from segpt.config.quant import Method, QuantSpec
from segpt.errors import CheckpointError
from segpt.stages import read_model, resolve_spec, unfinished
from segpt.values import Checkpoint

from . import calibration_texts, newest
from .calibration_texts import CalibrationPaths


class QuantizeRequest(NamedTuple):
    """What the command line says about the model and the method."""

    checkpoint: Path | None
    out: Path | None
    method: Method | None
    budget: int | None
    bits: int | None
    settings: tuple[str, ...]
    texts: CalibrationPaths = CalibrationPaths()

    @property
    def chooses_method(self) -> bool:
        """Whether it says anything about the method."""
        return bool(self.method or self.budget or self.bits or self.settings)


class QuantizeTask(NamedTuple):
    """What is quantized, how, and to where; ``budget`` is what packing will have to keep to.

    A model that was trained elsewhere has no ``recipe`` and maybe no budget, but ``texts``.
    """

    path: Path
    checkpoint: Checkpoint
    recipe: str | None
    spec: QuantSpec
    budget: int | None
    place: Path
    texts: CalibrationPaths | None = None

    @property
    def partial(self) -> Path:
        """Where the parts lie that are done, until all are."""
        return newest.partial_of(self.place)

    @property
    def origin(self) -> dict[str, str]:
        """What is quantized, and how: two quantizations with the same origin are the same."""
        return {"checkpoint": self.checkpoint.fingerprint, "quantize": fingerprint(self.spec)}

    @property
    def begun(self) -> dict[str, str]:
        """What an interrupted call leaves behind, so that it goes on without repeating options."""
        table = {"path": str(self.path), "spec": encode(self.spec), "budget": self.budget}
        if self.texts is not None:
            table["texts"] = encode(self.texts)
        return {"begun": json.dumps(table)}


def begin(request: QuantizeRequest) -> QuantizeTask:
    """A quantization from its beginning.

    Raises:
        SegptError: if there is no such checkpoint, or it is damaged.
    """
    run = newest.need("checkpoint", request.checkpoint)
    place = request.out or _beside(run)
    path, value = read_model.checkpoint_at(run)
    texts = calibration_texts.checked(request.texts, value, run)
    plan = _plan(value, request)
    return QuantizeTask(path, value, plan.recipe, plan.spec, plan.budget, place, texts)


class _Plan(NamedTuple):
    recipe: str | None
    spec: QuantSpec
    budget: int | None


def _plan(checkpoint: Checkpoint, request: QuantizeRequest) -> _Plan:
    """How a checkpoint is quantized: by its recipe, or by its size if it was trained elsewhere."""
    settings, method = request.settings, request.method
    if checkpoint.trained_elsewhere:
        spec = resolve_spec.imported_quant_spec(
            checkpoint.spec, settings, method=method, budget=request.budget, bits=request.bits
        )
        return _Plan(None, spec, spec.budget)
    recipe = resolve_spec.of_checkpoint(checkpoint, settings)
    spec = resolve_spec.quant_spec(recipe, method=method, budget=request.budget, bits=request.bits)
    return _Plan(recipe.name, spec, spec.budget or recipe.pack.budget)


def resume(request: QuantizeRequest) -> QuantizeTask:
    """A quantization that was interrupted: as it was begun, where nothing else is said.

    Raises:
        CheckpointError: if there is none, or options would make it another one.
    """
    partial = _interrupted(request)
    begun = unfinished.begun(partial, "partial")
    place = partial.with_name(partial.name.removesuffix(".partial"))
    path = Path(str(begun.get("path")))
    path, value = read_model.checkpoint_at(request.checkpoint or path)
    plan = _plan(value, request)
    spec = decode(QuantSpec, begun.get("spec"), "$.spec")
    if request.chooses_method and (odd := differences(spec, plan.spec)):
        names = "; ".join(f"{name} {was}, now {new}" for name, was, new in odd[:4])
        raise CheckpointError(
            f"{partial} was begun with other settings: {names}; leave these out to go on, or "
            "leave out --resume"
        )
    texts, budget = request.texts, begun.get("budget")
    if texts == CalibrationPaths() and begun.get("texts") is not None:
        texts = decode(CalibrationPaths, begun["texts"], "$.texts")
    checked = calibration_texts.checked(texts, value, path)
    limit = None if budget is None else int(budget)
    return QuantizeTask(path, value, plan.recipe, spec, limit, place, checked)


def _interrupted(request: QuantizeRequest) -> Path:
    """What an interrupted call left: of the place or checkpoint that is named, or the newest."""
    if request.out is not None:
        return newest.partial_of(request.out)
    if request.checkpoint is not None:
        return newest.partial_of(_beside(request.checkpoint))
    place = newest.latest("partial")
    if place is None:
        raise CheckpointError(
            "no quantization was interrupted in runs; name its directory with --out, or leave out "
            "--resume"
        )
    return place


def finished(request: QuantizeRequest) -> Path | None:
    """The quantized model that an interrupted call would have made, if that has been finished."""
    place = request.out
    if place is None and request.checkpoint is not None:
        place = _beside(request.checkpoint)
    if place is None:
        place = None if newest.latest("partial") else newest.latest("quantized")
    if place is None or newest.partial_of(place).exists() or not (place / "header.json").is_file():
        return None
    return place


def _beside(run: Path) -> Path:
    """Where the quantized model of a run or checkpoint is written unless the user says it."""
    return run.with_name(f"{run.name}-quantized")
