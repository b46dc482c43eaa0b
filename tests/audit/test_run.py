"""A score is held against its conditions with the engine that made it, here and elsewhere."""

import math
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segpt.artifact.container import pack
from segpt.audit.run import Job, audited, borders_of, independent, replayed
from segpt.config.base import encode
from segpt.config.score import LowRank, Phased, ScoreSpec, Sgd
from segpt.data.text import text_digest
from segpt.errors import ScoreError
from segpt.eval.tally import score_stream
from segpt.stages.json_files import write_json
from segpt.stages.open_model import OpenedModel, open_model
from segpt.stages.read_model import Value
from segpt.stages.score import Accounted, account_for, score
from segpt.values import Checkpoint, Float16Weight, Quantized, Text
from tests import processes
from tests.stages.random_models import CONTEXT, checkpoint

DOCUMENTS = [
    b"The first document says little.",
    "The second one, na\u00efvely, says it again: \U0001f642\r\n\r\n ".encode(),
    b"",
    b"\x00\xff<|endoftext|>",
    b"The third says " + 20 * b"over and " + b"out.",
]
SPEC = ScoreSpec(stride=16)
ADAPTIVE = ScoreSpec(stride=16, policy=Sgd(chunk=64, rate=0.05))


def source() -> Checkpoint:
    return checkpoint(vocab=257)


def quantized() -> Quantized:
    weights = {name: Float16Weight(w.astype(np.float16)) for name, w in source().weights.items()}
    return Quantized(source().spec, weights, source().tokenizer, {})


def scored(value: Value, spec: ScoreSpec) -> tuple[OpenedModel, Accounted, NDArray[np.float64]]:
    """A model, the text for it, and the nats that a score finds."""
    opened = open_model(value)
    accounted = account_for(opened, Text("text", lambda: iter(DOCUMENTS)))
    return opened, accounted, score_stream(opened.model, accounted.ledger, spec, CONTEXT).nats


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """New processes come from one that has loaded torch, where it is not about how they start."""

    def run(words: Sequence[str], **options: Any) -> "subprocess.CompletedProcess[Any]":
        assert words[1] == "-P"
        return processes.run(words[2:], **options)

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "spec", "starts"),
    [
        (lambda: pack(quantized()), ADAPTIVE, "anew"),
        (quantized, SPEC, "forks"),
        (source, ADAPTIVE, "forks"),
    ],
    ids=["artifact", "quantized", "checkpoint"],
)
def test_a_score_passes_its_audit(
    make: Callable[[], Value], spec: ScoreSpec, starts: str, request: pytest.FixtureRequest
) -> None:
    if starts == "forks":
        request.getfixturevalue("forks")
    value = make()
    opened, accounted, nats = scored(value, spec)
    audit = audited(opened, accounted.ledger, DOCUMENTS, spec, nats, seed=1)
    assert not audit.violations, audit.plain()
    assert audit.plain()["fresh_process"] == (
        f"a run in a new process gave the same {len(nats):,} nats, to the last bit"
    )
    assert audit.plain()["whole_text"].startswith("a text of the same length, other from token ")
    assert audit.seed == 1
    assert math.fsum(nats) == score(value, Text("text", lambda: iter(DOCUMENTS)), spec).nats


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
def test_a_score_that_does_not_repeat_is_told_so() -> None:
    opened, accounted, nats = scored(quantized(), SPEC)
    nats[10] = np.nextafter(nats[10], 0)
    whole, again = replayed(opened, DOCUMENTS, accounted.ledger, SPEC, nats, seed=1)
    assert again.violation is not None
    assert "the nats of 1 targets, from target 10 on" in again.violation
    assert whole.violation is not None
    assert "changes the nats of target 10" in whole.violation


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
def test_what_cannot_be_repeated_says_why() -> None:
    opened, accounted, _ = scored(quantized(), SPEC)
    spec = ScoreSpec(context=16, stride=8, loops=3)
    with pytest.raises(ScoreError, match=r"a new process could not repeat the score: .*loop"):
        replayed(opened, DOCUMENTS, accounted.ledger, spec, np.zeros(9))


@pytest.mark.slow
def test_a_job_is_refused_with_another_text(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(pack(quantized()).data)
    (tmp_path / "documents").write_bytes((4).to_bytes(8, "little") + b"text")
    job = Job(
        model=str(tmp_path / "model"),
        documents=str(tmp_path / "documents"),
        digest=text_digest([b"test"]),
        tokens=None,
        probed=str(tmp_path / "probed"),
        score=SPEC,
        device="cpu",
        threads=1,
        out=str(tmp_path / "out"),
    )
    write_json(tmp_path / "job", encode(job))
    process = processes.run(
        ["-m", "segpt.audit.replay", str(tmp_path / "job")], capture_output=True, text=True
    )
    assert process.returncode == 2
    assert "does not hold the documents of digest" in process.stderr
    assert not (tmp_path / "out").exists()


ADAPTERS = LowRank(rank=2, chunk=32)


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        ADAPTIVE,
        ScoreSpec(mode="rolling", policy=Sgd(chunk=64)),
        ScoreSpec(stride=16, boundaries="document", policy=ADAPTERS),
        ScoreSpec(stride=16, boundaries="document", policy=Phased(adapters=ADAPTERS)),
    ],
    ids=["frozen", "sgd", "rolling", "adapters", "phased"],
)
def test_borders_are_where_learning_ends(spec: ScoreSpec) -> None:
    opened, accounted, _ = scored(quantized(), spec)
    ids = accounted.ledger.ids
    entries = score_stream(opened.model, accounted.ledger, spec, CONTEXT).ledger
    learnt = sorted({entry.stop for entry in entries if entry.event == "learn"})
    assert borders_of(ids, spec, CONTEXT, int(ids[0])) == learnt
    assert bool(learnt) == (spec != SPEC)


@pytest.mark.parametrize(
    ("spec", "alone"),
    [
        (ScoreSpec(boundaries="document"), True),
        (ScoreSpec(boundaries="document", policy=ADAPTERS), True),
        (ScoreSpec(), False),
        (ScoreSpec(boundaries="document", policy=Sgd()), False),
        (ScoreSpec(boundaries="document", policy=Phased()), False),
    ],
)
def test_only_some_specs_claim_independent_documents(spec: ScoreSpec, alone: bool) -> None:
    assert independent(spec) is alone
