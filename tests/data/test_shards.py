"""The field's shards: counted as the contest counts them, refused when they would be miscounted."""

import hashlib
import io
import json
import lzma
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from numpy.typing import ArrayLike, NDArray

from segpt.config.parameter_golf import DOCUMENTS, REFERENCE, reference
from segpt.data import modelproto
from segpt.data.shards import Shards, read_shards
from segpt.data.tokenizer import BYTES, from_model_file, load, train_bpe
from segpt.data.tokens import write_tokens
from segpt.errors import DataError
from segpt.values import Text, Tokenizer

SHARED = Path(__file__).parents[3] / "shared" / "data"
OFFICIAL = SHARED / "tokenizers" / "sp8192_official.model"
CASEOPS = SHARED / "tokenizers" / "sp8192_caseops.model"

needs_data = pytest.mark.skipif(
    not (OFFICIAL.exists() and (SHARED / "corpus").exists()), reason="no web text at hand"
)

LINES = [b"The fox finds a dog.", b" It  sleeps.\n", "caf\u00e9 \u65e5\u672c".encode(), b"the end"]
PROSE = """
The fox finds a dog in the garden behind the house. The dog sleeps in the sun and the fox runs
around the house three times. Then the farmer opens the door of the house, and the fox hides in
the tall grass beside the river until the farmer and the dog have gone down the road to the town.
"""


def shard(path: Path, values: ArrayLike, version: int = 1, **header: int) -> Path:
    """A file in the field's layout, written by hand."""
    values = np.asarray(values)
    head = {"magic": 20240520, "version": version, "count": len(values), "rest": 0} | header
    rest = [head["rest"]] * 253
    packed = struct.pack("<256i", head["magic"], head["version"], head["count"], *rest)
    path.write_bytes(packed + values.astype("<u2" if version == 1 else "<u4").tobytes())
    return path


@cache
def foreign(symbols: str = "", vocab: int = 360) -> Tokenizer:
    """A small model as the contest makes them, with ``symbols`` of the user's."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROSE.split(".")),
        model_writer=written,
        model_type="bpe",
        vocab_size=vocab,
        hard_vocab_limit=False,
        byte_fallback=True,
        add_dummy_prefix=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        user_defined_symbols=list(symbols),
        minloglevel=2,
    )
    data = written.getvalue()
    return Tokenizer("sentencepiece", len(modelproto.read(data).pieces), data)


def stream(tokenizer: Tokenizer, documents: Iterable[bytes] = LINES) -> list[int]:
    codec = load(tokenizer)
    return [i for d in documents for i in (codec.start, *codec.encode(d).tolist())]


def contest_sizes(tokenizer: Tokenizer, vocab: int, ids: Sequence[int]) -> list[int]:
    """The contest's three tables and its loop over targets, written down once more."""
    library = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.payload)
    base, leads, boundary = [0] * vocab, [False] * vocab, [True] * vocab
    for i in range(library.vocab_size()):
        if library.is_control(i) or library.is_unknown(i) or library.is_unused(i):
            continue
        boundary[i] = False
        if library.is_byte(i):
            base[i] = 1
            continue
        piece = library.id_to_piece(i)
        leads[i] = piece.startswith("\u2581")
        base[i] = len(piece.removeprefix("\u2581").encode())
    return [base[y] + (leads[y] and not boundary[x]) for x, y in pairwise(ids)]


@pytest.mark.parametrize("version", [1, 2])
def test_bytes_are_counted_as_the_contest_counts_them(tmp_path: Path, version: int) -> None:
    ids = stream(foreign())
    found = read_shards([shard(tmp_path / "val_0.bin", ids, version)], foreign())
    assert found.ids.tolist() == ids
    assert found.sizes.tolist() == contest_sizes(foreign(), foreign().vocab, ids)
    assert [a.dtype.str for a in (found.ids, found.sizes, found.starts)] == ["<u4", "<i8", "<i8"]
    assert (found.denominator, found.raw, found.dropped) == ("pieces", 0, 0)
    assert [ids[i] for i in found.starts] == [1] * len(LINES)
    assert (found.targets, found.bytes) == (len(ids) - 1, sum(found.sizes.tolist()))
    raw = (tmp_path / "val_0.bin").read_bytes()
    assert found.shards[0].sha256 == hashlib.sha256(raw).hexdigest()


