"""Random-number states of one rank: taken at a save, put back at a resume of equal size, derived anew otherwise."""

from __future__ import annotations

import hashlib
import math
import random
import sys
from collections.abc import Mapping
from typing import Any

import torch

from orchestrator.checkpoint.manifest import CheckpointRef
from orchestrator.checkpoint.verify import read_verified
from orchestrator.errors import CheckpointError


def file_name(rank: int) -> str:
    """Return the name of a rank's file in a checkpoint."""
    return f"rng-{rank}.safetensors"


def capture() -> dict[str, torch.Tensor]:
    """Return the states of torch (CPU and current GPU), Python and, where loaded, NumPy generators, as CPU tensors."""
    _, words, gauss = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor([math.nan if gauss is None else gauss], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    if "numpy" in sys.modules:
        state: dict[str, Any] = sys.modules["numpy"].random.get_state(legacy=False)
        states["numpy"] = torch.tensor(state["state"]["key"].tolist(), dtype=torch.int64)
        numbers = [state["state"]["pos"], state["has_gauss"], state["gauss"]]
        states["numpy_position"] = torch.tensor(numbers, dtype=torch.float64)
    return states


def restore(states: Mapping[str, torch.Tensor]) -> None:
    """Put back what `capture` returned. Raises CheckpointError when the states have an impossible shape."""
    try:
        torch.set_rng_state(states["torch"])
        gauss = states["python_gauss"].item()
        words = tuple(int(word) for word in states["python"].tolist())
        random.setstate((3, words, None if math.isnan(gauss) else gauss))
        if "cuda" in states and torch.cuda.is_available():
            torch.cuda.set_rng_state(states["cuda"])
        if "numpy" in states:
            _restore_numpy(states["numpy"], states["numpy_position"])
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"random-number states cannot be restored: {error}") from error


def restore_from(ref: CheckpointRef, *, rank: int, world_size: int, seed: int) -> bool:
    """Set this rank's generators from a checkpoint; return whether they go on exactly where they were.

    With another number of ranks there is no state to go on from: every generator is seeded by (seed, step, rank).
    """
    if ref.manifest.world_size != world_size:
        reseed(seed, ref.step, rank)
        return False
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = read_verified(ref.path, ref.manifest.entry(file_name(rank)))
    try:
        states = load(data)
    except SafetensorError as error:
        raise CheckpointError(f"random-number states in {ref.path} cannot be read: {error}") from error
    restore(states)
    return True


def reseed(seed: int, step: int, rank: int) -> None:
    """Seed every generator of this process by a hash of (seed, step, rank)."""
    number = int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:8], "big")
    torch.manual_seed(number)
    random.seed(number)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(number % 2**32)


def to_bytes(states: dict[str, torch.Tensor]) -> bytes:
    """Return the content of a rank's file."""
    from safetensors.torch import save

    return save(states)


def _restore_numpy(key: torch.Tensor, position: torch.Tensor) -> None:
    import numpy

    place, has_gauss, gauss = position.tolist()
    words = numpy.asarray(key.tolist(), dtype=numpy.uint32)
    numpy.random.set_state(("MT19937", words, int(place), int(has_gauss), gauss))
