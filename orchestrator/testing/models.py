"""`ModelConformance`: what every model plug-in must keep. Subclass it in your tests, name plug-in and options.

class TestMyNet(ModelConformance):
    plugin = my_package.my_net          # a module (or class) with Config, shape, build
    options = {"width": 16}
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import is_dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from orchestrator import plugins

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn


class ModelConformance:
    """Test methods for pytest. `flops_tolerance`: relative, for layers that torch's counter does not see."""

    plugin: ClassVar[Any]
    options: ClassVar[Mapping[str, Any]] = {}
    flops_tolerance: ClassVar[float] = 0.0

    def config(self) -> Any:
        """Return the plug-in's config made of `options`, as a job file would make it."""
        return plugins.build_config(self.plugin.Config, self.options)

    def build(self) -> nn.Module:
        """Return the model with weights that do not depend on what ran before."""
        import torch

        torch.manual_seed(0)
        module: nn.Module = self.plugin.build(self.config())
        return module.eval()

    def inputs(self, batch: int) -> Tensor:
        """Return a batch of random inputs: float32, or token numbers below the last output size."""
        import torch

        shape, generator = self.plugin.shape(self.config()), torch.Generator().manual_seed(1)
        if getattr(shape, "input_dtype", "float32") == "int64":
            return torch.randint(shape.outputs[-1], (batch, *shape.inputs), generator=generator)
        return torch.randn(batch, *shape.inputs, generator=generator)

    def test_config_is_a_frozen_dataclass(self) -> None:
        config = self.config()
        assert is_dataclass(config), f"{config!r} is not a dataclass"
        assert type(config).__hash__ is not None, "Config must be frozen: @dataclass(frozen=True)"

    def test_planning_needs_no_torch(self) -> None:
        if isinstance(self.plugin, ModuleType):
            run_without_torch(self.plugin, self.options)

    def test_shape_speaks_in_plain_numbers(self) -> None:
        shape = self.plugin.shape(self.config())
        for name in ("num_params", "flops_per_sample"):
            assert type(getattr(shape, name)) is int, f"shape.{name} must be an int"
        for name in ("inputs", "outputs"):
            sizes = getattr(shape, name)
            assert isinstance(sizes, tuple), f"shape.{name} must be a tuple"
            assert all(type(size) is int for size in sizes), f"shape.{name} must hold ints, has {sizes}"
        assert shape.loss, "shape.loss must name a loss"

    def test_shape_counts_the_parameters_there_are(self) -> None:
        real = sum(parameter.numel() for parameter in self.build().parameters() if parameter.requires_grad)
        said = self.plugin.shape(self.config()).num_params
        assert said == real, f"shape says {said} parameters, the model has {real}"

    def test_shape_counts_the_operations_there_are(self) -> None:
        from torch.backends import mkldnn
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        # The counter does not see fused CPU kernels.
        plain, slow = sdpa_kernel(SDPBackend.MATH), mkldnn.flags(enabled=False, allow_tf32=None)
        with plain, slow, FlopCounterMode(display=False) as counter:
            self.build()(self.inputs(1))
        real, said = counter.get_total_flops(), self.plugin.shape(self.config()).flops_per_sample
        assert abs(said - real) <= self.flops_tolerance * real, f"shape says {said} operations, torch counts {real}"

    def test_outputs_have_the_shape_it_says(self) -> None:
        outputs = self.build()(self.inputs(3))
        said = (3, *self.plugin.shape(self.config()).outputs)
        assert tuple(outputs.shape) == said, f"shape says {said}, the model gives {tuple(outputs.shape)}"

    def test_it_builds_on_the_meta_device(self) -> None:
        import torch

        with torch.device("meta"):
            module = self.plugin.build(self.config())
        on_meta = {name: tuple(parameter.shape) for name, parameter in module.named_parameters() if parameter.is_meta}
        real = {name: tuple(parameter.shape) for name, parameter in self.build().named_parameters()}
        assert on_meta == real, "parameters on the meta device differ from those of a real build"

    def test_a_sample_is_judged_by_itself(self) -> None:
        import torch

        module, inputs = self.build(), self.inputs(4)
        together, alone = module(inputs), torch.cat([module(inputs[at : at + 1]) for at in range(4)])
        torch.testing.assert_close(together, alone, msg="in eval mode a sample's output depends on its batch")

    def test_every_parameter_gets_a_gradient(self) -> None:
        module = self.build()
        module(self.inputs(4)).square().sum().backward()
        without = [name for name, parameter in module.named_parameters() if parameter.grad is None]
        assert not without, f"no gradient reaches {without}"

    def test_its_layers_in_a_row_are_the_model(self) -> None:
        import torch

        module, x = self.build(), self.inputs(2)
        layers = getattr(module, "layers", None)
        if layers is None:
            return  # allowed: such a model trains data-parallel and is not cut into stages
        whole = module(x)
        for layer in layers.values():
            x = layer(x)
        assert torch.equal(whole, x), "running module.layers one after the other differs from module(x)"

    def test_first_weights_are_a_function_of_seed_and_name(self) -> None:
        import torch

        fill = getattr(self.plugin, "init_parameter", None)
        if fill is None:
            return  # allowed: then it is built whole under a seeded generator
        for name, parameter in self.build().named_parameters():
            once, again = torch.full_like(parameter, torch.nan), torch.zeros_like(parameter)
            fill(name, once, seeded(name))
            fill(name, again, seeded(name))
            assert torch.isfinite(once).all(), f"init_parameter leaves {name} unfilled or not finite"
            assert torch.equal(once, again), f"init_parameter gives {name} other values for the same seed"

    def test_shard_units_are_submodules(self) -> None:
        declared = getattr(self.plugin, "shard_units", None)
        if declared is None:
            return
        module = self.build()
        known = dict(module.named_modules())
        for name in declared(module):
            assert name in known, f"shard_units names {name}, which the model does not have"


def seeded(name: str, seed: int = 0) -> Generator:
    """Return a CPU generator that depends on (seed, name) alone."""
    import torch

    number = hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7]
    return torch.Generator().manual_seed(int.from_bytes(number, "little"))


def run_without_torch(plugin: ModuleType, options: Mapping[str, Any]) -> None:
    """Import a plug-in and ask its shape in a process where torch, ray and mlflow cannot be imported."""
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'ray', 'mlflow')))\n"
        "import importlib\n"
        "from orchestrator import plugins\n"
        f"plugin = importlib.import_module({plugin.__name__!r})\n"
        f"plugin.shape(plugins.build_config(plugin.Config, {dict(options)!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{plugin.__name__} cannot be planned without torch:\n{done.stderr[-2000:]}"
