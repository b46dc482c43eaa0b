"""The arrows of the flow, one file each: prepare, train, quantize, pack, score; and sample."""
