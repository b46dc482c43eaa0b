"""Entries to render, and text that no page may let out of its place."""

import itertools
import math
from collections.abc import Iterable
from typing import Any

from segpt.leaderboard.chain import append
from segpt.leaderboard.entry import (
    Baseline,
    Chain,
    Claim,
    Entry,
    Link,
    Record,
    Run,
    ScoreLine,
    Verification,
    figure,
)
from segpt.leaderboard.track import Track

TEXT = "d" * 64
LARGE = Track(name="large", about="Files of\na million bytes.", bytes=1_000_000, text=TEXT)
SMALL = Track(
    name="small", about="Tiny.", bytes=1000, seconds=60.0, text=TEXT, policies=("frozen",)
)
TOKENS = Track(name="tokens", about="Few tokens.", metric="tokens", parameters=2_000_000)

_PAYLOADS = [
    "<script>window.pwned = 1</script>",
    "</script><script>window.pwned = 1</script>",
    "</style><style>* { display: none }</style>",
    "<img src=x onerror='window.pwned = 1'>",
    "<svg onload=window.pwned=1>",
    "<svg><script>window.pwned=1</script></svg>",
    "</title><script>window.pwned=1</script>",
    "</textarea><img src=x onerror=window.pwned=1>",
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "<iframe src='https://evil.example'></iframe>",
    "<object data='https://evil.example/x.swf'></object>",
    "<base href='https://evil.example/'>",
    "<meta http-equiv='refresh' content='0;url=https://evil.example'>",
    "<link rel=stylesheet href='https://evil.example/x.css'>",
    "<form action='https://evil.example'><button>Sign in</button></form>",
    "<details open ontoggle=window.pwned=1>",
    "<marquee onstart=window.pwned=1>",
    "<a href='javascript:window.pwned=1'>me</a>",
    "<!-- <b> -->",
    "--><script>window.pwned=1</script><!--",
    "]]><b>x</b>",
    "<?php echo 1 ?>",
    "<!DOCTYPE html>",
    "</p></td></tr></tbody></table></main></body></html><h1>Mine</h1>",
    "</details></summary></td><td>0.0001</td>",
    '" onmouseover="window.pwned=1',
    "' autofocus onfocus='window.pwned=1",
    '"><b>x</b>',
    "'><b>x</b>",
    "`${window.pwned = 1}`",
    "{{ 7 * 7 }}",
    "{% raw %}",
    "{{ ''.__class__.__mro__ }}",
    "{# comment #}",
    "${7*7}",
    "&lt;b&gt;",
    "&#60;b&#62;",
    "&amp;lt;",
    "&notit;",
    "javascript:window.pwned=1",
    "JaVaScRiPt:window.pwned=1",
    "data:text/html,<script>window.pwned=1</script>",
    "vbscript:msgbox(1)",
    "//evil.example/x",
    "http://evil.example",
    "https://user:password@evil.example/",
    "https://127.0.0.1/",
    "https://[::1]/",
    "https://localhost/",
    "https://xn--80ak6aa92e.example/",
    "https://evil.example:8443/",
    "https://evil\u2024example/",
    "https://\u0435vil.example/",
    "https://evil.example\\@good.example/",
    "https://evil.example/\u202egpj.exe",
    'https://evil.example/"onclick="window.pwned=1',
    "Eve | 0.0001 | frozen |",
    "`code` *bold* _under_ ~~struck~~",
    "[me](javascript:window.pwned=1)",
    "![pixel](https://evil.example/p.png)",
    "a\n\n# Heading\n| x | y |",
    "a\r\n<!-- /records -->",
    "\\|\\",
    "- [ ] task\n1. one\n> quote",
    "www.evil.example eve@evil.example <https://evil.example>",
    "\x1b[31mred\x1b[0m \x1b]8;;https://evil.example\x07link",
    "\x00\x01\x08\x0b\x0c\x7f\x9b",
    "tab\tand\nline",
    "\u2028line\u2029paragraph\x85next",
    "\ufeff\ufffe\uffff\U0010ffff\ue000",
    "pay\u200bpal zero\u200c\u200dwidth\u2060\u00ad",
    "\u05d0\u05d1\u05d2 \u0645\u0631\u062d\u0628\u0627 1.0000",
    "a" * 5000,
    "\u6f22" * 3000,
    "e" + "\u0301" * 90,
    "".join(chr(0x300 + i % 112) for i in range(100)),
    "\U000e0041\U000e0042\U000e007f",
    "\u3164\u115f\u2800\uffa0",
    "1e999",
    "NaN",
    "",
    " ",
]
_MIRRORS = [
    f"{before}{chr(code)}1.0000{after}"
    for code, (before, after) in itertools.product(
        (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C),
        (("eve ", " <b>"), ("", "")),
    )
]
HOSTILE = list(dict.fromkeys(text for text in (*_PAYLOADS, *_MIRRORS) if text.strip()))


