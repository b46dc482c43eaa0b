"""Activations of the feed-forward body, alone and with the product before them."""

from torch import Tensor

from segpt.config.layer import Activation
from segpt.kernels.registry import Later, Op

from .reference import ActivationCall, FeedCall, feed_reference, reference

ACTIVATION = Op("activation", reference)
TRITON = "segpt.kernels.activation.triton:TritonGatedFeed"
GATED_FEED = Op[FeedCall, Tensor](
    "gated_feed", feed_reference, Later("triton", 30, ("cuda",), TRITON)
)


def activation(x: Tensor, act: Activation) -> Tensor:
    """act(x): (..., hidden), or (..., 2 hidden) to (..., hidden) if gated; reuses ``x``."""
    return ACTIVATION(ActivationCall(x, act))


def gated_feed(x: Tensor, weight: Tensor, act: Activation) -> Tensor:
    """act(x W^T): (..., width) by (hidden or 2 hidden, width) to (..., hidden)."""
    return GATED_FEED(FeedCall(x, weight, act))
