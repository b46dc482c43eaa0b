"""The ablation: what is planned, how it is measured and goes on, and what it concludes."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from bench import ablation, changes
from bench.ablation import PLAN, Change, Plan, Subject, changed, main, merged, read_plan, wanted
from bench.page import placed
from segpt.config.base import fingerprint
from segpt.config.recipe import read_recipe
from segpt.config.schedule import Steps
from segpt.errors import DataError, SpecError
from segpt.train.trainer import sequences
from segpt.values import Text

from .conftest import MODEL, Made

RECIPE = {
    "name": "tiny",
    "about": "a",
    "tokenizer": "bytes",
    "model": MODEL,
    "train": {
        "length": {"kind": "steps", "count": 4},
        "batch": 8,
        "average": None,
        "validate_every": 1000,
        "validate_tokens": 256,
        "save_every": 1000,
        "log_every": 1,
    },
}
PLANS = [PLAN, PLAN.with_name("ablation-demo.yaml")]
CHANGES = [
    {"name": "no caps", "of": "head", "set": ["model.head.softcap=null"]},
    {
        "name": "ramp",
        "of": "data",
        "set": ["train.batch=4", "train.schedule.ramp={milestones: [0.5]}"],
    },
]


@pytest.fixture
def plan(tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plan of tiny runs, on text that is there."""
    monkeypatch.setattr(
        ablation, "opened", lambda name, _: Subject(name, made.train, made.validation)
    )
    table = {"recipe": "tiny.yaml", "seeds": [1, 2], "lengths": [1], "changes": CHANGES}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(table), encoding="utf-8")
    return tmp_path / "plan.yaml"


@pytest.fixture
def run(plan: Path) -> Callable[..., dict[str, Any]]:
    """The command on the tiny plan, and the results it leaves."""

    def invoke(*line: str, out: str = "out.json", exit_code: int = 0) -> dict[str, Any]:
        place = plan.parent / out
        done = CliRunner().invoke(main, [*line, "--plan", str(plan), "--out", str(place)])
        assert done.exit_code == exit_code, done.output
        if exit_code:
            return {"output": done.output}
        found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
        return found

    return invoke


@pytest.mark.slow
@pytest.mark.parametrize("path", PLANS, ids=[path.stem for path in PLANS])
def test_every_row_of_the_plan_is_a_recipe_of_its_own(path: Path) -> None:
    plan = read_plan(path)
    seen = set[str]()
    for run in wanted(dataclasses.replace(plan, seeds=(1,)), path.parent):
        if run.length == 1.0:
            assert fingerprint(run.recipe) not in seen, run.change.name
            seen.add(fingerprint(run.recipe))
    assert len(seen) == 1 + len(plan.changes)


def test_rows_read_as_much_as_the_base(tmp_path: Path, plan: Path) -> None:
    source = tmp_path / "tiny.yaml"
    for settings, steps in (
        ([], 4),
        (["train.batch=4"], 8),
        (["train.batch=4", "train.schedule.ramp={milestones: [0.5]}"], 5),
    ):
        how = changed(source, settings, seed=3).train
        assert how.length == Steps(count=steps)
        assert sequences(how) == 32
        assert how.seed == 3
    assert changed(source, (), 1, length=0.5).train.length == Steps(count=2)
    always = ["train.length={kind: steps, count: 10}"]
    assert changed(source, ["train.batch=4"], 1, 1.0, always).train.length == Steps(count=20)
    with pytest.raises(DataError, match="reads about 32"):
        changed(source, ["train.batch=64"], 1)
    with pytest.raises(SpecError, match="unknown key"):
        changed(source, ["train.bach=64"], 1)


def test_the_base_comes_first_and_rows_are_finished_one_by_one(plan: Path) -> None:
    given = dataclasses.replace(read_plan(plan), lengths=(0.5, 1.0, 2.0))
    found = [(w.change.name, w.seed, w.length) for w in wanted(given, plan.parent, ["ramp"])]
    base = [("base", 1, 1.0), ("base", 2, 1.0), ("base", 1, 0.5), ("base", 1, 2.0)]
    assert found == [*base, ("ramp", 1, 1.0), ("ramp", 2, 1.0)]


