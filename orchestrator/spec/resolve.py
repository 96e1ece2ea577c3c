"""A job with every default written out, those of plug-ins too: what `check --resolved` prints and a run keeps.

MLflow is sent the same with its secrets masked.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from orchestrator import plugins
from orchestrator.log import redact_data
from orchestrator.spec.job import JobSpec
from orchestrator.spec.problems import find_parts
from orchestrator.spec.yaml_write import write


def resolved_data(spec: JobSpec) -> dict[str, Any]:
    """Return the whole job as plain data; reading it back gives the same job."""
    data: dict[str, Any] = spec.model_dump(mode="json")
    for part in list(find_parts(data)):
        config = plugins.light_config(part.group, part.use)
        if config is None:
            continue
        built = plugins.build_config(config, part.options)
        holder: Any = data
        for key in part.path.split("."):
            holder = holder[int(key)] if isinstance(holder, list) else holder[key]
        for field in fields(config):
            holder.setdefault(field.name, _plain(getattr(built, field.name)))
    return data


def resolved_text(spec: JobSpec) -> str:
    """Return the whole job as YAML that the strict reader gives back unchanged."""
    return write(resolved_data(spec))


def masked_text(spec: JobSpec) -> str:
    """Return the whole job as YAML to show, its secrets masked as those of its parameters are."""
    return write(redact_data(resolved_data(spec)))


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
