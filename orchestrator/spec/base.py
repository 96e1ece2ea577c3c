"""The two bases of every section of a job file: frozen, unknown keys refused; and `{use: NAME, ...its own keys}`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


class Section(BaseModel):
    """A section of the job file. Unknown keys are errors; instances never change."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Use(BaseModel):
    """A replaceable part: `use` names it (a built-in or `package.module:attr`), all other keys are its own."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True, allow_inf_nan=False)

    use: str
    """Name of a built-in (`orchestrator ls`) or the import path of your own."""

    @property
    def options(self) -> dict[str, Any]:
        """The part's own keys."""
        return dict(self.model_extra or {})
