"""In lm-evaluation-harness a model of ours says what full passes and ``segpt score`` say."""

import argparse
import codecs
import functools
import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from segpt.artifact.container import load, pack, unpack
from segpt.config.expand import expand
from segpt.config.layout import layout
from segpt.config.score import ScoreSpec
from segpt.data.tokenizer import BYTES
from segpt.errors import ScoreError
from segpt.stages.resolve_spec import score_spec
from segpt.stages.score import score
from segpt.tasks.run_harness import evaluate
from segpt.values import Artifact, Float16Weight, Quantized, Text

ARTIFACT = Path(__file__).resolve().parents[2] / "artifacts" / "demo256-1.segpt"

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

DOCUMENTS = [
    "A short one.",
    "",
    "Naïve 🙂 bytes\r\n\tand\u2028spaces  ",
    # The built-in text would take seconds wherever tests are no more than collected.
    *((module.__doc__ or "")[:1500] for module in (argparse, statistics)),
]
ANSWERS: list[dict[str, Any]] = [
    {"query": "The cat sat on the", "choices": ["mat", "matter of facts", "sun"], "gold": 0},
    {"query": "Two and two is", "choices": ["four", "a", "the end of the story"], "gold": 0},
    {"query": "In the beginning was the", "choices": ["word", "worm"], "gold": 1},
    {"query": "long " * 150 + "is the", "choices": ["day", "night"], "gold": 0},
]
CHOICE = """
task: choose
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{place}/answers.jsonl"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: choices
doc_to_target: gold
target_delimiter: " "
num_fewshot: 0
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
ROLLING = """
task: roll
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{place}/documents.jsonl"}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - {{metric: bits_per_byte}}
metadata: {{version: 2.0}}
"""
BROKEN = CHOICE.replace("choose", "broken").replace("answers", "absent")


@pytest.fixture(scope="module", autouse=True)
def _offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The cache lies in a directory of the test, and nobody looks at the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("cache")))
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
            patch.setenv(name, "1")
        pytest.importorskip("lm_eval")
        yield


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return load(ARTIFACT)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with task files and their data."""
    place = tmp_path_factory.mktemp("tasks")
    rows = {"answers": ANSWERS, "documents": [{"text": text} for text in DOCUMENTS]}
    for name, found in rows.items():
        lines = "".join(json.dumps(row) + "\n" for row in found)
        (place / f"{name}.jsonl").write_text(lines)
    for name, text in {"choice": CHOICE, "rolling": ROLLING, "broken": BROKEN}.items():
        (place / f"{name}.yaml").write_text(text.format(place=place))
    return place


def model_of(value: Artifact | Quantized, **settings: Any) -> Any:
    from segpt.tasks.harness import SegptLM

    return SegptLM(value, device="cpu", **settings)


def asked(*arguments: object) -> Any:
    return SimpleNamespace(args=arguments)


def expected(model: Any, before: list[int], after: list[int]) -> tuple[float, bool]:
    """From one full pass over as much as the model reads."""
    ids = torch.tensor([model.codec.start, *before, *after])[-model.max_length - 1 :]
    count = min(len(after), len(ids) - 1)
    with torch.no_grad():
        rows = model.model(ids[None, :-1])[0, -count:].double()
    found = rows.log_softmax(-1)[torch.arange(count), ids[-count:]]
    return float(found.sum()), bool((rows.argmax(-1) == ids[-count:]).all())


def spelled(spread: float) -> Quantized:
    """A random model of bytes, which is not bound to write characters."""
    spec = expand(
        {
            "vocab": BYTES.vocab,
            "width": 16,
            "context": 16,
            "depth": 2,
            "layer": {
                "mixer": {
                    "heads": 2,
                    "kv_heads": 1,
                    "head_dim": 8,
                    "query_key": ["norm", {"kind": "rope", "dims": 4}],
                },
                "feed": {"hidden": 24},
            },
            "head": {"tied": False, "softcap": 30.0},
        }
    )
    draw = np.random.default_rng(1)
    weights = {
        w.name: Float16Weight(draw.normal(0, spread, w.shape).astype("f2")) for w in layout(spec)
    }
    return Quantized(spec=spec, weights=weights, tokenizer=BYTES, origin={})


