"""The page in a real browser: a message, the answer as it comes, keys, and no complaints."""

import base64
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from segpt.serve.limits import Limits
from tests.leaderboard.test_browser import CHROMIUM, DRIVER, WIDER, Browser, browser
from tests.serve.servers import Running, running

pytest.importorskip("uvicorn")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="no Chromium with its driver"),
]
__all__ = ["browser"]  # the fixture

STATUS = "return document.getElementById('status').textContent"
SAID = "return [...document.querySelectorAll('.message span')].map(one => one.textContent)"
TYPE = "document.getElementById('message').value = arguments[0]"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(Limits(tokens=100_000, seconds=600)) as started:
        yield started


@pytest.fixture
def opened(server: Running, browser: Browser) -> Browser:
    browser.call("/url", {"url": server.url + "/"})
    until(browser, "return document.getElementById('model').textContent", "demo")
    return browser


def until(browser: Browser, script: str, *wanted: str) -> None:
    for _ in range(200):
        if browser.run(script) in wanted:
            return
        time.sleep(0.05)
    raise AssertionError((script, browser.run(script)))


def shot(browser: Browser, name: str) -> None:
    """Keep a picture where the environment says so, for people to look at."""
    if place := os.environ.get("SEGPT_SCREENSHOTS"):
        picture = base64.b64decode(browser.call("/screenshot"))
        (Path(place) / f"{name}.png").write_bytes(picture)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_message_is_answered(opened: Browser, server: Running, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    opened.protocol("Emulation.setEmulatedMedia", features=features)
    assert opened.run("return document.activeElement.id") == "message"
    opened.run("document.getElementById('tokens').value = 60")
    opened.run("document.getElementById('temperature').value = 0")  # the same answer each time
    opened.run(TYPE, "<b>To open</b> a file,")
    opened.press("Enter")
    until(opened, "return document.getElementById('send').disabled && 'busy'", "busy")
    until(opened, STATUS, "")
    question, answer = opened.run(SAID)
    assert question == "<b>To open</b> a file,"
    assert len(answer.strip()) > 20
    assert opened.run("return document.querySelectorAll('main b').length") == 0
    assert opened.run(WIDER) == 0
    shot(opened, scheme)
    assert server.idle()
    assert opened.complaints() == []


def test_an_answer_comes_in_pieces_and_escape_stops_it(opened: Browser, server: Running) -> None:
    opened.run("document.getElementById('tokens').value = 100000")
    opened.run(TYPE, "The module")
    opened.press("Enter")
    lengths: set[int] = set()
    while len(lengths) < 3:
        lengths.add(len((opened.run(SAID) or ["", ""])[-1]))
    opened.call(
        "/actions",
        {
            "actions": [
                {
                    "type": "key",
                    "id": "keys",
                    "actions": [
                        {"type": "keyDown", "value": "\ue00c"},
                        {"type": "keyUp", "value": "\ue00c"},
                    ],
                }
            ]
        },
    )
    until(opened, STATUS, "Stopped.")
    assert server.idle()
    assert opened.run("return document.getElementById('send').disabled") is False


def test_what_goes_wrong_is_said(opened: Browser) -> None:
    opened.run("document.getElementById('tokens').value = 0")
    opened.run(TYPE, "x")
    opened.press("Enter")
    until(opened, "return document.getElementById('status').className", "fault")
    assert "max_tokens" in opened.run(STATUS)


def test_nothing_comes_from_elsewhere(opened: Browser, server: Running) -> None:
    names = "return performance.getEntriesByType('resource').map(one => one.name)"
    assert all(name.startswith(server.url) for name in opened.run(names))
    opened.protocol(
        "Emulation.setDeviceMetricsOverride",
        width=320,
        height=700,
        deviceScaleFactor=1,
        mobile=True,
    )
    assert opened.run(WIDER) == 0
    shot(opened, "narrow")
    opened.protocol("Emulation.clearDeviceMetricsOverride")
