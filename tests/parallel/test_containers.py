"""A container sums its input's gradient only where that is the gradient of one rank's part, whole and once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestrator.models.declare import Split
from orchestrator.parallel.containers import summing_containers

COLUMN, ROW, CONTAINER = Split("column", output="split"), Split("row", "split"), Split("gather")
PLAN = {"a": CONTAINER, "a.up": COLUMN, "a.gate": COLUMN, "a.down": ROW}


class Gated(nn.Module):
    """Two column layers that share an input, a row layer, and what a test adds."""

    def __init__(self, **more: nn.Module) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        for name, child in more.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down(self.up(x) * self.gate(x))
        return result


def model(**children: nn.Module) -> nn.Module:
    return nn.ModuleDict(children)


def led(module: nn.Module, plan: dict[str, Split]) -> set[str]:
    chosen = summing_containers(module, plan)
    return {name for name, child in module.named_modules() if child in chosen}


def test_a_container_sums_for_the_column_layers_that_share_its_input() -> None:
    assert led(model(a=Gated()), PLAN) == {"a", "a.up", "a.gate"}


def test_pieces_of_sequences_are_gathered_once_too() -> None:
    plan = {**PLAN, "a": Split("gather", "sequence"), "a.down": Split("row", "split", "sequence")}
    assert led(model(a=Gated()), plan) == {"a", "a.up", "a.gate"}


def test_a_weight_that_is_no_column_layers_keeps_the_sums_in_the_layers() -> None:
    assert led(model(a=Gated(router=nn.Linear(4, 2))), PLAN) == set()
    own = Gated()
    own.register_parameter("place", nn.Parameter(torch.zeros(4)))
    assert led(model(a=own), PLAN) == set()


def test_a_second_pair_inside_needs_a_sum_between_the_two() -> None:
    plan = {**PLAN, "a.next": COLUMN, "a.last": ROW}
    assert led(model(a=Gated(next=nn.Linear(4, 4), last=nn.Linear(4, 4))), plan) == set()


def test_of_containers_in_one_another_the_inner_one_sums() -> None:
    plan = {"a": CONTAINER} | {f"a.inner{name[1:]}": how for name, how in PLAN.items()}
    assert led(model(a=model(inner=Gated())), plan) == {"a.inner", "a.inner.up", "a.inner.gate"}


def test_a_result_that_is_cut_was_computed_alike_on_every_rank() -> None:
    assert led(model(a=Gated()), {**PLAN, "a": Split("gather", "sequence", "sequence")}) == set()


def test_a_repeated_block_is_one_container() -> None:
    block = Gated()
    plan = PLAN | {f"b{name[1:]}": how for name, how in PLAN.items()}
    assert led(model(a=block, b=block), plan) == {"a", "a.up", "a.gate"}


def test_a_column_layer_that_is_used_elsewhere_too_sums_for_itself_everywhere() -> None:
    first, second = Gated(), Gated()
    second.up = first.up
    both = PLAN | {f"b{name[1:]}": how for name, how in PLAN.items()}
    assert led(model(a=first, b=second), both) == {"a", "a.up", "a.gate", "b", "b.gate"}, "each use is in a container"
    assert led(model(a=first, b=second), {**PLAN, "b.gate": COLUMN, "b.down": ROW}) == set()
    assert led(model(a=first, other=first.up), PLAN) == set()
