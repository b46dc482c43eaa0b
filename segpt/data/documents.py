"""The documents of one file, as its form says: text, JSON in lines or whole, or a table."""

import codecs
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from segpt.errors import DataError

from .compression import Stream, plain
from .selection import ALL, LEFT_OUT, LeftOut, Selection
from .sources import Form, form, shown

if TYPE_CHECKING:
    import pyarrow as pa

SEPARATOR: Final = b"<|endoftext|>"
LARGEST: Final = 2**31  # bytes of a document, or of the line that holds it
AGAIN: Final = "check the file or fetch it again"

_CHUNK: Final = 2**20  # bytes of JSON that are taken in at once
_LISTED: Final = 8  # fields that a message names

# Numbers are not text, and Python refuses to convert the longest ones.
_JSON: Final = json.JSONDecoder(parse_int=lambda digits: 0, parse_float=lambda digits: 0.0)
_JSON_WITH_NUMBERS: Final = json.JSONDecoder(parse_int=float, parse_float=float)

Document = bytes | LeftOut | None


def documents(
    path: Path, file: io.BufferedReader, field: str, selection: Selection = ALL
) -> Iterator[Document]:
    """The documents of an open file; None for each that is null, a mark for each left out.

    Raises:
        DataError: naming the line, entry or column that holds no text, or what has no fields that
            conditions could be about.
        OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError: if the file is damaged.
    """
    kind, compression = form(path)
    stream = plain(file, compression)
    match kind:
        case ".txt":
            if selection.conditions:
                raise DataError(
                    f"{shown(path)}: a plain text has no field {selection.conditions[0].field!r}; "
                    "leave out --keep, or name files with fields"
                )
            return _parts(path, stream)
        case ".json":
            return _entries(path, stream, _Wanted(field, selection))
        case ".parquet":
            return _rows(path, stream, form(path), _Wanted(field, selection))
        case _:
            return _lines(path, stream, _Wanted(field, selection))


class _Wanted(NamedTuple):
    """The field that holds the text, and which entries are kept."""

    field: str
    selection: Selection

    @property
    def decoder(self) -> json.JSONDecoder:
        """What reads JSON: with its numbers where a condition may be about one."""
        return _JSON_WITH_NUMBERS if self.selection.conditions else _JSON

    def of(self, entry: Any, place: str) -> Document:
        """The text of an entry, if the conditions hold for it."""
        for condition in self.selection.conditions:
            value = _under(entry, condition.field) if isinstance(entry, dict) else _Missing
            if not condition.holds(value):
                return LEFT_OUT
        return _text(entry, self.field, place)


def _parts(path: Path, stream: Stream) -> Iterator[bytes]:
    """What is between separators, without empty parts: the last separator often ends a file."""
    lines: list[bytes] = []
    size = 0
    for line in _cut_into_lines(path, stream):
        if line.rstrip(b"\r\n") != SEPARATOR:
            lines.append(line)
            size += len(line)
            if size > LARGEST:
                raise _too_large(path)
        elif lines:
            yield b"".join(lines)
            lines, size = [], 0
    if lines:
        yield b"".join(lines)


def _lines(path: Path, stream: Stream, wanted: _Wanted) -> Iterator[Document]:
    decoder = wanted.decoder
    for number, line in enumerate(_cut_into_lines(path, stream), 1):
        if line.strip():
            place = f"{shown(path)}:{number}"
            try:
                entry = decoder.decode(line.decode(json.detect_encoding(line), "surrogatepass"))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{place}: not JSON ({_why(error)}); correct the line") from error
            yield wanted.of(entry, place)


def _cut_into_lines(path: Path, stream: Stream) -> Iterator[bytes]:
    while line := stream.readline(LARGEST + 1):
        if len(line) > LARGEST:
            raise _too_large(path)
        yield line


def _too_large(path: Path) -> DataError:
    return DataError(
        f"{shown(path)}: holds a document of more than {LARGEST >> 30} GiB; put lines "
        f"{SEPARATOR.decode()} into a .txt file, or cut the document into several"
    )


