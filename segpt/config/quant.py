"""How a model is quantized, as data: the method, its rules or its rate, and what calibrates it."""

import dataclasses
from typing import Literal

from segpt.errors import SpecError

from .base import ADDED, BYTES, spec
from .layout import Role, Weight
from .precision import Precision
from .route import indices

STATES = (1, 4, 8, 16)  # of a trellis; see segpt.trellis

# Clip at k standard deviations of the row (SDClip). At 6 and 8 bits these are the contest's
# values, at 7 the later records'; clipping never happens there and k sets the entropy of the
# codes. Below 6 bits the grid is too coarse for that, and k falls towards the clip that
# minimises the squared error of a Gaussian row.
CLIP = {2: 1.25, 3: 2.2, 4: 4.0, 5: 7.5, 6: 12.85, 7: 15.0, 8: 20.0}


@spec
class Rule:
    """Weights of ``role`` (in ``layers``, a slice such as ``"0,-1"``) get ``bits`` bits.

    ``bits`` 2 to 8 means codes in [-Q, Q] with Q = 2^(bits - 1) - 1 and a float16 scale
    k * std(row) / Q per row, or per ``group`` columns of a row; ``bits`` 16 stores float16.
    ``clip`` is k; left out it follows from the bits.
    """

    role: Literal["table", "matrix", "head", "vector"]
    bits: int
    layers: str | None = None
    clip: float | None = None
    group: int | None = None

    def __post_init__(self) -> None:
        if self.bits not in (*range(2, 9), 16):
            raise SpecError(f"bits are 2 to 8, or 16 for float16; got {self.bits}")
        if self.role == "vector" and self.bits != 16:
            raise SpecError("vectors are stored as float16: their rule needs bits 16")
        if self.clip is not None and self.clip <= 0:
            raise SpecError(f"clip must be positive, got {self.clip}")
        if self.group is not None and self.group < 1:
            raise SpecError(f"group must be at least 1 column, got {self.group}")

    @property
    def k(self) -> float:
        """Standard deviations of the row at which codes are clipped."""
        return self.clip if self.clip is not None else CLIP.get(self.bits, 0.0)


DEFAULT_RULES = (
    Rule(role="table", bits=8),
    Rule(role="matrix", bits=6),
    Rule(role="head", bits=8),
    Rule(role="vector", bits=16),
)


Method = Literal["trellis", "rd", "gptq", "nearest"]


@spec
class QuantSpec:
    """Method, rules (the last that matches a weight wins) and calibration.

    ``gptq`` and ``nearest`` round to grids of as many bits as the rules say. ``trellis`` and
    ``rd`` design the steps of every row and column instead, so that the whole model meets a
    ``budget`` in bytes of the packed file or a ``rate`` in bits per weight; of the rules only
    float16 matters to them. ``rd`` has one uniform grid per weight and rounds against the rate,
    ``trellis`` two that a machine with ``states`` alternates.

    ``damping`` is the fraction of the mean Hessian diagonal that is added to it. ``by_row`` and
    ``by_column`` are exponents of the step design, see :func:`segpt.quant.design.design`;
    ``penalty`` is lambda of the rounding of ``rd``; ``two_sided`` feeds errors back to the rows
    that are coded later, and not only within a row. ``search`` rounds look for better steps for
    each kind of weight on training text. After the table, each layer and the head are coded,
    ``tune_steps`` steps at ``tune_rate`` tune what is still float to the float model's outputs.
    ``precision`` is what the model multiplies in meanwhile; ``auto`` is float32 on every device.
    ``context`` is how many tokens a row of text has that calibrates, tunes or measures; None is
    the model's context, and more than that is never read.
    """

    method: Method = "trellis"
    rules: tuple[Rule, ...] = DEFAULT_RULES
    budget: int | None = dataclasses.field(default=None, metadata=BYTES)
    rate: float | None = None
    states: int = 8
    by_row: float = 0.5
    by_column: float = 0.5
    penalty: float = 0.05
    two_sided: bool = True
    search: int = 1
    tune_steps: int = 60
    tune_rate: float = 0.001
    calibration_tokens: int = 131_072
    damping: float = 0.01
    act_order: bool = True
    block: int = 128
    report_tokens: int = 32_768
    precision: Precision = dataclasses.field(default="auto", metadata=ADDED)
    context: int | None = dataclasses.field(default=None, metadata=ADDED)

    def __post_init__(self) -> None:
        for name in ("calibration_tokens", "block", "report_tokens"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("search", "tune_steps", "penalty", "by_row", "by_column", "tune_rate"):
            if getattr(self, name) < 0:
                raise SpecError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.context is not None and self.context < 1:
            raise SpecError(f"context must be at least 1 token, got {self.context}")
        if self.damping <= 0:
            raise SpecError(f"damping must be positive, got {self.damping}")
        if self.states not in STATES[1:]:
            raise SpecError(f"states are 4, 8 or 16, got {self.states}; rd is one state")
        if self.budget is not None and self.budget < 1:
            raise SpecError(f"budget must be at least 1 byte, got {self.budget}")
        if self.rate is not None and not 0.1 <= self.rate <= 8:
            raise SpecError(f"rate is 0.1 to 8 bits per weight, got {self.rate}")
        if self.budget is not None and self.rate is not None:
            raise SpecError("give a budget or a rate, not both")
        if not self.designed and (self.budget is not None or self.rate is not None):
            raise SpecError(
                f"{self.method} has no budget or rate: its rules set the bits; "
                "use method trellis or rd"
            )

    def row(self, context: int) -> int:
        """Tokens of a row of text, for a model of this context."""
        return context if self.context is None else min(self.context, context)

    @property
    def designed(self) -> bool:
        """Whether steps are designed, rather than grids taken from rules."""
        return self.method in ("trellis", "rd")

    def rule(self, weight: Weight, depth: int) -> Rule:
        """The rule for one weight of a model with ``depth`` layers.

        Raises:
            SpecError: if no rule matches, so that no weight changes class silently.
        """
        for rule in reversed(self.rules):
            if Role(rule.role) is weight.role and (
                rule.layers is None
                or (weight.layer is not None and weight.layer in indices(rule.layers, depth))
            ):
                return rule
        raise SpecError(
            f"no quantization rule for {weight.name} ({weight.role.value}); "
            f"add one to quantize.rules, e.g. {{role: {weight.role.value}, bits: 8}}"
        )
