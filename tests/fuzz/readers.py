"""Every reader of the toolkit: a valid sample, how to damage it, and what reads it.

``covers`` names the functions of the code that a reader goes through; ``test_readers.py`` finds
all functions that open or parse anything, and fails when one is neither here nor in ``OWN``.
"""

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import io
import json
import lzma
import random
import shutil
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import yaml
import zstandard
from safetensors.numpy import load, save

from segpt import locks
from segpt.__main__ import load_commands
from segpt.artifact import codec, container, frame
from segpt.artifact.codec import SectionCodec
from segpt.coding import message
from segpt.config.base import canonical
from segpt.config.environment import Versions
from segpt.config.quant import QuantSpec
from segpt.config.recipe import Recipe, apply_settings, read_recipe
from segpt.config.score import ScoreSpec, Sgd
from segpt.contest import bundle, imports, read_folder
from segpt.data import modelproto, shard_file, shards, tokenizer, tokens
from segpt.data.bpe import files, huggingface
from segpt.data.bpe.as_tokenizer import from_bpe
from segpt.data.text import read_text
from segpt.data.tokenizer import BYTES
from segpt.errors import SegptError
from segpt.eval.tally import score_stream
from segpt.leaderboard import compare, derive, page_files, record, reference, store
from segpt.report import gather
from segpt.report import load_run as stored
from segpt.report.page import page
from segpt.stages import (
    checkpoint_io,
    commit,
    foreign_tokenizers,
    json_files,
    open_model,
    quantized_io,
    run_directory,
    tokenizers,
    unfinished,
)
from segpt.stages.calibrate import quantize_on
from segpt.stages.pack import documents_path, read_artifact
from segpt.stages.prepare import prepare
from segpt.tasks import core_bundle, fetch
from segpt.tasks.core import TASKS
from segpt.train.mesh import Mesh
from segpt.values import Artifact, Text, Tokenizer, Tokens
from segpt.workspace import inventory, newest
from segpt.workspace.begun_score import surroundings_of
from tests.artifact.test_hostile import FIRST, make_artifact, plain, rejoin
from tests.bundles import write_bundle
from tests.data import foreign_bpe
from tests.data.test_foreign_models import made as foreign_model
from tests.fuzz import mutate
from tests.fuzz.mutate import Change
from tests.leaderboard import small_records
from tests.stages.random_models import checkpoint
from tests.stages.running import train
from tests.stages.test_partial import ORIGIN, partial, quantized

ROOT = Path(__file__).parents[2]
HEADER = "header.json"
Files = dict[str, bytes]


class Subject(NamedTuple):
    """A valid sample, what damages it, and what reads it."""

    sample: Any
    change: Callable[[Any, random.Random], Any]
    read: Callable[[Any], object]


@dataclasses.dataclass(frozen=True)
class Reader:
    """A reader: the functions that it goes through, its sample, and its share of the inputs."""

    name: str
    covers: tuple[str, ...]
    make: Callable[[Path], Subject]
    share: float = 1.0


def of_bytes(sample: bytes, read: Callable[[bytes], object], change: Change) -> Subject:
    """A reader of bytes in memory."""
    return Subject(sample, change, read)


def of_folder(
    place: Path, read: Callable[[Path], object], changes: Mapping[str, Change]
) -> Subject:
    """A reader of a folder, one file of which is damaged or, now and then, gone."""
    sample = {str(p.relative_to(place)): p.read_bytes() for p in place.rglob("*") if p.is_file()}
    held: Files = dict(sample)

    def change(sample: Files, chance: random.Random) -> Files:
        name = chance.choice(sorted(n for n in sample if _change_of(changes, n) is not None))
        how = _change_of(changes, name)
        assert how is not None
        if chance.random() < 0.01:
            return {n: data for n, data in sample.items() if n != name}
        return sample | {name: how(sample[name], chance)}

    def opened(whole: Files) -> object:
        for name in held.keys() | whole.keys():
            if name not in whole:
                (place / name).unlink()
            elif held.get(name) != whole[name]:
                (place / name).write_bytes(whole[name])
        held.clear()
        held.update(whole)
        return read(place)

    return Subject(sample, change, opened)


def _change_of(changes: Mapping[str, Change], name: str) -> Change | None:
    return next((how for ending, how in changes.items() if name.endswith(ending)), None)


# Values on disk: headers with digests of themselves and of the files beside them.


def sealed(
    place: Path, read: Callable[[Path], object], odd: tuple[str, ...] = ("weights.safetensors",)
) -> Subject:
    """A folder whose digests are made right again after the damage."""
    sample = {p.name: p.read_bytes() for p in place.iterdir()}

    def change(sample: Files, chance: random.Random) -> Files:
        whole = dict(sample)
        if chance.random() < 0.1:
            name = chance.choice(sorted(whole))
            return whole | {name: mutate.damaged(whole[name], chance)}
        header = json.loads(whole[HEADER])
        if chance.random() < 0.5:
            name = chance.choice([n for n in sorted(whole) if n != HEADER])
            change = arrays if name in odd else mutate.damaged
            whole[name] = change(whole[name], chance)
            digest = hashlib.sha256(whole[name]).hexdigest()
            header["files"][name] = {"bytes": len(whole[name]), "sha256": digest}
        else:
            listed = header["files"]
            header = mutate.changed(header, chance)
            if isinstance(header, dict) and chance.random() < 0.8:
                header["files"], header["kind"], header["format"] = (
                    listed,
                    json.loads(sample[HEADER])["kind"],
                    1,
                )
        if isinstance(header, dict):
            header.pop("digest", None)
            try:
                header["digest"] = hashlib.sha256(canonical(header)).hexdigest()
            except (ValueError, TypeError):
                header["digest"] = "x"
        whole[HEADER] = mutate.json_of(header, chance)
        return whole

    def opened(whole: Files) -> object:
        for name, data in whole.items():
            (place / name).write_bytes(data)
        return read(place)

    return Subject(sample, change, opened)


