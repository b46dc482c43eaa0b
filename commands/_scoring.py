"""The bits per byte of ``segpt score``: the score itself, and what is asked for beside it."""

import contextlib
import dataclasses
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segpt.atomic import remove_directory
from segpt.audit.run import audited
from segpt.coding.prove import packed, prove
from segpt.config.base import encode, fingerprint
from segpt.config.model import ModelSpec
from segpt.config.recipe import read_recipe
from segpt.config.score import ScoreSpec
from segpt.data.shards import Shards, read_shards
from segpt.data.text import read_text
from segpt.errors import CheckpointError, InterruptError, SpecError
from segpt.locks import locked
from segpt.stages import json_files, resolve_spec, score, unfinished, value_directory
from segpt.stages.open_model import OpenedModel, Value, identity_of, open_model, read_model
from segpt.stages.score import Accounted
from segpt.stages.threads import rounded_otherwise
from segpt.train.mesh import Mesh, joined
from segpt.values import Arrays, Checkpoint, Quantized, Score, Text

from . import _latest, _report, _signals, _texts

SCORING = _latest.RUNS / "scoring"  # where an interrupted score lies
RESULT = "result"  # under this name in its origin, once it was resumed and finished
Found = tuple[dict[str, Any], list[str]]


def run(path: Path, texts: Sequence[Path], options: Mapping[str, Any]) -> Found | None:
    """Score a model on texts; the result as JSON values and as lines for people.

    ``options`` are those of ``segpt score``. None in a process that does not lead.
    """
    with joined(options["device"]) as mesh:
        with mesh.all_well():
            if mesh.size > 1 and (options["audit"] or options["prove"]):
                raise SpecError(
                    "--audit and --prove run in one process; start them without torchrun"
                )
            opened = open_model(read_model(path), str(mesh.device))
            text, plain_text = _read(opened.source, path, texts, options)
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
        named = [plain_text or _plain_text(accounted)]
        _texts.say(named)
        if mesh.leads:
            _report.notice(f"model: {path}")
        call = _call(path, texts, options)
        runner = _Runner(path, opened, accounted, mesh, options["limit"], call)
        runner.audit_seed = options["audit_seed"]
        if options["resume"] and (known := runner.known(spec)) is not None:
            if not mesh.leads:
                return None
            _report.notice("this score is finished: nothing is left to do")
            return known
        result = runner.score(spec, resume=options["resume"])
        plain = dict(result.plain()) | {"texts": named}
        lines = _lines(result, verbose=options["verbose"])
        if len(counts) > 1:
            curve = [runner.score(dataclasses.replace(spec, loops=n)).bpb for n in counts]
            plain["loops"] = [{"loops": n, "bpb": b} for n, b in zip(counts, curve, strict=True)]
            lines += [
                f"  loops {n}: {b:.4f} bits per byte" for n, b in zip(counts, curve, strict=True)
            ]
        if options["gain"]:
            strided = runner.score(_strided(spec, opened.spec))
            gain = 1 - result.bpb / strided.bpb
            plain |= {"bpb_strided": strided.bpb, "gain": gain}
            lines.append(f"  gain: {100 * gain:.2f} % over {strided.bpb:.4f}, strided and frozen")
        if mesh.leads and options["out"] is not None:
            json_files.write_score(options["out"], result)
        for name, check in {"audit": runner.audit, "prove": runner.prove}.items():
            if options[name]:
                assert isinstance(text, Text)  # as was checked
                more, more_lines = check(spec, result, text)
                plain |= more
                lines += more_lines
        if options["resume"]:
            runner.keep(spec, plain, lines)
        return (plain, lines) if mesh.leads else None


