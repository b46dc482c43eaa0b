"""How other people's tokenizers cut a text into words before they merge: a closed list.

A payload names one of these patterns and never holds an expression of its own, so that no file
can bring one that takes for ever.
"""

from typing import Final

CONTRACTIONS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"

GPT2: Final = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # as the library
)
_CASED: Final = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
_SPACES: Final = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _letters_first(digits: str) -> str:
    return (
        rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}|"
        rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
    )


LLAMA3: Final = _letters_first(r"\p{N}{1,3}")
QWEN2: Final = _letters_first(r"\p{N}")
O200K: Final = "|".join(
    (
        *(cased + r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?" for cased in _CASED),
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        _SPACES,
    )
)
TEKKEN: Final = "|".join((*_CASED, r"\p{N}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", _SPACES))

# A pattern is a row of steps: single digits ("digit"), runs of digits ("digits"), or an
# expression whose matches and what lies between them are words.
PATTERNS: Final[dict[str, tuple[str, ...]]] = {
    "none": (),
    "gpt2": (GPT2,),
    "smollm": ("digit", GPT2),
    "digits": ("digits", GPT2),
    "llama3": (LLAMA3,),
    "qwen2": (QWEN2,),
    "o200k": (O200K,),
    "tekken": (TEKKEN,),
}

# The words of tokenizers with byte fallback: the whole text, or parts that begin at spaces.
SPACED: Final = "spaces"
WHOLE: Final = "none"

# Other spellings of the same expressions: tiktoken's and those of converters.
ALIASES: Final[dict[str, str]] = {
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s": GPT2,
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": GPT2,
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": GPT2,
}

# tiktoken's encodings that people have as files of ranks, and llama.cpp's names.
TIKTOKEN: Final = {
    "gpt2": "gpt2",
    "r50k_base": "gpt2",
    "p50k_base": "gpt2",
    "o200k_base": "o200k",
    "o200k_harmony": "o200k",
}
LLAMA_CPP: Final = {
    "gpt-2": "gpt2",
    "gpt2": "gpt2",
    "phi-2": "gpt2",
    "olmo": "gpt2",
    "smollm": "smollm",
    "starcoder": "smollm",
    "refact": "smollm",
    "command-r": "smollm",
    "llama3": "llama3",
    "llama-v3": "llama3",
    "llama-bpe": "llama3",
    "dbrx": "llama3",
    "smaug-bpe": "llama3",
    "qwen2": "qwen2",
    "deepseek-r1-qwen": "qwen2",
    "stablelm2": "qwen2",
    "tekken": "tekken",
    "gpt-4o": "o200k",
}
# Of these names, those whose words are taken whole where they are pieces.
WHOLE_WORDS: Final = frozenset({"llama3", "llama-v3", "llama-bpe", "tekken"})


def named(steps: tuple[str, ...]) -> str | None:
    """The name of a row of steps, None of one that is not known."""
    plain = tuple(ALIASES.get(step, step) for step in steps)
    return next((name for name, known in PATTERNS.items() if known == plain), None)
