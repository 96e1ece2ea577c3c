"""`orchestrator init`: copies a packaged job file, and what it refers to, to start from."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import click

from orchestrator.cli.flags import Out, verb

_SCHEMA = "job.schema.json"


@verb(example="orchestrator init digits_cnn -o my_job.yaml")
@click.argument("name", required=False)
@click.option("--list", "as_list", is_flag=True, help="List the jobs that can be copied.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write; absent: NAME.yaml, here.")
@click.option("--force", is_flag=True, help="Replace a file that is there already.")
def command(out: Out, name: str | None, as_list: bool, output: Path | None, force: bool) -> None:
    """Copy the ready job NAME, with the schema that editors complete from, and say what to do next."""
    from orchestrator.errors import JobFileError
    from orchestrator.wording import nearest

    jobs = packaged_jobs()
    if as_list or name is None:
        width = max(map(len, jobs), default=0)
        lines = [f"{each:<{width}}  {_about(text)}" for each, text in jobs.items()]
        out.result({"jobs": {each: _about(text) for each, text in jobs.items()}}, lines)
        return
    key = _key(name)
    if key not in jobs:
        close = nearest(key, jobs)
        hint = f"did you mean `{close}`? " if close else ""
        raise JobFileError(f"no job is called '{name}'", hint=f"{hint}jobs: {', '.join(jobs) or 'none'}")
    target = output or Path(f"{key}.yaml")
    written = [_write(target, jobs[key], force)]
    for companion in _companions(jobs[key]):
        if not (target.parent / companion).exists():
            written.append(_write(target.parent / companion, _text(companion), force))
    lines = [
        f"wrote {', '.join(map(str, written))}",
        f"next: orchestrator check {target}",
        f"      orchestrator {_verb(jobs[key])} {target}",
    ]
    out.result({"written": [str(path) for path in written]}, lines)


def packaged_jobs() -> dict[str, str]:
    """Return the text of every packaged job file by name."""
    found = [each for each in _folder().iterdir() if each.name.endswith(".yaml")]
    return {each.name.removesuffix(".yaml"): each.read_text(encoding="utf-8") for each in sorted(found, key=_name)}


def _folder() -> Traversable:
    return files("orchestrator.jobs")


def _name(item: Traversable) -> str:
    return item.name


def _key(name: str) -> str:
    return Path(name).name.removesuffix(".yaml").replace("-", "_")


def _about(text: str) -> str:
    """Return the first comment of a job file that is not meant for an editor."""
    comments = [line.lstrip("# ").rstrip() for line in text.splitlines() if line.startswith("#")]
    return next((line for line in comments if line and not line.startswith("yaml-language-server")), "")


def _verb(text: str) -> str:
    """Return what a packaged job is made for."""
    from orchestrator.spec.yaml import read

    return "sweep" if "sweep" in read(text, "packaged job").data else "run"


def _companions(text: str) -> list[str]:
    """Return the packaged files that a job refers to: its schema, jobs it extends, tables it reads."""
    from orchestrator.spec.yaml import read

    data = read(text, "packaged job").data
    extends = data.get("extends", [])
    names = [extends] if isinstance(extends, str) else list(extends)
    names += [value for key, value in data.get("data", {}).items() if key != "use" and isinstance(value, str)]
    names += [_SCHEMA] if _SCHEMA in text else []
    found = [name for name in names if ".." not in name and not name.startswith("/") and _at(name).is_file()]
    return found + [each for name in found if name.endswith(".yaml") for each in _companions(_text(name))]


def _at(name: str) -> Traversable:
    return _folder().joinpath(*name.split("/"))


def _text(name: str) -> str:
    return _at(name).read_text(encoding="utf-8")


def _write(path: Path, text: str, force: bool) -> Path:
    from orchestrator.errors import JobFileError

    if path.exists() and not force:
        raise JobFileError(f"{path} is there already", hint="choose another name with -o, or replace it with --force")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise JobFileError(
            f"{path} cannot be written: {error.strerror}", hint="choose another place with -o"
        ) from error
    return path