def line(nats: float = 6000.0, kind: str = "frozen", **changes: Any) -> ScoreLine:
    fields: dict[str, Any] = {
        "policy": {"kind": kind},
        "bpb": nats / (math.log(2) * 5000),
        "nats": nats,
        "bytes": 5000,
        "tokens": 2000,
        "seconds": 1.0,
        "model": "a" * 64,
        "text": TEXT,
        "denominator": "bytes",
        "conditions": {"causal": "by construction", "context": 128},
    }
    return ScoreLine(**(fields | changes))


def record(
    name: str = "tiny",
    nats: float = 6000.0,
    track: str = "large",
    *,
    scores: Iterable[ScoreLine] = (),
    **changes: Any,
) -> Record:
    runs = (Run(artifact="a" * 64, bytes=987_654, seed=1, scores=tuple(scores) or (line(nats),)),)
    fields: dict[str, Any] = {
        "name": name,
        "track": track,
        "authors": ("Ada",),
        "date": "2025-03-01",
        "bytes": 987_654,
        "parameters": 1_234_567,
        "bpb": figure(runs).bpb,
        "runs": runs,
        "origin": {"tokens": "0123456789abcdef"},
        "sections": {"codes": 987_000, "header": 654, "scales": 0},
        "segpt": "0.1.0",
        "recipe": "segpt demo",
    }
    return Record(**(fields | changes))


def claim(name: str = "said", value: float = 1.1, track: str = "large", **changes: Any) -> Claim:
    fields: dict[str, Any] = {
        "name": name,
        "track": track,
        "authors": ("Grace",),
        "date": "2025-02-01",
        "source": "a paper",
        "value": value,
    }
    return Claim(**(fields | changes))


def baseline(name: str = "xz", track: str = "large", **changes: Any) -> Baseline:
    fields: dict[str, Any] = {
        "name": name,
        "track": track,
        "date": "2025-01-01",
        "program": "xz",
        "version": "5.4.1",
        "text": TEXT,
        "bytes": 5000,
        "compressed": 1500,
    }
    return Baseline(**(fields | changes))


def verification(of: Record, name: str = "again", **changes: Any) -> Verification:
    fields: dict[str, Any] = {
        "name": name,
        "track": of.track,
        "date": "2025-04-01",
        "record": of.name,
        "authors": ("Barbara",),
        "state": "checked",
        "artifact": of.artifact,
        "bpb": of.bpb,
        "conditions": {"device": "cpu"},
    }
    return Verification(**(fields | changes))


def chained(*entries: Entry) -> tuple[list[Link], Chain | None]:
    """The entries as links in this order, and what they amount to."""
    files: dict[str, bytes] = {}
    links: list[Link] = []
    chain = None
    for entry in entries:
        added = append(files, entry)
        files[added.link.file] = added.data
        links.append(added.link)
        chain = added.chain
    return links, chain