def test_any_stream_of_any_tokens_is_counted_so(tmp_path: Path) -> None:
    """Random ids: every piece after every kind of piece, and ids that only the model has."""
    tokenizer, vocab = foreign(), 512
    ids = np.random.default_rng(5).integers(0, vocab, 60_000)
    ids[0] = 1
    found = read_shards([shard(tmp_path / "val_0.bin", ids)], tokenizer, vocab=vocab)
    assert found.sizes.tolist() == contest_sizes(tokenizer, vocab, ids.tolist())
    beyond = ids[1:] >= tokenizer.vocab
    assert beyond.any()
    assert not found.sizes[beyond].any()
    with pytest.raises(DataError, match=r"val_0\.bin: id 511 is outside the vocabulary"):
        read_shards([tmp_path / "val_0.bin"], tokenizer)
    with pytest.raises(DataError, match="do not belong together"):
        read_shards([tmp_path / "val_0.bin"], tokenizer, vocab=tokenizer.vocab - 1)


def test_a_start_pays_for_nothing_and_nothing_pays_for_its_space(tmp_path: Path) -> None:
    codec = load(foreign())
    pieces = [piece.text for piece in modelproto.read(foreign().payload).pieces]
    space = pieces.index("\u2581")
    the = pieces.index("\u2581the")
    byte = next(i for i in range(codec.vocab) if codec.decode([i]) == b"\xe6")
    ids = [1, space, space, 1, the, the, byte, the, 2, the, 0, space]
    found = read_shards([shard(tmp_path / "val_0.bin", ids)], foreign())
    assert found.sizes.tolist() == [0, 1, 0, 3, 4, 1, 4, 0, 3, 0, 0]
    assert found.starts.tolist() == [0, 3]


def test_a_lossless_tokenizer_counts_the_text_itself(tmp_path: Path) -> None:
    ours = train_bpe(LINES, 284)
    for tokenizer in (ours, BYTES):
        path = shard(tmp_path / f"{tokenizer.kind}.bin", stream(tokenizer))
        found = read_shards([path], tokenizer)
        assert found.denominator == "bytes"
        assert found.raw == found.bytes == sum(map(len, LINES))


