"""Every command in the pages exists with its flags, every job in them loads, every link leads somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from orchestrator.cli.app import app
from orchestrator.spec.load import load_job

from .pages import PAGES, ROOT, Found, all_blocks, anchors, commands, forget, links, named_blocks

COMMANDS = commands()
JOBS = [block for block in all_blocks("yaml") if {"model", "data"} <= set(yaml.safe_load(block.text) or {})]


def test_the_pages_there_should_be() -> None:
    names = {str(page.relative_to(ROOT)) for page in PAGES}
    docs = {f"docs/{name}.md" for name in ("tutorial", "architecture", "plugins", "faults", "jobs", "models")}
    assert docs | {"README.md"} <= names
    assert len(COMMANDS) > 20
    assert len(JOBS) >= 3


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_exists_with_these_flags(command: Found) -> None:
    words = shlex.split(command.text)
    verb = app.get_command(click.Context(app), words[0])
    assert verb is not None, f"no command is called '{words[0]}'"
    try:
        verb.make_context(words[0], [word for word in words[1:] if word != "..."])
    except click.exceptions.Exit:
        pass  # --help
    except click.MissingParameter:
        assert len(words) == 1, (
            f"orchestrator {command.text}: an argument is missing"
        )  # the verb as a name in a sentence


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_job_file_that_is_named_is_there(command: Found) -> None:
    words = [word for word in shlex.split(command.text) if word.startswith("jobs/") and word.endswith(".yaml")]
    for word in words:
        assert (ROOT / word).is_file(), word


@pytest.mark.parametrize("command", [each for each in COMMANDS if "jobs/" in each.text and "=" in each.text], ids=str)
def test_overrides_fit_the_job_they_are_given_to(command: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    verb, *words = shlex.split(command.text)
    job = next(word for word in words if word.startswith("jobs/"))
    if verb in ("run", "check", "plan", "verify"):
        monkeypatch.chdir(ROOT)
        load_job(job, [word for word in words if "=" in word and not word.startswith("-")])


@pytest.mark.parametrize("block", JOBS, ids=str)
def test_a_job_in_the_pages_loads(block: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in named_blocks(block.page).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "page.yaml").write_text(block.text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        assert load_job("page.yaml").spec.version == 1
    finally:
        forget("mine", "my_nets", "my_data")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.text.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: {link.text}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{link}: {link.text}, headings: {sorted(anchors(target))}"


def test_advice_in_errors_names_headings_that_are_there() -> None:
    for source in sorted((ROOT / "orchestrator").rglob("*.py")):
        for page, anchor in re.findall(r"(docs/\w+\.md)#([\w-]+)", source.read_text(encoding="utf-8")):
            assert anchor in anchors(ROOT / page), f"{source.relative_to(ROOT)} names {page}#{anchor}"


@pytest.mark.parametrize("picture", sorted((ROOT / "docs" / "images").iterdir()), ids=lambda path: path.name)
def test_pictures_are_small(picture: Path) -> None:
    assert picture.stat().st_size < 200_000
