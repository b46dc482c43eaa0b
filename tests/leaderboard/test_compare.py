"""Score files compared: who is better is said only where runs show it."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segpt.config.base import encode
from segpt.errors import SegptError
from segpt.leaderboard import compare as comparing
from segpt.stages.json_files import write_json
from segpt.values import Score


def compare(a: Path, b: Path) -> dict[str, Any]:
    """What the command says of two sides, as JSON values."""
    return dict(encode(comparing.compare(a, b)))


TEXT, OTHER = "a" * 64, "b" * 64
TOKENS = 40_000
SIZES = np.random.default_rng(0).integers(200, 9_000, 60)


def nats(bpb: float, seed: int, noise: float = 0.0) -> NDArray[np.float64]:
    """Nats of each document that come to ``bpb`` bits per byte in all, harder ones shared."""
    hardness = np.random.default_rng(1).normal(1, 0.2, len(SIZES))
    own = np.random.default_rng(seed + 100).normal(0, noise, len(SIZES))
    raw = SIZES * (hardness + own)
    return raw * bpb * math.log(2) * SIZES.sum() / raw.sum()


def written(path: Path, bpb: float, seed: int | None, **changes: Any) -> Path:
    """A file of `segpt score --out`; ``noise`` makes documents differ between models."""
    per = nats(bpb, seed or 0, changes.pop("noise", 0.0))
    documents = changes.pop("documents", True)
    conditions = {"overlap": "none", "context": 128, "stride": 64} | changes.pop("conditions", {})
    text, tokenizer = changes.pop("text", TEXT), changes.pop("tokenizer", "0123456789abcdef")
    fields: dict[str, Any] = {
        "nats": float(per.sum()),
        "bytes": int(SIZES.sum()),
        "tokens": TOKENS,
        "seconds": 3.0,
        "model": f"{path.parent.name} {path.stem}",
        "text": "some text",
        "denominator": "bytes",
        "policy": {"kind": "frozen"},
        "conditions": conditions,
        "origin": {"tokenizer": tokenizer, "text": text},
    }
    plain = Score(**(fields | changes)).plain()
    plain["seed"] = seed
    if documents:
        plain["by_document"] = {"nats": per.tolist(), "bytes": SIZES.tolist()}
    write_json(path, plain)
    return path


def side(place: Path, values: Sequence[float], seeds: Sequence[int | None], **changes: Any) -> Path:
    for i, (bpb, seed) in enumerate(zip(values, seeds, strict=True)):
        written(place / f"{i}.json", bpb, seed, **changes)
    return place


A, B = (1.0810, 1.0822, 1.0805), (1.0761, 1.0779, 1.0760)


@pytest.mark.slow
def test_three_seeds_on_each_side_name_the_better_one(tmp_path: Path) -> None:
    stats = pytest.importorskip("scipy.stats")
    found = compare(side(tmp_path / "a", A, (1, 2, 3)), side(tmp_path / "b", B, (1, 2, 3)))
    assert json.loads(json.dumps(found)) == found
    assert (found["better"], found["over"], found["flags"]) == ("B", "runs", [])
    assert (found["a"]["n"], found["a"]["seeds"]) == (3, [1, 2, 3])
    assert found["a"]["bpb"]["mean"] == pytest.approx(np.mean(A))
    assert found["b"]["bpb"]["sd"] == pytest.approx(np.std(B, ddof=1))
    difference = found["difference"]["bpb"]
    assert difference["mean"] == pytest.approx(np.mean(B) - np.mean(A))
    welch, pairs = stats.ttest_ind(B, A, equal_var=False), stats.ttest_rel(B, A)
    assert difference["welch"]["p"] == pytest.approx(welch.pvalue, rel=1e-6)
    assert difference["welch"]["t"] == pytest.approx(welch.statistic, rel=1e-6)
    assert difference["runs"]["p"] == pytest.approx(pairs.pvalue, rel=1e-6)
    assert difference["documents"] is None
    assert "B is better by 0.00" in found["verdict"]
    per_token = found["difference"]["nats_per_token"]
    factor = math.log(2) * int(SIZES.sum()) / TOKENS
    assert per_token["mean"] == pytest.approx(factor * difference["mean"])
    assert per_token["welch"]["p"] == pytest.approx(welch.pvalue, rel=1e-6)


def test_pairs_go_by_seed_whatever_the_order_of_the_files(tmp_path: Path) -> None:
    a, b = side(tmp_path / "a", A, (1, 2, 3)), side(tmp_path / "b", B, (1, 2, 3))
    mixed = side(tmp_path / "c", (B[2], B[0], B[1]), (3, 1, 2))
    straight, shuffled = (compare(a, x)["difference"]["bpb"]["runs"] for x in (b, mixed))
    assert straight == pytest.approx(shuffled)


@pytest.mark.parametrize("seeds", [(4, 5, 6), (1, 2, 4), (None, None, None), (1, 1, 2)], ids=str)
def test_other_seeds_are_independent_runs(tmp_path: Path, seeds: tuple[int | None, ...]) -> None:
    found = compare(side(tmp_path / "a", A, (1, 2, 3)), side(tmp_path / "b", B, seeds))
    assert found["over"] == "welch"
    assert found["difference"]["bpb"]["runs"] is None
    flags = " ".join(found["flags"])
    assert ("does not say which seeds" in flags) == (None in seeds)
    assert ("B has a seed twice: 1, 1, 2" in flags) == (seeds == (1, 1, 2))


def test_one_model_under_two_policies_is_paired_by_model(tmp_path: Path) -> None:
    for i, (before, after) in enumerate(zip(A, B, strict=True)):
        written(tmp_path / "a" / f"{i}.json", before, None, model=f"m{i}")
        policy = {"kind": "sgd", "rate": 0.3}
        written(tmp_path / "b" / f"{9 - i}.json", after, None, model=f"m{i}", policy=policy)
    found = compare(tmp_path / "a", tmp_path / "b")
    assert (found["over"], found["better"]) == ("runs", "B")
    assert "different policies" in " ".join(found["flags"])


def test_noise_is_not_a_difference(tmp_path: Path) -> None:
    values = (1.0815, 1.0800, 1.0819)
    found = compare(side(tmp_path / "a", A, (1, 2, 3)), side(tmp_path / "b", values, (4, 5, 6)))
    assert found["better"] is None
    assert found["verdict"].startswith("no difference is shown")
    worse = compare(tmp_path / "b", side(tmp_path / "c", (1.2, 1.201, 1.202), (7, 8, 9)))
    assert (worse["better"], worse["contest"]["met"]) == ("A", False)


@pytest.mark.parametrize(("count", "seeds"), [(1, (1,)), (2, (1, 2))])
def test_few_runs_name_no_winner(tmp_path: Path, count: int, seeds: tuple[int, ...]) -> None:
    a = side(tmp_path / "a", A[:count], seeds, noise=0.01)
    b = side(tmp_path / "b", [x / 2 for x in A[:count]], seeds, noise=0.02)
    found = compare(a, b)
    assert (found["better"], found["contest"]["met"], found["contest"]["p"]) == (None, None, None)
    assert f"A has {count} and B has {count} of the 3 runs" in found["verdict"]
    assert f"B has n = {count}: fewer than 3 runs" in found["flags"]
    assert (found["difference"]["bpb"]["welch"] is None) == (count == 1)


def test_single_scores_are_paired_over_documents_of_this_text(tmp_path: Path) -> None:
    a = written(tmp_path / "a.json", 1.08, 1, noise=0.01)
    b = written(tmp_path / "b.json", 1.07, 1, noise=0.02)
    found = compare(a, b)
    row = found["difference"]["bpb"]["documents"]
    assert found["over"] == "documents"
    assert row["mean"] == pytest.approx(-0.01)
    assert row["freedom"] == len(SIZES) - 1
    per = (nats(1.07, 1, 0.02) - nats(1.08, 1, 0.01)) / math.log(2)
    residuals = per - row["mean"] * SIZES
    error = residuals.std() * math.sqrt(len(SIZES) ** 2 / (len(SIZES) - 1)) / SIZES.sum()
    assert row["error"] == pytest.approx(error, rel=1e-6)
    assert found["verdict"].startswith("no verdict")
    assert "says nothing about the noise of training" in found["verdict"]
    assert "60 documents" in found["verdict"]


def test_without_figures_per_document_single_scores_have_no_test(tmp_path: Path) -> None:
    a, b = (
        written(tmp_path / f"{x}.json", y, 1, documents=False) for x, y in (("a", 1.1), ("b", 1.0))
    )
    found = compare(a, b)
    assert found["over"] is None
    assert found["difference"]["bpb"]["mean"] == pytest.approx(-0.1)
    assert {found["difference"]["bpb"][k] for k in ("runs", "welch", "documents")} == {None}
    assert compare(a, side(tmp_path / "c", B, (1, 2, 3)))["over"] is None


def test_keys_that_older_files_lack_are_not_needed(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", 1.1, 1, documents=False)
    table = json.loads(path.read_text())
    del table["seed"]
    path.write_text(json.dumps(table))
    assert compare(path, path)["a"]["seeds"] == [None]


def test_the_threshold_of_the_contest(tmp_path: Path) -> None:
    """0.005 nats per token, by Welch's test against the shifted figures."""
    stats = pytest.importorskip("scipy.stats")
    sp8192, tokens = 0.00194, round(int(SIZES.sum()) / 3.7266)
    a = side(tmp_path / "a", (1.0810, 1.0813, 1.0808), (1, 2, 3), tokens=tokens)
    b = side(tmp_path / "b", (1.0761, 1.0765, 1.0759), (4, 5, 6), tokens=tokens)
    contest = compare(a, b)["contest"]
    assert round(contest["bpb"], 5) == sp8192
    shifted = np.array([1.0810, 1.0813, 1.0808]) - contest["bpb"]
    expected = stats.ttest_ind(
        [1.0761, 1.0765, 1.0759], shifted, equal_var=False, alternative="less"
    )
    assert contest["p"] == pytest.approx(expected.pvalue, rel=1e-6)
    assert contest["met"] is True
    small = side(tmp_path / "c", (1.0792, 1.0794, 1.0791), (4, 5, 6), tokens=tokens)
    found = compare(a, small)
    assert (found["better"], found["contest"]["met"]) == ("B", False)
    finer = side(
        tmp_path / "d",
        (1.0761, 1.0765, 1.0759),
        (4, 5, 6),
        tokens=round(int(SIZES.sum()) / 3.157),
        tokenizer="finer",
    )
    assert round(compare(a, finer)["contest"]["bpb"], 5) == 0.00228
    assert round(compare(finer, a)["contest"]["bpb"], 5) == 0.00228


