"""The page of a run: every part optional, every text inert, never large."""

import dataclasses
import math
import re
from collections import Counter
from html.parser import HTMLParser

import pytest

from segpt.report.contents import (
    CodedRow,
    Logged,
    Packed,
    Quantization,
    Report,
    ReportedScore,
    ReportRow,
    Sample,
    Share,
    Training,
)
from segpt.report.page import page, render, tiles

VOID = {"meta", "link", "br", "img", "input", "hr"}
HOSTILE = [
    "<script>alert(1)</script>",
    "</style></title><img src=x onerror=alert(1)>",
    "\"' autofocus onfocus=alert(1) x='",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% for x in y %}",
    "&lt;b&gt;&#60;i&#62;",
    "--><!-- ]]>",
    "https://evil.example/x?<b>",
]
UNFIT = "a\x00b\x1b[31mc\x85d\ud800e\u202ef\u2066g"


def whole(text: str = "demo") -> Report:
    """A report with every part, whose every text is ``text``."""
    lines = tuple(
        Logged(10 * i, 4.0 / (1 + i), 2.0 / (1 + i), None, 1.9 if i % 5 == 0 else None, 0.5, 1.0)
        for i in range(1, 40)
    )
    row = CodedRow(text, text, 1000, 4.25, 0.01, 0.001)
    pairs = ((text, text), ("seed", "1"))

    def score(file: str, adapts: bool) -> ReportedScore:
        return ReportedScore(
            *(file, text, adapts, 1.5, 200, 1000, 2.0, text, "d" * 64, pairs),
            documents=((500.0, 600.0), (500.0, 400.0)),
        )

    return Report(
        name=text,
        about=text,
        training=Training(lines, 1, 2, {text: 0.01}, 1_781_015, 400, 10_000, 12.5),
        quantization=Quantization(
            *(4.25, 1.7, 1.71, 0.001, 0.005, 0.97, 4096, (row,), (row,), (row,)),
            curve=((3.0, 0.1), (4.0, 0.03)),
            here=(4.25, 0.02),
            curve_tokens=512,
        ),
        packed=Packed(text, 900, 1000, "a" * 64, 1_781_015, (Share(text, 700.0, 9),), ()),
        scores=(score(text, False), score(f"{text}2", True)),
        rows=(ReportRow(text, None, 1.5, text), ReportRow(text, 900, 1.4, text)),
        samples=(Sample(text, text),),
        sampled=text,
        environment=pairs,
        lineage=pairs,
        recipe=text,
        missing={"samples": text},
        notices=(text,),
    )


