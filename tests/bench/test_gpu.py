"""The measurements on a GPU go through on a CPU, in small sizes and with references."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.gpu import __main__ as gpu
from bench.gpu.plan import DRY, Plan, Row, measure


@pytest.mark.slow
def test_a_dry_run_goes_through_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gpu.json"
    monkeypatch.setattr("sys.argv", ["bench.gpu", "--dry-run", "--out", str(path)])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    shown = capsys.readouterr().out
    assert ended.value.code == 0, shown
    rows = json.loads(path.read_bytes())["rows"]
    names = {row["name"] for row in rows}
    assert names >= {
        *("attention", "token loss", "Newton-Schulz", "training golf16"),
        *("feed, swiglu", "add and norm", "AdamW of 24 weights"),
        *("score --mode strided", "score --mode rolling", "tiles"),
    }
    assert any(row["name"].startswith("GPTQ") for row in rows)
    assert any(row["name"].startswith("attention, torch: ") for row in rows)  # a check
    assert all(row["ratio"] > 0 for row in rows if "against" in row and "ratio" in row)
    assert all(row["error"] < 2e-2 for row in rows if "error" in row)
    assert not any(row["note"].startswith("failed") for row in rows if "note" in row)
    assert all(row["reached"] is None for row in rows)  # small sizes reach nothing
    assert all(name in shown for name in names)


def test_without_a_gpu_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["bench.gpu"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert "--dry-run goes through all of it on a CPU" in capsys.readouterr().err


def one(_: Plan) -> Iterator[Row]:
    yield Row("one", ratio=2.0, aim=1.5)


def wrong(_: Plan) -> Iterator[Row]:
    yield Row("half of it")
    raise ArithmeticError("it differs\nfrom the reference")


def test_what_fails_is_said_and_the_rest_goes_on() -> None:
    rows = measure([("wrong", wrong), ("one", one)], DRY._replace(device="cuda"), 1, lambda _: None)
    assert [row.name for row in rows] == ["half of it", "wrong", "one"]
    assert rows[1].note == "failed: it differs"
    assert rows[2].is_reached


def test_what_was_measured_is_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_: Plan) -> Iterator[Row]:
        assert [row["name"] for row in json.loads(path.read_bytes())["rows"]] == ["one"]
        yield from ()
        raise KeyboardInterrupt

    path = tmp_path / "gpu.json"
    monkeypatch.setattr("sys.argv", ["bench.gpu", "--dry-run", "--out", str(path)])
    monkeypatch.setattr(gpu, "SECTIONS", (("one", one), ("gone", gone)))
    with pytest.raises(KeyboardInterrupt):
        gpu.main()
    assert json.loads(path.read_bytes())["rows"][0]["ratio"] == 2.0


def test_no_section_begins_after_the_time() -> None:
    clock = iter([0.0, 30.0, 61.0, 62.0, 63.0])
    rows = measure([("one", one), ("late", one)], DRY, 1, lambda _: None, lambda: next(clock))
    assert [(row.name, row.note) for row in rows] == [
        ("one", ""),
        ("one", "stopped here: 1 minutes were over"),
        ("late", "left out: 1 minutes were over"),
    ]


def test_a_line_says_whether_the_aim_is_reached() -> None:
    assert "missed: 2" in gpu.line(Row("a", "b", ratio=1.9, aim=2.0))
    assert "reached: 45" in gpu.line(Row("a", "b", figure=46.0, unit="% used", aim=45.0))
    assert "aim" not in gpu.line(Row("a", note="not here"))
