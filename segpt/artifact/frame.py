"""The frame of a file: magic, format, a table of sections, the sections, SHA-256 over all."""

import hashlib
import struct
from collections.abc import Mapping
from itertools import accumulate
from typing import NamedTuple

from segpt.errors import ArtifactError

from .codec import SectionCodec, Stored

MAGIC = b"\x93SEGPT"
FORMAT = 2  # of new files
SECTIONS = {
    1: ("header", "tokenizer", "classes", "tables", "codes", "scales", "halves"),
    2: (
        *("header", "tokenizer", "classes", "tables", "codes"),
        *("steps", "rows", "columns", "stored", "scales", "halves"),
    ),
}
MOST_BYTES = 1 << 29

PREFIX = struct.Struct("<6sHB")  # magic, format, number of sections
ENTRY = struct.Struct("<BII")  # codec, bytes in the file, bytes unpacked
DIGEST = hashlib.sha256().digest_size


class Parts(NamedTuple):
    """The sections of a file, and the format that says what they mean."""

    format: int
    sections: dict[str, Stored]


def overhead(version: int) -> int:
    """Where the first section of a file begins."""
    return PREFIX.size + len(SECTIONS[version]) * ENTRY.size


def join(sections: Mapping[str, Stored]) -> bytes:
    """The bytes of a file of the newest format that holds these ``sections``.

    Raises:
        ArtifactError: if the file would be larger than any reader accepts.
    """
    parts = [sections[name] for name in SECTIONS[FORMAT]]
    size = overhead(FORMAT) + sum(len(part.data) for part in parts) + DIGEST
    if size > MOST_BYTES:
        raise ArtifactError(f"an artifact of {size:,} bytes; the format ends at {MOST_BYTES:,}")
    body = b"".join(
        (
            PREFIX.pack(MAGIC, FORMAT, len(parts)),
            *(ENTRY.pack(part.codec, len(part.data), part.size) for part in parts),
            *(part.data for part in parts),
        )
    )
    return body + hashlib.sha256(body).digest()


def split(data: bytes) -> Parts:
    """The inverse of :func:`join`. Nothing is unpacked; the digest holds when this returns.

    Raises:
        ArtifactError: if ``data`` is not a whole, undamaged file of a known format.
    """
    check(data)
    _, version, count = PREFIX.unpack_from(data)
    names, start = SECTIONS[version], overhead(version)
    if count != len(names):
        raise ArtifactError(f"format {version} has {len(names)} sections, not {count}")
    try:
        table = [
            (SectionCodec(codec), stored, size)
            for codec, stored, size in ENTRY.iter_unpack(data[PREFIX.size : start])
        ]
    except ValueError as error:
        raise ArtifactError(f"unknown way to store a section: {error}") from None
    if version == 1 and any(codec is SectionCodec.RANS for codec, _, _ in table):
        raise ArtifactError("unknown way to store a section: format 1 has no code streams for them")
    cuts = list(accumulate((stored for _, stored, _ in table), initial=start))
    if cuts[-1] + DIGEST != len(data):
        raise ArtifactError(
            f"the sections end at byte {cuts[-1] + DIGEST:,} of a file of {len(data):,} bytes"
        )
    sections = {
        name: Stored(codec, size, data[begin : begin + stored])
        for name, begin, (codec, stored, size) in zip(names, cuts, table, strict=False)
    }
    return Parts(version, sections)


def check(data: bytes) -> None:
    """Raise :class:`ArtifactError` unless ``data`` starts, ends and hashes like an artifact."""
    if len(data) > MOST_BYTES:
        raise ArtifactError(f"{len(data):,} bytes; an artifact has at most {MOST_BYTES:,}")
    if not data.startswith(MAGIC):
        raise ArtifactError(f"not an artifact: {_guess(data)}; make one with: segpt pack")
    if len(data) < PREFIX.size:
        raise ArtifactError("truncated: the file ends before its format number")
    if (version := PREFIX.unpack_from(data)[1]) not in SECTIONS:
        raise ArtifactError(
            f"format {version} is unknown; this version of segpt reads formats 1 to {FORMAT}: "
            "upgrade it with: pip install --upgrade segpt"
        )
    if len(data) < overhead(version) + DIGEST:
        raise ArtifactError(f"truncated: {len(data)} bytes do not hold the table of sections")
    if hashlib.sha256(data[:-DIGEST]).digest() != data[-DIGEST:]:
        raise ArtifactError("damaged: the contents do not match their SHA-256; copy it again")


def _guess(data: bytes) -> str:
    if not data:
        return "the file is empty"
    if data.startswith((b"PK\x03\x04", b"\x80")):
        return "this looks like a pickle or a torch checkpoint, which segpt never opens"
    if data[8:9] == b"{":
        return "this looks like a safetensors file"
    return f"it starts with {data[:6]!r}, not with {MAGIC!r}"