class Reader(HTMLParser):
    """The tags, attributes and texts of a page, checked to nest as they should."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.ids: Counter[str] = Counter()
        self.targets: set[str] = set()
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        values = dict(attrs)
        self.ids.update([i for i in [values.get("id")] if i])
        self.targets |= {h for h in [values.get("href")] if h}
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_same_report_is_the_same_bytes() -> None:
    assert render(whole()) == render(whole())


def test_a_page_stands_alone() -> None:
    shown = render(whole())
    assert "default-src 'none'" in shown
    assert not re.search(r"https?://|url\(|@import|src=|<script|\son\w+=", shown)
    read = Reader(shown)
    assert read.targets - {"data:,"} == {t for t in read.targets if t.startswith("#")}
    assert {f"#{i}" for i in read.ids} >= {t for t in read.targets if t.startswith("#")}
    assert max(read.ids.values()) == 1


def test_tables_are_named_and_their_heads_have_a_direction() -> None:
    shown = render(whole())
    assert shown.count("<caption>") == shown.count("<table")
    assert shown.count("<th ") == shown.count("<th scope=") + shown.count("<th class=")
    assert '<html lang="en">' in shown
    assert shown.count('role="img"') == shown.count("<desc")


@pytest.mark.slow
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_inert(text: str) -> None:
    plain, read = Reader(render(whole())), Reader(render(whole(text)))
    assert read.tags == plain.tags
    assert read.attributes == plain.attributes
    assert text in "".join(read.texts)


def test_what_could_break_or_turn_the_page_is_replaced() -> None:
    shown = render(whole(UNFIT))
    shown.encode()
    assert "a\ufffdb\ufffd[31mc\ufffdd\ufffde\ufffdf\ufffdg" in shown
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e]", shown)


@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    [field.name for field in dataclasses.fields(Report) if field.name != "name"],
)
def test_every_part_may_be_missing(part: str) -> None:
    empty = Report("x")
    Reader(render(dataclasses.replace(whole(), **{part: getattr(empty, part)})))
    Reader(render(dataclasses.replace(empty, **{part: getattr(whole(), part)})))


def test_what_is_missing_is_told_with_its_command() -> None:
    lines = {part: f"segpt do-{part} <run>" for part in ("quantization", "bytes", "score", "ttt")}
    shown = render(Report("x", missing=lines))
    for part in lines:
        assert f"<code>segpt do-{part} &lt;run&gt;</code>" in shown
    assert shown.count("Not there yet") == len(lines)


def test_the_figures_that_matter_come_first() -> None:
    found = {name: (figure, remark) for name, figure, remark in tiles(whole())}
    assert found["bits per byte"] == ("1.5000", "of held-out text, weights frozen")
    assert found["with test-time training"] == ("1.5000", "bits per byte, 0.0 % fewer")
    assert found["the whole model"] == ("900", "bytes, 100 below the budget")
    assert found["bits per weight"] == ("7.20", "cost +0.0100 bits per byte")  # 8 * 900 / 1000
    assert found["weights"] == ("1,781,015", "trained on 10,000 tokens in 12 s")


def test_a_run_that_is_only_trained_shows_its_validation() -> None:
    report = Report("x", training=whole().training)
    assert ("bits per byte", "1.9000", "of held-out text, at the last validation") in tiles(report)
    assert list(tiles(Report("x"))) == []


def test_over_budget_is_said_loudly() -> None:
    packed = dataclasses.replace(whole().packed, bytes=1100)  # type: ignore[type-var]
    assert ("the whole model", "1,100", "bytes, 100 OVER the budget") in tiles(
        Report("x", packed=packed)
    )


def test_the_running_figure_ends_at_the_score() -> None:
    score = dataclasses.replace(
        whole().scores[0], documents=((100.0, 60.0), (50.0, 0.0), (7.0, 40.0))
    )
    running = score.running()
    assert [x for x, _ in running] == [60.0, 60.0, 100.0]
    assert running[-1][1] == pytest.approx(157 / math.log(2) / 100)


def test_scores_of_another_text_are_not_drawn_together() -> None:
    plain, adapted = whole("name").scores
    other = dataclasses.replace(adapted, digest="e" * 64)
    together = render(Report("x", scores=(plain, adapted)))
    apart = render(Report("x", scores=(plain, other)))
    assert together.count("ends at") == 3
    assert apart.count("ends at") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["layers.31.mixer.body.query", "<" * 300])
def test_the_largest_of_runs_fits_the_page(name: str) -> None:
    def gap(i: int) -> float | None:
        return 1.0 if i % 2 else None

    lines = tuple(
        Logged(
            i, math.sin(i * i), math.cos(i * i), math.sin(i), math.cos(i), math.sin(3 * i), gap(i)
        )
        for i in range(8_000)
    )
    row = CodedRow(name, "matrix", 10**9, 4.25, 0.01, 0.001)
    weights = tuple(row._replace(bits=2 + i / 1000, error=1 / (1 + i)) for i in range(5_000))
    base = whole()
    assert base.quantization is not None
    report = dataclasses.replace(
        base,
        training=Training(lines, rates={f"kind {i}": 0.1 * i for i in range(4)}),
        quantization=dataclasses.replace(
            base.quantization, weights=weights, layers=(row,) * 200, roles=(row,) * 40
        ),
        scores=tuple(
            dataclasses.replace(
                base.scores[0],
                adapts=i > 0,
                documents=tuple((500.0 + i, 400.0) for i in range(4_000)),
                conditions=((name, name),) * 40,
            )
            for i in range(8)
        ),
        samples=(Sample("p" * 2000, "t" * 2000),) * 12,
        lineage=((name, name),) * 40,
        recipe="r" * 40_000,
    )
    found = page(report).decode()
    assert len(found) <= 500_000
    assert ("To keep the page small" in found) == (name[0] == "<")
    Reader(found)


def test_bits_per_weight_before_packing_are_an_estimate() -> None:
    names = {name for name, *_ in tiles(dataclasses.replace(whole(), packed=None))}
    assert "about bits per weight" in names
    assert "bits per weight" not in names
