"""The bits per byte of ``segpt score``: the score itself, and what is asked for beside it."""

import contextlib
import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from segpt.atomic import remove_directory
from segpt.audit.run import audited
from segpt.coding.prove import packed, prove
from segpt.config.base import encode
from segpt.config.model import ModelSpec
from segpt.config.recipe import read_recipe
from segpt.config.score import ScoreSpec
from segpt.data.shards import Shards, read_shards
from segpt.data.text import read_text
from segpt.errors import InterruptError, SpecError
from segpt.locks import locked
from segpt.stages import json_files, resolve_spec, score
from segpt.stages.open_model import OpenedModel, open_model
from segpt.stages.read_model import Value
from segpt.stages.score import Accounted
from segpt.train.mesh import Mesh, joined
from segpt.values import Arrays, Checkpoint, Quantized, Score, Text
from segpt.workspace import model_text, newest, prepared
from segpt.workspace.begun_score import Result, ScoreCall, ScoreTask
from segpt.workspace.prepared import NamedText

from . import _report, _signals, _texts


def run(call: ScoreCall, value: Value) -> Result | None:
    """Score the model of a value on texts; the result as JSON values and as lines for people.

    None in a process that does not lead.
    """
    options = call.options
    with joined(options["device"]) as mesh:
        with mesh.all_well():
            if mesh.size > 1 and (options["audit"] or options["prove"]):
                raise SpecError(
                    "--audit and --prove run in one process; start them without torchrun"
                )
            opened = open_model(value, str(mesh.device))
            text, already = _read(opened.source, call)
            _check_checks(opened.value, text, options)
            counts = _loops(options["loops"])
            spec = _spec(opened.spec, options, counts[0] if len(counts) == 1 else None)
            accounted = score.account_for(opened, text)
        mesh.agree(
            {
                "model": opened.identity,
                "text": {"tokens": accounted.ledger.targets, "digest": accounted.digest},
                "score": encode(spec),
                "--loops": counts,
                **{f"--{name}": options[name] for name in ("resume", "gain")},
            }
        )
        named = already or _name(accounted)
        _texts.say([named])
        if mesh.leads:
            _report.notice(f"model: {call.model}")
        runner = _Runner(call, opened, accounted, mesh)
        task = runner.task(spec)
        if options["resume"] and (kept := task.result()) is not None:
            if not mesh.leads:
                return None
            _report.notice("this score is finished: nothing is left to do")
            return kept
        result = runner.score(spec, resume=options["resume"])
        plain = result.plain() | {"texts": [encode(named)]}
        lines = _lines(result, verbose=options["verbose"])
        for more, said in _beside(runner, spec, result, text, counts):
            plain |= more
            lines += said
        if options["resume"]:
            task.keep(plain, lines)
        return (plain, lines) if mesh.leads else None


def _beside(
    runner: "_Runner",
    spec: ScoreSpec,
    result: Score,
    text: Text | Shards,
    counts: Sequence[int | None],
) -> Iterator[Result]:
    """What is asked for beside the score: other numbers of loops, the gain, the checks."""
    options = runner.call.options
    if len(counts) > 1:
        curve = [(n, runner.score(dataclasses.replace(spec, loops=n)).bpb) for n in counts]
        lines = [f"  loops {n}: {b:.4f} bits per byte" for n, b in curve]
        yield {"loops": [{"loops": n, "bpb": b} for n, b in curve]}, lines
    if options["gain"]:
        strided = runner.score(_strided(spec, runner.opened.spec))
        gain = 1 - result.bpb / strided.bpb
        line = f"  gain: {100 * gain:.2f} % over {strided.bpb:.4f}, strided and frozen"
        yield {"bpb_strided": strided.bpb, "gain": gain}, [line]
    if runner.leads and options["out"] is not None:
        json_files.write_score(options["out"], result)
    for name, check in {"audit": runner.audit, "prove": runner.prove}.items():
        if options[name]:
            assert isinstance(text, Text)  # as was checked
            yield check(spec, result, text)


