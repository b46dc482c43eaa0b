"""Run by test_designed.py: quantizes a model as the JSON on the command line says."""

import hashlib
import json
import sys
from typing import Any

from segpt.artifact.container import pack
from segpt.config.quant import QuantSpec
from segpt.stages.quantize import quantize
from tests.stages.random_models import blocks, checkpoint


def digests(spec: dict[str, Any]) -> list[str]:
    """Of the packed file, of the quantized model and of its decoded weights."""
    source = checkpoint(tied=False, route="0 (1)*2")
    found = quantize(source, QuantSpec(**spec), blocks(source.spec.vocab))
    decoded = hashlib.sha256(b"".join(w.decoded().tobytes() for w in found.weights.values()))
    return [pack(found).digest, found.fingerprint, decoded.hexdigest()]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(digests(json.loads(sys.argv[1]))))
