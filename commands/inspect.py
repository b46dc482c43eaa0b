"""``segpt inspect``."""

from pathlib import Path
from typing import Any

import click

from . import _options, _report


@click.command("inspect")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@_options.budget("Exit 1 if a file is larger.")
@_options.as_json
def command(files: tuple[Path, ...], budget: int | None, as_json: bool) -> None:
    """Account for every byte of artifacts; with --budget, check their size.

    With several files --json prints a list under "files".
    """
    from segpt.artifact import container
    from segpt.spec.layout import parameters

    found: list[dict[str, Any]] = []
    for path in files:
        artifact = container.load(path)
        model = container.unpack(artifact)
        found.append(
            {
                "file": str(path),
                "bytes": artifact.size,
                "sections": {s.name: s.bytes for s in container.sections(artifact)},
                "roles": {
                    u.role.value: {
                        "parameters": u.parameters,
                        "bytes": u.bytes,
                        "bits_per_weight": u.bits_per_weight,
                    }
                    for u in container.usage(artifact)
                },
                "parameters": parameters(model.spec),
                "digest": artifact.digest,
                "origin": dict(model.origin),
                "budget": budget,
                "over": 0 if budget is None else max(0, artifact.size - budget),
            }
        )
    if as_json:
        _report.emit(found[0] if len(found) == 1 else {"files": found}, True, [])
    elif budget is not None:
        for row in found:
            room = budget - row["bytes"]
            state = f"{-room:,} bytes OVER" if room < 0 else f"{room:,} bytes below"
            click.echo(f"{row['file']}: {row['bytes']:,} bytes, {state} the budget of {budget:,}")
    else:
        for row in found:
            _show(row)
    if any(row["over"] for row in found):
        raise SystemExit(1)


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
