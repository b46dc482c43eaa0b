"""Named operations: a reference in plain torch, and faster back ends that may replace it."""

from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

from segpt.errors import SegptError

P = ParamSpec("P")
R = TypeVar("R")

OPS: dict[str, "Op[Any, Any]"] = {}
_choice = "auto"


def use(choice: str) -> None:
    """Choose ``auto``, ``reference`` or one back end by name, for every operation.

    ``auto`` takes the first back end that supports the arguments and falls back to the
    reference; a back end chosen by name must run, or the call raises.

    Raises:
        SegptError: if no operation has such a back end.
    """
    global _choice
    known = {"auto", "reference"} | {name for op in OPS.values() for name in op.backends}
    if choice not in known:
        raise SegptError(f"unknown kernels {choice!r}; known: {', '.join(sorted(known))}")
    _choice = choice


class Op(Generic[P, R]):
    """A reference implementation, and back ends that declare what they support."""

    def __init__(self, reference: Callable[P, R]) -> None:
        self.name, self.reference = reference.__name__, reference
        self.__doc__ = reference.__doc__
        self.backends: dict[str, tuple[Callable[P, R], Callable[P, bool]]] = {}
        OPS[self.name] = self

    def register(
        self, backend: str, when: Callable[P, bool]
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Add a back end that runs where ``when`` accepts the same arguments."""

        def add(function: Callable[P, R]) -> Callable[P, R]:
            self.backends[backend] = (function, when)
            return function

        return add

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if _choice != "reference":
            for name, (function, when) in self.backends.items():
                if _choice in ("auto", name) and when(*args, **kwargs):
                    return function(*args, **kwargs)
            if _choice in self.backends:
                raise SegptError(
                    f"kernels {_choice!r} do not support this call of {self.name}; use 'auto'"
                )
        return self.reference(*args, **kwargs)
