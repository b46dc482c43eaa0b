"""What this process computes with: what is stored of it is :mod:`segpt.config.environment`."""

import numpy as np
import torch

import segpt
from segpt.config.environment import Environment, Versions


def versions() -> Versions:
    """The versions of what sums depend on."""
    return Versions(segpt=segpt.__version__, torch=torch.__version__, numpy=np.__version__)


def environment(device: str, processes: int | None = None) -> Environment:
    """This process, on ``device``, and how many share the work where that is known."""
    return Environment(
        processes=processes, device=device, threads=torch.get_num_threads(), versions=versions()
    )