def arrays(data: bytes, chance: random.Random) -> bytes:
    """A safetensors file with one array of another name, shape, type or content."""
    if chance.random() < 0.3:
        return safetensors_head(data, chance)
    held = dict(load(data))
    if not held:
        return mutate.damaged(data, chance)
    name = chance.choice(sorted(held))
    array = held[name]
    match chance.randrange(9):
        case 0:
            del held[name]
        case 1:
            held[f"{name}x"] = held.pop(name)
        case 2:
            held["extra"] = np.zeros(3, np.float32)
        case 3:
            held[name] = array.ravel()[: max(0, array.size - 1)]
        case 4:
            held[name] = np.zeros((), array.dtype)
        case 5:
            held[name] = array[None]
        case 6:
            dtype = chance.choice(("f2", "f4", "f8", "i1", "u1", "i4", "i8", "u8", "?"))
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                held[name] = array.astype(dtype)
        case 7:
            raw = bytearray(np.ascontiguousarray(array).tobytes())
            for _ in range(min(len(raw), chance.randint(1, 8))):
                raw[chance.randrange(len(raw))] = chance.choice((0, 1, 127, 128, 255))
            held[name] = np.frombuffer(bytes(raw), array.dtype).reshape(array.shape)
        case _:
            other = held[chance.choice(sorted(held))]
            held[name] = other
    return save({n: np.array(a, order="C") for n, a in held.items()})


def safetensors_head(data: bytes, chance: random.Random) -> bytes:
    """A safetensors file whose table of contents is odd."""
    length = int.from_bytes(data[:8], "little")
    table = mutate.json_of(mutate.changed(json.loads(data[8 : 8 + length]), chance), chance)
    return len(table).to_bytes(8, "little") + table + data[8 + length :]


def _checkpoint(place: Path) -> Subject:
    checkpoint_io.save_checkpoint(place, checkpoint(vocab=40))
    return sealed(place, lambda p: open_model.from_checkpoint(checkpoint_io.read_checkpoint(p)))


def _quantized(place: Path) -> Subject:
    quantized_io.save_quantized(place, quantized())
    return sealed(place, lambda p: open_model.from_quantized(quantized_io.read_quantized(p)))


def _partial(place: Path) -> Subject:
    unfinished.save_partial(place, partial(), ORIGIN)
    return sealed(place, lambda p: unfinished.read_partial(p, ORIGIN))


def _headers(place: Path) -> Subject:
    """What is looked at before a value is read: its kind, its step, the newest of a run."""
    step = place / run_directory.checkpoint_name(3)
    checkpoint_io.save_checkpoint(step, checkpoint(vocab=40))

    def read(place: Path) -> None:
        run_directory.kind_of(place / step.name)
        checkpoint_io.checkpoint_step(place / step.name)
        run_directory.newest_checkpoint(place)

    return of_folder(place, read, {HEADER: mutate.json_damage})


# Runs that go on.

TINY = """
name: tiny
about: a model for tests
tokenizer: {kind: bytes}
model:
  {vocab: 257, width: 16, context: 16, depth: 1,
   layer: {mixer: {heads: 1, kv_heads: 1, head_dim: 16, query_key: [norm]}, feed: {hidden: 16}}}
train:
  {length: {kind: steps, count: 4}, batch: 2, save_every: 2, log_every: 1, validate_every: 2,
   validate_tokens: 64, average: {decay: 0.9}}
quantize: {calibration_tokens: 256, report_tokens: 64, search: 0, tune_steps: 0, rate: 4.0}
score: {stride: 8}
adapt: {kind: sgd, chunk: 64, rate: 0.01}
"""


class Run(NamedTuple):
    """A run of a tiny recipe that has stopped halfway, and its texts."""

    recipe: Recipe
    tokens: Tokens
    held_out: Tokens
    checkpoint: Path


