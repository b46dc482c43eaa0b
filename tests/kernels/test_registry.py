"""Which back end runs: that of highest priority, whatever its module is called."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from segpt import kernels
from segpt.config.kernels import Kernels
from segpt.errors import SegptError
from segpt.kernels import OPS, Backend, Later, Op
from segpt.kernels.registry import load_backends

# Operations for programs of others, which no recipe chooses.
OF_OTHERS = {
    *("dequantize", "dequantize_packed", "dequantize_trellis", "ngram_mixture", "ngram_rows")
}


class ScaleCall(NamedTuple):
    x: Tensor
    by: float


def reference(call: ScaleCall) -> str:
    """Says that it is the definition."""
    return "reference"


class Named(Backend[ScaleCall, str]):
    """A back end that takes positive numbers, and says who it is."""

    def __init__(self, name: str, priority: int) -> None:
        self.name, self.priority = name, priority

    def refusal(self, call: ScaleCall) -> str | None:
        return None if call.by > 0 else f"{self.name} takes positive numbers"

    def run(self, call: ScaleCall) -> str:
        return self.name


POSITIVE, NEGATIVE = ScaleCall(torch.ones(1), 1.0), ScaleCall(torch.ones(1), -1.0)


@pytest.fixture
def op() -> Iterator[Op[ScaleCall, str]]:
    with kernels.use("auto"):
        yield Op("scale", reference, Named("swift", 10))
    del OPS["scale"]


def test_auto_takes_a_back_end_where_it_can(op: Op[ScaleCall, str]) -> None:
    assert (op(POSITIVE), op(NEGATIVE)) == ("swift", "reference")
    assert op.refusals(NEGATIVE) == {"swift": "swift takes positive numbers"}


@pytest.mark.parametrize("names", [("a", "z"), ("z", "a")])
def test_priority_decides_and_neither_name_nor_order(
    op: Op[ScaleCall, str], names: tuple[str, str]
) -> None:
    op.register(Named(names[0], 5))
    op.register(Named(names[1], 20))
    assert op(POSITIVE) == names[1]
    assert list(op.refusals(POSITIVE)) == [names[1], "swift", names[0]]


FAST = '''
"""A back end of attention as somebody else would write it."""

from segpt.kernels.attention import ATTENTION
from segpt.kernels.registry import Backend


class Fast(Backend):
    name, priority = "zz_fast", 100

    def refusal(self, call):
        return None if call.q.size(-1) % 2 == 0 else "it takes an even number of channels"

    def run(self, call):
        return call.q * 0 + 7


ATTENTION.register(Fast())
'''


def test_a_fast_back_end_whose_module_sorts_last_is_chosen(tmp_path: Path) -> None:
    place = tmp_path / "zzz_last.py"
    place.write_text(FAST)
    spec = importlib.util.spec_from_file_location("zzz_last", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    attention = OPS["attention"]
    before = list(attention.backends)
    try:
        spec.loader.exec_module(module)
        q = torch.randn(1, 4, 2, 8)
        assert (kernels.attention(q, q, q) == 7).all()
        odd = torch.randn(1, 4, 2, 7)
        assert not (kernels.attention(odd, odd, odd) == 7).all()  # the next one runs
        with kernels.use(attention="torch"):
            assert not (kernels.attention(q, q, q) == 7).all()
        with (
            kernels.use(attention="zz_fast"),
            pytest.raises(SegptError, match="it takes an even number of channels"),
        ):
            kernels.attention(odd, odd, odd)
    finally:
        attention.backends[:] = before


def test_a_choice_for_one_operation_leaves_the_others(op: Op[ScaleCall, str]) -> None:
    other = Op("other", reference, Named("swift", 10))
    try:
        with kernels.use(scale="reference"):
            assert (op(POSITIVE), other(POSITIVE)) == ("reference", "swift")
        assert op(POSITIVE) == "swift"
    finally:
        del OPS["other"]


def test_a_choice_stands_until_another(op: Op[ScaleCall, str]) -> None:
    kernels.use("reference")
    assert op(POSITIVE) == "reference"
    kernels.use("auto")
    assert op(POSITIVE) == "swift"


def test_an_error_in_a_block_ends_its_choice(op: Op[ScaleCall, str]) -> None:
    with pytest.raises(ZeroDivisionError), kernels.use("reference"):
        raise ZeroDivisionError
    assert op(POSITIVE) == "swift"


def test_a_name_runs_or_raises_with_the_reason(op: Op[ScaleCall, str]) -> None:
    with kernels.use("swift"):
        assert op(POSITIVE) == "swift"
        message = "'swift' of scale does not support this call: swift takes positive numbers"
        with pytest.raises(SegptError, match=message):
            op(NEGATIVE)
        q = torch.randn(2, 4, 2, 8)  # attention has no such back end and goes its usual way
        assert torch.equal(kernels.attention(q, q, q), kernels.attention(q, q, q))


@pytest.mark.parametrize(
    ("every", "by_op", "message"),
    [
        ("trition", {}, "unknown kernels 'trition'; known: auto, checkpoint, onednn, reference"),
        (
            None,
            {"atention": "torch"},
            "unknown operation 'atention'; known: activation, adam_update, add_norm",
        ),
        (None, {"scale": "torch"}, "unknown back end of scale 'torch'; known: auto, reference, sw"),
    ],
)
def test_what_does_not_exist_is_refused(
    op: Op[ScaleCall, str], every: str | None, by_op: dict[str, str], message: str
) -> None:
    kernels.use("reference")
    with pytest.raises(SegptError, match=message):
        kernels.use(every, **by_op)
    assert op(POSITIVE) == "reference"  # the earlier choice stays


def test_a_name_is_taken_once(op: Op[ScaleCall, str]) -> None:
    with pytest.raises(SegptError, match="has a back end 'swift' already"):
        op.register(Named("swift", 3))
    with pytest.raises(SegptError, match="has a back end 'reference' already"):
        op.register(Named("reference", 3))


def test_what_loads_later_is_imported_where_its_device_is(op: Op[ScaleCall, str]) -> None:
    loaded = []

    def load() -> Named:
        loaded.append("yes")
        return Named("late", 50)

    elsewhere = Later[ScaleCall, str]("elsewhere", 60, ("cuda",), load)
    op.register(elsewhere)
    assert op(POSITIVE) == "swift"
    assert elsewhere.refusal(POSITIVE) == "it runs on cuda, not on cpu"
    assert not loaded
    op.register(Later[ScaleCall, str]("late", 50, ("cpu",), load))
    assert (op(POSITIVE), op(POSITIVE), op(NEGATIVE)) == ("late", "late", "reference")
    assert loaded == ["yes"]


def test_what_cannot_be_imported_is_a_reason_and_no_error(op: Op[ScaleCall, str]) -> None:
    def load() -> Named:
        raise ImportError("no module named triton")

    op.register(Later[ScaleCall, str]("late", 50, ("cpu",), load))
    assert op(POSITIVE) == "swift"
    assert op.refusals(POSITIVE)["late"] == "it cannot be imported: no module named triton"


def doubled() -> Backend[ScaleCall, Tensor]:
    class Doubling(Backend[ScaleCall, Tensor]):
        name, priority = "late", 50

        def refusal(self, call: ScaleCall) -> str | None:
            return None

        def run(self, call: ScaleCall) -> Tensor:
            return 2 * call.x

    import_module("segpt.kernels")  # what breaks a graph that is being traced
    return Doubling()


@pytest.mark.slow
@pytest.mark.parametrize("is_loaded", [True, False])
def test_a_model_compiles_whole_where_back_ends_are_loaded_before(is_loaded: bool) -> None:
    late = Later[ScaleCall, Tensor]("late", 50, ("cpu",), doubled)
    scale = Op[ScaleCall, Tensor]("scale_compiled", lambda call: call.x * call.by, late)
    counter = CompileCounter()
    torch.compiler.reset()
    try:
        if is_loaded:
            load_backends("cpu")

        def model(x: Tensor) -> Tensor:
            return scale(ScaleCall(scale(ScaleCall(x + 1, 2.0)), 2.0)) - 1

        result = torch.compile(model, backend=counter)(torch.ones(3))
    finally:
        del OPS["scale_compiled"]
        torch.compiler.reset()
    assert torch.equal(result, torch.full((3,), 7.0))
    assert (counter.frame_count == 1 and counter.op_count == 4) is is_loaded


def test_back_ends_are_loaded_where_they_run() -> None:
    loaded = []
    op = Op[ScaleCall, str]("scale_loaded", reference)
    try:
        for name, device in (("here", "cpu"), ("elsewhere", "cuda")):

            def load(name: str = name) -> Backend[ScaleCall, str]:
                loaded.append(name)
                raise ImportError("none")

            op.register(Later[ScaleCall, str](name, 50, (device,), load))
        load_backends("cpu")
        load_backends("cpu")
    finally:
        del OPS["scale_loaded"]
    assert loaded == ["here"]


def test_the_recipe_knows_every_operation() -> None:
    assert OPS.keys() - Kernels.__dataclass_fields__.keys() <= OF_OTHERS
    assert Kernels.__dataclass_fields__.keys() <= OPS.keys() - OF_OTHERS


@pytest.mark.slow
def test_a_cpu_imports_no_kernel_of_a_gpu() -> None:
    script = (
        "import sys, torch; from segpt import kernels; from segpt.kernels import OPS\n"
        "kernels.rms_norm(torch.ones(2, 3))\n"
        "print([n for n in sys.modules if n.split('.')[0] != 'torch' and 'triton' in n])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
