"""What a run will need: memory, time, and the size of the file that comes of it."""

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from segpt.config.base import PlainSpec, kind, spec
from segpt.config.flops import flops
from segpt.config.layout import Role, layout, parameters
from segpt.config.precision import of_training
from segpt.config.quant import QuantSpec, Rule
from segpt.config.recipe import Bpe, Recipe
from segpt.machine import memory as machine_memory
from segpt.model.build import build
from segpt.model.params import weights
from segpt.train.mesh import Mesh
from segpt.train.optim import remembered
from segpt.train.trainer import Trainer

from .resolve_spec import quant_spec

PIECE_BYTES = 2.0  # of a packed tokenizer, for each of its pieces
EXPONENT_BYTES = 0.3  # of the step of a row or a column, as packed
FRAME_BYTES = 1500  # header and the tables of the entropy coder
LEAST_RATE = 1.0  # bits per weight below which little of a model is left
GB = 1_000_000_000
HIGHEST_RATE = 8.0  # bits per weight beyond which nothing is gained, whatever the budget

TIMED_STEPS = 2
MOST_FLOPS = 2e11  # of a step that is tried on a CPU
SHARE = 0.5  # of the speed of one large product that a whole step is assumed to reach
SIDE = 1024  # of the matrices of that product


class Pace(NamedTuple):
    """Seconds of a step, and how they are known."""

    seconds: float
    source: str


