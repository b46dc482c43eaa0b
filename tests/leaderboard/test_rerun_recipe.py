"""Recipes of strangers: what is run of them, what is not, and a record made anew."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from segpt.config.score import ScoreSpec
from segpt.data.corpus import builtin
from segpt.errors import SegptError, SpecError
from segpt.leaderboard import record, rescore, store, verify
from segpt.leaderboard.entry import Record
from segpt.leaderboard.rerun_recipe import commands_of, remake
from segpt.stages.json_files import write_json
from segpt.stages.pack import read_artifact
from segpt.stages.score import score
from segpt.values import Text
from tests import little_text

SMALL = (
    "--set tokenizer.vocab=512 --set model.vocab=512 --set model.width=32 --set model.depth=1 "
    "--set train.length.count=2 --set train.batch=2 --set train.validate_tokens=1024"
)
REPORT = "--set quantize.calibration_tokens=1024 --set quantize.report_tokens=1024"
RECIPE = f"""
segpt data prepare --vocab 512   # the built-in text
segpt train --recipe demo256 {SMALL} && segpt quantize --bits 6 {REPORT}
segpt pack
"""


@pytest.mark.parametrize(
    ("recipe", "commands"),
    [
        ("segpt demo --seed 1", [["demo", "--seed", "1"]]),
        (
            "segpt train --recipe demo256 && segpt quantize --bits 6\n\n# done\nsegpt pack",
            [["train", "--recipe", "demo256"], ["quantize", "--bits", "6"], ["pack"]],
        ),
        (
            "segpt train --set 'model.route=\"0:3 (3:6)*3 6:\"' --out runs/a..b",
            [["train", "--set", 'model.route="0:3 (3:6)*3 6:"', "--out", "runs/a..b"]],
        ),
        ("segpt tokenizer train text.jsonl", [["tokenizer", "train", "text.jsonl"]]),
    ],
)
def test_recipes_are_commands(recipe: str, commands: list[list[str]]) -> None:
    assert commands_of(recipe) == commands


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("", "it has no recipe"),
        ("# nothing\n", "it has no recipe"),
        ("rm -rf /", "is none of segpt average"),
        ("segpt", "is none of segpt average"),
        ("segpt leaderboard add x", "is none of"),
        ("segpt decompress x --out y", "is none of"),
        ("segpt data fetch core", "is none of"),
        ("segpt-evil train", "is none of"),
        ("segpt train; rm -rf x\nrm y", "is none of"),
        ("segpt train | tee x && curl x", "is none of"),
        ("segpt train --out /etc/x", "'/etc/x' leads out of the directory"),
        ("segpt train --out=/etc/x", "leads out of the directory"),
        ("segpt train --out ../x", "leads out of the directory"),
        ("segpt train --out runs/../../x", "leads out of the directory"),
        ("segpt train --out ..", "leads out of the directory"),
        ("segpt train --out ~/x", "leads out of the directory"),
        ("segpt train --set data.path=/etc/passwd", "leads out of the directory"),
        ("segpt train --set a=b:../x", "leads out of the directory"),
        ("segpt train --out 'a\\b'", "leads out of the directory"),
        ("segpt train --out 'unclosed", "No closing quotation"),
        ("segpt pack\nsegpt train --out /x", "leads out of the directory"),
    ],
)
def test_what_is_not_safe_is_not_run(recipe: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=words):
        commands_of(recipe)
    with pytest.raises(SpecError, match=words):
        remake(recipe, tmp_path, "0" * 64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", ["segpt train $HOME `id`", "segpt train ; id"])
def test_nothing_is_given_to_a_shell(recipe: str) -> None:
    (command,) = commands_of(recipe)
    assert command == recipe.split()[1:]


def test_a_recipe_that_fails_says_where(tmp_path: Path) -> None:
    with pytest.raises(SegptError, match="recipe: segpt pack: exit code 2"):
        remake("segpt pack && segpt demo", tmp_path, "0" * 64)


@pytest.mark.slow
def test_a_record_is_reproduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, library = tmp_path / "site", little_text.library(tmp_path / "library")
    site.mkdir()
    (site / "sitecustomize.py").write_text(little_text.BEFORE.format(place=str(library)))
    monkeypatch.syspath_prepend(site)  # where the processes that are started look as well
    little_text.use(library, monkeypatch)
    board, place = tmp_path / "board", tmp_path / "place"
    for directory in (board, place):
        directory.mkdir()
    text = next(iter(builtin("validation")))[:600]
    (board / "tracks.toml").write_text(
        '[[tracks]]\nname = "small"\nabout = ""\nsource = "text.txt"\n'
    )
    (board / "text.txt").write_bytes(text)
    artifact = remake(RECIPE, place, "0" * 64)
    held_out = Text("text.txt", lambda: iter([text]))
    found = score(read_artifact(artifact), held_out, ScoreSpec(stride=64))
    write_json(place / "score.json", found.plain())
    record.add(
        board,
        [artifact],
        [place / "score.json"],
        record.Description(
            name="first", track="small", authors=["Ada"], date="2025-03-01", recipe=RECIPE
        ),
    )
    whole = store.read_board(board)
    (entry,) = verify.choose(whole, (), remade=True)
    assert isinstance(entry, Record)
    kept = tmp_path / "kept.segpt"

    def remake_and_keep(*arguments: Any) -> Path:
        path = remake(*arguments)
        shutil.copy(path, kept)
        return path

    monkeypatch.setattr(rescore, "remake", remake_and_keep)
    (verdict,) = verify.verify(board, whole, [entry], remade=True)
    assert verdict.state == "reproduced", verdict.missing
    assert verdict.artifact == entry.artifact
    assert [c.what for c in verdict.comparisons] == ["made anew, the same bytes, frozen"]
    assert verdict.conditions.same_bytes
    # The same commands make the same file; only what the record says of it is another.
    monkeypatch.setattr(rescore, "remake", lambda *_: kept)
    since = dataclasses.replace(entry, origin={**entry.origin, "recipe": "0", "tokens": "1"})
    (other,) = verify.verify(board, whole, [since], remade=True)
    assert other.comparisons[0].what == (
        "made anew, the same bytes, by another recipe, from other text, frozen"
    )
    verify.append(board, whole, verdict, ["Grace"], "2025-03-02")
    assert store.check(board).findings == ()
    (row,) = store.read_board(board).standings()["small"]
    assert row.state == "reproduced"
    assert json.loads((place / "score.json").read_text())["bpb"] == entry.bpb
