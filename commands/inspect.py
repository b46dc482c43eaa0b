"""``segpt inspect``."""

from pathlib import Path
from typing import Any

import click

from . import _annotate, _options, _report


@click.command("inspect")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@_options.budget("Exit 1 if a file is larger.")
@_options.as_json
def command(files: tuple[Path, ...], budget: int | None, as_json: bool) -> None:
    """Account for every byte of artifacts; with --budget, check their size.

    With --budget there is one line for each file, and where CI is set an annotation of GitHub for
    each that is too large or broken. The exit code is 2 if a file is missing or broken, else 1 if
    one is over budget. With several files --json prints a list under "files".
    """
    from segpt.errors import ArtifactError

    rows: list[dict[str, Any]] = []
    for path in files:
        try:
            rows.append(_account(path, budget, brief=budget is not None and not as_json))
        except ArtifactError as error:
            if len(files) == 1:
                _annotate.error(path, str(error))
                raise
            rows.append({"file": _annotate.one_line(str(path)), "error": str(error)})
    if as_json:
        _report.emit(rows[0] if len(rows) == 1 else {"files": rows}, True, [])
    for path, row in zip(files, rows, strict=True):
        if "error" in row:
            _report.notice(f"segpt: {_annotate.one_line(row['error'])}")
            _annotate.error(path, row["error"])
            continue
        size = _size(row)
        if row["over"]:
            _annotate.error(path, size)
        if budget is not None and not as_json:
            click.echo(f"{row['file']}: {size}")
        elif not as_json:
            _show(row)
    if any("error" in row for row in rows):
        raise SystemExit(2)
    if any(row["over"] for row in rows):
        raise SystemExit(1)


def _account(path: Path, budget: int | None, *, brief: bool) -> dict[str, Any]:
    """What is in a file; ``brief`` leaves out what takes long and only tables show."""
    from segpt.artifact import container, frame
    from segpt.config.base import fingerprint
    from segpt.config.layout import parameters
    from segpt.errors import ArtifactError

    artifact = container.load(path)
    try:
        model = container.unpack(artifact)
        usage = () if brief else container.usage(artifact, model)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None
    return {
        "file": _annotate.one_line(str(path)),
        "bytes": artifact.size,
        "format": frame.split(artifact.data).format,
        "sections": {s.name: s.bytes for s in container.sections(artifact)},
        "roles": {
            u.role.value: {
                "parameters": u.parameters,
                "bytes": u.bytes,
                "bits_per_weight": u.bits_per_weight,
            }
            for u in usage
        },
        "parameters": parameters(model.spec),
        "digest": artifact.digest,
        "spec": fingerprint(model.spec),
        "model": model.fingerprint,
        "origin": dict(model.origin),
        "budget": budget,
        "over": 0 if budget is None else max(0, artifact.size - budget),
    }


def _size(row: dict[str, Any]) -> str:
    size, budget = row["bytes"], row["budget"] or 0
    state = f"{row['over']:,} bytes OVER" if row["over"] else f"{budget - size:,} bytes below"
    return f"{size:,} bytes, {state} the budget of {budget:,}"


def _show(row: dict[str, Any]) -> None:
    sections, roles = row["sections"], row["roles"]
    size = sum(sections.values())
    parts = [[name, f"{n:,}", f"{100 * n / size:.2f} %", ""] for name, n in sections.items()]
    parts.append(["total", f"{size:,}", "100.00 %", f"sha256 {row['digest']}"])
    _report.table(str(row["file"]), ["section", "bytes", "share", ""], parts)
    weights = [
        [role, f"{r['parameters']:,}", f"{r['bits_per_weight']:.3f}", ""]
        for role, r in roles.items()
    ]
    _report.table("weights", ["role", "parameters", "bits per weight", ""], weights)
