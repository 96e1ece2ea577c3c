"""A mixture of experts in torch: router, experts, and the way there and back.

B batch, L sequence, D width, T tokens (B x L), K choices of a token, N = T x K places at experts, E experts, H hidden.
Nothing here knows of ranks: `Experts` takes rows sorted by expert and their counts, so whoever spreads experts over
ranks wraps that one call.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..attention import GatedFeedForward
from ..layered import Layered
from ..transformer.model import build_transformer
from . import Config
from .load import LoadStatistics


class Router(nn.Module):
    """Scores every token for every expert and picks the best `top_k` (Shazeer et al. 2017)."""

    bias: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.top_k = config.top_k
        self.sigmoid = config.score == "sigmoid"
        self.weight = nn.Parameter(torch.empty(config.experts, config.dim))
        nn.init.normal_(self.weight, std=config.dim**-0.5)
        self.register_buffer("bias", torch.zeros(config.experts))

    def reset_buffers(self) -> None:
        """Start with a bias of 0."""
        self.bias.zero_()

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (gates [T, K], experts [T, K], logits [T, E]).

        The bias enters the choice only, never a weight (Wang et al. 2024), so it needs no gradient.
        """
        if torch.is_autocast_enabled(x_TD.device.type):
            with torch.autocast(x_TD.device.type, enabled=False):
                return self._choose(_wide(x_TD))
        return self._choose(_wide(x_TD))

    def _choose(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits_TE = functional.linear(x_TD, _wide(self.weight))
        scores_TE = self.probabilities(logits_TE)
        chosen_TK = (scores_TE.detach() + self.bias).topk(self.top_k, dim=-1).indices
        gates_TK = scores_TE.gather(-1, chosen_TK)
        if self.top_k > 1:  # with one choice a weight of 1 would leave the router without a gradient
            gates_TK = gates_TK / (gates_TK.sum(-1, keepdim=True) + 1e-20)
        return gates_TK, chosen_TK, logits_TE

    def probabilities(self, logits_TE: Tensor) -> Tensor:
        """Return the scores of all experts for each token."""
        return logits_TE.sigmoid() if self.sigmoid else logits_TE.softmax(-1)


class Experts(nn.Module):
    """All experts' SwiGLU weights in three stacks. How many there are is read off the stacks."""

    def __init__(self, experts: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.empty(experts, hidden, dim))
        self.w2 = nn.Parameter(torch.empty(experts, dim, hidden))
        self.w3 = nn.Parameter(torch.empty(experts, hidden, dim))
        for weight in (self.w1, self.w2, self.w3):
            nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)

    def forward(self, rows_ND: Tensor, counts_E: Tensor) -> Tensor:
        """Return [N, D]: the first counts[0] rows through expert 0, the next counts[1] through expert 1, and so on."""
        if torch.compiler.is_exporting():
            return self._masked(rows_ND, counts_E)
        autocast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.bfloat16
        aligned = all(size % 8 == 0 for size in self.w1.shape[1:])  # the kernel wants rows of whole 16 bytes
        if rows_ND.is_cuda and aligned and (autocast or rows_ND.dtype == torch.bfloat16):
            return self._grouped(rows_ND, counts_E)
        pieces = torch.split(rows_ND, counts_E.tolist())
        return torch.cat([self._expert(piece, at) for at, piece in enumerate(pieces)])

    def _expert(self, rows_ND: Tensor, at: int) -> Tensor:
        hidden_NH = functional.silu(rows_ND @ self.w1[at].T) * (rows_ND @ self.w3[at].T)
        return hidden_NH @ self.w2[at].T

    def _grouped(self, rows_ND: Tensor, counts_E: Tensor) -> Tensor:
        ends_E = counts_E.cumsum(0).to(torch.int32)
        low = torch.bfloat16
        rows, w1, w2, w3 = (x.to(low) for x in (rows_ND, self.w1.mT, self.w2.mT, self.w3.mT))
        hidden = functional.silu(functional.grouped_mm(rows, w1, offs=ends_E))
        hidden = hidden * functional.grouped_mm(rows, w3, offs=ends_E)
        return functional.grouped_mm(hidden, w2, offs=ends_E).to(rows_ND.dtype)

    def _masked(self, rows_ND: Tensor, counts_E: Tensor) -> Tensor:
        """All rows through all experts, for an exported program, whose shapes may not depend on the data."""
        ends_E = counts_E.cumsum(0)
        row_N1 = torch.arange(rows_ND.shape[0], device=rows_ND.device)[:, None]
        out_ND = torch.zeros_like(rows_ND)
        for at in range(self.w1.shape[0]):
            mine_N1 = (row_N1 < ends_E[at]).logical_and(row_N1 >= ends_E[at] - counts_E[at])
            out_ND = torch.where(mine_N1, self._expert(rows_ND, at), out_ND)
        return out_ND


