"""The comparison of two trees can fail: it sees a changed bit, and masks what it says alone."""

import inspect
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save

from bench import calls, differences, unchanged
from bench.calls import Call
from bench.differences import MASK, MASKED, Difference, masked, of_files, of_texts, of_values
from bench.unchanged import Outcome, Side, difference

SCORE: dict[str, Any] = {
    "bpb": 1.6933012345678901,
    "seconds": 3.9,
    "by": [{"nats": 5.5, "commit": "abc"}],
}


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def weights(*values: float) -> bytes:
    return save({"table": np.array(values, np.float32), "other": np.zeros(2, np.float32)})


def last_bit(value: float) -> float:
    """The next number that a float32 can be."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    return float(struct.unpack("<f", struct.pack("<I", bits + 1))[0])


def test_the_last_bit_of_a_tensor_counts(tmp_path: Path) -> None:
    base = write(tmp_path / "base" / "weights.safetensors", weights(0.5, 1.5))
    same = write(tmp_path / "same" / "weights.safetensors", weights(0.5, 1.5))
    other = write(tmp_path / "other" / "weights.safetensors", weights(0.5, last_bit(1.5)))
    assert of_files(base, same, {}) is None
    first = of_files(base, other, {})
    assert first is not None
    assert first.place == "tensors.table"
    assert first.base != first.now


def test_only_seconds_are_masked_in_the_state_of_a_run(tmp_path: Path) -> None:
    def state(elapsed: float, moment: float) -> bytes:
        return save({"elapsed": np.array(elapsed), "moment": np.array([moment])})

    base = write(tmp_path / "base" / "state.safetensors", state(1.0, 0.5))
    later = write(tmp_path / "later" / "state.safetensors", state(2.0, 0.5))
    other = write(tmp_path / "other" / "state.safetensors", state(1.0, 0.25))
    assert of_files(base, later, {}) is None
    assert of_files(base, other, {}) is not None


@pytest.mark.parametrize(
    ("now", "place"),
    [
        (SCORE | {"bpb": float(np.nextafter(SCORE["bpb"], 2.0))}, "$.bpb"),
        (SCORE | {"by": [{"nats": 5.25, "commit": "abc"}]}, "$.by[0].nats"),
        (SCORE | {"by": []}, "$.by, how many"),
        (SCORE | {"more": None}, "$.more"),
        ({key: SCORE[key] for key in reversed(SCORE)}, "$, order of keys"),
        (SCORE | {"seconds": None}, "$.seconds"),
    ],
)
def test_what_changed_in_json_is_named(now: Any, place: str) -> None:
    first = of_texts(json.dumps(SCORE), json.dumps(now))
    assert first is not None
    assert first.place == place


def test_what_passes_does_not_count() -> None:
    later = SCORE | {"seconds": 4.1, "by": [{"nats": 5.5, "commit": "def"}]}
    assert of_texts(json.dumps(SCORE), json.dumps(later)) is None
    lines = [json.dumps(row) + "\n" + json.dumps({"step": 1}) + "\n" for row in (SCORE, later)]
    assert of_texts(lines[0], lines[1]) is None


def test_numbers_are_compared_as_they_are_written() -> None:
    assert of_texts('{"a": 1}', '{"a": 1}') is None
    for other in ('{"a": 1.0}', '{"a": "1"}', '{"a": true}', '{"a":  1}', '{"a": 1}\n'):
        assert of_texts('{"a": 1}', other) is not None


@pytest.mark.parametrize("key", ["second", "bpb", "digest", "sha256", "tokens", "date", "bytes"])
def test_only_the_listed_keys_are_masked(key: str) -> None:
    assert masked({key: 1}) == {key: 1}
    assert of_values(masked({"a": [{key: 1}]}), masked({"a": [{key: 2}]})) is not None


def test_every_masked_key_is_listed() -> None:
    assert masked(dict.fromkeys(MASKED, 1.5)) == dict.fromkeys(MASKED, MASK)
    listed = inspect.getdoc(differences) or ""
    tensors, headers = differences.MASKED_TENSORS, differences.MASKED_IN_HEADERS
    for key in MASKED | tensors | headers | differences.SIZES:
        assert f"``{key}``" in listed, key


def test_digests_are_masked_in_headers_only(tmp_path: Path) -> None:
    headers = [json.dumps({"spec": 1, "digest": digest}).encode() for digest in ("a", "b")]
    for name, differs in (("header.json", False), ("score.json", True)):
        base, now = (
            write(tmp_path / digest / name, d) for digest, d in zip("ab", headers, strict=True)
        )
        assert (of_files(base, now, {}) is not None) == differs


def test_lines_of_text_and_bytes_are_compared(tmp_path: Path) -> None:
    first = of_texts("one\ntwo\n", "one\nthree\n")
    assert first == Difference("line 2", "two", "three")
    base, now = (
        write(tmp_path / side / "a.segz", b"\xff\x00" + end)
        for side, end in (("b", b"1"), ("n", b"2"))
    )
    first = of_files(base, now, {})
    assert first is not None
    assert first.place == "SHA-256"


def test_times_and_commits_in_text_pass_and_figures_do_not() -> None:
    old = f"3.1932 bits per byte, 3.9 s, 12ms, commit {'a' * 40}"
    assert of_texts(old, f"3.1932 bits per byte, 14 s, 7ms, commit {'b' * 40}") is None
    assert of_texts(old, old.replace("3.1932", "3.1933")) is not None
    cell = '<td class="n">{}</td>'
    assert of_texts(cell.format("9.2"), cell.format("8.3")) is None
    assert of_texts(cell.format("1.6933"), cell.format("1.6934")) is not None
    assert of_texts(f"sha256 {'a' * 64}", f"sha256 {'b' * 64}") is not None


def test_what_is_shown_of_long_values_is_where_they_part() -> None:
    first = of_texts(f"{'a' * 500} 1", f"{'a' * 500} 2")
    assert first is not None
    assert first.base.endswith("a 1")
    assert first.now.endswith("a 2")
    assert len(first.base) < 100


def test_sizes_pass_only_where_a_script_tells_them() -> None:
    text, table = "Code size: {} bytes", '{{"bytes_code": {}, "val_bpb": 1.5}}'
    for form in (text, table):
        old, new = form.format(100), form.format(101)
        assert of_texts(old, new) is not None
        assert of_texts(old, new, differences.SIZED) is None


def test_progress_is_no_notice() -> None:
    said = "text: a.txt\ntrain demo:  12%  step 3, ETA 4 s\nread text:  5 bytes\nmatrix: feed  muon"
    assert differences.notices(said) == "text: a.txt\nmatrix: feed  muon"


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Side, Side]:
    both = [
        Side(name, tmp_path / f"{name}-tree", tmp_path / name, tmp_path / "site")
        for name in ("base", "now")
    ]
    for side in both:
        write(side.place / "out.json", json.dumps({"at": str(side.place), "bpb": 1.5}).encode())
    return both[0], both[1]


SAID = Outcome(0, "{}", "", frozenset({"out.json"}))


def test_a_missing_output_is_found(sides: tuple[Side, Side]) -> None:
    assert difference(Call("score"), sides, (SAID, SAID)) is None
    (sides[1].place / "out.json").unlink()
    for now in (SAID, SAID._replace(written=frozenset())):
        first = difference(Call("score"), sides, (SAID, now))
        assert first is not None
        assert first == Difference("out.json the file", "there", "missing")


def test_a_command_has_to_end_as_it_should(sides: tuple[Side, Side]) -> None:
    failed = SAID._replace(code=2, stderr="segpt: no such file")
    first = difference(Call("score"), sides, (failed, failed))
    assert first is not None
    assert first.base == "2 segpt: no such file"
    assert difference(Call("score", 2), sides, (failed, failed)) is None
    other = failed._replace(stderr="segpt: another line")
    assert difference(Call("score", 2), sides, (failed, other)) is not None


def test_groups_run_after_what_they_need() -> None:
    assert calls.ordered(["score"])[-1] == "score"
    assert set(calls.ordered(["score"])) == {"data", "train", "twins", "quantize", "small", "score"}
    assert calls.ordered([]) == list(calls.GROUPS)
    for name in calls.GROUPS:
        order = calls.ordered([name])
        assert all(order.index(need) < order.index(name) for need in calls.GROUPS[name].needs)


def test_an_unknown_commit_is_one_line() -> None:
    done = CliRunner().invoke(unchanged.main, ["no-such-commit"])
    assert done.exit_code == 2
    assert done.output == "Error: 'no-such-commit' is no commit of this repository\n"
