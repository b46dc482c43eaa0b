"""The limits of contests, and how findings read."""

import pytest

from segpt.config.rules import RULES, Finding, Rules, broken, find, rounded, sentence
from segpt.errors import SpecError


@pytest.mark.parametrize(
    ("count", "fits"),
    [(162_165_555, True), (162_499_999, True), (162_500_000, False), (201_000_000, False)],
)
def test_parameters_are_compared_as_rounded_to_the_million(count: int, fits: bool) -> None:
    # the record has 165,555 more than the limit says
    rules = find("lapp0")
    assert rules.parameters is not None
    assert (rounded(count, rules.multiple) <= rules.parameters) is fits


def test_time_holds_for_the_hardware_that_rules_name() -> None:
    lapp0, golf = find("lapp0"), find("golf")
    assert lapp0.timed("NVIDIA H100 80GB HBM3", 8)
    assert not lapp0.timed("NVIDIA H100 80GB HBM3", 2)
    assert not lapp0.timed("cpu", 8)
    assert golf.timed("cpu", 1)


def test_a_limit_on_loss_has_a_unit_a_text_and_a_tokenizer() -> None:
    for rules in RULES:
        assert rules.unit
        assert rules.text
        assert not rules.comparable(None, None)
        assert not rules.comparable("0" * 16, "0" * 64)
    assert find("lapp0").unit == "nats per token"
    pinned = Rules(name="r", about="", text="a text", tokenizers=("1" * 16,), texts=("2" * 64,))
    assert pinned.comparable("1" * 16, "2" * 64)
    assert not pinned.comparable("1" * 16, "3" * 64)
    assert not pinned.comparable("0" * 16, "2" * 64)


def test_unknown_rules_are_refused_with_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"did you mean 'lapp0'\? known: golf, lapp0"):
        find("lap0")
    assert {rules.name for rules in RULES} == {"lapp0", "golf"}


def test_what_is_broken_is_told_with_limit_and_measure() -> None:
    findings = [
        Finding("order", "sequential", "shuffled", False, "set train.order=sequential"),
        Finding("time", "600 s", "5 s", True),
        Finding("loss", "3.28", "not yet", None),
    ]
    assert broken(findings) == findings[:1]
    assert sentence(broken(findings)) == (
        "order is shuffled, and the limit sequential (set train.order=sequential)"
    )
