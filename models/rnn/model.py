"""The recurrent network's layers in torch. B batch, L sequence, F features, H hidden width."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ..layered import Layered
from . import Config, recurrent_names

_CELLS: dict[str, Callable[..., nn.Module]] = {"gru": nn.GRU, "lstm": nn.LSTM}


class Recurrent(nn.Module):
    """One recurrent layer that starts from a state of zeros and gives its output at every step."""

    def __init__(self, kind: str, inputs: int, hidden: int) -> None:
        super().__init__()
        self.cell = _CELLS[kind](inputs, hidden, batch_first=True)

    def forward(self, x_BLF: Tensor) -> Tensor:
        """Return [B, L, H]."""
        y_BLH: Tensor = self.cell(x_BLF)[0]
        return y_BLH


class Last(nn.Module):
    """The last step of a sequence."""

    def forward(self, x_BLH: Tensor) -> Tensor:
        """Return [B, H]."""
        return x_BLH[:, -1]


def build_rnn(config: Config) -> Layered:
    """Return (embedding), gru1 or lstm1, ..., (last), (dropout), head."""
    layers: dict[str, nn.Module] = {}
    width = config.features
    if config.vocab:
        layers["embedding"] = nn.Embedding(config.vocab, config.dim)
        width = config.dim
    for name in recurrent_names(config):
        layers[name] = Recurrent(config.kind, width, config.hidden)
        width = config.hidden
    if not config.vocab:
        layers["last"] = Last()
    if config.dropout:
        layers["dropout"] = nn.Dropout(config.dropout)
    layers["head"] = nn.Linear(width, config.vocab or config.classes)
    return Layered(layers)
