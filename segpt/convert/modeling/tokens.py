"""Tokenizers of our own as the ``tokenizer.json`` that the tokenizers library reads."""

from segpt.config.base import readable
from segpt.data import merges
from segpt.data.bpe import export
from segpt.data.modelproto import SPACE
from segpt.data.tokenizer import BYTES
from segpt.data.tokenizer_facts import as_bpe
from segpt.values import Tokenizer

START = "<s>"


def folder(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The files of a Hugging Face folder by their names; a text begins with the start token.

    Those of our own give the ids of segpt for any text of UTF-8: a space is written as itself,
    so that the sign for a space in a text is none.

    Raises:
        DataError: if the tokenizers library cannot express the tokenizer.
    """
    match tokenizer.kind:
        case "bytes":
            table, start = _bytes(), BYTES.vocab - 1
        case "merges":
            table, start = _merges(tokenizer), 1
        case _:
            return export.folder(as_bpe(tokenizer), opens=True)
    table |= {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special(start)],
        "post_processor": _begins_with(start),
    }
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": START,
        "eos_token": START,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # what a text spells as <s> is text
    }
    return {"tokenizer.json": readable(table), "tokenizer_config.json": readable(about)}


def _special(start: int) -> dict[str, object]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": start, "content": START, "special": True, **flags}


def _begins_with(start: int) -> dict[str, object]:
    """What puts the start token before a text."""
    first = {"SpecialToken": {"id": START, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, second],
        "special_tokens": {START: {"id": START, "ids": [start], "tokens": [START]}},
    }


def _model(vocab: dict[str, int], pairs: list[list[str]], *, fallback: bool) -> dict[str, object]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": fallback,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": pairs,
    }


def _bytes() -> dict[str, object]:
    """Every byte a token, written as the library writes bytes."""
    vocab = {_letter(byte): byte for byte in range(256)} | {START: 256}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    return {
        "normalizer": None,
        "pre_tokenizer": level | {"use_regex": False},
        "decoder": level | {"use_regex": False},
        "model": _model(vocab, [], fallback=False),
    }


def _letter(byte: int) -> str:
    """The character that stands for a byte: itself if it prints, else one from U+0100 on."""
    prints = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    if byte in prints:
        return chr(byte)
    return chr(256 + [b for b in range(256) if b not in prints].index(byte))


def _merges(tokenizer: Tokenizer) -> dict[str, object]:
    """Pieces with spaces as they are, so that the sign for a space in a text is no space."""
    model = merges.unpack(tokenizer.payload, tokenizer.vocab)
    texts = [piece.text for piece in model.pieces]
    texts = [
        *texts[: merges.FIRST_MERGE],
        *(t.replace(SPACE, " ") for t in texts[merges.FIRST_MERGE :]),
    ]
    vocab = {text: number for number, text in enumerate(texts)}
    pairs = []
    for text in texts[merges.FIRST_MERGE :]:
        halves = [(text[:i], text[i:]) for i in range(1, len(text))]
        known = [(vocab[a], vocab[b]) for a, b in halves if a in vocab and b in vocab]
        pairs += [[texts[a], texts[b]] for a, b in sorted(known)]
    split = {"Regex": "(?<! ) "}
    return {
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": split,
            "behavior": "MergedWithNext",
            "invert": False,
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}],
        },
        "model": _model(vocab, pairs, fallback=True),
    }
