"""`use: synthetic`: made-up data of any size, a function of its own `seed`, to learn, test and measure with.

Numbers are drawn as integers and combined exactly, so every machine makes the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from orchestrator.data.order import random_words
from orchestrator.data.split import build_splits, digest, require_fractions, split_counts, split_indices
from orchestrator.plan.shapes import DataShape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from orchestrator.data.dataset import Dataset

_MAX_FEATURES = 4096  # sums of this many products of drawn integers are still exact in float64
_SCALE = 65536.0


@dataclass(frozen=True)
class Config:
    """What is made, and how much of it.

    blobs: `classes` clouds in `features` dims. regression: a random linear teacher, `outputs` values. xor: two inputs
    near 0 or 1, yes when exactly one is near 1. images: a bright patch on `channels` x `image_size` x `image_size`
    noise, its place is the class. `noise` is the spread: of a cloud, of the teacher's answer, around a corner (half the
    width), of a pixel.
    """

    kind: Literal["blobs", "regression", "xor", "images"] = "blobs"
    num_samples: int = 1024
    features: int = 2
    classes: int = 2
    outputs: int = 1
    channels: int = 1
    image_size: int = 8
    noise: float = 0.1
    seed: int = 0
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    split_seed: int = 0

    def __post_init__(self) -> None:
        require_fractions(self.val_fraction, self.test_fraction)
        sizes = ("num_samples", "features", "outputs", "channels", "image_size")
        for name, least in (*((size, 1) for size in sizes), ("classes", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.features > _MAX_FEATURES:
            raise ValueError(f"features must be at most {_MAX_FEATURES}, not {self.features}")
        if self.noise < 0:
            raise ValueError(f"noise must be at least 0, not {self.noise}")
        if self.kind == "images" and self.classes > self.image_size**2:
            raise ValueError(
                f"{self.classes} classes need as many places, {self.image_size} x {self.image_size} has fewer"
            )


def shape(config: Config) -> DataShape:
    """Return the data set in numbers; makes nothing."""
    inputs: tuple[int, ...] = (config.features,)
    targets: tuple[int, ...] = ()
    target_kind, classes = "class", tuple(map(str, range(config.classes)))
    if config.kind == "regression":
        targets, target_kind, classes = (config.outputs,), "value", ()
    elif config.kind == "xor":
        inputs, targets, target_kind, classes = (2,), (1,), "binary", ("no", "yes")
    elif config.kind == "images":
        inputs = (config.channels, config.image_size, config.image_size)
    counts = split_counts([config.num_samples], config.val_fraction, config.test_fraction)
    return DataShape(counts, inputs, targets, target_kind, classes)


def load(config: Config) -> Dataset:
    """Return inputs float32 and targets: int64 classes, or float32 [N, 1] yes/no, or float32 [N, outputs] values."""
    import numpy as np

    from orchestrator.data.dataset import Dataset

    inputs, targets = _MAKERS[config.kind](config)
    no_classes = np.zeros(config.num_samples, np.int64)
    rows = split_indices(no_classes, config.val_fraction, config.test_fraction, config.split_seed)
    return Dataset(
        splits=build_splits(inputs, targets, rows),
        shape=shape(config),
        name=f"synthetic-{config.kind}",
        source=f"synthetic {config.kind}, seed {config.seed}",
        digest=digest([inputs, targets, *rows.values()]),
    )


def _uniform(shape: tuple[int, ...], *key: str | int) -> NDArray[np.float64]:
    """Return numbers in 0 .. 1, of 32 random bits each."""
    import numpy as np

    words = random_words(int(np.prod(shape)), "synthetic", *key)
    numbers: NDArray[np.float64] = (words >> np.uint64(32)).astype(np.float64) / 2.0**32
    return numbers.reshape(shape)


def _normal(shape: tuple[int, ...], *key: str | int) -> NDArray[np.float64]:
    """Return nearly normal numbers (mean 0, deviation 1, within 6): sums of twelve 16-bit uniforms less their mean.

    Whole multiples of 2**-16, so products and sums of them are exact in float64.
    """
    import numpy as np

    words = random_words(3 * int(np.prod(shape)), "synthetic", *key)
    parts = words.astype("<u8").view("<u2").reshape(-1, 12).astype(np.int64)
    numbers: NDArray[np.float64] = (parts.sum(1) - 6 * 65536 + 6) / _SCALE
    return numbers.reshape(shape)


def _blobs(config: Config) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    import numpy as np

    centres = _normal((config.classes, config.features), "centres", config.seed)
    targets = np.arange(config.num_samples, dtype=np.int64) % config.classes
    spread = _normal((config.num_samples, config.features), "spread", config.seed)
    return (centres[targets] + config.noise * spread).astype(np.float32), targets


def _regression(config: Config) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    import numpy as np

    inputs = _normal((config.num_samples, config.features), "inputs", config.seed)
    teacher = _normal((config.features, config.outputs), "teacher", config.seed)
    noise = _normal((config.num_samples, config.outputs), "noise", config.seed)
    return inputs.astype(np.float32), (inputs @ teacher + config.noise * noise).astype(np.float32)


def _xor(config: Config) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    import numpy as np

    rows = np.arange(config.num_samples)
    corners = np.stack([rows & 1, (rows >> 1) & 1], axis=1)
    jitter = config.noise * (2 * _uniform((config.num_samples, 2), "jitter", config.seed) - 1)
    targets = (corners[:, :1] ^ corners[:, 1:]).astype(np.float32)
    return (corners + jitter).astype(np.float32), targets


def _images(config: Config) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    import numpy as np

    side, count = config.image_size, config.num_samples
    targets = np.arange(count, dtype=np.int64) % config.classes
    images = config.noise * _normal((count, config.channels, side * side), "pixels", config.seed)
    places = targets * (side * side) // config.classes
    images[np.arange(count), :, places] += 1.0
    return images.reshape(count, config.channels, side, side).astype(np.float32), targets


_MAKERS: dict[str, Callable[[Config], tuple[NDArray[np.float32], NDArray[np.generic]]]] = {
    "blobs": _blobs,
    "regression": _regression,
    "xor": _xor,
    "images": _images,
}
