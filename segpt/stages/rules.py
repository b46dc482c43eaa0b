"""A run under the rules of a contest: what holds before it, when it ends, what held after it."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from segpt.config.layout import parameters
from segpt.config.recipe import Recipe
from segpt.config.rules import Finding, Rules, broken, rounded, sentence
from segpt.config.schedule import Seconds
from segpt.data.ledger import CoverageLog
from segpt.data.mix import MixLog
from segpt.errors import TrainError
from segpt.train.loop import Finish
from segpt.train.trainer import Trainer
from segpt.values import Tokenizer

from .tables import aligned

_RECENT = 10  # steps, of which the longest says how long another one may take


@dataclass(frozen=True)
class RunFacts:
    """What findings are made from beside the recipe.

    ``device`` and ``processes`` are what the run computes on; ``predicted`` the bytes that the
    packed file is predicted to take; ``held_out`` how many tokens validation measures on, None
    without held-out text; ``scratch`` whether weights start at random. ``tokenizer`` is what the
    held-out text was tokenized by and ``text`` the digest of that; None before they are known.
    """

    device: str
    processes: int
    predicted: int
    held_out: int | None
    scratch: bool
    tokenizer: Tokenizer | None = None
    text: str | None = None

    def comparable(self, rules: Rules) -> bool:
        """Whether losses are of the text and the tokenizer that the rules mean."""
        named = None if self.tokenizer is None else self.tokenizer.fingerprint
        return rules.comparable(named, self.text)

    @property
    def measures(self) -> str:
        """What losses are of, in words."""
        if self.tokenizer is None or self.text is None:
            return "a text that is not known yet"
        kind, vocab = self.tokenizer.kind, self.tokenizer.vocab
        return f"text {self.text[:12]} in {vocab:,} tokens of kind {kind}"


def before(rules: Rules, recipe: Recipe, facts: RunFacts) -> list[Finding]:
    """What is known before a run.

    Raises:
        TrainError: naming every rule that it would break.
    """
    findings = _known(rules, recipe, facts) + _open(rules, recipe, facts)
    if wrong := broken(findings):
        raise TrainError(f"the rules {rules.name} are broken before the run: {sentence(wrong)}")
    return findings


def after(
    rules: Rules,
    recipe: Recipe,
    facts: RunFacts,
    run: Trainer,
    ledger: CoverageLog | MixLog,
    *,
    finished: bool,
) -> list[Finding]:
    """What is known of a run that goes on or, if ``finished``, is over."""
    findings = _known(rules, recipe, facts)
    results: dict[str, Finding] = {}
    if rules.unique:
        twice = sum(n for often, n in ledger.times().items() if often > 1)
        results["unique"] = Finding("unique", "no target twice", f"{twice:,} targets", twice == 0)
    if rules.order == "sequential":
        in_order = "in order" if ledger.in_order else "out of order"
        results["order"] = Finding("order", "sequential", in_order, ledger.in_order)
    findings = [results.get(finding.rule, finding) for finding in findings]
    if rules.loss is not None:
        nats = run.validations.nats
        reached = nats <= rules.loss
        known = facts.comparable(rules) and (reached or finished)
        after_tokens = f"after {ledger.tokens:,} training tokens"
        note = "" if facts.comparable(rules) else "; not the contest's figure, see text"
        findings.append(
            Finding(
                "loss",
                f"{rules.loss:g} {rules.unit}",
                f"{nats:.4f} nats per token",
                reached if known else None,
                after_tokens + note,
            )
        )
    if rules.seconds is not None:
        timed = rules.timed(facts.device, facts.processes)
        holds = run.elapsed <= rules.seconds
        findings.append(_time(rules, facts, f"{run.elapsed:.1f} s", holds if timed else None))
    if rules.bytes is not None:
        findings.append(_bytes(rules, facts))
    return findings


def ending(rules: Rules, run: Trainer, facts: RunFacts) -> Finish:
    """When the rules end a run: at their loss, or before a step for which there is no time.

    A loss of another text or tokenizer than the rules mean ends nothing.
    """
    comparable = facts.comparable(rules)
    timed = rules.timed(facts.device, facts.processes)
    last = run.elapsed
    recent: deque[float] = deque(maxlen=_RECENT)

    def finish(run: Trainer, nats: float | None) -> bool:
        nonlocal last
        if nats is not None:
            return comparable and rules.loss is not None and nats <= rules.loss
        recent.append(run.elapsed - last)
        last = run.elapsed
        return timed and rules.seconds is not None and run.elapsed + max(recent) > rules.seconds

    return finish


def lines(findings: Sequence[Finding]) -> list[str]:
    """Findings as a table of aligned columns."""
    says = {True: "holds", False: "broken", None: "not known"}
    rows = [(says[f.holds], f.rule, f.limit, f.measured, f.note) for f in findings]
    return aligned([("", "rule", "limit", "measured", ""), *rows])


def _known(rules: Rules, recipe: Recipe, facts: RunFacts) -> list[Finding]:
    """What the recipe and the start of the run decide."""
    findings = []
    if rules.parameters is not None:
        count = parameters(recipe.model)
        note = "" if rules.multiple == 1 else f"rounded to {rules.multiple:,}"
        findings.append(
            Finding(
                "parameters",
                f"{rules.parameters:,}",
                f"{count:,}",
                rounded(count, rules.multiple) <= rules.parameters,
                note,
            )
        )
    if rules.order is not None:
        order = recipe.train.order
        remedy = "" if order == rules.order else f"set train.order={rules.order}"
        findings.append(Finding("order", rules.order, order, order == rules.order, remedy))
    if rules.unique:
        unique = recipe.train.unique
        measured, remedy = ("refused", "") if unique else ("allowed", "set train.unique=true")
        findings.append(Finding("unique", "no target twice", measured, unique, remedy))
    if rules.scratch:
        start = "random" if facts.scratch else "a checkpoint"
        remedy = "" if facts.scratch else "leave out --init"
        findings.append(Finding("start", "random weights", start, facts.scratch, remedy))
    if rules.loss_tokens is not None:
        findings.append(_held_out(rules, facts))
    if rules.text:
        findings.append(_text(rules, facts))
    return findings


def _held_out(rules: Rules, facts: RunFacts) -> Finding:
    """As many tokens of another text are no more the contest's than any other number."""
    held_out = facts.held_out or 0
    as_many = held_out == rules.loss_tokens
    return Finding(
        "held-out text",
        f"{rules.loss_tokens:,} tokens",
        f"{held_out:,} tokens",
        False if not held_out else True if as_many and facts.comparable(rules) else None,
        "" if as_many else "train.validate_tokens, --data",
    )


