"""Run by test_designed.py: quantizes a model as the JSON on the command line says."""

import hashlib
import json
import sys

from segpt.artifact.container import pack
from segpt.config.quant import QuantSpec
from segpt.stages.quantize import quantize
from tests.stages.random_models import blocks, checkpoint

if __name__ == "__main__":
    source = checkpoint(tied=False, route="0 (1)*2")
    spec = QuantSpec(**json.loads(sys.argv[1]))
    found = quantize(source, spec, blocks(source.spec.vocab))
    decoded = hashlib.sha256(b"".join(w.decoded().tobytes() for w in found.weights.values()))
    sys.stdout.write(json.dumps([pack(found).digest, found.fingerprint, decoded.hexdigest()]))
