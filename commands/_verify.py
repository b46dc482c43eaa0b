"""``segpt leaderboard verify``."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segpt.workspace import newest

from . import _entries, _options, _report

if TYPE_CHECKING:
    from segpt.leaderboard.verdict import Verdict


LONGEST = 200  # characters of a value that is shown


@click.command("verify")
@click.argument("names", nargs=-1)
@click.option(
    "--artifact",
    "artifacts",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="An artifact of a record.  May be repeated.",
)
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    help="The text, or a prepared text that held it out.  [default: that of the track]",
)
@click.option("--remake", is_flag=True, help="Make artifacts anew with their recipes.")
@click.option("--append", is_flag=True, help="Add what was found to the leaderboard.")
@click.option("--author", "authors", multiple=True, help="Who verified, for --append.")
@_entries.date_option
@_entries.directory_option
@_options.device
@_options.as_json
def command(
    names: tuple[str, ...],
    artifacts: tuple[Path, ...],
    text: Path | None,
    remake: bool,
    append: bool,
    authors: tuple[str, ...],
    date: str | None,
    directory: Path,
    device: str,
    as_json: bool,
) -> None:
    """Derive all that records and baselines claim again, and compare; exit 1 if a field differs.

    Artifacts are known by their digest and looked for in --artifact, in `artifacts` beside the
    leaderboard, and in the newest run.  Without NAMES, everything whose files are at hand.
    """
    from segpt.leaderboard import store

    if append and not authors:
        raise click.UsageError("--append needs --author: who verified")
    board = store.read_board(directory)

    from segpt.leaderboard import duration, verify
    from segpt.train.mesh import pick

    entries = verify.choose(board, names, remade=remake)
    for path in verify.strangers(entries, artifacts):
        _report.notice(f"{path} is the artifact of no entry that is verified")
    at_hand = [*_near(directory), *artifacts]
    verdicts: list[Verdict] = []
    seconds = {entry.name: duration.seconds_of(entry, remade=remake) for entry in entries}
    with _report.Bar("verify") as bar:

        def report(done: float, detail: str) -> None:
            before = sum(seconds[verdict.entry.name] for verdict in verdicts)
            bar((before + done) / sum(seconds.values()), detail)

        for verdict in verify.verify(
            directory,
            board,
            entries,
            artifacts=at_hand,
            text=text,
            remade=remake,
            device=pick(device),
            report=report,
        ):
            verdicts.append(verdict)
            if not as_json:
                _report.emit({}, False, _lines(verdict))
    result: dict[str, Any] = {"entries": [_plain(verdict) for verdict in verdicts]}
    verified = [verdict for verdict in verdicts if verdict.state is not None]
    failed = not verified or any(v.differs or (names and v.state is None) for v in verdicts)
    if append:
        added = [
            verify.append(
                directory, store.read_board(directory), v, authors, date or _entries.today()
            )
            for v in verified
        ]
        result["added"] = [str(each.path) for each in added]
    states = f"{len(verified)} of {len(verdicts)} entries verified"
    _report.emit(result, as_json, [states, *result.get("added", [])])
    if failed:
        raise SystemExit(1)


def _near(directory: Path) -> list[Path]:
    """The artifacts beside the leaderboard, and the newest one."""
    last = newest.latest("artifact")
    beside = sorted((directory.resolve().parent / "artifacts").glob("*.segpt"))
    return beside if last is None else [*beside, last]


def _lines(verdict: "Verdict") -> Sequence[str]:
    name = verdict.entry.name
    lines = [
        f"{name}: {c.what}: claimed {c.claimed:.6f} bpb, measured {c.measured:.6f}, "
        f"{c.difference:+.1e}: {'the same' if c.agrees else 'DIFFERS'}"
        for c in verdict.comparisons
    ]
    for fact in verdict.refuted:
        remedy = f"; {fact.remedy}" if fact.remedy else ""
        claimed, derived = _short(fact.claimed), _short(fact.derived)
        lines.append(f"{name}: {fact.field}: claimed {claimed}, derived {derived}: DIFFERS{remedy}")
    lines += [f"{name}: {finding}" for finding in verdict.findings]
    refused = "NOT VERIFIED" if verdict.differs else ""
    end = "; ".join(filter(None, (verdict.missing, refused))) or verdict.state or "NOT VERIFIED"
    lines.append(f"{name}: {end}")
    if verdict.facts and not verdict.refuted:
        lines.append(f"{name}: {len(verdict.facts)} other fields derived again, all the same")
    return lines


def _short(value: Any) -> str:
    """A value of a record on one line, which says nothing to a terminal."""
    if value is None:
        return "nothing"
    text = f"{value:,}" if type(value) is int else json.dumps(value, default=str)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _plain(verdict: "Verdict") -> dict[str, Any]:
    return {
        "name": verdict.entry.name,
        "track": verdict.entry.track,
        "state": verdict.state,
        "missing": verdict.missing,
        "comparisons": [{**c._asdict(), "difference": c.difference} for c in verdict.comparisons],
        "fields": [fact._asdict() for fact in verdict.facts],
        "findings": list(verdict.findings),
    }
