"""Rank correlation against known values, and no figure where there is none."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from orchestrator.spec.load import load_spec
from orchestrator.sweep.correlation import as_metrics, as_rows, as_tags, correlate, correlations
from orchestrator.sweep.objectives import Objective
from orchestrator.sweep.summary import Summary, as_csv, as_data, note_rows, verdict
from orchestrator.sweep.trial import Trial

OBJECTIVES = (Objective("model/params", "min"), Objective("val/accuracy", "max"))


def trial(number: int, expected: float, given: float, **more: Any) -> Trial:
    values = {"val/accuracy": given, "model/params": 10.0}
    fields = {"state": "finished", "values": values, "predicted": {"val/accuracy": expected}, **more}
    return Trial(number, {"model.channels": [number]}, str(number), **fields)


def test_known_values() -> None:
    """Five pairs, of 10 pairs of pairs 8 agree: tau 0.6; rho 1 - 6 * 4 / (5 * 24) = 0.8."""
    found = correlate("stand-alone", "m", [(1.0, 2.0), (2.0, 1.0), (3.0, 3.0), (4.0, 5.0), (5.0, 4.0)])
    assert (found.kendall, found.spearman) == (pytest.approx(0.6), pytest.approx(0.8))
    back = correlate("stand-alone", "m", [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)])
    assert (back.kendall, back.spearman) == (pytest.approx(-1.0), pytest.approx(-1.0))
    ties = correlate("stand-alone", "m", [(1.0, 1.0), (1.0, 2.0), (2.0, 3.0)])
    assert ties.kendall == pytest.approx(2 / 6**0.5)  # tau-b: 2 agree, 0 do not, one pair is tied in the first
    assert found.describe() == "Kendall 0.60, Spearman 0.80 over 5 stand-alone trainings (m)"


@pytest.mark.parametrize(
    ("pairs", "why"),
    [
        ([], "at least 3 are needed"),
        ([(1.0, 1.0), (2.0, 2.0)], "at least 3 are needed"),
        ([(1.0, 1.0), (1.0, 2.0), (1.0, 3.0)], "all values are alike"),
    ],
)
def test_there_is_no_figure_where_there_cannot_be_one(pairs: list[tuple[float, float]], why: str) -> None:
    found = correlate("stand-alone", "m", pairs)
    assert (found.kendall, found.spearman, found.why) == (None, None, why)
    assert found.describe().startswith("not known over ")
    assert set(as_metrics([found])) == {"ranking/stand_alone/pairs"}


def test_trainings_alone_and_fine_tuned_ones_are_told_apart() -> None:
    trials = [trial(at, at / 10, at / 20, origin="control") for at in range(4)]
    trials += [trial(4 + at, at / 10, -at / 10) for at in range(3)]
    trials += [trial(9, 0.9, 0.0, state="failed", origin="control"), trial(10, 0.1, 0.9, state="stopped")]
    alone, tuned = correlations(trials, OBJECTIVES)
    assert (alone.against, alone.pairs, alone.kendall) == ("stand-alone", 4, pytest.approx(1.0))
    assert (tuned.against, tuned.pairs, tuned.kendall) == ("fine-tuned", 3, pytest.approx(-1.0))
    assert as_metrics([alone])["ranking/stand_alone/spearman"] == pytest.approx(1.0)
    assert as_tags([tuned])["ranking.fine_tuned"].startswith("Kendall -1.00")


def test_what_two_supernets_expected_is_not_put_together() -> None:
    """Each ranks perfectly; pooled they would seem not to, since the first one expects less of everything."""
    trials = [trial(at, at / 100, at / 10, origin="control", ranked_by="supernet-a") for at in range(1, 5)]
    trials += [trial(at, at / 10, at / 100, origin="control", ranked_by="supernet-b") for at in range(5, 8)]
    trials += [trial(8, 0.5, 0.5, ranked_by="supernet-a"), trial(9, 0.5, 0.5, ranked_by="supernet-b")]
    found = correlations(trials, OBJECTIVES)
    assert [(each.ranked_by, each.against, each.pairs) for each in found] == [
        ("supernet-b", "stand-alone", 3),
        ("supernet-b", "fine-tuned", 1),
        ("supernet-a", "stand-alone", 4),  # and one that was fine-tuned, of which there is no figure
    ]
    assert [each.kendall for each in found] == [pytest.approx(1.0), None, pytest.approx(1.0)]
    assert as_metrics(found)["ranking/stand_alone/pairs"] == 3.0
    assert as_tags(found)["ranking.stand_alone"].endswith("over 3 stand-alone trainings (val/accuracy)")
    assert found[2].describe().endswith("over 4 stand-alone trainings (val/accuracy), ranked by supernet-a")
    assert [row["ranked_by"] for row in as_rows(found)] == ["supernet-b", "supernet-b", "supernet-a"]


def test_a_sweep_that_predicts_nothing_says_nothing_of_it() -> None:
    plain = [trial(at, 0.0, at / 10, predicted={}) for at in range(4)]
    assert correlations(plain, OBJECTIVES) == []


def test_the_summary_says_it_in_every_form() -> None:
    data = {"model": {"use": "cnn"}, "data": {"use": "digits"}, "train": {"epochs": 1}}
    trials = {at: trial(at, at / 10, at / 20, origin="control") for at in range(3)}
    summary = Summary(load_spec(data), OBJECTIVES, trials, [2], 1.0)
    words = "Kendall 1.00, Spearman 1.00 over 3 stand-alone trainings (val/accuracy)"
    assert verdict("finished", summary).endswith(f"; ranking: {words}")
    assert ("ranking", words) in note_rows(summary)
    page = as_data(summary)
    assert page["rank_correlation"][0]["kendall"] == pytest.approx(1.0)
    assert page["trials"][1]["predicted"] == {"val/accuracy": 0.1}
    assert as_csv(summary).splitlines()[1].startswith("t000,finished,,control,0,10.0,0.0,0.0,")


def test_the_summary_is_json_whatever_was_predicted_and_measured() -> None:
    data = {"model": {"use": "cnn"}, "data": {"use": "digits"}, "train": {"epochs": 1}}
    odd = trial(0, 0.1, 0.2, predicted={"val/accuracy": math.nan, "val/loss": 0.5, "model/flops": math.inf})
    summary = Summary(load_spec(data), OBJECTIVES, {0: odd}, [0], 1.0, exported={0: {"test/loss": math.nan}})
    page = json.loads(json.dumps(as_data(summary), allow_nan=False))
    assert page["trials"][0]["predicted"] == {"val/loss": 0.5}
    assert page["trials"][0]["test"] == {}
