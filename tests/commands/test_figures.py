"""Every figure says what it is of, and nothing stands in a table that is empty."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segpt.__main__ import load_commands

Run = Callable[..., Any]


@pytest.fixture
def copy(line: dict[str, Any], workplace: Path, tmp_path: Path) -> Path:
    """A copy of the directory in which the line was run, to change at will."""
    return shutil.copytree(workplace, tmp_path / "copy")


def report() -> Any:
    """The module that prints."""
    load_commands()
    import importlib

    return importlib.import_module("segpt.commands._report")


@pytest.mark.slow
def test_score_prints_one_result_and_one_line_of_checks(
    line: dict[str, Any], copy: Path, run: Run
) -> None:
    done = run(copy, "score")
    first, second, third = done.stdout.splitlines()
    score = line["score"]
    assert first.startswith(f"{score['bpb']:.4f} bits per byte on ")
    assert f"{score['bytes']:,} bytes, {score['conditions']['mode']})" in first
    assert "nats per token" in second
    assert third == "checks: coverage, causal, normalised, order, bytes, overlap ok"
    whole = run(copy, "score", "--verbose").stdout
    for name in ("coverage", "causal", "text", "versions"):
        assert f"  {name}: " in whole
    moved = copy / "alone.segpt"
    moved.write_bytes((copy / line["pack"]["out"]).read_bytes())
    done = run(copy, "score", "--ttt", moved, "held.jsonl")
    assert ", --ttt sgd)" in done.stdout or ", --ttt low_rank+ngram)" in done.stdout
    assert "; overlap: unchecked: no document list" in done.stdout
    assert done.stdout.count("\n") == 3


@pytest.mark.slow
def test_train_and_quantize_say_what_their_figures_are_of(
    line: dict[str, Any], copy: Path, run: Run
) -> None:
    chunks = "the first 1,024 tokens of the validation split, in chunks of 32"
    assert line["train"]["bpb_of"] == line["quantize"]["bpb_of"] == chunks
    packed = 8 * line["quantize"]["bytes"] / line["train"]["parameters"]
    assert line["quantize"]["bits_per_weight"] == pytest.approx(packed)
    told = run(copy, "quantize", "--method", "nearest", "--out", "rounded").stdout
    assert f" on {chunks}\n" in told
    assert "about bits each" in told
    assert "damage" not in told  # nearest knows none: the column would be empty
    trained = run(copy, "train", "--recipe", "tiny.yaml", "--out", "again", "--steps", "2")
    assert f" on {chunks}\n" in trained.stdout


def test_empty_columns_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    report().table("t", ["name", "bytes", "error"], [["a", "1", ""], ["b", "22", ""]])
    told = capsys.readouterr().out
    assert "error" not in told
    assert "bytes" in told
    report().table("t", ["name", "error"], [])
    assert "error" in capsys.readouterr().out
