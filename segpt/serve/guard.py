"""What stands before every request: whose it is, how large it is, and what a browser may do.

A page of another site can make a browser send requests to this machine, and can have its own name
point to it (DNS rebinding). So only known names pass as Host, no Origin but those, and a body is
JSON by its type, which no page may send elsewhere without permission; none is given.
"""

import asyncio
import contextlib
import ipaddress
import json
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .limits import RequestError

LOCAL = ("localhost", "127.0.0.1", "::1")
ARRIVAL = 30.0  # seconds in which a body has to be there

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


class Guard:
    """Lets requests through to ``app`` that name a known host, and adds headers to answers."""

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self.app, self.hosts = app, {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no web sockets: the server closes what nobody accepts

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        headers = scope["headers"]
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
        if len(hosts) != 1 or host_name(hosts[0]) not in self.hosts:
            await _refuse(receive, guarded, 421, "this server does not answer for that Host")
        elif any(origin != f"http://{hosts[0]}" for origin in origins):
            await _refuse(receive, guarded, 403, "requests of other sites are refused")
        else:
            await self.app(scope, receive, guarded)


def host_name(header: str) -> str:
    """The name or address in a Host header, without port and brackets; empty if it is none."""
    try:
        parts = urlsplit(f"//{header}")
        if parts.netloc != header or "@" in header or not parts.hostname:
            return ""
        _ = parts.port
    except ValueError:
        return ""
    return parts.hostname


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def read_body(request: Request, most: int) -> bytes:
    """The body of a request of JSON.

    Raises:
        RequestError: if it is of another type, too large or too slow.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError(415, "the body has to be of type application/json")
    length = request.headers.get("content-length", "0")
    too_large = RequestError(413, f"a request has at most {most:,} bytes", code="too_large")
    if not length.isdecimal() or len(length) > 12 or int(length) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(ARRIVAL):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise too_large
    except TimeoutError:
        raise RequestError(408, f"the body was not there after {ARRIVAL:g} seconds") from None
    return bytes(body)


async def _refuse(receive: Receive, send: Send, status: int, message: str) -> None:
    # A little is read first: a connection that closes on unread bytes can take the answer along.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1.0):
            for _ in range(16):
                if not (await receive()).get("more_body"):
                    break
    body = json.dumps(RequestError(status, message).plain()).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
