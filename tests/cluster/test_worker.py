"""Reports to Ray: some seconds apart by the time that ranks agreed on, and always at the end."""

from __future__ import annotations

from orchestrator.cluster.worker import EVERY_S, RayReporter
from orchestrator.parallel.process import Rank
from orchestrator.spec.job import JobSpec
from orchestrator.train.engine import build_engine
from orchestrator.train.loop import fit
from orchestrator.train.ports import Ports, StepReport
from tests.train.fitting import tiny_job


def test_a_checkpoint_soon_after_another_is_not_reported_but_the_end_is() -> None:
    reporter = RayReporter()
    assert not reporter.is_due(StepReport(1, {}, train_s=EVERY_S / 2))
    assert reporter.is_due(StepReport(2, {}, train_s=EVERY_S))
    assert reporter.is_due(StepReport(3, {}, train_s=EVERY_S / 2, final=True))


def test_the_loop_reports_every_save_and_once_the_end_with_the_newest_metrics() -> None:
    heard: list[StepReport] = []
    result = fit(build_engine(JobSpec.model_validate(tiny_job()), Rank(0, 1, 0)), Ports(report=heard.append))
    assert [report.final for report in heard] == [False] * (len(heard) - 1) + [True]
    assert {5, 10, 15, 20} <= {report.step for report in heard}
    assert heard[-1].step == 24
    assert heard[-1].metrics == {**result.metrics, "step": 24.0}
    times = [report.train_s for report in heard]
    assert times == sorted(times)
    assert 0 < times[-1] <= result.train_s
