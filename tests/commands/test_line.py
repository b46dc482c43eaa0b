"""The line as a user runs it: every field that scripts rely on, and figures that agree."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests import little_text

pytestmark = pytest.mark.slow

FIELDS = {
    "data": {"tokens", "bytes", "documents", "digest"},
    "train": {"steps", "tokens", "loss", "bpb", "tokens_per_second", "parameters"},
    "quantize": {
        "bits_per_weight",
        "bytes",
        "bpb_before",
        "bpb_after",
        "kl_mean",
        "kl_p99",
        "top1_agreement",
    },
    "pack": {"bytes", "budget", "headroom", "digest", "sections"},
    "inspect": {"bytes", "sections", "parameters", "digest"},
    "score": {"bpb", "nats_per_token", "tokens", "bytes", "seconds", "policy", "conditions"},
}


def test_every_stage_prints_its_fields(line: dict[str, Any]) -> None:
    for stage, fields in FIELDS.items():
        assert fields <= line[stage].keys(), stage


def test_figures_agree_from_stage_to_stage(line: dict[str, Any], workplace: Path) -> None:
    artifact = workplace / line["pack"]["out"]
    size = artifact.stat().st_size
    # the file exists, and its size is the one that was reported and compared
    assert size == line["pack"]["bytes"] == line["inspect"]["bytes"] == line["quantize"]["bytes"]
    assert sum(line["inspect"]["sections"].values()) == size
    assert line["pack"]["headroom"] == line["pack"]["budget"] - size
    assert line["inspect"]["parameters"] == line["train"]["parameters"]
    raw = sum(len(d.encode()) for d in _texts(workplace / "held.jsonl"))
    for score in (line["score"], line["ttt"]):
        assert score["bytes"] == raw
        assert math.isclose(score["bpb"], score["nats"] / math.log(2) / raw, rel_tol=1e-12)
    assert line["ttt"]["bpb"] < line["score"]["bpb"]
    assert line["score"]["conditions"]["overlap"] == "none"


def test_commands_run_in_plain_words_too(
    line: dict[str, Any], workplace: Path, run: Callable[..., Any]
) -> None:
    for args in (("inspect", line["pack"]["out"]), ("score", "--stride", "32")):
        done = run(workplace, *args)
        assert done.code == 0
        assert done.stdout
        assert "\r" not in done.stdout + done.stderr  # no bars where there is no terminal


def test_scores_repeat_exactly(
    line: dict[str, Any], workplace: Path, run: Callable[..., Any]
) -> None:
    again = run(workplace, "score", "--ttt", "--json").json
    assert again["nats"] == line["ttt"]["nats"]


def test_a_checkpoint_and_a_quantized_model_can_be_scored(
    line: dict[str, Any], workplace: Path, run: Callable[..., Any]
) -> None:
    quantized = run(workplace, "score", line["quantize"]["out"], "--json").json
    assert quantized["nats"] == line["score"]["nats"]
    checkpoint = run(workplace, "score", line["train"]["checkpoint"], "--json").json
    assert abs(checkpoint["bpb"] - line["score"]["bpb"]) < 0.1


def test_dry_run_tells_the_size_of_the_large_recipes(
    segpt: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    little_text.use(little_text.library(tmp_path / "library"), monkeypatch)
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    for recipe, count in (("golf16", 35_944_536), ("seed004", 25_175_076)):
        shown = segpt("train", "--recipe", recipe, "--dry-run", "--json")
        assert json.loads(shown.stdout)["parameters"] == count
    assert not list(place.iterdir())


def _texts(path: Path) -> list[str]:
    import json

    return [json.loads(row)["text"] for row in path.read_text().splitlines()]
