"""`use: text`: real text byte by byte, packed into windows; each byte is to be predicted from those before it.

`files` is a glob from the folder the command runs in; `corpus: python` takes the sources of Python's own standard
library, which are on every machine. Reading and the cache are in `text_files`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from orchestrator.data.split import SPLITS, digest, require_fractions, split_indices
from orchestrator.data.text_files import TextFile, bounded, load_stream, matching, python_sources, stream_bytes
from orchestrator.plan.shapes import DataShape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from orchestrator.data.dataset import Dataset

NUM_BYTES = 256


@dataclass(frozen=True)
class Config:
    """Which text, how long a window is (`seq_len` bytes in, the same moved by one to predict), and how it is divided.

    The first `max_bytes` of the files in order of their names are used. `split_by: document` puts whole files into one
    split; `window` divides windows, for one long file. `cache` is a folder (absent: the user's cache folder).
    """

    files: str | None = None
    corpus: Literal["python"] | None = None
    seq_len: int = 128
    max_bytes: int = 4_000_000
    split_by: Literal["document", "window"] = "document"
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    split_seed: int = 0
    cache: str | None = None

    def __post_init__(self) -> None:
        require_fractions(self.val_fraction, self.test_fraction)
        if (self.files is None) == (self.corpus is None):
            raise ValueError("give either files (a glob such as books/*.txt) or corpus: python")
        if self.seq_len < 1:
            raise ValueError(f"seq_len must be at least 1, not {self.seq_len}")
        if self.max_bytes <= self.seq_len:
            raise ValueError(f"max_bytes {self.max_bytes} must be more than seq_len {self.seq_len}, one window")


def shape(config: Config) -> DataShape:
    """Return the data set in numbers; looks at the files' sizes. Raises ValueError when a split would be empty."""
    return _shape(config, _arrange(config)[1])


def load(config: Config) -> Dataset:
    """Return inputs int64 [N, seq_len] and targets int64 [N, seq_len], the byte that follows each input."""
    import numpy as np

    from orchestrator.data.dataset import Dataset

    files, starts = _arrange(config)
    stream, content = load_stream(files, config.cache)
    name = np.frombuffer(f"{content}/{config.seq_len}".encode(), dtype=np.uint8)
    return Dataset(
        splits={split: TextSplit(stream, at, config.seq_len) for split, at in starts.items()},
        shape=_shape(config, starts),
        name="python-sources" if config.corpus else "text",
        source=_source(config, files),
        digest=digest([name, *starts.values()]),
        transform={"encoding": "bytes"},
    )


class TextSplit:
    """Windows of one byte stream by where they start; a batch is one indexing of the mapped file."""

    def __init__(self, stream: NDArray[np.uint8], starts: NDArray[np.int64], seq_len: int) -> None:
        self.stream = stream
        self.starts = starts
        self.seq_len = seq_len

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return (inputs, targets), int64 [B, seq_len] each; targets are inputs moved on by one byte."""
        import numpy as np
        import torch

        at_BL = self.starts[indices.numpy()][:, None] + np.arange(self.seq_len + 1)
        window_BL = torch.from_numpy(self.stream[at_BL].astype(np.int64))
        return window_BL[:, :-1].contiguous(), window_BL[:, 1:].contiguous()


def _files(config: Config) -> list[TextFile]:
    pairs = python_sources() if config.files is None else matching(config.files)
    files = bounded(pairs, config.max_bytes)
    if not files:
        raise ValueError(f"no text in {config.files or 'the standard library'}: it matches no file that is not empty")
    return files


def _arrange(config: Config) -> tuple[list[TextFile], dict[str, NDArray[np.int64]]]:
    """Return the files in order of the stream, and where in it every split's windows start (int64)."""
    files = _files(config)
    arrange = _by_document if config.split_by == "document" else _by_window
    ordered, starts = arrange(config, files)
    wanted = {"train": 1.0, "val": config.val_fraction, "test": config.test_fraction}
    empty = [name for name in SPLITS if wanted[name] > 0 and not len(starts[name])]
    if empty:
        raise ValueError(
            f"{len(files)} files of {stream_bytes(files)} bytes leave no window of {config.seq_len} for "
            f"{' and '.join(empty)}; use more text, a smaller seq_len, split_by: window, or set the fraction to 0"
        )
    return ordered, starts


def _by_document(config: Config, files: list[TextFile]) -> tuple[list[TextFile], dict[str, NDArray[np.int64]]]:
    """Lay the files of each split end to end; a window may reach over the end of a file, never over that of a split."""
    import numpy as np

    one_group = np.zeros(len(files), np.int64)
    chosen = split_indices(one_group, config.val_fraction, config.test_fraction, config.split_seed)
    ordered: list[TextFile] = []
    starts: dict[str, NDArray[np.int64]] = {}
    for name, documents in chosen.items():
        part = [files[at] for at in documents.tolist()]
        starts[name] = stream_bytes(ordered) + _windows(stream_bytes(part), config.seq_len)
        ordered += part
    return ordered, starts


def _by_window(config: Config, files: list[TextFile]) -> tuple[list[TextFile], dict[str, NDArray[np.int64]]]:
    import numpy as np

    starts = _windows(stream_bytes(files), config.seq_len)
    one_group = np.zeros(len(starts), np.int64)
    chosen = split_indices(one_group, config.val_fraction, config.test_fraction, config.split_seed)
    return files, {name: starts[rows] for name, rows in chosen.items()}


def _windows(num_bytes: int, seq_len: int) -> NDArray[np.int64]:
    import numpy as np

    return np.arange(max(0, num_bytes - 1) // seq_len, dtype=np.int64) * seq_len


def _shape(config: Config, starts: dict[str, NDArray[np.int64]]) -> DataShape:
    return DataShape(
        num_samples={name: len(part) for name, part in starts.items()},
        inputs=(config.seq_len,),
        targets=(config.seq_len,),
        target_kind="class",
        classes=tuple(map(str, range(NUM_BYTES))),
        input_dtype="int64",
    )


def _source(config: Config, files: list[TextFile]) -> str:
    what = config.files or "Python standard library sources"
    return f"{what}: {len(files)} files, {sum(file.num_bytes for file in files)} bytes"
