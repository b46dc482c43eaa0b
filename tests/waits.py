"""Where a computation would wait for a GPU: seen on a CPU, by the operations that ask for values.

A GPU works through what it was given while the program goes on. Some operations need a number, or
how many numbers there are, before the program can go on: reading a value, masks that say which
rows to take, copies to the host.
"""

import linecache
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

LIBRARY = Path(__file__).parents[1] / "segpt"
_TO_THE_HOST = ("cpu", "numpy", "tolist", "__array__")  # methods that dispatch nothing on a CPU
_VALUES = (
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2",
    "unique_dim", "unique_consecutive",
)  # fmt: skip


class Place(NamedTuple):
    """A line of the library that waits: its file, its function and what it says."""

    file: str
    function: str
    line: str


class Waits:
    """Within the block, counts where the library would wait for a GPU."""

    def __init__(self) -> None:
        self.places: Counter[Place] = Counter()
        self._modes = (_Methods(self.note), _Operations(self.note))

    def __enter__(self) -> Self:
        for mode in self._modes:
            mode.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]

    def note(self) -> None:
        """Count the line of the library that is running, unless a test asked."""
        frame = sys._getframe(1)
        while frame.f_back is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(LIBRARY):
                line = linecache.getline(str(path), frame.f_lineno).strip()
                place = Place(str(path.relative_to(LIBRARY)), frame.f_code.co_name, line)
                self.places[place] += 1
                return
            frame = frame.f_back

    @property
    def functions(self) -> Counter[tuple[str, str]]:
        """How often each function of a file waits."""
        counts: Counter[tuple[str, str]] = Counter()
        for place, count in self.places.items():
            counts[place.file, place.function] += count
        return counts


class _Methods(TorchFunctionMode):
    def __init__(self, note: Callable[[], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in _TO_THE_HOST:
            self.note()
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, note: Callable[[], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.note = note

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        masks = any(isinstance(i, Tensor) and i.dtype == torch.bool for i in indices)
        if name in _VALUES or masks:
            self.note()
        return func(*args, **(kwargs or {}))
