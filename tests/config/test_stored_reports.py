"""What is stored about runs, models and scores is read as it is, and written back unchanged."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from segpt.config.base import canonical, decode, encode
from segpt.config.conditions import READING, Conditions, ReadingConditions, stored_policy
from segpt.config.environment import Environment, Versions
from segpt.config.kernels import Kernels
from segpt.config.ngram import Ngram
from segpt.config.quant_report import QuantReport
from segpt.config.run_about import RunAbout, SplitAbout, TextAbout
from segpt.config.score import Frozen, InPlace, LowRank, Phased, Policy, ScoreSpec, Sgd
from segpt.errors import SpecError

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = {"segpt": "0.1.0", "torch": "2.9.0", "numpy": "2.3.1", "python": "3.11.9"}
READ = {
    "tokens": 384,
    "blocks": 24,
    "epochs": 0.75,
    "distinct": 384,
    "times": {"0": 128, "1": 384},
    "left_out": 0,
    "in_order": True,
    "digest": "d" * 64,
}
SPLIT = {
    "name": "builtin/train",
    "split": "train",
    "tokens": 513,
    "bytes": 2000,
    "digest": "e" * 64,
    "text_digest": "f" * 64,
    "tokenizer": "0" * 16,
}
FINDING = {"rule": "loss", "limit": "3.28", "measured": "4.1", "holds": None, "note": ""}
AVERAGE = {"steps": [1, 2], "decay": None, "checkpoints": ["a", "b"]}
RECIPE = {"name": "of another day", "unheard": [1, {"kind": "of"}]}

# What checkpoints of each form say of their run, the oldest first.
ABOUT: dict[str, dict[str, Any]] = {
    "nothing": {},
    "first": {
        "recipe": RECIPE,
        "seconds": 1.5,
        "tokens": 384,
        "text": {"split": "train", "tokens": 513, "digest": "e" * 64},
        "processes": 1,
        "device": "cpu",
        "versions": VERSIONS,
    },
    "with what was read": {
        "recipe": RECIPE,
        "seconds": 1.5,
        "tokens": 384,
        "read": READ,
        "text": {"split": "train", "tokens": 513, "digest": "e" * 64},
        "processes": 1,
        "device": "cpu",
        "threads": 2,
        "commit": None,
        "versions": VERSIONS,
        "best": {"step": 3, "bpb": 2.5},
    },
    "now": {
        "recipe": RECIPE,
        "seconds": 1.5,
        "tokens": 384,
        "read": READ,
        "text": SPLIT | {"place": "runs/data/x", "validation": SPLIT},
        "finished": False,
        "processes": 1,
        "device": "cpu",
        "threads": 2,
        "fewest_threads": 1,
        "commit": "a" * 40,
        "versions": VERSIONS,
        "best": {"step": 3, "bpb": 2.5},
        "rules": {"name": "golf", "finished": True, "findings": [FINDING]},
        "average": AVERAGE,
    },
    "without held-out text": {"text": SPLIT | {"place": "runs/data/x", "validation": None}},
}

GROUP = {"parameters": 8, "bits_per_weight": 3.5, "error": None, "damage": 0.0}
CODED = {
    "role": "matrix",
    "layer": "0",
    "parameters": 8,
    "bits_per_weight": 3.5,
    "error": 0.25,
    "output_error": None,
    "damage": None,
    "fallback": False,
}
SUMMARY = {
    "weights": {
        "half": CODED | {"layer": None},
        "trellis": CODED | {"damage": 0.5, "states": 8, "step": 0.125},
        "grid": CODED | {"bits": 6, "k": 12.85, "group": None, "damping": 0.01},
        "nearest": CODED | {"bits": 16, "k": None, "group": 4, "damping": None},
    },
    "roles": {"matrix": GROUP},
    "layers": {"0": GROUP},
    "parameters": 32,
    "bits_per_weight": 3.5,
    "fallbacks": ["grid"],
}
QUALITY = {
    "bpb_before": 2.0,
    "bpb_after": 2.5,
    "loss_before": 1.0,
    "loss_after": 1.25,
    "kl_mean": 0.01,
    "kl_p99": 0.1,
    "top1_agreement": 0.9,
    "tokens": 100,
    "bytes": 300,
}
CURVE = {"dots": [[2.5, 0.5], [3.0, 0.25]], "here": [3.5, 0.125], "tokens": 8192}
REPORT: dict[str, dict[str, Any]] = {
    "not measured": SUMMARY | {"quality": None},
    "with a budget": SUMMARY | {"quality": QUALITY, "budget": 1000},
    "now": SUMMARY
    | {"quality": QUALITY, "budget": 1000, "spec": {"kind": "quant_spec"}, "text": SPLIT}
    | {"recipe": "demo", "measured_on": "the first 100 tokens", "curve": CURVE},
    "of an unknown text": SUMMARY | {"quality": QUALITY, "text": None},
}


@pytest.mark.parametrize("form", ABOUT)
def test_what_a_checkpoint_says_of_its_run_stays(form: str) -> None:
    written = encode(decode(RunAbout, ABOUT[form]))
    assert json.dumps(written) == json.dumps(ABOUT[form])  # in the same order, too


@pytest.mark.parametrize("form", REPORT)
def test_what_a_quantized_model_says_of_itself_stays(form: str) -> None:
    written = encode(decode(QuantReport, REPORT[form]))
    assert json.dumps(written) == json.dumps(REPORT[form])


def test_what_is_not_known_is_not_what_is_none() -> None:
    first, bare = (decode(RunAbout, ABOUT[form]) for form in ("first", "nothing"))
    assert first.text is not None
    assert first.text.validation == SplitAbout()
    alone = decode(RunAbout, ABOUT["without held-out text"])
    assert alone.text is not None
    assert alone.text.validation is None
    assert bare.environment == Environment()
    assert (bare.text, bare.environment.commit) == (None, "")
    assert decode(QuantReport, REPORT["not measured"]).text == TextAbout()
    assert decode(QuantReport, REPORT["of an unknown text"]).text is None


def test_the_conditions_of_all_records_are_read_and_stay() -> None:
    count = 0
    for path in sorted((ROOT / "leaderboard" / "records").glob("*.json")):
        entry = json.loads(path.read_bytes())["entry"]
        for run in entry.get("runs", []):
            for line in run["scores"]:
                conditions = decode(Conditions, line["conditions"])
                assert canonical(conditions) == canonical(line["conditions"])
                again = conditions.reading.spec(line["policy"])
                kept = ReadingConditions.of(again, conditions.reading.model_context or 0)
                assert kept == conditions.reading
                assert canonical(stored_policy(again)) == canonical(line["policy"])
                count += 1
    assert count > 0


POLICIES: tuple[Policy, ...] = (
    Frozen(),
    Sgd(chunk=16, rate=0.25, roles=("head",), anneal="cosine"),
    LowRank(rank=2, roles=("matrix",)),
    Phased(adapters=LowRank(rank=2), fractions=(0.5,)),
    InPlace(),
    InPlace(rate=0.1),
)
READINGS: tuple[dict[str, Any], ...] = (
    {"mode": "strided", "stride": 8},
    {"mode": "strided", "stride": 3, "context": 40, "batch": 2, "loops": 2},
    {"mode": "rolling"},
    {"mode": "rolling", "context": 9, "boundaries": "document"},
    {"mode": "strided", "stride": 1, "kernels": Kernels(attention="reference")},
)


@pytest.mark.parametrize(
    ("policy", "reading", "ngram"),
    list(itertools.product(POLICIES, READINGS, (None, Ngram(orders=(0, 2))))),
)
def test_conditions_and_policy_give_the_spec_back(
    policy: Policy, reading: dict[str, Any], ngram: Ngram | None
) -> None:
    spec = ScoreSpec(policy=policy, ngram=ngram, **reading)
    stored = json.loads(json.dumps([encode(ReadingConditions.of(spec, 16)), stored_policy(spec)]))
    conditions, learnt = stored
    again = ReadingConditions.read(conditions | {"overlap": "none"}).spec(learnt)
    assert again == dataclasses.replace(spec, context=spec.reach(16))
    assert set(READING) <= conditions.keys()


@pytest.mark.parametrize("name", READING)
def test_conditions_that_do_not_say_how_a_text_was_read_are_refused(name: str) -> None:
    conditions = encode(ReadingConditions.of(ScoreSpec(), 16))
    del conditions[name]
    with pytest.raises(SpecError, match=f"its conditions do not say {name}; score it anew"):
        ReadingConditions.read(conditions)


def test_an_environment_names_what_took_part() -> None:
    environment = Environment(device="cpu", threads=2, versions=Versions(segpt="1", torch="2"))
    assert encode(environment) == {
        "device": "cpu",
        "threads": 2,
        "versions": {"segpt": "1", "torch": "2"},
    }
