"""The recipes of published models have the parameters that their formulas count."""

import dataclasses
import math
from collections import Counter

import pytest

from segpt.config.layout import Place, Role, layout, parameters
from segpt.config.model import ModelSpec
from segpt.config.optimizer import Adam, Muon
from segpt.config.recipe import names, read_recipe
from segpt.config.schedule import Steps

SMALL = [name for name in names() if name.endswith("-small")]


def by_role(spec: ModelSpec) -> Counter[Role]:
    sizes = Counter[Role]()
    for weight in layout(spec):
        sizes[weight.role] += weight.size
    return sizes


def tokens(name: str) -> int:
    """How many the run trains on."""
    recipe = read_recipe(name)
    assert isinstance(recipe.train.length, Steps)
    return recipe.train.length.count * recipe.train.batch * recipe.model.context


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("imu1", 481_988_856),
        ("imu1-decay", 481_988_856),
        ("imu1-midtrain", 481_988_856),
        ("lapp0", 162_165_555),
        ("seed004", 25_175_076),
        ("golf16", 35_944_536),
    ],
)
def test_published_counts(name: str, count: int) -> None:
    assert parameters(read_recipe(name).model) == count


def test_the_stages_of_imu_1_are_one_model() -> None:
    models = [read_recipe(name).model for name in ("imu1", "imu1-decay", "imu1-midtrain")]
    assert [model.context for model in models] == [768, 896, 1152]
    assert len({dataclasses.replace(model, context=1) for model in models}) == 1
    small = ("imu1-small", "imu1-decay-small", "imu1-midtrain-small")
    assert len({read_recipe(name).model for name in small}) == 1
    assert [tokens(name) for name in ("imu1", "imu1-decay", "imu1-midtrain")] == [
        29_491_200_000,
        27_955_200_000,
        14_376_960_000,
    ]


def dense(width: int, hidden: int, depth: int, heads: int, kv_heads: int, vocab: int) -> int:
    """A model with gated feeds, gains on inputs, heads of 64 channels and its own head."""
    attention = 64 * width * (2 * heads + 2 * kv_heads)
    gains, blend, of_queries = 2 * width, 2 + 1, 1
    layer = attention + 3 * width * hidden + gains + blend + of_queries
    return 2 * vocab * width + depth * layer + width


@pytest.mark.parametrize(
    ("name", "count", "shape"),
    [
        ("imu1-70m", 105_788_192, (768, 2048, 8, 12, 12, 32_000)),
        ("imu1-126m", 188_245_040, (1024, 2304, 12, 16, 8, 32_000)),
    ],
)
def test_the_models_of_ablations(name: str, count: int, shape: tuple[int, ...]) -> None:
    spec = read_recipe(name).model
    assert parameters(spec) == dense(*shape) == count
    width, vocab = shape[0], shape[-1]
    assert by_role(spec)[Role.TABLE] == by_role(spec)[Role.HEAD] == vocab * width
    tied = read_recipe(name, ["model.head.tied=true"]).model
    assert parameters(tied) == count - vocab * width


def test_wider_ablations_take_smaller_rates() -> None:
    narrow, wide = (read_recipe(f"imu1-{size}").train.optimizer for size in ("70m", "126m"))
    assert wide.matrix.rate == pytest.approx(narrow.matrix.rate * 768 / 1024)
    assert wide.vector.rate == pytest.approx(narrow.vector.rate * 768 / 1024)


def test_the_recurrent_model_reads_as_many_tokens_as_were_counted() -> None:
    spec = read_recipe("lapp0").model
    assert tokens("lapp0") == 668_467_200
    assert by_role(spec)[Role.VECTOR] == 15 + 12 * 2 + 12
    assert parameters(spec) - 15 - 12 * 2 - 12 == 162_165_504
    assert len(spec.visits) == 30
    softcap = spec.head.softcap
    assert getattr(softcap, "divisor", None) == pytest.approx(7.5 * math.sqrt(768))