class MixtureOfExperts(nn.Module):
    """Router, experts and shared experts. In training it counts where tokens went and keeps its balance losses."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.router = Router(config)
        self.experts = Experts(config.experts, config.dim, config.expert_width)
        width = config.shared_experts * config.expert_width
        self.shared = GatedFeedForward(config.dim, width) if width else None
        self.load = LoadStatistics(config.experts)
        self.loss_scale: float | None = None
        self._losses: list[Tensor] = []

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return [B, L, D]: gate-weighted answers of a token's experts, and those of the shared ones."""
        x_TD = x_BLD.flatten(0, -2)
        gates_TK, chosen_TK, logits_TE = self.router(x_TD)
        order_N = chosen_TK.flatten().argsort(stable=True)
        counts_E = _counts(chosen_TK, self.config.experts)
        kept_N = self._kept(counts_E, chosen_TK.flatten()[order_N])
        if self.training:
            self.load.add(counts_E, kept_N, logits_TE.detach())
        y_ND = self._ask(x_TD, order_N, counts_E, kept_N)
        back_N = torch.empty_like(order_N).scatter_(0, order_N, torch.arange(order_N.shape[0], device=order_N.device))
        y_TKD = y_ND[back_N].view(-1, self.config.top_k, x_TD.shape[-1])
        gates_TK = gates_TK if gates_TK.dtype == y_TKD.dtype else gates_TK.to(y_TKD.dtype)
        y_TD: Tensor = (y_TKD * gates_TK[..., None]).sum(1)
        if self.shared is not None:
            y_TD += self.shared(x_TD)
        if self.training:
            y_TD = self._with_losses(y_TD, counts_E, logits_TE)
        return y_TD.reshape(x_BLD.shape)

    def _ask(self, x_TD: Tensor, order_N: Tensor, counts_E: Tensor, kept_N: Tensor | None) -> Tensor:
        token_N = order_N // self.config.top_k
        if kept_N is None:
            answers_ND: Tensor = self.experts(x_TD[token_N], counts_E)
            return answers_ND
        places = kept_N.nonzero().squeeze(-1)
        counts_E = counts_E.clamp(max=self._capacity(order_N.shape[0]))
        answers: Tensor = self.experts(x_TD[token_N[places]], counts_E)
        return answers.new_zeros(order_N.shape[0], x_TD.shape[-1]).index_copy(0, places, answers)

    def _capacity(self, num_places: int) -> int:
        return ceil(self.config.capacity_factor * num_places / self.config.experts)

    def _kept(self, counts_E: Tensor, expert_N: Tensor) -> Tensor | None:
        """Return which places at experts are within capacity, earlier tokens first; None: all are."""
        if not self.config.capacity_factor or not self.training:
            return None
        first_E = counts_E.cumsum(0) - counts_E
        place_N = torch.arange(expert_N.shape[0], device=expert_N.device) - first_E[expert_N]
        return place_N < self._capacity(expert_N.shape[0])

    def _with_losses(self, y_TD: Tensor, counts_E: Tensor, logits_TE: Tensor) -> Tensor:
        self._losses = []
        if self.config.balance_loss:
            share_TE = self.router.probabilities(logits_TE)
            share_E = (share_TE / share_TE.sum(-1, keepdim=True)).mean(0)
            load_E = counts_E / counts_E.sum()
            self._losses.append(self.config.balance_loss * self.config.experts * (load_E * share_E).sum())
        if self.config.z_loss:
            self._losses.append(self.config.z_loss * logits_TE.logsumexp(-1).square().mean())
        if self.loss_scale is not None and self._losses:
            y_TD = _Attach.apply(y_TD, sum(self._losses), self.loss_scale)  # type: ignore[no-untyped-call]
        return y_TD

    def aux_losses(self) -> list[Tensor]:
        """Return the weighted balance (Fedus et al. 2021) and z losses (Zoph et al. 2022) of the newest forward pass.

        Each is a mean over its tokens, to be added to the mean loss. When `loss_scale` is set their gradient, times
        that scale, enters with the gradient of the output, so nothing needs adding: under a pipeline the loss is
        elsewhere.
        """
        return self._losses

    def statistics(self) -> dict[str, Tensor]:
        """Return what `LoadStatistics.read` says of the training passes since `load.reset_buffers()`."""
        return self.load.read()

    @torch.no_grad()
    def update_bias(self, load_E: Tensor) -> None:
        """Raise the bias of experts below the mean load and lower it above, by `balance_bias`; after each step.

        `load_E` counts tokens per expert over the whole global batch, so that every rank moves its bias alike.
        """
        bias = self.router.bias
        load_E = load_E.to(bias.device, bias.dtype)
        bias += self.config.balance_bias * (load_E.mean() - load_E).sign()


class _Attach(torch.autograd.Function):
    """Passes its input on; in the backward pass the loss gets the gradient `scale`, as if it had been added."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        ctx.like = (loss.dtype, loss.device)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        dtype, device = ctx.like
        return gradients[0], torch.full((), ctx.scale, dtype=dtype, device=device), None


def _wide(x: Tensor) -> Tensor:
    """Return `x` in at least float32: bf16 would make scores alike, and ties are decided by chance."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _counts(chosen_TK: Tensor, experts: int) -> Tensor:
    """Return how many places each expert was chosen for, int64 [E]; the same on every device."""
    ones = torch.ones_like(chosen_TK.flatten())
    return torch.zeros(experts, dtype=ones.dtype, device=ones.device).scatter_add(0, chosen_TK.flatten(), ones)


def build_moe(config: Config) -> Layered:
    """Return embedding, block1, block2, ..., norm, head; blocks after the dense ones hold a `MixtureOfExperts`."""

    def feed_forward(number: int) -> nn.Module:
        if number < config.dense_layers:
            return GatedFeedForward(config.dim, config.hidden_width)
        return MixtureOfExperts(config)

    return build_transformer(config, feed_forward)