def test_shards_follow_each_other_however_they_are_cut(tmp_path: Path) -> None:
    ids = stream(foreign())
    whole = read_shards([shard(tmp_path / "whole.bin", ids)], foreign())
    paths = [
        shard(tmp_path / "val_2.bin", ids[:7]),
        shard(tmp_path / "val_1.bin", ids[7:9], 2, rest=7),
        shard(tmp_path / "val_0.bin", ids[9:]),
    ]
    parts = read_shards(paths, foreign())
    for name in ("ids", "sizes", "starts"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    assert parts.digest == whole.digest
    assert [s.tokens for s in parts.shards] == [7, 2, len(ids) - 9]
    with pytest.raises(DataError, match=r"val_0\.bin: does not begin with 1, the start"):
        read_shards(paths[::-1], foreign())
    with pytest.raises(DataError, match="give each file once"):
        read_shards([*paths, paths[0]], foreign())
    other = read_shards([shard(tmp_path / "other.bin", [*ids[:-1], 5])], foreign())
    assert other.digest != whole.digest


def test_shards_of_ours_are_read_too(tmp_path: Path) -> None:
    text = Text("lines", lambda: iter(LINES))
    tokens = write_tokens(text, foreign(), tmp_path / "out", split="val", shard_tokens=10)
    found = read_shards([s.path for s in tokens.shards], foreign())
    assert found.ids.tolist() == stream(foreign())
    assert found.shards == tokens.shards


@pytest.mark.parametrize("sequence", [1, 4, 7, 25])
def test_truncation_only_when_asked_for(tmp_path: Path, sequence: int) -> None:
    ids = stream(foreign())
    path = shard(tmp_path / "val_0.bin", ids)
    whole, cut = read_shards([path], foreign()), read_shards([path], foreign(), sequence=sequence)
    assert cut.targets == (len(ids) - 1) // sequence * sequence
    assert cut.targets + cut.dropped == whole.targets
    assert cut.dropped < sequence
    np.testing.assert_array_equal(cut.ids, whole.ids[: cut.targets + 1])
    np.testing.assert_array_equal(cut.sizes, whole.sizes[: cut.targets])
    assert cut.starts.tolist() == [i for i in whole.starts if i <= cut.targets]
    assert (cut.digest == whole.digest) == (cut.dropped == 0)
    with pytest.raises(DataError, match="leave nothing to score"):
        read_shards([path], foreign(), sequence=len(ids))
    with pytest.raises(DataError, match="at least 1 target"):
        read_shards([path], foreign(), sequence=0)


def sidecar(path: Path, found: Shards, **changes: int) -> Path:
    name = path.name.replace("_val_", "_val_bytes_")
    return shard(path.with_name(name), np.concatenate([[0], found.sizes]), **changes)


def test_a_sidecar_says_what_the_pieces_would(tmp_path: Path) -> None:
    """Round trip, with a pattern that matches both kinds of file, in any order."""
    ids = stream(foreign())
    path = shard(tmp_path / "fineweb_val_000000.bin", ids)
    spelt = read_shards([path], foreign())
    sidecar(path, spelt)
    both = sorted(tmp_path.glob("fineweb_val_*.bin"))
    assert len(both) == 2
    for order in (both, both[::-1]):
        found = read_shards(order, foreign())
        assert (found.denominator, found.raw) == ("sidecar", 0)
        np.testing.assert_array_equal(found.sizes, spelt.sizes)
        np.testing.assert_array_equal(found.ids, spelt.ids)
        assert found.digest == spelt.digest
        assert [s.path.name for s in found.shards] == ["fineweb_val_000000.bin"]
        assert [s.path.name for s in found.sidecars] == ["fineweb_val_bytes_000000.bin"]
    changed = np.concatenate([[0], spelt.sizes])
    changed[5] += 1
    shard(both[1], changed)
    forged = read_shards(both, foreign())
    assert forged.bytes == spelt.bytes + 1
    assert forged.digest != spelt.digest
    assert forged.sidecars[0].sha256 != found.sidecars[0].sha256


def test_sidecars_go_with_their_shards(tmp_path: Path) -> None:
    ids = stream(foreign())
    cut = len(ids) // 2
    sizes = np.concatenate([[0], read_shards([shard(tmp_path / "x.bin", ids)], foreign()).sizes])
    (tmp_path / "x.bin").unlink()
    for i, part in enumerate([slice(0, cut), slice(cut, None)]):
        shard(tmp_path / f"fineweb_val_{i:06}.bin", ids[part])
        shard(tmp_path / f"fineweb_val_bytes_{i:06}.bin", sizes[part])
    tokens = sorted(tmp_path.glob("*_val_0*.bin"))
    beside = sorted(tmp_path.glob("*bytes*.bin"))
    found = read_shards([*beside[::-1], *tokens], foreign())
    assert found.sizes.tolist() == sizes[1:].tolist()
    for paths, problem in (
        ([*tokens, beside[0]], r"val_000001\.bin: has no sidecar"),
        ([tokens[0], *beside], r"bytes_000001\.bin: bytes without their tokens"),
        (beside, r"bytes_000000\.bin: bytes without their tokens; give .*val_000000\.bin"),
    ):
        with pytest.raises(DataError, match=problem):
            read_shards(paths, foreign())


def test_a_sidecar_of_other_tokens_is_refused(tmp_path: Path) -> None:
    ids = stream(foreign())
    path = shard(tmp_path / "fineweb_val_000000.bin", ids)
    sizes = np.concatenate([[0], read_shards([path], foreign()).sizes])
    beside = tmp_path / "fineweb_val_bytes_000000.bin"
    for values, version, problem in (
        (sizes[:-1], 1, "are no sidecar"),
        (sizes, 2, "sizes of 4 bytes are no sidecar"),
        (np.roll(sizes, 1), 1, "gives bytes to . start tokens"),
        (sizes + 1, 1, f"gives bytes to {len(LINES)} start tokens"),
        (sizes * 0, 1, "0 bytes leave nothing to score"),
    ):
        shard(beside, values, version)
        with pytest.raises(DataError, match=problem):
            read_shards([path, beside], foreign())


def test_damaged_shards_are_named(tmp_path: Path) -> None:
    ids = stream(foreign())
    path = tmp_path / "val_0.bin"
    for header in ({"magic": 20240521}, {"version": 3}, {"version": 0}, {"count": -1}):
        shard(path, ids, **header)
        with pytest.raises(DataError, match=r"val_0\.bin: not a shard of tokens"):
            read_shards([path], foreign())
    for count in (len(ids) - 1, len(ids) + 1, 2**31 - 1):
        shard(path, ids, count=count)
        with pytest.raises(DataError, match=r"val_0\.bin: .* bytes are not .* tokens"):
            read_shards([path], foreign())
    for data in (b"", b"\x00" * 1023, shard(path, ids).read_bytes()[:1023]):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"val_0\.bin: not a shard"):
            read_shards([path], foreign())
    for missing in (tmp_path / "nowhere.bin", tmp_path):
        with pytest.raises(DataError, match=f"{missing.name}: cannot be read"):
            read_shards([missing], foreign())
    with pytest.raises(DataError, match="name at least one file"):
        read_shards([], foreign())


