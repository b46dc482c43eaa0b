"""``segpt runs``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from segpt.workspace import newest

from . import _options, _report

if TYPE_CHECKING:
    from segpt.workspace.inventory import InventoryRow


@click.command("runs")
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@_options.as_json
def command(directory: Path | None, as_json: bool) -> None:
    """List the texts, runs, checkpoints, quantized models and artifacts below DIRECTORY (`runs`).

    Of each it says on which text and with which recipe it was made, the bits per byte (BPB) that
    were measured and of what, its size in bytes, and its state: finished, interrupted (go on with
    --resume), running (another process writes to it now), or damaged.
    """
    from segpt.errors import SegptError
    from segpt.stages.tables import aligned
    from segpt.workspace import inventory

    below = directory or newest.RUNS
    if directory is not None and not directory.is_dir():
        raise SegptError(f"{directory} is no directory; name one that segpt writes to")
    rows = inventory.rows(below)
    _report.emit({"directory": str(below), "rows": rows}, as_json, [])
    if as_json:
        return
    if not rows:
        _report.emit(
            {}, False, [f"nothing is in {below} yet; `segpt data prepare` or `segpt train`"]
        )
        return
    cells = [["what", *_COLUMNS[1:]], *([_cell(row, name) for name in _COLUMNS] for row in rows)]
    _report.emit({}, False, aligned(cells, right=(_COLUMNS.index("bytes"),)))


_COLUMNS = ("kind", "path", "text", "recipe", "bpb", "bytes", "state")


def _cell(row: "InventoryRow", name: str) -> str:
    value = getattr(row, name)
    if value is None:
        return ""
    if name == "bpb":
        return f"{value:.4f} ({row.bpb_of})"
    return f"{value:,}" if name == "bytes" else str(value)
