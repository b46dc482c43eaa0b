"""Training, scoring and quantizing a model, each against the loop that people write first."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segpt import kernels
from segpt.config.flops import flops
from segpt.config.layout import Role
from segpt.config.optimizer import Muon
from segpt.config.recipe import Recipe, read_recipe
from segpt.config.schedule import Steps
from segpt.config.score import ScoreSpec
from segpt.eval.ledger import EncodedText
from segpt.eval.tally import score_stream
from segpt.eval.windows import plan as windows_of
from segpt.kernels import OPS
from segpt.model.build import build
from segpt.model.model import Model
from segpt.model.params import weights
from segpt.model.scaling import initialise
from segpt.quant.gptq import gptq
from segpt.quant.grid import scales as sdclip_scales
from segpt.train.mesh import Mesh
from segpt.train.optim.muon import CLASSIC
from segpt.train.trainer import Trainer, compile_model

from .peaks import peak
from .plan import Plan, Row
from .timing import paired

_STRIDE_SHARE = 16  # of a window: 64 tokens of 1,024


def training(plan: Plan) -> Iterator[Row]:
    """Tokens per second of the trainer, against the plain loop on the same shape and batch."""
    recipe = _recipe(plan)
    spec, cfg = recipe.model, recipe.train
    generator = np.random.default_rng(0)
    batch = generator.integers(spec.vocab, size=(cfg.batch, spec.context + 1))
    trainer = Trainer(spec, cfg, Mesh(0, 1, torch.device(plan.device)))
    trainer.step = _middle(recipe)
    notes: list[str] = []
    compile_model(trainer, batch, notes.append)
    loop = PlainLoop(_model(recipe, plan).set_progress(trainer.progress), cfg.optimizer.matrix)
    tokens = torch.from_numpy(batch).to(plan.device)
    with kernels.use(**_automatic(plan)):
        sides = paired(
            lambda: trainer.train_step(batch), lambda: loop.step(tokens), plan.device, plan.rounds
        )
    name = f"training {plan.recipe}"
    yield Row(
        name,
        "plain loop",
        sides.ratio,
        sides.seconds,
        sides.other_seconds,
        sides.memory,
        aim=1.3,
        note="; ".join(notes),
    )
    rate = cfg.batch * spec.context / sides.seconds
    yield Row(name, figure=rate, unit="tokens/s")
    if (most := peak(plan.device)) is not None:
        used = 100 * rate * flops(spec).training / most
        yield Row(name, "dense bfloat16 of the data sheet", figure=used, unit="% used", aim=45.0)


def scoring(plan: Plan) -> Iterator[Row]:
    """Windows and one pass with a cache, against one window at a time through all logits."""
    recipe = _recipe(plan)
    model = _model(recipe, plan).eval()
    context, stride = plan.window, max(1, plan.window // _STRIDE_SHARE)
    generator = np.random.default_rng(0)
    ids = generator.integers(recipe.model.vocab, size=plan.targets + 1, dtype=np.uint32)
    sizes, starts = np.ones(plan.targets, np.int64), np.zeros(1, np.int64)
    stream = EncodedText(ids, sizes, starts, plan.targets, "bytes")
    spans = windows_of(plan.targets, context, stride)
    bounds = list(zip(spans.start.tolist(), spans.end.tolist(), strict=True))
    few = bounds[: max(2, len(bounds) // 8)]  # the loop takes as long for every window

    def under(spec: ScoreSpec) -> Callable[[], float]:
        return lambda: math.fsum(score_stream(model, stream, spec, context).nats)

    @torch.no_grad()
    def plain() -> float:
        total = 0.0
        for start, end in few:
            begin = max(0, end - context)
            tokens = torch.from_numpy(ids[begin : end + 1].astype(np.int64)).to(plan.device)[None]
            nats = -F.log_softmax(model(tokens[:, :-1]), -1)
            total += float(nats.gather(2, tokens[:, 1:, None])[0, start - begin :, 0].sum())
        return total

    of_few = sum(end - start for start, end in few)
    for name, spec in (
        ("strided", ScoreSpec(stride=stride)),
        ("rolling", ScoreSpec(mode="rolling")),
    ):
        with kernels.use(**_automatic(plan)):
            sides = paired(under(spec), plain, plan.device, max(1, plan.rounds // 3))
        rate, slow = plan.targets / sides.seconds, of_few / sides.other_seconds
        yield Row(
            f"score --mode {name}",
            "one window at a time",
            rate / slow,
            figure=rate,
            unit="targets/s",
            aim=30.0,
        )


def quantizing(plan: Plan) -> Iterator[Row]:
    """GPTQ of the matrices of one layer, against the loop that updates all columns at once."""
    recipe = _recipe(plan)
    model = _model(recipe, plan)
    jobs = [
        Job(w.tensor.detach(), _hessian(w.tensor), sdclip_scales(w.tensor.detach(), 6, 12.85))
        for w in weights(model)
        if w.role is Role.MATRIX and w.tensor.dim() == 2
    ][:6]
    with torch.no_grad():
        sides = paired(
            lambda: [gptq(j.weight, j.hessian, j.scales, 6) for j in jobs],
            lambda: [plain_gptq(j) for j in jobs],
            plan.device,
            max(1, plan.rounds // 5),
        )
    count = sum(j.weight.numel() for j in jobs)
    yield Row(
        f"GPTQ, {len(jobs)} matrices",
        "column by column",
        sides.ratio,
        sides.seconds,
        sides.other_seconds,
        figure=count / sides.seconds / 1e6,
        unit="M weights/s",
    )


class Job(NamedTuple):
    """A weight (rows, columns), the Hessian (columns, columns), and scales (rows, spans)."""

    weight: Tensor
    hessian: Tensor
    scales: Tensor


def plain_gptq(job: Job) -> Tensor:
    """Codes (rows, columns) in float32; each column's error goes to all columns after it."""
    left, scale = job.weight.float().clone(), job.scales.float()
    hessian = job.hessian.float().clone()
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor = torch.linalg.cholesky(inverse, upper=True)
    codes = torch.empty_like(left)
    for column in range(left.size(1)):
        codes[:, column] = (left[:, column] / scale[:, 0]).round().clamp(-31, 31)
        error = (left[:, column] - codes[:, column] * scale[:, 0]) / factor[column, column]
        left[:, column + 1 :] -= error[:, None] * factor[column, None, column + 1 :]
    return codes