@pytest.mark.parametrize("ids", [[], [1], [1, 1, 1], [5, 6, 7], [2, 5]], ids=str)
def test_streams_without_a_document_are_refused(tmp_path: Path, ids: list[int]) -> None:
    with pytest.raises(DataError, match=r"nothing to score|does not begin with 1"):
        read_shards([shard(tmp_path / "val_0.bin", ids)], foreign())


def test_operators_need_a_sidecar(tmp_path: Path) -> None:
    """Pieces for private characters stand for no bytes, but would be counted as three each."""
    tokenizer = foreign("\ue001\ue002\n")
    codec = load(tokenizer)
    operator, newline = (int(codec.encode(s.encode())[0]) for s in ("\ue001", "\n"))
    ids = stream(tokenizer)
    path = shard(tmp_path / "fineweb_val_000000.bin", [*ids, newline])
    spelt = read_shards([path], tokenizer)
    assert spelt.sizes[-1] == 1
    shard(path, [*ids, operator])
    with pytest.raises(DataError, match=f"token {operator} is an operator.*give the sidecar"):
        read_shards([path], tokenizer)
    sizes = [0, *spelt.sizes.tolist()[:-1], 0]
    beside = shard(tmp_path / "fineweb_val_bytes_000000.bin", sizes)
    assert read_shards([path, beside], tokenizer).bytes == spelt.bytes - 1


def web_documents() -> list[str]:
    """Whole FineWeb documents, and a sample cut at empty lines."""
    lines = lzma.decompress((SHARED / "corpus" / "fineweb_edu_docs5.jsonl.xz").read_bytes())
    whole = [str(json.loads(line)["text"]) for line in lines.splitlines()]
    sample = lzma.decompress((SHARED / "corpus" / "fineweb_edu_sample.txt.xz").read_bytes())
    return whole + [d for d in sample.decode()[:200_000].split("\n\n") if d.strip()]


def flagged(found: Shards, wrong: int) -> bool:
    """Whether the contest's counts, miscounted in the same proportion, are flagged."""
    known = REFERENCE[2]
    ratio = wrong / found.bytes
    by_targets = reference(known.targets, round(known.bytes * ratio))
    by_documents = reference(1, round(known.bytes * ratio), DOCUMENTS)
    return by_targets.warning is not None and by_documents.warning is not None


