"""``segpt quantize``."""

import dataclasses
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from segpt.config.base import decode, differences, encode
from segpt.config.quant import Method, QuantSpec, Rule
from segpt.errors import CheckpointError, InterruptError
from segpt.locks import locked

from . import _latest, _options, _out, _report

if TYPE_CHECKING:
    from segpt.values import Checkpoint, Quantized


@click.command("quantize")
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option(
    "--method",
    type=click.Choice(["trellis", "rd", "gptq", "nearest"]),
    help="Designed steps on a trellis, or on one grid; or grids of --bits.  [default: trellis]",
)
@_options.budget("Bytes of the packed file, for trellis and rd.  [default: the recipe's]")
@click.option(
    "--bits",
    type=click.IntRange(2, 8),
    help="gptq, nearest: bits of the matrices, and the table keeps its own. trellis, rd: mean "
    "bits per weight. Without --method: gptq.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="The text it was trained on.  [default: wherever that is]",
)
@_options.out("The directory to write.  [default: beside the checkpoint]")
@_options.settings
@_options.device
@click.option("--resume", is_flag=True, help="Go on where an interrupted call stopped.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PNG",
    help="Draw KL over bits per weight, and what each role and layer takes and loses.",
)
@_out.force
@_options.as_json
def command(
    checkpoint: Path | None,
    method: Method | None,
    budget: int | None,
    bits: int | None,
    data: Path | None,
    out: Path | None,
    settings: tuple[str, ...],
    device: str,
    resume: bool,
    plot: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Quantize CHECKPOINT (the newest by default) and report what it costs.

    By default the steps are the finest that fit the budget. Calibration reads training text
    only; the damage is measured on the validation split. Both are those that the checkpoint was
    trained and validated on. Every layer that is done is saved, and --resume goes on with what was
    interrupted, in the way it was begun.
    """
    from segpt.atomic import check_replaceable
    from segpt.report import plot as pictures
    from segpt.stages import quantized_io, unfinished, value_directory

    from . import _texts

    if plot is not None:
        pictures.need()
        _out.check_file(plot, pictures.is_ours, forced=force)
    asked = Asked(checkpoint, out, method, budget, bits, settings)
    if resume and (done := _done(asked)) is not None:
        _report.notice(f"{done} is finished: nothing is left to do")
        _tell(done, quantized_io.read_quantized(done), None, as_json)
        return
    if checkpoint is not None:
        _latest.there(checkpoint)
    if data is not None and str(data) != _texts.BUILTIN:
        _latest.there(data, "; make one with: segpt data prepare")
    task = _resumed(asked) if resume else _begun(asked)
    place, value, spec = task.place, task.checkpoint, task.spec
    check_replaceable(place, lambda directory: value_directory.holds(directory, "quantized"))
    reading = _texts.of_model(value, task.path, data)
    reading.say()
    _report.notice(f"model: {task.path}")

    from segpt.report import rate_curve
    from segpt.train.mesh import pick

    from . import _quantizing

    with locked(place):
        splits = reading.open()
        partial = _latest.partial_of(place)
        origin = _quantizing.origin_of(value, spec)
        before = unfinished.read_partial(partial, origin) if resume else None
        with _told(partial, _again(place, data, device)):
            quantized = _quantizing.run(
                value,
                spec,
                splits,
                place,
                recipe=task.recipe,
                budget=task.budget,
                device=device,
                resume=before,
                begun=task.begun,
            )
        if plot is not None:
            with _report.Bar("plot") as bar:
                curve = rate_curve.curve(
                    value, quantized, spec, *splits, device=pick(device), report=bar
                )
            report = dict(quantized.report) | {"curve": curve.plain()}
            quantized_io.save_quantized(place, dataclasses.replace(quantized, report=report))
            pictures.quantized(plot, curve, report, spec.method)
    _tell(place, quantized, plot, as_json, texts=reading.plain)


class Asked(NamedTuple):
    """What the command line says about the model and the method."""

    checkpoint: Path | None
    out: Path | None
    method: Method | None
    budget: int | None
    bits: int | None
    settings: tuple[str, ...]

    @property
    def how(self) -> bool:
        """Whether it says anything about the method."""
        return bool(self.method or self.budget or self.bits or self.settings)


class QuantizeTask(NamedTuple):
    """What is quantized, how, and to where; ``budget`` is what packing will have to keep to."""

    path: Path
    checkpoint: "Checkpoint"
    recipe: str
    spec: QuantSpec
    budget: int
    place: Path

    @property
    def begun(self) -> dict[str, str]:
        """What an interrupted call leaves behind, so that it goes on without repeating options."""
        path, spec = str(self.path), encode(self.spec)
        return {"begun": json.dumps({"path": path, "spec": spec, "budget": self.budget})}


def _begun(asked: Asked) -> QuantizeTask:
    """A quantization from its beginning."""
    from segpt.stages import checkpoint_io, resolve_spec, run_directory

    run = _latest.need("checkpoint", asked.checkpoint)
    place = asked.out or run.with_name(f"{run.name}-quantized")
    path = run_directory.newest_checkpoint(run)
    value = checkpoint_io.read_checkpoint(path)
    recipe = resolve_spec.of_checkpoint(value, asked.settings)
    spec = resolve_spec.quant_spec(
        recipe, method=asked.method, budget=asked.budget, bits=asked.bits
    )
    return QuantizeTask(path, value, recipe.name, spec, spec.budget or recipe.pack.budget, place)


def _resumed(asked: Asked) -> QuantizeTask:
    """A quantization that was interrupted: as it was begun, where nothing else is said.

    Raises:
        CheckpointError: if there is none, or options would make it another one.
    """
    from segpt.stages import checkpoint_io, resolve_spec, run_directory, unfinished

    partial = _interrupted(asked)
    begun = unfinished.begun(partial, "partial")
    place = partial.with_name(partial.name.removesuffix(".partial"))
    path = Path(str(begun.get("path")))
    if asked.checkpoint is not None:
        path = run_directory.newest_checkpoint(asked.checkpoint)
    value = checkpoint_io.read_checkpoint(path)
    recipe = resolve_spec.of_checkpoint(value, asked.settings)
    spec = decode(QuantSpec, begun.get("spec"), "$.spec")
    if asked.how:
        now = resolve_spec.quant_spec(
            recipe, method=asked.method, budget=asked.budget, bits=asked.bits
        )
        if odd := differences(spec, now):
            names = "; ".join(f"{name} {was}, now {new}" for name, was, new in odd[:4])
            raise CheckpointError(
                f"{partial} was begun with other settings: {names}; leave these out to go on, or "
                "leave out --resume"
            )
    return QuantizeTask(path, value, recipe.name, spec, int(begun.get("budget", 0)), place)


def _interrupted(asked: Asked) -> Path:
    """What an interrupted call left: of the place or checkpoint that is named, or the newest."""
    if asked.out is not None:
        return _latest.partial_of(asked.out)
    if asked.checkpoint is not None:
        return _latest.partial_of(asked.checkpoint.with_name(f"{asked.checkpoint.name}-quantized"))
    place = _latest.latest("partial")
    if place is None:
        raise CheckpointError("there is nothing to resume here; leave out --resume")
    return place


def _done(asked: Asked) -> Path | None:
    """The quantized model that an interrupted call would have made, if that has been finished."""
    place = asked.out
    if place is None and asked.checkpoint is not None:
        place = asked.checkpoint.with_name(f"{asked.checkpoint.name}-quantized")
    if place is None:
        place = None if _latest.latest("partial") else _latest.latest("quantized")
    if place is None or _latest.partial_of(place).exists() or not (place / "header.json").is_file():
        return None
    return place


def _again(place: Path, data: Path | None, device: str) -> str:
    """The command that goes on."""
    words = ["segpt", "quantize", "--resume", "--out", str(place)]
    words += [] if data is None else ["--data", str(data)]
    words += [] if device == "auto" else ["--device", device]
    return shlex.join(words)


def _tell(
    place: Path,
    quantized: "Quantized",
    plot: Path | None,
    as_json: bool,
    texts: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Print what came of it."""
    from segpt.artifact.container import pack

    report, size = quantized.report, pack(quantized).size
    spec = decode(QuantSpec, report["spec"], "$.spec") if "spec" in report else None
    result = {
        "out": str(place),
        "method": None if spec is None else spec.method,
        "rules": [] if spec is None or spec.designed else [rule_text(r) for r in spec.rules],
        "budget": None if spec is None else spec.budget,
        "bits_per_weight": 8 * size / report["parameters"],
        "roles": report["roles"],
        "layers": report["layers"],
        "fallbacks": report["fallbacks"],
        **(report["quality"] or {}),
        "bytes": size,
        "bpb_of": report.get("measured_on"),
        "texts": list(texts),
    }
    lines = [f"method {result['method']}"] + [f"rule {text}" for text in result["rules"]]
    lines += [f"fell back to rounding: {', '.join(report['fallbacks'])}"] * bool(
        result["fallbacks"]
    )
    lines += [
        f"{size:,} bytes packed, {result['bits_per_weight']:.3f} bits per weight",
        f"BPB {result['bpb_before']:.4f} -> {result['bpb_after']:.4f} on {result['bpb_of']}",
        f"KL mean {result['kl_mean']:.5f} p99 {result['kl_p99']:.5f} nats, top-1 agreement "
        f"{100 * result['top1_agreement']:.2f} %, on the same",
    ]
    if plot is not None:
        lines.append(f"{plot} shows it")
    if not as_json:
        _show(result)
    _report.emit(result, as_json, lines)


@contextmanager
def _told(partial: Path, again: str) -> Iterator[None]:
    """Say how to go on after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        if not partial.exists():
            raise
        raise InterruptError(
            f"interrupted; {partial} holds the layers that are done; to go on: {again}"
        ) from None


def _show(result: dict[str, Any]) -> None:
    """A row for each role and each layer."""
    named = list(result["roles"].items())
    named += [(f"layer {name}", row) for name, row in result["layers"].items()]
    rows = [
        [
            name,
            f"{row['parameters']:,}",
            f"{row['bits_per_weight']:.3f}",
            "" if row["error"] is None else f"{row['error']:.2e}",
            f"{row['damage']:.5f}" if row["damage"] else "",
        ]
        for name, row in named
    ]
    columns = ["", "weights", "about bits each", "squared error", "damage, nats per token"]
    _report.table("Where the bits go, before packing", columns, rows)


def rule_text(rule: Rule) -> str:
    """A rule as people read it."""
    where = f" of layers {rule.layers}" if rule.layers else ""
    if rule.bits == 16:
        return f"{rule.role}{where}: float16"
    per = f"group of {rule.group} columns" if rule.group else "row"
    return f"{rule.role}{where}: {rule.bits} bits, clip {rule.k:g} sigma, a scale per {per}"