class _Runner:
    """Scores of one model on one text."""

    def __init__(
        self,
        call: ScoreCall,
        opened: OpenedModel,
        text: Accounted,
        mesh: Mesh,
    ) -> None:
        self.call, self.opened, self.text = call, opened, text
        self.device, self.leads = str(mesh.device), mesh.leads
        self.suffix = "" if mesh.size == 1 else f"-{mesh.rank}-of-{mesh.size}"

    def task(self, spec: ScoreSpec) -> ScoreTask:
        """A score, and where it lies while it is under way."""
        return ScoreTask(
            self.call, self.opened.identity, self.text.digest, spec, self.device, self.suffix
        )

    def score(self, spec: ScoreSpec, *, resume: bool = False) -> Score:
        """Score once; what an interrupted call leaves lies in ``runs/scoring``."""
        task = self.task(spec)
        before = self._state(task) if resume else None
        with (
            _report.Bar(f"score {self.call.model.name}") as bar,
            _signals.Signals() as stop,
            locked(task.place),
            self._said_how_to_go_on(),
        ):
            result = score.score(
                self.opened,
                self.text,
                spec,
                limit_seconds=self.call.options["limit"],
                report=lambda p: bar(p.done / p.total, f"BPB {p.bpb:.4f}") if self.leads else None,
                breaks=score.Breaks(stop, task.save, before),
            )
        remove_directory(task.place)
        return result

    def _state(self, task: ScoreTask) -> Arrays:
        """What an interrupted score left; a line if this one adds up sums in another order."""
        state = task.state()
        line = task.rounded_otherwise(state)
        if self.leads and line is not None:
            _report.notice(line)
        return state

    @contextlib.contextmanager
    def _said_how_to_go_on(self) -> Iterator[None]:
        """After a signal the error says which command goes on."""
        try:
            yield
        except InterruptError as error:
            line = shlex.join(["segpt", "score", str(self.call.model), "--resume"])
            raise InterruptError(f"{error}: {line}") from None

    def audit(self, spec: ScoreSpec, result: Score, text: Text) -> Result:
        """Hold the score against its conditions."""
        assert result.by_target is not None
        seed = self.call.options["audit_seed"]
        with _report.Bar(f"audit {self.call.model.name}"):
            verdict = audited(
                self.opened,
                self.text.ledger,
                list(text),
                spec,
                result.by_target,
                seed=seed,
            )
        states = verdict.plain()
        plain = {
            "audit": states,
            "audit_seed": verdict.seed,
            "violations": [c.name for c in verdict.violations],
        }
        lines = [f"  audit, {name}: {state}" for name, state in states.items()]
        chosen = "drawn for this audit" if seed is None else "chosen on the command line"
        lines.append(f"  audit, seed: {verdict.seed}, {chosen} (--audit-seed repeats an audit)")
        return plain, lines

    def prove(self, spec: ScoreSpec, result: Score, text: Text) -> Result:
        """Compress the text and have a new process decompress it."""
        with _report.Bar(f"prove {self.call.model.name}") as bar:
            proof = prove(
                self.opened,
                text,
                spec,
                nats=result.nats,
                report=lambda what, done, total: bar(done / total, what),
            )
        return {"proof": proof.plain()}, [
            f"  proof: {proof.bytes:,} bytes of text in {proof.message:,} bytes, "
            f"{proof.bpb:.4f} bits per byte with the head of the file; a new process gave the "
            f"text back in {proof.decompression:.1f} s",
            f"  proof: the code stream is {100 * proof.gap:+.3f} % of what the score says",
        ]


def _check_checks(value: Value, text: Text | Shards, options: Mapping[str, Any]) -> None:
    """Refuse what cannot be audited or proved before anything is scored."""
    for name in ("audit", "prove"):
        if options[name] and isinstance(text, Shards):
            raise SpecError(f"--{name} needs the text itself, not token shards; name text files")
    if options["audit_seed"] is not None and not options["audit"]:
        raise SpecError("--audit-seed is for --audit; add it, or leave the seed out")
    if options["prove"]:
        packed(value)


