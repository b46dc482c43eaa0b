"""How a model is quantized, as data: a rule per role, and what calibrates it."""

from typing import Literal

from segpt.errors import SpecError

from .base import spec
from .layout import Role, Weight
from .route import indices

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


@spec
class QuantSpec:
    """Rules (the last that matches a weight wins), rounding method and calibration.

    ``damping`` is the fraction of the mean Hessian diagonal that is added to it.
    """

    method: Literal["gptq", "nearest"] = "gptq"
    rules: tuple[Rule, ...] = DEFAULT_RULES
    calibration_tokens: int = 131_072
    damping: float = 0.01
    act_order: bool = True
    block: int = 128
    report_tokens: int = 32_768

    def __post_init__(self) -> None:
        for name in ("calibration_tokens", "block", "report_tokens"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.damping <= 0:
            raise SpecError(f"damping must be positive, got {self.damping}")

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
