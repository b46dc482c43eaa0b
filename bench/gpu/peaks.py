"""What devices can do at most, from the data sheets of their makers."""

from collections.abc import Mapping

import torch

# Dense bfloat16 products on tensor cores, in FLOP/s. Names are parts of what drivers call devices;
# the first that fits counts.
PEAKS: Mapping[str, float] = {
    "B200": 2250e12,
    "H200": 989.4e12,
    "H100 PCIe": 756e12,
    "H100": 989.4e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165.2e12,
}


def peak(device: str) -> float | None:
    """FLOP/s of the current device; None where it is not known."""
    if device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    return next((most for part, most in PEAKS.items() if part in name), None)
