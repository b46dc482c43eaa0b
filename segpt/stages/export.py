"""A model to a directory that the programs of others load."""

from pathlib import Path

from segpt.artifact.container import unpack
from segpt.convert.modeling.write import WrittenModel, write_modeling
from segpt.values import Artifact, Checkpoint

from .open_model import without_unjoined_visits
from .read_model import Value


def export_modeling(value: Value, out: Path, *, name: str = "model") -> WrittenModel:
    """Write a model from what carries it; of a checkpoint the visits that have joined.

    Raises:
        SegptError: if it is damaged, or cannot be written.
    """
    source = unpack(value) if isinstance(value, Artifact) else value
    if isinstance(source, Checkpoint):
        joined = without_unjoined_visits(source)
        return write_modeling(joined.spec, joined.weights, joined.tokenizer, out, name=name)
    weights = {key: coded.decoded() for key, coded in source.weights.items()}
    return write_modeling(source.spec, weights, source.tokenizer, out, name=name)
