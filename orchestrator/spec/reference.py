"""docs/jobs.md: every key of a job file with what it takes, its default and its meaning, made from the code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.plugins import GROUPS, load
from orchestrator.spec.problems import job_schema
from orchestrator.spec.schema import default_text, option_rows, parts_of, summary
from orchestrator.wording import expected, resolve

_INTRO = """\
# Job files

<!-- Made by `orchestrator schema --markdown`. Edit the docstrings in orchestrator/spec/job.py and of the parts. -->

A job file describes one training run. `orchestrator check JOB` names everything that is wrong with it, with the line
and a repair; `orchestrator init --list` names files to start from. Only `model` and `data` are required:

```yaml
# yaml-language-server: $schema=./job.schema.json
model: {use: cnn, channels: [16, 32]}
data: {use: digits}
train: {epochs: 5}
```

**Reading.** A file is one YAML document, strictly read: no key twice, no anchors, aliases, tags or merge keys; only
`true` and `false` are booleans (`yes`, `no` and `on` are text); `1e-3` is a number; at most 1 MB, 20 levels and 20,000
values.

**Parts.** A replaceable part is `{use: NAME, ...its own keys}`. NAME is a built-in (below, or `orchestrator ls`), a
part of an installed package, or the import path of your own (`my_package.my_module:MyClass`). A job file is data and
nothing in it is evaluated, but a run imports the parts it names: run only job files whose author you trust.

**Overrides.** `orchestrator run job.yaml train.steps=50 'model.channels=[16, 32]' optim.groups.0.lr=1e-4` replaces
single values; they are read like those of the file. `train.steps` replaces the file's `train.epochs`, and the reverse.

**Extends.** `extends: base.yaml` (or a list) starts from other files, relative to this one. Mappings are merged key by
key; lists and single values are replaced. Where `use` changes, the keys of the part named before are dropped.

**Version.** `version: 1` is this format. A file of version 1 keeps its meaning in every release 1.x: keys may be added,
none changes its meaning or goes.
"""


def reference() -> str:
    """Return the whole page."""
    schema = job_schema()
    lines = [_INTRO, "## Sections", "", *_table(schema, schema)]
    for name, value in schema["properties"].items():
        node = _node_of(value, schema)
        if "properties" in node and node.get("title") != "Use":
            lines += ["", f"## {name}", "", *_section(node, schema)]
    for group in GROUPS:
        configs = parts_of(group, built_in=True)
        if configs:
            lines += ["", f"## Built-in {group}"]
        for part, config in configs.items():
            lines += ["", f"### {part}", "", *_part(group, part, config)]
    return "\n".join(lines) + "\n"


def _section(node: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[str]:
    yield str(node.get("description", ""))
    yield ""
    yield from _table(node, schema)
    for key, value in node["properties"].items():
        inner = _node_of(value, schema)
        items = resolve(value["items"], schema) if "items" in value else inner
        if key == "space":
            items = _node_of(value["additionalProperties"], schema)
        if "properties" in items and items.get("title") != "Use":
            yield from ["", f"Keys of `{key}`:", "", *_table(items, schema)]


def _table(node: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[str]:
    yield "| key | takes | default | meaning |"
    yield "|---|---|---|---|"
    for key, value in node["properties"].items():
        inner = resolve(value, schema)
        meaning = " ".join(str(value.get("description", inner.get("description", ""))).split())
        if meaning == "not used here":
            continue
        default = default_text(key, value, node, schema)
        shown = "" if isinstance(value.get("default"), dict) or default in ("", "none") else f"`{default}`"
        yield f"| `{key}` | {_cell(_takes(key, value, schema))} | {_cell(shown)} | {_cell(meaning)} |"


def _node_of(value: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the node of a section, also of one that may be left out and so stands beside null."""
    nodes = [resolve(each, schema) for each in [value, *value.get("anyOf", [])]]
    return next((node for node in nodes if "properties" in node), nodes[0])


def _takes(key: str, value: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    inner = _node_of(value, schema)
    if key == "space":
        return "a mapping of paths to lists or ranges, see below"
    if "properties" in inner and inner.get("title") != "Use":
        return f"[keys of {key}](#{key})" if key in schema["properties"] else "a mapping, see below"
    if key == "groups":
        return "a list, each item {match: PATTERN, ...keys of the optimiser}"
    return expected(value, schema)


def _part(group: str, name: str, config: type) -> Iterator[str]:
    text = summary(load(group, name)) or summary(config)
    if not text.startswith(f"{config.__name__}("):  # what dataclass writes where there is no docstring
        yield text
        yield ""
    rows = option_rows(config)
    if not rows:
        yield "No keys."
        return
    yield "| key | takes | default |"
    yield "|---|---|---|"
    for key, takes, default in rows:
        yield f"| `{key}` | {_cell(takes)} | `{_cell(default)}` |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