@pytest.mark.slow
def test_settings_of_the_plan_hold_in_all_runs(
    run: Callable[..., dict[str, Any]], plan: Path
) -> None:
    table = yaml.safe_load(plan.read_text(encoding="utf-8"))
    table["set"] = ["train.length={kind: steps, count: 6}", "model.head.softcap=9.0"]
    plan.write_text(yaml.safe_dump(table), encoding="utf-8")
    given = [w.recipe.model.head.softcap for w in wanted(read_plan(plan), plan.parent)]
    assert given == [9.0, 9.0, None, None, 9.0, 9.0]  # a change has the last word
    found = run("one", "--only", "no caps")
    assert {line["steps"] for line in found["runs"]} == {6}
    assert {line["tokens"] for line in found["runs"]} == {found["base"]["tokens"]}
    assert found["command"] == f"python -m bench.ablation --plan {plan} TEXT..."


def test_two_rows_of_one_name_are_refused(tmp_path: Path) -> None:
    table = {"recipe": "x", "seeds": [1], "lengths": [1], "changes": CHANGES[:1] * 2}
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(table), encoding="utf-8")
    with pytest.raises(DataError, match="two changes are named 'no caps'"):
        read_plan(path)


@pytest.mark.slow
def test_a_campaign_goes_on_where_it_stopped(
    run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, taken = ablation.measured, list[Any]()

    def counted(*arguments: Any) -> dict[str, Any]:
        if len(taken) == 1:
            raise KeyboardInterrupt
        taken.append(arguments[0])
        return measured(*arguments)

    monkeypatch.setattr(ablation, "measured", counted)
    run("one", exit_code=1)
    monkeypatch.setattr(ablation, "measured", measured)
    first = run("one")
    assert len(first["runs"]) == 2 * 3
    assert run("one") == first  # nothing is left to do
    assert run("one", "--only", "ramp") == first
    assert [len(s["rows"]) for s in first["summary"].values()] == [2]


@pytest.mark.slow
def test_runs_are_the_same_again_whatever_ran_between(run: Callable[..., dict[str, Any]]) -> None:
    same = ("text", "change", "seed", "length", "steps", "tokens", "bpb", "nats", "fingerprint")
    first, second = (
        {tuple(r[key] for key in same) for r in run("one", *only, out=out)["runs"]}
        for only, out in (((), "a.json"), (("--only", "ramp"), "b.json"))
    )
    assert second < first
    assert all(math.isfinite(line[6]) for line in first)
    assert len({line[6] for line in first if line[1:4:2] == ("base", 1.0)}) == 2  # seeds differ


@pytest.mark.slow
def test_what_was_measured_otherwise_is_not_mixed_in(
    run: Callable[..., dict[str, Any]], plan: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("one", "--only", "none")
    other = Subject("one", made.validation, made.validation)
    with monkeypatch.context() as changed_text:
        changed_text.setattr(ablation, "opened", lambda *_: other)
        assert "another text one" in run("one", exit_code=1)["output"]
    recipe = RECIPE | {"about": "b"}
    (plan.parent / "tiny.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert "another base recipe" in run("one", exit_code=1)["output"]


@pytest.mark.slow
def test_a_row_that_means_something_else_now_is_measured_again(
    run: Callable[..., dict[str, Any]], plan: Path
) -> None:
    first = run("one", "--only", "no caps")
    text = plan.read_text(encoding="utf-8").replace("softcap=null", "softcap=2.0")
    plan.write_text(text, encoding="utf-8")
    second = run("one", "--only", "no caps")
    assert len(second["runs"]) == len(first["runs"])
    assert second["runs"][:2] == first["runs"][:2]
    assert second["runs"][2]["fingerprint"] != first["runs"][2]["fingerprint"]
    assert second["changes"]["no caps"]["set"] == ["model.head.softcap=2.0"]


@pytest.mark.slow
def test_a_run_that_diverges_is_a_result(run: Callable[..., dict[str, Any]], plan: Path) -> None:
    table = yaml.safe_load(plan.read_text(encoding="utf-8"))
    table["changes"] = [
        {"name": "wild", "of": "optimizer", "set": ["train.optimizer.table.rate=1e30"]}
    ]
    plan.write_text(yaml.safe_dump(table), encoding="utf-8")
    found = run("one")
    (row,) = found["summary"]["one"]["rows"]
    assert row["failed"] == 2
    assert row["equal_tokens"]["mean"] is None
    assert "not finite" in found["runs"][-1]["failed"]
    assert "| wild | optimizer |  |" in changes.section(found, "")
    assert "| diverges |" in changes.section(found, "")


def line(change: str, seed: int, bpb: float, length: float = 1.0, **more: Any) -> dict[str, Any]:
    about: dict[str, Any] = {"text": "t", "change": change, "seed": seed, "length": length}
    return about | {"bpb": bpb, "time": 1.1, "parameters": 100, "fingerprint": change} | more


def made_up() -> dict[str, Any]:
    """A base whose BPB falls by 0.5 for each e-fold of tokens, timed 1.1 times too slow."""
    runs = [
        line("base", seed, 2.0 + 0.01 * seed - 0.5 * math.log(length), length)
        for length in (0.5, 1.0, 2.0)
        for seed in (1, 2, 3)
    ]
    gaps = (-0.1, -0.11, -0.12)
    runs += [
        line("slow", s, 2.0 + 0.01 * s + g, time=1.65) for s, g in zip((1, 2, 3), gaps, strict=True)
    ]
    runs += [line("slower", s, 1.0 + 0.01 * s, time=3.3) for s in (1, 2, 3)]
    runs += [line("unfinished", 1, 1.0)]
    names = ("base", "slow", "slower", "unfinished")
    base = {"parameters": 100, "tokens": 1000, "context": 16}
    return {
        "base": base,
        "texts": {"t": {}},
        "changes": {name: {"of": "x", "set": ["model.x=1"]} for name in names},
        "runs": runs,
    }


def test_the_summary_finds_what_was_put_in() -> None:
    found = changes.concluded(made_up())["t"]
    assert found["base"]["time_over_itself"] == pytest.approx(1.1)
    slower, slow = found["rows"]
    assert (slower["change"], slow["change"]) == ("slower", "slow")  # the best comes first
    assert slow["time"]["mean"] == pytest.approx(1.5)
    assert slow["equal_tokens"]["mean"] == pytest.approx(-0.11)
    assert slow["equal_tokens"]["error"] == pytest.approx(0.01 / 3**0.5, rel=1e-4)
    assert slow["equal_seconds"]["mean"] == pytest.approx(-0.11 + 0.5 * math.log(1.5), rel=1e-4)
    assert slower["equal_tokens"]["mean"] == pytest.approx(-1.0)
    assert slower["equal_seconds"]["mean"] is None  # the base was never trained for so long


def test_the_luck_of_the_base_is_not_taken_for_what_changes_do() -> None:
    """A base that ends 0.06 below its controls would cost every other row that much."""
    result = made_up()
    lucky = {"base": 0.0, "one": 0.05, "two": 0.07, "change": 0.04, "averaged": 0.01}
    result["changes"] = {name: {"of": "x", "set": ["model.x=1"]} for name in lucky}
    result["changes"] |= {name: {"of": "control", "set": ["model.x=1"]} for name in ("one", "two")}
    result["changes"]["averaged"]["set"] = ["train.average={decay: 0.9}"]
    result["runs"] = [
        line(n, s, 2.0 + 0.01 * s + luck) for n, luck in lucky.items() for s in (1, 2)
    ]
    base, rows = (changes.concluded(result)["t"][key] for key in ("base", "rows"))
    assert base["controls"] == 2
    assert base["bpb"]["mean"] == pytest.approx(2.015)
    assert base["reference"]["mean"] == pytest.approx(2.055)
    gaps = {row["change"]: row["equal_tokens"]["mean"] for row in rows}
    assert gaps["change"] == pytest.approx(0.0, abs=1e-9)
    assert gaps["one"] == pytest.approx(0.05 - 0.035)  # with the base and the other one
    assert gaps["two"] == pytest.approx(0.07 - 0.025)
    assert gaps["averaged"] == pytest.approx(0.01)  # of weights that are the base's own
    assert "2.0550 (t)" in changes.section(result, "")
    assert "2 controls" in changes.section(result, "")
    result["runs"] = [r for r in result["runs"] if (r["change"], r["seed"]) != ("two", 2)]
    assert changes.concluded(result)["t"]["base"]["controls"] == 1  # unfinished ones do not count


def test_without_enough_lengths_nothing_is_said_of_seconds() -> None:
    result = made_up()
    result["runs"] = [run for run in result["runs"] if run["length"] != 2.0]
    rows = changes.concluded(result)["t"]["rows"]
    assert {row["equal_seconds"]["mean"] for row in rows} == {None}


def test_merging_keeps_runs_of_one_base_and_text() -> None:
    one, two = made_up(), made_up()
    two["runs"] = [line("slow", 1, 9.0), line("new", 1, 1.0)]
    two["changes"] = {"new": {"of": "y", "set": []}}
    found = merged([one, two])
    assert len(found["runs"]) == len(one["runs"]) + 1
    assert [r["bpb"] for r in found["runs"] if (r["change"], r["seed"]) == ("slow", 1)] == [9.0]
    assert found["changes"].keys() == one["changes"].keys() | {"new"}
    for other, message in (
        (two | {"base": {}}, "base recipes"),
        (two | {"texts": {"t": 1}}, "text t"),
    ):
        with pytest.raises(DataError, match=message):
            merged([one, other])
    with pytest.raises(DataError, match="nothing to merge"):
        merged([])


@pytest.mark.slow
def test_the_page_and_the_picture(tmp_path: Path) -> None:
    page, picture = tmp_path / "ablation.md", tmp_path / "own.png"
    begin, end = ablation.marks("own")
    assert "python -m bench.ablation --plan bench/own.yaml --render" in begin
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n", encoding="utf-8")
    ablation.show(made_up(), picture, page)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| slow | x |  | 1.50 | -0.1100 ± 0.0058 | +0.0927 ± 0.0058 |" in text
    assert "(../bench/results/own.png)" in text
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", [path.stem for path in PLANS])
def test_the_docs_show_the_committed_results(name: str) -> None:
    """`python -m bench.ablation --render` after every campaign."""
    text = ablation.PAGE.read_text(encoding="utf-8")
    found = json.loads((ablation.RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    assert found["summary"] == changes.concluded(found)
    section = changes.section(found, f"{name}.png")
    assert placed(text, section, *ablation.marks(name)) == text
    plan = read_plan(PLAN.with_name(f"{name}.yaml"))
    base = read_recipe(PLAN.parent / plan.recipe, plan.set)
    assert found["base"]["fingerprint"] == fingerprint(base)
    named = {change.name: list(change.set) for change in plan.changes}
    assert {n: c["set"] for n, c in found["changes"].items() if n != "base"} == named


def test_a_text_of_files_is_held_out_and_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation, "RUNS", tmp_path / "runs")
    documents = [f"{n} word\n" * (5 + n) for n in range(60)]
    lines = "".join(json.dumps({"text": d}) + "\n" for d in documents)
    (tmp_path / "own.jsonl").write_text(lines, encoding="utf-8")
    recipe = read_recipe("demo", ["tokenizer=bytes", "model.vocab=257"])
    whole = sum(map(len, documents))
    for argument in ("own={0}/own.jsonl", "own=elsewhere.jsonl"):  # prepared is prepared
        subject = ablation.opened(argument.format(tmp_path), recipe)
        assert subject.name == "own"
        assert 0 < subject.held_out.bytes < 0.3 * whole
        assert subject.tokens.bytes + subject.held_out.bytes == whole
    for argument in ("own", f"builtin={tmp_path}/own.jsonl", "builtin-train=own.jsonl"):
        with pytest.raises(DataError, match="NAME=FILE"):
            ablation.opened(argument, recipe)


def test_choices_are_made_without_the_validation_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation, "RUNS", tmp_path / "runs")
    documents = {"train": [b"%d words\n" % n for n in range(60)], "validation": [b"kept apart"]}
    monkeypatch.setattr(
        ablation, "builtin", lambda split: Text(split, lambda: iter(documents[split]))
    )
    recipe = read_recipe("demo", ["tokenizer=bytes", "model.vocab=257"])
    subject = ablation.opened("builtin-train", recipe)
    whole = sum(map(len, documents["train"]))
    assert 0 < subject.held_out.bytes < 0.5 * whole
    assert subject.tokens.bytes + subject.held_out.bytes == whole


def test_excerpts_are_whole_lines_of_every_document() -> None:
    text = Text("x", lambda: iter([b"ab\ncd\nef\n", b"short", b"one long line"]))
    assert list(ablation.excerpts(text, 18)) == [b"ab\ncd\n", b"short", b"one lo"]


def test_a_plan_is_data() -> None:
    plan = Plan(recipe="r", seeds=(1,), lengths=(1.0,), changes=())
    assert plan.changes == ()
    assert Change(name="n", of="o", set=()).set == ()
