"""Checkpoints and quantized models on disk: safetensors, JSON and SHA-256, whole or not at all.

A value is a directory. ``header.json`` names its files with their sizes and digests, and carries
a digest of itself, so that a flipped bit anywhere is reported with the name of the file.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from segpt import trellis
from segpt.artifact.container import validate
from segpt.atomic import new_directory, remove_directory, standing, sweep, write_file
from segpt.config.base import canonical, decode, encode, readable
from segpt.config.model import ModelSpec
from segpt.errors import ArtifactError, CheckpointError, SegptError
from segpt.values import (
    STEPPED_ARRAYS,
    Arrays,
    Checkpoint,
    Coded,
    Grid,
    Half,
    Partial,
    Quantized,
    Score,
    Stepped,
    Tokenizer,
)

FORMAT = 1
LARGEST_HEADER = 64 << 20
METRICS = "metrics.jsonl"  # in the directory of a run
NAMES = ("weights.safetensors", "state.safetensors", "tokenizer.bin", "documents.bin")
STEP = "step-[0-9]{8,}"  # names the directory of a checkpoint


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint directory; an existing one is replaced only when all is on disk."""
    files = {
        "weights.safetensors": _pack(checkpoint.weights),
        "tokenizer.bin": checkpoint.tokenizer.payload,
        "documents.bin": checkpoint.documents.astype("<u8").tobytes(),
    }
    if checkpoint.state is not None:
        files["state.safetensors"] = _pack(checkpoint.state)
    header = {
        "spec": encode(checkpoint.spec),
        "tokenizer": {"kind": checkpoint.tokenizer.kind, "vocab": checkpoint.tokenizer.vocab},
        "step": checkpoint.step,
        "progress": checkpoint.progress,
        "origin": dict(checkpoint.origin),
        "about": dict(checkpoint.about),
        "fingerprint": checkpoint.fingerprint,
    }
    _write(path, "checkpoint", header, files)


def read_checkpoint(path: Path, *, state: bool = False) -> Checkpoint:
    """Read and verify a checkpoint directory; with ``state`` also what resuming needs.

    Raises:
        CheckpointError: naming the file that is missing or damaged.
    """
    header, files = _read(path, "checkpoint", skip=() if state else ("state.safetensors",))
    if state and "state.safetensors" not in files:
        raise CheckpointError(f"{path} holds no optimizer state, so training cannot resume from it")
    with _reading(path):
        return Checkpoint(
            spec=decode(ModelSpec, header["spec"], "$.spec"),
            weights=_unpack(path, "weights.safetensors", files),
            tokenizer=_tokenizer(header, files),
            step=int(header["step"]),
            progress=float(header["progress"]),
            documents=np.frombuffer(files["documents.bin"], "<u8").astype(np.uint64),
            origin=dict(header["origin"]),
            state=_unpack(path, "state.safetensors", files) if state else None,
            about=dict(header["about"]),
        )


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a checkpoint or quantized model, without reading its arrays.

    Raises:
        CheckpointError: if it is missing or damaged.
    """
    header, files = _read(path, kind_of(path), skip=("weights.safetensors", "state.safetensors"))
    with _reading(path):
        return _tokenizer(header, files)


def checkpoint_name(step: int) -> str:
    """The directory of a step; names sort as steps do."""
    return f"step-{step:08d}"


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first, without those that were removed by half."""
    return sorted(p for p in Path(run).glob("step-*") if _has_all(p))


def clean_run(run: Path) -> None:
    """Remove what a kill has left in a run: temporaries, and checkpoints removed by half."""
    sweep(run, STEP)
    whole = checkpoints(run)
    for place in Path(run).glob("step-*"):
        older = whole and place.name < whole[-1].name
        if place not in whole and holds(place, "checkpoint") and (older or not _has_header(place)):
            remove_directory(place)


def holds(path: Path, kind: str) -> bool:
    """Whether a directory holds a value of a kind, whole or damaged, and nothing else."""
    names = {entry.name for entry in path.iterdir()}
    if not names <= {"header.json", *NAMES}:
        return False
    if "header.json" not in names:  # removed by half, by a version that did not rename it first
        return kind == "checkpoint" and re.fullmatch(STEP, path.name) is not None
    try:
        return bool(_header(path).get("kind") == kind)
    except CheckpointError:
        return False


