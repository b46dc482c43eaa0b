"""The measure of parity sees a kernel that has lost a mask."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.slow

from segpt.kernels.launch import Launch  # noqa: E402
from segpt.kernels.rms_norm import triton as rms_norm  # noqa: E402
from segpt.kernels.rms_norm.reference import RmsNormCall, reference  # noqa: E402
from tests.kernels.near import near, noise  # noqa: E402
from tests.kernels.planted import unmasked_norm  # noqa: E402


def normalised(launch: Launch) -> Tensor:
    """What a norm makes of rows whose length is no power of two, (7, 100)."""
    x, y = noise(7, 100), torch.empty(7, 100)
    launch._replace(arguments={**launch.arguments, "x": x, "y": y}).run()
    near(y, reference(RmsNormCall(x)), 1e-5)
    return y


def test_a_dropped_mask_is_seen() -> None:
    x = noise(7, 100)
    right = rms_norm.forward(x, torch.empty_like(x))
    normalised(right)
    with pytest.raises(AssertionError):
        normalised(right._replace(kernel=unmasked_norm))
