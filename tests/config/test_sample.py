"""How text is drawn, as data: defaults, and what is refused."""

import pytest

from segpt.config.base import decode, encode
from segpt.config.sample import SampleSpec
from segpt.errors import SpecError


def test_it_is_plain_data() -> None:
    spec = SampleSpec(tokens=7, top_p=0.5, context=9, cache=False)
    assert decode(SampleSpec, encode(spec)) == spec


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ({"tokens": 0}, "tokens"),
        ({"batch": 0}, "batch"),
        ({"context": 0}, "context"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"seed": -1}, "seed"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"repetition_penalty": 0.9}, "repetition_penalty"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty"),
    ],
)
def test_what_cannot_be_meant_is_refused(setting: dict[str, float], word: str) -> None:
    with pytest.raises(SpecError, match=word):
        SampleSpec(**setting)  # type: ignore[arg-type]
