"""Loading under another layout, in one process, and what is refused with names and shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from orchestrator.checkpoint.load import load_consolidated, load_into
from orchestrator.checkpoint.manifest import CheckpointMeta
from orchestrator.checkpoint.verify import find_newest
from orchestrator.errors import CheckpointError
from orchestrator.testing.ranks import run_ranks
from tests.checkpoint.states import assert_same, full_model, make_state, make_store, save_steps

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def _save(rank: int, world_size: int, folder: str, layout: str, step: int) -> None:
    store = make_store(Path(folder), rank, world_size, background=True, attempt=step)
    store.save(make_state(step, layout, world_size), CheckpointMeta(step=step))
    store.wait()
    store.close()


def _load_and_save_on(rank: int, world_size: int, folder: str, layout: str, step: int) -> bool:
    store = make_store(Path(folder), rank, world_size, attempt=step)
    ref = store.find_newest()
    assert ref is not None
    state = make_state(99, layout, world_size)
    store.load_into(ref, state)
    assert_same(state, ref.step)
    exact = store.restore_rng(ref, seed=0)
    store.save(make_state(step, layout, world_size), CheckpointMeta(step=step))
    store.close()
    return exact


def test_a_state_is_resharded_from_2_to_4_to_1_process_bit_for_bit(tmp_path: Path) -> None:
    folder = str(tmp_path / "c")
    run_ranks(_save, 2, folder, "shard", 1)
    assert run_ranks(_load_and_save_on, 4, folder, "both", 2) == [False] * 4
    assert run_ranks(_load_and_save_on, 2, folder, "replicate", 3) == [False] * 2
    assert run_ranks(_load_and_save_on, 1, folder, "alone", 4) == [False]
    newest = find_newest(tmp_path / "c")
    assert newest is not None
    assert newest.step == 4


def test_the_weights_of_a_sharded_checkpoint_load_whole_in_one_process(tmp_path: Path) -> None:
    run_ranks(_save, 2, str(tmp_path / "c"), "shard", 6)
    ref = find_newest(tmp_path / "c")
    assert ref is not None
    weights, meta = load_consolidated(ref)
    assert meta.step == 6
    want = full_model(6)
    assert weights.keys() == want.keys()
    assert all(torch.equal(weights[name], want[name]) for name in want)


def _train(rank: int, world_size: int, folder: str, resume: bool, last_step: int) -> dict[str, torch.Tensor]:
    """Real FSDP2 and AdamW: train, saving at step 3 of `last_step`, or go on from there."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    if world_size > 1:
        mesh = init_device_mesh("cpu", (world_size,))
        for layer in model:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    store = make_store(Path(folder), rank, world_size, background=True)
    begin = 0
    if resume:
        ref = store.find_newest()
        assert ref is not None
        state = _state_of(model, optimizer)
        begin = store.load_into(ref, state).step
        set_model_state_dict(model, state["model"])
        set_optimizer_state_dict(model, optimizer, state["optim"])
    for step in range(begin, last_step):
        inputs = torch.randn(8, 5, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        model(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 2 and not resume:
            store.save(_state_of(model, optimizer), CheckpointMeta(step=3))
    store.wait()
    store.close()
    return {name: _whole(tensor) for name, tensor in model.state_dict().items()}


def _state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"model": get_model_state_dict(model), "optim": get_optimizer_state_dict(model, optimizer)}


def _whole(tensor: Any) -> torch.Tensor:
    full: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().clone()


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_sharded_model_and_its_optimiser_go_on_from_a_save_made_while_they_trained(
    tmp_path: Path, world_size: int
) -> None:
    whole = run_ranks(_train, 2, str(tmp_path / "c"), False, 6)[0]
    resumed = run_ranks(_train, world_size, str(tmp_path / "c"), True, 6)[0]
    for name, tensor in whole.items():
        if world_size == 2:
            assert torch.equal(resumed[name], tensor), name
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-9, atol=1e-12)


def test_the_weights_alone_can_be_loaded(tmp_path: Path) -> None:
    (ref,) = save_steps(tmp_path / "c", 4)
    state = make_state(1)
    del state["optim"]
    load_into(ref, state)
    assert all(torch.equal(state["model"][name], tensor) for name, tensor in full_model(4).items())


def test_another_model_is_refused_with_names(tmp_path: Path) -> None:
    (ref,) = save_steps(tmp_path / "c", 1)
    state = make_state(1)
    state["model"]["tail.weight"] = torch.zeros(2)
    del state["model"]["conv.bias"]
    with pytest.raises(CheckpointError, match=r"it lacks model/tail.weight; the job lacks model/conv.bias"):
        load_into(ref, state)


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (torch.zeros(10, 7), r"head.weight was saved as float32\[10, 6\], the job has float32\[10, 7\]"),
        (torch.zeros(10, 6, dtype=torch.float64), r"float32\[10, 6\], the job has float64\[10, 6\]"),
        (3.5, "head.weight is a tensor on one side only"),
    ],
)
def test_another_shape_or_precision_is_refused_before_anything_is_written(
    tmp_path: Path, tensor: Any, told: str
) -> None:
    (ref,) = save_steps(tmp_path / "c", 2)
    state = make_state(1)
    state["model"]["head.weight"] = tensor
    with pytest.raises(CheckpointError, match=told):
        load_into(ref, state)
    assert torch.equal(state["model"]["conv.weight"], full_model(1)["conv.weight"])


def _load_damaged(rank: int, world_size: int, folder: str) -> str:
    ref = find_newest(Path(folder))
    assert ref is not None
    store = make_store(Path(folder), rank, world_size)
    shard = ref.path / "__1_0.distcp"
    store.find_newest()
    if rank == 0:
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    torch.distributed.barrier()
    try:
        store.load_into(ref, make_state(1, "shard", world_size))
    except CheckpointError as error:
        return error.message
    finally:
        store.close()
    return ""


def test_damage_after_the_choice_is_found_by_whichever_rank_hashes_the_file_and_told_to_all(tmp_path: Path) -> None:
    run_ranks(_save, 2, str(tmp_path / "c"), "shard", 1)
    first, second = run_ranks(_load_damaged, 2, str(tmp_path / "c"))
    assert first == second
    assert "__1_0.distcp has other content than was saved" in first
