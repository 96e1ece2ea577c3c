"""Routing, by hand: who goes where, what is dropped, what is counted, and what balances."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from orchestrator.models import moe
from orchestrator.models.moe.model import Experts, MixtureOfExperts
from orchestrator.testing.models import seeded

SMALL = {"dim": 8, "heads": 2, "kv_heads": 2, "hidden": 12, "layers": 1, "experts": 4}


def mixture(**options: object) -> MixtureOfExperts:
    torch.manual_seed(0)
    return MixtureOfExperts(moe.Config(**{**SMALL, **options})).double()  # type: ignore[arg-type]


def tokens(batch: int = 2, length: int = 10, dim: int = 8) -> torch.Tensor:
    return torch.randn(batch, length, dim, generator=seeded("tokens"), dtype=torch.float64)


def by_hand(net: MixtureOfExperts, x_D: torch.Tensor) -> torch.Tensor:
    gates_1K, chosen_1K, _ = net.router(x_D[None])
    parts = [
        gate * (net.experts.w2[e] @ (functional.silu(net.experts.w1[e] @ x_D) * (net.experts.w3[e] @ x_D)))
        for gate, e in zip(gates_1K[0], chosen_1K[0].tolist(), strict=True)
    ]
    shared = net.shared(x_D) if net.shared is not None else 0
    answer: torch.Tensor = sum(parts) + shared
    return answer


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("shared", [0, 1])
def test_a_token_gets_the_weighted_answers_of_its_experts(score: str, top_k: int, shared: int) -> None:
    net, x_BLD = mixture(score=score, top_k=top_k, shared_experts=shared), tokens()
    wanted = torch.stack([by_hand(net, x_D) for x_D in x_BLD.flatten(0, 1)]).view_as(x_BLD)
    torch.testing.assert_close(net(x_BLD), wanted)


def test_experts_take_rows_sorted_by_expert_and_some_may_get_none() -> None:
    torch.manual_seed(0)
    experts, rows = Experts(3, 8, 16), torch.randn(5, 8)
    out = experts(rows, torch.tensor([2, 0, 3]))
    assert torch.equal(out[:2], experts(rows[:2], torch.tensor([2, 0, 0])))
    experts(rows, torch.tensor([2, 0, 3])).sum().backward()
    assert experts.w1.grad is not None
    assert experts.w1.grad[1].abs().sum() == 0
    assert experts._masked(rows, torch.tensor([2, 0, 3])).allclose(out, atol=1e-6)
    assert experts._grouped(rows, torch.tensor([2, 0, 3])).allclose(out, atol=3e-2)  # in bf16


def test_over_capacity_later_tokens_are_dropped_and_counted() -> None:
    net = mixture(top_k=1, capacity_factor=1.0)
    net.router.bias[2] = 100.0  # everybody wants expert 2
    x_BLD = tokens(1, 8)
    y_BLD = net(x_BLD)
    assert net.statistics()["drop_rate"] == 6 / 8  # it may take ceil(1.0 x 8 / 4) = 2 tokens
    assert net.statistics()["load"].tolist() == [0, 0, 1, 0]
    assert y_BLD[0, 2:].abs().sum() == 0
    torch.testing.assert_close(y_BLD[0, :2], torch.stack([by_hand(net, x) for x in x_BLD[0, :2]]))
    assert net.eval()(x_BLD)[0, 2:].abs().sum() > 0, "evaluation drops nothing"


def test_statistics_add_up_over_training_passes_until_they_are_reset() -> None:
    net = mixture(top_k=2)
    net(tokens())
    net(tokens())
    net.eval()(tokens())
    assert int(net.load.tokens) == 40
    assert int(net.load.counts.sum()) == 80
    assert float(net.statistics()["load"].sum()) == pytest.approx(1)
    assert 0 < float(net.statistics()["entropy"]) < math.log(4)
    net.load.reset_buffers()
    assert int(net.load.counts.sum()) == 0
    assert not [name for name in net.state_dict() if name.startswith("load.")]


def test_the_bias_levels_the_load_without_a_loss() -> None:
    net, x_BLD = mixture(balance_bias=0.02), tokens(8, 32)
    net.router.bias[0] = 0.5

    def spread() -> float:
        net.load.reset_buffers()
        net(x_BLD)
        return float(net.statistics()["load"].max() / net.statistics()["load"].mean())

    before = spread()
    for _ in range(60):
        net.update_bias(net.load.counts)
        after = spread()
    assert before > 1.9
    assert after < 1.25
    assert "bias" in net.router.state_dict(), "a resumed run goes on with it"
    assert not net.router.bias.requires_grad


def test_the_balance_loss_is_least_when_all_experts_are_used_alike() -> None:
    net = mixture(balance_loss=1.0, z_loss=0.5)
    with torch.no_grad():
        net.router.weight.zero_()[0] = 1.0
    net(tokens().abs())  # nearly all like expert 0 best
    balance, z = net.aux_losses()
    assert balance.item() > 1.4
    assert balance.requires_grad
    assert z.requires_grad
    torch.nn.init.zeros_(net.router.weight)
    net(tokens())
    balance, z = net.aux_losses()
    assert balance.item() == pytest.approx(1.0)
    assert z.item() == pytest.approx(0.5 * math.log(4) ** 2)


def test_with_a_scale_their_gradient_enters_with_the_outputs() -> None:
    x_BLD = tokens()
    added, attached = mixture(balance_loss=0.3, z_loss=0.2), mixture(balance_loss=0.3, z_loss=0.2)
    (added(x_BLD).square().sum() + 0.5 * sum(added.aux_losses())).backward()
    attached.loss_scale = 0.5
    attached(x_BLD).square().sum().backward()
    torch.testing.assert_close(added.router.weight.grad, attached.router.weight.grad)


def test_the_expert_layers_it_declares_are_there() -> None:
    config = moe.Config(**{**SMALL, "layers": 3}, dense_layers=1)  # type: ignore[arg-type]
    module = moe.build(config)
    found = [name for name, part in module.named_modules() if isinstance(part, MixtureOfExperts)]
    assert moe.expert_layers(config) == found == ["layers.block2.feed_forward", "layers.block3.feed_forward"]
    assert moe.num_experts(config) == 4
