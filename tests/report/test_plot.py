"""The curve around a quantized model, its picture, and what happens without matplotlib."""

import dataclasses
import itertools
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from segpt.__main__ import load_commands
from segpt.config.quant import QuantSpec
from segpt.config.quant_report import GroupReport, QuantReport
from segpt.config.recipe import read_recipe
from segpt.data.tokenizer import BYTES
from segpt.errors import SegptError
from segpt.report import plot, rate_curve
from segpt.stages.calibrate import quantize_on
from segpt.stages.checkpoint_io import read_checkpoint
from segpt.stages.prepare import open_splits, prepare
from segpt.stages.run_directory import newest_checkpoint
from segpt.train.mesh import Mesh
from segpt.values import Text
from tests.reports import quality_of, report_of
from tests.stages.running import train

RECIPE = """
name: tiny
about: a model for tests
tokenizer: {kind: bytes}
model:
  vocab: 257
  width: 32
  context: 32
  depth: 2
  layer:
    mixer: {heads: 2, kv_heads: 1, head_dim: 16, query_key: [norm]}
    feed: {hidden: 64}
train: {length: {kind: steps, count: 10}, batch: 8, save_every: 10}
quantize: {calibration_tokens: 1024, report_tokens: 512, search: 0, tune_steps: 0, rate: 4.0}
pack: {budget: 100000}
score: {stride: 16}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a run and its text."""
    folder = tmp_path_factory.mktemp("plot")
    (folder / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    recipe = read_recipe(str(folder / "tiny.yaml"))
    train_text, validation = (
        # Every byte occurs: rows of tokens that do not would share one, whatever the rate.
        Text(name, partial(iter, [(name.encode() + bytes(range(256))) * 9]))
        for name in ("train", "validation")
    )
    tokens, held_out = prepare(train_text, validation, BYTES, folder / "data")
    train(recipe, tokens, held_out, folder / "run", Mesh(0, 1, torch.device("cpu")))
    return folder


@pytest.mark.slow
def test_the_curve_falls_with_bits_and_meets_the_point(place: Path) -> None:
    checkpoint = read_checkpoint(newest_checkpoint(place / "run"))
    tokens, held_out = open_splits(place / "data")
    spec = QuantSpec(
        search=0, tune_steps=0, rate=4.0, calibration_tokens=1024, report_tokens=100_000
    )
    quantized = quantize_on(checkpoint, spec, tokens, held_out)
    curve = rate_curve.curve(checkpoint, quantized, spec, tokens, held_out)
    assert len(curve.dots) == len(rate_curve.RATES)
    assert curve.here.kl == pytest.approx(quality_of(quantized).kl_mean)
    assert curve.here.bits == report_of(quantized).bits_per_weight
    for low, high in itertools.pairwise(curve.dots):
        assert low.bits < high.bits
        assert low.kl > high.kl
    below = [dot for dot in curve.dots if dot.bits <= curve.here.bits][-1]
    above = next(dot for dot in curve.dots if dot.bits > curve.here.bits)
    assert above.kl < 1.05 * curve.here.kl
    assert below.kl > 0.95 * curve.here.kl


@pytest.mark.slow
def test_a_picture_is_drawn(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture, out = tmp_path / "new" / "rd.png", tmp_path / "quantized"
    line = ["quantize", place / "run", "--data", place / "data", "--out", out, "--plot", picture]
    monkeypatch.chdir(tmp_path)  # `runs` is made there
    done = CliRunner().invoke(load_commands().main, [str(word) for word in [*line, "--json"]])
    assert done.exit_code == 0, done.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    result = json.loads(done.stdout)
    assert set(result["layers"]) == {"0", "1"}
    assert all(row["error"] > 0 for row in result["layers"].values())


@pytest.mark.slow
def test_every_kind_of_report_can_be_drawn(tmp_path: Path) -> None:
    dots = tuple(rate_curve.Dot(bits, 2**-bits) for bits in (2.5, 3.0, 5.0))
    curve = rate_curve.Curve(dots, rate_curve.Dot(3.2, 0.1), 8192)
    row = GroupReport(parameters=10, bits_per_weight=3.0, error=None, damage=0.0)
    for damage in (0.0, 0.01):
        matrix = dataclasses.replace(row, error=0.1, damage=damage)
        report = QuantReport(
            weights={},
            roles={"table": row, "matrix": matrix, "vector": row},
            layers={str(i): row for i in range(17)},
            parameters=10,
            bits_per_weight=3.0,
            fallbacks=(),
            quality=None,
        )
        plot.quantized(tmp_path / "a.png", curve, report, "gptq")
    first = (tmp_path / "a.png").read_bytes()
    plot.quantized(tmp_path / "a.png", curve, report, "gptq")
    assert (tmp_path / "a.png").read_bytes() == first


@pytest.mark.usefixtures("without_matplotlib")
def test_without_matplotlib_one_line_says_what_to_install(place: Path, tmp_path: Path) -> None:
    with pytest.raises(SegptError, match=r"pip install 'segpt\[plot\]'") as error:
        plot.need()
    assert error.value.exit_code == 2
    out = tmp_path / "quantized"
    line = ["quantize", place / "run", "--data", place / "data", "--out", out, "--plot", "a.png"]
    done = CliRunner().invoke(load_commands().main, [str(word) for word in line])
    assert done.exit_code != 0
    assert not out.exists()
