"""The CORE bundle and the tasks from the command line."""

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segpt.data.tokenizer import BYTES
from segpt.stages.checkpoint_io import save_checkpoint
from tests.bundles import write_archive, write_bundle
from tests.stages.random_models import checkpoint
from tests.tasks.test_continuations import save

Run = Callable[..., Any]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_archive(tmp_path / "eval_bundle.zip", write_bundle(tmp_path / "bundle"))


@pytest.mark.slow
def test_fetch_and_then_ask(archive: Path, tmp_path: Path, run: Run) -> None:
    save_checkpoint(tmp_path / "checkpoint", checkpoint(vocab=BYTES.vocab))
    ask = ("score", "checkpoint", "--core", "copa,winograd", "--device", "cpu")
    before = run(tmp_path, *ask)
    assert before.code == 2
    assert "run `segpt data fetch core` first" in before.stderr
    found = run(tmp_path, "data", "fetch", "core", "--url", archive.name, "--json").json
    assert found["out"] == "runs/core"
    assert found["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert len(found["files"]) == 21
    assert not any(file["verbatim"] for file in found["files"].values())
    asked = run(tmp_path, *ask, "--json").json
    assert list(asked["tasks"]) == ["copa", "winograd"]
    assert asked["name"] == "CORE-2 (not CORE)"
    again = run(tmp_path, *ask, "--bundle", "bundle", "--baselines", "v2", "--max-per-task", "5")
    assert again.code == 0, again.stderr
    assert "CORE-2 (not CORE): " in again.stdout
    assert "baselines v2" in again.stdout
    (tmp_path / "runs" / "latest.json").unlink()
    assert run(tmp_path, *ask).code == 0  # a bundle unpacked by hand into runs/core


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_model_of_transformers_is_asked_too(tmp_path: Path, run: Run) -> None:
    pytest.importorskip("transformers")
    save(tmp_path / "foreign", "gpt2", start="bos_token")
    write_bundle(tmp_path / "bundle")
    ask = ("score", "foreign", "--core", "copa,jeopardy", "--bundle", "bundle", "--device", "cpu")
    asked = run(tmp_path, *ask, "--json").json
    assert asked["model"] == {"hugging_face": "foreign"}
    assert asked["context"] == 48
    assert asked["tasks"]["jeopardy"]["cropped"] == 12


def test_fetching_fails_in_one_line(archive: Path, tmp_path: Path, segpt: Run) -> None:
    out = tmp_path / "core"
    nowhere = segpt("data", "fetch", "core", "--url", tmp_path / "nowhere.zip", "--out", out)
    assert nowhere.exit_code == 2
    assert "no such file" in nowhere.output
    with zipfile.ZipFile(archive, "a") as packed:
        packed.writestr("../evil", "evil")
    evil = segpt("data", "fetch", "core", "--url", archive, "--out", out, "--json")
    assert evil.exit_code == 2
    assert "do not trust this archive" in evil.output
    assert not out.exists()
    with pytest.raises(json.JSONDecodeError):
        json.loads(evil.stdout or "none")


@pytest.mark.slow
@pytest.mark.slow
def test_no_network_says_what_to_do(tmp_path: Path, run: Run) -> None:
    url = "http://127.0.0.1:9/eval_bundle.zip"
    found = run(tmp_path, "data", "fetch", "core", "--url", url)
    assert found.code == 2
    (line,) = (row for row in found.stderr.splitlines() if row.startswith("segpt: "))
    for word in (url, "cannot be fetched", "--url FILE", "unpack it into runs/core"):
        assert word in line
    assert not (tmp_path / "runs" / "core").exists()


@pytest.mark.slow
def test_a_misspelt_run_is_not_looked_for_on_the_hub(
    archive: Path, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "runs").mkdir()
    asked = run(tmp_path, "score", "runs/dmeo", "--core", "copa", "--bundle", "bundle")
    assert asked.code == 2
    assert "runs/dmeo does not exist" in asked.stderr
