"""Headless Chromium as a function: a page's address in, its words and charts out."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from html import unescape
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1360,2400",
)
BUDGET_MS = 20_000
"""Virtual time given to the page's own scripts; it runs as fast as the machine can."""


@dataclass(frozen=True)
class Page:
    """What a page shows once its scripts have run."""

    words: str
    html: str

    @property
    def num_charts(self) -> int:
        """Charts that were drawn (MLflow uses Plotly)."""
        return len(re.findall(r'class="[^"]*\bjs-plotly-plot\b', self.html))


def find_chromium() -> str | None:
    """Return the path of a Chromium; None when there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def open_page(chromium: str, url: str) -> Page:
    """Open `url` in a fresh profile. Charts are drawn only when frames are, hence the (discarded) screenshot."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        done = subprocess.run(
            [
                chromium,
                *FLAGS,
                f"--user-data-dir={profile}",
                f"--virtual-time-budget={BUDGET_MS}",
                f"--screenshot={Path(profile) / 'page.png'}",
                "--dump-dom",
                url,
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    bare = re.sub(r"<(script|style)\b.*?</\1>", " ", done.stdout, flags=re.S)
    words = re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", bare))).strip()
    return Page(words, done.stdout)


def open_until(chromium: str, url: str, *expected: str, charts: int = 0, tries: int = 3) -> Page:
    """Open a page until it shows all that is expected; a busy machine may need a second look. Raises AssertionError."""
    missing: list[str] = []
    for _ in range(tries):
        page = open_page(chromium, url)
        missing = [text for text in expected if text not in page.words]
        if page.num_charts < charts:
            missing.append(f"{charts} charts (there are {page.num_charts})")
        if not missing:
            return page
    raise AssertionError(f"{url} does not show {missing}; it shows: {page.words[:3000]}")
