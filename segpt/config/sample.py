"""How text is drawn from a model, as data."""

import math

from segpt.errors import SpecError

from .base import spec

PENALISED = 128  # tokens that a penalty looks back over
HALVES = 140  # tokens after which a repetition counts half
MOST_REPEATS = 3.0  # what repetitions count together at most


@spec
class SampleSpec:
    """At most ``tokens`` tokens after each prompt, each drawn from what the model expects.

    In this order: logits are penalised for repetition, divided by ``temperature`` (0 takes the
    most likely token), cut to the ``top_k`` most likely tokens (0 keeps all), and of these to the
    fewest that have a probability of ``top_p`` together (arXiv 1904.09751; 1 keeps all).

    ``repetition_penalty`` divides a positive logit and multiplies a negative one, once for each
    time that the token stands among the last 128 of prompt and text. A time counts less the
    longer ago it was, half as much every 140 tokens, and all of them at most three times.

    Prompt number i has a generator of its own, which ``seed`` and i determine, so that its text
    does not depend on the other prompts, nor, but for the rounding of floats, on the ``batch`` of
    them that runs together. Attention looks back over ``context`` tokens (null: seven eighths of
    the model's), as a rolling score does, so prompt and text may be of any length.
    ``cache: false`` computes every position again for every token.
    """

    tokens: int = 100
    temperature: float = 0.7
    top_k: int = 50
    top_p: float = 0.95
    repetition_penalty: float = 1.15
    seed: int = 1
    context: int | None = None
    batch: int = 16
    cache: bool = True

    def __post_init__(self) -> None:
        if min(self.tokens, self.batch) < 1:
            raise SpecError("tokens and batch must be at least 1")
        if self.context is not None and self.context < 1:
            raise SpecError("context must be at least 1")
        if min(self.top_k, self.seed) < 0:
            raise SpecError("top_k and seed are not negative")
        if not 0 <= self.temperature < math.inf:
            raise SpecError("temperature is not negative")
        if not 0 < self.top_p <= 1:
            raise SpecError("top_p lies above 0 and is at most 1")
        if not 1 <= self.repetition_penalty < math.inf:
            raise SpecError("repetition_penalty is at least 1, which changes nothing")
