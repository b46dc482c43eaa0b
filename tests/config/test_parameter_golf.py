"""The contest's counts are recognised, and every published way to miscount is flagged."""

import pytest

from segpt.config.parameter_golf import (
    DOCUMENTS,
    REFERENCE,
    Reference,
    margin,
    reference,
    truncated,
)

SP1024, SP4096, SP8192, CASEOPS = REFERENCE
by_name = pytest.mark.parametrize("known", REFERENCE, ids=lambda known: known.name)


@pytest.mark.parametrize(
    ("known", "published"),
    [(SP1024, 2.4359), (SP4096, 3.3192), (SP8192, 3.7266), (CASEOPS, 3.1572)],
)
def test_bytes_per_token_are_the_published_ones(known: Reference, published: float) -> None:
    assert round(known.bytes_per_token, 4) == published


@pytest.mark.parametrize(("bytes_per_token", "bits"), [(3.7266, 0.00194), (3.157, 0.00228)])
def test_the_margin_in_bits_per_byte(bytes_per_token: float, bits: float) -> None:
    assert round(margin(bytes_per_token), 5) == bits


@by_name
def test_each_count_is_recognised(known: Reference) -> None:
    assert reference(known.targets, known.bytes) == (known.name, None)
    assert reference(known.targets, known.bytes + known.tolerance) == (known.name, None)
    assert reference(known.targets, known.bytes, DOCUMENTS) == (known.name, None)


def test_other_published_counts_of_the_same_data_are_recognised() -> None:
    assert reference(SP8192.targets, 151_078_222) == ("sp8192", None)
    assert reference(CASEOPS.targets, 151_074_309) == ("sp8192-caseops", None)


@by_name
@pytest.mark.parametrize("left", [0, 1, 500, -1])
def test_the_loader_keeps_whole_sequences(known: Reference, left: int) -> None:
    """Any stream that is cut to the published targets is at most a sequence longer."""
    tail = left % known.sequence
    assert truncated(known.targets + tail + 1, known.sequence) == known.targets + 1
    assert truncated(known.targets + known.sequence + 1, known.sequence) > known.targets + 1
    assert truncated(known.targets, known.sequence) == known.targets + 1 - known.sequence


def test_truncation_drops_what_was_published() -> None:
    whole = 47_853_343
    assert whole + 1 - truncated(whole + 1, CASEOPS.sequence) == 1_823
    assert truncated(whole + 1, CASEOPS.sequence) == CASEOPS.targets + 1
    assert truncated(1, 2048) == truncated(0, 2048) == truncated(2048, 2048) == 1
    assert truncated(2049, 2048) == 2049


@by_name
def test_the_whole_stream_is_recognised_too(known: Reference) -> None:
    tail = known.sequence - 1
    spelt = known.bytes + round(known.bytes_per_token * tail)
    assert reference(known.targets + tail, spelt) == (known.name, None)
    assert reference(known.targets + known.sequence, spelt) == (None, None)
    assert reference(known.targets - 1, known.bytes) == (None, None)


WRONG = {
    "replacement characters as three bytes": 157_319_833 / 151_073_604,
    "operators as three bytes each": 164_594_398 / 151_074_309,
    "spaces counted twice": 1.17,
    "one document in a hundred counted twice": 1.01,
    "no piece for a lone space": 1.25,
    "a byte per token too few": 0.8,
}


@by_name
@pytest.mark.parametrize("ratio", WRONG.values(), ids=WRONG)
def test_every_wrong_denominator_is_flagged(known: Reference, ratio: float) -> None:
    found = reference(known.targets, round(known.bytes * ratio))
    assert found.name == known.name
    assert found.warning is not None
    assert f"{ratio:.4f} of its {known.bytes:,}" in found.warning
    tail = reference(known.targets + known.sequence - 1, round(known.bytes * ratio))
    assert tail.warning is not None


def test_published_wrong_denominators_are_flagged_whatever_the_tokenizer() -> None:
    """The 50,000 documents have as many bytes under any tokenizer that counts them rightly."""
    for bytes_ in (157_319_833, 164_594_398):
        found = reference(33_000_000, bytes_, DOCUMENTS)
        assert found.name is None
        assert found.warning is not None
        assert "of its text" in found.warning
    assert reference(33_000_000, 151_073_604, DOCUMENTS) == (None, None)
    assert reference(CASEOPS.targets, 164_594_398).warning is not None


@by_name
def test_a_few_bytes_too_many_are_flagged(known: Reference) -> None:
    assert reference(known.targets, known.bytes + known.tolerance + 1).warning is not None
    assert reference(known.targets, known.bytes - known.tolerance - 1).warning is not None


def test_other_texts_are_not_the_contests() -> None:
    assert reference(78_209, 237_560, 82) == (None, None)
    assert reference(78_209, 237_560, None) == (None, None)
