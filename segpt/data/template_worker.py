"""Renders chat templates in a process of its own: ``python -m segpt.data.template_worker``.

A template is a program that came with somebody's model. Here it has no files, no network and no
attributes of Python's (jinja2's immutable sandbox), little memory, and whoever asked ends the
process when it takes too long. A line of JSON comes in and a line goes out.
"""

import datetime as dt
import json
import sys
from collections.abc import Iterator
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

LARGEST = 2**20  # characters of what a template writes
MEMORY = 2**29  # bytes that the process may address


class Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks what an assistant wrote; it changes nothing that is written."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The nodes between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> ImmutableSandboxedEnvironment:
    """What templates of ``transformers`` expect to run in."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = _strftime_now
    return made


def render(source: str, variables: dict[str, object]) -> str:
    """What a template writes.

    Raises:
        ValueError: if it writes too much.
        jinja2.TemplateError: as the template says, or if it is none.
    """
    parts: list[str] = []
    length = 0
    pieces: Iterator[str] = environment().from_string(source).generate(variables)
    for piece in pieces:
        length += len(piece)
        if length > LARGEST:
            raise ValueError(f"it writes more than {LARGEST:,} characters")
        parts.append(piece)
    return "".join(parts)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; jinja2's own filter escapes what HTML would read."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return dt.datetime.now().strftime(pattern)


def _answer(line: str) -> dict[str, str]:
    request = json.loads(line)
    try:
        return {"text": render(request["source"], request["variables"])}
    except MemoryError:
        return {"error": "it takes too much memory"}
    except RecursionError:
        return {"error": "it calls itself too often"}
    except Exception as error:  # noqa: BLE001 - a template raises what it likes
        return {"error": f"{error}"[:1000] or type(error).__name__}


def main() -> None:
    """Answer lines until there are no more."""
    try:
        import resource
    except ImportError:  # not on Windows
        pass
    else:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        try:
            reply = json.dumps(_answer(line))
        except MemoryError:
            reply = '{"error": "it takes too much memory"}'
        sys.stdout.write(reply + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