def _text(rules: Rules, facts: RunFacts) -> Finding:
    comparable = facts.comparable(rules)
    note = f"not known to be the contest's, so its {rules.unit} do not compare with the limit"
    return Finding(
        "text", rules.text, facts.measures, comparable or None, "" if comparable else note
    )


def _open(rules: Rules, recipe: Recipe, facts: RunFacts) -> list[Finding]:
    """What only the run or its artifact decides, as far as it can be said before."""
    findings = []
    if rules.loss is not None:
        findings.append(Finding("loss", f"{rules.loss:g} {rules.unit}", "not yet", None))
    if rules.seconds is not None:
        length = recipe.train.length
        planned = f"{length.count:,.0f} s" if isinstance(length, Seconds) else "not yet"
        over = isinstance(length, Seconds) and length.count > rules.seconds
        timed = rules.timed(facts.device, facts.processes)
        findings.append(_time(rules, facts, planned, False if over and timed else None))
    if rules.bytes is not None:
        findings.append(_bytes(rules, facts))
    return findings


def _time(rules: Rules, facts: RunFacts, measured: str, holds: bool | None) -> Finding:
    note = "of training steps, without validation and saving"
    if rules.device is not None and not rules.timed(facts.device, facts.processes):
        actual = f"{facts.processes} x {facts.device}"
        note = f"it means {rules.processes} x {rules.device}, and this is {actual}"
    return Finding("time", f"{rules.seconds:,.0f} s", measured, holds, note)


def _bytes(rules: Rules, facts: RunFacts) -> Finding:
    assert rules.bytes is not None
    over = facts.predicted > rules.bytes
    return Finding(
        "artifact",
        f"{rules.bytes:,} bytes",
        f"{facts.predicted:,} predicted",
        False if over else None,
        "set quantize.budget or fewer bits" if over else "`segpt pack` measures it",
    )
