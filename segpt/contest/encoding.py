"""Text files of strangers, whatever program on whatever system wrote them.

PowerShell's ``>`` and ``Tee-Object`` write UTF-16 with a mark, other programs UTF-8 with one.
"""

import codecs

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LOOKED_AT = 4096  # bytes
_PLAIN = 0.5  # of the characters are ASCII, so that half of their bytes in UTF-16 are NUL


def decoded(data: bytes) -> str:
    """The text of a file in UTF-8, UTF-16 or UTF-32, without its mark.

    UTF-16 without a mark is told by the NUL in every other byte. What is no text in the encoding
    becomes U+FFFD.
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(name, "replace")
    return data.decode(_unmarked(data[:_LOOKED_AT]), "replace")


def _unmarked(head: bytes) -> str:
    even, odd = head[0::2].count(0), head[1::2].count(0)
    least = max(1.0, _PLAIN * (len(head) // 2))
    if odd >= least > even:
        return "utf-16-le"
    if even >= least > odd:
        return "utf-16-be"
    return "utf-8"
