"""Checkpoint to Quantized: every weight coded by its rule, and what that costs in quality."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpt.artifact.container import pack
from segpt.config.base import fingerprint
from segpt.config.layout import layout
from segpt.config.quant import QuantSpec, Rule
from segpt.errors import CheckpointError, DataError
from segpt.model.leaves import Weight, weights
from segpt.model.model import Model
from segpt.quant.design import designs, entropy
from segpt.quant.gptq import gptq, output_error
from segpt.quant.grid import nearest, scales, to_grid
from segpt.quant.hessian import hessians
from segpt.quant.quality import compare
from segpt.quant.sensitivity import sensitivities
from segpt.quant.solve import Solver
from segpt.values import Checkpoint, Coded, Grid, Half, Partial, Quantized, Stepped

from .open_model import from_checkpoint, from_quantized, settled
from .threads import one_thread

Blocks = Iterable[NDArray[np.int64]]  # each (batch, time + 1) token ids
Task = Literal["calibrate", "fit", "search", "tune", "round", "measure"]

BATCH_TOKENS = 2048  # of a batch that calibrates or tunes


class HeldOut(NamedTuple):
    """Text that quality is measured on, and the bytes that each token id spells."""

    blocks: Blocks
    sizes: NDArray[np.integer]


class Progress(NamedTuple):
    """How far a task is: tokens calibrated on, weights rounded, or tokens measured on."""

    task: Task
    done: int
    total: int


def quantize(
    checkpoint: Checkpoint,
    spec: QuantSpec,
    calibration: Blocks = (),
    held_out: HeldOut | None = None,
    *,
    seen: NDArray[np.bool_] | None = None,
    device: str = "cpu",
    report: Callable[[Progress], None] = lambda _: None,
    resume: Partial | None = None,
    save: Callable[[Partial], None] = lambda _: None,
) -> Quantized:
    """Code every weight of a checkpoint by the method of the spec.

    The ``report`` of the result holds, all as JSON values:

    * ``weights``: by name the rule or the states of the trellis, ``bits_per_weight``, ``error``
      and ``output_error`` (squared, relative to the weight and to its outputs on the calibration
      text), ``damage`` (nats per token that the sensitivity of the weight predicts), the
      ``damping`` that GPTQ needed, and ``fallback``, true if errors could not be fed back;
    * ``roles`` and ``layers``: ``parameters``, ``bits_per_weight``, ``error`` and ``damage`` of
      each; the first two again for the whole. Bits are the entropy of each weight's codes plus
      16 per scale, or 16 for float16;
    * ``fallbacks``: the names of the weights that fell back;
    * ``quality``: the fields of :class:`segpt.quant.quality.Quality`, or None.

    On a CPU it runs on one thread, so that the same input gives the same codes everywhere.

    Args:
        checkpoint: the model; visits that have not joined it yet are left out.
        spec: the method.
        calibration: training text. Its first ``spec.calibration_tokens`` tokens measure what
            weights matter; what follows, or the same again, tunes.
        held_out: text to measure on; its first ``spec.report_tokens`` tokens are read.
        seen: (vocab,) which tokens occur in the training text. The others share a row.
        device: where to compute, ``cpu`` or ``cuda``.
        report: told about progress.
        resume: what an interrupted call last saved.
        save: given the state after each part of the model.

    Raises:
        SpecError: if a weight has no rule.
        CheckpointError: naming the first weight that is unknown, not finite, or too large.
        DataError: if there is no text to calibrate or measure on, or it has another vocabulary.
        CheckError: if the model cannot be coded within ``spec.budget``.
    """
    with one_thread(device):
        now = settled(checkpoint)
        rules = {w.name: spec.rule(w, len(now.spec.layers)) for w in layout(now.spec)}
        model = from_checkpoint(now, device)
        _check_finite(model)
        text = Text(calibration, now.spec.vocab)
        origin = {"checkpoint": checkpoint.fingerprint, "quantize": fingerprint(spec)}
        quantized = Quantized(
            spec=now.spec,
            weights={},
            tokenizer=checkpoint.tokenizer,
            origin={**checkpoint.origin, **origin},
            documents=checkpoint.documents,
        )
        work = _Work(model, spec, rules, text, report, resume or Partial(), save)
        if spec.designed:
            coded, about = _designed(work, quantized, seen)
        else:
            coded, about = _ruled(work)
        quantized = dataclasses.replace(quantized, weights=coded)
        quality = None
        if held_out is not None:
            blocks = _take(
                held_out.blocks,
                spec.report_tokens,
                now.spec.vocab,
                lambda done: report(Progress("measure", done, spec.report_tokens)),
            )
            after = from_quantized(quantized, device)
            quality = dataclasses.asdict(compare(model, after, blocks, held_out.sizes))
        return dataclasses.replace(quantized, report=_summary(about) | {"quality": quality})


class Text:
    """Training text in batches of a few thousand tokens by number, read once and then again."""

    def __init__(self, blocks: Blocks, vocab: int) -> None:
        """Read lazily from ``blocks``, (batch, time + 1) token ids each."""
        self.vocab = vocab
        self._left = iter(blocks)
        self._read: list[NDArray[np.int64]] = []

    def __call__(self, number: int) -> NDArray[np.int64]:
        """Batch ``number``, (batch, time) token ids.

        Raises:
            DataError: if there is no text, or it has ids beyond the vocabulary.
        """
        while len(self._read) <= number and (block := next(self._left, None)) is not None:
            _check_ids(block, self.vocab)
            rows = max(1, BATCH_TOKENS // (block.shape[1] - 1))
            inputs = block[:, :-1]
            self._read += [inputs[i : i + rows] for i in range(0, len(inputs), rows)]
        if not self._read:
            raise DataError(
                "there is no calibration text; give some training text, or set "
                "quantize.method=nearest"
            )
        return self._read[number % len(self._read)]

    def first(self, tokens: int, report: Callable[[int], None]) -> Iterator[NDArray[np.int64]]:
        """The first ``tokens`` tokens, in whole rows, or all there are."""
        taken, number = 0, 0
        while taken < tokens:
            batch = self(number)
            if number and number >= len(self._read):
                return  # it begins anew
            batch = batch[: -(-(tokens - taken) // batch.shape[1])]
            yield batch
            taken, number = taken + batch.size, number + 1
            report(min(taken, tokens))


class _Work(NamedTuple):
    """What both ways of coding need."""

    model: Model
    spec: QuantSpec
    rules: dict[str, Rule]
    text: Text
    report: Callable[[Progress], None]
    before: Partial
    save: Callable[[Partial], None]

    def calibration(self) -> Iterator[NDArray[np.int64]]:
        tokens = self.spec.calibration_tokens
        return self.text.first(tokens, lambda d: self.report(Progress("calibrate", d, tokens)))


Coding = tuple[dict[str, Coded], dict[str, dict[str, Any]]]


def _designed(work: _Work, empty: Quantized, seen: NDArray[np.bool_] | None) -> Coding:
    """Code by designed steps, and report."""
    spec = work.spec
    for weight in weights(work.model):
        if work.rules[weight.name].bits == 16:
            _coded(weight, work.rules[weight.name], None, spec)  # refuses what float16 cannot hold
    found = sensitivities(work.model, work.calibration())
    tokens = None if seen is None else torch.from_numpy(seen)
    stepped = {n: one for n, one in found.items() if work.rules[n].bits != 16}
    plans = designs(work.model, stepped, spec, tokens)

    def size(coded: Mapping[str, Coded]) -> int:
        return pack(dataclasses.replace(empty, weights=coded)).size

    # Tuning reads on where calibration stopped.
    calibrated = -(-spec.calibration_tokens // work.text(0).size)
    solver = Solver(
        work.model,
        spec,
        plans,
        lambda number: work.text(calibrated + number),
        size,
        lambda task, done, total: work.report(Progress(cast("Task", task), done, total)),
    )
    coded = solver.run(work.before, work.save)
    about = {}
    for weight in weights(work.model):
        value, plan = coded[weight.name], plans.get(weight.name)
        entry = _about(weight, value, found[weight.name].curvature if plan else None)
        if plan is not None and isinstance(value, Stepped):
            change = _change(weight, value)
            entry |= {
                "states": value.states,
                "step": value.step,
                "damage": found[weight.name].damage(change),
                "fallback": plan.fallback,
            }
        about[weight.name] = entry
    return coded, about


def _ruled(work: _Work) -> Coding:
    """Code weight by weight on the grids of the rules, and report."""
    spec, model = work.spec, work.model
    moments: dict[str, Tensor] = {}
    samples = _Distinct()
    if spec.method == "gptq":
        moments = hessians(model, samples.counted(work.calibration()))
    coded, dampings = dict(work.before.coded), dict(work.before.dampings)
    about: dict[str, dict[str, Any]] = {}
    done, parameters = 0, sum(w.tensor.numel() for w in weights(model))
    for weight in weights(model):
        rule, moment = work.rules[weight.name], moments.get(weight.name)
        if weight.name not in coded:
            coded[weight.name], dampings[weight.name] = _coded(
                weight, rule, moment, spec, samples.count
            )
            work.save(Partial(len(coded), coded=dict(coded), dampings=dict(dampings)))
        value, damping = coded[weight.name], dampings[weight.name]
        about[weight.name] = _about(weight, value, moment) | {
            "bits": rule.bits,
            "k": rule.k if isinstance(value, Grid) else None,
            "group": rule.group,
            "damping": damping,
            "fallback": isinstance(value, Grid) and moment is not None and damping is None,
        }
        done += weight.tensor.numel()
        work.report(Progress("round", done, parameters))
    return coded, about


def _check_finite(model: Model) -> None:
    for weight in weights(model):
        if not weight.tensor.isfinite().all():
            raise CheckpointError(
                f"weight {weight.name!r} is not finite everywhere; quantize an earlier checkpoint"
            )


def _take(
    blocks: Blocks, tokens: int, vocab: int, report: Callable[[int], None]
) -> Iterator[NDArray[np.int64]]:
    """The first rows of the blocks, until they hold ``tokens`` targets."""
    taken = 0
    for block in blocks:
        targets = block.shape[1] - 1
        rows = block[: -(-(tokens - taken) // targets)]
        _check_ids(rows, vocab)
        yield rows
        taken += len(rows) * targets
        report(min(taken, tokens))
        if taken >= tokens:
            return


def _check_ids(block: NDArray[np.int64], vocab: int) -> None:
    if block.min() < 0 or block.max() >= vocab:
        raise DataError(
            f"the text has token ids outside the model's vocabulary of {vocab}; "
            "prepare it with the tokenizer of the checkpoint"
        )


class _Distinct:
    """How many tokens of a text have different beginnings of their sequences before them."""

    def __init__(self) -> None:
        self.count = 0
        self._sequences: set[bytes] = set()

    def counted(self, batches: Iterable[NDArray[np.int64]]) -> Iterator[NDArray[np.int64]]:
        """The batches as they are; a sequence that comes again adds nothing to the count."""
        for batch in batches:
            for row in batch:
                if (key := row.tobytes()) not in self._sequences:
                    self._sequences.add(key)
                    self.count += len(row)
            yield batch


def _coded(
    weight: Weight, rule: Rule, moment: Tensor | None, spec: QuantSpec, samples: int | None = None
) -> tuple[Coded, float | None]:
    """One weight coded by its rule, and the damping if GPTQ made its codes."""
    try:
        return _round(weight.tensor.detach(), rule, moment, spec, samples)
    except CheckpointError as error:
        raise CheckpointError(f"weight {weight.name!r}: {error}") from error


def _change(weight: Weight, coded: Coded) -> Tensor:
    return weight.tensor.detach() - torch.from_numpy(coded.decoded()).to(weight.tensor)


def _about(weight: Weight, coded: Coded, moment: Tensor | None) -> dict[str, Any]:
    """What the report says about any coded weight."""
    tensor, change = weight.tensor.detach(), _change(weight, coded)
    outputs = None
    if moment is not None:
        outputs = _ratio(output_error(change, moment), output_error(tensor, moment))
    return {
        "role": weight.role.value,
        "layer": weight.name.split(".")[1] if weight.name.startswith("layers.") else None,
        "parameters": tensor.numel(),
        "bits_per_weight": _bits(coded) / tensor.numel(),
        "error": _ratio(change.square(), tensor.square()),
        "output_error": outputs,
        "damage": None,
        "fallback": False,
    }


def _round(
    tensor: Tensor, rule: Rule, moment: Tensor | None, spec: QuantSpec, samples: int | None
) -> tuple[Coded, float | None]:
    """The coded weight, and the damping if GPTQ made its codes."""
    if rule.bits == 16:
        half = tensor.half()
        if not half.isfinite().all():
            raise CheckpointError(
                f"{float(tensor.abs().max()):.3g} is too large for float16; "
                "the weights have diverged, so quantize an earlier checkpoint"
            )
        return Half(half.cpu().numpy()), None
    scale = scales(tensor, rule.bits, rule.k, rule.group)
    if moment is None:
        return to_grid(nearest(tensor, scale, rule.bits), scale, rule.bits), None
    codes, damping = gptq(
        tensor,
        moment,
        scale,
        rule.bits,
        damping=spec.damping,
        act_order=spec.act_order,
        block=spec.block,
        samples=samples,
    )
    return to_grid(codes, scale, rule.bits), damping


def _ratio(part: Tensor, whole: Tensor) -> float | None:
    """The ratio of two sums; 0 for nothing of nothing, None where it is not finite."""
    if not whole.any():
        return 0.0
    ratio = float(part.sum(dtype=torch.float64) / whole.sum(dtype=torch.float64))
    return ratio if math.isfinite(ratio) else None


def _bits(coded: Coded) -> float:
    """Entropy of the codes, as one distribution, plus what the scales take; 16 per float16."""
    if isinstance(coded, Half):
        return 16.0 * coded.values.size
    if isinstance(coded, Stepped):
        return entropy(coded)
    counts = np.bincount(coded.codes.ravel().astype(np.int64) + 128)
    shares = counts[counts > 0] / coded.codes.size
    return float(-(shares * np.log2(shares)).sum() * coded.codes.size + 16 * coded.scales.size)


def _summary(about: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        "weights": about,
        "roles": _grouped(about, "role"),
        "layers": _grouped(about, "layer"),
        **_size(about.values()),
        "fallbacks": [name for name, entry in about.items() if entry["fallback"]],
    }


def _grouped(about: dict[str, dict[str, Any]], key: str) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in about.values():
        if entry[key] is not None:
            groups[entry[key]].append(entry)
    return {
        name: _size(entries)
        | {"error": _mean_error(entries), "damage": sum(e["damage"] or 0.0 for e in entries)}
        for name, entries in groups.items()
    }


def _mean_error(entries: Collection[dict[str, Any]]) -> float | None:
    """The mean over weights, each counted as often as it has parameters; None if any is."""
    if any(entry["error"] is None for entry in entries):
        return None
    total = sum(entry["parameters"] * entry["error"] for entry in entries)
    return float(total / sum(entry["parameters"] for entry in entries))


def _size(entries: Collection[dict[str, Any]]) -> dict[str, float]:
    parameters = sum(entry["parameters"] for entry in entries)
    bits = sum(entry["parameters"] * entry["bits_per_weight"] for entry in entries)
    return {"parameters": parameters, "bits_per_weight": bits / parameters}
