"""Matrices of one shape that are multiplied at once, each a weight of its own everywhere else."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from segpt.config.layout import Place, Role, Weight
from segpt.config.role import stack
from segpt.model.params import Matrix, Stack, weights
from tests.house.guide import copied, replaced, run


@pytest.fixture
def experts() -> Stack:
    torch.manual_seed(1)
    made = Stack(3, 8, 5)
    for weight in weights(made):
        torch.nn.init.normal_(weight.tensor)
    return made


def one_by_one(experts: Stack, x: Tensor) -> Tensor:
    return torch.stack(
        [x[:, i] @ matrix.weight.T for i, matrix in enumerate(experts.matrices())], 1
    )


def test_each_matrix_multiplies_rows_of_its_own(experts: Stack) -> None:
    x = torch.randn(2, 3, 4, 8)
    torch.testing.assert_close(experts(x), one_by_one(experts, x))
    assert experts(x[0]).shape == (3, 4, 5)
    assert experts(x.bfloat16()).dtype == torch.bfloat16


def test_gradients_reach_each_matrix(experts: Stack) -> None:
    x, slope = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 4, 5)
    experts(x).backward(slope)
    for i, matrix in enumerate(experts.matrices()):
        wanted = torch.einsum("bno,bni->oi", slope[:, i], x[:, i])
        torch.testing.assert_close(matrix.weight.grad, wanted)


def test_what_waits_for_one_of_them_is_called_with_its_rows(experts: Stack) -> None:
    x, seen = torch.randn(2, 3, 4, 8), []
    second = list(experts.matrices())[1]
    second.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.testing.assert_close(experts(x), one_by_one(experts, x))
    assert len(seen) == 1
    assert torch.equal(seen[0], x[:, 1])


def test_what_is_done_to_one_of_them_counts(experts: Stack) -> None:
    x = torch.randn(3, 4, 8)
    first, second, _ = experts.matrices()
    plain = experts(x)
    second.weight_transform = lambda weight: 2 * weight
    torch.testing.assert_close(experts(x)[1], 2 * plain[1])
    first.product = lambda x, weight: x @ weight.T + 1
    torch.testing.assert_close(experts(x)[0], plain[0] + 1)
    torch.testing.assert_close(experts(x)[2], plain[2])


def test_its_weights_are_those_of_its_entries(experts: Stack) -> None:
    holder = torch.nn.ModuleDict({"up": experts})
    entries = stack("up", 3, 5, 8)
    assert [(w.name, w.role, tuple(w.tensor.shape)) for w in weights(holder)] == [*entries]
    assert all(isinstance(w.param, Matrix) for w in weights(holder))


def test_a_rule_for_a_part_counts_for_the_whole_stack() -> None:
    third = Weight("layers.0.feed.body.up.3", Role.MATRIX, (5, 8), 0, 1, Place.FEED)
    assert (third.owner, third.part) == ("layers.0.feed.body", "up")
    gain = Weight("visits.3.0.gain", Role.VECTOR, (5,), 0, 1, Place.JOIN)
    assert (gain.owner, gain.part) == ("visits.3.0", "gain")


SPEC = '''

@spec
class HeadMap:
    """Add to the values of each head a map of them."""

    def weights(self, width: int, mixer: "Attention") -> tuple[Entry, ...]:
        """A map for each head."""
        return stack("maps", mixer.kv_heads, mixer.head_dim, mixer.head_dim)


# What each slot takes.'''

MODULE = """

class HeadMap(nn.Module):
    def __init__(self, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.maps = Stack(kv_heads, head_dim, head_dim, zero=True)

    def forward(self, v: Tensor, x: Tensor, state: ForwardState) -> Tensor:
        return v + self.maps(v.transpose(-3, -2)).transpose(-3, -2)
"""

CASE = """        case slot.HeadMap():
            return parts.HeadMap(a.kv_heads, a.head_dim)
        case slot.ValueNorm():
"""

SCRIPT = """
import numpy as np, torch
from segpt.artifact.container import pack, unpack
from segpt.config.expand import expand
from segpt.config.layout import layout
from segpt.config.quant import QuantSpec
from segpt.config.role import Role
from segpt.stages.open_model import from_quantized
from segpt.stages.quantize import quantize
from segpt.values import Checkpoint, Tokenizer

mixer = dict(heads=4, kv_heads=2, head_dim=8, value=["head_map"])
spec = expand(dict(vocab=40, width=32, context=16, depth=2,
                   layer=dict(mixer=mixer, feed=dict(hidden=32))))
draw = np.random.default_rng(0)
checkpoint = Checkpoint(
    spec=spec,
    weights={w.name: draw.normal(0, 0.3, w.shape).astype(np.float32) for w in layout(spec)},
    tokenizer=Tokenizer("bytes", 40), step=1, progress=1.0,
    documents=np.array([1], np.uint64), origin={"tokens": "0123456789abcdef"},
)
text = [draw.integers(0, 40, (8, 17)) for _ in range(3)]
for method in ("gptq", "trellis"):
    own = dict(search=0, tune_steps=0, rate=4.0) if method == "trellis" else {}
    quantized = quantize(checkpoint, QuantSpec(method=method, **own), text)
    artifact = pack(quantized)
    back = unpack(artifact)
    names = [name for name in back.weights if ".maps." in name]
    assert len(names) == 4, names
    coded = quantized.report.weights[names[0]]
    assert coded.output_error is not None  # what is fed back needs its Hessian
    logits = from_quantized(back)(torch.as_tensor(text[0][:, :-1]))
    assert torch.isfinite(logits).all()
    print(method, *names)
"""


@pytest.mark.slow
def test_a_part_with_a_stack_is_quantized_packed_and_opened(tmp_path: Path) -> None:
    package = copied(tmp_path, "model")
    specs, modules = package / "config" / "parts.py", package / "model" / "parts.py"
    replaced(specs, "\n\n# What each slot takes.", SPEC)
    replaced(
        specs, "import Entry, matrix, table, vector", "import Entry, matrix, stack, table, vector"
    )
    replaced(specs, "ValuePart = ", "ValuePart = HeadMap | ")
    replaced(
        modules, "from .params import Matrix, Vector", "from .params import Matrix, Stack, Vector"
    )
    modules.write_text(modules.read_text(encoding="utf-8") + MODULE, encoding="utf-8")
    replaced(package / "model" / "build.py", "        case slot.ValueNorm():\n", CASE)
    shown = run(tmp_path, "-c", SCRIPT)
    assert shown.count("value_parts.0.maps.1") == 4
