"""Text from strangers, made fit to be shown: what hides in it is spelled, what it links is plain.

Which characters hide is listed here, not asked of Python's Unicode tables, so that a page has the
same bytes under every version of them.
"""

import re

LONGEST = 2_000  # characters of one text, before it is cut

_MARKS = (
    r"\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u0610-\u061a\u064b-\u065f\u06d6-\u06dc"
    r"\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u0f71-\u0f84"
    r"\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
)
_PICTURES = r"\u2190-\u2bff\ufe0f\U0001f000-\U0001faff"
_JOINED = r"\u0620-\u06d3\u0750-\u077f\u0900-\u0dff"  # scripts that write with joiners

_HIDDEN = re.compile(
    # controls but tab and line feed, line separators, what Unicode calls default ignorable
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    r"\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0d\ufeff\uffa0"
    r"\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    # private use and what is no character
    r"\ud800-\udfff\ue000-\uf8ff\ufdd0-\ufdef\ufffe\uffff\U000effff-\U0010ffff]"
    # joiners where no script and no picture has them, variants of no picture
    rf"|(?<![{_JOINED}])\u200c|\u200c(?![{_JOINED}])"
    rf"|(?<![{_JOINED}{_PICTURES}])\u200d|\u200d(?![{_JOINED}{_PICTURES}])"
    r"|(?<![\u2190-\u2bff\U0001f000-\U0001faff])[\ufe0e\ufe0f]"
    # marks piled upon four marks
    rf"|(?<=[{_MARKS}]{{4}})[{_MARKS}]"
)

# A host of letters with a domain, no user, port or encoded name, and a path of plain characters.
_ADDRESS = re.compile(
    r"https://(?:(?!xn--)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+(?!xn--)[a-z]{2,24}"
    r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@%/?#-]*)?"
)
_WORD = re.compile(r"https://\S+")
_AFTER = ".,;:!?'"  # ends a sentence, not an address


def shown(text: str) -> str:
    """``text`` with all that is invisible or reorders it spelled, such as ``[U+202E]``."""
    rest = len(text) - LONGEST
    kept = text if rest <= 0 else f"{text[:LONGEST]}… [{rest:,} more characters]"
    return _HIDDEN.sub(lambda match: f"[U+{ord(match[0]):04X}]", kept)


def pieces(text: str) -> list[tuple[str, str | None]]:
    """``text`` in pieces, each with the address that it is if a reader can safely follow it.

    Safe is ``https`` with a host that reads as what it is; all else is text.
    """
    divided, end = [], 0
    for match in _WORD.finditer(text):
        address = match[0].rstrip(_AFTER)
        while address.endswith(")") and address.count(")") > address.count("("):
            address = address[:-1].rstrip(_AFTER)
        before = text[match.start() - 1 : match.start()]
        if _ADDRESS.fullmatch(address) and before in ("", " ", "(", "\n"):
            divided += [(text[end : match.start()], None), (address, address)]
            end = match.start() + len(address)
    return [(piece, link) for piece, link in [*divided, (text[end:], None)] if piece]