class PlainLoop:
    """The model and rules of a contest script: compiled, all logits at once, a matrix at a time."""

    def __init__(self, model: Model, muon: object) -> None:
        assert isinstance(muon, Muon)
        self.model, self.muon = model, muon
        every = list(weights(model))
        self.matrices: list[Tensor] = [w.tensor for w in every if w.role is Role.MATRIX]
        self.momenta = [torch.zeros_like(t) for t in self.matrices]
        rest = [w.tensor for w in every if w.role is not Role.MATRIX]
        on_gpu = rest[0].is_cuda
        self.adam = torch.optim.AdamW(rest, lr=0.01, fused=on_gpu)
        self.forward: Callable[[Tensor], Tensor] = torch.compile(model) if on_gpu else model

    def step(self, tokens: Tensor) -> Tensor:
        """Train on (sequences, context + 1) tokens; the mean loss, a scalar."""
        self.adam.zero_grad(set_to_none=True)
        for matrix in self.matrices:
            matrix.grad = None
        with kernels.use("reference"), kernels.use(attention="torch"):
            with torch.autocast(tokens.device.type, torch.bfloat16, enabled=tokens.is_cuda):
                logits = self.forward(tokens[:, :-1]).float()
                loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        with torch.no_grad():
            for matrix, momentum in zip(self.matrices, self.momenta, strict=True):
                if matrix.grad is not None:
                    momentum.lerp_(matrix.grad, 0.05)
                    self._move(matrix, matrix.grad.lerp(momentum, 0.95))
        self.adam.step()
        return loss.detach()

    @staticmethod
    def _move(matrix: Tensor, update: Tensor) -> None:
        """The plain iteration of Newton-Schulz, as scripts have it, in bfloat16 on a GPU."""
        x = update.bfloat16() if update.is_cuda else update
        tall = x.size(-2) > x.size(-1)
        x = x.mT if tall else x
        x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
        a, b, c = CLASSIC
        for _ in range(5):
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
        rows, columns = matrix.shape[-2:]
        step = (x.mT if tall else x).to(matrix.dtype)
        matrix.add_(step, alpha=-0.02 * max(1.0, rows / columns) ** 0.5)


def _recipe(plan: Plan) -> Recipe:
    return read_recipe(plan.recipe, list(plan.settings))


def _model(recipe: Recipe, plan: Plan) -> Model:
    model = build(recipe.model)
    initialise(model, recipe.train.scaling, 0)
    return model.to(plan.device)


def _middle(recipe: Recipe) -> int:
    """A step at which every visit has joined."""
    assert isinstance(recipe.train.length, Steps)
    return round(0.6 * recipe.train.length.count)


def _automatic(plan: Plan) -> dict[str, str]:
    """The choice of back ends: the best on a GPU, the references in a dry run."""
    return dict.fromkeys(OPS, "reference" if plan.is_dry else "auto")


def _hessian(weight: Tensor) -> Tensor:
    """A Hessian (columns, columns) of random inputs that are correlated, as real ones are."""
    columns = weight.size(1)
    generator = torch.Generator(weight.device).manual_seed(0)
    inputs = torch.randn(4 * columns, columns, device=weight.device, generator=generator)
    inputs += inputs.mean(1, keepdim=True)
    return inputs.T @ inputs
