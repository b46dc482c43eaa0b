"""The page in a real browser: hostile text does nothing, keys sort the tables, no complaints.

Needs Chromium and its driver, which speaks the WebDriver protocol (w3.org/TR/webdriver2) over
HTTP; without them there is nothing to ask.
"""

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from segpt.leaderboard import page
from segpt.leaderboard.entry import Entry, Verification
from segpt.report.sanitise import shown
from tests.leaderboard.entries import HOSTILE, LARGE, SMALL, TOKENS, chained
from tests.leaderboard.test_page import hostile_entries, html_of, some

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="no Chromium with its driver"),
]

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--window-size=1200,900"),
)
KEYS = {"Enter": "\ue007", "Space": " ", "Tab": "\ue004"}
ROWS = """
return [...document.querySelectorAll(arguments[0] + " table.board > tbody")]
  .filter(body => getComputedStyle(body).display !== "none")
  .map(body => body.querySelector("th").textContent)
"""
WIDER = "const all = document.documentElement; return all.scrollWidth - all.clientWidth"


class Browser:
    """A session of the driver."""

    def __init__(self, port: int, profile: Path) -> None:
        self.root = f"http://127.0.0.1:{port}"
        self.wait()
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
            "unhandledPromptBehavior": "ignore",
        }
        made = self.call("/session", {"capabilities": {"alwaysMatch": wanted}})
        self.root += f"/session/{made['sessionId']}"

    def call(self, path: str, body: Any = None, method: str = "") -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.root + path, data, {"Content-Type": "application/json"}, method=method or None
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def wait(self) -> None:
        for _ in range(200):
            try:
                if self.call("/status")["ready"]:
                    return
            except (urllib.error.URLError, ConnectionError):
                pass
            time.sleep(0.1)
        raise AssertionError("the driver does not answer")

    def open(self, path: Path) -> None:
        self.call("/url", {"url": path.as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        return self.call("/execute/sync", {"script": script, "args": arguments})

    def protocol(self, command: str, **params: Any) -> Any:
        """What a command of Chromium's own protocol answers."""
        return self.call("/goog/cdp/execute", {"cmd": command, "params": params})

    def press(self, key: str) -> None:
        steps = [{"type": kind, "value": KEYS[key]} for kind in ("keyDown", "keyUp")]
        self.call("/actions", {"actions": [{"type": "key", "id": "keys", "actions": steps}]})

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.call("/se/log", {"type": "browser"})]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert DRIVER is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen(
        [DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        found = Browser(port, tmp_path_factory.mktemp("profile"))
        yield found
        found.call("", method="DELETE")
    finally:
        driver.terminate()
        driver.wait()


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Browser:
    path = tmp_path / "index.html"
    path.write_bytes(html_of(*some()).encode())
    browser.open(path)
    return browser


def hostile_page() -> str:
    """Every hostile string in an entry of every kind, all on one page."""
    entries: list[Entry] = []
    for number, text in enumerate(HOSTILE):
        for entry in hostile_entries(text):
            name = f"{entry.name}-{number}"
            if isinstance(entry, Verification):
                entries.append(renamed(entry, name, record=f"{entry.record}-{number}"))
            else:
                entries.append(renamed(entry, name))
    return page.render([LARGE, SMALL, TOKENS], *chained(*entries))


def renamed(entry: Any, name: str, **changes: Any) -> Entry:
    fields = {field: getattr(entry, field) for field in entry.__dataclass_fields__}
    return type(entry)(**(fields | {"name": name} | changes))


def test_a_hundred_hostile_texts_are_inert(browser: Browser, tmp_path: Path) -> None:
    assert len(HOSTILE) >= 100
    path = tmp_path / "index.html"
    html = hostile_page()
    path.write_bytes(html.encode())
    browser.open(path)
    browser.run("document.querySelectorAll('details').forEach(one => { one.open = true })")
    time.sleep(0.5)
    assert browser.run("return window.pwned") is None
    assert browser.run("return performance.getEntriesByType('resource').length") == 0
    assert browser.run("return document.title") == "segpt leaderboard"
    assert browser.run("return location.href") == path.as_uri()
    found = browser.run(
        """
        const all = [...document.querySelectorAll("*")];
        const names = all.map(one => one.localName);
        const attributes = all.flatMap(one => one.getAttributeNames());
        return [[...new Set(names)], [...new Set(attributes)], document.scripts.length];
        """
    )
    tags = set(
        re.findall(
            r"<([a-z0-9]+)", re.sub(r"<(style|script)>.*?</\1>", r"<\1>", html, flags=re.DOTALL)
        )
    )
    assert set(found[0]) == tags | {"button"}
    assert not [name for name in found[1] if name.startswith("on") or name in ("src", "style")]
    assert found[2] == 1
    text = browser.run("return document.body.textContent")
    for hostile in HOSTILE:
        assert text.count(shown(hostile)) >= 6, hostile
    assert browser.run(WIDER) == 0
    assert browser.complaints() == []


def test_keys_sort_a_table(opened: Browser) -> None:
    by_rank = ["said", "best", "several", "large-one", "xz"]
    assert opened.run(ROWS, "#track-large") == by_rank
    sizes = "#track-large thead .bytes button"
    opened.run("document.querySelector(arguments[0]).focus()", sizes)
    opened.press("Enter")
    assert opened.run(ROWS, "#track-large") == ["several", "said", "best", "large-one", "xz"]
    opened.press("Space")
    assert opened.run(ROWS, "#track-large") == ["large-one", "best", "said", "several", "xz"]
    state = "return document.querySelector('#track-large thead .bytes').getAttribute('aria-sort')"
    assert opened.run(state) == "descending"
    assert opened.run("return document.querySelectorAll('#track-large [aria-sort]').length") == 1
    assert opened.run("return document.getElementById('status').textContent") == (
        "Sorted by Bytes, descending."
    )
    assert opened.run(ROWS, "#track-tokens") == ["few-tokens", "more-tokens"]
    opened.press("Tab")
    assert opened.run("return document.activeElement.textContent") == "Parameters"
    opened.run("document.querySelector('#track-large thead .name button').focus()")
    opened.press("Enter")
    assert opened.run(ROWS, "#track-large") == sorted(by_rank)
    opened.run("document.querySelector('#track-large thead .rank button').focus()")
    opened.press("Enter")
    assert opened.run(ROWS, "#track-large") == by_rank
    assert opened.complaints() == []


def test_keys_open_an_entry_and_choose_kinds(opened: Browser) -> None:
    details = "#track-large tbody.record details"
    opened.run("document.querySelector(arguments[0] + ' summary').focus()", details)
    opened.press("Enter")
    assert opened.run("return document.querySelector(arguments[0]).open", details)
    opened.run("document.getElementById('show-claim').focus()")
    opened.press("Space")
    assert opened.run(ROWS, "#track-large") == ["best", "several", "large-one", "xz"]
    opened.run("document.getElementById('show-baseline').focus()")
    opened.press("Space")
    assert opened.run(ROWS, "#track-large") == ["best", "several", "large-one"]
    assert opened.complaints() == []


def test_a_link_to_an_entry_opens_it(opened: Browser) -> None:
    assert not opened.run("return document.querySelector('#entry-4 details').open")
    opened.run("location.hash = '#entry-4'")
    time.sleep(0.2)
    assert opened.run("return document.querySelector('#entry-4 details').open")
    opened.run("location.hash = '#no<b>where'")
    opened.run("location.hash = '#track-large'")
    assert opened.complaints() == []


@pytest.mark.parametrize("width", [320, 390, 800, 1280])
def test_no_width_scrolls_sideways(opened: Browser, width: int) -> None:
    metrics: dict[str, Any] = {
        "width": width,
        "height": 800,
        "deviceScaleFactor": 1,
        "mobile": width < 500,
    }
    opened.protocol("Emulation.setDeviceMetricsOverride", **metrics)
    opened.run("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert opened.run("return innerWidth") == width
    assert opened.run(WIDER) == 0


def test_without_scripts_the_page_reads_the_same(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    path.write_bytes(html_of(*some()).encode())
    browser.protocol("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(path)
    # Without scripts the driver cannot tell when a page is complete, and may return before.
    for _ in range(200):
        state = browser.protocol("Runtime.evaluate", expression="document.readyState")
        if state["result"]["value"] == "complete":
            break
        time.sleep(0.05)
    browser.protocol("Emulation.setScriptExecutionDisabled", value=False)
    assert browser.run("return document.querySelectorAll('button').length") == 0
    assert browser.run(ROWS, "#track-large") == ["said", "best", "several", "large-one", "xz"]
