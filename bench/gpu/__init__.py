"""Everything that needs a GPU, in one command of at most eight minutes: ``python -m bench.gpu``.

Kernels are held against their references, and then each measurement is a ratio of two sides that
take turns in the same process, so that it means the same on a machine that is shared or warm.
"""
