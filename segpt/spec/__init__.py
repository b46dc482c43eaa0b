"""Data only: what models, training, quantization and scoring are, without torch or numpy."""
