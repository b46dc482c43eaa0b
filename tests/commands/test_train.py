"""``segpt train`` under rules, from a checkpoint, and what it says before and after."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
Run = Callable[..., Any]
TRAIN = ("train", "--recipe", "tiny.yaml", "--data", "runs/data")
ONCE = ("--set", "train.order=sequential", "--set", "train.unique=true")


@pytest.fixture
def prepared(line: Any, workplace: Path, fresh: Path) -> Path:
    """A fresh directory with prepared text and one run."""
    assert line["train"]["steps"] == 30
    shutil.copytree(workplace / "runs", fresh / "runs")
    data = json.loads((fresh / "runs" / "latest.json").read_text())["data"]
    (fresh / "runs" / "data").mkdir(exist_ok=True)
    if Path(data) != Path("runs/data"):
        shutil.copytree(fresh / data, fresh / "runs" / "data", dirs_exist_ok=True)
    return fresh


def test_help_is_help(run: Run, tmp_path: Path) -> None:
    # the word --help taken for the path of a configuration
    done = run(tmp_path, "train", "--help")
    assert done.code == 0
    assert all(word in done.stdout for word in ("--rules", "--init", "memory_bytes"))
    assert not list(tmp_path.iterdir())


def test_a_rule_broken_before_training_is_bad_input(run: Run, prepared: Path) -> None:
    done = run(prepared, *TRAIN, "--out", "run", "--rules", "lapp0")
    assert done.code == 2
    assert "broken before the run" in done.stderr
    assert "train.order=sequential" in done.stderr
    assert not (prepared / "run").exists()


def test_rules_certify_no_loss_of_another_text(run: Run, prepared: Path) -> None:
    """A few nats per byte of source code say nothing about FineWeb."""
    args = (*TRAIN, "--out", "run", "--rules", "lapp0", *ONCE, "--steps", "4")
    done = run(prepared, *args, "--json")
    assert done.code == 0, done.stderr
    result = json.loads(done.stdout)
    header = json.loads((prepared / result["checkpoint"] / "header.json").read_text())
    assert header["about"]["rules"] == result["rules"]
    holds = {finding["rule"]: finding["holds"] for finding in result["rules"]["findings"]}
    assert holds["loss"] is holds["text"] is holds["held-out text"] is None
    assert holds["parameters"] is holds["order"] is holds["unique"] is True
    assert result["read"]["in_order"]


def test_a_run_on_another_text_than_that_of_the_rules_goes_on_to_its_end(
    run: Run, prepared: Path
) -> None:
    often = ("--set", "train.validate_every=5", "--steps", "100")
    done = run(prepared, *TRAIN, "--out", "run", "--rules", "lapp0", *ONCE, *often)
    assert done.code == 0, done.stderr
    (loss,) = [line for line in done.stdout.splitlines() if line.startswith("not known  loss")]
    assert "not the contest's figure" in loss
    nats, tokens = loss.split("nats per token")[1].split()[0], loss.split("after ")[1].split()[0]
    assert float(nats) < 3.28
    assert int(tokens.replace(",", "")) == 100 * 8 * 32
    (text,) = [line for line in done.stdout.splitlines() if "  text  " in line]
    assert "do not compare with the limit" in text
    assert "it means 8 x H100" in done.stdout
    assert "weights of" in done.stderr  # the table of groups


def test_a_warm_start_from_the_command_line(run: Run, prepared: Path) -> None:
    done = run(prepared, *TRAIN, "--out", "warm", "--init", "runs/tiny", "--steps", "10", "--json")
    assert done.json["steps"] == 10
    header = json.loads((prepared / done.json["checkpoint"] / "header.json").read_text())
    origin = json.loads((prepared / "runs/tiny/step-00000030/header.json").read_text())
    assert header["origin"]["init"] == origin["fingerprint"]
    other = ("--set", "model.layer.feed.hidden=48")
    refused = run(prepared, *TRAIN, "--out", "x", "--init", "runs/tiny", *other)
    assert refused.code == 2
    assert refused.stderr.count("segpt:") == 1
    assert "do not fit the model" in refused.stderr
    assert run(prepared, *TRAIN, "--out", "warm", "--init", "warm", "--resume").code == 2


def test_the_best_checkpoint_is_named(run: Run, prepared: Path) -> None:
    keep = ("--set", "train.keep_best=true", "--set", "train.validate_every=10")
    best = run(prepared, *TRAIN, "--out", "run", *keep, "--json").json["best"]
    assert (prepared / best["checkpoint"] / "header.json").is_file()
    assert best["step"] in (10, 20, 30)


def test_a_dry_run_under_rules(run: Run, prepared: Path) -> None:
    about = run(prepared, *TRAIN, "--dry-run", "--rules", "golf", "--json").json
    assert about["rules"]["name"] == "golf"
    assert about["artifact_bytes"] <= 16_000_000
    broken = run(prepared, *TRAIN, "--dry-run", "--rules", "golf", "--seconds", "601")
    assert broken.code == 2
    assert "time is 601 s" in broken.stderr
    assert run(prepared, *TRAIN, "--dry-run", "--rules", "gold").code == 2
