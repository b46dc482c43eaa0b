"""CORE as data: the tasks, and the values that others have published."""

import csv
import json
from pathlib import Path

import pytest

from segpt.errors import SpecError
from segpt.tasks.core import (
    BY_LABEL,
    TASKS,
    MultipleChoice,
    Schema,
    centred,
    combined,
    core,
    standard_error,
    task,
)
from tests.bundles import SHARED

REFERENCE = sorted(SHARED.glob("openai-community-gpt2*.csv"))

# Accuracies of GPT-2 XL in the order of the tasks, as published with its CORE of 0.256525.
XL = (
    *(0.502, 0.092, 0.531, 0.595, 0.299, 0.67, 0.227, 0.725, 0.346, 0.523, 0.512),
    *(0.714286, 0.569, 0.247, 0.273913, 0.417, 0.157143, 0.09375, 0.309, 0.28, 0.619, 0.25),
)
V2 = {
    "openai-community-gpt2": 0.0881,
    "openai-community-gpt2-medium": 0.1587,
    "openai-community-gpt2-large": 0.1899,
    "openai-community-gpt2-xl": 0.2309,
}


def test_there_are_22_tasks_on_21_files() -> None:
    assert len(TASKS) == len(BY_LABEL) == 22
    assert len({t.path for t in TASKS}) == 21
    assert {t.form for t in TASKS} == {"multiple_choice", "schema", "language_modeling"}
    known = [t for t in TASKS if t.sha256]
    assert len({t.sha256 for t in known}) == len(known) == 19
    assert {t.path.split("/")[1] for t in TASKS if t.blob} == {"hellaswag.jsonl", "squad.jsonl"}


def test_only_three_baselines_differ_between_the_tables() -> None:
    differ = {t.label: (t.v1, t.v2) for t in TASKS if t.baseline("v1") != t.baseline("v2")}
    assert differ == {
        "commonsense_qa": (20, 40.3),
        "agi_eval_lsat_ar": (20, 25),
        "bigbench_language_identification": (9.1, 25),
    }


def test_the_published_core_of_gpt2_xl() -> None:
    accuracies = {t.label: a for t, a in zip(TASKS, XL, strict=True)}
    assert core(accuracies, "v1") == pytest.approx(0.256525, abs=1e-5)
    assert core(accuracies, "v2") == pytest.approx(0.2309, abs=5e-5)


@pytest.mark.skipif(len(REFERENCE) != 4, reason="no published accuracies at hand")
@pytest.mark.parametrize("path", REFERENCE, ids=lambda path: path.stem)
def test_every_published_value_comes_out(path: Path) -> None:
    rows = {label.strip(): rest for label, *rest in csv.reader(path.read_text().splitlines())}
    del rows["Task"]
    (_, expected), accuracies = rows.pop("CORE"), {k: float(v[0]) for k, v in rows.items()}
    assert set(rows) == set(BY_LABEL)
    for label, (accuracy, value) in rows.items():
        found = centred(float(accuracy), task(label).v1)
        assert found == pytest.approx(float(value), abs=1e-5)
    assert core(accuracies, "v1") == pytest.approx(float(expected), abs=1e-5)
    assert core(accuracies, "v2") == pytest.approx(V2[path.stem], abs=5e-5)


@pytest.mark.skipif(not (SHARED / "core_tasks.json").exists(), reason="no table of tasks at hand")
def test_the_tasks_are_those_of_the_table() -> None:
    for row in json.loads((SHARED / "core_tasks.json").read_text()):
        found = task(row["label"])
        assert (found.form, found.shots, found.path) == (row["type"], row["shots"], row["uri"])
        assert (found.delimiter, found.v1, found.v2) == (
            row["delim"],
            row["base_v1"],
            row["base_v2"],
        )
        assert found.items == row["n"] or found.label == "squad"


def test_some_tasks_are_not_core() -> None:
    accuracies = dict.fromkeys(BY_LABEL, 1.0)
    assert core(accuracies, "v1") == 1
    del accuracies["copa"]
    with pytest.raises(SpecError, match=r"all 22 tasks, and copa did not run"):
        core(accuracies, "v1")
    with pytest.raises(SpecError, match=r"no task 'copas'; did you mean 'copa'"):
        core({**accuracies, "copas": 1.0}, "v1")


def test_centred_values_and_their_errors() -> None:
    assert centred(0.25, 25) == 0
    assert centred(1, 62) == 1
    assert centred(0.619, 62) == pytest.approx(-0.002632, abs=1e-6)
    assert standard_error(0.5, 50, 100) == pytest.approx(0.1)
    assert standard_error(0, 0, 10) == 0
    assert combined([0.3, 0.4]) == pytest.approx(0.25)
    assert combined([0.1] + [0.0] * 21) == pytest.approx(0.1 / 22)


@pytest.mark.parametrize("gold", [-1, 2])
def test_gold_is_one_of_the_options(gold: int) -> None:
    with pytest.raises(SpecError, match=f"gold is {gold}, with 2 choices"):
        MultipleChoice(query="q", choices=("a", "b"), gold=gold)
    with pytest.raises(SpecError, match=f"gold is {gold}, with 2 context_options"):
        Schema(context_options=("a", "b"), continuation="c", gold=gold)
