"""A model and its tokenizer as a directory that transformers loads with ``trust_remote_code``."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from segpt.atomic import new_directory
from segpt.config.base import encode, readable
from segpt.config.layout import layout, parameters
from segpt.config.model import ModelSpec, joined_visits
from segpt.errors import CheckpointError
from segpt.values import Tokenizer

from .source import sources
from .tokens import folder

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def write_modeling(
    spec: ModelSpec,
    weights: Mapping[str, NDArray[np.float32]],
    tokenizer: Tokenizer,
    out: Path,
    *,
    name: str = "model",
    bpb: float | None = None,
) -> None:
    """Write source, configuration, weights, tokenizer and a page about the model.

    Args:
        spec: the model, all of whose visits run.
        weights: those of its layout, by name, each of the shape (rows, columns) or (channels,)
            that the layout says.
        tokenizer: what makes its tokens.
        out: the directory, replaced if it is one that this wrote.
        name: what the page calls the model.
        bpb: bits per byte, if it was scored.

    Raises:
        CheckpointError: if weights are missing, unknown or misshapen.
        DataError: if the tokenizer is of a kind that cannot be written.
        SegptError: if the directory holds other things, or the disk refuses.
    """
    expected = {weight.name: weight.shape for weight in layout(spec)}
    if odd := sorted(expected.keys() ^ weights.keys()):
        raise CheckpointError(f"weight {odd[0]!r} is in the model or in the file, but not in both")
    for key, shape in expected.items():
        if weights[key].shape != shape:
            raise CheckpointError(f"weight {key!r} is {weights[key].shape}, expected {shape}")
    spec = joined_visits(spec, 1.0)[0]  # the same visits, which no longer wait or grow
    written = sources(spec)
    contents = folder(tokenizer)
    arrays = {
        f"model.{key}.weight": np.array(value, np.float32, order="C")
        for key, value in weights.items()
    }
    with new_directory(out, replaces=is_written_here) as place:
        (place / "configuration_segpt.py").write_text(written.configuration, encoding="utf-8")
        (place / "modeling_segpt.py").write_text(written.modeling, encoding="utf-8")
        (place / CONFIG).write_bytes(readable(_config(spec)))
        generation = {"bos_token_id": spec.start, "eos_token_id": spec.start}
        if spec.start is not None:
            (place / "generation_config.json").write_bytes(readable(generation))
        for key, data in contents.items():
            (place / key).write_bytes(data)
        save_file(arrays, place / WEIGHTS, metadata={"format": "pt"})
        _check_weights(place / WEIGHTS, arrays)
        size = (place / WEIGHTS).stat().st_size
        page = _page(name, spec, size, bpb)
        (place / "README.md").write_text(page, encoding="utf-8")


def is_written_here(path: Path) -> bool:
    """Whether a directory is one of :func:`write_modeling`."""
    try:
        table = json.loads((path / CONFIG).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(table, dict) and table.get("model_type") == "segpt"


def _config(spec: ModelSpec) -> dict[str, object]:
    ids = {} if spec.start is None else {"bos_token_id": spec.start, "eos_token_id": spec.start}
    return {
        "architectures": ["SegptForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_segpt.SegptConfig",
            "AutoModelForCausalLM": "modeling_segpt.SegptForCausalLM",
        },
        "dtype": "float32",
        "model": _without_since(encode(spec)),
        "model_type": "segpt",
        "tie_word_embeddings": False,
        **ids,
    }


def _without_since(model: dict[str, list[dict[str, object]]]) -> dict[str, object]:
    """A spec as plain values without since when its visits run: all of them do."""
    visits = [{k: v for k, v in visit.items() if k != "since"} for visit in model["visits"]]
    return {**model, "visits": visits}


def _check_weights(path: Path, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Read back what was written: a writer may change the order of elements without a word."""
    back = load_file(path)
    for name, array in arrays.items():
        if not np.array_equal(back[name].view(np.uint32), array.view(np.uint32)):
            raise CheckpointError(f"{name} was not written as it is; nothing was kept")


def _page(name: str, spec: ModelSpec, size: int, bpb: float | None) -> str:
    scored = "not scored yet" if bpb is None else f"{bpb:.4f} bits per byte"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---
# {name}

A language model of {parameters(spec):,} parameters ({size:,} bytes of float32 weights), made with
segpt; {scored}. It reads {spec.context:,} tokens at once, of {spec.vocab:,} kinds.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("DIRECTORY", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained("DIRECTORY", trust_remote_code=True)
ids = tokenizer("The ", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=50)[0]))
```

`trust_remote_code` runs `modeling_segpt.py` and `configuration_segpt.py` of this directory: read
them first. They need torch and transformers (4.57 or later) only.

- Every document begins with the token {spec.start}, which the tokenizer puts there; what was
  trained on it expects it. The same token ends a text.
- Rows of a batch must be of one length to generate; padding on the right is fine for training.
"""
