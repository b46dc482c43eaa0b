"""Whether a model of ours gives the logits that transformers gives with the source."""

from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from segpt.config.run_about import Agreement
from segpt.errors import CheckpointError
from segpt.model.build import build, load_weights

from .imported import Imported

MOST_MEAN: Final = 2e-5
MOST: Final = 5e-4
TOKENS: Final = 256


def compare(model: Imported, source: Path, count: int = TOKENS) -> Agreement:
    """The differences of the logits over a fixed set of tokens, in float32.

    Args:
        model: what was read from the source.
        source: a Hugging Face directory, or a GGUF file, which transformers reads by itself.
        count: how many tokens, in one row, or as many as the context has.

    Raises:
        CheckpointError: if transformers cannot read the source.
    """
    length = min(count, model.spec.context)
    ids = torch.randint(model.spec.vocab, (1, length), generator=torch.Generator().manual_seed(7))
    ours = build(model.spec).eval()
    load_weights(ours, model.weights)
    with torch.inference_mode():
        mine = ours.logits(ours.hidden(ids).x).float()
        theirs = _theirs(source, ids)
    apart = (mine - theirs).abs()
    return Agreement(tokens=length, mean=float(apart.mean()), largest=float(apart.max()))


def check(agreement: Agreement) -> None:
    """Refuse logits that are too far apart.

    Raises:
        CheckpointError: with the figures.
    """
    if not (agreement.mean <= MOST_MEAN and agreement.largest <= MOST):
        raise CheckpointError(
            f"logits are {agreement.mean:.2g} apart in the mean and {agreement.largest:.2g} at "
            f"most, allowed are {MOST_MEAN:g} and {MOST:g}; nothing is written (--no-check does "
            "it all the same)"
        )


def _theirs(source: Path, ids: Tensor) -> Tensor:
    """The logits of transformers (1, time, vocab)."""
    from transformers import AutoModelForCausalLM

    place, more = (source.parent, {"gguf_file": source.name}) if source.is_file() else (source, {})
    try:
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            str(place),
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            attn_implementation="eager",
            **more,
        )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise CheckpointError(
            f"transformers cannot read {source}, so nothing is compared ({error}); --no-check "
            "imports it without"
        ) from None
    logits: Tensor = model.eval()(ids).logits.float()
    return logits
