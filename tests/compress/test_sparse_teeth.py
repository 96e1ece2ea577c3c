"""Every way a file "in 2:4" can be a lie fails the check."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.compress.manifest import read_page
from orchestrator.compress.pipeline import Outcome, Trained
from orchestrator.compress.runtimes.base import runtime_of
from orchestrator.compress.sparse import Halves, Product, keep_two
from orchestrator.compress.writers.sparse import to_sparse
from orchestrator.errors import ExportError
from orchestrator.export.program import load_program, save_program
from orchestrator.spec.load import load_spec

from .making import check_here, context_of, flip_a_byte, make_trained, rewrite
from .pretended import pretended_gpu
from .test_float8 import job
from .test_float8_teeth import claim, with_layers
from .test_sparse import STEPS, WIDE, make_good, zeroed


@pytest.fixture(scope="module")
def trained() -> Trained:
    """A model with zeros in two of every four weights."""
    with pretended_gpu():
        made = make_trained(load_spec(job(WIDE, steps=STEPS)), epochs=3)
    for layer in made.model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data = zeroed(layer.weight.data)
    return made


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return make_good(tmp_path_factory.mktemp("good"))


def says(trained: Trained, model: nn.Module, folder: Path) -> Path:
    """Return an artifact that says a model's program is 2:4, and small."""
    place = claim(trained, model, folder)
    rewrite(place, scheme="2:4", target="cuda")
    return place


def judged(place: Path) -> None:
    with pretended_gpu():
        check_here(place)


class Rounded(nn.Module):
    """Zeros that lie in the file as numbers, of 16 bits each."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", layer.weight.detach().bfloat16())
        self.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        low = functional.linear(torch.ops.aten._to_copy.default(x, dtype=torch.bfloat16), self.weight)
        return torch.ops.aten._to_copy.default(low, dtype=torch.float32) + self.bias


class Masked(nn.Module):
    """A whole weight, and a mask that is laid over it at every call."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        noise = torch.randn_like(layer.weight) * (layer.weight == 0)
        self.register_buffer("weight", (layer.weight.detach() + noise).bfloat16())
        self.register_buffer("mask", layer.weight.detach() != 0)
        self.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        low = functional.linear(torch.ops.aten._to_copy.default(x, dtype=torch.bfloat16), self.weight * self.mask)
        return torch.ops.aten._to_copy.default(low, dtype=torch.float32) + self.bias