def tiny_run(place: Path) -> Run:
    """Train two of four steps."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "tiny.yaml").write_text(TINY)
    recipe = read_recipe(place / "tiny.yaml")
    names = (b"train", b"validation")
    first, second = (
        Text(name.decode(), functools.partial(iter, [name + bytes(range(256))] * 2))
        for name in names
    )
    training, held_out = prepare(first, second, BYTES, place / "data")
    half = dataclasses.replace(
        recipe.train, horizon=4, length=dataclasses.replace(recipe.train.length, count=2)
    )
    train(dataclasses.replace(recipe, train=half), training, held_out, place / "run", _mesh())
    return Run(recipe, training, held_out, run_directory.newest_checkpoint(place / "run"))


def _mesh() -> Mesh:
    return Mesh(0, 1, torch.device("cpu"))


def _resumed(place: Path) -> Subject:
    run = tiny_run(place / "work")
    how = dataclasses.replace(run.recipe.train, horizon=4)
    recipe = dataclasses.replace(run.recipe, train=how)

    def read(path: Path) -> None:
        before = checkpoint_io.read_checkpoint(path, state=True)
        out = place / "out"
        shutil.rmtree(out, ignore_errors=True)
        train(recipe, run.tokens, None, out, _mesh(), resume=before)

    return sealed(run.checkpoint, read, ("state.safetensors", "weights.safetensors"))


def _initial(place: Path) -> Subject:
    run = tiny_run(place / "work")
    (run.checkpoint / "state.safetensors").unlink()
    header = json.loads((run.checkpoint / HEADER).read_text())
    del header["files"]["state.safetensors"], header["digest"]
    header["digest"] = hashlib.sha256(canonical(header)).hexdigest()
    (run.checkpoint / HEADER).write_text(json.dumps(header))
    one = dataclasses.replace(
        run.recipe.train, length=dataclasses.replace(run.recipe.train.length, count=1)
    )
    recipe = dataclasses.replace(run.recipe, train=one)

    def read(path: Path) -> None:
        out = place / "out"
        shutil.rmtree(out, ignore_errors=True)
        train(recipe, run.tokens, None, out, _mesh(), init=checkpoint_io.read_checkpoint(path))

    return sealed(run.checkpoint, read)


def _quantization(place: Path) -> Subject:
    """A quantization that goes on from what an interrupted one left."""
    run = tiny_run(place / "work")
    source = checkpoint_io.read_checkpoint(run.checkpoint)
    spec = QuantSpec(search=0, tune_steps=0, rate=4.0, calibration_tokens=256, report_tokens=64)
    kept: list[Any] = []
    quantize_on(source, spec, run.tokens, run.held_out, save=kept.append)
    unfinished.save_partial(place / "partial", kept[0], ORIGIN)

    def read(path: Path) -> None:
        before = unfinished.read_partial(path, ORIGIN)
        quantize_on(source, spec, run.tokens, run.held_out, resume=before)

    return sealed(place / "partial", read)


def _scoring(place: Path) -> Subject:
    """A score that goes on from what an interrupted one left."""
    from segpt.data.tokenizer import load as load_tokenizer
    from segpt.eval.ledger import account

    run = tiny_run(place / "work")
    source = checkpoint_io.read_checkpoint(run.checkpoint)
    spec = ScoreSpec(stride=8, policy=Sgd(chunk=64, rate=0.01))
    ledger = account([bytes(range(256))] * 2, load_tokenizer(BYTES))
    kept: list[Any] = []

    def pause(state: Callable[[], Any]) -> None:
        kept.append(state())

    score_stream(open_model.from_checkpoint(source), ledger, spec, 16, pause=pause)
    unfinished.save_scoring(place / "scoring", kept[0], ORIGIN)

    def read(path: Path) -> None:
        before = unfinished.read_scoring(path, ORIGIN)
        score_stream(open_model.from_checkpoint(source), ledger, spec, 16, resume=before)

    return sealed(place / "scoring", read, ("state.safetensors",))


# Artifacts and what is compressed with them.


def sections(data: bytes) -> Change:
    """One section of an artifact damaged behind a digest that is right."""
    names = list(frame.split(data).sections)

    def change(_data: bytes, chance: random.Random) -> bytes:
        if chance.random() < 0.2:
            body = mutate.damaged(data[: -frame.DIGEST], chance)
            return body + hashlib.sha256(body).digest()
        name = chance.choice(names)
        stored = frame.split(data).sections[name]
        if name == "header" and chance.random() < 0.8:
            raw = mutate.json_of(mutate.changed(json.loads(plain(name, data)), chance), chance)
        elif chance.random() < 0.3:
            damaged = mutate.damaged(stored.data, chance)
            return rejoin(data, **{name: stored._replace(data=damaged)})
        else:
            raw = mutate.damaged(plain(name, data), chance)
        fresh = (
            codec.Stored(SectionCodec.STORED, data=raw, size=len(raw))
            if chance.random() < 0.5
            else None
        )
        return rejoin(data, **{name: fresh or stored._replace(data=raw, size=len(raw))})

    return change


def _open_artifact(data: bytes) -> None:
    artifact = Artifact(data)
    container.sections(artifact)
    container.usage(artifact)
    container.unpack(artifact)


def _artifact(_place: Path) -> Subject:
    data = make_artifact(0).data
    return of_bytes(data, _open_artifact, sections(data))


def _artifact_1(_place: Path) -> Subject:
    data = FIRST.read_bytes()
    return of_bytes(data, _open_artifact, sections(data))


def _artifact_file(place: Path) -> Subject:
    (place / "a.segpt").write_bytes(make_artifact(1).data)
    return of_folder(
        place, lambda p: container.unpack(container.load(p / "a.segpt")), {".segpt": mutate.damaged}
    )


def _written_message() -> bytes:
    return message.write(
        message.Message(
            artifact="a" * 64,
            tokenizer="b" * 16,
            digest="c" * 64,
            size=300,
            documents=2,
            tokens=300,
            spec=ScoreSpec(stride=8),
            environment=message.CoderEnvironment(versions=Versions(torch="2")),
            payload=b"x" * 90,
        )
    )


def _message(_place: Path) -> Subject:
    sample = _written_message()

    def change(data: bytes, chance: random.Random) -> bytes:
        body = data[: -message.CHECKSUM]
        if chance.random() < 0.5:
            body = mutate.damaged(body, chance)
        else:
            about = {"environment": {"torch": "2"}, "spec": {"kind": "score_spec", "stride": 8}}
            packed = _deflated(mutate.json_of(mutate.changed(about, chance), chance))
            fields = list(message._HEAD.unpack_from(data))
            fields[-1] = len(packed)
            body = message._HEAD.pack(*fields) + packed + b"x" * 90
        return body + message._checksum(body)

    return of_bytes(sample, message.read, change)


def _deflated(data: bytes) -> bytes:
    compressor = zlib.compressobj(9, wbits=-15, zdict=message._DICTIONARY)
    return compressor.compress(data) + compressor.flush()


# Recipes, settings, tokenizers, text.


def yaml_damage(data: bytes, chance: random.Random) -> bytes:
    """YAML with odd values, aliases, or odd text."""
    kind = chance.randrange(4)
    if kind == 0:
        return mutate.text_damage(data, chance)
    value = mutate.changed(yaml.safe_load(data), chance)
    if kind == 1:
        return mutate.json_of(value, chance)
    try:
        text = yaml.safe_dump(value, allow_unicode=True)
    except (yaml.YAMLError, ValueError, UnicodeEncodeError):
        return mutate.json_of(value, chance)
    if chance.random() < 0.3:
        text += bomb(chance.randint(2, 40))
    return text.encode("utf-8", "surrogatepass")


def bomb(levels: int) -> str:
    """Aliases of aliases: 9 to the power of ``levels`` values in a few lines."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]\n"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, levels)]
    return "".join(lines)


def _recipe(place: Path) -> Subject:
    (place / "tiny.yaml").write_text(TINY)
    return of_folder(place, lambda p: read_recipe(p / "tiny.yaml"), {".yaml": yaml_damage})


