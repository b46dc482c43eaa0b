"""Which commit of segpt runs, read from the checkout without running git."""

import re
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_REF = re.compile(r"ref: (refs/[\w./-]+)")


def commit(root: Path = _ROOT) -> str | None:
    """The commit that the checkout at ``root`` is at, or None where there is no checkout.

    Changes to its files that are not committed are not seen.
    """
    try:
        git = root / ".git"
        if git.is_file():  # a linked work tree, which names its directory
            git = root / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if (named := _REF.fullmatch(head)) is not None:
            head = _resolved(git, named[1])
    except (OSError, ValueError):
        return None
    return head if _COMMIT.fullmatch(head) else None


def _resolved(git: Path, ref: str) -> str:
    shared = git / "commondir"
    places = [git, git / shared.read_text(encoding="utf-8").strip()] if shared.is_file() else [git]
    for place in places:
        if (loose := place / ref).is_file():
            return loose.read_text(encoding="utf-8").strip()
    for place in places:
        if (packed := place / "packed-refs").is_file():
            lines = (line.split() for line in packed.read_text(encoding="utf-8").splitlines())
            commits = [words[0] for words in lines if words[1:] == [ref]]
            if commits:
                return commits[0]
    return ""
