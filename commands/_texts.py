"""The text that is scored when none is named."""

from segpt.data.corpus import builtin
from segpt.stages import prepare
from segpt.values import Checkpoint, Quantized, Text

from . import _latest


def validation(source: Quantized | Checkpoint) -> Text:
    """The newest validation split if it has the model's tokenizer, else the built-in one."""
    newest = _latest.latest("data")
    if newest is not None:
        _, held_out = prepare.open_splits(newest)
        if held_out.tokenizer.fingerprint == source.tokenizer.fingerprint:
            return prepare.as_text(held_out)
    return builtin("validation")
