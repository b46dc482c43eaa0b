"""`tokenizer.json` of the Hugging Face `tokenizers` library, read into a :class:`BpeModel`.

Each of its components has to be on a list: what is not known is refused by its name, because a
normalizer or an expression that is left out would give other ids without a word.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from segpt.config.base import nearest
from segpt.errors import DataError

from .model import (
    ABSENT,
    ALWAYS,
    LARGEST_VOCAB,
    MOST_MERGES,
    NO_PREFIX,
    SPACE,
    BpeModel,
    check,
    from_letters,
)
from .patterns import GPT2, SPACED, WHOLE, named

DECODERS: Final = frozenset({"ByteLevel", "Sequence", "Replace", "ByteFallback", "Fuse", "Strip"})
STARTS: Final = ("<s>", "<|begin_of_text|>", "<bos>", "<|endoftext|>", "<|end_of_text|>", "</s>")

Table = Mapping[str, Any]


def read(table: object, start: str | None = None, candidates: Sequence[str] = ()) -> BpeModel:
    """The model of a ``tokenizer.json``.

    Args:
        table: the parsed file.
        start: the text of the token that begins a document, or its id.
        candidates: texts to try where ``start`` is not given, after that of the post-processor.

    Raises:
        DataError: naming the component that is not known, or what else is wrong.
    """
    whole = _table(table, "tokenizer.json")
    part = _table(whole.get("model"), "model")
    _check_model(part)
    vocab = _vocab(part.get("vocab"))
    added = _added(whole.get("added_tokens"), vocab)
    _check_decoder(whole.get("decoder"))
    bos = _template(whole.get("post_processor"))
    names = vocab | {token.text: token.id for token in added}
    first = _start(start, [*bos, *candidates, *STARTS], names, added)
    steps = _flattened(whole.get("normalizer"), "normalizers")
    if _is_byte_level(whole.get("pre_tokenizer")):
        model = _byte_level(whole, part, vocab, added, first, steps)
    else:
        model = _fallback(whole, part, vocab, added, first, steps)
    check(model)
    return model


class AddedToken:
    """An entry of ``added_tokens``; ``plain`` if its text is encoded as it wherever it stands."""

    def __init__(self, table: Table) -> None:
        text, i = table.get("content"), table.get("id")
        if not isinstance(text, str) or not text or type(i) is not int:
            raise DataError("an added token has no content or no id")
        if not 0 <= i < LARGEST_VOCAB:
            raise DataError(f"the id {i} of an added token; at most {LARGEST_VOCAB:,} are read")
        self.text = text
        self.id = i
        swallows = any(table.get(flag) for flag in ("lstrip", "rstrip", "single_word"))
        self.plain = not table.get("special") and not swallows


def from_parts(
    pieces: Sequence[str],
    merges: Iterable[str],
    control: Iterable[int],
    plain: Iterable[int],
    pattern: str,
    start: int,
) -> BpeModel:
    """A byte-level model of pieces in GPT-2's letters and merges with a space between their parts.

    Args:
        pieces: by id.
        merges: such as ``Ġ t``.
        control: ids that spell nothing.
        plain: ids of added tokens that text is looked through for.
        pattern: a name of :data:`segpt.data.bpe.patterns.PATTERNS`.
        start: the id that begins a document; it is a control id in any case.

    Raises:
        DataError: if they are no byte-level encoding.
    """
    vocab = {piece: i for i, piece in enumerate(pieces)}
    silent = {*control, start}
    added = set(plain) - silent
    raw: list[bytes] = []
    for i, piece in enumerate(pieces):
        spelled = None if i in silent or i in added else from_letters(piece)
        if spelled is None and i not in added:
            silent.add(i)
        raw.append(_utf8(piece) if spelled is None else spelled)
    model = BpeModel(
        pieces=tuple(raw),
        merges=_pairs(list(merges), vocab),
        pattern=pattern,
        start=start,
        control=frozenset(silent),
        added=frozenset(added),
    )
    check(model)
    return model


def _table(value: object, name: str) -> Table:
    if not isinstance(value, Mapping):
        raise DataError(f"{name} is no object; give a tokenizer.json of the tokenizers library")
    return value


def _check_model(part: Table) -> None:
    kind = part.get("type", "BPE" if "merges" in part else None)
    if kind != "BPE":
        raise DataError(
            f"a model of type {kind!r}; only BPE is taken over. Of a SentencePiece unigram model, "
            "give the .model file"
        )
    for name, wanted in (
        ("dropout", (None, 0, 0.0)),
        ("continuing_subword_prefix", (None, "")),
        ("end_of_word_suffix", (None, "")),
    ):
        if part.get(name) not in wanted:
            raise DataError(f"model.{name} is {part[name]!r}, which is not known; use another one")


def _vocab(value: object) -> dict[str, int]:
    table = _table(value, "model.vocab")
    if not table or len(table) > LARGEST_VOCAB:
        raise DataError(f"model.vocab has {len(table):,} pieces; 1 to {LARGEST_VOCAB:,} are read")
    for text, i in table.items():
        if type(i) is not int or not 0 <= i < LARGEST_VOCAB:
            raise DataError(f"model.vocab gives {text!r} the id {i!r}")
    if len(set(table.values())) != len(table):
        raise DataError("model.vocab has an id twice")
    return dict(table)


def _added(value: object, vocab: Mapping[str, int]) -> list[AddedToken]:
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > LARGEST_VOCAB:
        raise DataError("added_tokens is no list")
    tokens = [AddedToken(_table(entry, "an added token")) for entry in value]
    taken = {i: text for text, i in vocab.items()}
    for token in tokens:
        if taken.setdefault(token.id, token.text) != token.text:
            raise DataError(f"id {token.id} is {taken[token.id]!r} and {token.text!r}")
    return tokens


def _flattened(value: object, key: str) -> list[Table]:
    """The steps of a component, whose sequences may hold sequences."""
    if value is None:
        return []
    table = _table(value, key)
    if table.get("type") != "Sequence":
        return [table]
    inner = table.get(key, [])
    if not isinstance(inner, list) or len(inner) > 100:
        raise DataError(f"{key} of a sequence is no list")
    steps = []
    for step in inner:
        if _table(step, key).get("type") == "Sequence":
            raise DataError(f"a sequence inside a sequence of {key}")
        steps.append(step)
    return steps


def _is_byte_level(value: object) -> bool:
    return any(s.get("type") == "ByteLevel" for s in _flattened(value, "pretokenizers"))


def _check_decoder(value: object) -> None:
    for step in _flattened(value, "decoders"):
        if step.get("type") not in DECODERS | {"Metaspace"}:
            raise DataError(f"a decoder of type {step.get('type')!r}, which is not known")


def _template(value: object) -> list[str]:
    """What a post-processor puts in front of a text."""
    starts: list[str] = []
    for step in _flattened(value, "processors"):
        match step.get("type"):
            case "ByteLevel":
                continue
            case "TemplateProcessing":
                for entry in step.get("single") or []:
                    if not isinstance(entry, Mapping) or "SpecialToken" not in entry:
                        break
                    starts.append(str(_table(entry["SpecialToken"], "SpecialToken").get("id")))
            case "RobertaProcessing" | "BertProcessing":
                pair = step.get("cls")
                starts += [str(pair[0])] if isinstance(pair, list) and pair else []
            case kind:
                raise DataError(f"a post-processor of type {kind!r}, which is not known")
    return starts


def _start(
    asked: str | None, tried: Iterable[str], names: Mapping[str, int], added: Sequence[AddedToken]
) -> int:
    if asked is not None:
        control = {token.text: token.id for token in added} or names
        if asked in control:
            return control[asked]
        if asked.isdecimal() and int(asked) in control.values():
            return int(asked)
        raise DataError(f"--start: no control token {asked!r}; {nearest(asked, control)}")
    silent = {token.text for token in added if not token.plain}
    for text in tried:
        if text in names and (text in silent or not added):
            return names[text]
    raise DataError(
        "no token is known to begin documents; name it: --start TOKEN, a control token's text or id"
    )


def _byte_level(
    whole: Table,
    part: Table,
    vocab: dict[str, int],
    added: Sequence[AddedToken],
    start: int,
    normalizers: Sequence[Table],
) -> BpeModel:
    if part.get("byte_fallback"):
        raise DataError("model.byte_fallback together with ByteLevel is not known")
    kinds = [step.get("type") for step in normalizers]
    if kinds not in ([], ["NFC"]):
        kind = next(kind for kind in kinds if kind != "NFC" or len(kinds) > 1)
        raise DataError(f"a normalizer of type {kind!r} changes text and is not known")
    silent, plain = _sides(added, start)
    raw = [b""] * _size(vocab, added)
    for text, i in vocab.items():
        spelled = None if i in silent or i in plain else from_letters(text)
        if spelled is None and i not in plain:
            silent.add(i)
        raw[i] = _utf8(text) if spelled is None else spelled
    for token in added:
        raw[token.id] = _utf8(token.text)
    return BpeModel(
        pieces=tuple(raw),
        merges=_pairs(part.get("merges"), vocab),
        pattern=_pattern(whole.get("pre_tokenizer")),
        start=start,
        control=frozenset(silent),
        added=frozenset(plain),
        whole_words=bool(part.get("ignore_merges")),
        normalizer="nfc" if kinds else "",
    )


def _pattern(value: object) -> str:
    steps: list[str] = []
    for step in _flattened(value, "pretokenizers"):
        match step.get("type"):
            case "ByteLevel":
                if step.get("add_prefix_space"):
                    raise DataError(
                        "ByteLevel with add_prefix_space puts a space before a text, which would "
                        "be counted; use another one"
                    )
                steps += [GPT2] if step.get("use_regex", True) else []
            case "Digits":
                steps.append("digit" if step.get("individual_digits") else "digits")
            case "Split":
                pattern = _table(step.get("pattern"), "pattern").get("Regex")
                if step.get("behavior") != "Isolated" or step.get("invert"):
                    raise DataError(f"a Split of behavior {step.get('behavior')!r} is not known")
                steps.append(str(pattern))
            case kind:
                raise DataError(f"a pre-tokenizer of type {kind!r}, which is not known")
    name = named(tuple(steps))
    if name is None:
        raise DataError(f"a pre-tokenizer of {' + '.join(steps)!r}, which is not on the list")
    return name


def _fallback(
    whole: Table,
    part: Table,
    vocab: dict[str, int],
    added: Sequence[AddedToken],
    start: int,
    normalizers: Sequence[Table],
) -> BpeModel:
    byte_ids = tuple(vocab.get(f"<0x{byte:02X}>", -1) for byte in range(256))
    if not part.get("byte_fallback") or -1 in byte_ids:
        raise DataError(
            "neither ByteLevel nor byte_fallback with 256 byte tokens, so there is text that it "
            "cannot spell; use another one"
        )
    prefix, pattern = _spaces(whole.get("pre_tokenizer"), normalizers)
    silent, plain = _sides(added, start)
    if plain and prefix == ALWAYS:
        text = next(token.text for token in added if token.plain)
        raise DataError(f"the added token {text!r} together with a space before each part of text")
    raw = [b""] * _size(vocab, added)
    for text, i in vocab.items():
        spelled = _utf8(text.replace(SPACE, " "))
        if " " in text and i not in plain:
            silent.add(i)  # spaces are written by another sign: no text becomes this piece
        raw[i] = _utf8(text) if i in silent or i in plain else spelled
    for byte, i in enumerate(byte_ids):
        raw[i] = bytes([byte])
    for token in added:
        raw[token.id] = _utf8(token.text)
    name = part.get("unk_token")
    unknown = vocab.get(name) if isinstance(name, str) else None
    return BpeModel(
        pieces=tuple(raw),
        merges=_pairs(part.get("merges"), vocab),
        pattern=pattern,
        start=start,
        control=frozenset(silent if unknown is None else silent | {unknown}),
        added=frozenset(plain),
        byte_tokens=byte_ids,
        whole_words=bool(part.get("ignore_merges")),
        prefix=prefix,
    )


def _spaces(value: object, normalizers: Sequence[Table]) -> tuple[str, str]:
    """What stands before a text, and how it is cut."""
    prefix, replaced = NO_PREFIX, False
    for step in normalizers:
        match step.get("type"):
            case "Prepend" if step.get("prepend") == SPACE and not replaced:
                prefix = ALWAYS
            case "Replace" if (step.get("pattern"), step.get("content")) == (
                {"String": " "},
                SPACE,
            ):
                replaced = True
            case kind:
                raise DataError(f"a normalizer of type {kind!r} changes text and is not known")
    cuts = _flattened(value, "pretokenizers")
    if replaced and not cuts:
        return prefix, WHOLE
    if len(cuts) != 1 or replaced or prefix or cuts[0].get("type") != "Metaspace":
        kinds = [step.get("type") for step in cuts] or "none"
        raise DataError(f"a pre-tokenizer of type {kinds!r}, which is not known")
    (step,) = cuts
    scheme = step.get("prepend_scheme", "always")
    if step.get("replacement") != SPACE or scheme not in ("always", "first", "never"):
        raise DataError(f"a Metaspace with {step.get('replacement')!r} and {scheme!r}")
    return NO_PREFIX if scheme == "never" else ABSENT, SPACED if step.get("split", True) else WHOLE


def _sides(added: Sequence[AddedToken], start: int) -> tuple[set[int], set[int]]:
    """The ids of control tokens and of plain added ones."""
    plain = {token.id for token in added if token.plain} - {start}
    return {start, *(token.id for token in added)} - plain, plain


def _size(vocab: Mapping[str, int], added: Sequence[AddedToken]) -> int:
    return 1 + max([*vocab.values(), *(token.id for token in added)])


def _pairs(value: object, vocab: Mapping[str, int]) -> NDArray[np.int64]:
    """Merges as ids, (merges, 2); of a pair that comes twice the last counts, as in the library."""
    if not isinstance(value, list) or len(value) > MOST_MERGES:
        raise DataError(f"model.merges is no list of at most {MOST_MERGES:,} merges")
    ranks: dict[tuple[int, int], int] = {}
    for rank, entry in enumerate(value):
        parts = entry.split(" ") if isinstance(entry, str) else entry
        if not isinstance(parts, list) or len(parts) != 2:
            raise DataError(f"merge {rank} is {entry!r} and not two pieces")
        left, right = (vocab.get(p) if isinstance(p, str) else None for p in parts)
        if left is None or right is None:
            raise DataError(f"merge {rank}, {entry!r}, is of a piece that is not in the vocabulary")
        ranks[left, right] = rank
    pairs = sorted(ranks, key=lambda pair: ranks[pair])
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise DataError(f"the piece {text!r} is no Unicode") from None
