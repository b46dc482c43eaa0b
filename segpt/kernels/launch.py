"""A launch of a Triton kernel as a value: what a back end runs is what is compiled ahead of time.

A back end makes its launches from tensors of any device. On a GPU they run. Made from ``meta``
tensors, which have shapes and no memory, they say for which types, constants and alignments the
kernel would be compiled, so that this can be done and checked on a machine without a GPU.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

Argument = Tensor | float
Constant = bool | int | float | str  # what a kernel is compiled for

ALIGNED = 16  # bytes of addresses, and the divisor of sizes, that Triton compiles specially for

_TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
}


class Launch(NamedTuple):
    """One call of a kernel.

    Attributes:
        kernel: what ``triton.jit`` made of a function.
        grid: how many programs there are along each of up to three axes.
        arguments: tensors of any shape, and numbers, by the name of the parameter.
        constants: the values of ``tl.constexpr`` parameters by name.
        warps: of 32 threads each, that a program has.
        stages: how many iterations of a loop over products load ahead.
        registers: what a thread may have at most; None leaves it to the assembler.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Argument]
    constants: Mapping[str, Constant]
    warps: int = 4
    stages: int = 3
    registers: int | None = None

    @property
    def options(self) -> dict[str, int]:
        """How the kernel is compiled, as Triton names it."""
        options = {"num_warps": self.warps, "num_stages": self.stages}
        return options if self.registers is None else {**options, "maxnreg": self.registers}

    def run(self) -> None:
        """Start the kernel on the device of its tensors, whichever is the current one."""
        tensor = next(value for value in self.arguments.values() if isinstance(value, Tensor))
        with torch.cuda.device_of(tensor):  # type: ignore[no-untyped-call]
            self.kernel[self.grid](**self.arguments, **self.constants, **self.options)

    @property
    def signature(self) -> dict[str, str]:
        """The type of each parameter as Triton writes it, ``constexpr`` of those that are fixed.

        A launch fixes whole numbers that are 1, too.
        """
        values = {**self.arguments, **self.constants}
        return {name: self._type(name, value) for name, value in values.items()}

    @property
    def fixed(self) -> dict[str, Constant]:
        """The values that are compiled in, by name."""
        ones = {name: 1 for name, value in self.arguments.items() if _is_one(value)}
        return {**ones, **self.constants}

    @property
    def aligned(self) -> frozenset[str]:
        """The parameters that Triton may take to be multiples of 16: addresses and sizes."""
        return frozenset(name for name, value in self.arguments.items() if _is_aligned(value))

    def _type(self, name: str, value: Any) -> str:
        if name in self.constants or _is_one(value):
            return "constexpr"
        if isinstance(value, Tensor):
            return f"*{_TYPES[value.dtype]}"
        if isinstance(value, float):
            return "fp32"
        return "i32" if -(1 << 31) <= value < 1 << 31 else "i64"


def _is_one(value: Any) -> bool:
    return isinstance(value, int) and value == 1


def _is_aligned(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.storage_offset() * value.element_size() % ALIGNED == 0
    return isinstance(value, int) and value != 1 and value % ALIGNED == 0
