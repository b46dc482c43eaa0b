"""The codec benchmark: what it measures, goes on with, merges and concludes."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench import codec, page
from bench.codec import Subject, main, measured, merged
from bench.schemes import CLIPS, HEADLINE, RATES, STEPS, Scheme, field, more, schemes
from bench.summary import summary
from segpt.config.base import fingerprint
from segpt.config.quant import QuantSpec
from segpt.errors import DataError, SegptError
from segpt.stages import checkpoint_io

from .conftest import Made

ROOT = Path(__file__).resolve().parents[2]
TINY: dict[str, Any] = {"calibration_tokens": 512, "report_tokens": 16}


def point(name: str, family: str, size: float, kl: float, **more: Any) -> dict[str, Any]:
    documents = {"loss": [kl, 2 * kl, 3 * kl], "divergence": [kl, kl, kl]}
    about: dict[str, Any] = {
        "name": name,
        "family": family,
        "bytes": size,
        "kl": kl,
        "documents": documents,
    }
    coders = {"brotli-11": size, "segpt": 0.98 * size} if family == "field" else {"segpt": size}
    rest: dict[str, Any] = {"bits_per_weight": size / 100, "kl_error": kl / 20, "bpb_gap": kl / 3}
    rest |= {"coders": coders, "seconds": 1.0, "fingerprint": name}
    return about | rest | more


def curve(factor: float = 0.8, above: float = 1.0) -> list[dict[str, Any]]:
    """Points of a model: the field halves KL every 100 bytes; ours is as good in 0.8 of these."""

    def kl(size: float) -> float:
        return float(2 ** (-size / 100))

    found = [point(f"field k={k:g}", "field", 900 - 20 * k, kl(900 - 20 * k)) for k in CLIPS]
    for method in ("rd", "trellis"):
        for rate in RATES:
            size = 190 * rate
            found.append(point(f"{method} {rate:g}", method, factor * size, above * kl(size)))
    return found + [point(name, "steps", 0.9 * 665, kl(665)) for name, _ in STEPS]


def entry(name: str = "one", **more: Any) -> dict[str, Any]:
    about = {"name": name, "fingerprint": name, "parameters": 800, "points": curve()}
    return about | more


def test_what_is_planned_has_one_name_each_and_the_headline_first() -> None:
    planned = schemes(16)
    names = [scheme.name for scheme in planned]
    assert names[0] == HEADLINE
    assert len(set(names)) == len(names)
    assert len({fingerprint(scheme.spec) for scheme in planned}) == len(names)
    assert {f"{m} {r:g}" for m in ("rd", "trellis") for r in RATES} < set(names)


def test_the_defaults_of_the_package_are_the_headline() -> None:
    """So that the ingredients, one after the other, end at what people get."""
    (headline,) = (s.spec for s in schemes(16) if s.name == HEADLINE)
    assert headline == QuantSpec(rate=3.5, calibration_tokens=65_536, report_tokens=16)


def test_the_curve_of_the_field_is_extended_as_far_as_ours_goes() -> None:
    points = [p for p in curve() if p["name"] != "trellis 4"]
    points.append(point("trellis 4", "trellis", 600, 0.5 * min(p["kl"] for p in points)))
    extra = more(points, 16)
    assert extra is not None
    assert extra.name == "field k=4.8"


def test_the_headline_gets_points_at_its_bytes_and_at_its_kl() -> None:
    points, names = curve(), []
    while (extra := more(points, 16)) is not None:
        k = float(extra.name.split("=")[1])
        names.append(k)
        assert len(names) < 5
        points.append(point(extra.name, "field", 900 - 20 * k, 2 ** (-(900 - 20 * k) / 100)))
    (best,) = (p for p in points if p["name"] == HEADLINE)
    theirs = [p for p in points if p["family"] == "field"]
    assert min(abs(p["bytes"] / best["bytes"] - 1) for p in theirs) < 0.02
    assert min(abs(p["kl"] / best["kl"] - 1) for p in theirs) < 0.1


def test_no_point_is_added_before_the_planned_ones_are_there() -> None:
    points = curve()
    assert more(points[1:], 16) is None
    assert more([p for p in points if p["name"] != HEADLINE], 16) is None


def test_the_summary_finds_what_was_put_in() -> None:
    found = summary([entry("one"), entry("two")])
    for rate in (3.0, 3.5, 4.0):
        assert found["by_rate"]["bytes_at_equal_kl"][f"trellis {rate:g}"]["mean"] == pytest.approx(
            0.8
        )
    head = found["headline"]
    assert found["bytes_at_equal_kl"] == head["bytes_at_equal_kl"]["mean"]
    assert found["kl_at_equal_bytes"] == head["kl_at_equal_bytes"]["mean"]
    assert head["bytes_at_equal_kl"]["error"] == pytest.approx(0.0)
    assert head["kl_at_equal_bytes"]["mean"] == pytest.approx(2 ** (-0.2 * 665 / 100))
    assert head["bpb_gap_ratio"]["mean"] == pytest.approx(2 ** (-0.2 * 665 / 100))
    assert head["bpb_gap_ratio_pooled"]["value"] == pytest.approx(2 ** (-0.2 * 665 / 100))
    assert head["kl_ratio_pooled"]["error"] == pytest.approx(0.0, abs=1e-9)
    steps = found["ingredients"]
    assert steps[0]["over_the_field"]["mean"] == pytest.approx(0.98)
    assert steps[1]["over_the_line_before"]["mean"] == pytest.approx(0.9 / 0.98)
    assert steps[-1]["over_the_field"]["mean"] == pytest.approx(0.8)
    assert found["coders"]["segpt"]["mean"] == pytest.approx(0.98)


def test_what_is_not_covered_is_missing() -> None:
    few = [p for p in curve() if p["name"] in ("field k=18", "field k=25", HEADLINE)]
    found = summary([entry(points=few)])
    assert found["headline"]["bytes_at_equal_kl"]["mean"] is None
    assert found["by_rate"]["bytes_at_equal_kl"]["rd 3"]["mean"] is None
    assert summary([])["headline"]["bpb_gap_ratio_pooled"] is None


def result(*entries: dict[str, Any]) -> dict[str, Any]:
    text = {"validation": {"digest": "d", "bytes": 1000, "tokens": 300, "documents": 3}}
    listed = list(entries)
    return {"what": "w", "text": text, "checkpoints": listed, "summary": summary(listed)}


def test_merging_keeps_the_newest_of_each_point() -> None:
    old = entry("two", points=[point("seed", "seed", 1.0, 1.0)])
    new = entry("two", points=[point("seed", "seed", 2.0, 1.0), point(HEADLINE, "trellis", 1, 1)])
    found = merged([result(old), result(entry("one")), result(new)])
    assert [e["name"] for e in found["checkpoints"]] == ["one", "two"]
    assert [p["bytes"] for p in found["checkpoints"][1]["points"]] == [2.0, 1]
    with pytest.raises(DataError, match="different texts"):
        merged([result(old), result(new) | {"text": {}}])
    with pytest.raises(DataError, match="nothing to merge"):
        merged([])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["seed", "field", "ours"])
def test_a_point_is_measured(subject: Subject, name: str) -> None:
    rules = field(9, 16).spec.rules
    scheme = {
        "seed": Scheme("seed", "seed", QuantSpec(method="nearest", rules=rules, **TINY)),
        "field": Scheme("field k=9", "field", QuantSpec(method="gptq", rules=rules, **TINY)),
        "ours": Scheme("x", "trellis", QuantSpec(rate=4.0, search=0, tune_steps=0, **TINY)),
    }[name]
    found = measured(subject, scheme)
    assert found["bytes"] == next(iter(found["coders"].values()))
    assert 0 < found["shared_bytes"] < found["bytes"]
    assert 0 < found["kl_error"] < found["kl"]
    assert len(found["documents"]["loss"]) == 12
    assert found == json.loads(json.dumps(found))
    again = measured(subject, scheme)
    assert (again["bytes"], again["kl"]) == (found["bytes"], found["kl"])


@pytest.mark.slow
def test_an_interrupted_run_goes_on(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subject: Subject
) -> None:
    checkpoint_io.save_checkpoint(tmp_path / "run" / "step-00000001", made.checkpoint)
    calls: list[str] = []

    def fake(subject: Subject, scheme: Scheme) -> dict[str, Any]:
        calls.append(scheme.name)
        if len(calls) == 4:
            raise KeyboardInterrupt
        clip = scheme.spec.rules[1].k if scheme.family == "field" else 12.0
        made = point(scheme.name, scheme.family, 900 - 5 * clip, 0.01 * clip)
        return made | {"fingerprint": fingerprint(scheme.spec)}

    monkeypatch.setattr(codec, "measured", fake)
    monkeypatch.setattr(codec, "_splits", lambda *_: (made.train, made.validation))
    out = tmp_path / "out.json"
    line = [str(tmp_path / "run"), "--out", str(out)]
    CliRunner().invoke(main, line)
    written = json.loads(out.read_text(encoding="utf-8"))
    assert [p["name"] for p in written["checkpoints"][0]["points"]] == calls[:3]
    before = calls.copy()
    assert CliRunner().invoke(main, line).exit_code == 0
    assert len(set(calls)) == len(calls) - 1  # only the interrupted one is repeated
    assert before[-1] in calls[len(before) :]
    CliRunner().invoke(main, line)
    assert len(set(calls)) == len(calls) - 1


@pytest.mark.slow
def test_the_page_and_the_picture(tmp_path: Path) -> None:
    target, picture = tmp_path / "codec.md", tmp_path / "codec.png"
    target.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n", encoding="utf-8")
    page.render(result(entry("one"), entry("two")), picture, target)
    text = target.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| `--method trellis`, rate 3.5 | 532 | 5.32 |" in text
    assert "80.0 ± 0.0 %" in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SegptError, match="needs one section"):
        page.placed("nothing here", "x")


def test_the_page_shows_the_committed_results() -> None:
    """`python -m bench.codec --render` after every run."""
    text = page.PAGE.read_text(encoding="utf-8")
    if codec.OUT.exists():
        found = json.loads(codec.OUT.read_text(encoding="utf-8"))
        assert page.placed(text, page.section(found)) == text
        assert found["summary"] == codec.concluded(found)
    else:
        assert page.placed(text, "") == text


def test_runs_are_trained_once_and_taken_up_where_they_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Made
) -> None:
    lines: list[list[str]] = []

    def train(line: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        lines.append(line)
        step = "step-00002500" if "--resume" in line else "step-00000250"
        checkpoint_io.save_checkpoint(tmp_path / "codec-2" / step, made.checkpoint)
        return subprocess.CompletedProcess(line, 0)

    monkeypatch.setattr(codec, "RUNS", tmp_path)
    monkeypatch.setattr(subprocess, "run", train)
    for resumed in (False, True, None):
        before = len(lines)
        assert codec.trained(2, tmp_path / "data") == tmp_path / "codec-2"
        assert len(lines) == before + (resumed is not None)
        assert resumed is None or ("--resume" in lines[-1]) is resumed
    assert lines[0][3:8] == ["train", "--recipe", str(codec.RECIPE), "--seed", "2"]
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 2))
    with pytest.raises(DataError, match=r"training .* failed"):
        codec.trained(1, tmp_path / "data")
