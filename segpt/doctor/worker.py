"""The checks that need torch, as a process: ``python -m segpt.doctor.worker CHECK...``.

Each prints its findings as lines of JSON. One that does not come back, whatever kills it, is found
missing by who started this.
"""

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from segpt.artifact import loops, rans
from segpt.config.expand import expand
from segpt.config.train import Scaling
from segpt.errors import one_line
from segpt.kernels import onednn
from segpt.machine import processors
from segpt.model.build import build
from segpt.model.model import Model
from segpt.model.params import weights
from segpt.model.scaling import initialise
from segpt.stages.threads import one_thread

from .doctor import WORK, CheckResult, fitting
from .kernels import kernel_findings

_RECIPE = {
    "vocab": 257,
    "width": 64,
    "context": 32,
    "depth": 2,
    "layer": {
        "mixer": {
            "heads": 2,
            "kv_heads": 1,
            "head_dim": 32,
            "query_key": ["norm", {"kind": "rope", "dims": 16}],
        },
        "feed": {"hidden": 128},
    },
}
_CXX, _CC = ("g++", "clang++", "c++"), ("cc", "gcc", "clang")
_CLOSE = 1e-3  # of float32 results that were computed in two ways


def check_torch() -> CheckResult:
    """Its version, and what it knows of the processor."""
    finding = fitting("torch", torch.__version__)
    if finding.state != "good":
        return finding
    parts = [torch.__version__, torch.backends.cpu.get_cpu_capability()]
    parts += ["oneDNN"] if onednn.available() else []
    return dataclasses.replace(finding, found=", ".join(parts))


def check_device() -> CheckResult:
    """What ``--device auto`` chooses."""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        observed = f"cuda: {name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        if torch.cuda.device_count() > 1:
            observed += f", one of {torch.cuda.device_count()}; torchrun uses all"
        return CheckResult("device", "good", observed)
    if torch.version.cuda is not None and shutil.which("nvidia-smi"):
        advice = (
            f"update the driver, or install a torch for it; this one wants {torch.version.cuda}"
        )
        return CheckResult("device", "advice", "cpu, though there is an NVIDIA driver", advice)
    if torch.version.cuda is None and shutil.which("nvidia-smi"):
        advice = "install a torch with CUDA (pytorch.org) to use the GPU"
        return CheckResult("device", "advice", "cpu, as this is a CPU build of torch", advice)
    return CheckResult("device", "good", "cpu")


def check_threads() -> CheckResult:
    """Threads that wait for each other's processor are slower than fewer threads."""
    threads, usable = torch.get_num_threads(), processors()
    variable = os.environ.get("OMP_NUM_THREADS")
    source = "" if variable is None else f" (OMP_NUM_THREADS={variable})"
    observed = f"{threads}{source} on {usable} processors"
    if threads > usable:
        return CheckResult("threads", "advice", observed, f"export OMP_NUM_THREADS={usable}")
    return CheckResult("threads", "good", observed)


def check_kernels() -> Iterator[CheckResult]:
    """The back end that runs for each operation, and why others do not, on every device."""
    names = [name for name in ("flash", "mem_efficient", "cudnn", "math") if _enabled(name)]
    fused = ", ".join(names) if torch.cuda.is_available() else "flash or math"
    yield CheckResult("kernels", "good", f"attention of torch: {fused}")
    yield from kernel_findings(_devices())


def check_training() -> CheckResult:
    """A small model runs forward and backward, and learns."""
    states = []
    for device in _devices():
        begun = time.perf_counter()
        with one_thread():  # more would wait for each other, on so little
            before, after = _learn(_model(device), device)
        if not after < before:
            raise SystemExit(f"a step on {device} takes the loss from {before:.4f} to {after:.4f}")
        seconds = time.perf_counter() - begun
        states.append(f"{device}: loss {before:.3f} to {after:.3f} in {seconds:.2f} s")
    return CheckResult("training", "good", f"forward and backward on {'; '.join(states)}")


