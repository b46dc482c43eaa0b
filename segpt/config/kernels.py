"""Which back end computes each operation, as data."""

import dataclasses

from .base import ADDED, spec


@spec
class Kernels:
    """The back end of each operation of :mod:`segpt.kernels`, by name.

    ``auto`` takes the best that supports a call, ``reference`` the definition in plain torch.
    ``segpt doctor`` lists what there is on this machine, and why some of it does not run.
    """

    activation: str = "auto"
    adam_update: str = dataclasses.field(default="auto", metadata=ADDED)
    add_norm: str = dataclasses.field(default="auto", metadata=ADDED)
    attention: str = "auto"
    cached_attention: str = dataclasses.field(default="auto", metadata=ADDED)
    gated_feed: str = "auto"
    linear: str = "auto"
    muon_momentum: str = dataclasses.field(default="auto", metadata=ADDED)
    muon_update: str = dataclasses.field(default="auto", metadata=ADDED)
    newton_schulz: str = "auto"
    query_key: str = dataclasses.field(default="auto", metadata=ADDED)
    rms_norm: str = "auto"
    rotary: str = "auto"
    token_log_probs: str = "auto"
    token_loss: str = "auto"
    token_nats: str = "auto"