class _Runner:
    """Scores of one model on one text."""

    def __init__(
        self,
        path: Path,
        opened: OpenedModel,
        text: Accounted,
        mesh: Mesh,
        limit: float | None,
        call: str,
    ) -> None:
        self.path, self.opened, self.text, self.call = path, opened, text, call
        self.device, self.leads, self.limit = str(mesh.device), mesh.leads, limit
        self.audit_seed: int | None = None
        self.suffix = "" if mesh.size == 1 else f"-{mesh.rank}-of-{mesh.size}"

    def score(self, spec: ScoreSpec, *, resume: bool = False) -> Score:
        """Score once; what an interrupted call leaves lies in ``runs/scoring``."""
        place, origin = self._place(spec)
        before = self._begun(place, origin) if resume else None

        def save(state: Arrays) -> None:
            kept = _with_surroundings(state, self.device)
            unfinished.save_scoring(place, kept, origin | {"begun": self.call})

        with (
            _report.Bar(f"score {self.path.name}") as bar,
            _signals.Signals() as stop,
            locked(place),
            self._told(),
        ):
            result = score.score(
                self.opened,
                self.text,
                spec,
                limit_seconds=self.limit,
                report=lambda p: bar(p.done / p.total, f"BPB {p.bpb:.4f}") if self.leads else None,
                breaks=score.Breaks(stop, save, before),
            )
        remove_directory(place)
        return result

    def known(self, spec: ScoreSpec) -> Found | None:
        """The result of this score, if it was interrupted, resumed and finished before."""
        place, origin = self._place(spec)
        if not place.exists():
            return None
        unfinished.read_scoring(place, origin)
        result = value_directory.read_header(place, "scoring")["origin"].get(RESULT)
        if result is None:
            return None
        try:
            plain, lines = json.loads(result)
            return dict(plain), list(map(str, lines))
        except (TypeError, ValueError, RecursionError):
            raise CheckpointError(
                f"{place} is damaged: its result is no list of values and lines; remove it"
            ) from None

    def keep(self, spec: ScoreSpec, plain: Mapping[str, Any], lines: Sequence[str]) -> None:
        """Keep the result of a score that was resumed, so that a loop that resumes it can end."""
        place, origin = self._place(spec)
        result = json.dumps([plain, lines])
        unfinished.save_scoring(place, {}, origin | {"begun": self.call, RESULT: result})

    def _place(self, spec: ScoreSpec) -> tuple[Path, dict[str, str]]:
        """Where this score lies while it is under way, and what says which one it is."""
        origin = {
            "model": self.opened.identity,
            "text": self.text.digest,
            "score": fingerprint(spec),
        }
        return SCORING / f"{fingerprint(origin)}{self.suffix}", origin

    def _begun(self, place: Path, origin: Mapping[str, str]) -> Arrays:
        """What an interrupted score left; a line if this one adds up sums in another order."""
        stem = place.name.removesuffix(self.suffix)
        others = [*place.parent.glob(stem), *place.parent.glob(f"{stem}-0-of-*")]
        if not place.exists() and others:
            count = others[0].name.rpartition("-of-")[2] if others[0].name != stem else "1"
            raise CheckpointError(
                f"this score was begun by {count} of torchrun's processes, and each has its own "
                "part; resume with as many, or leave out --resume"
            )
        state = unfinished.read_scoring(place, origin)
        line = rounded_otherwise("the score", _surroundings(state), _here(self.device))
        if self.leads and line is not None:
            _report.notice(line)
        return state

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Say how to go on after a signal."""
        try:
            yield
        except InterruptError as error:
            line = shlex.join(["segpt", "score", str(self.path), "--resume"])
            raise InterruptError(f"{error}: {line}") from None

    def audit(self, spec: ScoreSpec, result: Score, text: Text) -> Found:
        """Hold the score against its conditions."""
        assert result.by_target is not None
        with _report.Bar(f"audit {self.path.name}"):
            outcome = audited(
                self.opened,
                self.text.ledger,
                list(text),
                spec,
                result.by_target,
                seed=self.audit_seed,
            )
        states = outcome.plain()
        plain = {
            "audit": states,
            "audit_seed": outcome.seed,
            "violations": [c.name for c in outcome.violations],
        }
        lines = [f"  audit, {name}: {state}" for name, state in states.items()]
        chosen = "drawn for this audit" if self.audit_seed is None else "chosen on the command line"
        lines.append(f"  audit, seed: {outcome.seed}, {chosen} (--audit-seed repeats an audit)")
        return plain, lines

    def prove(self, spec: ScoreSpec, result: Score, text: Text) -> Found:
        """Compress the text and have a new process decompress it."""
        with _report.Bar(f"prove {self.path.name}") as bar:
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


def _here(device: str) -> dict[str, str]:
    """What a score depends on in its last bits."""
    threads = str(torch.get_num_threads())
    return {"device": device, "threads": threads, "torch": torch.__version__}


def _with_surroundings(state: Arrays, device: str) -> Arrays:
    """The state of a score, and what it was computed on as bytes of JSON."""
    text = json.dumps(_here(device)).encode()
    return {**state, "surroundings": np.frombuffer(text, np.uint8)}


def _surroundings(state: Arrays) -> dict[str, str]:
    """What a state says it was computed on; nothing if it does not."""
    try:
        return dict(json.loads(bytes(state["surroundings"])))
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}


def _check_checks(value: Value, text: Text | Shards, options: Mapping[str, Any]) -> None:
    """Refuse what cannot be audited or proved before anything is scored."""
    for name in ("audit", "prove"):
        if options[name] and isinstance(text, Shards):
            raise SpecError(f"--{name} needs the text itself, not token shards; name text files")
    if options["audit_seed"] is not None and not options["audit"]:
        raise SpecError("--audit-seed is for --audit; add it, or leave the seed out")
    if options["prove"]:
        packed(value)


def _call(path: Path, texts: Sequence[Path], options: Mapping[str, Any]) -> str:
    """What an interrupted call leaves behind, so that it goes on without repeating anything."""
    kept = {name: str(v) if isinstance(v, Path) else v for name, v in options.items()}
    return json.dumps({"model": str(path), "texts": list(map(str, texts)), "options": kept})


def begun(
    model: Path | None, options: Mapping[str, Any]
) -> tuple[Path, tuple[Path, ...], dict[str, Any]]:
    """The model, texts and options of the score that was interrupted last.

    ``options`` are those that were given now, which are few: they count.

    Raises:
        CheckpointError: if there is none, of this model where one is named.
    """
    identity = None if model is None else identity_of(read_model(model))
    newest = sorted(SCORING.glob("*/header.json"), key=lambda p: p.stat().st_mtime, reverse=True)
    origins = {p.parent: value_directory.read_header(p.parent, "scoring")["origin"] for p in newest}
    for place in sorted(origins, key=lambda place: RESULT in origins[place]):  # finished ones last
        if identity not in (None, origins[place].get("model")):
            continue
        before = unfinished.begun(place, "scoring")
        try:
            path, texts = Path(before["model"]), tuple(map(Path, before["texts"]))
            kept = dict(before["options"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{place} is incomplete: {error!r}") from None
        kept["out"] = None if kept.get("out") is None else Path(kept["out"])
        kept["settings"] = tuple(kept.get("settings", ()))
        return model or path, texts, kept | {"resume": True} | dict(options)
    of = "" if model is None else f" of {model}"
    raise CheckpointError(
        f"no score{of} was interrupted here: nothing to resume; leave out --resume"
    )


def _plain_text(text: Accounted) -> dict[str, Any]:
    size = text.ledger.raw or text.ledger.bytes
    return {"name": text.name, "split": None, "bytes": size, "digest": text.digest, "place": None}


def _read(
    source: Quantized | Checkpoint, path: Path, texts: Sequence[Path], options: Mapping[str, Any]
) -> tuple[Text | Shards, dict[str, Any] | None]:
    """The text, and what is known of it before it is read."""
    shards = [text for text in texts if text.suffix == ".bin"]
    if not shards:
        if options["truncate"] is not None:
            raise SpecError("--truncate is for token shards; leave it out")
        if not texts:
            return _texts.validation(source, path)
        if [*map(str, texts)] == [_texts.BUILTIN] and not texts[0].exists():
            return _texts.builtin_validation()
        if len(texts) == 1 and _latest.is_text(texts[0]):
            return _texts.held_out(texts[0])
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
        ),
        settings=options["settings"],
    )


def _strided(spec: ScoreSpec, model: ModelSpec) -> ScoreSpec:
    """What the gain of a score is over: the same weights, strided, learning nothing."""
    plain = resolve_spec.strided_spec(model)
    return dataclasses.replace(plain, batch=spec.batch, loops=spec.loops)


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
    method = str(conditions["mode"]) + (f", --ttt {'+'.join(learnt)}" if learnt else "")
    lines = [
        f"{result.bpb:.4f} bits per byte on {result.text} ({result.bytes:,} bytes, {method})",
        f"{result.nats_per_token:.4f} nats per token, {result.tokens:,} tokens, "
        f"{result.seconds:.1f} s",
        _checks(result),
    ]
    if verbose:
        lines += [f"  {name}: {state}" for name, state in conditions.items()]
    return lines


def _checks(result: Score) -> str:
    """Which conditions hold, and what is to be said of the others."""
    conditions = result.conditions
    passed = [n for n in ("coverage", "causal", "normalised", "order") if n in conditions]
    others = []
    if result.denominator == "bytes":
        passed.append("bytes")
    else:
        others.append(f"bytes: {conditions['bytes']}")
    if conditions["overlap"] == "none":
        passed.append("overlap")
    else:
        others.append(f"overlap: {conditions['overlap']}")
    if "contest" in conditions:
        others.append(f"contest: {conditions['contest']}")
    return "; ".join([f"checks: {', '.join(passed)} ok", *others])