def _entries(path: Path, stream: Stream, wanted: _Wanted) -> Iterator[Document]:
    """The entries of lists, and values outside lists, one after another."""
    reader = _Json(path, stream, wanted.decoder)
    while sign := reader.sign():
        if sign != "[":
            yield wanted.of(reader.value(), reader.place)
            continue
        reader.skip()
        while (sign := reader.sign()) != "]":
            yield wanted.of(reader.value(), reader.place)
            if (sign := reader.sign()) == ",":
                reader.skip()
                if reader.sign() == "]":
                    raise reader.refuse("a comma before the end of a list")
            elif sign != "]":
                raise reader.refuse("a list goes on without a comma")
        reader.skip()


class _Json:
    """A JSON file that is taken in piece by piece: one entry is in memory, not all of them."""

    def __init__(self, path: Path, stream: Stream, reads: json.JSONDecoder) -> None:
        self._path, self._stream, self._reads = path, stream, reads
        self._text, self._at, self._ended = "", 0, False
        self._entry = 0
        head = stream.read(_CHUNK)
        decoder = codecs.getincrementaldecoder(json.detect_encoding(head[:4]))
        self._decoder = decoder("surrogatepass")
        self._take(head)

    @property
    def place(self) -> str:
        """The entry that was read last, for people."""
        return f"{shown(self._path)}, entry {self._entry:,}"

    def sign(self) -> str:
        """The next character that is no space; empty at the end of the file."""
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match is not None  # it matches nothing too
            self._at = match.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._more()

    def skip(self) -> None:
        """Go past the character that :meth:`sign` gave."""
        self._at += 1

    def value(self) -> Any:
        """The value that begins here.

        Raises:
            DataError: if there is none, or it takes more than ``LARGEST`` characters.
        """
        self._entry += 1
        while True:
            try:
                value, self._at = self._reads.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if self._ended or not self._may_go_on(error):
                    raise self.refuse(_why(error)) from error
            else:
                return value
            if len(self._text) - self._at > LARGEST:
                raise _too_large(self._path)
            self._more()

    def refuse(self, why: str) -> DataError:
        """What to raise where an entry cannot be read."""
        return DataError(f"{self.place}: not JSON ({why}); correct the file")

    def _may_go_on(self, error: Exception) -> bool:
        """Whether the text may only end too early: the error is in its last characters."""
        return isinstance(error, json.JSONDecodeError) and (
            error.msg.startswith("Unterminated string") or error.pos > len(self._text) - 16
        )

    def _more(self) -> None:
        """Take in as much as is here already, so that each character is parsed a few times only."""
        self._text, self._at = self._text[self._at :], 0
        self._take(self._stream.read(max(_CHUNK, len(self._text))))

    def _take(self, data: bytes) -> None:
        self._ended = not data
        try:
            self._text += self._decoder.decode(data, self._ended)
        except ValueError as error:
            raise self.refuse(_why(error)) from error


_SPACE = re.compile(r"[ \t\n\r]*")


def _why(error: Exception) -> str:
    match error:
        case RecursionError():
            return "nested too deeply"
        case UnicodeError():
            return "not UTF-8"
        case json.JSONDecodeError(msg=text):
            return text[:1].lower() + text[1:]
        case _:
            return str(error)


def _text(entry: Any, field: str, place: str) -> bytes | None:
    """The text of an entry: what it is, or has under ``field``."""
    value = _under(entry, field) if isinstance(entry, dict) else entry
    if value is None:
        return None
    if not isinstance(value, str):
        raise DataError(
            f"{place}: no text under {field!r}; name another with --field (found: {_fields(entry)})"
        )
    # Half a surrogate pair, which JSON allows, is kept as it is.
    return value.encode("utf-8", "surrogatepass")


class _Missing:
    """Stands for what an entry does not have, since it may have null."""


def _under(entry: dict[str, Any], field: str) -> Any:
    """What is under a key, or a path of keys with dots; a key that holds a dot goes first."""
    if field in entry:
        return entry[field]
    for dot in re.finditer(r"\.", field):
        inner = entry.get(field[: dot.start()], _Missing)
        if inner is None:
            return None
        if isinstance(inner, dict):
            value = _under(inner, field[dot.end() :])
            if value is not _Missing:
                return value
    return _Missing