def is_tokenizer(path: Path) -> bool:
    """Whether a file is what `segpt tokenizer train` writes."""
    return _is_table(path, "kind", "vocab", "payload")


def is_score(path: Path) -> bool:
    """Whether a file is what `segpt score --out` writes."""
    return _is_table(path, "bpb", "nats", "origin") or _is_table(path, "baselines", "tasks")


def is_evaluation(path: Path) -> bool:
    """Whether a file is what `segpt eval --out` writes."""
    return _is_table(path, "model", "results", "shots")


def checkpoint_step(path: Path) -> int:
    """The step of a checkpoint, as its header says before anything else is read.

    Raises:
        CheckpointError: if the header is missing or damaged.
    """
    with _reading(path):
        return int(_header(path)["step"])


def read_header(path: Path, kind: str) -> dict[str, Any]:
    """The verified header of a checkpoint or quantized model, without reading its arrays.

    Raises:
        CheckpointError: if it is missing, damaged or of another kind.
    """
    header = _header(path, kind)
    place = Path(path) / "header.json"
    if header.get("kind") != kind:
        raise CheckpointError(_another(Path(path), header.get("kind"), kind))
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{place} has format {header.get('format')!r}; known: {FORMAT}")
    digest = header.pop("digest", None)
    if digest != hashlib.sha256(canonical(header)).hexdigest():
        raise CheckpointError(f"{place} is damaged: its digest does not match")
    return header


def newest_checkpoint(path: Path) -> Path:
    """A checkpoint directory itself, or the last one of a run.

    Raises:
        CheckpointError: if the path holds neither.
    """
    match kind_of(path):
        case "checkpoint":
            return Path(path)
        case "run":
            return checkpoints(path)[-1]
        case other:
            raise CheckpointError(no_checkpoint(path, other))


def no_checkpoint(path: Path, kind: str) -> str:
    """What to say of a path of another kind where a checkpoint or run is wanted."""
    words = {"file": "a file", "partial": "an unfinished quantization", **_WORDS}
    return (
        f"{path} is {words.get(kind, 'something else')} and not a checkpoint; "
        "name a run or one of its checkpoints"
    )


def save_quantized(path: Path, quantized: Quantized) -> None:
    """Write a quantized model as a directory."""
    arrays, coding = _coded_arrays(quantized.weights)
    documents = quantized.documents
    files = {
        "weights.safetensors": _pack(arrays),
        "tokenizer.bin": quantized.tokenizer.payload,
        "documents.bin": b"" if documents is None else documents.astype("<u8").tobytes(),
    }
    header = {
        "spec": encode(quantized.spec),
        "tokenizer": {"kind": quantized.tokenizer.kind, "vocab": quantized.tokenizer.vocab},
        **coding,
        "origin": dict(quantized.origin),
        "report": dict(quantized.report),
        "listed": documents is not None,
    }
    _write(path, "quantized", header, files)


def read_quantized(path: Path) -> Quantized:
    """Read and verify a quantized model.

    Raises:
        CheckpointError: naming the file that is missing or damaged.
    """
    header, files = _read(path, "quantized")
    arrays = _unpack(path, "weights.safetensors", files)
    with _reading(path):
        documents = np.frombuffer(files["documents.bin"], "<u8").astype(np.uint64)
        quantized = Quantized(
            spec=decode(ModelSpec, header["spec"], "$.spec"),
            weights=_coded(header, arrays),
            tokenizer=_tokenizer(header, files),
            origin=dict(header["origin"]),
            report=dict(header["report"]),
            documents=documents if header["listed"] else None,
        )
        validate(quantized)
    return quantized


