"""What a training run would be, without running it."""

from collections.abc import Mapping, Sequence

import torch

from segpt.config.base import PlainSpec, fingerprint, kind, spec
from segpt.config.flops import flops
from segpt.config.layout import layout
from segpt.config.recipe import Recipe
from segpt.config.rules import Finding, Rules
from segpt.config.schedule import Steps
from segpt.config.train import Loops
from segpt.train.mesh import Mesh
from segpt.train.optim import Group
from segpt.train.trainer import sequences
from segpt.values import Tokens

from . import estimate
from . import rules as referee
from .tables import aligned


def group_table(groups: Sequence[Group]) -> list[str]:
    """Which rule updates what, as a table of aligned columns."""
    rows = [("weights of", "rule", "rate", "decay", "tensors", "weights")]
    for group in groups:
        places = ", ".join(place.value for place in group.places)
        rows.append(
            (
                f"{group.role.value}: {places}",
                kind(group.rule),
                f"{group.rule.rate:g}",
                " ".join([f"{group.rule.decay:g}", *group.traits]),
                f"{group.tensors:,}",
                f"{group.parameters:,}",
            )
        )
    return aligned(rows, right=(2, 3, 4, 5))


@spec
class RulesBefore(PlainSpec):
    """The rules of a contest, and what is known of each before a run."""

    name: str
    findings: tuple[Finding, ...]


@spec
class DryRun(PlainSpec):
    """What a run would be, as ``segpt train --dry-run --json`` says it.

    ``loop`` is where the route repeats itself, and ``loops`` how passes through it are drawn.
    ``seconds`` is the time of the whole run and ``step_seconds`` that of a step, which
    ``step_seconds_source`` was measured or estimated by; ``tokens`` is what the run trains on.
    ``memory_bytes`` and ``artifact_bytes`` are estimates. None is what is not known before.
    """

    recipe: str
    parameters: int
    parameters_by_role: Mapping[str, int]
    layers: int
    visits: int
    loop: Mapping[str, int] | None
    loops: Loops | None
    tokens_per_step: int
    steps: int | None
    seconds: float | None
    step_seconds: float | None
    step_seconds_source: str | None
    tokens: int | None
    flops_per_token: Mapping[str, int]
    memory: estimate.MemoryEstimate
    memory_bytes: int
    processes: int
    artifact_bytes: int
    artifact_bytes_source: str | None
    budget: int
    rules: RulesBefore | None
    warnings: tuple[str, ...]
    fingerprint: str


def describe(
    recipe: Recipe, device: str | None = None, rules: Rules | None = None, processes: int = 1
) -> DryRun:
    """What a run would be, without running it.

    Memory counts float32 weights, gradients, optimizer state by rule and average, and what a
    micro-batch keeps for its backward pass. Time is measured or estimated on ``device``; without
    one only a length in seconds says it.

    Args:
        recipe: model and training.
        device: what the run would compute on.
        rules: what it would have to keep to, on held-out text of the length that the recipe says.
        processes: how many would share a batch; memory is that of one of them.

    Raises:
        SpecError: if the recipe draws loops and the route has none.
        TrainError: if rules are broken before the run.
    """
    by_role = _by_role(recipe)
    train = recipe.train
    _check(recipe, processes)
    length = train.length
    steps = length.count if isinstance(length, Steps) else None
    pace = None if device is None else estimate.pace(recipe, device, processes)
    seconds = None if isinstance(length, Steps) else length.count
    if pace is not None and isinstance(length, Steps):
        seconds = pace.seconds * length.count
    reads = sequences(train)
    memory = estimate.memory(recipe, device or "cpu", processes)
    work = flops(recipe.model)
    size, assumed = estimate.artifact_bytes(recipe)
    facts = referee.RunFacts(device or "cpu", processes, size, train.validate_tokens, scratch=True)
    return DryRun(
        recipe=recipe.name,
        parameters=sum(by_role.values()),
        parameters_by_role=by_role,
        layers=len(recipe.model.layers),
        visits=len(recipe.model.visits),
        loop=None if recipe.model.loop is None else recipe.model.loop._asdict(),
        loops=train.loops,
        tokens_per_step=train.batch * recipe.model.context,
        steps=steps,
        seconds=seconds,
        step_seconds=None if pace is None else pace.seconds,
        step_seconds_source=None if pace is None else pace.source,
        tokens=None if reads is None else reads * recipe.model.context,
        flops_per_token=work._asdict() | {"forward": work.forward, "training": work.training},
        memory=memory,
        memory_bytes=memory.total,
        processes=processes,
        artifact_bytes=size,
        artifact_bytes_source=assumed,
        budget=recipe.pack.budget,
        rules=None if rules is None else _kept(rules, recipe, facts),
        warnings=tuple(estimate.warnings(recipe, memory.total, size, device or "cpu")),
        fingerprint=fingerprint(recipe),
    )


def _kept(rules: Rules, recipe: Recipe, facts: referee.RunFacts) -> RulesBefore:
    """What the rules say before the run."""
    return RulesBefore(name=rules.name, findings=tuple(referee.before(rules, recipe, facts)))


def _by_role(recipe: Recipe) -> dict[str, int]:
    """How many weights each role has."""
    counts: dict[str, int] = {}
    for weight in layout(recipe.model):
        counts[weight.role.value] = counts.get(weight.role.value, 0) + weight.size
    return counts


def _check(recipe: Recipe, processes: int) -> None:
    """Refuse loops that are drawn where there is none, and a batch that cannot be shared."""
    train = recipe.train
    if train.loops is not None:
        recipe.model.passes(train.loops.most)
    Mesh(0, processes, torch.device("cpu")).rows(train.batch, train.accumulation)


def estimate_facts(
    recipe: Recipe, held_out: Tokens | None, mesh: Mesh, *, scratch: bool
) -> referee.RunFacts:
    """What rules are asked about beside the recipe."""
    device = mesh.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    measured = None
    if held_out is not None:
        measured = min(recipe.train.validate_tokens, held_out.count - 1)
    predicted, _ = estimate.artifact_bytes(recipe)
    return referee.RunFacts(
        name,
        mesh.size,
        predicted,
        measured,
        scratch,
        tokenizer=None if held_out is None else held_out.tokenizer,
        text=None if held_out is None else held_out.digest,
    )