def _settings(_place: Path) -> Subject:
    known = (
        b"train.batch=3\nmodel.width=16\nmodel.layer.feed.hidden=32\ntrain.length={kind: steps,"
        b" count: 2}\nquantize.rules[0].bits=3\nscore.stride=8\nadapt=sgd\ntrain.seed=7"
    )

    def read(data: bytes) -> None:
        lines = data.decode("utf-8", "surrogateescape").split("\n")
        apply_settings({"train": {"batch": 1}}, lines)
        read_recipe("demo", lines)

    return of_bytes(known, read, mutate.text_damage)


def _model_file(_place: Path) -> Subject:
    def read(data: bytes) -> None:
        found = modelproto.read(data)
        made = tokenizer.load.__wrapped__(Tokenizer("sentencepiece", len(found.pieces), data))
        made.encode("A fox, é 日本\n".encode())

    return of_bytes(foreign_model(), read, mutate.damaged)


def _model_path(place: Path) -> Subject:
    (place / "a.model").write_bytes(foreign_model())
    return of_folder(
        place, lambda p: tokenizer.from_model_file(p / "a.model"), {".model": mutate.damaged}
    )


def _merges(_place: Path) -> Subject:
    trained = tokenizer.train_bpe([b"the cat sat on the mat with the hat " * 40], 280)

    def read(data: bytes) -> None:
        made = tokenizer.load.__wrapped__(Tokenizer("merges", 280, data))
        made.encode(b"the cat \xff sat")

    return of_bytes(trained.payload, read, mutate.damaged)


def _foreign_bpe(kind: str) -> Callable[[Path], Subject]:
    def make(_place: Path) -> Subject:
        table = json.loads(foreign_bpe.library(kind).to_str())
        stored_bpe = from_bpe(huggingface.read(table))

        def read(data: bytes) -> None:
            damaged = Tokenizer(stored_bpe.kind, stored_bpe.vocab, data)
            tokenizer.load.__wrapped__(damaged).encode(b"the cat sat")

        return of_bytes(stored_bpe.payload, read, mutate.damaged)

    return make


def _foreign_folder(place: Path) -> Subject:
    (place / "tokenizer.json").write_text(foreign_bpe.library("smollm").to_str())
    (place / "tokenizer_config.json").write_text('{"bos_token": {"content": "<|endoftext|>"}}')
    return of_folder(
        place,
        lambda p: foreign_tokenizers.convert_tokenizer(str(p)),
        {".json": mutate.text_damage},
    )


def _gpt2_folder(place: Path) -> Subject:
    foreign_bpe.library("gpt2").model.save(str(place))
    return of_folder(
        place,
        foreign_tokenizers.open_foreign,
        {".json": mutate.text_damage, ".txt": mutate.text_damage},
    )


def _ranks(place: Path) -> Subject:
    model = huggingface.read(json.loads(foreign_bpe.library("llama3").to_str()))
    (place / "o200k_base.tiktoken").write_bytes(files.ranks_of(model))
    return of_folder(
        place,
        lambda p: foreign_tokenizers.open_foreign(p / "o200k_base.tiktoken"),
        {".tiktoken": mutate.text_damage},
    )


ROWS = b"".join(
    json.dumps({"text": f"Document {i}, \u00e9.", "meta": {"text": "x"}}).encode() + b"\n"
    for i in range(6)
)


def _text(name: str, change: Change, pack: Callable[[bytes], bytes] = bytes) -> Any:
    def make(place: Path) -> Subject:
        plain = b"one\n<|endoftext|>\ntwo\n" if ".txt" in name else ROWS

        def damage(_data: bytes, chance: random.Random) -> bytes:
            if pack is not bytes and chance.random() < 0.7:
                return mutate.damaged(pack(plain), chance)
            return pack(change(plain, chance))

        (place / name).write_bytes(pack(plain))
        return of_folder(place, lambda p: list(read_text([p / name])), {name: damage})

    return make


def _parquet(place: Path) -> Subject:
    import pyarrow as pa
    from pyarrow import parquet

    sample = io.BytesIO()
    texts = [f"Document {i}" for i in range(9)]
    parquet.write_table(pa.table({"text": texts, "n": list(range(9))}), sample)
    (place / "a.parquet").write_bytes(sample.getvalue())
    kinds = [
        pa.array([None] * 3),
        pa.array([b"\xff", b"", b"a"]),
        pa.array([1, 2, 3]),
        pa.array([["a"], [], ["b"]]),
        pa.array(["a", None, "b"]).dictionary_encode(),
        pa.array(["a", "b", "c"], pa.large_string()),
        pa.array([{"x": "a"}] * 3),
    ]

    def change(data: bytes, chance: random.Random) -> bytes:
        if chance.random() < 0.8:
            return mutate.damaged(data, chance)
        written = io.BytesIO()
        parquet.write_table(pa.table({"text": chance.choice(kinds)}), written)
        return written.getvalue()

    return of_folder(place, lambda p: list(read_text([p / "a.parquet"])), {".parquet": change})


def _tokens(place: Path) -> Subject:
    text = Text("t", lambda: iter([b"one document", b"another one"]))
    tokens.write_tokens(text, BYTES, place / "t", split="train")

    def change(data: bytes, chance: random.Random) -> bytes:
        table = mutate.changed(json.loads(data), chance)
        if isinstance(table, dict):
            held = {k: v for k, v in table.items() if k != "digest"}
            with contextlib.suppress(ValueError, TypeError):
                whole = held | {"segpt": "", "text": "", "digest": ""}
                table["digest"] = hashlib.sha256(canonical(whole)).hexdigest()
        return mutate.json_of(table, chance)

    def read(place: Path) -> None:
        found = tokens.read_tokens(place / "t")
        tokens.ids(found).slice(0, min(8, found.count))
        tokenizer.load(found.tokenizer)

    changes: dict[str, Change] = {"manifest.json": change, ".bin": mutate.damaged}
    return of_folder(place, read, changes)


