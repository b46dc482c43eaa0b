"""Triton kernels compiled for GPUs that are not here, and what the compiled code says of itself.

Needs no GPU and no driver: the compiler, the assembler and the disassembler come with Triton. A
fault that shows only in compiled code is found here: registers that spill into memory, shared
memory beyond what the device has, products that miss the tensor cores, numbers of 64 bits.
"""

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

from segpt.kernels.launch import Launch
from segpt.kernels.tiles import compiled_for
from segpt.machine import processors

from . import kernel_page
from .kernel_cases import Case, cases

_MOST_CANDIDATES = 8
_REGISTERS = 1 << 16  # of 32 bits, that a multiprocessor has
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")
_TENSOR_CORE = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b")
_DOUBLE = re.compile(r"\b(?:add|sub|mul|fma|div|cvt|sqrt|rcp)(?:\.\w+)*\.f64\b")
_SIXTEEN_BITS = (torch.float16, torch.bfloat16)


class Architecture(NamedTuple):
    """What a multiprocessor of a generation of GPUs has.

    ``shared`` is the bytes of shared memory that one block may take, ``threads`` and ``blocks`` how
    many fit a multiprocessor at once.
    """

    name: str
    shared: int
    threads: int
    blocks: int


ARCHITECTURES = {
    80: Architecture("A100", 163 << 10, 2048, 32),
    89: Architecture("RTX 4090", 99 << 10, 1536, 24),
    90: Architecture("H100, H200", 227 << 10, 2048, 32),
    100: Architecture("B200", 227 << 10, 2048, 32),
    120: Architecture("RTX 5090", 99 << 10, 1536, 24),
}


