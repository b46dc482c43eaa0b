"""The server of ``segpt serve``: its socket, its names, and its end."""

import importlib.util
import socket
from typing import TYPE_CHECKING, NamedTuple

from segpt.config.precision import Precision
from segpt.errors import SegptError
from segpt.stages.chat_template import ModelTemplate
from segpt.stages.open_model import OpenedModel

from . import _report

if TYPE_CHECKING:
    from segpt.serve.limits import Limits

NEEDED = ("starlette", "uvicorn")
CONNECTIONS = 1024  # at a time, those that send nothing among them
ENDING = 5  # seconds that answers have to end when the server is stopped


class Place(NamedTuple):
    """Where a server listens, and the names under which clients know it."""

    host: str
    port: int
    names: tuple[str, ...]


def check_packages() -> None:
    """Refuse to begin without the packages of the extra ``serve``.

    Raises:
        SegptError: if one is missing.
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise SegptError(f"serving needs {missing[0]}: pip install 'segpt[serve]'")


def run(
    opened: OpenedModel,
    template: ModelTemplate,
    name: str,
    limits: "Limits",
    place: Place,
    precision: Precision,
) -> None:
    """Serve until a signal comes.

    Raises:
        SegptError: if the address cannot be listened on.
    """
    import uvicorn

    from segpt.serve.app import make_app
    from segpt.serve.engine import Engine
    from segpt.serve.guard import LOCAL, is_loopback

    listening = _listen(place)
    with listening:
        hosts = {*LOCAL, *place.names} | ({place.host} - {"0.0.0.0", "::"})
        app = make_app(opened, template, name, Engine(limits, opened.device, precision), hosts)
        port = listening.getsockname()[1]
        shown = f"[{place.host}]" if ":" in place.host else place.host
        if not is_loopback(place.host):
            _report.notice(f"anyone who reaches {place.host} can use this model; no key is asked")
        if not template.instructed:
            _report.notice("the model has no chat template: a conversation is continued as text")
        _report.notice(f"serving {name} at http://{shown}:{port}/ (Ctrl-C ends it)")
        config = uvicorn.Config(
            app,
            access_log=False,
            log_level="warning",
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=ENDING,
            ws="none",
            lifespan="on",
        )
        uvicorn.Server(config).run(sockets=[listening])


def _listen(place: Place) -> socket.socket:
    listening: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            place.host, place.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        if listening is not None:
            listening.close()
        raise SegptError(
            f"cannot listen on {place.host} port {place.port}: {error.strerror or error}; choose "
            "another one with --port, or 0 for any"
        ) from None
    return listening