def _shards(place: Path) -> Subject:
    ids = np.array([256, *b"a text", 256, *b"more of it"], "<u2")
    head = np.zeros(256, "<i4")
    head[:3] = shard_file.MAGIC, 1, len(ids)
    (place / "f_val_000000.bin").write_bytes(head.tobytes() + ids.tobytes())
    sizes = np.where(ids == 256, 0, 1).astype("<u2")
    (place / "f_val_bytes_000000.bin").write_bytes(head.tobytes() + sizes.tobytes())

    def read(place: Path) -> None:
        paths = sorted(place.glob("*.bin"))
        shards.read_shards(paths[:1], BYTES, vocab=300)
        shards.read_shards(paths, BYTES, sequence=4)

    return of_folder(place, read, {".bin": mutate.damaged})


def _core(place: Path) -> Subject:
    write_bundle(place, items=2)

    def read(place: Path) -> None:
        found = core_bundle.read_bundle(place)
        for task in TASKS:
            core_bundle.read_items(found, task)

    changes: dict[str, Change] = {
        "core.yaml": yaml_damage,
        ".csv": mutate.text_damage,
        ".jsonl": mutate.lines_damage,
    }
    return of_folder(place, read, changes)


def _core_archive(place: Path) -> Subject:
    inside = write_bundle(place / "b", items=1)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(inside.rglob("*")):
            if path.is_file():
                archive.write(path, f"eval_bundle/{path.relative_to(inside)}")
    shutil.rmtree(place / "b")
    (place / "a.zip").write_bytes(packed.getvalue())
    return of_folder(
        place, lambda p: list(fetch._contents(p / "a.zip", "a.zip")), {".zip": mutate.damaged}
    )


# Scores, records, folders of a contest, reports.


def _score(place: Path) -> Subject:
    """Score files, as records and comparisons take them."""
    artifact = small_records.packed(place / "a.segpt", 1)
    for name in ("a", "b"):
        small_records.scored(artifact, place / f"{name}.json", Sgd(chunk=8))
    artifact.unlink()

    def read(place: Path) -> None:
        record.score_line(json_files.read_json(place / "a.json", "the score"), place / "a.json")
        compare.compare(place / "a.json", place / "b.json")

    return of_folder(place, read, {"a.json": mutate.json_damage})


def _board(place: Path) -> Subject:
    shutil.copytree(ROOT / "leaderboard", place, dirs_exist_ok=True)
    for path in place.rglob("*"):
        if path.is_file() and path.suffix not in (".json", ".toml", ".md"):
            path.unlink()
    changes: dict[str, Change] = {".json": mutate.json_damage, ".toml": mutate.text_damage}

    def read(place: Path) -> None:
        store.check(place)
        page_files.render_pages(place, write=False)

    return of_folder(place, read, changes)


def _references(place: Path) -> Subject:
    shutil.copy(ROOT / "artifacts" / "manifest.toml", place)
    return of_folder(place, reference.read_manifest, {".toml": mutate.text_damage})


ABOUT = {
    "author": "a",
    "name": "n",
    "date": "2026-04-01",
    "val_bpb": 1.0614,
    "val_bpb_std": 0.0002,
    "val_loss": 2.742,
    "bytes_total": 15_000_014,
    "bytes_code": 12,
    "p_value": "0.001",
    "seeds": [1, 2],
    "seed_results": {
        s: {"val_bpb": 1.0612, "val_loss": 2.742, "bytes_total": 15_000_012, "train_time_s": 590.0}
        for s in ("1", "2")
    },
}
LOG = b"""seed: 1
step:1/10 train_loss:3.0 train_time:100ms
train_shards: 80
val_tokens: 40540160
final val_bpb:1.0612 val_loss:2.7420 eval_time:400s
Total submission size: 15000012 bytes
Code size: 12 bytes
"""
PAGE = b"""# n val_bpb 1.0614

| seed | bpb | bytes |
|--|--|--|
| 1 | 1.0612 | 15,000,012 |
| mean | 1.0612 | - |
p = 0.001 best 2 of 3
"""


def _contest(place: Path) -> Subject:
    for name, data in {
        "submission.json": json.dumps(ABOUT).encode(),
        "README.md": PAGE,
        "train_gpt.py": b"import numpy\nprint('hi')\n",
        "train_seed1.log": LOG,
        "requirements.txt": b"numpy\n",
    }.items():
        (place / name).write_bytes(data)
    before = place.with_name(f"{place.name}-before.json")
    changes: dict[str, Change] = {
        ".json": mutate.json_damage,
        ".log": mutate.text_damage,
        ".md": mutate.text_damage,
        ".py": mutate.text_damage,
        ".txt": mutate.text_damage,
    }

    def read(place: Path) -> None:
        read_folder.check_folder(place, "1.07")
        if (place / "submission.json").exists():
            shutil.copy(place / "submission.json", before)
            read_folder.check_folder(place, str(before))

    return of_folder(place, read, changes)


def _against(_place: Path) -> Subject:
    def read(data: bytes) -> None:
        read_folder.read_previous(data.decode("utf-8", "surrogateescape"))

    return of_bytes(b"1.0614", read, mutate.text_damage)


def _script(_place: Path) -> Subject:
    body = "import numpy\nimport torch.nn\nx = 1\n" * 30
    sample = bundle.pack({"a": body, "b": body}, "# licence\n", "import a\n")

    def change(data: bytes, chance: random.Random) -> bytes:
        return (
            mutate.damaged(data, chance)
            if chance.random() < 0.5
            else mutate.text_damage(data, chance)
        )

    def read(data: bytes) -> None:
        imports.absent(data.decode("utf-8", "replace"), "numpy\n")
        bundle.unpack(data)

    return of_bytes(sample, read, change)


