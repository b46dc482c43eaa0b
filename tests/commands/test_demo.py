"""``segpt demo``: its fields on a tiny model, and in the campaign its promises over seeds."""

import json
import os
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import pytest

from tests import little_text, processes

TINY = (
    "tokenizer.vocab=512",
    "model.vocab=512",
    "model.width=48",
    "model.depth=1",
    "model.layer.mixer.heads=1",
    "model.layer.feed.hidden=64",
    "train.length.count=20",
    "train.validate_tokens=2048",
    "quantize.calibration_tokens=4096",
    "quantize.report_tokens=4096",
)


MAIN = "from segpt.__main__ import main\nmain()\n"


@pytest.mark.slow
def test_the_demo_prints_its_fields(run: Callable[..., Any], tmp_path: Path) -> None:
    settings = [word for setting in TINY for word in ("--set", setting)]
    before = little_text.BEFORE.format(place=str(little_text.library(tmp_path / "library")))
    done = processes.run(
        ["-c", f"{before}{MAIN}", "demo", "--json", "--budget", "100000", *settings],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CI": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {"rows", "artifact", "bytes", "budget", "bpb", "bpb_ttt", "seconds"} <= result.keys()
    assert set(result["compressors"]) == {"gzip", "bzip2", "xz", "zstd", "brotli"}
    assert all({"step", "bytes", "artifact", "bpb"} <= row.keys() for row in result["rows"])
    assert result["text"]["mode"] == "rolling"
    for row in result["rows"]:  # like with like: every row says what the same text takes
        assert row["bytes"] == round(row["bpb"] * result["text"]["bytes"] / 8)
        assert row["artifact"] == (result["bytes"] if row["step"].startswith("score") else None)
    assert result["measured_on"].endswith(" tokens of the validation split, in chunks of 256")
    artifact = tmp_path / result["artifact"]
    assert artifact.stat().st_size == result["bytes"] <= result["budget"] == 100_000
    assert result["bpb_ttt"] < result["bpb"]
    assert 1.5 < result["compressors"]["brotli"] < result["compressors"]["gzip"] < 4
    page = (tmp_path / result["report"]).read_text(encoding="utf-8")
    assert result["report"] == str(Path(result["artifact"]).with_name("report.html"))
    assert "Not there yet" not in page
    for row in result["rows"]:
        assert f'<th scope="row">{escape(row["step"])}</th>' in page
        assert f'<td class="n">{row["bpb"]:.4f}</td>' in page
    again = run(tmp_path, "report", "--json").json
    assert again["out"] == result["report"]
    assert again["missing"] == {}
    assert (tmp_path / again["out"]).read_text(encoding="utf-8") == page


@pytest.mark.campaign
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_demo_keeps_its_promises(run: Callable[..., Any], tmp_path: Path, seed: int) -> None:
    result = run(tmp_path, "demo", "--json", "--seed", seed, timeout=1800, OMP_NUM_THREADS="2").json
    assert result["bytes"] <= result["budget"] == 1_000_000
    assert result["quantization_cost"] <= 0.02
    assert result["bpb_ttt"] <= 0.98 * result["bpb"]
    assert result["bpb_ttt"] < result["compressors"]["xz"]
