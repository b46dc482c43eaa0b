"""What a server lets a request ask for, and what it answers to one that asks for more."""

from dataclasses import dataclass

from segpt.errors import SpecError


@dataclass(frozen=True)
class Limits:
    """Bounds of one server.

    Attributes:
        parallel: requests that the model works on in turn, a token each.
        waiting: requests that wait for one of these to end; more are turned away.
        tokens: most tokens of one answer.
        prompt: most tokens of one prompt; the context of the model if None.
        seconds: most seconds from the arrival of a request to the end of its answer.
        body: most bytes of a request.
    """

    parallel: int = 4
    waiting: int = 32
    tokens: int = 1024
    prompt: int | None = None
    seconds: float = 120.0
    body: int = 2**20

    def __post_init__(self) -> None:
        if min(self.parallel, self.tokens, self.body, self.prompt or 1) < 1 or self.waiting < 0:
            raise SpecError("limits of a server are at least 1, but for --waiting, which may be 0")
        if not 0 < self.seconds <= 86_400:
            raise SpecError("--seconds lies above 0 and is at most 86400")


class RequestError(Exception):
    """What a client hears instead of an answer.

    Attributes:
        status: of HTTP.
        message: for people.
        param: the field at fault, if one is.
        code: for programs.
        retry: seconds after which another try may succeed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.param, self.code, self.retry = param, code, retry

    def plain(self) -> dict[str, object]:
        """The error as OpenAI's interface has it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}