def _report(place: Path) -> Subject:
    run = tiny_run(place / "work").checkpoint.parent
    (place / "work" / "run").rename(place / "run")
    run = place / "run"
    shutil.rmtree(place / "work")
    for step in run_directory.checkpoints(run):
        (step / "state.safetensors").unlink()
    figures = {"bpb": 2.5, "policy": {"kind": "frozen"}, "tokens": 9, "bytes": 9, "seconds": 1.0}
    figures |= {"text": "t", "conditions": {"context": 16, "mode": "strided"}, "origin": {"a": "b"}}
    figures |= {"by_document": {"nats": [1.0, 2.0], "bytes": [4, 5]}}
    json_files.write_json(run / gather.SCORE, figures)
    row = {"step": "train", "bytes": None, "bpb": 2.5, "what": "a row"}
    json_files.write_json(run / gather.DEMO, {"rows": [row], "seconds": 12.0})
    texts = {"prompts": ["The "], "texts": ["end.\n"], "spec": {"temperature": 0.7, "seed": 1}}
    json_files.write_json(run / gather.SAMPLES, texts)

    def header(data: bytes, chance: random.Random) -> bytes:
        table = json.loads(data)
        table = mutate.changed(table, chance)
        if isinstance(table, dict):
            table.pop("digest", None)
            with contextlib.suppress(ValueError, TypeError):
                table["digest"] = hashlib.sha256(canonical(table)).hexdigest()
        return mutate.json_of(table, chance)

    def read(run: Path) -> None:
        page(gather.gather(run))

    changes: dict[str, Change] = {
        HEADER: header,
        "metrics.jsonl": mutate.lines_damage,
        ".json": mutate.json_damage,
    }
    return of_folder(run, read, changes)


def _metrics(place: Path) -> Subject:
    line = {"step": 1, "tokens": 32, "loss": 2.0, "validation_bpb": None, "tokens_per_second": 9.0}
    rows = b"".join(json.dumps(line | {"step": i}).encode() + b"\n" for i in range(1, 6))
    (place / "metrics.jsonl").write_bytes(rows)
    return of_folder(
        place, lambda p: stored.logged(p / "metrics.jsonl"), {".jsonl": mutate.lines_damage}
    )


def _rewound(place: Path) -> Subject:
    """The metrics of a run that goes on from before their end."""
    from segpt.stages.session import rewind

    line = {"step": 1, "tokens": 32, "loss": 2.0}
    rows = b"".join(json.dumps(line | {"step": i}).encode() + b"\n" for i in range(1, 6))
    (place / "metrics.jsonl").write_bytes(rows)
    subject = of_folder(
        place, lambda p: rewind(p / "metrics.jsonl", 3), {".jsonl": mutate.lines_damage}
    )
    whole = place / "metrics.jsonl"

    def read(given: Files) -> None:
        for name, data in given.items():
            (place / name).write_bytes(data)
        if whole.exists():
            rewind(whole, 3)

    return Subject(subject.sample, subject.change, read)


def _latest(place: Path) -> Subject:
    table = {"data": "runs/data", "checkpoint": "runs/a", "artifact": "runs/a.segpt"}
    (place / "latest.json").write_text(json.dumps(table))

    def read(place: Path) -> None:
        with mock.patch.object(newest, "_POINTER", place / "latest.json"):
            for kind in table:
                newest.latest(kind)

    return of_folder(place, read, {".json": mutate.json_damage})


def _listed_runs(place: Path) -> Subject:
    """What `segpt runs` lists, and what a run says that has come to its end."""
    run = tiny_run(place / "work").checkpoint.parent
    (place / "work" / "run").rename(place / "run")
    run = place / "run"
    shutil.rmtree(place / "work")
    for step in run_directory.checkpoints(run):
        (step / "state.safetensors").unlink()

    def read(place: Path) -> None:
        inventory.rows(place)
        list(run_directory.logged(place / "run"))

    changes: dict[str, Change] = {HEADER: mutate.json_damage, ".jsonl": mutate.lines_damage}
    return of_folder(place, read, changes)


def _own_files(place: Path) -> Subject:
    """What is looked at before a file is replaced: whose is it?"""
    from segpt.report import plot

    looks = [gather.is_page, plot.is_ours, _shell("_out").begins_with(b"%PDF")]
    looks += [json_files.is_score, json_files.is_evaluation]
    (place / "a").write_bytes(b"<title>x: a run of segpt</title>" + b"\x89PNG" * 40)

    def read(place: Path) -> None:
        for look in looks:
            if (place / "a").exists():
                look(place / "a")

    return of_folder(place, read, {"": mutate.damaged})


def _shell(name: str) -> Any:
    """A module of the command line, which the library cannot import."""
    load_commands()
    return import_module(f"segpt.commands.{name}")


def _tokenizer_file(place: Path) -> Subject:
    trained = tokenizer.train_bpe([b"the cat sat on the mat with the hat " * 40], 280)
    tokenizers.write_tokenizer(place / "a.json", trained)

    def read(place: Path) -> None:
        tokenizer.load(tokenizers.open_tokenizer(str(place / "a.json")))

    return of_folder(place, read, {".json": mutate.json_damage})


def _compressed_file(place: Path) -> Subject:
    module = _shell("_coding")
    (place / "a.segz").write_bytes(_written_message())
    return of_folder(
        place, lambda p: message.read(module.read(p / "a.segz")), {".segz": mutate.damaged}
    )


def _listed_artifact(place: Path) -> Subject:
    small_records.packed(place / "a.segpt", 1)
    return of_folder(
        place,
        lambda p: read_artifact(p / "a.segpt"),
        {".segpt": mutate.damaged, ".documents": mutate.damaged},
    )


def _board_documents(place: Path) -> Subject:
    """The list of an artifact's training documents that a leaderboard keeps."""
    whole = read_artifact(small_records.packed(place / "a.segpt", 1))
    beside = documents_path(place / "a.segpt").read_bytes()
    for path in list(place.iterdir()):
        path.unlink()
    artifact = Artifact(whole.data)
    kept = derive.documents_file(place, artifact)
    assert kept is not None
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(beside)
    return of_folder(place, lambda p: derive.with_documents(artifact, p), {"": mutate.damaged})


def _surroundings(_place: Path) -> Subject:
    """What the state of a score says it was computed on."""

    def read(data: bytes) -> None:
        surroundings_of({"surroundings": np.frombuffer(data, np.uint8)})

    return of_bytes(json.dumps({"device": "cpu", "torch": "2"}).encode(), read, mutate.json_damage)


def _lock(place: Path) -> Subject:
    (place / "lock").write_bytes(b"123\n")
    return of_folder(place, lambda p: locks._holder(p / "lock"), {"lock": mutate.damaged})


