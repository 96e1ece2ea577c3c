"""`InitSection`: weights that training begins with, in place of drawn ones. Part of `train`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from orchestrator.spec.base import Section, Use

Sha256 = Annotated[str, Field(min_length=64, max_length=64)]


class InitSection(Section):
    """Weights from a file; what the file does not hold, such as an optimiser's state, begins as always."""

    file: str
    """A safetensors file with every weight of the model by name (the exporter `safetensors` writes one)."""
    sha256: Sha256 | None = None
    """Digest of the file; training refuses another one. Given: the file may be moved and a run still resumed."""
    cut_from: Use | None = None
    """The wider model whose weights the file holds: this model takes its part of them (docs/sweeps.md)."""
