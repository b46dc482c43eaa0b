"""``segpt decompress``."""

import time
from pathlib import Path

import click

from segpt.errors import MessageError

from . import _coding, _options, _report


@click.command("decompress")
@_coding.file
@_coding.artifact
@_options.out(f"The file to write.  [default: FILE without {_coding.SUFFIX}]")
@_coding.force
@_options.as_json
def command(
    file: Path, artifact: Path | None, out: Path | None, force: bool, as_json: bool
) -> None:
    """Give back what `segpt compress` made FILE from, or nothing.

    This takes the artifact that compressed it. The result is written only if its SHA-256 is that
    of the original.
    """
    from segpt.atomic import write_file

    if out is None and file.suffix != _coding.SUFFIX:
        raise MessageError(f"{file} does not end in {_coding.SUFFIX}; name a file with --out")
    data = _coding.read(file)
    place = _coding.vacant(out or file.with_suffix(""), force)
    value = _coding.open_artifact(artifact)

    from segpt.coding.compress import decompress

    begun = time.perf_counter()
    with _report.Bar(f"decompress {file.name}") as bar:

        def show(done: int, total: int) -> None:
            bar(done / total, f"{done:,} of {total:,} tokens")

        try:
            text = b"".join(decompress(value, data, report=show))
        except MessageError as error:
            raise MessageError(f"{file}: {error}") from error
    seconds = time.perf_counter() - begun
    write_file(place, text)
    bpb = 8 * len(data) / len(text) if text else None
    result = {
        "out": str(place),
        "bytes_in": len(data),
        "bytes_out": len(text),
        "bpb": bpb,
        "seconds": seconds,
        "artifact": value.digest,
    }
    lines = [
        f"{place}: {len(text):,} bytes from {len(data):,}"
        + ("" if bpb is None else f", {bpb:.4f} bits per byte"),
        f"the SHA-256 is that of the original; {seconds:.1f} s",
    ]
    _report.emit(result, as_json, lines)
