"""Submissions whose numbers, encodings and lines are of any kind end in findings, and soon."""

import json
import time
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from segpt.contest import claims, logs
from segpt.contest.check import check
from segpt.contest.imports import absent, carries
from segpt.contest.read_folder import check_folder, read_previous
from segpt.contest.submission_folder import Folder
from segpt.errors import SpecError

ABOUT = {
    "author": '"a"',
    "name": '"n"',
    "date": '"2026-04-01"',
    "val_bpb": "1.0614",
    "val_loss": "2.7",
    "bytes_total": "15000012",
    "bytes_code": "12",
}
LOG = "seed: 1\nstep:1/10 train_loss:3.0\nfinal val_bpb:{0} val_loss:2.7420\n"
LONG = "9" * 5_000
NUMBERS = {
    "zero": "0.0",
    "infinite": "1e400",
    "minus infinite": "-1e400",
    "beyond decimals": "1e99999999999999999999",
    "as small": "1e-99999999999999999999",
    "tiny": "1e-400",
    "negative": "-1.5",
    "large": "1e30",
    "no number": "NaN",
    "infinity": "-Infinity",
    "5,000 digits": LONG,
    "minus 5,000 digits": f"-{LONG}",
    "5,000 digits and a half": f"{LONG}.5",
    "5,000 decimals": f"1.{LONG}",
    "a million decimals": "1." + "7" * 10**6,
}


def about(**changes: str) -> str:
    return "{" + ",".join(f'"{k}":{v}' for k, v in (ABOUT | changes).items()) + "}"


def found(texts: dict[str, str]) -> list[str]:
    whole = {"README.md": "# n\n", "train_gpt.py": "print('hi')\n", **texts}
    sizes = {name: len(text.encode()) for name, text in whole.items()}
    return [f"{one.kind}: {one.text}" for one in check(Folder(sizes, whole), date(2026, 5, 1))]


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
@pytest.mark.parametrize("field", ["val_bpb", "val_loss", "bytes_total", "bytes_code"])
def test_any_number_of_the_metadata_ends_in_a_finding(field: str, number: str) -> None:
    lines = found({"submission.json": about(**{field: number}), "a.log": LOG.format("1.0614")})
    assert lines
    assert all(len(line) < 300 for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
def test_any_number_of_a_seed_a_log_or_a_table_ends_in_a_finding(number: str) -> None:
    seeds = f'{{"1": {{"val_bpb": {number}, "bytes_total": {number}, "train_time_s": {number}}}}}'
    page = f"# n val_bpb {number}\n\n| seed | bpb |\n|--|--|\n| 1 | {number} |\np = {number}\n"
    texts = {
        "submission.json": about(seed_results=seeds, seeds=f"[{number}]"),
        "README.md": page,
        "a.log": LOG.format(number) + f"seed: {number}\nCode size: {number} bytes\n"
        f"step:{number}/9 train_loss:1\ntrain_shards: {number}\nval_tokens: {number}\n"
        f"Total submission size: {number} bytes\ntrain_time: {number}ms\neval_time: {number}s\n",
        "train_seed²_seed1.log": LOG.format(number),
    }
    assert found(texts)


def test_a_number_that_no_run_can_have_is_named() -> None:
    for number, named in (("1e400", "1e400"), (LONG, "(5,000 characters)"), ("-1.5", "-1.5")):
        lines = found({"submission.json": about(val_bpb=number)})
        assert any(named in line and line.startswith("number") for line in lines), lines
        assert "missing: names no val_bpb" in lines


def test_a_loss_of_nothing_is_a_value() -> None:
    lines = found({"submission.json": about(val_loss="0.0"), "a.log": LOG.format("1.0614")})
    assert any(line.startswith("denominator") and "0.0 nats" in line for line in lines), lines
    read = claims.read(about(val_loss="0.0", bytes_total="0.0"))
    assert read.loss == 0
    assert read.bytes == 0


@pytest.mark.slow
def test_tables_that_lie_too_deep_are_no_json() -> None:
    with pytest.raises(SpecError, match="JSON"):
        claims.read('{"a":' * 20_000)
    for depth in range(100, 1000, 9):
        assert found({"submission.json": '{"a":' * depth + "1" + "}" * depth})


@pytest.mark.parametrize("against", ["nan", "inf", "1e400", "-1", "0"])
def test_no_record_has_such_a_figure(against: str) -> None:
    with pytest.raises(SpecError, match="bits per byte"):
        read_previous(against)


ENCODINGS = {
    "UTF-8": lambda text: text.encode(),
    "with a mark": lambda text: text.encode("utf-8-sig"),
    "UTF-16": lambda text: text.encode("utf-16"),
    "big-endian": lambda text: "\ufeff".encode("utf-16-be") + text.encode("utf-16-be"),
    "UTF-16 without a mark": lambda text: text.encode("utf-16-le"),
    "big-endian without a mark": lambda text: text.encode("utf-16-be"),
    "UTF-32": lambda text: text.encode("utf-32"),
}


@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS)
def test_a_submission_is_the_same_in_every_encoding(encode: Any, tmp_path: Path) -> None:
    code = b"print('hi')\n"
    size = 15_000_000 + len(code)
    about = {"author": "a", "name": "n\xe4me", "date": "2026-04-01", "val_bpb": 1.0612}
    about |= {"val_loss": 2.7420, "bytes_total": size, "bytes_code": len(code), "seeds": [1]}
    log = LOG.format(1.0612) + f"Total submission size: {size} bytes\nCode size: 12 bytes\n"
    (tmp_path / "train_gpt.py").write_bytes(code)
    for name, text in {
        "submission.json": json.dumps(about, ensure_ascii=False),
        "README.md": "# n\nval_bpb 1.0612\n",
        "train_seed1.log": log,
        "requirements.txt": "numpy\n",
    }.items():
        (tmp_path / name).write_bytes(encode(text))
    assert check_folder(tmp_path) == []


def test_a_script_with_lone_surrogates_and_bombs_is_read() -> None:
    assert carries('x = "\\ud800' + "a" * 600 + '"') != {}
    assert absent("(" * 5_000, "") == []


# Lines that cost the square of their length where a pattern can divide them in many ways.
LINES = {
    "digits": "1",
    "decimals": "1.1",
    "a decimal": "val_bpb: 1.1",
    "spaces": " ",
    "p and spaces": "p ",
    "colons": ":",
    "bpb": "bpb",
    "losses": "val_loss_",
    "val": "val ",
    "val tokens": "val tokens: x ",
    "commas": "1,111",
    "bars": "| ",
    "signs": "-=",
    "steps": '{"step": ',
    "seed": "seed",
    "best": "best 1 of ",
    "words": "total size ",
}


def _seconds(line: str) -> float:
    begun = time.process_time()
    _read_all(line)
    return time.process_time() - begun


def _read_all(line: str) -> None:
    logs.read("a.log", line)
    page = f"# {line}\n{line}\n| seed | a |\n|--|--|\n| 1 | {line} |\n"
    for row in claims.rows(page):
        for cell in row.cells.values():
            claims.numbers(cell)
    claims.headlines(page)
    claims.best_of(page)
    claims.chances(page)


@pytest.mark.slow
@pytest.mark.parametrize("word", LINES.values(), ids=LINES)
def test_time_grows_as_the_length_of_a_line(word: str) -> None:
    for start, end in (("", "x"), ("p", "x"), ("val_bpb: 1.", "1,1")):
        lines = [start + word * (size // len(word)) + end for size in (20_000, 80_000)]
        small, large = map(_seconds, lines)
        assert large < 8 * small + 0.1, (start, end, small, large)