class Beside(nn.Module):
    """Two of four, and the very weights in floats beside them, read so that they count for nothing."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.rows, self.layer = Halves(), layer
        self.product = Product(*keep_two(layer.weight), layer.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        wanted: Tensor = self.product(self.rows(x), x)
        return wanted + 0 * self.layer(x)


@pytest.mark.parametrize("kind", [lambda layer: layer, Rounded, Masked])
def test_zeros_that_are_kept_as_numbers_fail(trained: Trained, tmp_path: Path, kind: type[nn.Module]) -> None:
    place = says(trained, with_layers(trained, kind), tmp_path)
    with pytest.raises(ExportError, match="2:4 in name only: the program keeps no weight as two of four"):
        judged(place)


def test_the_weights_in_floats_beside_them_fail(trained: Trained, tmp_path: Path) -> None:
    place = says(trained, with_layers(trained, Beside), tmp_path)
    with pytest.raises(ExportError, match=r"2:4 reached 4\d\.\d% of the weights, 50% are needed"):
        judged(place)


class Lifted(nn.Module):
    """As `Beside`, the floats as a plain tensor, which becomes a constant of the program."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.rows, self.constant = Halves(), layer.weight.detach().clone()
        self.product = Product(*keep_two(layer.weight), layer.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        wanted: Tensor = self.product(self.rows(x), x)
        return wanted + 0 * functional.linear(x, self.constant)


class BlownUp(nn.Module):
    """A layer that works, and one row of two of four, repeated to a weight far larger, that nothing needs."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer, self.rows = layer, Halves()
        row = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.bfloat16).repeat(1, layer.in_features // 4)
        self.register_buffer("row", row)

    def forward(self, x: Tensor) -> Tensor:
        wide = functional.linear(self.rows(x), self.row.expand(8 * 256, -1).clone())
        answer: Tensor = self.layer(x)
        return answer + 0 * torch.ops.aten._to_copy.default(wide.sum(), dtype=torch.float32)


class ForShow(nn.Module):
    """A whole layer of bfloat16 that works, and a large one of two of four that nothing needs."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.work, self.rows = Rounded(layer), Halves()
        noise = zeroed(torch.randn(4 * layer.out_features // 32 * 32 or 32, layer.in_features))
        self.product = Product(*keep_two(noise), None)

    def forward(self, x: Tensor) -> Tensor:
        work: Tensor = self.work(x)
        return work + 0 * self.product(self.rows(x), x).sum()


def test_floats_that_are_constants_count_too(trained: Trained, tmp_path: Path) -> None:
    place = says(trained, with_layers(trained, Lifted), tmp_path)
    with pytest.raises(ExportError, match=r"2:4 reached 4\d\.\d% of the weights, 50% are needed"):
        judged(place)


def test_a_weight_that_is_blown_up_is_none_of_two_of_four(trained: Trained, tmp_path: Path) -> None:
    place = says(trained, with_layers(trained, BlownUp), tmp_path)
    with pytest.raises(ExportError, match="2:4 in name only"):
        judged(place)


def test_weights_for_show_fail(trained: Trained, tmp_path: Path) -> None:
    place = says(trained, with_layers(trained, ForShow), tmp_path)
    rewrite(place, baseline_bytes=read_page(place).baseline_bytes // 100)  # `says` makes any file look small
    with pytest.raises(ExportError, match=r"holds \d+,\d+ weights, zeros counted, and the model it was made of had"):
        judged(place)


def test_a_layer_of_many_fails(trained: Trained, tmp_path: Path) -> None:
    model = with_layers(trained, lambda layer: Only(layer) if layer.in_features == 64 else layer)
    place = says(trained, model, tmp_path)
    with pytest.raises(ExportError, match=r"2:4 reached 19\.\d% of the weights.*the largest others: layers\.hidden2"):
        judged(place)


class Only(nn.Module):
    """A layer that keeps two of four."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.rows, self.product = Halves(), Product(*keep_two(layer.weight), layer.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        wanted: Tensor = self.product(self.rows(x), x)
        return wanted


def test_one_flipped_byte_fails(copied: Path) -> None:
    flip_a_byte(copied / "model.pt2")
    with pytest.raises(ExportError, match="was altered"):
        judged(copied)


@pytest.mark.parametrize("which", ["places", "values"])
def test_other_places_or_values_fail_even_when_the_hash_fits(copied: Path, which: str) -> None:
    program = load_program(copied / "model.pt2")
    for name, value in program.state_dict.items():
        if name.endswith(which):
            value.copy_(value.flip(0))
    save_program(program, copied / "model.pt2")
    rewrite(copied)
    with pytest.raises(ExportError, match="answers otherwise than the model it was made of"):
        judged(copied)


def test_another_models_two_of_four_fail(trained: Trained, copied: Path, tmp_path: Path) -> None:
    other = copy.deepcopy(trained.model)
    for parameter in other.parameters():
        parameter.data = parameter.data * (1 + 0.5 * torch.randn_like(parameter))
    program, _ = to_sparse(other, context_of(trained, tmp_path))
    save_program(program, copied / "model.pt2")
    rewrite(copied)
    with pytest.raises(ExportError, match="answers otherwise than the model it was made of"):
        judged(copied)


def test_a_target_that_nothing_runs_on_fails() -> None:
    with pytest.raises(ExportError, match="program on tpu is not known here"):
        runtime_of("program", "tpu")
    with pytest.raises(ExportError, match="onnx on cuda is not known here"):
        runtime_of("onnx", "cuda")
