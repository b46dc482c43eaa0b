"""CORE from end to end: the same answers as one text after another gives, and sooner."""

import json
import random
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from segpt.data.tokenizer import BYTES, load
from segpt.errors import DataError, ScoreError, SpecError
from segpt.model.model import Model
from segpt.stages.open_model import from_checkpoint
from segpt.tasks.core import TASKS, Task, centred, core, task
from segpt.tasks.core_bundle import read_bundle, read_items
from segpt.tasks.evaluate_core import CoreProgress, choose, core_lines, evaluate
from segpt.tasks.prompts import arrange, example
from segpt.tasks.subject import Subject, of_model
from tests.bundles import SHARED, write_bundle, write_table
from tests.processes import in_two
from tests.stages.random_models import checkpoint

SCRIPT = Path(__file__).with_name("two_askers.py")
MIXED = "copa,winogrande,arc_easy,agi_eval_lsat_ar,jeopardy"


@cache
def model() -> Model:
    return from_checkpoint(checkpoint(vocab=BYTES.vocab))


def subject(context: int = 1024) -> Subject:
    return of_model(model(), load(BYTES), context)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle"), items=12)


def alike(sequences: list[list[int]]) -> int:
    """How many tokens all sequences begin with."""
    length = 0
    while len({tuple(each[: length + 1]) for each in sequences}) == 1:
        length += 1
    return length


def asked_alone(kind: Task, records: Sequence[dict[str, Any]], index: int) -> bool:
    """One item by the rules as they are written down: each text on its own, nothing shared."""
    others = [record for i, record in enumerate(records) if i != index]
    shots = random.Random(1234 + index).sample(others, kind.shots)
    record, between = records[index], kind.delimiter
    ids: list[list[int]] = []
    if kind.form == "language_modeling":
        head = "".join(
            f"{shot['context'].strip()}{between}{shot['continuation']}\n\n" for shot in shots
        )
        text = f"{head}{record['context'].strip()}{between}"
        ids = [[256, *text.rstrip().encode()], [256, *(text + record["continuation"]).encode()]]
        begins = [len(ids[0])] * 2
    elif kind.form == "multiple_choice":
        head = "".join(f"{s['query']}{between}{s['choices'][s['gold']]}\n\n" for s in shots)
        texts = [f"{head}{record['query']}{between}{choice}" for choice in record["choices"]]
        ids = [[256, *text.encode()] for text in texts]
        begins = [alike(ids)] * 4
    else:
        texts = [f"{c}{between}{record['continuation']}" for c in record["context_options"]]
        ids = [[256, *text.encode()] for text in texts]
        shared = alike([each[::-1] for each in ids])
        begins = [len(each) - shared for each in ids]
    means, greedy = [], False
    for tokens, begin in zip(ids, begins, strict=True):
        if begin == len(tokens):
            continue  # the prompt of language modeling
        with torch.no_grad():
            logits = model().logits(model().hidden(torch.tensor([tokens[:-1]])).x)[0, begin - 1 :]
        targets = torch.tensor(tokens[begin:])
        means.append(float(F.cross_entropy(logits, targets)))
        greedy = bool((logits.argmax(-1) == targets).all())
    return greedy if kind.form == "language_modeling" else means.index(min(means)) == record["gold"]


@pytest.mark.slow
def test_the_accuracies_are_those_of_each_text_on_its_own(place: Path) -> None:
    tasks = choose(MIXED)
    result = evaluate(subject(), read_bundle(place), tasks)
    for each in result.tasks:
        lines = (place / "eval_data" / each.task.path).read_text().splitlines()
        records = [json.loads(line) for line in lines]
        random.Random(1337).shuffle(records)
        expected = [asked_alone(each.task, records, i) for i in range(len(records))]
        assert (each.right, each.items, each.moved) == (sum(expected), 12, 0)
        assert each.cropped == 0
        assert each.rate == each.items / each.seconds
        assert each.centred == centred(each.right / 12, each.task.v1)


def test_what_is_not_core_is_not_called_so(place: Path) -> None:
    result = evaluate(subject(), read_bundle(place), choose("copa,winograd"))
    assert result.core is None
    assert result.name == "CORE-2 (not CORE)"
    plain = json.loads(json.dumps(result.plain()))
    assert "core" not in plain
    assert plain["mean"] == pytest.approx(sum(t.centred for t in result.tasks) / 2)
    assert list(plain["tasks"]) == ["copa", "winograd"]
    assert not plain["verbatim"]
    lines = core_lines(result)
    assert lines[-2].startswith("CORE-2 (not CORE): ")
    assert "baselines v1" in lines[-2]
    assert lines[-1] == "not from the original files: copa, winograd"


