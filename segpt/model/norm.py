"""How the stream is normalised: by its root mean square, or without its mean too."""

import dataclasses
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from segpt.config.model import ModelSpec
from segpt.kernels import add_norm, rms_norm

_EPSILON = 2.0**-23  # as torch's norm has it that is given none


@dataclasses.dataclass(frozen=True)
class Normaliser:
    """The norm of a model, without gain and shift, and what it adds to mean squares."""

    kind: Literal["rms", "layer"] = "rms"
    eps: float | None = None

    @classmethod
    def of(cls, spec: ModelSpec) -> "Normaliser":
        """The one that a model names."""
        return cls(spec.norm, spec.norm_eps)

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` (..., width) to the same shape and type, calculated in float32."""
        if self.kind == "rms":
            return rms_norm(x, self.eps)
        eps = _EPSILON if self.eps is None else self.eps
        return F.layer_norm(x.float(), (x.size(-1),), eps=eps).to(x.dtype)

    def add(self, x: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """``x`` + ``y`` (..., width), and the norm of the sum times ``scale``."""
        if self.kind == "rms":
            return add_norm(x, y, scale, self.eps)
        total = x + y
        return total, self(total) * scale


PLAIN_NORM = Normaliser()
