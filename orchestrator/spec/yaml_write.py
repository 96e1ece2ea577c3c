"""Writes plain data as YAML that the strict reader gives back unchanged: for resolved jobs."""

from __future__ import annotations

import re
from typing import Any

import yaml

from orchestrator.spec.yaml import FLOAT, NOT_FINITE


class _Dumper(yaml.SafeDumper):
    """Writes text that the strict reader gives back unchanged: quotes what either YAML 1.1 or we take for a number."""

    def ignore_aliases(self, data: Any) -> bool:
        """Never write an anchor."""
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent list items below their key."""
        super().increase_indent(flow, False)

    def represent_str(self, data: str) -> Any:
        """Escape what other YAML readers take for a line break."""
        breaks = any(char in data for char in "\x85\u2028\u2029")
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if breaks else None)

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> Any:
        """Write a small mapping of plain values on one line, every other one a key per line."""
        small = len(mapping) <= 2 and not any(isinstance(value, dict | list) for value in mapping.values())
        return super().represent_mapping(tag, mapping, flow_style=small)


_Dumper.add_representer(str, _Dumper.represent_str)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^(?:{FLOAT.pattern})$"), list("-+0123456789."))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^(?:{NOT_FINITE.pattern})$"), list("-+."))


def write(data: Any) -> str:
    """Return plain data as YAML that `read` gives back unchanged; lists of plain values stay on one line."""
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=110))