def _name(text: Accounted) -> NamedText:
    size = text.ledger.raw or text.ledger.bytes
    return NamedText(name=text.name, split=None, bytes=size, digest=text.digest, place=None)


def _read(
    source: Quantized | Checkpoint, call: ScoreCall
) -> tuple[Text | Shards, NamedText | None]:
    """The text, and what is known of it before it is read."""
    texts, options = call.texts, call.options
    shards = [text for text in texts if text.suffix == ".bin"]
    if not shards:
        if options["truncate"] is not None:
            raise SpecError("--truncate is for token shards; leave it out")
        if not texts:
            return model_text.validation(source, call.model)
        if len(texts) == 1 and prepared.is_builtin(texts[0]):
            return prepared.builtin_validation()
        if len(texts) == 1 and newest.is_text(texts[0]):
            return prepared.held_out(texts[0])
        return read_text(texts, field=options["field"], notice=_report.notice), None
    if len(shards) < len(texts):
        raise SpecError("token shards and other texts cannot be scored together; score each alone")
    return (
        read_shards(
            shards, source.tokenizer, vocab=source.spec.vocab, sequence=options["truncate"]
        ),
        None,
    )


def _spec(model: ModelSpec, options: Mapping[str, Any], loops: int | None) -> ScoreSpec:
    recipe = options["recipe"]
    return resolve_spec.score_spec(
        model,
        policy=options["policy"],
        recipe=read_recipe(recipe) if recipe else None,
        reading=resolve_spec.Reading(
            mode=options["mode"],
            boundaries=options["boundaries"],
            stride=options["stride"],
            context=options["context"],
            loops=loops,
            precision=options.get("precision"),  # an older call that goes on has none
        ),
        settings=options["settings"],
    )


def _strided(spec: ScoreSpec, model: ModelSpec) -> ScoreSpec:
    """What the gain of a score is over: the same weights, strided, learning nothing."""
    plain = resolve_spec.strided_spec(model)
    return dataclasses.replace(plain, batch=spec.batch, loops=spec.loops, precision=spec.precision)


def _loops(text: str | None) -> list[int | None]:
    if text is None:
        return [None]
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise SpecError(f"--loops {text!r}: write how often, e.g. 2, or several, e.g. 1,2,4")
    return list(counts)


def _lines(result: Score, *, verbose: bool) -> list[str]:
    """The score in one line, and what was checked in another; all conditions if ``verbose``."""
    conditions, policy = result.conditions, result.policy
    learnt = [] if policy["kind"] == "frozen" else [policy["kind"]]
    learnt += ["ngram"] * ("ngram" in policy)
    method = conditions.reading.mode + (f", --ttt {'+'.join(learnt)}" if learnt else "")
    lines = [
        f"{result.bpb:.4f} bits per byte on {result.text} ({result.bytes:,} bytes, {method})",
        f"{result.nats_per_token:.4f} nats per token, {result.tokens:,} tokens, "
        f"{result.seconds:.1f} s",
        _checks(result),
    ]
    if verbose:
        lines += [f"  {name}: {state}" for name, state in encode(conditions).items()]
    return lines


def _checks(result: Score) -> str:
    """Which conditions hold, and what is to be said of the others."""
    conditions = result.conditions
    passed, others = ["coverage", "causal", "normalised", "order"], []
    if result.denominator == "bytes":
        passed.append("bytes")
    else:
        others.append(f"bytes: {conditions.bytes}")
    if conditions.overlap == "none":
        passed.append("overlap")
    else:
        others.append(f"overlap: {conditions.overlap}")
    if conditions.contest:
        others.append(f"contest: {conditions.contest}")
    return "; ".join([f"checks: {', '.join(passed)} ok", *others])
