"""Every way a file "in float8" can be a lie fails the check."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.compress.float8 import Product, Rows, round_rows
from orchestrator.compress.pipeline import Outcome, Trained, compress
from orchestrator.compress.writers.float8 import to_float8
from orchestrator.compress.writers.program import trace_lean
from orchestrator.errors import ExportError
from orchestrator.export.program import load_program, save_program
from orchestrator.spec.load import load_spec

from .making import check_here, context_of, flip_a_byte, lay_out, make_trained, rewrite
from .test_float8 import job

MODEL = {"use": "mlp", "inputs": 64, "hidden": [256, 256], "outputs": 10}


@pytest.fixture(scope="module")
def trained() -> Trained:
    return make_trained(load_spec(job(MODEL)), epochs=3)


@pytest.fixture(scope="module")
def good(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    outcome = compress(trained, tmp_path_factory.mktemp("good") / "compress", timed=False)
    assert outcome.ok, outcome.error
    return outcome


def with_layers(trained: Trained, make: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """Return the model with others in place of its linear layers."""
    model = copy.deepcopy(trained.model)
    for name, part in list(model.named_modules()):
        if isinstance(part, nn.Linear):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, make(part))
    return model.eval()


def claim(trained: Trained, model: nn.Module, folder: Path) -> Path:
    """Return an artifact that says a model's program is in float8, and small."""
    save_program(trace_lean(model, context_of(trained, folder)), folder / "model.pt2")
    place = lay_out(trained, folder / "model.pt2", folder / "compress", trained.model, "float8", "program")
    rewrite(place, baseline_bytes=10**8)
    return place


class Unpacked(nn.Module):
    """Kept in float8, multiplied in floats."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight, scale = round_rows(layer.weight.detach())
        self.register_buffer("weight", weight[: layer.out_features])
        self.register_buffer("scale", scale[0, : layer.out_features, None].clone())
        self.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.ops.aten._to_copy.default(self.weight, dtype=torch.float32)
        return functional.linear(x, weight * self.scale, self.bias)


class Rounded(nn.Module):
    """Kept in floats, rounded at every call."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.rows, self.layer = Rows(layer.in_features), layer

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = self.rows(x)
        weight, scales = self.rows(functional.pad(self.layer.weight, (0, 0, 0, -len(self.layer.weight) % 16)))
        y = torch._scaled_mm(rows, weight.t(), scale, scales.t().contiguous(), out_dtype=torch.bfloat16)
        y = torch.ops.aten._to_copy.default(y, dtype=torch.float32)
        return y[:, : len(self.layer.weight)] + self.layer.bias


class Half(nn.Module):
    """In float8, and the very weights in floats beside it, read so that they count for nothing."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.rows, self.layer = Rows(layer.in_features), layer
        self.product = Product(*round_rows(layer.weight.detach()), layer.bias.detach(), layer.out_features)

    def forward(self, x: Tensor) -> Tensor:
        wanted: Tensor = self.product(*self.rows(x), x)
        return wanted + 0 * self.layer(x)


def test_floats_under_the_name_of_float8_fail(trained: Trained, tmp_path: Path) -> None:
    place = claim(trained, trained.model, tmp_path)
    with pytest.raises(ExportError, match="float8 in name only: the program multiplies nothing in float8"):
        check_here(place)


def test_float8_that_is_turned_back_into_floats_fails(trained: Trained, tmp_path: Path) -> None:
    place = claim(trained, with_layers(trained, Unpacked), tmp_path)
    with pytest.raises(ExportError, match="float8 in name only"):
        check_here(place)


def test_floats_that_are_rounded_at_every_call_fail(trained: Trained, tmp_path: Path) -> None:
    place = claim(trained, with_layers(trained, Rounded), tmp_path)
    with pytest.raises(ExportError, match=r"float8 reached 0\.0% of the weights.*in other types: layers\.hidden2"):
        check_here(place)


def test_floats_beside_float8_fail(trained: Trained, tmp_path: Path) -> None:
    place = claim(trained, with_layers(trained, Half), tmp_path)
    with pytest.raises(ExportError, match=r"float8 reached (49|50)\..% of the weights"):
        check_here(place)


def test_dead_fp32_weights_fail(trained: Trained, tmp_path: Path, copied: Path) -> None:
    model = with_layers(trained, lambda layer: Half(layer).product)
    rows = Rows(256)

    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.product, self.left = model.layers["head"], nn.Linear(256, 256)

        def forward(self, x: Tensor) -> Tensor:
            wanted: Tensor = self.product(*rows(x), x)
            return wanted

    program = torch.export.export(
        Beside().eval(), (torch.rand(2, 256),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    save_program(program, copied / "model.pt2")
    rewrite(copied)
    with pytest.raises(ExportError, match=r"carries weights that no operator reads: left\.bias, left\.weight"):
        check_here(copied)


def test_one_flipped_byte_fails(copied: Path) -> None:
    flip_a_byte(copied / "model.pt2")
    with pytest.raises(ExportError, match="was altered"):
        check_here(copied)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_scales_of_zero_fail_even_when_the_hash_fits(copied: Path, which: int) -> None:
    program = load_program(copied / "model.pt2")
    names = sorted(name for name in program.state_dict if name.endswith("scale"))
    program.state_dict[names[which]].zero_()
    save_program(program, copied / "model.pt2")
    rewrite(copied)
    with pytest.raises(ExportError, match="answers otherwise than the model it was made of"):
        check_here(copied)


def test_another_models_float8_fails(trained: Trained, copied: Path, tmp_path: Path) -> None:
    other = copy.deepcopy(trained.model)
    for parameter in other.parameters():
        parameter.data = parameter.data + 0.05 * torch.randn_like(parameter)
    program, _ = to_float8(other, context_of(trained, tmp_path))
    save_program(program, copied / "model.pt2")
    rewrite(copied)
    with pytest.raises(ExportError, match="answers otherwise than the model it was made of"):
        check_here(copied)
