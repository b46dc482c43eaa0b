"""Specs: what models, training, quantization and scoring are, as data without torch or numpy."""