def save_partial(path: Path, partial: Partial, origin: Mapping[str, str]) -> None:
    """Write a quantization that is under way, over what was written there before.

    ``origin`` names what is being quantized, and how.
    """
    arrays, coding = _coded_arrays(partial.coded)
    numbers = {"scale": partial.scale.hex(), "drift": partial.drift.hex()}
    header = {
        **coding,
        "done": partial.done,
        "numbers": numbers,
        "multipliers": dict(partial.multipliers),
        "planned": list(partial.planned),
        "dampings": dict(partial.dampings),
        "origin": dict(origin),
    }
    floats = {f"float|{name}": array for name, array in partial.weights.items()}
    _write(path, "partial", header, {"weights.safetensors": _pack(arrays | floats)})


def read_partial(path: Path, origin: Mapping[str, str]) -> Partial:
    """Read a quantization that was interrupted.

    Raises:
        CheckpointError: if there is none, it is damaged, or it has another ``origin``.
    """
    begun = "on another checkpoint or with other settings"
    header, files = _read_begun(path, "partial", origin, begun)
    arrays = _unpack(path, "weights.safetensors", files)
    floats = {k.removeprefix("float|"): a for k, a in arrays.items() if k.startswith("float|")}
    with _reading(path):
        coded = _coded(header, arrays)
        for name, value in coded.items():
            _check_coded(name, value)
        return Partial(
            done=int(header["done"]),
            scale=float.fromhex(header["numbers"]["scale"]),
            weights=floats,
            coded=coded,
            multipliers={k: float(v) for k, v in header["multipliers"].items()},
            planned=tuple(map(float, header["planned"])),
            drift=float.fromhex(header["numbers"]["drift"]),
            dampings={k: v if v is None else float(v) for k, v in header["dampings"].items()},
        )


def begun(path: Path, kind: str) -> dict[str, Any]:
    """What an interrupted call wrote into its origin, as JSON under ``begun``, to go on alone.

    Raises:
        CheckpointError: if there is none, it is damaged, or says nothing of the kind.
    """
    _check_begun(path)
    header = read_header(path, kind)
    with _reading(path):
        table = json.loads(header["origin"]["begun"])
        return {str(name): value for name, value in table.items()}


def save_scoring(path: Path, arrays: Arrays, origin: Mapping[str, str]) -> None:
    """Write a score that is under way, over what was written there before.

    ``origin`` names what is being scored, and how.
    """
    _write(path, "scoring", {"origin": dict(origin)}, {"state.safetensors": _pack(arrays)})


def read_scoring(path: Path, origin: Mapping[str, str]) -> Arrays:
    """Read a score that was interrupted.

    Raises:
        CheckpointError: if there is none, it is damaged, or it has another ``origin``.
    """
    begun = "on another model or text, or in another way"
    _, files = _read_begun(path, "scoring", origin, begun)
    return _unpack(path, "state.safetensors", files)


def write_score(path: Path, score: Score) -> None:
    """Write a score as JSON, with the figures of each document."""
    write_json(path, score.plain() | {"by_document": dict(score.by_document)})


