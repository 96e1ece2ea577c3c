"""What `verify` prints: the worst tensor of every group, and what was at fault first."""

from __future__ import annotations

import math

from orchestrator.verify.compare import Comparison, Worst
from orchestrator.verify.table import lines_of_one, table

LOSS = Worst("loss", 1e-3, "", 1, 1e-9)
GRADIENT = Worst("gradients", 0.5, "layers.head.weight", 1, 1e-9)
FINE = Worst("weights", 1e-15, "layers.head.bias", 2, 1e-9)
BAD = Comparison("2 ranks = tensor 2", "fp64", (LOSS, GRADIENT, FINE), LOSS, GRADIENT)
GOOD = Comparison("2 ranks = shard 2", "fp64", (FINE,), None)


def test_one_layout_in_full() -> None:
    text = "\n".join(lines_of_one(BAD))
    assert "FAIL gradients       5.0e-01  of 1e-09  step 1  layers.head.weight" in text
    assert "ok   weights         1.0e-15  of 1e-09  step 2  layers.head.bias" in text
    assert text.endswith(
        "first at step 1: loss differs by 1.0e-03\n"
        "  first parameter at step 1: gradients of layers.head.weight differs by 5.0e-01"
    )


def test_a_line_per_layout() -> None:
    head, bad, _, _, good = table([BAD, GOOD])
    assert head.split()[:2] == ["layout", "loss"]
    assert bad.startswith("FAIL  2 ranks = tensor 2")
    assert good.split()[-1] == "layers.head.bias"


def test_what_did_not_run_says_why() -> None:
    (_, _, why) = table([Comparison("2 ranks = tensor 2", "fp64", (), None, error="RuntimeError: no kernel")])
    assert why == "  it did not run: RuntimeError: no kernel"


def test_not_a_number_is_the_worst_and_never_agrees() -> None:
    nan = Worst("gradients", math.nan, "a", 1, 1e-9)
    assert not nan.agrees
    assert Comparison("x", "fp64", (FINE, nan), nan).worst is nan
