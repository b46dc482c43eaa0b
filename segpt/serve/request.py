"""What clients ask for, read from JSON: every field is known, in range, or refused by name."""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from segpt.config.sample import SampleSpec
from segpt.data.chat import ChatMessage, Role
from segpt.errors import SpecError

from .limits import Limits, RequestError

Kind = Literal["chat", "completion"]

MOST_STOPS, LONGEST_STOP, MOST_MESSAGES = 4, 200, 1_000
USUAL_TOKENS = 16  # of a completion that does not say

# Fields without effect, and those whose only accepted values are these.
IGNORED = {"user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier"}
FIXED: dict[str, tuple[object, ...]] = {
    "n": (1, None),
    "best_of": (1, None),
    "echo": (False, None),
    "suffix": ("", None),
    "logit_bias": ({}, None),
    "presence_penalty": (0, None),
    "frequency_penalty": (0, None),
    "tools": ([], None),
    "tool_choice": ("none", None),
    "functions": ([], None),
    "response_format": ({"type": "text"}, None),
    "modalities": (["text"], None),
}
COMMON = {
    *("model", "max_tokens", "temperature", "top_p", "seed", "stop", "stream", "stream_options"),
    *("logprobs", "top_k", "repetition_penalty", *IGNORED, *FIXED),
}
FIELDS = {
    "chat": COMMON | {"messages", "max_completion_tokens", "top_logprobs"},
    "completion": COMMON | {"prompt"},
}


@dataclass(frozen=True)
class AnswerRequest:
    """One request for text.

    Attributes:
        kind: of a conversation or of a bare text.
        messages: the conversation, the last message to be answered; empty if of a text.
        text: what to continue: characters, or token ids; empty if of a conversation.
        spec: how tokens are drawn.
        stops: texts that end the answer.
        top: how many likeliest tokens each one comes with; no probabilities if None.
        stream: whether pieces are sent as they come, and whether the usage follows them.
    """

    kind: Kind
    messages: tuple[ChatMessage, ...]
    text: str | tuple[int, ...]
    spec: SampleSpec
    stops: tuple[str, ...]
    top: int | None
    stream: bool
    include_usage: bool


def read_request(kind: Kind, body: bytes, model: str, limits: Limits) -> AnswerRequest:
    """A request, checked.

    Args:
        kind: which of the two interfaces it came to.
        body: JSON.
        model: the name of the model that is served.
        limits: what may be asked for.

    Raises:
        RequestError: naming the field at fault.
    """
    fields = Fields(_table(body))
    if unknown := sorted(set(fields.table) - FIELDS[kind]):
        raise RequestError(
            400, f"Unrecognized request argument supplied: {unknown[0]}", param=unknown[0]
        )
    for name, values in FIXED.items():
        if fields.table.get(name) not in values:
            raise RequestError(400, f"{name} is not supported by this server", param=name)
    asked = fields.text("model")
    if asked != model:
        raise RequestError(
            404, f"the model {asked[:200]!r} does not exist", param="model", code="model_not_found"
        )
    name = "max_completion_tokens" if "max_completion_tokens" in fields.table else "max_tokens"
    tokens = fields.integer(name, None, 1, limits.tokens)
    usual = limits.tokens if kind == "chat" else min(USUAL_TOKENS, limits.tokens)
    options = fields.flags("stream_options", ("include_usage", "include_obfuscation"))
    return AnswerRequest(
        kind=kind,
        messages=fields.messages() if kind == "chat" else (),
        text="" if kind == "chat" else fields.prompt(),
        spec=_spec(fields, tokens or usual),
        stops=fields.stops(),
        top=_top(kind, fields),
        stream=fields.flag("stream"),
        include_usage=options.get("include_usage", False),
    )


