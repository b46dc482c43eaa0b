"""JSON files that people read: specs, scores, evaluations, and whether a file is one of them."""

import json
from pathlib import Path
from typing import Any

from segpt.atomic import write_file
from segpt.config.base import readable
from segpt.errors import SegptError
from segpt.values import Score

LARGEST = 64 << 20  # bytes of a file that is looked at, or of a header


def write_json(path: Path, value: Any) -> None:
    """Write a spec or plain value as readable JSON."""
    write_file(path, readable(value))


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file.

    Raises:
        SegptError: if it is missing or is not JSON.
    """
    try:
        return parse_json(Path(path).read_bytes())
    except OSError as error:
        raise SegptError(f"cannot read {what} {path}: {error.strerror}") from None
    except UnicodeEncodeError:
        raise SegptError(f"{what} {path} holds text that is not Unicode") from None
    except UnicodeDecodeError:
        raise SegptError(f"{what} {path} is not valid JSON: it is not even text") from None
    except (ValueError, RecursionError) as error:
        raise SegptError(f"{what} {path} is not valid JSON: {error}") from None


def parse_json(data: bytes) -> Any:
    """A JSON value whose texts can all be written: escapes can spell half of a surrogate pair."""
    value = json.loads(data)
    if b"\\ud" in data.lower() or b"\xed" in data:  # which Python lets through as well
        json.dumps(value, ensure_ascii=False).encode()  # an error of encoding is a ValueError
    return value


def write_score(path: Path, score: Score) -> None:
    """Write a score as JSON, with the figures of each document."""
    write_json(path, score.plain() | {"by_document": dict(score.by_document)})


def is_score(path: Path) -> bool:
    """Whether a file is what `segpt score --out` writes."""
    return _is_table(path, "bpb", "nats", "origin") or _is_table(path, "baselines", "tasks")


def is_evaluation(path: Path) -> bool:
    """Whether a file is what `segpt eval --out` writes."""
    return _is_table(path, "model", "results", "shots")


def _is_table(path: Path, *keys: str) -> bool:
    """Whether a file is a JSON object with these keys."""
    try:
        if path.stat().st_size > LARGEST:
            return False
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.keys() >= set(keys)
