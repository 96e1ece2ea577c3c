"""`DataConformance`: what every data plug-in must keep. Subclass it in your tests, name plug-in and options.

class TestMyData(DataConformance):
    plugin = my_package.my_data         # a module (or class) with Config, shape, load
    options = {"path": "tests/small.bin"}
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from orchestrator import plugins
from orchestrator.testing.models import run_without_torch

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.data.dataset import Dataset

_TARGET_KINDS = ("class", "binary", "value")


class DataConformance:
    """Test methods for pytest."""

    plugin: ClassVar[Any]
    options: ClassVar[Mapping[str, Any]] = {}

    def config(self) -> Any:
        """Return the plug-in's config made of `options`, as a job file would make it."""
        return plugins.build_config(self.plugin.Config, self.options)

    def load(self) -> Dataset:
        """Return the data set."""
        dataset: Dataset = self.plugin.load(self.config())
        return dataset

    def batch(self, dataset: Dataset, name: str) -> tuple[Tensor, Tensor]:
        """Return a whole split as one batch."""
        import torch

        split = dataset.splits[name]
        return split.batch(torch.arange(len(split)))

    def test_planning_needs_no_torch(self) -> None:
        if isinstance(self.plugin, ModuleType):
            run_without_torch(self.plugin, self.options)

    def test_shape_says_what_load_gives(self) -> None:
        said, dataset = self.plugin.shape(self.config()), self.load()
        assert said == dataset.shape, f"shape says {said}, load gives {dataset.shape}"
        sizes = {name: len(split) for name, split in dataset.splits.items()}
        assert dict(said.num_samples) == sizes, f"shape says {said.num_samples}, the splits have {sizes}"
        assert said.target_kind in _TARGET_KINDS, f"target_kind must be one of {_TARGET_KINDS}"
        assert sizes["train"] > 0, "there is nothing to train on"

    def test_batches_have_the_shapes_and_types_it_says(self) -> None:
        dataset = self.load()
        for name, split in dataset.splits.items():
            inputs, targets = self.batch(dataset, name)
            assert tuple(inputs.shape) == (len(split), *dataset.shape.inputs), f"{name}: inputs {tuple(inputs.shape)}"
            assert tuple(targets.shape) == (len(split), *dataset.shape.targets), f"{name}: {tuple(targets.shape)}"
            assert str(inputs.dtype) == f"torch.{dataset.shape.input_dtype}", f"{name}: inputs are {inputs.dtype}"

    def test_numbers_are_finite_and_classes_are_known(self) -> None:
        import torch

        dataset = self.load()
        for name in dataset.splits:
            inputs, targets = self.batch(dataset, name)
            assert torch.isfinite(inputs).all(), f"{name}: inputs are not all finite"
            if dataset.shape.target_kind == "class":
                assert targets.dtype == torch.int64, f"{name}: class targets must be int64, not {targets.dtype}"
                known = (targets >= 0) & (targets < len(dataset.shape.classes))
                assert known.all(), f"{name}: a target is not one of {len(dataset.shape.classes)} classes"
            elif dataset.shape.target_kind == "binary":
                assert ((targets == 0) | (targets == 1)).all(), f"{name}: binary targets must be 0 or 1"

    def test_a_batch_is_its_samples_in_the_order_asked(self) -> None:
        import torch

        dataset = self.load()
        inputs, targets = self.batch(dataset, "train")
        wanted = torch.tensor([len(inputs) - 1, 0, len(inputs) // 2, 0])
        some_inputs, some_targets = dataset.splits["train"].batch(wanted)
        assert torch.equal(some_inputs, inputs[wanted]), "inputs depend on which samples they come with"
        assert torch.equal(some_targets, targets[wanted]), "targets depend on which samples they come with"

    def test_another_process_loads_the_same(self) -> None:
        if not isinstance(self.plugin, ModuleType):
            return
        code = (
            "import importlib\n"
            "from orchestrator import plugins\n"
            f"plugin = importlib.import_module({self.plugin.__name__!r})\n"
            f"config = plugins.build_config(plugin.Config, {dict(self.options)!r})\n"
            "import sys; sys.stdout.write(plugin.load(config).digest)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout == self.load().digest, "another process gives another digest"
