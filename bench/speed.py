"""Scoring and training against the loops that people write first."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segpt.data.corpus import builtin
from segpt.eval.ledger import Ledger
from segpt.eval.surprisal import window_nats
from segpt.eval.tally import tally
from segpt.eval.windows import batched, plan
from segpt.kernels import orthogonalise
from segpt.model.build import build
from segpt.model.leaves import weights
from segpt.model.model import Model
from segpt.model.scaling import initialise
from segpt.spec.layout import Role, parameters
from segpt.spec.recipe import Recipe, read_recipe
from segpt.spec.score import ScoreSpec
from segpt.spec.train import Muon
from segpt.stages import files
from segpt.stages.score import account_for, open_model
from segpt.train.loop import Run
from segpt.train.mesh import Mesh
from segpt.train.optim import POLAR

ROUNDS = 5


def scoring(device: str, context: int = 512, stride: int = 64) -> dict[str, Any]:
    """Targets per second of batched windows, against one window at a time through all logits."""
    recipe = read_recipe("demo" if device == "cpu" else "golf16")
    model = _model(recipe, device).eval()
    targets = context + stride * (64 if device == "cpu" else 256)
    ids = np.random.default_rng(0).integers(recipe.model.vocab, size=targets + 1, dtype=np.uint32)
    windows = plan(targets, context, stride)

    def ours() -> float:
        with torch.no_grad():
            batches = batched(windows, recipe.score.batch)
            return sum(float(window_nats(model, ids, b).double().sum()) for b in batches)

    def plain() -> float:
        total = 0.0
        with torch.no_grad():
            for start, end in zip(windows.start.tolist(), windows.end.tolist(), strict=True):
                begin = max(0, end - context)
                tokens = torch.from_numpy(ids[begin : end + 1].astype(np.int64)).to(device)[None]
                nats = -F.log_softmax(model(tokens[:, :-1]), -1)
                picked = nats.gather(2, tokens[:, 1:, None])[0, start - begin :, 0]
                total += float(picked.double().sum())
        return total

    fast, slow = _paired(ours, plain, device)
    difference = abs(ours() - plain()) / targets
    return {
        "model": recipe.name,
        "parameters": parameters(recipe.model),
        "context": context,
        "stride": stride,
        "targets_per_second": targets / fast,
        "one_window_at_a_time": targets / slow,
        "ratio": slow / fast,
        "difference_nats_per_token": difference,
    }


def rolling(
    run: Path, device: str, window: int | None = None, rounds: int = ROUNDS, share: float = 1.0
) -> dict[str, Any]:
    """One pass with a cache, against windows that advance by an eighth of the context.

    Attention looks back over ``window`` tokens, or as far as it does by default. Both score the
    first ``share`` of the built-in validation text under the model of a run, and are timed from
    tokens to the nats of every target.
    """
    checkpoint = files.read_checkpoint(files.newest_checkpoint(run))
    context = checkpoint.spec.context
    spec = ScoreSpec(stride=context // 8)
    one_pass = ScoreSpec(mode="rolling", context=window)
    opened = open_model(checkpoint, device, spec)
    ledger = _first(account_for(checkpoint, builtin("validation")).ledger, share)
    found = dict[str, float]()

    def under(how: ScoreSpec) -> Callable[[], float]:
        def scored() -> float:
            nats = math.fsum(tally(opened.model, ledger, how, how.reach(context)).nats)
            found[how.mode] = nats / (math.log(2) * ledger.bytes)
            return nats

        return scored

    fast, slow = _paired(under(one_pass), under(spec), device, rounds)
    return {
        "model": run.name,
        "parameters": parameters(checkpoint.spec),
        "layers": len(opened.model.active),
        "context": context,
        "stride": spec.stride,
        "window": one_pass.reach(context),
        "targets": ledger.targets,
        "bytes": ledger.bytes,
        "targets_per_second": ledger.targets / fast,
        "strided": ledger.targets / slow,
        "ratio": slow / fast,
        "bpb": found["rolling"],
        "bpb_strided": found["strided"],
    }


def _first(ledger: Ledger, share: float) -> Ledger:
    """The documents that begin in a first share of the targets, and no others."""
    ends = [*ledger.starts[1:].tolist(), ledger.targets]
    count = max(1, int((ledger.starts < share * ledger.targets).sum()))
    stop = ends[count - 1]
    sizes = ledger.sizes[:stop]
    return Ledger(
        ledger.ids[: stop + 1], sizes, ledger.starts[:count], int(sizes.sum()), ledger.denominator
    )


def training(device: str) -> dict[str, Any]:
    """Tokens per second of the demo recipe, against a plain loop with unbatched Muon."""
    recipe = read_recipe("demo")
    spec, how = recipe.model, recipe.train
    batch = np.random.default_rng(0).integers(spec.vocab, size=(how.batch, spec.context + 1))
    run = Run(spec, how, Mesh(0, 1, torch.device(device)))
    loop = _PlainLoop(_model(recipe, device), how.optimizer.matrix)

    def ours() -> float:
        return float(run.advance(batch)[0])

    def plain() -> float:
        return float(loop.step(batch))

    fast, slow = _paired(ours, plain, device)
    tokens = how.batch * spec.context
    return {
        "model": recipe.name,
        "parameters": parameters(spec),
        "tokens_per_second": tokens / fast,
        "plain_loop": tokens / slow,
        "ratio": slow / fast,
    }


class _PlainLoop:
    """The same model and rules, written as one writes it first: a matrix at a time, no average."""

    def __init__(self, model: Model, muon: object) -> None:
        assert isinstance(muon, Muon)
        self.model, self.muon = model, muon
        found = list(weights(model))
        self.matrices: list[Tensor] = [w.tensor for w in found if w.role is Role.MATRIX]
        self.momenta = [torch.zeros_like(t) for t in self.matrices]
        rest = [w.tensor for w in found if w.role is not Role.MATRIX]
        self.adam = torch.optim.AdamW(rest, lr=0.01, foreach=False)

    def step(self, batch: NDArray[np.int64]) -> Tensor:
        tokens = torch.from_numpy(batch).to(self.model.table.weight.device)
        loss = F.cross_entropy(self.model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        for parameter in self.model.parameters():
            parameter.grad = None
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        with torch.no_grad():
            for matrix, momentum in zip(self.matrices, self.momenta, strict=True):
                assert matrix.grad is not None
                momentum.lerp_(matrix.grad, 0.05)
                update = matrix.grad.lerp(momentum, 0.95)
                update = update / update.norm(dim=1, keepdim=True)
                x = update.T if update.size(0) > update.size(1) else update
                x = orthogonalise.reference((x / x.norm())[None], POLAR)[0]
                x = x.T if update.size(0) > update.size(1) else x
                matrix.add_(x, alpha=-0.02 * max(1.0, matrix.size(0) / matrix.size(1)) ** 0.5)
        self.adam.step()
        return loss.detach()


def _model(recipe: Recipe, device: str) -> Model:
    model = build(recipe.model)
    initialise(model, recipe.train.scaling, 0)
    return model.to(device)


def _paired(
    ours: Callable[[], float], plain: Callable[[], float], device: str, rounds: int = ROUNDS
) -> tuple[float, float]:
    """The best seconds of each side, taken in turns so that both meet the same machine."""
    best = [float("inf"), float("inf")]
    for _ in range(rounds + 1):  # the first round warms up and counts like the others
        for side, run in enumerate((ours, plain)):
            _synchronise(device)
            started = time.perf_counter()
            run()
            _synchronise(device)
            best[side] = min(best[side], time.perf_counter() - started)
    return best[0], best[1]


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