def test_all_22_tasks_make_core(place: Path) -> None:
    seen: list[CoreProgress] = []
    result = evaluate(subject(64), read_bundle(place), max_per_task=11, report=seen.append)
    accuracies = {each.task.label: each.accuracy for each in result.tasks}
    assert list(accuracies) == [t.label for t in TASKS]
    assert result.core == result.mean == core(accuracies, "v1")
    assert result.plain()["core"] == result.core
    assert result.error == pytest.approx(sum(t.error**2 for t in result.tasks) ** 0.5 / 22)
    assert {each.items for each in result.tasks} == {11}
    assert {each.cropped for each in result.tasks if each.task.shots == 10} == {11}
    assert [(p.task, p.done, p.total, p.through, p.tasks) for p in seen] == [
        (t.label, 11, 11, i, 22) for i, t in enumerate(TASKS)
    ]
    assert core_lines(result)[-3].startswith(f"CORE: {result.core:.4f} ± ")
    assert core_lines(result)[-2].startswith("at most 11 items per task")


def test_the_table_of_baselines_is_named(place: Path, tmp_path: Path) -> None:
    chosen = choose("commonsense_qa")
    by = {
        name: evaluate(subject(), read_bundle(place), chosen, baselines=name)
        for name in ("v1", "v2")
    }
    assert by["v1"].tasks[0].right == by["v2"].tasks[0].right
    assert by["v1"].tasks[0].centred > by["v2"].tasks[0].centred
    assert (by["v1"].plain()["baselines"], by["v2"].plain()["baselines"]) == ("v1", "v2")
    other = write_bundle(tmp_path)
    write_table(other, commonsense_qa="33")
    with pytest.raises(ScoreError, match="of no table that is known; name v1 or v2"):
        evaluate(subject(), read_bundle(other), chosen)
    assert evaluate(subject(), read_bundle(other), chosen, baselines="v2").baselines == "v2"


def test_tasks_are_chosen_by_label() -> None:
    assert choose("all") == TASKS
    assert [t.label for t in choose("piqa, copa,piqa")] == ["copa", "piqa"]
    with pytest.raises(SpecError, match="no task 'pica'; did you mean 'piqa'"):
        choose("copa,pica")
    with pytest.raises(SpecError, match="no task ''"):
        choose("")


def test_what_cannot_run_says_why(place: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="raise --max-per-task to at least 11"):
        evaluate(subject(), read_bundle(place), choose("arc_easy"), max_per_task=10)
    with pytest.raises(ScoreError, match="no task to run"):
        evaluate(subject(), read_bundle(place), [])
    other = write_bundle(tmp_path)
    (other / "eval_data" / task("piqa").path).unlink()
    with pytest.raises(DataError, match="so piqa cannot run; name only tasks"):
        evaluate(subject(), read_bundle(other), choose("copa,piqa"))


def measure_speedup(asked: Subject, place: Path, kind: Task, most: int) -> float:
    """How many times as many examples per second as one candidate after another."""
    items = arrange(read_items(read_bundle(place), kind)[0], most)
    begun = time.perf_counter()
    for i in range(len(items)):
        for request in example(kind, items, i, asked).requests:
            tokens = torch.tensor([[*request.context, *request.continuation]])
            scored = len(request.continuation)
            with torch.no_grad():
                logits = model().logits(model().hidden(tokens[:, :-1], last=scored).x)[0]
                F.cross_entropy(logits, tokens[0, -scored:])
    alone = time.perf_counter() - begun
    result = evaluate(asked, read_bundle(place), [kind], max_per_task=most)
    return alone / result.tasks[0].seconds


@pytest.mark.slow
def test_candidates_together_are_faster_than_each_alone(place: Path) -> None:
    asked, kind = subject(), task("arc_easy")
    found = [measure_speedup(asked, place, kind, 12) for _ in range(3)]
    assert max(found) > 1.5, found


@pytest.mark.slow
def test_two_processes_return_the_result_of_one(place: Path, tmp_path: Path) -> None:
    broken = write_bundle(tmp_path)
    (broken / "eval_data" / task("jeopardy").path).write_text("{")
    alone = evaluate(subject(), read_bundle(place), choose(MIXED), max_per_task=11)
    expected = [[t.task.label, t.right, t.items, t.cropped, t.moved] for t in alone.tasks]
    (first, failed), (second, told) = in_two(SCRIPT, MIXED, str(place), str(broken), last=2)
    assert first == second == [alone.mean, 2, expected]
    assert failed == "another process could not do its part of CORE; see its message"
    assert "jeopardy_all.jsonl:1: not a JSON object" in told


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "core.yaml").exists(), reason="no CORE bundle at hand")
def test_the_real_tasks_run() -> None:
    result = evaluate(subject(128), read_bundle(SHARED), max_per_task=11)
    assert len(result.tasks) == 22
    assert {each.items for each in result.tasks} == {11}
    altered = {each.task.label for each in result.tasks if not each.source.verbatim}
    assert altered == {"hellaswag", "hellaswag_zeroshot", "squad"}
