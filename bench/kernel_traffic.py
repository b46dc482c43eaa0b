"""What kernels and plain torch move between memory and processor, counted without a GPU.

Triton's interpreter runs a kernel program by program; every load and store passes here, with its
addresses and its mask. Operations of torch are counted by their inputs and outputs, so that a fused
path and the plain one it replaces are held against each other on the same footing. The interpreter
must be on (``TRITON_INTERPRET=1``) before a kernel is imported.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from segpt.kernels.launch import Launch

LINE = 128  # bytes that a cache holds or drops together

# What hands out memory or looks at it in another way moves nothing.
_FREE = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view",
    "set_", "resize_", "_local_scalar_dense",
}  # fmt: skip
_OVERWRITES = {"copy_", "fill_", "zero_", "normal_", "uniform_"}
# These read of their first argument what they pick, and those change of it what they are handed.
_PICKS = {"gather", "index", "index_select", "embedding", "take"}
_SCATTERS = {"scatter_", "scatter_add_", "index_put_", "index_add_", "index_copy_"}


class Moved(NamedTuple):
    """Bytes of one tensor: as often as they were asked for, and each only once."""

    requested: int
    distinct: int


class Access(NamedTuple):
    """The lines of memory that one load or store of one program touches."""

    lines: np.ndarray[Any, Any]
    writes: bool


class Traffic(NamedTuple):
    """What one launch of a kernel does with memory.

    Attributes:
        kernel: its name, with that of its operation.
        read: by the name of the parameter.
        written: likewise.
        flops: operations of the products of tiles, additions and multiplications.
        programs: what each program touches in its order, the programs in the order of a GPU.
    """

    kernel: str
    read: Mapping[str, Moved]
    written: Mapping[str, Moved]
    flops: int
    programs: Sequence[Sequence[Access]]

    @property
    def requested(self) -> int:
        """Bytes that programs load and store, those of lanes masked out not counted."""
        return sum(moved.requested for moved in (*self.read.values(), *self.written.values()))

    @property
    def distinct(self) -> int:
        """Bytes at different addresses: what crosses to memory if nothing is fetched twice."""
        return sum(moved.distinct for moved in (*self.read.values(), *self.written.values()))

    def through_cache(self, size: int, at_once: int) -> int:
        """Bytes that cross to memory with a cache of ``size`` bytes in between.

        ``at_once`` programs run side by side, each doing its next load or store in turn, and the
        next ones start when all have ended. The cache begins empty, drops the line that was used
        longest ago, writes it back if it was changed, and does not fetch what is overwritten.
        """
        cache: dict[int, bool] = {}  # whether a line was changed, the one used last at the end
        most, crossed = max(1, size // LINE), 0
        for first in range(0, len(self.programs), at_once):
            wave = self.programs[first : first + at_once]
            for step in range(max(map(len, wave))):
                for program in wave:
                    if step < len(program):
                        crossed += _touch(cache, program[step], most)
        return LINE * (crossed + sum(cache.values()))


def _touch(cache: dict[int, bool], access: Access, most: int) -> int:
    """How many lines cross to memory for an access."""
    crossed = 0
    for line in access.lines.tolist():
        changed = cache.pop(line, None)
        crossed += changed is None and not access.writes
        cache[line] = bool(changed) or access.writes
        if len(cache) > most:
            crossed += cache.pop(next(iter(cache)))
    return crossed


def kernel_name(launch: Launch) -> str:
    """Such as ``rms_norm.forward_kernel``, of whichever kind the kernel is."""
    function = launch.kernel.fn
    return f"{function.__module__.split('.')[-2]}.{function.__name__}"


def interpreted(launch: Launch) -> Traffic:
    """Run a launch on tensors that have memory, and count.

    Raises:
        IndexError: where a lane that is not masked out is in none of the tensors.
    """
    memory = _Counting(launch)
    with tapped(memory, memory.dot):
        run(launch)
    return memory.traffic(kernel_name(launch))


@contextmanager
def tapped(memory: "Memory", dot: Callable[..., Any]) -> Iterator[None]:
    """Have the interpreter load from ``memory``, store to it, and multiply tiles by ``dot``."""
    from triton.runtime import interpreter

    with (
        _disable_current_modes(),
        patch.object(interpreter, "_interpreter", memory),
        patch.object(interpreter.interpreter_builder, "create_dot", dot),
    ):
        yield


def run(launch: Launch) -> None:
    """What the launch does, whatever stands in its place for the time being.

    Raises:
        IndexError: if a memory raised it.
    """
    from triton.runtime.errors import InterpreterError

    try:
        launch.kernel[launch.grid](**launch.arguments, **launch.constants)
    except InterpreterError as error:
        if isinstance(error.__cause__, IndexError):
            raise error.__cause__ from None
        raise


class Place:
    """Where one tensor lies, and how many bytes of it were asked for by reading and by writing."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.name, self.start = name, tensor.data_ptr()
        self.item = tensor.element_size()
        last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        self.count = last + 1 if tensor.numel() else 0
        self.requested = {False: 0, True: 0}


