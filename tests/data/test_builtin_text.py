"""The built-in text: large enough, split without a leak, the same each time."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from segpt.data.corpus import builtin, sections
from segpt.data.text import text_digest

SOURCE = '''"""About the module.

    # not a comment, but a line of the docstring
"""
import os

# Above the function,
# on two lines.
def outer(
    first, second=2
):
    """What it does."""
    #
    # Inside.
    text = """
# not a comment either
"""  # nor this
    return f"""
# nor this {
        text}
"""


class Empty: pass


class Full(Empty):
    r"""Of \\d."""

    async def method(self):
        """Waits."""
'''


def test_sections_are_docstrings_under_their_definitions_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(SOURCE)
    assert [section.definition + section.text for section in sections(path)] == [
        "About the module.\n\n# not a comment, but a line of the docstring",
        "Above the function,\non two lines.",
        "def outer(\n    first, second=2\n):\nWhat it does.",
        "Inside.",
        "class Full(Empty):\nOf \\d.",
        "    async def method(self):\nWaits.",
    ]


def test_files_that_are_not_python_have_no_sections(tmp_path: Path) -> None:
    path = tmp_path / "template.py"
    for broken in (b"def {{name}}(:", b"# coding: nonsense\n", b"x = '\xff'"):
        path.write_bytes(broken)
        assert sections(path) == []


def test_splits_have_their_sizes_and_share_nothing() -> None:
    train, validation = list(builtin("train")), list(builtin("validation"))
    assert sum(map(len, train)) > 2_500_000
    assert 150_000 < sum(map(len, validation)) < 320_000
    assert len({*train, *validation}) == len(train) + len(validation)
    sizes = sorted(map(len, train + validation))
    assert sizes[len(sizes) // 20] >= 500
    assert sizes[len(sizes) // 2] < 8_000 < sizes[-1] < 16_000


def test_paragraphs_of_the_validation_text_are_not_in_the_training_text() -> None:
    known = {p.strip() for d in builtin("train") for p in d.split(b"\n\n")}
    paragraphs = [p.strip() for d in builtin("validation") for p in d.split(b"\n\n")]
    leaked = sum(len(p) for p in paragraphs if len(p) >= 80 and p in known)
    assert leaked < 0.005 * sum(map(len, paragraphs))


def test_neighbours_are_related() -> None:
    """A document shares more words with the next than with one far away."""
    words = [set(document.split()) for document in builtin("validation")]
    near = [len(a & b) / len(a | b) for a, b in pairwise(words)]
    far = [len(a & b) / len(a | b) for a, b in zip(words, words[len(words) // 2 :], strict=False)]
    assert sum(near) / len(near) > 1.05 * sum(far) / len(far)


def test_reading_again_gives_the_same() -> None:
    text = builtin("validation")
    assert list(text) == list(text)
    assert text.name == "builtin/validation"


@pytest.mark.slow
def test_another_process_reads_the_same() -> None:
    code = (
        "from segpt.data.corpus import builtin; from segpt.data.text import text_digest;"
        "import sys; sys.stdout.write(text_digest(builtin('train')))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    digest = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert digest == text_digest(builtin("train"))
