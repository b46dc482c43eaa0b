"""Quantizers: grids, Hessians and GPTQ."""
