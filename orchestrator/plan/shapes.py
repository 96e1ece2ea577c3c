"""What a model and a data set say of themselves as plain numbers, read by `build_plan`.

They are Protocols: `models/` never imports `orchestrator`, its own frozen dataclasses simply have these attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class ModelShape(Protocol):
    """A model in numbers. `inputs` is the shape of one sample without the batch dim; `outputs` likewise."""

    @property
    def num_params(self) -> int:
        """Trainable parameters."""

    @property
    def flops_per_sample(self) -> int:
        """Floating-point operations of one forward pass on one sample (multiply and add count as two)."""

    @property
    def inputs(self) -> tuple[int, ...]:
        """Shape of one input sample."""

    @property
    def outputs(self) -> tuple[int, ...]:
        """Shape of one output."""

    @property
    def loss(self) -> str:
        """Name of the loss that fits the outputs."""


@dataclass(frozen=True)
class DataShape:
    """A data set in numbers: samples per split, shape of one input and one target, class names if any."""

    num_samples: Mapping[str, int]
    inputs: tuple[int, ...]
    targets: tuple[int, ...]
    target_kind: str  # "class" | "binary" | "value"
    classes: tuple[str, ...] = ()
    input_dtype: str = "float32"


class DataPlugin(Protocol):
    """A data plug-in (module or class). All but `load` work without torch."""

    Config: type

    def shape(self, config: Any) -> DataShape:
        """Return the data set in numbers; may read a file's header, never the network."""

    def load(self, config: Any) -> Any:
        """Return the `orchestrator.data.dataset.Dataset`."""
