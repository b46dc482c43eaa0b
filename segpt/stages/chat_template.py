"""The chat template that belongs to a model: beside its weights, or named by the user."""

import json
from pathlib import Path
from typing import NamedTuple

from segpt.config.base import decode, nearest
from segpt.config.chat import PLAIN, TEMPLATES, MarkerTemplate
from segpt.data.chat import ChatMessage, ChatPrompt, ChatTemplate, JinjaTemplate, cut, prompt
from segpt.data.template_process import LARGEST_TEMPLATE
from segpt.data.tokenizer import Codec
from segpt.errors import DataError

from .json_files import read_json
from .run_directory import kind_of, newest_checkpoint

JINJA, MARKERS, TOKENS = "chat_template.jinja", "chat_template.json", "tokenizer_config.json"


class FittedPrompt(NamedTuple):
    """A prompt that the model can look back over, the messages in it, and the turns left out."""

    prompt: ChatPrompt
    messages: list[ChatMessage]
    dropped: int


class ModelTemplate(NamedTuple):
    """The template of a model, and whether it has one: ``plain`` stands for none."""

    template: ChatTemplate
    source: str

    @property
    def instructed(self) -> bool:
        """Whether anything says that the model learnt to converse."""
        return self.template != PLAIN


def find_template(model: Path, named: str | None = None) -> ModelTemplate:
    """The template that the user named, or the one beside a model; ``PLAIN`` if there is none.

    Beside a checkpoint or a quantized model it is ``chat_template.jinja`` or
    ``chat_template.json`` in its directory; beside an artifact ``x.segpt``, that name after
    ``x.segpt.``.

    Raises:
        DataError: if it is no template.
    """
    if named in TEMPLATES:
        return ModelTemplate(TEMPLATES[named], named)
    if named is not None:
        path = Path(named)
        if path.suffix not in (".jinja", ".json"):
            known = nearest(named, sorted(TEMPLATES))
            raise DataError(f"unknown chat template {named!r}; {known}, or a .jinja or .json file")
        return ModelTemplate(_read(path), str(path))
    for path in _places(model):
        if path.is_file():
            return ModelTemplate(_read(path), str(path))
    return ModelTemplate(PLAIN, "none")


def fit(
    template: ChatTemplate, messages: list[ChatMessage], codec: Codec, longest: int
) -> FittedPrompt:
    """The prompt of a conversation in at most ``longest`` tokens, without its oldest turns.

    Raises:
        DataError: if its last turn alone is longer, or the template refuses it.
    """
    dropped, rest = 0, messages
    while True:
        made = prompt(template, rest, codec)
        if len(made.ids) <= longest:
            return FittedPrompt(made, rest, dropped)
        shorter = cut(rest)
        if shorter is None:
            raise DataError(
                f"this message takes {len(made.ids):,} tokens, and there is room for {longest:,}; "
                "shorten it, or ask for a shorter answer"
            )
        dropped, rest = dropped + 1, shorter


def _places(model: Path) -> list[Path]:
    if model.is_file():
        return [model.with_name(f"{model.name}.{name}") for name in (JINJA, MARKERS)]
    directory = model
    if kind_of(model) not in ("quantized", "file", "foreign"):
        directory = newest_checkpoint(model)
    places = dict.fromkeys([directory, model])
    return [place / name for place in places for name in (JINJA, MARKERS)]


def _read(path: Path) -> ChatTemplate:
    if path.suffix == ".json":
        table = read_json(path, "chat template")
        return decode(MarkerTemplate, dict(table) | {"kind": "marker_template"}, f"{path}: $")
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_TEMPLATE + 1)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > LARGEST_TEMPLATE:
        raise DataError(f"{path} is too long to be a chat template")
    try:
        source = data.decode()
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8, so it is no chat template") from None
    return JinjaTemplate(source, _tokens(path.with_name(TOKENS)))


def _tokens(path: Path) -> dict[str, str]:
    """The special tokens that a tokenizer's configuration names, if it lies there."""
    try:
        if path.stat().st_size > 2**24:
            return {}
        table = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    tokens = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = table.get(name) if isinstance(table, dict) else None
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            tokens[name] = text
    return tokens
