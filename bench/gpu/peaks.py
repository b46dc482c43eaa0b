"""What devices can do at most, from the data sheets of their makers."""

from collections.abc import Mapping

import torch

from bench.kernel_roofline import DEVICES

# Dense bfloat16 products on tensor cores, in FLOP/s, of devices for which no times are predicted.
# Names are parts of what drivers call devices; the first that fits counts.
_OTHERS: Mapping[str, float] = {"H100 PCIe": 756e12, "L40S": 362e12, "RTX 5090": 209.5e12}
PEAKS = {**_OTHERS, **{name: device.tensor for name, device in DEVICES.items()}}


def peak(device: str) -> float | None:
    """FLOP/s of the current device; None where it is not known."""
    if device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    return next((most for part, most in PEAKS.items() if part in name), None)