def write_json(path: Path, value: Any) -> None:
    """Write a spec or plain value as readable JSON."""
    write_file(path, readable(value))


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file.

    Raises:
        SegptError: if it is missing or is not JSON.
    """
    try:
        return _json(Path(path).read_bytes())
    except OSError as error:
        raise SegptError(f"cannot read {what} {path}: {error.strerror}") from None
    except UnicodeEncodeError:
        raise SegptError(f"{what} {path} holds text that is not Unicode") from None
    except UnicodeDecodeError:
        raise SegptError(f"{what} {path} is not valid JSON: it is not even text") from None
    except (ValueError, RecursionError) as error:
        raise SegptError(f"{what} {path} is not valid JSON: {error}") from None


def _json(data: bytes) -> Any:
    """A JSON value whose texts can all be written: escapes can spell half of a surrogate pair."""
    value = json.loads(data)
    if b"\\ud" in data.lower() or b"\xed" in data:  # which Python lets through as well
        json.dumps(value, ensure_ascii=False).encode()  # an error of encoding is a ValueError
    return value


def logged(run: Path) -> Iterator[dict[str, Any]]:
    """What a run logged, step by step; what cannot be read, as a kill leaves it, is left out."""
    try:
        lines = (run / METRICS).read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            yield entry


def kind_of(path: Path) -> str:
    """What a path holds: ``checkpoint``, ``quantized``, ``run`` or ``file``.

    Raises:
        CheckpointError: if there is nothing, or a directory of another kind.
    """
    path = standing(Path(path))
    if path.is_file():
        return "file"
    if (path / "header.json").is_file():
        return str(_header(path).get("kind"))
    if checkpoints(path):
        return "run"
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    raise CheckpointError(f"{path} holds no checkpoint and no quantized model")


def _pack(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    return save({name: np.array(arrays[name], order="C") for name in sorted(arrays)})


def _unpack(path: Path, name: str, files: Mapping[str, bytes]) -> dict[str, NDArray[Any]]:
    try:
        return dict(load(files[name]))
    except (KeyError, SafetensorError) as error:
        raise CheckpointError(f"{path / name} cannot be read: {error}") from error


def _coded_arrays(
    weights: Mapping[str, Coded],
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The arrays of coded weights, and what a header says to put them together again."""
    arrays: dict[str, NDArray[Any]] = {}
    grids: dict[str, int] = {}
    stepped: dict[str, tuple[int, str]] = {}
    for name, coded in weights.items():
        match coded:
            case Grid():
                grids[name] = coded.bits
                arrays[f"codes|{name}"], arrays[f"scales|{name}"] = coded.codes, coded.scales
            case Stepped():
                stepped[name] = coded.states, coded.step.hex()
                arrays |= {f"{part}|{name}": array for part, array in coded.arrays().items()}
            case Half():
                arrays[f"half|{name}"] = coded.values
    return arrays, {"bits": grids, "stepped": stepped, "order": list(weights)}


def _coded(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> dict[str, Coded]:
    coded: dict[str, Coded] = {}
    for name in header["order"]:
        if name in header["bits"]:
            bits = int(header["bits"][name])
            coded[name] = Grid(bits, arrays[f"codes|{name}"], arrays[f"scales|{name}"])
        elif name in header.get("stepped", {}):
            states, step = header["stepped"][name]
            keys = {part: f"{part}|{name}" for part in STEPPED_ARRAYS}
            parts = {part: arrays[key] for part, key in keys.items() if key in arrays}
            coded[name] = Stepped(int(states), step=float.fromhex(step), **parts)
        else:
            coded[name] = Half(arrays[f"half|{name}"])
    return coded


_DTYPES = {"codes": "i1", "rows": "i1", "columns": "i1", "scales": "f2", "values": "f2"} | {
    "centre": "f2",
    "shared": "f2",
    "stored": "?",
}


def _check_coded(name: str, coded: Coded) -> None:
    """Whether arrays have the types and the shapes that go together, whatever weight it is."""
    arrays = coded.arrays() if isinstance(coded, Stepped) else vars(coded)
    for part, array in arrays.items():
        if part in _DTYPES and array.dtype != np.dtype(_DTYPES[part]):
            raise ValueError(f"the {part} of {name!r} are {array.dtype}")
    match coded:
        case Grid(codes=codes, scales=scales):
            sound = codes.ndim == scales.ndim == 2 and len(codes) == len(scales)
            sound = sound and 0 < scales.shape[1] <= max(1, codes.shape[1])
        case Stepped(codes=codes, rows=rows, columns=columns):
            sound = codes.ndim == 2 and (rows.shape, columns.shape) == (
                codes.shape[:1],
                codes.shape[1:],
            )
            sound = sound and all(
                part is None or part.shape == columns.shape for part in (coded.centre, coded.shared)
            )
            if coded.stored is not None:
                sound = sound and coded.stored.ndim == 1 and coded.stored.sum() == len(codes)
            sound = sound and coded.states in trellis.STATES
        case Half():
            sound = True
    if not sound:
        raise ValueError(f"the parts of {name!r} do not go together")


def _tokenizer(header: Mapping[str, Any], files: Mapping[str, bytes]) -> Tokenizer:
    about = header["tokenizer"]
    return Tokenizer(str(about["kind"]), int(about["vocab"]), files["tokenizer.bin"])


def _write(path: Path, kind: str, header: dict[str, Any], files: Mapping[str, bytes]) -> None:
    listed = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    }
    header = header | {"kind": kind, "format": FORMAT, "files": listed}
    header["digest"] = hashlib.sha256(canonical(header)).hexdigest()
    with new_directory(path, replaces=lambda place: holds(place, kind)) as directory:
        for name, data in files.items():
            (directory / name).write_bytes(data)
        (directory / "header.json").write_text(json.dumps(header, indent=1), encoding="utf-8")