@pytest.mark.slow
@needs_data
def test_web_text_is_counted_as_the_contest_counts_it(tmp_path: Path) -> None:
    tokenizer, documents = from_model_file(OFFICIAL), [d.encode() for d in web_documents()]
    tokens = write_tokens(
        Text("web", lambda: iter(documents)), tokenizer, tmp_path / "out", split="val"
    )
    found = read_shards([s.path for s in tokens.shards], tokenizer)
    assert found.ids.tolist() == stream(tokenizer, documents)
    assert found.sizes.tolist() == contest_sizes(tokenizer, 8192, found.ids.tolist())
    assert len(found.starts) == len(documents)
    assert 0.995 < found.bytes / sum(map(len, documents)) < 1
    assert 3.5 < found.bytes / found.targets < 5
    beside = sidecar(shard(tmp_path / "fineweb_val_000000.bin", found.ids), found)
    again = read_shards([tmp_path / "fineweb_val_000000.bin", beside], tokenizer)
    assert (again.denominator, again.digest) == ("sidecar", found.digest)
    spaces = sum(tokenizer_leads(tokenizer)[found.ids[1:]])
    assert flagged(found, found.bytes + int(spaces)), "leading spaces counted twice"
    assert flagged(found, found.bytes + 2 * int(spaces)), "spaces as three bytes"
    assert flagged(found, found.bytes - int(spaces)), "leading spaces not counted"
    assert not flagged(found, found.bytes)


def tokenizer_leads(tokenizer: Tokenizer) -> NDArray[np.int64]:
    pieces = modelproto.read(tokenizer.payload).pieces
    return np.array([int(piece.text.startswith("\u2581")) for piece in pieces])


TITLE, CAPITALS, CAPITAL, ESCAPE = "\ue001", "\ue002", "\ue003", "\ue004"


def cased(text: str) -> str:
    """Lower case, with operators that say where the capitals were."""

    def word(match: re.Match[str]) -> str:
        letters = match[0]
        if letters.islower():
            return letters
        if len(letters) > 1 and letters.isupper():
            return CAPITALS + letters.lower()
        if letters[0].isupper() and letters[1:].islower():
            return TITLE + letters.lower()
        first = TITLE + letters[0].lower() if letters[0].isupper() else letters[0]
        rest = [CAPITAL + x.lower() if x.isupper() else x for x in letters[1:]]
        return first + "".join(rest)

    return re.sub("[A-Za-z]+", word, text)


def charged(surface: str) -> int:
    """The bytes of the original text that a span of the cased one stands for."""
    return sum(len(x.encode()) for x in surface if x not in (TITLE, CAPITALS, CAPITAL, ESCAPE))


def surfaces(message: bytes) -> list[tuple[int, str]]:
    """The id and the span of the input of each piece, out of the library's own message."""
    return [
        (int(piece[2]), bytes(piece[3]).decode())
        for piece in ({3: b""} | dict(fields(value)) for key, value in fields(message) if key == 2)
    ]


def fields(message: Any) -> Iterator[tuple[int, Any]]:
    """The numbered fields of a protobuf message, whose values are integers or bytes."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while position < len(message):
        key = varint()
        value: Any = varint()
        if key & 7 == 2:
            position, value = position + value, message[position : position + value]
        yield key >> 3, value


@pytest.mark.slow
@needs_data
def test_case_operators_are_charged_by_their_sidecar(tmp_path: Path) -> None:
    """The sidecar counts the original text; the pieces would count the contest's known error."""
    tokenizer, documents = from_model_file(CASEOPS), web_documents()
    library: Any = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.payload)
    ids, sizes = [], []
    for document in documents:
        pieces = surfaces(library.encode(cased(document), out_type="serialized_proto"))
        ids += [1, *(i for i, _ in pieces)]
        sizes += [0, *(charged(surface) for _, surface in pieces)]
    path = shard(tmp_path / "fineweb_val_000000.bin", ids)
    beside = shard(tmp_path / "fineweb_val_bytes_000000.bin", sizes)
    found = read_shards([path, beside], tokenizer)
    assert found.bytes == sum(len(document.strip().encode()) for document in documents)
    assert 2.8 < found.bytes / found.targets < 4.2
    with pytest.raises(DataError, match="is an operator"):
        read_shards([path], tokenizer)
    wrong = sum(contest_sizes(tokenizer, 8192, ids))
    assert 1.05 < wrong / found.bytes < 1.12
    assert flagged(found, wrong)
