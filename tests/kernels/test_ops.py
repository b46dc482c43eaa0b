"""Every back end of every operation computes what the reference defines, forward and backward."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import segpt.kernels.dequantize
import segpt.kernels.ngram_mixture  # noqa: F401 - operations are known when they are imported
from segpt import kernels
from segpt.kernels import OPS

from .calls import (
    ACTIVATIONS,
    CALLS,
    CASES,
    QUINTIC,
    attention_inputs,
    called,
    gradients,
    newton_schulz_inputs,
    noise,
    on,
    opening,
)

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.cuda,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]


@pytest.fixture(autouse=True)
def _automatic_choice() -> Iterator[None]:
    with kernels.use("auto"):  # whatever a test chooses ends with it
        yield


def tolerance(dtype: torch.dtype, wanted: Tensor) -> float:
    """Rounding of a few dozen terms in ``dtype``, relative to the size of the result."""
    return 8 * torch.finfo(dtype).eps * max(1.0, wanted.abs().max().item())


def test_every_operation_has_cases() -> None:
    several = {"token_loss", "token_nats", "token_log_probs"}  # tests/kernels/test_cross_entropy.py
    in_place = {"adam_update", "muon_momentum", "muon_update"}  # test_triton_updates.py
    whole = {"dequantize", "dequantize_packed", "dequantize_trellis"}  # test_triton_dequantize.py
    ngram = {"ngram_mixture", "ngram_rows"}  # test_triton_ngram.py
    several |= {"query_key", "cached_attention"}  # test_query_key.py, test_triton_attention.py
    several |= {"add_norm"}  # test_add_norm.py
    assert OPS.keys() == CASES.keys() | several | in_place | whole | ngram
    assert all(op.__doc__ for op in OPS.values())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("name", "backend", "case"),
    [
        pytest.param(name, backend.name, case, id=f"{name}-{backend.name}-{case}")
        for name, op in OPS.items()
        for backend in op.backends
        for case in range(len(CASES.get(name, ())))
    ],
)
def test_parity(name: str, backend: str, case: int, dtype: torch.dtype, device: str) -> None:
    run = next(b for b in OPS[name].backends if b.name == backend)
    args = on(CASES[name][case], device, dtype)
    with kernels.onednn.wanted():
        refusal = run.refusal(CALLS[name](*args))
    if refusal is not None:
        pytest.skip(refusal)
    # the definition, on the same rounded inputs, in float32
    exact = on(tuple(a.detach() if isinstance(a, Tensor) else a for a in args), device, torch.float)
    wanted, wanted_gradients = gradients(called(OPS[name].reference, name), exact)
    result, result_gradients = gradients(called(run.run, name), args)
    assert result.dtype == dtype
    pairs = zip([result, *result_gradients], [wanted, *wanted_gradients], strict=True)
    for mine, theirs in pairs:
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine.float(), theirs, atol=tolerance(dtype, theirs), rtol=0)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_memory_is_used_again_only_where_backward_asks_for_nothing(act: Any) -> None:
    x = noise(4, 8, seed=0)
    kept = x.clone().requires_grad_()
    before = kernels.activation(kept, act)
    assert torch.equal(kept, x)
    torch.testing.assert_close(kernels.activation(x.clone(), act), before, atol=0, rtol=0)


@pytest.mark.parametrize("backend", ["reference", "torch", "auto"])
def test_later_keys_are_invisible(backend: str) -> None:
    kernels.use(backend)
    q, k, v = attention_inputs(2, 5, 17, 4, 2, 8)
    before = kernels.attention(q, k, v)
    k[:, 15:], v[:, 15:] = 7.0, 7.0  # the last two keys: only the last two queries see them
    after = kernels.attention(q, k, v)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3:], after[:, 3:])


def test_a_window_equals_one_query_at_a_time() -> None:
    q, k, v = attention_inputs(2, 16, 19, 4, 2, 8)
    found = kernels.attention(q, k, v, 5)
    for i in range(16):
        seen = slice(max(0, i + 3 - 4), i + 3 + 1)  # its own position and the 4 before it
        one = kernels.attention(q[:, i : i + 1], k[:, seen], v[:, seen])
        torch.testing.assert_close(found[:, i : i + 1], one, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", ["reference", "torch", "auto"])
@pytest.mark.parametrize("queries", [4, 9, 17, 40])
@pytest.mark.parametrize("key", [0, 3, 20, 38])
def test_a_key_reaches_its_window_and_nothing_else(backend: str, queries: int, key: int) -> None:
    kernels.use(backend)
    q, k, v = attention_inputs(1, queries, 40, 2, 2, 8)
    before = kernels.attention(q, k, v, 6)
    k[:, key], v[:, key] = 7.0, 7.0
    after = kernels.attention(q, k, v, 6)
    position = torch.arange(40 - queries, 40)
    sees = (position >= key) & (position < key + 6)
    assert torch.equal(before[:, ~sees], after[:, ~sees])
    assert ((before - after).abs().amax((0, 2, 3)) > 0).equal(sees)


@pytest.mark.parametrize("backend", ["reference", "torch", "auto"])
@pytest.mark.parametrize("window", [None, 3, 8])
def test_documents_equal_one_at_a_time(backend: str, window: int | None) -> None:
    kernels.use(backend)
    q, k, v = attention_inputs(1, 40, 40, 4, 2, 8)
    found = kernels.attention(q, k, v, window, opening(1, 40, 0, 1, 9, 30))
    for part in (slice(0, 1), slice(1, 9), slice(9, 30), slice(30, 40)):
        alone = kernels.attention(q[:, part], k[:, part], v[:, part], window)
        torch.testing.assert_close(found[:, part], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [None, 8])
def test_one_document_changes_no_bit(window: int | None) -> None:
    """Nor does a later one: with it there is a mask, and without there is none."""
    q, k, v = attention_inputs(2, 200, 200, 4, 2, 16)
    plain = kernels.attention(q, k, v, window)
    assert torch.equal(kernels.attention(q, k, v, window, opening(2, 200)), plain)
    later = kernels.attention(q, k, v, window, opening(2, 200, 150))
    assert torch.equal(later[:, :150], plain[:, :150])
    assert not torch.allclose(later[:, 152:], plain[:, 152:], atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [40, 43, 64])
def test_windows_compile(keys: int) -> None:
    inputs = attention_inputs(2, 40, keys, 4, 2, 8, 6)
    torch.compiler.reset()
    compiled = torch.compile(kernels.attention, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), kernels.attention(*inputs))
    torch.compiler.reset()


def test_memory_grows_with_the_window_not_with_the_square() -> None:
    q, k, v = attention_inputs(1, 50_000, 50_000, 1, 1, 2)  # a square mask would take 2.5 GB
    found = kernels.attention(q, k, v, 16)
    some = slice(31_000, 31_100)
    part = kernels.attention(q[:, some], k[:, 30_900:31_100], v[:, 30_900:31_100], 16)
    torch.testing.assert_close(found[:, some], part, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_orthogonalising_drives_singular_values_to_one(backend: str) -> None:
    kernels.use(backend)
    x, _ = newton_schulz_inputs(2, 7, 33)
    values = torch.linalg.svdvals(kernels.newton_schulz(x, (QUINTIC,) * 5))
    assert values.min() > 0.6
    assert values.max() < 1.3  # Jordan's quintic overshoots on purpose
    exact = kernels.newton_schulz(x, ((1.5, -0.5, 0.0),) * 30)
    torch.testing.assert_close(exact @ exact.mT, torch.eye(7).expand(2, 7, 7), atol=1e-4, rtol=0)
