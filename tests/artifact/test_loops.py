"""The loops of numpy and numba: the same symbols, the same errors, and each where it is faster."""

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from segpt import trellis
from segpt.artifact import codec, loops, rans
from segpt.artifact.container import load, unpack
from segpt.config.quant import STATES
from segpt.errors import ArtifactError, SegptError
from segpt.values import Artifact
from tests.artifact.test_hostile import FIRST, SEED, damage, plain, rejoin
from tests.artifact.test_rans import Bytes, Tables, draw, encode, make_tables

COMMITTED = Path(__file__).resolve().parents[2] / "artifacts"
# Both formats, all machines, and one of each model; the others are of the same kind.
COVERING = ("demo256-1", "demo256-2", "demo256-3", "demo-512k")
LANES = 16
NAMES: tuple[loops.Choice, ...] = ("numpy", "numba")
WALK = rans.Walk({n: trellis.machine(n)[1:] for n in STATES})


@pytest.fixture(autouse=True)
def auto() -> Iterator[None]:
    """Whatever a test chooses, the tests after it have the choice of new processes."""
    yield
    loops.use("auto")


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has decoded nothing yet."""
    monkeypatch.setattr(loops, "_numpy_steps", 0)
    loops.compiled.cache_clear()
    yield
    loops.compiled.cache_clear()


def read(data: bytes, tables: Tables, bases: Bytes, starts: Bytes | None) -> list[int] | str:
    """The symbols of a stream in two pieces and where its paths lead, or why it is refused."""
    try:
        decoder = rans.RansDecoder(data, tables, LANES)
        paths = None if starts is None else np.array([*WALK.starts.values()])[starts]
        wide = bases.astype(np.int64) << loops.PRECISION
        walk = None if paths is None else WALK
        pieces = [decoder.read(piece, walk, paths) for piece in (wide[:7], wide[7:])]
        decoder.finish()
    except ArtifactError as error:
        return str(error)
    ends = [] if paths is None else paths.tolist()
    return [*np.concatenate(pieces).ravel().tolist(), *ends]


def outcomes(data: bytes, tables: Tables, bases: Bytes, starts: Bytes | None) -> list[object]:
    pytest.importorskip("numba")
    found: list[object] = []
    for name in NAMES:
        loops.use(name)
        found.append(read(data, tables, bases, starts))
    return found


def damaged(data: bytes, draws: np.random.Generator) -> bytes:
    """A stream with a few bytes changed, or cut short, or with some left over, or of nothing."""
    place = int(draws.integers(len(data)))
    match draws.integers(4):
        case 0:
            return data[:place]
        case 1:
            return data + draws.bytes(int(draws.integers(1, 5)))
        case 2:
            return data[:place] + draws.bytes(2) + data[place + 2 :]
        case _:
            return draws.bytes(len(data))


@pytest.mark.slow
@pytest.mark.parametrize("walking", [False, True])
def test_both_loops_say_the_same_of_sound_and_of_damaged_streams(walking: bool) -> None:
    draws = np.random.default_rng(walking)
    tables = make_tables(draws, 6)
    symbols, classes = draw(draws, 40 * LANES, tables)
    data = encode(symbols, classes, tables, LANES)
    bases = classes.reshape(-1, LANES)
    if walking:
        bases &= 4  # the first table of a pair
    starts = draws.integers(0, len(STATES), LANES).astype(np.uint8) if walking else None
    refused = 0
    for stream in [data, *(damaged(data, draws) for _ in range(400))]:
        ours, theirs = outcomes(stream, tables, bases, starts)
        assert ours == theirs
        refused += isinstance(ours, str)
    assert refused > 333
    if not walking:
        assert read(data, tables, bases, None) == symbols.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("data", [SEED.data, FIRST.read_bytes()], ids=["format 2", "format 1"])
def test_both_loops_say_the_same_of_damaged_files(data: bytes) -> None:
    pytest.importorskip("numba")
    chance = random.Random(1)
    codes = plain("codes", data)
    refused = 0
    for _ in range(150):
        hostile = Artifact(rejoin(data, codes=codec.verbatim(damage(codes, chance))))
        found: list[object] = []
        for name in NAMES:
            loops.use(name)
            try:
                found.append(unpack(hostile))
            except ArtifactError as error:
                found.append(str(error))
        assert found[0] == found[1]
        refused += isinstance(found[0], str)
    assert refused > 100


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        path if path.stem in COVERING else pytest.param(path, marks=pytest.mark.campaign)
        for path in sorted(COMMITTED.glob("*.segpt"))
    ],
    ids=lambda path: path.name,
)
def test_both_loops_give_the_same_models(path: Path) -> None:
    pytest.importorskip("numba")
    models = []
    for name in NAMES:
        loops.use(name)
        models.append(unpack(load(path)))
    assert models[0] == models[1]


def test_what_numba_compiles_reads_nothing_beyond_the_ends() -> None:
    """Plain Python raises where numba would not look: the loop itself keeps within its arrays."""
    beyond = np.array([[1 << 40], [-(1 << 40)]])
    states, entries = np.array([1 << 16]), np.full(4, loops.ODD | 1)
    symbols, paths = np.empty((2, 1), np.uint8), np.array([1 << 40])
    words, following = np.zeros(0, np.uint16), np.array([1 << 40])
    with np.errstate(all="raise"):
        taken = loops._plain_loop(beyond, symbols, states, words, entries, following, paths)
    assert taken == -1


@pytest.mark.usefixtures("unloaded")
def test_numba_is_for_those_who_decode_much() -> None:
    pytest.importorskip("numba")
    assert loops.choose(loops.MOST_NUMPY - 9) is loops.numpy_loop
    assert loops.choose(9) is loops.numpy_loop
    assert loops.compiled.cache_info().currsize == 0
    assert loops.choose(1) is loops.compiled().loop
    assert loops.choose(1) is loops.compiled().loop  # it is there now, so that anything pays
    loops.use("numpy")
    assert loops.choose(loops.MOST_NUMPY + 1) is loops.numpy_loop


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("error", [ImportError, RuntimeError, OSError])
def test_numpy_decodes_where_numba_does_not_work(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    class Broken:
        def __getattr__(self, name: str) -> object:
            raise error("as it happens")

    monkeypatch.setitem(sys.modules, "numba", None if error is ImportError else Broken())
    assert loops.choose(loops.MOST_NUMPY + 1) is loops.numpy_loop
    assert loops.compiled().reason.startswith(("ModuleNotFoundError", error.__name__))
    with pytest.raises(SegptError, match="numba does not work"):
        loops.use("numba")


@pytest.mark.slow
def test_reading_an_artifact_of_moderate_size_does_not_load_numba() -> None:
    program = (
        "import sys; from pathlib import Path; from segpt.artifact import container as c\n"
        "c.unpack(c.load(Path(sys.argv[1]))); assert 'numba' not in sys.modules"
    )
    path = COMMITTED / "demo-255k.segpt"
    subprocess.run([sys.executable, "-c", program, path], check=True)