def _table(body: bytes) -> dict[str, object]:
    try:
        table = json.loads(body, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise RequestError(400, "the body of the request is not JSON") from None
    if not isinstance(table, dict):
        raise RequestError(400, "the body of the request is not a JSON object")
    return table


def _refuse(name: str) -> None:
    raise ValueError(name)


def _spec(fields: "Fields", tokens: int) -> SampleSpec:
    seed = fields.integer("seed", None, -(2**63), 2**63 - 1)
    try:
        return SampleSpec(
            tokens=tokens,
            temperature=fields.number("temperature", 1.0, 0.0, 2.0),
            top_p=fields.number("top_p", 1.0, 0.0, 1.0),
            top_k=fields.integer("top_k", 0, 0, 2**31) or 0,
            repetition_penalty=fields.number("repetition_penalty", 1.0, 1.0, 10.0),
            seed=secrets.randbits(63) if seed is None else seed % 2**64,
        )
    except SpecError as error:
        raise RequestError(400, str(error)) from None


def _top(kind: Kind, fields: "Fields") -> int | None:
    if kind == "completion":
        return fields.integer("logprobs", None, 0, 5)
    top = fields.integer("top_logprobs", None, 0, 20)
    if fields.flag("logprobs"):
        return top or 0
    if top:
        raise RequestError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    return None


class Fields:
    """The fields of a request by their types; null is as good as absent."""

    def __init__(self, table: dict[str, object]) -> None:
        self.table = table

    def text(self, name: str) -> str:
        """A text that has to be there."""
        value = self.table.get(name)
        if not isinstance(value, str):
            raise RequestError(400, f"{name} has to be a text", param=name)
        return _characters(value, name)

    def flag(self, name: str) -> bool:
        """True or false; false if absent."""
        value = self.table.get(name)
        if value is not None and not isinstance(value, bool):
            raise RequestError(400, f"{name} has to be true or false", param=name)
        return bool(value)

    def flags(self, name: str, known: Sequence[str]) -> dict[str, bool]:
        """A table of flags with known names."""
        value = self.table.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict) or not set(value) <= set(known):
            raise RequestError(400, f"{name} has to be an object of {known[0]}", param=name)
        inner = Fields(value)
        return {key: inner.flag(key) for key in value}

    def integer(self, name: str, usual: int | None, least: int, most: int) -> int | None:
        """A whole number in a range."""
        value = self.table.get(name)
        if value is None:
            return usual
        if isinstance(value, bool) or not isinstance(value, int):
            raise RequestError(400, f"{name} has to be a whole number", param=name)
        if not least <= value <= most:
            raise RequestError(
                400, f"{name} has to be from {least:,} to {most:,}", param=name, code="out_of_range"
            )
        return value

    def number(self, name: str, usual: float, least: float, most: float) -> float:
        """A number in a range."""
        value = self.table.get(name)
        if value is None:
            return usual
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RequestError(400, f"{name} has to be a number", param=name)
        if not least <= value <= most:
            raise RequestError(
                400, f"{name} has to be from {least:g} to {most:g}", param=name, code="out_of_range"
            )
        return float(value)

    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer: one, or a list."""
        value = self.table.get("stop")
        texts = [value] if isinstance(value, str) else [] if value is None else value
        if isinstance(texts, list) and len(texts) <= MOST_STOPS:
            stops = [x for x in texts if isinstance(x, str) and 0 < len(x) <= LONGEST_STOP]
            if len(stops) == len(texts):
                return tuple(stops)
        raise RequestError(
            400,
            f"stop has to be a text or at most {MOST_STOPS}, of 1 to {LONGEST_STOP} characters",
            param="stop",
        )

    def prompt(self) -> str | tuple[int, ...]:
        """What to continue: a text or token ids; a list of one of them counts as that."""
        value = self.table.get("prompt", "")
        if isinstance(value, list) and len(value) == 1 and not isinstance(value[0], int):
            value = value[0]
        if isinstance(value, str):
            return _characters(value, "prompt")
        if isinstance(value, list) and all(type(x) is int and x >= 0 for x in value):
            return tuple(value)
        raise RequestError(400, "prompt has to be one text, or one list of tokens", param="prompt")

    def messages(self) -> tuple[ChatMessage, ...]:
        """A conversation, not empty."""
        value = self.table.get("messages")
        if not isinstance(value, list) or not 0 < len(value) <= MOST_MESSAGES:
            raise RequestError(
                400, f"messages has to be a list of 1 to {MOST_MESSAGES:,}", param="messages"
            )
        return tuple(_message(item, f"messages[{i}]") for i, item in enumerate(value))


def _message(item: object, place: str) -> ChatMessage:
    if not isinstance(item, dict):
        raise RequestError(400, f"{place} has to be an object", param=place)
    roles: dict[object, Role] = {
        "system": "system",
        "developer": "system",
        "user": "user",
        "assistant": "assistant",
    }
    role = item.get("role")
    if not isinstance(role, str) or role not in roles:
        raise RequestError(
            400, f"{place}.role has to be system, user or assistant", param=f"{place}.role"
        )
    if unknown := sorted(set(item) - {"role", "content", "name", "refusal"}):
        raise RequestError(400, f"{place}.{unknown[0]} is not supported", param=place)
    return ChatMessage(roles[role], _content(item.get("content"), f"{place}.content"))


def _content(content: object, place: str) -> str:
    """A text, or the texts of parts, one after the other."""
    if isinstance(content, str):
        return _characters(content, place)
    if isinstance(content, list) and content:
        parts = [part if isinstance(part, dict) else {} for part in content]
        texts = [part.get("text") for part in parts if part.get("type") == "text"]
        if len(texts) == len(content) and all(isinstance(text, str) for text in texts):
            return _characters("".join(map(str, texts)), place)
    raise RequestError(400, f"{place} has to be a text, or parts of type text", param=place)


def _characters(text: str, place: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(400, f"{place} holds half a character", param=place) from None
    return text