@pytest.mark.parametrize(
    ("changes", "flag", "verdict"),
    [
        ({"denominator": "pieces"}, "different denominators", "the denominators differ"),
        ({"tokenizer": "other"}, "different tokenizers", "B is better"),
        ({"policy": {"kind": "sgd"}}, "different policies", "B is better"),
        ({"conditions": {"stride": 16}}, "different windows", "B is better"),
        ({"conditions": {"overlap": "unchecked: no list"}}, "not proved: overlap", "B is better"),
    ],
)
def test_what_differs_is_flagged(tmp_path: Path, changes: Any, flag: str, verdict: str) -> None:
    a, b = side(tmp_path / "a", A, (1, 2, 3)), side(tmp_path / "b", B, (1, 2, 3), **changes)
    found = compare(a, b)
    assert [x for x in found["flags"] if flag in x], found["flags"]
    assert verdict in found["verdict"]
    assert (found["difference"]["nats_per_token"] is None) == ("tokenizer" in changes)
    assert (found["better"] is None) == ("differ" in verdict)


def test_sides_of_two_texts_are_refused(tmp_path: Path) -> None:
    a, b = side(tmp_path / "a", A, (1, 2, 3)), side(tmp_path / "b", B, (1, 2, 3), text=OTHER)
    with pytest.raises(SegptError, match=r"0\.json is of text aaaa.* of text bbbb.*one text"):
        compare(a, b)


