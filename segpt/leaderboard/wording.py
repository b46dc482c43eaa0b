"""How a track and its entries are put in words and figures, alike on every page."""

from .entry import Baseline, Claim, Record, figure
from .ranking import Ranked
from .track import Metric, Track

NOTHING = "—"

FIGURES: dict[Metric, str] = {"bpb": "BPB", "tokens": "Training tokens", "core": "CORE"}

LIMITED: dict[Metric, str] = {"bpb": "bits per byte", "tokens": "training tokens", "core": "CORE"}


def said(track: Track, value: float | None) -> str:
    """A figure in units of the track's metric."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if track.metric == "tokens" else f"{value:.4f}"


def counted(count: int | None) -> str:
    """A count, with a comma at each thousand."""
    return NOTHING if count is None else f"{count:,}"


def policy_of(entry: Ranked) -> str:
    """The policy that reached the figure, or the program that did."""
    match entry:
        case Record():
            return figure(entry.runs).policy
        case Claim():
            return NOTHING
        case Baseline():
            return f"{entry.program} {entry.version}"


def parameters_of(entry: Ranked) -> int | None:
    return None if isinstance(entry, Baseline) else entry.parameters


def authors_of(entry: Ranked) -> str:
    """Who answers for the entry; nobody does for a baseline."""
    return "" if isinstance(entry, Baseline) else ", ".join(entry.authors)


def limits(track: Track) -> list[tuple[str, str]]:
    """The rules of a track, each with its name."""
    rules = []
    if track.bytes is not None:
        rules.append(("Artifact", f"at most {track.bytes:,} bytes"))
    if track.parameters is not None:
        rules.append(("Parameters", f"at most {track.parameters:,}"))
    if track.metric == "bpb":
        rules.append(("Policies", ", ".join(track.policies)))
    if track.seconds is not None:
        rules.append(("Scoring", f"at most {track.seconds:g} seconds"))
    rules.append(("A new record", _asked(track)))
    return rules


def _asked(track: Track) -> str:
    better = "higher" if track.sign < 0 else "fewer" if track.metric == "tokens" else "lower"
    by = f", by at least {track.margin:g}" if track.margin else ""
    runs = "1 run" if track.seeds == 1 else f"the mean of {track.seeds} runs"
    test = "" if track.significance is None else f", p below {track.significance:g}"
    return f"{better} {LIMITED[track.metric]}{by}, over {runs}{test}"
