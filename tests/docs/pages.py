"""Finds pages, fenced blocks, commands and links in the documentation."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_COMMAND = re.compile(r"(?:\.venv/bin/)?(?:orchestrator|orch) ([a-z].*)")


@dataclass(frozen=True)
class Found:
    """Something on a page, and the line it begins on."""

    page: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, language: str) -> list[Found]:
    """Return the fenced blocks of a language."""
    text = page.read_text(encoding="utf-8")
    return [
        Found(page, text.count("\n", 0, match.start()) + 1, match[2])
        for match in _FENCE.finditer(text)
        if match[1] == language
    ]


def all_blocks(language: str) -> list[Found]:
    """Return the fenced blocks of a language on all pages."""
    return [block for page in PAGES for block in blocks(page, language)]


def named_blocks(page: Path) -> dict[str, str]:
    """Return the blocks that begin with a file name in a comment, by that name."""
    found = {}
    for block in (*blocks(page, "python"), *blocks(page, "yaml")):
        name = re.match(r"# ([\w/]+\.(?:py|yaml))\b", block.text)
        if name:
            found[name[1]] = block.text
    return found


def commands() -> list[Found]:
    """Return every command line of ours, without its name: indented lines, and code in a sentence."""
    return [
        Found(page, number, command)
        for page in PAGES
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1)
        for command in _in_line(line)
    ]


def _in_line(line: str) -> list[str]:
    codes = [line.strip()] if line.startswith("    ") else re.findall(r"`([^`]+)`", line)
    found = [match[1] for code in codes for match in [_COMMAND.match(code)] if match]
    return [re.split(r"\s+(?:[#|>]|&&)\s*", command)[0].strip() for command in found]


def links(page: Path) -> list[Found]:
    """Return the relative links of a page, outside of code blocks."""
    text = _FENCE.sub(lambda match: "\n" * match[0].count("\n"), page.read_text(encoding="utf-8"))
    return [
        Found(page, text.count("\n", 0, match.start()) + 1, match[1])
        for match in _LINK.finditer(text)
        if not re.match(r"[a-z]+:", match[1])
    ]


def anchors(page: Path) -> set[str]:
    """Return the anchors that the headings of a page make, as GitHub forms them."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    heads = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def forget(*names: str) -> None:
    """Drop modules that a page's code made, so that the next test imports its own."""
    for module in [key for key in sys.modules if key.split(".")[0] in names]:
        del sys.modules[module]
