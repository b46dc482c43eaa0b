"""``segpt doctor``."""

import json
from typing import Any

import click

from segpt.workspace import newest

from . import _options

_COLOURS: dict[str, dict[str, Any]] = {
    "good": {"fg": "green"},
    "optional": {"dim": True},
    "advice": {"fg": "yellow"},
    "broken": {"fg": "red", "bold": True},
}


@click.command("doctor")
@click.option("--deep", is_flag=True, help="Also compile a model, and import what is optional.")
@_options.as_json
def command(deep: bool, as_json: bool) -> None:
    """What of this machine works, and what to do about the rest.

    Checks packages, device, kernels, a step of training, compilers, threads, memory, disk and
    the right to write. Exits with 1 if something is broken that training on a CPU needs.
    """
    from segpt.doctor import doctor

    findings = []
    for finding in doctor.examine(newest.RUNS, deep=deep):
        findings.append(finding)
        if not as_json:
            _show(finding)
    whole = doctor.healthy(findings)
    if as_json:  # without _report, as this is to work where its packages do not
        click.echo(json.dumps(doctor.plain(findings), ensure_ascii=False))
    else:
        click.echo("segpt works here." if whole else "segpt does not work here yet: see above.")
    if not whole:
        raise SystemExit(1)


def _show(finding: Any) -> None:
    state = click.style(f"{finding.state:9}", **_COLOURS[finding.state])
    click.echo(f"{state} {finding.name:22} {finding.found}")
    if finding.advice is not None:
        click.echo(f"{'':9} {'':22} -> {finding.advice}")