class Memory:
    """Stands where the interpreter's own loads and stores are, and knows the tensors of a launch.

    What it does not define goes to the interpreter.
    """

    def __init__(self, launch: Launch) -> None:
        from triton.runtime import interpreter

        self.own, self.builder = interpreter._interpreter, interpreter.interpreter_builder
        self.grid = (*launch.grid, 1, 1)[:3]
        tensors = {n: v for n, v in launch.arguments.items() if isinstance(v, Tensor)}
        self.places = [Place(name, tensor) for name, tensor in tensors.items()]
        self.flops = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)

    def place(self, first: int, end: int) -> Place:
        """The tensor that has the addresses from ``first`` up to ``end``."""
        for place in self.places:
            if place.start <= first and end <= place.start + place.count * place.item:
                return place
        raise IndexError("a kernel reaches outside its tensors")


class _Counting(Memory):
    """Counts what passes, and notes which lines each program touches."""

    def __init__(self, launch: Launch) -> None:
        super().__init__(launch)
        self._dot = self.builder.create_dot
        self._accesses: dict[int, list[Access]] = {}
        self._touched = {
            (place.name, writes): np.zeros(place.count, dtype=bool)
            for place in self.places
            for writes in (False, True)
        }
        # On a GPU a tensor begins with a line.
        lines = [-(-place.count * place.item // LINE) for place in self.places]
        firsts = np.cumsum([0, *lines]).tolist()
        self._line = {place.name: first for place, first in zip(self.places, firsts, strict=False)}

    def load(self, addresses: Any, mask: Any, other: Any, dtype: Any) -> Any:
        self._count(addresses, mask, np.dtype(dtype).itemsize, False)
        return self.own.load(addresses, mask, other, dtype)

    def store(self, addresses: Any, value: Any, mask: Any) -> Any:
        self._count(addresses, mask, value.dtype.itemsize, True)
        return self.own.store(addresses, value, mask)

    def atomic_rmw(self, operation: Any, addresses: Any, value: Any, mask: Any, order: Any) -> Any:
        for writes in (False, True):
            self._count(addresses, mask, value.dtype.itemsize, writes)
        return self.own.atomic_rmw(operation, addresses, value, mask, order)

    def dot(self, a: Any, b: Any, *rest: Any) -> Any:
        self.flops += 2 * a.data.size * b.data.shape[-1]
        return self._dot(a, b, *rest)

    def traffic(self, kernel: str) -> Traffic:
        read, written = (
            {
                place.name: Moved(
                    place.requested[writes],
                    int(np.count_nonzero(self._touched[place.name, writes])) * place.item,
                )
                for place in self.places
                if place.requested[writes]
            }
            for writes in (False, True)
        )
        programs = [self._accesses.get(number, []) for number in range(math.prod(self.grid))]
        return Traffic(kernel, read, written, self.flops, programs)

    def _count(self, addresses: Any, mask: Any, item: int, writes: bool) -> None:
        lanes = np.broadcast_to(mask, addresses.shape)
        used = addresses[lanes].astype(np.int64).ravel()
        if not used.size:
            return
        place = self.place(int(used.min()), int(used.max()) + item)
        offset = used - place.start
        place.requested[writes] += item * used.size
        self._touched[place.name, writes][offset // place.item] = True
        lines = np.unique(offset // LINE) + self._line[place.name]  # no number lies across two
        self._accesses.setdefault(self._program(), []).append(Access(lines, writes))

    def _program(self) -> int:
        """The number of the program that runs: on a GPU those along the first axis start first."""
        x, y, z = map(int, self.builder.grid_idx)
        return x + self.grid[0] * (y + self.grid[1] * z)


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that operations of torch read and write, each tensor once for each.

    Views are free, and so is memory that is only handed out. A change in place reads and writes. A
    product of matrices counts its factors and its result. An operation that passes over its
    input several times inside, as a softmax may, counts it once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.moved += _moved(func, args, kwargs, result)
        return result


def _moved(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> int:
    name, schema = func._overloadpacket.__name__, func._schema
    is_view = any(r.alias_info and not r.alias_info.is_write for r in schema.returns)
    if name in _FREE or is_view:
        return 0
    read: dict[Any, int] = {}
    written: dict[Any, int] = {}
    for number, about in enumerate(schema.arguments):
        value = args[number] if number < len(args) else kwargs.get(about.name)
        changes = about.alias_info is not None and about.alias_info.is_write
        for tensor in _tensors(value):
            if changes:
                written[_key(tensor)] = _size(tensor)
            if not changes or not (about.is_out or name in _OVERWRITES):
                read[_key(tensor)] = _size(tensor)
    for about, value in zip(schema.returns, _each(result, len(schema.returns)), strict=True):
        if about.alias_info is None:
            written |= {_key(tensor): _size(tensor) for tensor in _tensors(value)}
    if name in _PICKS:
        picked = next(iter(_tensors(args)))
        read[_key(picked)] = sum(_size(tensor) for tensor in _tensors(result))
    if name in _SCATTERS:
        target, *others = _tensors(args)
        same = [_size(t) for t in others if t.dtype == target.dtype]
        read[_key(target)] = written[_key(target)] = same[0] if same else _size(others[0])
    return sum(read.values()) + sum(written.values())


def _each(result: Any, count: int) -> Sequence[Any]:
    return result if count > 1 else [result] * count


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def _key(tensor: Tensor) -> tuple[Any, ...]:
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tensor.shape, tensor.stride()


def _size(tensor: Tensor) -> int:
    """Bytes of a tensor of any shape, a dimension that is only expanded counted once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    count = int(np.prod([n if s else min(n, 1) for n, s in sizes], dtype=np.int64))
    return count * tensor.element_size()


class Counted(NamedTuple):
    """What a calculation moved: its launches in order, and the bytes of torch's operations."""

    launches: list[tuple[Launch, int]]
    operations: int

    @property
    def total(self) -> int:
        return sum(moved for _, moved in self.launches) + self.operations


def counted(work: Callable[[], Any], launched: Callable[[Launch], int]) -> Counted:
    """Count a calculation, ``launched`` being asked for the bytes of each launch in place of it.

    That may run it, see :func:`interpreted`, or say what a launch of such sizes would move.
    """
    launches: list[tuple[Launch, int]] = []

    def stand_in(launch: Launch) -> None:
        launches.append((launch, launched(launch)))

    with patch.object(Launch, "run", stand_in), Operations() as operations:
        work()
    return Counted(launches, operations.moved)


@contextmanager
def uncounted() -> Iterator[None]:
    """For what makes the inputs of a calculation."""
    with _disable_current_modes():
        yield