def activations(recipe: Recipe, device: str = "cpu", processes: int = 1) -> int | None:
    """Bytes that one micro-batch keeps for its backward pass; None if the data decide.

    Every tensor that autograd would save up to the final stream, counted on a model without
    memory in the precision of the run on ``device``, and the two gradients that the loss leaves
    behind. What kernels need while they run comes on top.
    """
    # Which documents a row holds decides whether attention needs a mask, which is small.
    spec, train = dataclasses.replace(recipe.model, documents=False), recipe.train
    rows = max(1, train.batch // (train.accumulation * processes))
    half = of_training(train.precision, device) == "bfloat16"
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    try:
        with FakeTensorMode():
            model = build(spec).train()
            model.recompute = train.recompute
            tokens = torch.zeros((rows, spec.context), dtype=torch.int64)
            with (
                torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
                torch.autocast("cpu", torch.bfloat16, enabled=half),
            ):
                hidden = model.hidden(tokens).x
            for weight in weights(model):
                kept.pop(weight.tensor.untyped_storage()._cdata, None)
    except (DataDependentOutputException, DynamicOutputShapeException):
        return None
    stream = hidden.numel() * hidden.element_size()
    visits = len(spec.visits)
    again = visits if train.recompute < 0 else min(train.recompute, visits)  # keep what enters them
    loss = stream + 4 * spec.vocab * spec.width
    return sum(storage.nbytes() for storage in kept.values()) + again * stream + loss


@spec
class MemoryEstimate(PlainSpec):
    """Bytes of a process in training by what they hold.

    ``optimizer`` maps kinds of rules to bytes; ``activations`` is None where it is not known.
    """

    weights: int
    gradients: int
    optimizer: Mapping[str, int]
    average: int
    activations: int | None

    @property
    def total(self) -> int:
        """The sum, as far as it is known."""
        kept = self.weights + self.gradients + self.average + (self.activations or 0)
        return sum(self.optimizer.values()) + kept


def memory(recipe: Recipe, device: str = "cpu", processes: int = 1) -> MemoryEstimate:
    """Bytes of a process in training by what they hold, those of the optimizer by rule.

    Single numbers, such as counts of steps, are left out.
    """
    size, optimizer = 0, dict[str, int]()
    for weight in layout(recipe.model):
        rule = recipe.train.optimizer.rule(weight)
        size += 4 * weight.size
        kept = sum(part.bytes for part in remembered(rule, weight.shape) if part.shape)
        optimizer[kind(rule)] = optimizer.get(kind(rule), 0) + kept
    return MemoryEstimate(
        weights=size,
        gradients=size,
        optimizer=optimizer,
        average=size if recipe.train.average is not None else 0,
        activations=activations(recipe, device, processes),
    )


def warnings(recipe: Recipe, needed: int, artifact: int, device: str) -> list[str]:
    """What will not fit: ``needed`` bytes of memory for each process, ``artifact`` bytes of file.

    Returns:
        Lines for people, each with a remedy; none if everything fits.
    """
    lines = []
    available, what = capacity(device)
    if needed > available:
        more = 2 * recipe.train.accumulation
        remedy = f"set train.accumulation={more}"
        if recipe.train.batch % more:
            remedy = f"set train.batch={max(1, recipe.train.batch // 2)}"
        lines.append(
            f"about {needed / GB:.1f} GB of memory are needed, more than the "
            f"{available / GB:.1f} GB of {what}; {remedy}, or take a smaller model"
        )
    budget = recipe.pack.budget
    if artifact > budget:
        lines.append(
            f"the packed file takes about {artifact:,} bytes, over the budget of {budget:,}; make "
            "the model smaller, e.g. with model.width, or raise pack.budget"
        )
    spec, size = quant_spec(recipe), parameters(recipe.model)
    if spec.budget is not None and 8 * spec.budget < LEAST_RATE * size:
        lines.append(
            f"the budget of {spec.budget:,} bytes leaves about {8 * spec.budget / size:.2f} bits "
            "for a weight, which costs much quality; make the model smaller, e.g. with "
            "model.width, or raise pack.budget"
        )
    return lines


def capacity(device: str) -> tuple[int, str]:
    """Bytes of memory that a process on ``device`` can have at most, and whose they are."""
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        return int(properties.total_memory), properties.name
    return machine_memory()[1], "this machine"


def pace(recipe: Recipe, device: str, processes: int = 1) -> Pace:
    """How long a step takes: timed on a GPU or if it is small, and else worked out.

    Of several processes each does its share of the batch; what they tell each other is left out.
    """
    spec = recipe.model
    train = dataclasses.replace(recipe.train, batch=recipe.train.batch // processes)
    work = flops(spec).training * train.batch * spec.context
    if device == "cpu" and work > MOST_FLOPS:
        speed = _product_speed(device)
        source = (
            f"estimated: {work:.3g} operations at {SHARE:.0%} of the {speed / 1e9:,.0f} GFLOP/s "
            f"that a product of {SIDE} by {SIDE} matrices reaches here"
        )
        return Pace(work / (SHARE * speed), source)
    trainer = Trainer(spec, train, Mesh(0, 1, torch.device(device)))
    generator = np.random.default_rng(0)
    batch = generator.integers(spec.vocab, size=(train.batch, spec.context + 1))
    trainer.train_step(batch)  # allocates, and fills caches
    started = _now(device)
    for _ in range(TIMED_STEPS):
        trainer.train_step(batch)
    seconds = (_now(device) - started) / TIMED_STEPS
    return Pace(seconds, f"measured: {TIMED_STEPS} steps on {device}, not compiled")


def artifact_bytes(recipe: Recipe) -> tuple[int, str]:
    """The size of the packed file at the recipe's ``quantize``, and what that assumes."""
    spec = quant_spec(recipe)
    tokenizer = PIECE_BYTES * recipe.model.vocab if isinstance(recipe.tokenizer, Bpe) else 0.0
    beside = tokenizer + FRAME_BYTES
    bits = 0.0
    for weight in layout(recipe.model):
        rule = spec.rule(weight, len(recipe.model.layers))
        if weight.role is Role.VECTOR or rule.bits == 16 or len(weight.shape) < 2:
            bits += 16 * weight.size
            continue
        columns = weight.shape[-1]
        rows = weight.size // columns
        if spec.designed:
            bits += (spec.rate or HIGHEST_RATE) * weight.size
            bits += 8 * EXPONENT_BYTES * (rows + columns)
        else:
            groups = 1 if rule.group is None else math.ceil(columns / rule.group)
            bits += code_bits(rule) * weight.size + 16 * rows * groups
    total = round(bits / 8 + beside)
    if spec.budget is not None:
        return min(total, spec.budget), "designed steps use up their budget"
    return total, _assumed(spec)


@functools.cache
def code_bits(rule: Rule) -> float:
    """Entropy of the codes of a Gaussian row under a rule, in bits per weight.

    Where nothing is clipped it is 2.0471 + log2(Q / k).
    """
    largest = 2 ** (rule.bits - 1) - 1
    step = rule.k / largest  # in deviations of the row
    edges = [-math.inf, *((code + 0.5) * step for code in range(-largest, largest)), math.inf]
    below = [0.5 * math.erfc(-edge / math.sqrt(2)) for edge in edges]
    shares = [b - a for a, b in itertools.pairwise(below)]
    return -sum(p * math.log2(p) for p in shares if p > 0)


def _assumed(spec: QuantSpec) -> str:
    if spec.designed:
        return f"{spec.rate:g} bits per weight, and the exponents of steps"
    return "codes have the entropy of Gaussian rows, and scales 16 bits"


def _product_speed(device: str) -> float:
    """Operations per second of one large product of float32 matrices."""
    matrix = torch.ones(SIDE, SIDE, device=device)
    matrix @ matrix
    started = time.perf_counter()
    matrix @ matrix
    return 2 * SIDE**3 / (time.perf_counter() - started)


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()
