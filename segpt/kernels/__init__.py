"""Operations that a model spends its time in: one folder each, with its reference and back ends.

A folder holds ``reference.py``, which defines the operation in plain torch and names its arguments
(the ``Call``), and one file per back end. Back ends are tested against the reference.

``dequantize`` and ``ngram_mixture`` are for programs of others: no command calls them, recipes do
not choose their back ends, and they are known once they are imported.
"""

from .activation import activation, gated_feed
from .attention import attention
from .cross_entropy import token_log_probs, token_loss, token_nats
from .linear import linear
from .newton_schulz import newton_schulz
from .query_key import query_key
from .registry import OPS, Backend, Later, Op, use, use_recipe
from .rms_norm import add_norm, rms_norm
from .rotary import rotary
from .updates import adam_update, muon_momentum, muon_update

__all__ = [
    "OPS",
    "Backend",
    "Later",
    "Op",
    "activation",
    "adam_update",
    "add_norm",
    "attention",
    "gated_feed",
    "linear",
    "muon_momentum",
    "muon_update",
    "newton_schulz",
    "query_key",
    "rms_norm",
    "rotary",
    "token_log_probs",
    "token_loss",
    "token_nats",
    "use",
    "use_recipe",
]
