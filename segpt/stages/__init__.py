"""One arrow per file: prepare, train, quantize, pack, score, record."""
