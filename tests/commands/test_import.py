"""``segpt import`` and ``segpt export``, and models of others where a model is taken."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.convert.models import model_directory

pytest.importorskip("gguf")
pytestmark = pytest.mark.slow

Run = Callable[..., Any]


@pytest.fixture
def here(segpt: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``here(*args)`` runs ``segpt`` in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return segpt


def answer(done: Any) -> Any:
    assert done.exit_code == 0, (done.stdout, done.stderr)
    return json.loads(done.stdout)


def refused(done: Any, *words: str) -> None:
    assert done.exit_code == 2, (done.stdout, done.stderr)
    lines = [x for x in done.stderr.splitlines() if x.startswith(("segpt:", "Error:"))]
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0], lines[0]


def set_keys(directory: Path, **keys: Any) -> None:
    path = directory / "config.json"
    table = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in table.items() if value is not None}))


def test_a_directory_becomes_a_checkpoint_and_goes_back(here: Run) -> None:
    model_directory(Path("theirs"), "llama")
    done = answer(here("import", "hf", "theirs", "--json"))
    assert (done["out"], done["vocab"], done["start"]) == ("runs/theirs", 300, 0)
    assert done["checked"] == 64
    assert 0 < done["mean"] <= done["largest"] < 2e-5
    assert Path("runs/theirs/chat_template.jinja").read_text() == "{{ messages }}\n"
    back = answer(here("export", "hf", "runs/theirs", "--out", "back", "--json"))
    assert (back["form"], back["parameters"]) == ("llama", done["parameters"])
    again = answer(here("import", "hf", "back", "--json", "--no-check"))
    assert again["checked"] is None
    from segpt.stages.checkpoint_io import read_checkpoint

    first, second = (read_checkpoint(Path("runs") / name) for name in ("theirs", "back"))
    assert first.spec == second.spec
    for name, weight in first.weights.items():
        assert np.array_equal(weight, second.weights[name]), name


def test_the_words_tell_what_was_compared(here: Run) -> None:
    model_directory(Path("theirs"), "tied")
    checked = here("import", "hf", "theirs", "--out", "a")
    assert "logits over 64 tokens are" in checked.output
    unchecked = here("import", "hf", "theirs", "--out", "b", "--no-check")
    assert "logits are not compared: not asked for (--no-check)" in unchecked.output
    assert "documents begin with token 0" in unchecked.output


def test_forms_of_an_export(here: Run) -> None:
    model_directory(Path("theirs"), "qwen3")
    for form, kind in (("llama", "qwen3"), ("modeling", "segpt")):
        done = answer(here("export", "hf", "theirs", "--out", form, "--form", form, "--json"))
        assert done["form"] == form
        table = json.loads((Path(form) / "config.json").read_text())
        assert str(table["model_type"]).startswith(kind)
    refused(here("export", "hf", "theirs", "--out", "llama"), "llama", "not empty")


def test_what_cannot_be_imported_leaves_nothing(here: Run) -> None:
    refused(here("import", "hf", "nothing"), "nothing", "config.json")
    refused(here("import", "gguf", "nothing.gguf"), "nothing.gguf")
    Path("text.gguf").write_text("words")
    refused(here("import", "gguf", "text.gguf"), "text.gguf", "not a GGUF file")
    theirs = model_directory(Path("theirs"), "llama")
    refused(here("import", "hf", "theirs", "--start", "<none>"), "<none>")
    set_keys(theirs, surprise=1)
    refused(here("import", "hf", "theirs"), "config.json", "'surprise'")
    set_keys(theirs, surprise=None)
    (theirs / "model.safetensors").unlink()
    refused(here("import", "hf", "theirs"), "model.safetensors is missing")
    assert not Path("runs").exists()
    assert sorted(p.name for p in Path().iterdir()) == ["text.gguf", "theirs"]


def test_logits_that_differ_are_refused(here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from segpt.convert import agreement

    theirs = agreement._theirs
    monkeypatch.setattr(agreement, "_theirs", lambda *args: theirs(*args) + 1e-3)
    model_directory(Path("theirs"), "llama")
    refused(here("import", "hf", "theirs"), "apart", "--no-check")
    assert not Path("runs").exists()


def test_nothing_of_others_is_overwritten(here: Run) -> None:
    model_directory(Path("theirs"), "llama")
    Path("mine").mkdir()
    Path("mine/note").write_text("kept")
    refused(here("import", "hf", "theirs", "--out", "mine", "--no-check"), "mine")
    refused(here("export", "hf", "theirs", "--out", "mine"), "mine")
    assert [p.name for p in Path("mine").iterdir()] == ["note"]


def test_a_directory_is_scored_and_sampled_as_its_checkpoint_is(here: Run) -> None:
    model_directory(Path("theirs"), "llama")
    Path("text.txt").write_text("the cat sat on the mat and the dog sat too\n" * 4)
    answer(here("import", "hf", "theirs", "--json", "--no-check"))
    common = ("--device", "cpu", "--json")
    ours, theirs = (
        answer(here("score", place, "text.txt", *common)) for place in ("runs/theirs", "theirs")
    )
    assert theirs["bpb"] == ours["bpb"]
    assert theirs["bpb"] > 0
    spoken = [
        answer(here("sample", place, "the cat", "--tokens", 8, *common))["texts"]
        for place in ("runs/theirs", "theirs")
    ]
    assert spoken[0] == spoken[1]


def test_a_directory_that_cannot_be_read_says_which_key(here: Run) -> None:
    theirs = model_directory(Path("theirs"), "llama")
    set_keys(theirs, hidden_act="gelu")
    refused(here("sample", "theirs", "the"), "hidden_act", "'gelu'")
    refused(here("score", "theirs", "theirs/config.json"), "hidden_act")


def test_where_a_checkpoint_is_wanted_the_way_to_one_is_said(here: Run) -> None:
    model_directory(Path("theirs"), "llama")
    refused(here("train", "--init", "theirs", "--out", "mine"), "segpt import hf theirs")
    assert not Path("mine").exists()


def test_a_directory_becomes_a_gguf_file_and_comes_back(here: Run) -> None:
    from segpt.stages.checkpoint_io import read_checkpoint

    model_directory(Path("theirs"), "qwen3")
    answer(here("import", "hf", "theirs", "--json", "--no-check"))
    done = answer(here("export", "gguf", "runs/theirs", "--out", "a.gguf", "--json"))
    assert (done["out"], done["type"], done["error"]) == ("a.gguf", "f32", 0)
    assert done["bytes"] == Path("a.gguf").stat().st_size
    answer(here("import", "gguf", "a.gguf", "--json", "--no-check"))
    first, second = (read_checkpoint(Path("runs") / name) for name in ("theirs", "a"))
    assert first.spec == second.spec
    for name, weight in first.weights.items():
        assert np.array_equal(weight, second.weights[name]), name
    template = Path("runs/a/chat_template.jinja").read_text()
    assert template == "{{ messages }}\n"
    Path("text.txt").write_text("the cat sat on the mat and the dog sat too\n" * 4)
    scores = [
        answer(here("score", place, "text.txt", "--device", "cpu", "--json"))["bpb"]
        for place in ("runs/theirs", "a.gguf")
    ]
    assert scores[0] == scores[1]
    before = Path("a.gguf").read_bytes()
    refused(here("export", "gguf", "theirs", "--out", "a.gguf", "--type", "f16"), "--force")
    assert Path("a.gguf").read_bytes() == before
    words = here("export", "gguf", "a.gguf", "--out", "a.gguf", "--type", "f16", "--force")
    assert "to a relative error of" in words.output
    refused(here("export", "gguf", "a.gguf", "--out", "b.gguf", "--type", "q8_0"), "48", "--type")


def test_shapes_that_gguf_does_not_know_are_refused(here: Run) -> None:
    model_directory(Path("theirs"), "mistral")
    refused(here("export", "gguf", "theirs", "--out", "a.gguf"), "windows")
    assert not Path("a.gguf").exists()


def test_reading_a_directory_needs_no_torch(here: Run) -> None:
    import subprocess
    import sys

    model_directory(Path("theirs"), "llama")
    source = """if True:
        import sys
        from pathlib import Path
        from segpt.stages.read_model import read_model
        assert read_model(Path("theirs")).weights
        assert "torch" not in sys.modules and "transformers" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", source], check=True)