def test_two_tasks_from_local_files(artifact: Artifact, tasks: Path) -> None:
    found = evaluate(artifact, ["choose", "ro*"], include=tasks, device="cpu", batch=3)
    model = model_of(artifact)
    right = []
    for row in ANSWERS:
        before = model.tok_encode(row["query"])
        nats = [
            expected(model, before, model.tok_encode(f"{row['query']} {choice}")[len(before) :])
            for choice in row["choices"]
        ]
        right.append(int(np.argmax([one[0] for one in nats])) == row["gold"])
    accuracy = sum(right) / len(right)
    assert found.results["choose"]["acc,none"] == accuracy
    error = math.sqrt(accuracy * (1 - accuracy) / (len(right) - 1))
    assert found.results["choose"]["acc_stderr,none"] == pytest.approx(error)
    assert found.results["roll"]["bits_per_byte,none"] == pytest.approx(bpb(artifact), abs=1e-5)
    assert found.results["roll"]["bits_per_byte_stderr,none"] is None
    plain = json.loads(json.dumps(found.plain()))
    assert plain["model"] == unpack(artifact).fingerprint
    assert plain["samples"] == {"choose": len(ANSWERS), "roll": len(DOCUMENTS)}
    assert plain["shots"] == {"choose": 0, "roll": 0}
    assert plain["versions"]["tasks"] == {"choose": 1.0, "roll": 2.0}
    assert list(plain["versions"]) == ["segpt", "lm_eval", "torch", "tasks"]


@functools.cache
def nats_of(value: Artifact | Quantized, document: str) -> float:
    """What ``segpt score`` says of one document alone."""
    source = unpack(value) if isinstance(value, Artifact) else value
    spec = ScoreSpec(stride=score_spec(source.spec).stride)
    return score(value, Text("a text", lambda: iter([document.encode()])), spec).nats


def bpb(value: Artifact) -> float:
    """Of all documents, each of them alone."""
    nats = sum(nats_of(value, document) for document in DOCUMENTS if document)
    return nats / math.log(2) / sum(len(document.encode()) for document in DOCUMENTS)


@pytest.mark.parametrize("batch", [1, None, "auto"])
def test_documents_cost_what_they_score(artifact: Artifact, batch: int | str | None) -> None:
    model = model_of(artifact, batch_size=batch)
    found = model.loglikelihood_rolling([asked(document) for document in DOCUMENTS])
    assert found[1] == 0
    for document, one in zip(DOCUMENTS, found, strict=True):
        if document:
            assert -one == pytest.approx(nats_of(artifact, document), rel=1e-6)


PAIRS = [
    ("The cat sat on the", " mat"),
    ("The cat sat on the ", "mat and slept"),
    ("", "A beginning"),
    ("long " * 200, " end"),
    ("The end", " long" * 200),
    ("Naïve 🙂", " 🙂🙂"),
    ("un", "likely"),
    ("the", ""),
]


@pytest.mark.parametrize("batch", [1, None])
def test_continuations_cost_what_full_passes_say(artifact: Artifact, batch: int | None) -> None:
    model = model_of(artifact, batch_size=batch)
    found = model.loglikelihood([asked(*pair) for pair in PAIRS])
    for (context, continuation), one in zip(PAIRS, found, strict=True):
        before = model.tok_encode(context.rstrip(" "))
        after = model.tok_encode(context + continuation)[len(before) :]
        wanted = expected(model, before, after) if after else expected(model, [], before)
        assert one[0] == pytest.approx(wanted[0], abs=1e-5, rel=1e-6)
        assert one[1] == wanted[1]