def _commit(place: Path) -> Subject:
    git = place / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "refs" / "heads" / "main").write_text("a" * 40 + "\n")
    (git / "packed-refs").write_text("# pack-refs\n" + "b" * 40 + " refs/heads/other\n")
    return of_folder(
        place,
        commit.commit,
        {"HEAD": mutate.text_damage, "main": mutate.text_damage, "refs": mutate.text_damage},
    )


TEXTS = ("data.text:*", "data.compression:*", "data.documents:*", "data.sources:*")
READERS: tuple[Reader, ...] = (
    Reader(
        "artifact, format 2",
        (
            "artifact.reader:*",
            "artifact.rans:*",
            "artifact.tables:*",
            "artifact.header:*",
            "artifact.contexts:*",
            "artifact.format1:*",
            "artifact.codec:*",
        ),
        _artifact,
    ),
    Reader("artifact, format 1", ("artifact.format1:*",), _artifact_1),
    Reader("artifact file", ("artifact.container:load",), _artifact_file),
    Reader("compressed message", ("coding.message:*",), _message, 2.0),
    Reader(
        "checkpoint",
        (
            "stages.value_directory:raw_header",
            "stages.value_directory:read_value",
            "stages.value_directory:unpack_arrays",
            "stages.checkpoint_io:read_checkpoint",
        ),
        _checkpoint,
    ),
    Reader("quantized model", ("stages.quantized_io:read_quantized",), _quantized),
    Reader("unfinished quantization", ("stages.unfinished:*", "stages.quantized_io:*"), _partial),
    Reader(
        "header",
        (
            "stages.value_directory:raw_header",
            "stages.json_files:parse_json",
        ),
        _headers,
    ),
    Reader("resumed run", (), _resumed, 0.02),
    Reader("initial weights", (), _initial, 0.02),
    Reader("resumed quantization", (), _quantization, 0.03),
    Reader("resumed score", ("eval.predictor:*",), _scoring, 0.02),
    Reader("recipe", ("config.recipe:*",), _recipe, 0.2),
    Reader("settings", ("config.recipe:*",), _settings, 0.1),
    Reader("SentencePiece model", ("data.modelproto:*", "data.sentencepiece:*"), _model_file, 0.4),
    Reader("SentencePiece file", ("data.tokenizer:from_model_file",), _model_path, 0.2),
    Reader("merge table", ("data.merges:*",), _merges, 0.4),
    Reader("byte-level BPE", ("data.bpe.payload:*",), _foreign_bpe("gpt2"), 0.2),
    Reader("BPE with byte fallback", ("data.bpe.payload:*",), _foreign_bpe("prepend"), 0.2),
    Reader(
        "Hugging Face folder",
        ("data.bpe.files:*", "stages.foreign_tokenizers:*"),
        _foreign_folder,
        0.1,
    ),
    Reader("GPT-2's files", ("data.bpe.files:*",), _gpt2_folder, 0.1),
    Reader("rank file", ("data.bpe.files:*",), _ranks, 0.1),
    Reader(
        "txt",
        TEXTS,
        _text("a.txt", mutate.text_damage),
    ),
    Reader("jsonl", ("data.documents:*",), _text("a.jsonl", mutate.lines_damage)),
    Reader("gz", ("data.documents:*",), _text("a.jsonl.gz", mutate.lines_damage, gzip.compress)),
    Reader(
        "xz", ("data.documents:*",), _text("a.jsonl.xz", mutate.lines_damage, lzma.compress), 0.3
    ),
    Reader(
        "zst",
        ("data.documents:*",),
        _text("a.jsonl.zst", mutate.lines_damage, zstandard.ZstdCompressor().compress),
    ),
    Reader("parquet", ("data.documents:*",), _parquet, 0.5),
    Reader("tokens", ("data.tokens:*", "data.shard_file:*", "data.manifest:read"), _tokens),
    Reader("foreign shards", ("data.shards:*",), _shards),
    Reader("CORE bundle", ("tasks.core_bundle:*",), _core, 0.2),
    Reader("CORE archive", ("tasks.fetch:*",), _core_archive, 0.3),
    Reader("score", ("stages.json_files:read_json", "leaderboard.compare:*"), _score, 0.5),
    Reader(
        "leaderboard",
        (
            "leaderboard.chain:*",
            "leaderboard.store:*",
            "leaderboard.record:*",
            "leaderboard.page_files:*",
        ),
        _board,
        0.1,
    ),
    Reader("references", ("leaderboard.reference:read_manifest",), _references, 0.5),
    Reader(
        "contest folder",
        ("contest.claims:*", "contest.logs:*", "contest.imports:*", "contest.read_folder:*"),
        _contest,
        0.5,
    ),
    Reader("record to beat", (), _against),
    Reader(
        "carried source",
        ("contest.bundle:unpack", "contest.bundle:_earlier", "contest.imports:*"),
        _script,
        0.3,
    ),
    Reader("report", ("report.load_run:*",), _report, 0.05),
    Reader("metrics", ("report.load_run:logged",), _metrics),
    Reader("rewound metrics", ("stages.session:rewind",), _rewound),
    Reader("newest outputs", ("workspace.newest:_read",), _latest),
    Reader("list of runs", ("stages.run_directory:logged",), _listed_runs, 0.1),
    Reader(
        "files to be replaced",
        (
            "report.gather:is_page",
            "report.plot:is_ours",
            "commands:_out:begins_with.begins",
            "stages.json_files:_is_table",
        ),
        _own_files,
    ),
    Reader("tokenizer file", ("stages.tokenizers:*",), _tokenizer_file, 0.2),
    Reader("compressed file", ("commands:_coding:read",), _compressed_file),
    Reader("artifact with its documents", ("stages.pack:*",), _listed_artifact),
    Reader("documents of a leaderboard", ("leaderboard.derive:with_documents",), _board_documents),
    Reader("surroundings", ("workspace.begun_score:surroundings_of",), _surroundings),
    Reader("lock", ("locks:_holder",), _lock),
    Reader("commit", ("stages.commit:*",), _commit),
)