def _has_header(path: Path) -> bool:
    return (path / "header.json").is_file()


def _has_all(path: Path) -> bool:
    """Whether the files that a header names are there; what is in them is seen when it is read."""
    if not _has_header(path):
        return False
    try:
        names = [str(name) for name in _header(path)["files"]]
    except (CheckpointError, KeyError, TypeError):
        return True  # reading it says what is wrong
    return all((path / Path(name).name).is_file() for name in names)


def _is_table(path: Path, *keys: str) -> bool:
    """Whether a file is a JSON object with these keys."""
    try:
        if path.stat().st_size > LARGEST_HEADER:
            return False
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.keys() >= set(keys)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What a header says is taken at its word, and any way in which that fails is one error."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{Path(path) / 'header.json'} is incomplete: {error!r}") from error
    except ArtifactError as error:
        raise CheckpointError(f"{path} holds no quantized model: {error}") from error


_WORDS = {"run": "a run", "checkpoint": "a checkpoint", "quantized": "a quantized model"}


def _another(path: Path, kind: object, wanted: str) -> str:
    """Why a path is not what was wanted, and what makes that of it."""
    if not isinstance(kind, str) or kind not in _WORDS or wanted not in _WORDS:
        return f"{path} holds a {str(kind)[:40]!r}, expected a {wanted}"
    line = f"{path} is {_WORDS[kind]} and not {_WORDS[wanted]}"
    if wanted == "quantized":
        line += f"; make one with: {shlex.join(['segpt', 'quantize', str(path)])}"
    return line


def _absent(path: Path, wanted: str) -> str:
    """Why a path has no header."""
    if path.is_file():
        return f"{path} is a file and not {_WORDS.get(wanted, 'a directory of segpt')}"
    if wanted == "quantized" and checkpoints(path):
        return _another(path, "run", wanted)
    return f"{path} does not exist or holds no header.json"


def _header(path: Path, wanted: str = "") -> dict[str, Any]:
    place = standing(Path(path)) / "header.json"
    try:
        if place.stat().st_size > LARGEST_HEADER:
            raise CheckpointError(f"{place} is too large to be a header")
        header = _json(place.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(_absent(Path(path), wanted)) from None
    except OSError as error:
        raise CheckpointError(f"cannot read {place}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{place} is damaged: {error}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{place} is damaged: expected a table")
    return header


def _read(
    path: Path, kind: str, skip: tuple[str, ...] = ()
) -> tuple[dict[str, Any], dict[str, bytes]]:
    path = standing(Path(path))
    header = read_header(path, kind)
    with _reading(path):
        listed = {n: str(f["sha256"]) for n, f in header["files"].items() if n not in skip}
    files: dict[str, bytes] = {}
    for name, digest in listed.items():
        try:
            data = (path / Path(name).name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"cannot read {path / name}: {error.strerror}") from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise CheckpointError(
                f"{path / name} is damaged: its SHA-256 does not match; use an older checkpoint"
            )
        files[name] = data
    return header, files


def _read_begun(
    path: Path, kind: str, origin: Mapping[str, str], otherwise: str
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Read what an interrupted call left, if it was about the same ``origin``."""
    _check_begun(path)
    header, files = _read(path, kind)
    with _reading(path):
        before = dict(header["origin"])
    if any(before.get(name) != value for name, value in origin.items()):
        raise CheckpointError(f"{path} was begun {otherwise}; leave out --resume")
    return header, files


def _check_begun(path: Path) -> None:
    if not standing(Path(path)).exists():
        raise CheckpointError(f"there is nothing to resume at {path}; leave out --resume")
