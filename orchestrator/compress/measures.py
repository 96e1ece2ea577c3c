"""Quality in numpy: loss, accuracy, agreement, signal to noise, over arrays of answers. Called by `check`.

Losses and accuracy are those of `train.loss` and `train.metrics`, which the checking process cannot import.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.errors import ExportError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

_LOSS_OF_KIND = {"class": "cross_entropy", "binary": "bce", "value": "mse"}
_TORCH_IGNORES = -100
"""Targets of this value add nothing to torch's cross-entropy where the job names no `ignore_index`; they do count."""


def quality(outputs: Array, targets: Array, kind: str, loss: Mapping[str, Any]) -> dict[str, float]:
    """Return the job's loss, and accuracy (classes, binary) or mean absolute error (values), over all samples.

    `loss` is as the page has it: `use`, `options` and `custom`; one that is `custom` is left out, as is an accuracy
    where outputs and targets do not go together. A page of before has none: it is the loss that fits `kind`.
    """
    import numpy as np

    found: dict[str, float] = {}
    options = loss.get("options", {})
    if not loss.get("custom"):
        found["loss"] = _loss(loss.get("use") or _fitting(outputs, kind), outputs, targets, options)
    if kind == "value":
        if outputs.size == targets.size:
            found["mae"] = float(np.abs(_numbers(outputs) - _numbers(targets)).mean())
        return found
    one_logit = outputs.shape[-1] == 1 or outputs.ndim == targets.ndim
    if one_logit and outputs.size == targets.size:
        guess = _numbers(outputs).reshape(targets.shape) > 0
    elif not one_logit and outputs.shape[:-1] == targets.shape:
        guess = outputs.argmax(axis=-1)
    else:
        return found
    ignored = options.get("ignore_index")
    right = guess == targets if ignored is None else (guess == targets)[targets != ignored]
    if right.size:  # where no target counts there is no share of them
        found["accuracy"] = float(right.mean())
    return found


def fidelity(outputs: Array, wanted: Array, kind: str) -> dict[str, float]:
    """Return signal-to-noise ratio in dB, relative error, and (classes, binary) how often the answer is the same."""
    import numpy as np

    reference, answers = wanted.astype(np.float64), outputs.astype(np.float64)
    noise = answers - reference
    signal, error = float(np.linalg.norm(reference)), float(np.linalg.norm(noise))
    found: dict[str, Any] = {
        "sqnr_db": 200.0 if error == 0 else min(200.0, float(20 * np.log10(max(signal, 1e-30) / error))),
        "relative": error / max(signal, 1e-30),
    }
    if kind == "binary" or (kind == "class" and (wanted.ndim == 1 or wanted.shape[-1] == 1)):
        found["agreement"] = float(((answers > 0) == (reference > 0)).mean())
    elif kind == "class":
        found["agreement"] = float((answers.argmax(axis=-1) == reference.argmax(axis=-1)).mean())
    return found


def _fitting(outputs: Array, kind: str) -> str:
    """Return the loss that a kind of target has; classes of one logit have no softmax to take."""
    return "bce" if kind == "class" and outputs.shape[-1] == 1 else _LOSS_OF_KIND[kind]


def _loss(name: str, outputs: Array, targets: Array, options: Mapping[str, Any]) -> float:
    import numpy as np

    if name == "cross_entropy":
        return _cross_entropy(outputs, targets, options)
    answers, wanted = _numbers(outputs), _numbers(targets)
    if name == "bce":  # over samples, whatever the number of logits of each
        terms = np.maximum(answers, 0) - answers * wanted + np.log1p(np.exp(-np.abs(answers)))
        return float(terms.sum() / len(targets))
    if name == "mse":
        return float(((answers - wanted) ** 2).mean())
    raise ExportError(f"the page names the loss {name}, which is not known here", hint="compress again")


def _cross_entropy(outputs: Array, targets: Array, options: Mapping[str, Any]) -> float:
    """Return the loss over the targets that count, a share of it (`label_smoothing`) over all classes alike."""
    import numpy as np

    named, smoothing = options.get("ignore_index"), options.get("label_smoothing", 0.0)
    wanted = targets.reshape(-1).astype(np.int64)
    kept = wanted != (_TORCH_IGNORES if named is None else named)
    count = len(wanted) if named is None else int(kept.sum())
    scores = outputs.reshape(-1, outputs.shape[-1]).astype(np.float64)[kept]
    wanted = wanted[kept]
    strange = wanted[(wanted < 0) | (wanted >= scores.shape[1])]
    if len(strange):
        raise ExportError(f"a target is class {strange[0]}, and the outputs are {scores.shape[1]} classes")
    top = scores.max(axis=1, keepdims=True)
    unlikely = np.log(np.exp(scores - top).sum(axis=1, keepdims=True)) + top - scores
    terms = (1 - smoothing) * unlikely[np.arange(len(wanted)), wanted] + smoothing * unlikely.mean(axis=1)
    return float(terms.sum() / max(1, count))


def _numbers(values: Array) -> NDArray[np.float64]:
    import numpy as np

    return values.reshape(-1).astype(np.float64)
