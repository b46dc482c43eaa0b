"""What clients are told, in the shapes of OpenAI's interface."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from segpt.stages.answer import Finish, SpelledToken

from .request import Kind


@dataclass
class ResponseObjects:
    """The answers to one request: its name, its time, and the objects around its text."""

    kind: Kind
    model: str
    prompt_tokens: int
    id: str = field(init=False)
    created: int = field(init=False)
    length: int = field(default=0, init=False)  # characters of the tokens told so far

    def __post_init__(self) -> None:
        chat = self.kind == "chat"
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}"
        self.created = int(time.time())

    def whole(
        self, text: str, spelled: Sequence[SpelledToken] | None, finish: Finish, tokens: int
    ) -> dict[str, object]:
        """The answer in one object."""
        choice: dict[str, object] = {"index": 0, "finish_reason": finish}
        choice["logprobs"] = self._probabilities(spelled)
        if self.kind == "chat":
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        name = "chat.completion" if self.kind == "chat" else "text_completion"
        return self._object(name, [choice]) | {"usage": self.usage(tokens)}

    def begin(self) -> dict[str, object] | None:
        """What comes before the first piece of a conversation's answer."""
        if self.kind != "chat":
            return None
        delta = {"role": "assistant", "content": ""}
        return self._piece({"index": 0, "delta": delta, "logprobs": None, "finish_reason": None})

    def piece(
        self, text: str, spelled: Sequence[SpelledToken] | None, finish: Finish | None
    ) -> dict[str, object]:
        """A piece of the answer, or its end."""
        choice: dict[str, object] = {"index": 0, "finish_reason": finish}
        choice["logprobs"] = self._probabilities(spelled)
        if self.kind == "chat":
            choice["delta"] = {"content": text} if text else {}
        else:
            choice["text"] = text
        return self._piece(choice)

    def last(self, tokens: int) -> dict[str, object]:
        """What follows the pieces where the usage was asked for."""
        return self._object(self._name, []) | {"usage": self.usage(tokens)}

    def usage(self, tokens: int) -> dict[str, int]:
        """How many tokens were read and made."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self.prompt_tokens + tokens,
        }

    @property
    def _name(self) -> str:
        return "chat.completion.chunk" if self.kind == "chat" else "text_completion"

    def _piece(self, choice: dict[str, object]) -> dict[str, object]:
        return self._object(self._name, [choice])

    def _object(self, name: str, choices: list[dict[str, object]]) -> dict[str, object]:
        head = {"id": self.id, "object": name, "created": self.created, "model": self.model}
        return head | {"choices": choices}

    def _probabilities(self, spelled: Sequence[SpelledToken] | None) -> dict[str, object] | None:
        if spelled is None:
            return None
        if self.kind == "chat":
            return {"content": [_token(token) for token in spelled], "refusal": None}
        texts = [_text(token.spelled) for token in spelled]
        offsets = []
        for text in texts:
            offsets.append(self.length)
            self.length += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in spelled],
            "top_logprobs": [{_text(b): p for b, p in token.likeliest} for token in spelled],
            "text_offset": offsets,
        }


def _token(token: SpelledToken) -> dict[str, object]:
    likeliest = [
        {"token": _text(spelled), "logprob": logprob, "bytes": list(spelled)}
        for spelled, logprob in token.likeliest
    ]
    return {
        "token": _text(token.spelled),
        "logprob": token.logprob,
        "bytes": list(token.spelled),
        "top_logprobs": likeliest,
    }


def _text(spelled: bytes) -> str:
    return spelled.decode("utf-8", "replace")
