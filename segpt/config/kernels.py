"""Which back end computes each operation, as data."""

from .base import spec


@spec
class Kernels:
    """The back end of each operation of :mod:`segpt.kernels`, by name.

    ``auto`` takes the best that supports a call, ``reference`` the definition in plain torch.
    ``segpt doctor`` lists what there is on this machine, and why some of it does not run.
    """

    activation: str = "auto"
    adam_update: str = "auto"
    attention: str = "auto"
    dequantize: str = "auto"
    dequantize_packed: str = "auto"
    dequantize_trellis: str = "auto"
    gated_feed: str = "auto"
    linear: str = "auto"
    muon_momentum: str = "auto"
    muon_update: str = "auto"
    newton_schulz: str = "auto"
    ngram_mixture: str = "auto"
    ngram_rows: str = "auto"
    rms_norm: str = "auto"
    rotary: str = "auto"
    token_log_probs: str = "auto"
    token_loss: str = "auto"
    token_nats: str = "auto"
