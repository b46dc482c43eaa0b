"""A loop that runs more or less often than its route says."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from segpt.config.expand import expand
from segpt.config.model import ModelSpec
from segpt.config.parts import Skip
from segpt.errors import SpecError
from segpt.model.build import load_weights
from segpt.model.cache import KVCache
from segpt.model.model import Model
from segpt.model.params import weights

Make = Callable[..., Model]
Draw = Callable[..., Tensor]


def looped(route: str = "0 (1)*3 2", **more: object) -> ModelSpec:
    mixer = {
        "heads": 2,
        "kv_heads": 1,
        "head_dim": 8,
        "query_key": ["norm", {"kind": "rope", "dims": 8}],
        "value": ["value_residual"],
    }
    recipe = {
        "vocab": 40,
        "width": 16,
        "context": 32,
        "depth": 3,
        "layer": {"mixer": mixer, "feed": {"hidden": 24}, "join": ["mix_input"]},
        "route": route,
    }
    return expand(recipe | more)


@pytest.mark.parametrize("loops", [1, 2, 3, 5])
def test_loops_equal_a_route_written_out(loops: int, make: Make, tokens: Draw) -> None:
    """Without parts of single visits, a number of loops is a route like any other."""
    model, other = make(looped()), make(looped(f"0 (1)*{loops} 2"))
    load_weights(other, {w.name: w.tensor.detach().numpy() for w in weights(model)})
    ids = tokens(model.spec)
    with torch.no_grad():
        assert torch.equal(model.loops(loops)(ids), other(ids))
        assert torch.equal(model.loops(None)(ids), make(looped())(ids))


@pytest.mark.slow
@pytest.mark.parametrize("loops", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("sizes", [[1] * 12, [5, 1, 6]], ids=str)
def test_every_run_of_a_visit_has_its_own_past(
    everything: ModelSpec,
    loops: int,
    window: int | None,
    sizes: list[int],
    make: Make,
    tokens: Draw,
) -> None:
    # one memory per visit mixes the keys of two passes, and shows positions twice
    model = make(everything).loops(loops)
    ids = tokens(everything)
    cache: KVCache = {}
    start, pieces = 0, []
    with torch.no_grad():
        whole = model(ids, window=window)
        for size in sizes:
            pieces.append(model(ids[:, start : start + size], cache, start, window=window))
            start += size
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-5)
    assert list(cache) == list(range(len(model.active)))
    assert len(model.active) == 7 + 3 * (loops - 1)


@pytest.mark.parametrize("loops", [1, 4])
def test_the_future_never_changes_the_past_in_any_pass(
    everything: ModelSpec, loops: int, make: Make, tokens: Draw
) -> None:
    model = make(everything).loops(loops)
    ids = tokens(everything)
    others = ids.clone()
    others[:, 7:] = (others[:, 7:] + 1) % everything.vocab
    with torch.no_grad():
        before, after = model(ids), model(others)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7:], after[:, 7:])


@pytest.mark.parametrize("last", [1, 5])
def test_only_the_last_run_of_the_last_visit_is_cut_short(
    last: int, make: Make, tokens: Draw
) -> None:
    model = make(looped("0 1 (2)*2")).loops(4)
    assert model.active == (0, 1, 2, 3, 3, 3)
    ids = tokens(model.spec)
    with torch.no_grad():
        some, whole = model(ids, last=last), model(ids)
    torch.testing.assert_close(some, whole[:, -last:], rtol=0, atol=1e-5)


def test_a_skip_reads_the_last_run_and_ignores_what_never_ran(make: Make, tokens: Draw) -> None:
    spec = looped(skips="mirror")  # visits 2, 3, 4 of layers 1, 1, 2 skip from 1, 0 and nothing
    sources = [[p.source for p in v.join if isinstance(p, Skip)] for v in spec.visits]
    assert sources == [[], [], [1], [0], []]
    model = make(spec)
    ids = tokens(spec)
    outputs: list[Tensor] = []
    hook = model.layers[1].register_forward_hook(lambda module, args, y: outputs.append(y))
    with torch.no_grad():
        one, three, five = (model.loops(n)(ids) for n in (1, 3, 5))
    hook.remove()
    assert len(outputs) == 1 + 3 + 5
    assert not torch.allclose(one, three, atol=1e-3)
    assert not torch.allclose(three, five, atol=1e-3)


def test_progress_and_loops_combine(make: Make) -> None:
    model = make(looped("0 (1)*3@0.5 2"))
    assert model.set_progress(0.2).active == (0, 1, 4)
    assert model.loops(2).active == (0, 1, 1, 4)  # of the progress it is at
    assert model.set_progress(0.7, loops=2).active == (0, 1, 2, 4)
    assert model.loops(None).active == (0, 1, 2, 3, 4)


def test_models_without_a_loop_say_so(make: Make) -> None:
    model = make(looped(":"))
    with pytest.raises(SpecError, match="never repeats layers, so it has no loop"):
        model.loops(2)
    assert model.loops(None).active == (0, 1, 2)


@pytest.mark.parametrize("loops", [1, 2, 4, 6])
def test_truncation_changes_no_value(loops: int, make: Make, tokens: Draw) -> None:
    model = make(looped())
    ids = tokens(model.spec)
    whole = model.set_progress(1.0, loops)(ids)
    assert torch.equal(model.set_progress(1.0, loops, back=2)(ids), whole)


def gradients(model: Model, ids: Tensor) -> dict[str, Tensor | None]:
    for weight in weights(model):
        weight.tensor.grad = None
    logits = model(ids[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    torch.autograd.backward(loss)
    return {w.name: w.tensor.grad for w in weights(model)}


def test_truncation_reaches_the_last_passes_and_what_comes_before_the_loop(
    make: Make, tokens: Draw
) -> None:
    model = make(looped())
    ids = tokens(model.spec)
    full, all_of_them = (
        gradients(model.set_progress(1.0, 4), ids),
        gradients(model.set_progress(1.0, 4, 4), ids),
    )
    short = gradients(model.set_progress(1.0, 4, 1), ids)
    for name, wanted in full.items():
        found, some = all_of_them[name], short[name]
        assert wanted is not None
        assert found is not None
        assert some is not None
        assert torch.equal(found, wanted)
        assert some.abs().max() > 0
        if name.startswith("layers.1.mixer"):
            assert not torch.allclose(some, wanted, rtol=1e-2)
        if name.startswith("layers.2."):  # after the loop, nothing is cut
            torch.testing.assert_close(some, wanted)


def test_a_truncated_pass_hands_its_gradient_on_as_it_is(make: Make, tokens: Draw) -> None:
    """The early passes become a constant that is added, whatever they compute."""
    model = make(looped())
    ids = tokens(model.spec)
    found = gradients(model.set_progress(1.0, 3, 1), ids)
    entries: list[Tensor] = []

    def add_constant(module: torch.nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        entries.append(y)
        return y + offset

    with torch.no_grad():
        exits: list[Tensor] = []
        hooks = [model.layers[1].register_forward_hook(lambda m, a, y: exits.append(y))]
        hooks.append(model.layers[0].register_forward_hook(lambda m, a, y: exits.append(y)))
        model.set_progress(1.0, 3)(ids[:, :-1])
        for hook in hooks:
            hook.remove()
        offset = exits[2] - exits[0]  # what the first two passes add to the output of layer 0
    hook = model.layers[0].register_forward_hook(add_constant)
    wanted = gradients(model.set_progress(1.0, 1), ids)
    hook.remove()
    assert len(entries) == 1
    for name, gradient in wanted.items():
        # values of the first visit come from layer 0 in both
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


# What lies between passes; other parts are compiled in test_model.py, and take as long again.
BARE = {
    "mixer": {"heads": 2, "kv_heads": 1, "head_dim": 8, "value": ["value_residual"]},
    "feed": {"hidden": 24},
    "join": ["mix_input"],
}


@pytest.mark.parametrize(
    ("numbers", "parts"),
    [
        pytest.param([(1, None), (3, 2)], {"layer": BARE}, marks=pytest.mark.slow),
        pytest.param(
            [(loops, back) for loops in (1, 3, 5) for back in (None, 2)],
            {},
            marks=pytest.mark.campaign,
        ),
    ],
    ids=["two", "six"],
)
def test_every_number_of_loops_compiles(
    make: Make, tokens: Draw, numbers: list[tuple[int, int | None]], parts: dict[str, Any]
) -> None:
    model = make(looped(skips="mirror", **parts))
    ids = tokens(model.spec)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for loops, back in numbers:
        model.set_progress(1.0, loops, back)
        assert torch.equal(compiled(ids), model(ids))
    torch.compiler.reset()
