"""Which back end computes each operation, as data."""

from .base import spec


@spec
class Kernels:
    """The back end of each operation of :mod:`segpt.kernels`, by name.

    ``auto`` takes the best that supports a call, ``reference`` the definition in plain torch.
    ``segpt doctor`` lists what there is on this machine, and why some of it does not run.
    """

    activation: str = "auto"
    add_norm: str = "auto"
    attention: str = "auto"
    gated_feed: str = "auto"
    linear: str = "auto"
    newton_schulz: str = "auto"
    rms_norm: str = "auto"
    rotary: str = "auto"
    token_log_probs: str = "auto"
    token_loss: str = "auto"
    token_nats: str = "auto"
