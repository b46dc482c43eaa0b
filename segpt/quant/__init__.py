"""From float weights to codes: grids, Hessians, GPTQ, and how much a model loses by it."""
