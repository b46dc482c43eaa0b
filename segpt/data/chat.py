"""Conversations as tokens: each message between the markers of its role, as a template says.

What users write never becomes a special token, whatever it looks like: markers come from the
template alone.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from segpt.config.chat import MarkerTemplate, RoleMarkers
from segpt.errors import DataError

from .template_process import PROCESS
from .tokenizer import Codec

Role = Literal["system", "user", "assistant"]
ROLES: Final = ("system", "user", "assistant")

# Names of the token that ends what a model says, where nothing else says which it is.
ENDS: Final = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>", "<eos>")

_PRIVATE = range(0xE000, 0xF900)  # characters without a meaning


class ChatMessage(NamedTuple):
    """What one side of a conversation said."""

    role: Role
    content: str


class ChatSegment(NamedTuple):
    """A part of a conversation as it is written; special tokens stand in markers only."""

    text: str
    marker: bool


@dataclass(frozen=True)
class JinjaTemplate:
    """The template of an imported model; it runs in a sandbox in a process of its own.

    ``tokens`` are variables such as ``bos_token`` that a template may use.
    """

    source: str
    tokens: Mapping[str, str] = field(default_factory=dict)


ChatTemplate = MarkerTemplate | JinjaTemplate


class ChatPrompt(NamedTuple):
    """What a model is given so that it answers, and what ends its answer.

    Attributes:
        ids: tokens, the one that begins a document among them where the template writes it.
        end_ids: tokens that end the answer.
        stops: texts that end it.
    """

    ids: tuple[int, ...]
    end_ids: frozenset[int]
    stops: tuple[str, ...]


def special_tokens(codec: Codec) -> Mapping[str, int]:
    """The special tokens of a tokenizer by the text that templates write for them."""
    tokens = getattr(codec, "special_tokens", None)
    if isinstance(tokens, Mapping):
        return dict(tokens)
    model = getattr(codec, "model", None)  # of a byte-pair encoding that was imported
    pieces = getattr(model, "pieces", ())
    return {pieces[i].decode("utf-8", "replace"): i for i in getattr(model, "control", ())}


def render(
    template: ChatTemplate,
    messages: Sequence[ChatMessage],
    special: Iterable[str] = (),
    *,
    answer: bool = True,
) -> list[ChatSegment]:
    """A conversation as it is written for a model.

    Args:
        template: how.
        messages: what was said, the first first.
        special: the texts of special tokens, which contents do not become.
        answer: whether what begins the assistant's next message follows.

    Raises:
        DataError: if the template refuses the conversation.
    """
    if isinstance(template, JinjaTemplate):
        return _of_jinja(template, messages, tuple(special), answer)
    return list(_of_markers(template, messages, answer))


def prompt(template: ChatTemplate, messages: Sequence[ChatMessage], codec: Codec) -> ChatPrompt:
    """The tokens after which a model answers the last message.

    Raises:
        DataError: if the template refuses the conversation, or the tokenizer cannot spell it.
    """
    special = special_tokens(codec)
    tokens = _defaults(codec) if isinstance(template, JinjaTemplate) else {}
    if isinstance(template, JinjaTemplate):
        template = JinjaTemplate(template.source, tokens | dict(template.tokens))
    ids = encode(render(template, messages, special), codec)
    # A template that writes special tokens writes the start itself, if the model wants it.
    if isinstance(template, MarkerTemplate) or codec.start not in special.values():
        ids = [codec.start, *ids]
    stops = _stops(template, special)
    return ChatPrompt(
        ids=tuple(ids),
        end_ids=frozenset([codec.start, *(special[stop] for stop in stops if stop in special)]),
        stops=tuple(stop for stop in stops if stop not in special),
    )


def encode(segments: Iterable[ChatSegment], codec: Codec) -> list[int]:
    """The tokens of a conversation: special tokens in markers, and the text between them.

    Raises:
        DataError: if the tokenizer cannot spell the text.
    """
    special = special_tokens(codec)
    ids: list[int] = []
    text = ""
    for segment in segments:
        parts = _split(segment.text, special) if segment.marker else [segment.text]
        for i, part in enumerate(parts):
            if i % 2:
                ids += [*_encoded(codec, text), special[part]]
                text = ""
            else:
                text += part
    return ids + _encoded(codec, text)


def cut(messages: Sequence[ChatMessage]) -> list[ChatMessage] | None:
    """A conversation without its oldest turn; None if there is only one.

    A turn is a message of the user with what was answered. What the system said stays.
    """
    system = [message for message in messages if message.role == "system"]
    said = [message for message in messages if message.role != "system"]
    later = [i for i, message in enumerate(said) if message.role == "user" and i]
    return [*system, *said[later[0] :]] if later else None


def _of_markers(
    template: MarkerTemplate, messages: Sequence[ChatMessage], answer: bool
) -> Iterable[ChatSegment]:
    markers: dict[str, RoleMarkers | None] = {
        "system": template.system,
        "user": template.user,
        "assistant": template.assistant,
    }
    waiting = ""  # what the system said, where it has no markers
    for role, content in messages:
        around = markers[role]
        if around is None:
            waiting += f"{content}\n\n"
            continue
        if role == "user":
            content, waiting = waiting + content, ""
        yield ChatSegment(around.before, True)
        yield ChatSegment(content, False)
        yield ChatSegment(around.after, True)
    if waiting:
        yield from _of_markers(template, [ChatMessage("user", waiting.rstrip("\n"))], False)
    if answer:
        yield ChatSegment(template.assistant.before, True)


def _of_jinja(
    template: JinjaTemplate, messages: Sequence[ChatMessage], special: Sequence[str], answer: bool
) -> list[ChatSegment]:
    """Special tokens in contents are wrapped in private characters, and so told from markers."""
    contents = "".join(message.content for message in messages)
    spare = (chr(c) for c in _PRIVATE if chr(c) not in contents and chr(c) not in template.source)
    left, right = next(spare, ""), next(spare, "")
    if not right:
        raise DataError("a conversation that uses every private character cannot be marked")
    pattern = _any_of(special)
    plain = [
        {"role": m.role, "content": pattern.sub(lambda x: left + x[0] + right, m.content)}
        for m in messages
    ]
    variables = dict(template.tokens) | {
        "messages": plain,
        "tools": None,
        "documents": None,
        "add_generation_prompt": answer,
    }
    text = PROCESS.render(template.source, variables)
    marked = re.compile(f"{left}({pattern.pattern}){right}|[{left}{right}]")
    segments: list[ChatSegment] = []
    for i, part in enumerate(marked.split(text)):
        # A lone mark, from which the template took its token, parts what was never one token.
        segments.append(ChatSegment(part or "", i % 2 == 0))
    return [segment for segment in segments if segment.text or not segment.marker]


def _stops(template: ChatTemplate, special: Mapping[str, int]) -> list[str]:
    """What ends an answer: as the template says, or as it goes on after an assistant's message."""
    if isinstance(template, MarkerTemplate):
        return list(template.stop)
    stops = [end] if (end := template.tokens.get("eos_token")) else []
    word = "segptanswer"
    said = [ChatMessage("user", "a"), ChatMessage("assistant", word)]
    try:
        written = "".join(s.text for s in render(template, said, special, answer=False))
    except DataError:  # it wants more of a conversation than this
        return stops
    after = written.rpartition(word)[2]
    first = _any_of(special).search(after)
    end = first[0] if first and special else after.strip()
    return [*dict.fromkeys([*([end] if end else []), *stops])]


def _defaults(codec: Codec) -> dict[str, str]:
    """The names of the tokens that begin and end, as far as the tokenizer tells."""
    special = special_tokens(codec)
    names = {token: name for name, token in special.items()}
    begin = names.get(codec.start, "")
    end = next((name for name in ENDS if name in special), begin)
    return {"bos_token": begin, "eos_token": end, "pad_token": end, "unk_token": ""}


def _any_of(special: Iterable[str]) -> re.Pattern[str]:
    """What finds a special token; the longest, where several begin at one place."""
    longest = sorted(filter(None, special), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)) or "(?!)")


def _split(text: str, special: Iterable[str]) -> list[str]:
    """Text, special token, text and so on."""
    return re.split(f"({_any_of(special).pattern})", text)


def _encoded(codec: Codec, text: str) -> list[int]:
    if not text:
        return []
    ids: list[int] = codec.encode(text.encode("utf-8", "surrogatepass")).tolist()
    return ids