def check_decoding() -> CheckResult:
    """What decodes artifacts: numpy, and numba where it is installed, to the same symbols."""
    loop, reason = loops.compiled()
    names: tuple[loops.Choice, ...] = ("numpy",) if loop is None else ("numpy", "numba")
    symbols = np.random.default_rng(0).integers(0, rans.SYMBOLS, (2000, 64))
    tables = np.full((1, rans.SYMBOLS), rans.TOTAL // rans.SYMBOLS, np.uint16)
    encoder = rans.RansEncoder(tables, symbols.shape[1])
    encoder.write(symbols)
    data, rates = encoder.finish(), []
    for name in names:
        loops.use(name)
        begun = time.perf_counter()
        decoder = rans.RansDecoder(data, tables, symbols.shape[1])
        if not (decoder.read(np.zeros_like(symbols)) == symbols).all():
            raise SystemExit(f"{name} decodes other symbols than were encoded")
        rates.append(f"{name}, {symbols.size / (time.perf_counter() - begun) / 1e6:.0f}")
    observed = f"{'; '.join(rates)} million symbols per second"
    if loop is None and importlib.util.find_spec("numba") is not None:
        reason = one_line(f"{observed}; numba does not work: {reason}")
        return CheckResult("decoding", "advice", reason, WORK["decoding"])
    return CheckResult("decoding", "good", observed)


def check_compiler() -> CheckResult:
    """What torch.compile needs: a compiler, Python's headers and, for CUDA, Triton."""
    cxx = _program(os.environ.get("CXX"), _CXX)
    cc = _program(os.environ.get("CC"), _CC)
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    missing = [] if cxx else ["no C++ compiler (apt install g++)"]
    missing += [] if cc else ["no C compiler (apt install gcc)"]
    missing += [] if headers else ["no Python.h (apt install python3-dev)"]
    if not missing:
        return CheckResult("compiler", "good", f"{cxx}; {cc}; Python.h")
    observed = ", ".join(missing)
    if torch.cuda.is_available():
        advice = "install it, or train with --set train.compile=off, which is slower"
        return CheckResult("compiler", "advice", observed, advice)
    return CheckResult(
        "compiler", "optional", f"{observed}; only torch.compile needs it, on a CPU if asked"
    )


def check_compile() -> CheckResult:
    """A compiled model gives the same hidden states, on the device that training would take."""
    device = _devices()[-1]
    model, ids = _model(device), torch.arange(64, device=device).view(2, 32)
    begun = time.perf_counter()
    compiled = torch.compile(model.hidden)(ids)
    seconds = time.perf_counter() - begun
    error = float((compiled.x - model.hidden(ids).x).abs().max())
    if not error < _CLOSE:
        raise SystemExit(f"compiled on {device} the model is wrong by {error:.2g}")
    observed = f"{device}: within {error:.0e} of eager, compiled in {seconds:.1f} s"
    return CheckResult("compile", "good", observed)


CHECKS: dict[str, Callable[[], CheckResult | Iterable[CheckResult]]] = {
    "torch": check_torch,
    "device": check_device,
    "threads": check_threads,
    "kernels": check_kernels,
    "training": check_training,
    "decoding": check_decoding,
    "compiler": check_compiler,
    "compile": check_compile,
}


def _devices() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _model(device: str) -> Model:
    model = build(expand(_RECIPE))
    initialise(model, Scaling(), 0)
    return model.to(device)


def _learn(model: Model, device: str) -> tuple[float, float]:
    """The loss on some tokens before and after a step down its gradient."""
    ids = torch.arange(8 * 33, device=device).mul(7).remainder(257).view(8, 33)
    losses = []
    for _ in range(2):
        logits = model(ids[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        losses.append(loss.item())
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for weight in weights(model):
                grad = weight.tensor.grad
                if grad is not None:
                    weight.tensor.sub_(0.5 * grad)
                    grad.zero_()
    return losses[0], losses[1]


def _enabled(name: str) -> bool:
    return bool(getattr(torch.backends.cuda, f"{name}_sdp_enabled")())


def _program(chosen: str | None, usual: tuple[str, ...]) -> str | None:
    """The first line that a compiler says of itself, or None if there is none that runs."""
    for name in (chosen,) if chosen else usual:
        path = shutil.which(name)
        if path is None:
            continue
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, errors="replace", check=False
        )
        if done.returncode == 0:
            return (done.stdout.splitlines() or [name])[0]
    return None


def main(names: list[str]) -> None:
    """Make the checks ``names`` one after the other."""
    for name in names:
        made = CHECKS[name]()
        # All of a check or nothing: what it has begun is not done.
        for finding in [made] if isinstance(made, CheckResult) else list(made):
            line = {"finding": dataclasses.asdict(finding), "check": name}
            sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
