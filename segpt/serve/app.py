"""The server: routes of OpenAI's interface, and the page."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Collection
from importlib import resources

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from segpt.data.chat import ChatPrompt, prompt
from segpt.errors import DataError
from segpt.stages.answer import Answer, positions
from segpt.stages.chat_template import ModelTemplate
from segpt.stages.open_model import OpenedModel

from .engine import AnswerJob, Engine, Progress
from .guard import LOCAL, Guard, read_body
from .limits import RequestError
from .request import AnswerRequest, Kind, read_request
from .response import ResponseObjects

PAGE = {
    "/": ("chat.html", "text/html; charset=utf-8"),
    "/chat.css": ("chat.css", "text/css; charset=utf-8"),
    "/chat.js": ("chat.js", "text/javascript; charset=utf-8"),
}


class Server:
    """One model behind the routes."""

    def __init__(
        self, opened: OpenedModel, template: ModelTemplate, name: str, engine: Engine
    ) -> None:
        self.opened, self.template, self.name, self.engine = opened, template, name, engine
        self.limits = engine.limits
        self.created = int(time.time())
        self.longest = int(min(self.limits.prompt or opened.spec.context, positions(opened.spec)))

    async def models(self, request: Request) -> Response:
        """The one model, by its name."""
        model = {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "segpt",
            "instructed": self.template.instructed,
        }
        asked = request.path_params.get("model")
        if asked is None:
            return JSONResponse({"object": "list", "data": [model]})
        if asked != self.name:
            raise RequestError(404, "there is no such model", code="model_not_found")
        return JSONResponse(model)

    async def chat(self, request: Request) -> Response:
        """An answer to a conversation."""
        return await self._answer("chat", request)

    async def complete(self, request: Request) -> Response:
        """What comes after a text."""
        return await self._answer("completion", request)

    async def _answer(self, kind: Kind, request: Request) -> Response:
        arrived = time.monotonic()
        self.engine.check_room()
        body = await read_body(request, self.limits.body)
        asked = read_request(kind, body, self.name, self.limits)
        try:
            written = await run_in_threadpool(self._prompt, asked)
        except DataError as error:
            raise RequestError(400, str(error), code="invalid_prompt") from None
        self._check_length(asked, len(written.ids))
        answer = Answer(
            self.opened,
            written._replace(stops=(*written.stops, *asked.stops)),
            asked.spec,
            asked.top,
            arrived + self.limits.seconds,
        )
        work = _Work(self.engine, answer)
        objects = ResponseObjects(kind, self.name, len(written.ids))
        if asked.stream:
            return _Stream(_events(work, objects, asked), work)
        return await _whole(work, objects, asked, request)

    def _prompt(self, asked: AnswerRequest) -> ChatPrompt:
        codec = self.opened.codec
        if asked.kind == "chat":
            made = prompt(self.template.template, asked.messages, codec)
        elif isinstance(asked.text, str):
            ids = [codec.start, *codec.encode(asked.text.encode()).tolist()]
            made = ChatPrompt(tuple(ids), frozenset([codec.start]), ())
        else:
            if max(asked.text, default=0) >= codec.vocab:
                raise DataError(f"a token of the prompt is not below {codec.vocab:,}")
            begun = asked.text[:1] == (codec.start,)
            made = ChatPrompt(
                asked.text if begun else (codec.start, *asked.text), frozenset([codec.start]), ()
            )
        if not made.ids:
            raise DataError("the chat template writes nothing for this conversation")
        return made

    def _check_length(self, asked: AnswerRequest, length: int) -> None:
        if length > self.longest:
            raise RequestError(
                400,
                f"this takes {length:,} tokens, and a prompt has at most {self.longest:,}",
                param="messages" if asked.kind == "chat" else "prompt",
                code="context_length_exceeded",
            )


class _Work:
    """A job of the engine, as the loop of the server sees it."""

    def __init__(self, engine: Engine, answer: Answer) -> None:
        self.engine = engine
        self.progress: asyncio.Queue[Progress] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def notify(progress: Progress) -> None:
            loop.call_soon_threadsafe(self.progress.put_nowait, progress)

        self.job = AnswerJob(answer, notify)
        engine.submit(self.job)

    async def next(self) -> Progress:
        """What came next.

        Raises:
            RequestError: if there is no answer.
        """
        progress = await self.progress.get()
        if progress.error == "waited":
            raise RequestError(
                503, "the request waited too long for its turn", code="overloaded", retry=5
            )
        if progress.error is not None:
            raise RequestError(500, progress.error)
        return progress

    def cancel(self) -> None:
        self.engine.cancel(self.job)


class _Stream(StreamingResponse):
    """Pieces as they come; whatever ends the response ends the work."""

    def __init__(self, events: AsyncIterator[str], work: _Work) -> None:
        super().__init__(events, media_type="text/event-stream")
        self.work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the pieces."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.work.cancel()


async def _events(
    work: _Work, objects: ResponseObjects, asked: AnswerRequest
) -> AsyncIterator[str]:
    try:
        if (begin := objects.begin()) is not None:
            yield _event(begin)
        finish, tokens = None, 0
        while finish is None:
            came = await work.next()
            finish, tokens = came.finish, came.tokens
            spelled = None if asked.top is None else came.spelled
            yield _event(objects.piece(came.text, spelled, finish))
        if asked.include_usage:
            yield _event(objects.last(tokens))
    except RequestError as error:
        yield _event(error.plain())
    yield "data: [DONE]\n\n"


def _event(value: dict[str, object]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


async def _whole(
    work: _Work, objects: ResponseObjects, asked: AnswerRequest, request: Request
) -> Response:
    """The answer when it is complete; a client who goes ends the work."""
    collecting = asyncio.ensure_future(_collect(work))
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not collecting.done():
            raise ClientDisconnect
        text, parts = collecting.result()
        last = parts[-1]
        assert last.finish is not None
        spelled = None if asked.top is None else [s for part in parts for s in part.spelled]
        return JSONResponse(objects.whole(text, spelled, last.finish, last.tokens))
    finally:
        work.cancel()
        for task in (collecting, leaving):
            task.cancel()
        await asyncio.gather(collecting, leaving, return_exceptions=True)


async def _collect(work: _Work) -> tuple[str, list[Progress]]:
    parts = [await work.next()]
    while parts[-1].finish is None:
        parts.append(await work.next())
    return "".join(part.text for part in parts), parts


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def make_app(
    opened: OpenedModel,
    template: ModelTemplate,
    name: str,
    engine: Engine,
    hosts: Collection[str] = LOCAL,
) -> ASGIApp:
    """The server as an ASGI application, which starts and ends the engine.

    Args:
        opened: the model.
        template: how a conversation is written for it.
        name: what clients call the model.
        engine: works on the requests; not started yet.
        hosts: the names under which the server is known to its clients.
    """
    opened.model.eval()  # loaded before the first request
    server = Server(opened, template, name, engine)

    @contextlib.asynccontextmanager
    async def running(_: Starlette) -> AsyncIterator[None]:
        engine.start()
        try:
            yield
        finally:
            await run_in_threadpool(engine.close)

    routes = [
        Route("/v1/models", server.models, methods=["GET"]),
        Route("/v1/models/{model:path}", server.models, methods=["GET"]),
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
        Route("/v1/completions", server.complete, methods=["POST"]),
        Route("/health", _health, methods=["GET"]),
        *(Route(path, _page, methods=["GET"]) for path in PAGE),
    ]
    handlers = {RequestError: _refused, HTTPException: _no_route, ClientDisconnect: _left}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=running)
    return Guard(app, hosts)


async def _health(_: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _page(request: Request) -> Response:
    name, kind = PAGE[request.url.path]
    text = (resources.files("segpt.serve") / "page" / name).read_text("utf-8")
    return Response(text, headers={"content-type": kind})


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = {} if error.retry is None else {"retry-after": str(error.retry)}
    return JSONResponse(error.plain(), error.status, headers)


async def _no_route(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = RequestError(error.status_code, error.detail.lower())
    return JSONResponse(message.plain(), error.status_code, dict(error.headers or {}))


async def _left(_: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it
