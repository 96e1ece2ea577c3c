"""Quality in numpy: loss, accuracy, agreement, signal to noise, over arrays of answers. Called by `check`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]


def quality(outputs: Array, targets: Array, kind: str) -> dict[str, float]:
    """Return loss and accuracy (classes, binary), or loss and mean absolute error (values), over all samples."""
    import numpy as np

    if kind == "class":
        scores = outputs.reshape(-1, outputs.shape[-1]).astype(np.float64)
        wanted = targets.reshape(-1).astype(np.int64)
        top = scores.max(axis=1)
        spread = np.log(np.exp(scores - top[:, None]).sum(axis=1)) + top
        loss = float((spread - scores[np.arange(len(wanted)), wanted]).mean())
        return {"loss": loss, "accuracy": float((scores.argmax(axis=1) == wanted).mean())}
    answers, wanted = outputs.reshape(-1).astype(np.float64), targets.reshape(-1).astype(np.float64)
    if kind == "binary":
        loss = float((np.maximum(answers, 0) - answers * wanted + np.log1p(np.exp(-np.abs(answers)))).mean())
        return {"loss": loss, "accuracy": float(((answers > 0) == (wanted > 0.5)).mean())}
    return {"loss": float(((answers - wanted) ** 2).mean()), "mae": float(np.abs(answers - wanted).mean())}


def fidelity(outputs: Array, wanted: Array, kind: str) -> dict[str, float]:
    """Return signal-to-noise ratio in dB, relative error, and (classes) how often the best class is the same."""
    import numpy as np

    reference, noise = wanted.astype(np.float64), outputs.astype(np.float64) - wanted.astype(np.float64)
    signal, error = float(np.linalg.norm(reference)), float(np.linalg.norm(noise))
    found: dict[str, Any] = {
        "sqnr_db": 200.0 if error == 0 else min(200.0, float(20 * np.log10(max(signal, 1e-30) / error))),
        "relative": error / max(signal, 1e-30),
    }
    if kind == "class":
        found["agreement"] = float((outputs.argmax(axis=-1) == wanted.argmax(axis=-1)).mean())
    return found