@pytest.mark.parametrize(
    ("name", "count", "width", "depth"),
    [("daisy-350m", 450_301_997, 1024, 16), ("daisy-1b6", 1_815_251_309, 1600, 48)],
)
def test_models_with_tables_of_values(name: str, count: int, width: int, depth: int) -> None:
    """Every eighth layer has no attention, and a head of 50,304 rows reads 50,257 of them.

    The published form has 5 numbers a layer, and here some are left out: skips that no layer
    receives, how much values count without attention (the last layer has none) or of a table
    that is not looked up, and what scales values where there is no table, as the matrix after
    them does too.
    """
    spec = read_recipe(name).model
    vocab, attending = 50_257, depth - depth // 8
    matrices = attending * 4 * width**2 + depth * 2 * 4 * width**2
    assert by_role(spec) == {
        Role.TABLE: (1 + 3) * vocab * width,
        Role.HEAD: 50_304 * width,
        Role.MATRIX: matrices,
        Role.VECTOR: 3 + 2 * depth + 2 * 5,
    }
    published = 4 * vocab * width + 50_304 * width + matrices + 5 * depth
    skips, without_attention, tables = depth - 3, 2 * (depth // 8), attending - 5
    dead, absorbed = skips + without_attention + tables, attending - 5
    assert parameters(spec) == count == published - dead - absorbed
    if name == "daisy-350m":
        assert (dead, absorbed) == (26, 9)
    without = [i for i, layer in enumerate(spec.layers) if layer.mixer is None]
    assert without == list(range(7, depth, 8))
    of_values = [w for w in layout(spec) if w.place is Place.VALUE and w.role is Role.TABLE]
    assert [w.uses for w in of_values] == [2, 2, 1]


def test_the_frontier_adds_gates_and_lanes_to_golf16() -> None:
    golf, spec = read_recipe("golf16").model, read_recipe("frontier").model
    smear, gates, lanes = 12 + 1, 11 * 8 * 12, 3 * (2 + 4)
    assert parameters(spec) - parameters(golf) == smear + gates + lanes
    assert parameters(spec) == 35_945_623
    assert [visit.layer for visit in spec.visits] == [visit.layer for visit in golf.visits]
    assert [i for i, layer in enumerate(spec.layers) if layer.lanes] == [8, 9, 10]


def test_windows_grow_as_published() -> None:
    """Blocks of 128 tokens by the fraction of the run, half as many in the other layers."""
    for name, full, cubic in (("lapp0", 1728, False), ("daisy-350m", 3456, True)):
        spec = read_recipe(name).model
        for progress in (0.0, 0.1, 0.5, 0.7, 0.99):
            share = 4 * progress**3 - 6 * progress**2 + 3 * progress if cubic else progress
            blocks = max(1, math.ceil(full * share / 128))
            found = {w for w in spec.windows(progress) if w is not None}
            assert found == {128 * blocks, 128 * max(1, blocks // 2)}, (name, progress)


@pytest.mark.parametrize("name", SMALL)
def test_a_small_twin_has_the_parts_of_its_model(name: str) -> None:
    large = {"daisy-small": "daisy-350m"}.get(name, name.removesuffix("-small"))
    small, recipe = read_recipe(name), read_recipe(large)
    assert 800_000 < parameters(small.model) < 2_500_000
    assert small.model.vocab == 1024
    assert 128 <= small.model.context <= 256
    assert kinds(small.model) == kinds(recipe.model)
    if "imu1" not in name and "daisy" not in name:
        assert [v.layer for v in small.model.visits] == [v.layer for v in recipe.model.visits]
    if "golf" in name or name in ("seed004-small", "frontier-small"):
        return  # these take the defaults, which suit small models
    ours, theirs = small.train.optimizer, recipe.train.optimizer
    assert isinstance(ours.matrix, Muon)
    assert isinstance(theirs.matrix, Muon)
    span = theirs.matrix.momentum_warmup
    assert dataclasses.replace(ours.matrix, momentum_warmup=span) == theirs.matrix
    assert dataclasses.replace(ours, matrix=Adam()) == dataclasses.replace(theirs, matrix=Adam())
    assert small.train.scaling == recipe.train.scaling


def kinds(spec: ModelSpec) -> set[str]:
    """What parts, wirings and activations a model is made of."""
    found = {type(spec.head.softcap).__name__, str(spec.growth is None), str(spec.documents)}
    for holder in (spec.embed, *(visit.join for visit in spec.visits)):
        found |= {type(part).__name__ for part in holder}
    for layer in spec.layers:
        found |= {str(layer.wiring), layer.gain, layer.norms, str(layer.mixer is None)}
        found |= {type(part).__name__ for part in layer.join}
        if layer.feed is not None:
            found.add(layer.feed.act)
        if layer.mixer is not None:
            slots = (layer.mixer.query_key, layer.mixer.value, layer.mixer.output)
            found |= {type(part).__name__ for slot in slots for part in slot}
    return found
