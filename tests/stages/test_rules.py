"""Runs under rules: what is refused before, when a run ends, and what is found."""

import dataclasses
from typing import Any

import pytest
import torch

from segpt.config.recipe import Recipe, read_recipe
from segpt.config.rules import Finding, Rules, find
from segpt.data.ledger import CoverageLog
from segpt.errors import TrainError
from segpt.stages.rules import RunFacts, after, before, ending, lines
from segpt.train.mesh import Mesh
from segpt.train.trainer import Trainer
from segpt.values import Tokenizer

HERE = RunFacts("cpu", 1, 900_000, 10_485_760, scratch=True)
H100 = RunFacts("NVIDIA H100 80GB HBM3", 8, 900_000, 10_485_760, scratch=True)
TOKENIZER = Tokenizer("bytes", 257)
THEIRS = dataclasses.replace(HERE, tokenizer=TOKENIZER, text="d" * 64)
PINNED: dict[str, Any] = {"tokenizers": (TOKENIZER.fingerprint,), "texts": ("d" * 64,)}
ONCE = ("train.order=sequential", "train.unique=true")


def holds(findings: list[Finding]) -> dict[str, bool | None]:
    return {finding.rule: finding.holds for finding in findings}


def test_what_can_be_known_before_a_run_is() -> None:
    assert holds(before(find("lapp0"), read_recipe("demo", ONCE), HERE)) == {
        "parameters": True,
        "order": True,
        "unique": True,
        "start": True,
        "held-out text": None,
        "text": None,
        "loss": None,
        "time": None,
    }
    golf = before(find("golf"), read_recipe("demo"), HERE)
    assert holds(golf) == {"start": True, "text": None, "time": None, "artifact": None}


SECONDS = "train.length={kind: seconds, count: 2000}"


@pytest.mark.parametrize(
    ("name", "settings", "facts", "words"),
    [
        ("lapp0", ONCE[1:], HERE, ["order is shuffled", "train.order=sequential"]),
        ("lapp0", ONCE[:1], HERE, ["unique is allowed", "train.unique=true"]),
        ("lapp0", (), HERE, ["order is", "; unique is"]),
        ("lapp0", ONCE, dataclasses.replace(HERE, scratch=False), ["start", "--init"]),
        ("lapp0", ONCE, dataclasses.replace(HERE, held_out=None), ["held-out text is 0 tokens"]),
        ("lapp0", (*ONCE, "model.vocab=200000", "model.width=1024"), HERE, ["parameters is 2"]),
        ("lapp0", (*ONCE, SECONDS), H100, ["time is 2,000 s", "1,800 s"]),
        ("golf", (SECONDS,), HERE, ["time is 2,000 s", "600 s"]),
        ("golf", (), dataclasses.replace(HERE, predicted=16_000_001), ["16,000,001 predicted"]),
    ],
)
def test_rules_that_are_broken_before_a_run_stop_it(
    name: str, settings: tuple[str, ...], facts: RunFacts, words: list[str]
) -> None:
    with pytest.raises(TrainError, match=f"the rules {name} are broken before the run") as raised:
        before(find(name), read_recipe("demo", settings), facts)
    assert raised.value.exit_code == 2
    assert all(word in str(raised.value) for word in words), str(raised.value)


def test_other_hardware_is_noted_and_not_judged() -> None:
    # a run of 109 minutes on two small GPUs says nothing about half an hour on eight large ones
    findings = before(find("lapp0"), read_recipe("demo", (*ONCE, SECONDS)), HERE)
    (time,) = [finding for finding in findings if finding.rule == "time"]
    assert time.holds is None
    assert time.note == "it means 8 x H100, and this is 1 x cpu"


def test_other_held_out_text_is_noted() -> None:
    facts = dataclasses.replace(HERE, held_out=16_384)
    findings = before(find("lapp0"), read_recipe("demo", ONCE), facts)
    assert holds(findings)["held-out text"] is None
    assert any("10,485,760 tokens" in line and "16,384 tokens" in line for line in lines(findings))


@pytest.fixture
def run() -> Trainer:
    recipe: Recipe = read_recipe("demo", ["model.width=64", "train.batch=1"])
    return Trainer(recipe.model, recipe.train, Mesh(0, 1, torch.device("cpu")))


def test_a_run_ends_before_a_step_for_which_there_is_no_time(run: Trainer) -> None:
    finish = ending(Rules(name="r", about="", seconds=10.0), run, HERE)
    ended = []
    for took in (1.0, 1.0, 2.5, 1.0, 1.0, 1.0, 1.0):
        run.elapsed += took
        ended.append(finish(run, None))
    assert ended == [False] * 6 + [True]  # at 7.5 s there was time for the longest step, 2.5 s


def test_a_limit_of_time_for_other_hardware_ends_nothing(run: Trainer) -> None:
    finish = ending(dataclasses.replace(find("lapp0"), **PINNED), run, THEIRS)
    run.elapsed = 10_000.0
    assert not finish(run, None)
    assert finish(run, 3.28)
    assert not finish(run, 3.2801)
    assert not finish(run, float("nan"))


def test_a_loss_of_another_text_ends_nothing_and_certifies_nothing(
    run: Trainer,
) -> None:
    """3.28 nats per byte of source code are not 3.28 nats per token of FineWeb."""
    pinned = dataclasses.replace(find("lapp0"), **PINNED)
    recipe = read_recipe("demo", ONCE)
    ledger = CoverageLog(100, 10, 10)
    run.validations.add(1, 1, 3.0, 1.0)
    for rules, facts, known in (
        (find("lapp0"), THEIRS, False),
        (pinned, dataclasses.replace(THEIRS, text="e" * 64), False),
        (pinned, dataclasses.replace(THEIRS, tokenizer=Tokenizer("bytes", 258)), False),
        (pinned, HERE, False),
        (pinned, THEIRS, True),
    ):
        assert ending(rules, run, facts)(run, 3.0) is known
        found = {f.rule: f for f in after(rules, recipe, facts, run, ledger, finished=True)}
        certain = True if known else None
        assert found["loss"].holds is found["text"].holds is certain
        assert found["held-out text"].holds is certain
        assert found["loss"].measured == "3.0000 nats per token"
        assert ("not the contest's figure" in found["loss"].note) is not known
        assert found["text"].limit.startswith("FineWeb's validation text in GPT-2's tokens")
        if facts is not HERE:
            assert found["text"].measured.startswith(f"text {str(facts.text)[:12]} in 25")
        assert ("do not compare with the limit" in found["text"].note) is not known
    run.validations.add(2, 2, 3.5, 1.0)
    worse = after(pinned, recipe, THEIRS, run, ledger, finished=True)
    assert [f.holds for f in worse if f.rule == "loss"] == [False]


def test_findings_line_up() -> None:
    shown = lines([Finding("a", "1", "22", True), Finding("longer", "333", "4", None, "why")])
    assert shown == [
        "           rule    limit  measured",
        "holds      a       1      22",
        "not known  longer  333    4         why",
    ]
