"""Scoring and training against the loops that people write first."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segpt.config.layout import Role, parameters
from segpt.config.optimizer import Muon
from segpt.config.recipe import Recipe, read_recipe
from segpt.config.score import ScoreSpec
from segpt.data.corpus import builtin
from segpt.data.tokenizer import load
from segpt.eval.ledger import EncodedText
from segpt.eval.tally import score_stream
from segpt.eval.windows import plan
from segpt.kernels.newton_schulz.reference import NewtonSchulzCall
from segpt.kernels.newton_schulz.reference import reference as newton_schulz
from segpt.model.build import build
from segpt.model.model import Model
from segpt.model.params import weights
from segpt.model.scaling import initialise
from segpt.stages import checkpoint_io, run_directory
from segpt.stages.open_model import open_model
from segpt.stages.score import account_for
from segpt.tasks.continuations import Request, continuations
from segpt.tasks.core import TASKS
from segpt.tasks.core_bundle import read_bundle, read_items
from segpt.tasks.prompts import arrange, example
from segpt.tasks.subject import of_model
from segpt.train.mesh import Mesh
from segpt.train.optim.muon import POLAR
from segpt.train.trainer import Trainer

ROUNDS = 5
STEPS = 31  # of each side, to compare training


def scoring(device: str, context: int = 512, stride: int = 64) -> dict[str, Any]:
    """Targets per second of batched windows, against one window at a time through all logits."""
    recipe = read_recipe("demo" if device == "cpu" else "golf16")
    model = _model(recipe, device).eval()
    targets = context + stride * (64 if device == "cpu" else 256)
    ids = np.random.default_rng(0).integers(recipe.model.vocab, size=targets + 1, dtype=np.uint32)
    stream = EncodedText(ids, np.ones(targets, np.int64), np.zeros(1, np.int64), targets, "bytes")
    windows = plan(targets, context, stride)

    def ours() -> float:
        return math.fsum(score_stream(model, stream, ScoreSpec(stride=stride), context).nats)

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
    checkpoint = checkpoint_io.read_checkpoint(run_directory.newest_checkpoint(run))
    context = checkpoint.spec.context
    spec = ScoreSpec(stride=context // 8)
    one_pass = ScoreSpec(mode="rolling", context=window)
    opened = open_model(checkpoint, device)
    ledger = _first(account_for(opened, builtin("validation")).ledger, share)
    found = dict[str, float]()

    def under(how: ScoreSpec) -> Callable[[], float]:
        def scored() -> float:
            nats = math.fsum(score_stream(opened.model, ledger, how, how.reach(context)).nats)
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


def _first(ledger: EncodedText, share: float) -> EncodedText:
    """The documents that begin in a first share of the targets, and no others."""
    ends = [*ledger.starts[1:].tolist(), ledger.targets]
    count = max(1, int((ledger.starts < share * ledger.targets).sum()))
    stop = ends[count - 1]
    sizes = ledger.sizes[:stop]
    return EncodedText(
        ledger.ids[: stop + 1], sizes, ledger.starts[:count], int(sizes.sum()), ledger.denominator
    )


def core(run: Path, device: str, bundle: Path, context: int, items: int) -> dict[str, Any]:
    """Examples of the CORE tasks per second, against a loop over one example at a time.

    The loop stacks the candidates of an example, padded, and takes all their logits. Both answer
    the same ``items`` examples of each task, cropped to ``context`` tokens.
    """
    checkpoint = checkpoint_io.read_checkpoint(run_directory.newest_checkpoint(run))
    opened = open_model(checkpoint, device)
    subject = of_model(opened.model, load(checkpoint.tokenizer), context)
    seconds: dict[str, tuple[float, float]] = {}
    for task in TASKS:
        asked = arrange(read_items(read_bundle(bundle), task)[0], items)
        requests = [example(task, asked, i, subject).requests for i in range(len(asked))]

        def ours(requests: Sequence[Sequence[Request]] = requests) -> float:
            return math.fsum(f.nats for each in continuations(subject, requests) for f in each)

        def plain(requests: Sequence[Sequence[Request]] = requests) -> float:
            return math.fsum(_example_nats(opened.model, each, context) for each in requests)

        assert abs(ours() - plain()) < 1e-2 * len(requests)
        seconds[task.label] = _paired(ours, plain, device, 1)
    fast, slow = (math.fsum(both[side] for both in seconds.values()) for side in (0, 1))
    return {
        "model": run.name,
        "parameters": parameters(checkpoint.spec),
        "context": context,
        "items_per_task": items,
        "examples_per_second": items * len(seconds) / fast,
        "one_example_at_a_time": items * len(seconds) / slow,
        "ratio": slow / fast,
        "ratios": {label: plain / ours for label, (ours, plain) in seconds.items()},
    }


@torch.no_grad()
def _example_nats(model: Model, requests: Sequence[Request], context: int) -> float:
    rows = [[*r.context, *r.continuation][-context:] for r in requests]
    longest, total = max(map(len, rows)), 0.0
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    tokens = tokens.to(model.table.weight.device)
    nats = -F.log_softmax(model(tokens[:, :-1]), -1).gather(2, tokens[:, 1:, None])[..., 0]
    for row, request, each in zip(rows, requests, nats, strict=True):
        scored = min(len(request.continuation), len(row) - 1)
        total += float(each[len(row) - 1 - scored : len(row) - 1].double().sum())
    return total


def training(device: str) -> dict[str, Any]:
    """Tokens per second of the demo recipe, against a plain loop with unbatched Muon."""
    recipe = read_recipe("demo")
    spec, how = recipe.model, recipe.train
    batch = np.random.default_rng(0).integers(spec.vocab, size=(how.batch, spec.context + 1))
    run = Trainer(spec, how, Mesh(0, 1, torch.device(device)))
    loop = _PlainLoop(_model(recipe, device), how.optimizer.matrix)

    def ours() -> float:
        return float(run.train_step(batch)[0])

    def plain() -> float:
        return float(loop.step(batch))

    found = _rounds(ours, plain, device, STEPS)[1:]  # the first step warms up
    fast, slow = (min(side) for side in zip(*found, strict=True))
    ratios = np.percentile([theirs / mine for mine, theirs in found], [25, 50, 75])
    tokens = how.batch * spec.context
    return {
        "model": recipe.name,
        "parameters": parameters(spec),
        "threads": torch.get_num_threads(),
        "steps": len(found),
        "tokens_per_second": tokens / fast,
        "plain_loop": tokens / slow,
        "ratio": slow / fast,
        "ratio_of_pairs": dict(zip(("low", "middle", "high"), ratios.tolist(), strict=True)),
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
                x = newton_schulz(NewtonSchulzCall((x / x.norm())[None], POLAR))[0]
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
    # The first round warms up and counts like the others.
    found = _rounds(ours, plain, device, rounds + 1)
    return min(mine for mine, _ in found), min(theirs for _, theirs in found)


def _rounds(
    ours: Callable[[], float], plain: Callable[[], float], device: str, rounds: int
) -> list[tuple[float, float]]:
    """The seconds of both sides, round by round."""
    found = []
    for _ in range(rounds):
        seconds = []
        for run in (ours, plain):
            _synchronise(device)
            started = time.perf_counter()
            run()
            _synchronise(device)
            seconds.append(time.perf_counter() - started)
        found.append((seconds[0], seconds[1]))
    return found


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