# What reads only what this very program wrote a moment ago, or what comes with the package.
_PACKAGE = "a file of the package itself"
_TEMPLATES = "speaks with a process of its own; harmful ones are in tests/data/test_chat.py"
_IDS = "damaged files are in tests/data, test_token_files.py and test_linked_tokens.py"
_WORKER = "what a process that this one started has just written"
_STRICT = "looks at nothing but whether the bytes have a digest that is known"
_KERNEL = "a file of the kernel, any damage of which is answered with None"
_MEMORY = "bytes in memory, none of which can be wrong"
OWN: Mapping[str, str] = {
    "config.mixture:read_mixture": "damaged files are in the tests of its room",
    "config.mixture:_parse": "damaged files are in the tests of its room",
    "convert.agreement:_theirs": "damaged files are in the tests of its room",
    "convert.gguf_file:is_gguf": "damaged files are in the tests of its room",
    "convert.hugging_face:_template": "damaged files are in the tests of its room",
    "convert.hugging_face:_table": "damaged files are in the tests of its room",
    "convert.modeling.rewrite:SourceText.__init__": "damaged files are in the tests of its room",
    "convert.modeling.source:sources": _PACKAGE,
    "convert.modeling.source:_specs": _PACKAGE,
    "convert.modeling.source:_configuration": _PACKAGE,
    "convert.modeling.source:_modeling": _PACKAGE,
    "convert.modeling.source:_imported": _PACKAGE,
    "convert.modeling.source:_joined": _PACKAGE,
    "convert.modeling.source:_finished": _PACKAGE,
    "convert.modeling.write:is_written_here": "damaged files are in the tests of its room",
    "convert.tensor_file:StoredTensor.floats": "damaged files are in the tests of its room",
    "convert.tensor_file:tensors": "damaged files are in the tests of its room",
    "convert.tensor_file:_of_file": "damaged files are in the tests of its room",
    "data.bpe.superbpe:_learn_words": "reads back what the tokenizers library has just made",
    "data.linked:_read": _IDS,
    "data.template_process:TemplateProcess._ask": _TEMPLATES,
    "data.template_worker:_answer": _TEMPLATES,
    "data.token_files:open_token_file": _IDS,
    "data.token_files:_shard": _IDS,
    "data.token_files:_headerless": _IDS,
    "serve.app:_page": _PACKAGE,
    "serve.request:_table": "requests that are damaged are in tests/serve/test_server.py",
    "stages.chat_template:_read": "damaged files are in the tests of its room",
    "stages.chat_template:_tokens": "damaged files are in the tests of its room",
    "stages.export_model:_template": "damaged files are in the tests of its room",
    "workspace.calibration_texts:_text": "opens a prepared text or a text file, which data reads",
    "workspace.mixtures:open_validation": "opens a prepared text or a text file, which data reads",
    "workspace.mixtures:OpenMixture._open": "opens a prepared text, which data reads",
    "workspace.mixtures:_remix": "damaged files are in the tests of its room",
    "__main__:open_streams": "opens what stands for a stream that is closed, and reads nothing",
    "locks:is_locked": "opens a lock to try it, and reads nothing",
    "commands:_report:silence": "opens the null device to write to it",
    "workspace.model_text:validation": "opens a prepared text, which data.tokens reads",
    "workspace.prepared:Prepared.reading": "opens a prepared text, which data.tokens reads",
    "commands:_texts:read": "opens a prepared text, which data.tokens reads",
    "workspace.begun_score:ScoreTask.save": _MEMORY,
    "workspace.prepared:held_out": "opens a prepared text, which data.tokens reads",
    "workspace.begun_run:check_vacant": "looks whether a file is there to be read",
    "atomic:_sync_file": "opens a file to flush it, and reads nothing",
    "atomic:_sync_directory": "opens a directory to flush it, and reads nothing",
    "contest.bundle:_Package.fresh": _PACKAGE,
    "contest.bundle:_read_text": _PACKAGE,
    "contest.minify:minify": _PACKAGE,
    "contest.minify:squeezed": _PACKAGE,
    "leaderboard.page:_resource": _PACKAGE,
    "data.corpus:sections": "the documentation of the Python that runs, which no user gives",
    "data.tokenizer:_ByteCodec.encode": _MEMORY,
    "data.bpe.codec:BpeCodec._spell": _MEMORY,
    "eval.ngram:NgramTable.observe": _MEMORY,
    "coding.token_predictor:TokenPredictor._open": "opens a learner, not a file",
    "eval.tally:_StreamScorer.play": "opens a learner, not a file",
    "stages.train:train": "opens the metrics of a run to write them, which session.rewind reads",
    "tasks.pretrained:load": "read by transformers, all of whose errors become one line; "
    "tests/tasks/test_pretrained.py damages its folders",
    "workspace.begun_score:ScoreTask.result": "opens a score that was begun, for stages.unfinished",
    "audit.run:_elsewhere.method": _WORKER,
    "audit.replay:repeat": _WORKER,
    "stages.prepare:_is_from": "a file of this program, any damage of which means another source",
    "train.mesh:Mesh.agree": "what the other processes of a run have just sent",
    "train.mesh:Mesh._gathered": "what the other processes of a run have just sent",
    "audit.run:_run": _WORKER,
    "contest.export:_write": "copies a log as it is",
    "doctor.doctor:_worked": _WORKER,
    "machine:memory": _KERNEL,
    "machine:_read": _KERNEL,
    "coding.prove:_elsewhere": _WORKER,
    "coding.prove:_run": _WORKER,
    "coding.prove_worker:main": _WORKER,
    "leaderboard.reference:_check": _STRICT,
    "leaderboard.rerun_recipe:remake": _STRICT,
    "audit.replay:main": _WORKER,
    "audit.replay:_documents": _WORKER,
    "contest.submission:read_plan": "what the script that runs carries in itself",
    "leaderboard.verify:_digest": _STRICT,
    "values:Score.plain": _MEMORY,
}

DOCUMENTED = (SegptError,)
