"""A built-in text of some documents, as if Python's library were a few of its modules.

The built-in text takes seconds to collect, and minutes to be learned from and scored.
"""

import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

from segpt.data import corpus

# To be run by a process before anything reads the text; ``place`` is that of ``library``.
BEFORE = """
import sys, sysconfig
path, sys.modules["pydoc_data.topics"] = sysconfig.get_path, None
sysconfig.get_path = lambda name, *more: {place!r} if name == "stdlib" else path(name, *more)
"""


def library(place: Path) -> Path:
    """A directory with some modules of the library; 6 of their documents are held out."""
    place.mkdir()
    for module in Path(sysconfig.get_path("stdlib")).glob("[a-d]*.py"):
        shutil.copy(module, place)
    return place


def use(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process read no more than the library at ``place`` holds."""
    path = sysconfig.get_path
    monkeypatch.setattr(
        sysconfig,
        "get_path",
        lambda name, *more: str(place) if name == "stdlib" else path(name, *more),
    )
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    documents = corpus._documents.__wrapped__()
    monkeypatch.setattr(corpus, "_documents", lambda: documents)