def _fields(entry: Any) -> str:
    if not isinstance(entry, dict):
        return f"a {_TYPES.get(type(entry), type(entry).__name__)}"
    return _listed(
        [
            f"{key}.{inner}" if inner else key
            for key, value in sorted(entry.items())
            for inner in (sorted(value) if isinstance(value, dict) and value else [""])
        ]
    )


_TYPES = {int: "number", float: "number", bool: "truth value", list: "list"}


def _listed(names: Sequence[str]) -> str:
    """Names in one short line, whatever is in them."""
    short = [json.dumps(name[:60], ensure_ascii=False)[1:-1] for name in names[:_LISTED]]
    more = len(names) - len(short)
    return (", ".join(short) or "nothing") + (f" and {more:,} more" if more > 0 else "")


def _rows(path: Path, stream: Stream, shape: Form, wanted: _Wanted) -> Iterator[Document]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{shown(path)}: needs pyarrow; pip install 'segpt[parquet]'") from error
    try:
        table = parquet.ParquetFile(_whole(path, stream) if shape.compression else stream)
        conditions = wanted.selection.conditions
        columns = []
        for field in (wanted.field, *(condition.field for condition in conditions)):
            columns.append(_column(table.schema_arrow, field))
            if not columns[-1]:
                option = "--field" if len(columns) == 1 else "--keep"
                raise DataError(
                    f"{shown(path)}: no column {field!r}; name another with {option} "
                    f"(found: {_listed(table.schema_arrow.names)})"
                )
        names = list(dict.fromkeys(".".join(keys) for keys in columns))
        for batch in table.iter_batches(columns=names, batch_size=1024):
            kept = [True] * batch.num_rows
            for condition, keys in zip(conditions, columns[1:], strict=True):
                values = _values(batch, keys).to_pylist()
                kept = [k and condition.holds(v) for k, v in zip(kept, values, strict=True)]
            texts = _strings(path, batch, columns[0]).to_pylist()
            yield from (t if k else LEFT_OUT for t, k in zip(texts, kept, strict=True))
    except (pa.ArrowException, ValueError, TypeError, LookupError, ArithmeticError) as error:
        why = " ".join(str(error).split())[:200]
        raise DataError(f"{shown(path)}: not a parquet file ({why}); {AGAIN}") from error


def _column(columns: Any, field: str) -> list[str]:
    """The names on the way to a column in a schema or struct; a name that holds a dot goes first.

    Empty if there is none.
    """
    names = [column.name for column in columns]
    if field in names:
        return [field]
    for dot in re.finditer(r"\.", field):
        head = field[: dot.start()]
        if head in names and (inner := _members(columns[names.index(head)].type)):
            rest = _column(inner, field[dot.end() :])
            if rest:
                return [head, *rest]
    return []


def _members(kind: Any) -> list[Any]:
    from pyarrow import types

    return [kind.field(i) for i in range(kind.num_fields)] if types.is_struct(kind) else []


def _values(batch: "pa.RecordBatch", keys: Sequence[str]) -> "pa.Array":
    """A column, wherever it lies in structs."""
    from pyarrow import compute, types

    values = batch.column(batch.schema.names.index(keys[0]))
    for key in keys[1:]:
        values = compute.struct_field(values, key)
    return values.dictionary_decode() if types.is_dictionary(values.type) else values


def _strings(path: Path, batch: "pa.RecordBatch", keys: Sequence[str]) -> "pa.Array":
    """A column as bytes, without a look at their encoding."""
    import pyarrow as pa
    from pyarrow import types

    textual = (
        types.is_string,
        types.is_large_string,
        types.is_string_view,
        types.is_binary,
        types.is_large_binary,
        types.is_binary_view,
        types.is_fixed_size_binary,
        types.is_null,
    )
    values = _values(batch, keys)
    if not any(is_text(values.type) for is_text in textual):
        raise DataError(
            f"{shown(path)}: column {'.'.join(keys)!r} is not text but {values.type}; name another "
            "with --field"
        )
    return values.cast(pa.large_binary())


def _whole(path: Path, stream: Stream) -> io.BytesIO:
    """A compressed table, which is read from its end."""
    data = stream.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise DataError(
            f"{shown(path)}: more than {LARGEST >> 30} GiB once decompressed; decompress the file"
        )
    return io.BytesIO(data)