class Build(NamedTuple):
    """A kernel as it was compiled for one architecture.

    Attributes:
        registers: of each thread.
        stack: bytes of each thread that did not fit its registers.
        shared: bytes of each block.
        threads: of each block.
        tensor_core: whether products use the tensor cores.
        double: whether anything is calculated in 64 bits.
    """

    registers: int
    stack: int
    shared: int
    threads: int
    tensor_core: bool
    double: bool

    def occupancy(self, architecture: int) -> float:
        """The share of a multiprocessor's threads that may run at once."""
        about = ARCHITECTURES[architecture]
        a_warp = 32 * -(-self.registers // 8) * 8  # registers are given out in eights
        fits = [about.blocks, _REGISTERS // (a_warp * self.threads // 32)]
        fits.append(about.threads // self.threads)
        if self.shared:
            fits.append(
                (about.shared + 1024) // (self.shared + 1024)
            )  # one kibibyte is the system's
        return min(fits) * self.threads / about.threads


def build(launch: Launch, architecture: int) -> Build:
    """Compile the kernel of a launch, as the launch would have it compiled.

    Raises:
        triton.compiler.errors.CompilationError: if it cannot be.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = launch.kernel.arg_names
    signature, fixed = launch.signature, launch.fixed
    source = ASTSource(
        fn=launch.kernel,
        signature={name: signature[name] for name in names},
        constexprs={(names.index(name),): value for name, value in fixed.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in sorted(launch.aligned)},
    )
    target = GPUTarget("cuda", architecture, 32)
    made = triton.compile(source, target=target, options=launch.options)
    registers, stack = _usage(made.asm["cubin"])
    text = made.asm["ptx"]
    return Build(
        registers,
        stack,
        made.metadata.shared,
        32 * made.metadata.num_warps,
        bool(_TENSOR_CORE.search(text)),
        bool(_DOUBLE.search(text)),
    )


def faults(launch: Launch, made: Build, architecture: int) -> list[str]:
    """What is wrong with a kernel as it was compiled, each in words."""
    about = ARCHITECTURES[architecture]
    wrong = []
    if made.stack:
        wrong.append(f"{made.stack} bytes of each thread spill out of its registers")
    if made.registers * made.threads > _REGISTERS:
        wrong.append(f"{made.registers} registers for {made.threads:,} threads, too many to start")
    if made.shared > about.shared:
        wrong.append(
            f"{made.shared:,} bytes of shared memory, where {about.name} has {about.shared:,}"
        )
    if multiplies(launch) and not made.tensor_core:
        wrong.append("its products do not use the tensor cores")
    if made.double:
        wrong.append("it calculates in 64 bits")
    return wrong


def multiplies(launch: Launch) -> bool:
    """Whether a launch multiplies tiles of 16-bit numbers, which tensor cores are for."""
    sixteen = any(getattr(x, "dtype", None) in _SIXTEEN_BITS for x in launch.arguments.values())
    return sixteen and "tl.dot(" in launch.kernel.src


def _usage(cubin: bytes) -> tuple[int, int]:
    """The registers and the bytes of stack of the one function in compiled code."""
    import triton

    tool: Any = triton.knobs.nvidia.cuobjdump
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        line = [tool.path, "-res-usage", file.name]
        shown = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    ((registers, stack),) = _USAGE.findall(shown)
    return int(registers), int(stack)


def main() -> None:
    """Compile cases and print what the code says, as lines or as JSON; exit 1 if one has faults."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cases", choices=["usual", "all", "planted"], default="all")
    parser.add_argument("--architectures", type=int, nargs="+", default=[*ARCHITECTURES])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--render", action="store_true", help="write the results and the page")
    asked = parser.parse_args()
    start = time.perf_counter()
    rows = []
    for row in _rows(asked.cases, asked.architectures):
        rows.append(row)
        if not asked.json:
            said = "; ".join(row["faults"]) or "sound"
            sys.stdout.write(f"sm_{row['architecture']} {row['name']}: {said}\n")
    faulty = sum(bool(row["faults"]) for row in rows)
    if asked.json:
        sys.stdout.write(json.dumps(rows))
    else:
        seconds = time.perf_counter() - start
        sys.stdout.write(
            f"{len(rows):,} compiled forms, {faulty:,} with faults, "
            f"{seconds / max(1, len(rows)):.2f} s each\n"
        )
    if asked.render:
        kernel_page.write(rows, f"python -m bench.kernel_builds --cases {asked.cases} --render")
    sys.exit(faulty > 0)


def _rows(which: str, architectures: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Every case for every architecture, in order.

    The compiler lets other threads run while it works, and the assembler is another process, so
    that threads keep all processors busy and Triton is imported once.
    """
    pairs = [(case, number) for number in architectures for case in _cases(which, number)]
    with ThreadPoolExecutor(processors()) as pool:
        yield from pool.map(lambda pair: _row(*pair), pairs)


def _row(case: Case, architecture: int) -> dict[str, Any]:
    made = build(case.launch, architecture)
    return {
        "name": case.name,
        "architecture": architecture,
        **made._asdict(),
        "occupancy": round(made.occupancy(architecture), 3),
        "faults": faults(case.launch, made, architecture),
    }


def _cases(which: str, architecture: int) -> list[Case]:
    if which == "planted":
        planted = importlib.import_module("tests.kernels.planted")
        return [Case(name, launch, usual=False) for name, launch in planted.launches().items()]
    if which == "all":
        return candidates(architecture)
    with compiled_for(architecture):
        return [case for case in cases() if case.usual]


def candidates(architecture: int) -> list[Case]:
    """Every case with every candidate tile of a generation of GPUs, each form once."""
    forms: dict[tuple[Any, ...], Case] = {}
    for number in range(_MOST_CANDIDATES):
        with compiled_for(architecture, number):
            for case in cases():
                launch = case.launch
                form = case.name, tuple(launch.constants.items()), *launch.options.items()
                named = case._replace(name=f"{case.name}, tile {number}") if number else case
                forms.setdefault(form, named)
    return list(forms.values())


if __name__ == "__main__":
    main()
