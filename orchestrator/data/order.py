"""The sample order: which samples make up step k, and which of them a rank takes. Numbers only: no files, no torch.

The stream of samples is one permutation of the training split per epoch, end to end; step k takes the stream's
positions [k * batch_size, (k + 1) * batch_size). An epoch may end inside a batch: nothing is dropped, and nothing comes
twice within an epoch. So the order is a function of (seed, epoch, step), never of the layout.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.errors import PlanError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CACHED_EPOCHS = 2


def random_words(count: int, *key: str | int) -> NDArray[np.uint64]:
    """Return `count` random 64-bit words that depend on `key` alone.

    They are the raw output of Philox (Salmon et al. 2011) keyed by SHA-256: numpy keeps a bit generator's raw stream
    the same in every version and on every platform, which it does not promise of `permutation` or `normal`.
    """
    import numpy as np

    seed = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    words: NDArray[np.uint64] = np.random.Philox(key=int.from_bytes(seed[:16], "little")).random_raw(count)
    return words


def permutation(count: int, *key: str | int) -> NDArray[np.int64]:
    """Return 0 .. count - 1 in a random order that depends on (count, key) alone (int64)."""
    import numpy as np

    return np.argsort(random_words(count, *key), kind="stable").astype(np.int64, copy=False)


class SampleOrder:
    """The order in which training samples are used. Cheap to ask: the epochs at hand are kept."""

    def __init__(self, num_samples: int, batch_size: int, seed: int) -> None:
        if num_samples < 1 or batch_size < 1:
            raise PlanError(
                f"no order for {num_samples} samples in batches of {batch_size}", hint="both must be at least 1"
            )
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self._epochs: dict[int, NDArray[np.int64]] = {}

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Return the order of the samples in this epoch (counted from 0; int64 [num_samples]). Do not write to it."""
        if epoch not in self._epochs:
            while len(self._epochs) >= _CACHED_EPOCHS:
                self._epochs.pop(next(iter(self._epochs)))
            self._epochs[epoch] = permutation(self.num_samples, "order", self.seed, epoch)
        return self._epochs[epoch]

    def indices(self, step: int) -> NDArray[np.int64]:
        """Return the samples of this step over all ranks (steps counted from 0; int64 [batch_size])."""
        import numpy as np

        parts: list[NDArray[np.int64]] = []
        at, end = step * self.batch_size, (step + 1) * self.batch_size
        while at < end:
            epoch, offset = divmod(at, self.num_samples)
            part = self.epoch(epoch)[offset : offset + end - at]
            parts.append(part)
            at += len(part)
        return np.concatenate(parts)


def slice_for(
    indices: NDArray[np.int64], data_rank: int, num_data_ranks: int, accumulate: int
) -> list[NDArray[np.int64]]:
    """Return this rank's samples of a batch, one array per microbatch.

    The batch is cut into `accumulate` runs, each run into one piece per rank; together the pieces are the batch, and
    the runs are the same samples whatever the number of ranks. Raises PlanError when the batch does not divide.
    """
    pieces = accumulate * num_data_ranks
    if len(indices) % pieces:
        raise PlanError(
            f"a batch of {len(indices)} does not divide over {num_data_ranks} data ranks x {accumulate} accumulated",
            hint=f"make train.batch_size a multiple of {pieces}",
        )
    micro = len(indices) // pieces
    starts = [(run * num_data_ranks + data_rank) * micro for run in range(accumulate)]
    return [indices[start : start + micro] for start in starts]


@dataclass(frozen=True)
class EvalSlice:
    """One rank's part of one evaluation batch: `indices` (int64, always the same length), the first `num_valid` count.

    The rest is padding (the split's last sample), so that every rank runs the same number of equal batches.
    """

    indices: NDArray[np.int64]
    num_valid: int


def eval_slices(num_samples: int, eval_batch: int, data_rank: int, num_data_ranks: int) -> list[EvalSlice]:
    """Return this rank's parts of all evaluation batches, in order of the split; every sample is valid exactly once.

    Raises PlanError when `eval_batch` (samples over all ranks) does not divide over the ranks.
    """
    import numpy as np

    if eval_batch < 1 or eval_batch % num_data_ranks:
        raise PlanError(
            f"an evaluation batch of {eval_batch} does not divide over {num_data_ranks} data ranks",
            hint=f"make train.eval_batch_size a multiple of {num_data_ranks}",
        )
    part = eval_batch // num_data_ranks
    found: list[EvalSlice] = []
    for start in range(data_rank * part, data_rank * part + num_samples, eval_batch):
        rows = np.arange(start, start + part, dtype=np.int64)
        found.append(EvalSlice(np.minimum(rows, num_samples - 1), max(0, min(part, num_samples - start))))
    return found