def test_a_context_may_be_shorter(artifact: Artifact) -> None:
    model = model_of(artifact, context=20, stride=5)
    assert model.max_length == 20
    (one,) = model.loglikelihood([asked("The cat sat on the " * 9, "mat")])
    before = model.tok_encode(("The cat sat on the " * 9).rstrip())
    after = model.tok_encode("The cat sat on the " * 9 + "mat")[len(before) :]
    assert one[0] == pytest.approx(expected(model, before, after)[0], abs=1e-5)


def greedy(model: Any, context: str, count: int) -> bytes:
    """By full passes, without a cache."""
    ids = [model.codec.start, *model.tok_encode(context)]
    begun = len(ids)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model.model(torch.tensor([ids]))[0, -1].argmax()))
    return bytes(model.codec.decode(ids[begun:]))


def test_text_is_continued_greedily(artifact: Artifact) -> None:
    model = model_of(artifact)
    wanted = greedy(model, "Once upon a time", 40).decode()
    options: dict[str, Any] = {"until": ["\u2603"], "max_gen_toks": 40, "do_sample": False}
    (found,) = model.generate_until([asked("Once upon a time", options)])
    assert found == wanted
    stop = wanted[len(wanted) // 2 :][:4]
    stopped = model.generate_until(
        [
            asked("Once upon a time", {**options, "until": stop}),
            asked("Once upon a time", {**options, "until": ["\u2603", stop]}),
        ]
    )
    assert stopped == [wanted[: wanted.index(stop)]] * 2
    # Far beyond the context, which slides along.
    (long,) = model.generate_until([asked("Once upon a time " * 40, {"max_gen_toks": 200})])
    assert len(model.tok_encode(long)) > 150


def test_bytes_that_are_no_characters_are_shown_as_such() -> None:
    model = model_of(spelled(0.5))
    odd = 0
    for context in ("", "a", "bc", "xyz", "\n"):
        raw = greedy(model, context, 6)
        wanted = codecs.getincrementaldecoder("utf-8")("replace").decode(raw)
        (found,) = model.generate_until([asked(context, {"max_gen_toks": 6})])
        assert found == wanted
        odd += "\ufffd" in found or len(found.encode()) < len(raw)
    assert odd


def test_sampling_is_refused(artifact: Artifact) -> None:
    with pytest.raises(ScoreError, match="set do_sample: false"):
        model_of(artifact).generate_until([asked("a", {"do_sample": True, "temperature": 0.7})])


def test_others_find_it_by_name(artifact: Artifact, tasks: Path, tmp_path: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.api.registry import get_model
    from lm_eval.tasks import TaskManager

    from segpt.tasks import harness

    harness.register()
    harness.register()
    assert get_model("segpt") is harness.SegptLM
    found = simple_evaluate(
        model="segpt",
        model_args=f"path={ARTIFACT},stride=32",
        tasks=["roll"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        batch_size=2,
        max_batch_size=4,
        device="cpu",
        limit=1,
    )
    assert found["results"]["roll"]["bits_per_byte,none"] > 0
    assert found["config"]["model"] == unpack(artifact).fingerprint


def test_forms_of_a_model_agree(artifact: Artifact) -> None:
    pair = asked("The cat sat on the", " mat")
    quantized = unpack(artifact)
    answers = [model_of(value).loglikelihood([pair]) for value in (artifact, quantized)]
    assert answers[0] == answers[1]
    small = spelled(0.1)
    assert model_of(pack(small)).loglikelihood([pair]) == model_of(small).loglikelihood([pair])


def test_unknown_tasks_and_missing_data_are_named(
    artifact: Artifact, tasks: Path, tmp_path: Path
) -> None:
    with pytest.raises(ScoreError, match=r"'chose'; the nearest of 3 names is 'choose'"):
        evaluate(artifact, ["chose"], include=tasks)
    with pytest.raises(ScoreError, match=r"broken: a task cannot be run .*absent"):
        evaluate(artifact, ["broken"], include=tasks, device="cpu")
    with pytest.raises(ScoreError, match="no task files"):
        evaluate(artifact, ["choose"], include=tmp_path)
    with pytest.raises(ScoreError, match="not a directory"):
        evaluate(artifact, ["choose"], include=tmp_path / "none")