def test_bits_per_byte_come_from_nats_and_bytes(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", 1.1, 1)
    table = json.loads(path.read_text())
    nudged = written(tmp_path / "b.json", 1.1, 2)
    path.write_text(json.dumps(table | {"bpb": table["bpb"] * (1 + 5e-10)}))
    bpb = table["nats"] / (math.log(2) * table["bytes"])
    assert compare(path, nudged)["a"]["bpb"]["values"] == [bpb]


FORGED: dict[str, tuple[Any, str]] = {
    "edited bpb": ({"bpb": 1.0}, "bpb is 1.0, but .* nats over"),
    "edited nats": ({"nats": 1.0}, "bpb is .*, but 1.0 nats over"),
    "edited bytes": ({"bytes": 10**6}, "bpb is .* nats over 1,000,000 bytes are"),
    "edited tokens": ({"tokens": 7}, "nats_per_token is .* nats over 7 tokens are"),
    "infinite": ({"bpb": 1e999}, r"\$\.bpb: expected a finite number"),
    "not a number": ({"nats": float("nan")}, r"\$\.nats: expected a finite number"),
    "huge": ({"bytes": 10**400}, "bytes is a count from 1"),
    "huge float": ({"nats": 1e308}, "nats is at most"),
    "infinite condition": (
        {"conditions": {"boundary_nats": 1e999}},
        "boundary_nats must be finite",
    ),
    "huge condition": ({"conditions": {"context": 10**400}}, "context is a whole number of more"),
    "deep": ({"policy": {"kind": "sgd", "x": [[[[[[[[[[1]]]]]]]]]]}}, "more than 8 deep"),
    "another text": ({"conditions": {"text": OTHER}}, "its conditions name 'bbbb"),
    "fewer documents": ({"conditions": {"documents": 59}}, "60 documents, but .* say 59"),
    "no documents": ({"by_document": {"nats": [], "bytes": []}}, "there is no document"),
    "negative": ({"by_document": {"nats": [-1.0], "bytes": [1]}}, "from 0 to"),
    "huge document": ({"by_document": {"nats": [1.0], "bytes": [10**400]}}, "a count from 0"),
    "infinite document": ({"by_document": {"nats": [1e999], "bytes": [1]}}, "finite number"),
    "overflowing": ({"by_document": {"nats": [1e308] * 3, "bytes": [1] * 3}}, "from 0 to"),
    "other sum": ({"by_document": {"nats": [1.0], "bytes": [1]}}, "sum to"),
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_score_is_refused_with_its_field(tmp_path: Path, kind: str) -> None:
    changes, words = FORGED[kind]
    good, bad = written(tmp_path / "good.json", 1.1, 1), tmp_path / "bad.json"
    bad.write_text(json.dumps(json.loads(good.read_text()) | changes))
    with pytest.raises(SegptError, match=rf"bad\.json.*{words}") as caught:
        compare(good, bad)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("key", ["bpb", "nats", "bytes", "tokens", "model", "conditions", "policy"])
def test_a_score_without_a_figure_is_one_line(tmp_path: Path, key: str) -> None:
    good, bad = written(tmp_path / "good.json", 1.1, 1), tmp_path / "bad.json"
    table = json.loads(good.read_text())
    del table[key]
    bad.write_text(json.dumps(table))
    with pytest.raises(SegptError, match=rf"bad\.json: .*(missing key '{key}'|\$\.{key}: )"):
        compare(good, bad)


def test_documents_of_one_text_have_the_same_bytes_on_both_sides(tmp_path: Path) -> None:
    """Bytes moved from one document to another, with all sums kept, would decide a test."""
    good, bad = written(tmp_path / "good.json", 1.1, 1), written(tmp_path / "bad.json", 1.1, 2)
    table = json.loads(bad.read_text())
    sizes = table["by_document"]["bytes"]
    sizes[0], sizes[1] = sizes[0] - 100, sizes[1] + 100
    bad.write_text(json.dumps(table))
    with pytest.raises(
        SegptError, match=r"bad\.json and .*good\.json .*documents have other bytes"
    ):
        compare(good, bad)


def test_scores_of_a_side_are_alike(tmp_path: Path) -> None:
    good = side(tmp_path / "good", A, (1, 2, 3))
    for changes, problem in (
        ({"text": OTHER}, "different texts"),
        ({"policy": {"kind": "sgd"}}, "different policies"),
        ({"tokenizer": "other"}, "different tokenizers"),
        ({"model": "b 0"}, "of the same model"),
    ):
        place = side(tmp_path / "b", B, (1, 2, 3))
        written(place / "3.json", 1.07, 4, **changes)
        with pytest.raises(SegptError, match=rf"3\.json and .*0\.json .*{problem}"):
            compare(good, place)


def test_what_is_no_score_is_named(tmp_path: Path) -> None:
    good = written(tmp_path / "good.json", 1.1, 1)
    bad = tmp_path / "bad.json"
    table = json.loads(good.read_text())
    short = {"nats": table["by_document"]["nats"][1:], "bytes": table["by_document"]["bytes"]}
    less = {"nats": table["by_document"]["nats"][1:], "bytes": table["by_document"]["bytes"][1:]}
    for content, problem in (
        ("{", "not valid JSON"),
        ("[]", "not a score"),
        ("{}", "not a score"),
        (json.dumps(table | {"bpb": -1}), "bpb must be positive"),
        (json.dumps(table | {"origin": {"text": TEXT}}), "tokenizer"),
        (json.dumps(table | {"by_document": short}), "do not go with"),
        (json.dumps(table | {"by_document": less}), "sum to"),
        (json.dumps(table | {"seed": "one"}), "seed"),
    ):
        bad.write_text(content)
        with pytest.raises(SegptError, match=rf"bad\.json.*{problem}"):
            compare(good, bad)
    (tmp_path / "empty").mkdir()
    for missing in ("nowhere.json", "empty"):
        with pytest.raises(SegptError, match=missing):
            compare(good, tmp_path / missing)


def test_runs_that_never_vary_show_nothing(tmp_path: Path) -> None:
    a, b = side(tmp_path / "a", [1.1] * 3, (1, 2, 3)), side(tmp_path / "b", [1.0] * 3, (1, 2, 3))
    found = compare(a, b)
    assert (found["better"], found["contest"]["met"]) == (None, None)
    assert "never vary" in found["verdict"]
