"""Operations by name: a reference that defines each, and back ends that may run instead of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from importlib import import_module
from types import TracebackType
from typing import Any, Generic, TypeVar

from segpt.config.kernels import Kernels
from segpt.errors import SegptError

Call = TypeVar("Call")
Result = TypeVar("Result")

AUTO, REFERENCE = "auto", "reference"
OPS: dict[str, "Op[Any, Any]"] = {}
_chosen: dict[str, str] = {}  # the back end that somebody chose, by operation


class Backend(ABC, Generic[Call, Result]):
    """One way to compute an operation: a class per file, with its support told as reasons.

    Attributes:
        name: what recipes and :class:`use` call it.
        priority: of the back ends that support a call, the one of the highest runs.
        devices: the types of devices that it runs on; None where a call decides that.
    """

    name: str
    priority: int
    devices: tuple[str, ...] | None = None

    def runs_on(self, device: str) -> bool:
        """Whether it takes any call on devices of a type, which is known before there is one."""
        return self.devices is None or device in self.devices

    @abstractmethod
    def refusal(self, call: Call) -> str | None:
        """Why it cannot compute this call, in words that a log can show; None if it can."""

    @abstractmethod
    def run(self, call: Call) -> Result:
        """The result, in the shape of that of the reference, and in its dtype."""


class Later(Backend[Call, Result]):
    """A back end whose module is imported at the first call on one of its devices."""

    def __init__(
        self,
        name: str,
        priority: int,
        devices: tuple[str, ...],
        load: Callable[[], Backend[Call, Result]] | str,
    ) -> None:
        """``load`` is the class, as ``module:class``, or a function that may raise ImportError."""
        self.name, self.priority, self.devices = name, priority, devices
        self._load = partial(_made, load) if isinstance(load, str) else load
        self._backend: Backend[Call, Result] | None = None
        self._missing: str | None = None

    def refusal(self, call: Call) -> str | None:
        device = device_of(call)
        if not self.runs_on(device):
            return f"it runs on {' and '.join(self.devices or ())}, not on {device}"
        self.load()
        return self._missing if self._backend is None else self._backend.refusal(call)

    def load(self) -> None:
        """Import it, unless that has been tried."""
        if self._backend is None and self._missing is None:
            try:
                self._backend = self._load()
            except ImportError as error:
                self._missing = f"it cannot be imported: {error}"

    def run(self, call: Call) -> Result:
        assert self._backend is not None  # refusal() has been asked
        return self._backend.run(call)


class Op(Generic[Call, Result]):
    """A reference implementation, and the back ends beside it by falling priority."""

    def __init__(
        self,
        name: str,
        reference: Callable[[Call], Result],
        *backends: Backend[Call, Result],
    ) -> None:
        self.name, self.reference = name, reference
        self.__doc__ = reference.__doc__
        self.backends: list[Backend[Call, Result]] = []
        for backend in backends:
            self.register(backend)
        OPS[name] = self

    def register(self, backend: Backend[Call, Result]) -> None:
        """Add a back end; where it was imported from, and when, decides nothing.

        Raises:
            SegptError: if there is one of that name.
        """
        if backend.name in (AUTO, REFERENCE, *(other.name for other in self.backends)):
            raise SegptError(f"{self.name} has a back end {backend.name!r} already")
        self.backends.append(backend)
        self.backends.sort(key=lambda b: (-b.priority, b.name))

    def __call__(self, call: Call) -> Result:
        """Compute ``call`` by the chosen back end, or the best one that supports it.

        Raises:
            SegptError: if a back end was chosen by name and does not support the call.
        """
        backend = self.choose(call)
        return self.reference(call) if backend is None else backend.run(call)

    def choose(self, call: Call) -> Backend[Call, Result] | None:
        """The back end that computes ``call``, or None where that is the reference.

        Raises:
            SegptError: if a back end was chosen by name and does not support the call.
        """
        chosen = _chosen.get(self.name, AUTO)
        if chosen == REFERENCE or not self.backends:
            return None
        if chosen == AUTO:
            # Small calls are many: back ends of other devices are passed over without words.
            for backend in self.backends:
                devices = backend.devices
                if devices is not None and device_of(call) not in devices:
                    continue
                if backend.refusal(call) is None:
                    return backend
            return None
        named = next((backend for backend in self.backends if backend.name == chosen), None)
        if named is None:
            return None
        refusal = named.refusal(call)
        if refusal is not None:
            raise SegptError(
                f"the back end {chosen!r} of {self.name} does not support this call: "
                f"{refusal}; choose another, or 'auto'"
            )
        return named

    def may_choose(self, device: str) -> bool:
        """Whether some call on devices of a type is not the reference's, or is refused."""
        chosen = _chosen.get(self.name, AUTO)
        if chosen == AUTO:
            return any(backend.runs_on(device) for backend in self.backends)
        return chosen != REFERENCE

    def refusals(self, call: Call) -> dict[str, str | None]:
        """What each back end says to a call, by falling priority: a reason, or None."""
        return {backend.name: backend.refusal(call) for backend in self.backends}


class use:  # noqa: N801 - read like a function, as torch.set_grad_enabled is
    """Choose back ends: ``use("reference")`` for all, ``use(attention="torch")`` for one.

    The choice stands until another; as a context manager (``with use(...):``) it ends with the
    block. A name for every operation leaves alone those that have no such back end. What is
    chosen by name must run, or the call raises; ``auto`` takes the best that supports each call.
    """

    def __init__(self, every: str | None = None, /, **by_op: str) -> None:
        """Make the choice.

        Raises:
            SegptError: if there is no such operation or back end; then nothing is chosen.
        """
        chosen = dict(_chosen)
        if every is not None:
            _check(every, {name for op in OPS.values() for name in _names(op)}, "kernels")
            chosen |= {name: every for name, op in OPS.items() if every in _names(op)}
        for name, backend in by_op.items():
            if name not in OPS:
                raise SegptError(f"unknown operation {name!r}; known: {', '.join(sorted(OPS))}")
            _check(backend, _names(OPS[name]), f"back end of {name}")
            chosen[name] = backend
        self._before = dict(_chosen)
        _replace(chosen)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _replace(self._before)


def use_recipe(kernels: Kernels) -> use:
    """The choice of a recipe, see :class:`use`.

    Raises:
        SegptError: if there is no such back end.
    """
    return use(**{field.name: getattr(kernels, field.name) for field in fields(kernels)})


def load_backends(device: str) -> None:
    """Import every back end that runs on devices of a type.

    Before a model is compiled: an import within what torch.compile traces breaks its graph.
    """
    for op in OPS.values():
        for backend in op.backends:
            if isinstance(backend, Later) and backend.runs_on(device):
                backend.load()


def device_of(call: Any) -> str:
    """The type of the device of a call, which begins with a tensor or with a list of them."""
    first = call[0]
    if first.__class__ is list or first.__class__ is tuple:
        first = first[0]
    device: str = first.device.type
    return device


def _made(place: str) -> Backend[Any, Any]:
    module, _, name = place.partition(":")
    backend = getattr(import_module(module), name)()
    assert isinstance(backend, Backend)
    return backend


def _names(op: Op[Any, Any]) -> set[str]:
    return {AUTO, REFERENCE, *(backend.name for backend in op.backends)}


def _check(name: str, known: set[str], what: str) -> None:
    if name not in known:
        raise SegptError(f"unknown {what} {name!r}; known: {', '.join(sorted(known))}")


def _replace(chosen: Mapping[str, str]) -> None:
    _chosen.clear()
    _chosen.update(chosen)
