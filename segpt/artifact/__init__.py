"""Quantized models to bytes and back, with numpy and the standard library."""
