"""Headless Chromium, spoken to through its own debugging port: a page's address in, its words and charts out."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1360,2400",
    "--remote-debugging-port=0",
    "about:blank",
)
_START_S = 60.0
_LOOK_S = 0.25
_RELOAD_S = 30.0
# Whitespace is folded, since the words of a table stand in cells of their own. MLflow draws its charts with Plotly.
_LOOK = """JSON.stringify({
  words: document.body ? document.body.innerText.replace(/\\s+/g, ' ') : '',
  charts: document.querySelectorAll('.js-plotly-plot').length
})"""


@dataclass(frozen=True)
class Page:
    """What a page shows: its visible words with single spaces, and the number of charts drawn."""

    words: str
    num_charts: int


def find_chromium() -> str | None:
    """Return the path of a Chromium; None when there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Tab:
    """One tab of a running browser."""

    def __init__(self, socket: websocket.WebSocket) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the debugging protocol and return its result."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == number:
                return dict(answer.get("result", {}))

    def look(self) -> Page:
        """Return what the page shows now."""
        value = self.send("Runtime.evaluate", expression=_LOOK).get("result", {}).get("value", "{}")
        found = json.loads(value)
        return Page(found.get("words", ""), found.get("charts", 0))

    def picture(self, path: Path) -> None:
        """Save a screenshot (PNG)."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def open_until(self, url: str, *expected: str, charts: int = 0, within_s: float = 90.0) -> Page:
        """Open a page and wait until it shows all that is expected. Raises AssertionError saying what is missing."""
        deadline = time.monotonic() + within_s
        reload_at = 0.0
        while True:
            if time.monotonic() >= reload_at:  # a page of a server that was not ready does not mend itself
                self.send("Page.navigate", url="about:blank")  # an address that differs by its #part is not loaded anew
                self.send("Page.navigate", url=url)
                reload_at = time.monotonic() + _RELOAD_S
            time.sleep(_LOOK_S)
            page = self.look()
            missing = [text for text in expected if text not in page.words]
            if page.num_charts < charts:
                missing.append(f"{charts} charts (there are {page.num_charts})")
            if not missing:
                return page
            if time.monotonic() > deadline:
                raise AssertionError(f"{url} does not show {missing}; it shows: {page.words[:3000]}")


@contextmanager
def browser(chromium: str) -> Iterator[Tab]:
    """Start a browser with a fresh profile and yield its tab; it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [chromium, *FLAGS, f"--user-data-dir={profile}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            socket = websocket.create_connection(_tab_address(Path(profile)), timeout=60, suppress_origin=True)
            yield Tab(socket)
            socket.close()
        finally:
            process.kill()
            process.wait()


def _tab_address(profile: Path) -> str:
    deadline = time.monotonic() + _START_S
    told = profile / "DevToolsActivePort"
    while not (told.is_file() and told.read_text().strip()):
        assert time.monotonic() < deadline, "the browser did not open its debugging port"
        time.sleep(0.05)
    port = told.read_text().split()[0]
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
            tabs = [each for each in json.load(answer) if each["type"] == "page"]
        if tabs:
            return str(tabs[0]["webSocketDebuggerUrl"])
        assert time.monotonic() < deadline, "the browser has no tab"
        time.sleep(0.05)
