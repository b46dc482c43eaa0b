"""Small byte-pair encodings as other tools write them, and random documents."""

import json
import random
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors, trainers
from tokenizers import pre_tokenizers as cuts
from tokenizers.models import BPE

from segpt.data.bpe.model import SPACE
from segpt.data.bpe.patterns import GPT2, LLAMA3, QWEN2
from segpt.data.corpus import builtin

END = "<|endoftext|>"
BYTE_LEVEL = ("gpt2", "llama3", "qwen2", "smollm")
FALLBACK = ("metaspace", "prepend")


def _split(pattern: str) -> cuts.PreTokenizer:
    from tokenizers import Regex

    return cuts.Sequence(
        [cuts.Split(Regex(pattern), "isolated"), cuts.ByteLevel(False, use_regex=False)]
    )


def texts() -> list[str]:
    return [d.decode(errors="ignore")[:600] for d in list(builtin("validation"))[:60]]


@cache
def library(kind: str, vocab: int = 700) -> Tokenizer:
    """A tokenizer of one of six kinds, trained on a little text."""
    tokenizer = Tokenizer(BPE(byte_fallback=kind in FALLBACK, ignore_merges=kind == "llama3"))
    alphabet = [] if kind in FALLBACK else cuts.ByteLevel.alphabet()
    special = [END, "<|im_start|>"]
    if kind in FALLBACK:
        special = ["<unk>", "<s>", "</s>"]
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    else:
        tokenizer.decoder = decoders.ByteLevel()
    match kind:
        case "gpt2":
            tokenizer.pre_tokenizer = cuts.ByteLevel(add_prefix_space=False)
        case "smollm":
            tokenizer.pre_tokenizer = cuts.Sequence(
                [cuts.Digits(individual_digits=True), cuts.ByteLevel(add_prefix_space=False)]
            )
        case "llama3":
            tokenizer.pre_tokenizer = _split(LLAMA3)
        case "qwen2":
            tokenizer.normalizer = normalizers.NFC()
            tokenizer.pre_tokenizer = _split(QWEN2)
        case "metaspace":
            tokenizer.pre_tokenizer = cuts.Metaspace(SPACE, prepend_scheme="first", split=True)
        case "prepend":
            tokenizer.normalizer = normalizers.Sequence(
                [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
            )
        case _:
            raise ValueError(kind)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    words = texts() if kind != "prepend" else [w for t in texts() for w in t.split(" ")]
    tokenizer.train_from_iterator(words, trainer)
    return _with_bytes(tokenizer, kind) if kind in FALLBACK else _finished(tokenizer, kind)


def _finished(tokenizer: Tokenizer, kind: str) -> Tokenizer:
    if kind == "qwen2":
        tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    if kind == "llama3":
        template = processors.TemplateProcessing(
            single=f"{END} $A", pair=None, special_tokens=[(END, 0)]
        )
        tokenizer.post_processor = template
    return tokenizer


def _with_bytes(tokenizer: Tokenizer, kind: str) -> Tokenizer:
    """Put the 256 byte tokens after the control tokens, as Llama-2 has them."""
    table = json.loads(tokenizer.to_str())
    model = table["model"]
    ordered = sorted(model["vocab"], key=model["vocab"].__getitem__)
    named = [f"<0x{byte:02X}>" for byte in range(256)]
    every = [*ordered[:3], *named, *ordered[3:]]
    model["vocab"] = {text: i for i, text in enumerate(every)}
    model["unk_token"] = "<unk>"
    model["fuse_unk"] = True
    return Tokenizer.from_str(json.dumps(table))


def ranks(tokenizer: Tokenizer) -> dict[bytes, int]:
    """The pieces of a byte-level tokenizer, numbered as tiktoken numbers them: bytes first."""
    from segpt.data.bpe.model import from_letters

    spelled = {from_letters(text): i for text, i in tokenizer.get_vocab().items()}
    control = {END.encode(), b"<|im_start|>"}
    kept = sorted(
        (len(p) > 1, i, p) for p, i in spelled.items() if p is not None and p not in control
    )
    return {piece: rank for rank, (_, _, piece) in enumerate(kept)}


_SIGNS = [
    *"abcdefghij ABC  \n\t0123456789.,;!?'\"-()", "\r\n", "  ", "   ", "the ", " and", "'ll", "'RE",
    "é", "e\u0301", "日本", "😀", "½", "\u2581", "\0", "\x7f", "\x01", "\u00a0", "\u3000", "\u2028",
    END, "</s>", "<s>", "<|im_start|>", "<tool_call>", "ﬁ", "İ", "ß", "𐍈", "\ufffd", "<0x41>",
]  # fmt: skip


def documents(count: int, seed: int = 0) -> list[bytes]:
    """Random documents: signs, words and control tokens' texts in UTF-8, some with other bytes."""
    random_ = random.Random(seed)
    words = [word for text in texts()[:20] for word in text.split(" ")]
    made: list[bytes] = [b"", b" ", b"\xff", b"\xe2\x96", b"\xe2\x96\x81", b" a", b"a "]
    while len(made) < count:
        size = random_.randrange(1, 30)
        sources = [_SIGNS, words] if random_.random() < 0.7 else [words]
        parts = [random_.choice(random_.choice(sources)) for _ in range(size)]
        document = random_.choice(["", " "]).join(parts).encode()
        if random_.random() < 0.2:
            cut = random_.randrange(len(document) + 1)
            document = document[:cut] + random_.randbytes(random_.randrange(1, 6)) + document[cut:]
        made.append(document)
    return made


def plain(document: bytes, tokenizer: Tokenizer) -> str | None:
    """The text of a document that the library reads as we do: UTF-8, NFC, no control tokens."""
    import unicodedata

    try:
        text = document.decode()
    except UnicodeDecodeError:
        return None
    names = [t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special]
    silent = any(name in text for name in names)
    return None if silent or SPACE in text or unicodedata.normalize("NFC", text) != text else text


def untrained(pieces: list[str], merges: list[tuple[str, str]]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=merges))
    tokenizer.pre_tokenizer = cuts.ByteLevel(add_prefix_space=False)
    return tokenizer


PATTERN = GPT2
