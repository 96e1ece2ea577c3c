"""The spool loses no complete record, never raises at the writer and costs next to nothing."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from orchestrator.runs.spool import SpoolReader, SpoolWriter
from orchestrator.train.ports import Recorder


def records(path: Path) -> list[dict]:
    return [line.record for line in SpoolReader(path).read(0, 1 << 30)[0]]


def test_records_come_back_in_order_with_time_kind_and_sequence(tmp_path: Path) -> None:
    path = tmp_path / "spool" / "rank0-a1.jsonl"
    before = time.time_ns() // 1_000_000
    with SpoolWriter(path) as spool:
        recorder: Recorder = spool
        recorder.metrics(3, {"train/loss": 0.5, "train/lr": 1e-3})
        spool.record("params", values={"train.steps": 10})
    first, second = records(path)
    assert first == {
        "seq": 1,
        "time_ms": first["time_ms"],
        "kind": "metrics",
        "step": 3,
        "values": {"train/loss": 0.5, "train/lr": 1e-3},
    }
    assert before <= first["time_ms"] <= time.time_ns() // 1_000_000
    assert (second["seq"], second["kind"], second["values"]) == (2, "params", {"train.steps": 10})


def test_a_record_can_be_read_at_once_and_a_torn_last_line_is_not_there_yet(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    spool = SpoolWriter(path)
    spool.metrics(1, {"a": 1.0})
    reader = SpoolReader(path)
    lines, offset = reader.read(0)
    assert len(lines) == 1
    with open(path, "ab") as file:
        file.write(b'{"seq":2,"kind":"met')
    assert reader.read(offset) == ([], offset)
    with open(path, "ab") as file:
        file.write(b'rics"}\n')
    assert reader.read(offset)[0][0].record == {"seq": 2, "kind": "metrics"}
    spool.close()


def test_a_writer_that_was_killed_is_continued_with_the_torn_line_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "driver.jsonl"
    with SpoolWriter(path) as spool:
        spool.record("tags", values={})
    with open(path, "ab") as file:
        file.write(b'{"seq": 2, "torn')
    with SpoolWriter(path) as spool:
        spool.record("note", text="after")
    assert [(record["seq"], record["kind"]) for record in records(path)] == [(1, "tags"), (2, "note")]


def test_a_writer_killed_at_any_moment_leaves_only_whole_records_before_the_tail(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from orchestrator.runs.spool import SpoolWriter\n"
        "spool = SpoolWriter(pathlib.Path(sys.argv[1]))\n"
        "step = 0\n"
        "while True:\n    step += 1\n    spool.metrics(step, {'train/loss': step / 8})\n"
    )
    path = tmp_path / "killed.jsonl"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)])
    while not (path.exists() and path.stat().st_size > 20_000):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    SpoolWriter(path).close()
    steps = [record["step"] for record in records(path)]
    assert steps == list(range(1, len(steps) + 1))


def test_reading_in_portions_gives_every_line_once_also_one_longer_than_the_portion(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with SpoolWriter(path) as spool:
        for step in range(50):
            spool.record("text", text="x" * (5000 if step == 20 else 10), step=step)
    steps, offset = [], 0
    while True:
        lines, offset = SpoolReader(path).read(offset, limit_bytes=300)
        if not lines:
            break
        steps += [line.record["step"] for line in lines if line.record]
        assert lines[-1].end == offset
    assert steps == list(range(50))


def test_a_line_that_is_no_json_object_is_handed_over_as_such(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('nonsense\n[1]\n{"kind":"note"}\n')
    assert [line.record for line in SpoolReader(path).read(0)[0]] == [None, None, {"kind": "note"}]
    assert SpoolReader(tmp_path / "absent.jsonl").read(7) == ([], 7)


def test_values_that_are_not_numbers_are_counted_as_lost_and_raise_nothing(tmp_path: Path) -> None:
    with SpoolWriter(tmp_path / "a.jsonl") as spool:
        spool.metrics(1, {"a": "many"})  # type: ignore[dict-item]
        spool.metrics(2, {"a": math.nan, "b": math.inf})
        spool.record("tags", values={"path": tmp_path})
    spool.metrics(3, {"a": 1.0})
    assert spool.lost == 2
    first, second = records(spool.path)
    assert math.isnan(first["values"]["a"])
    assert first["values"]["b"] == math.inf
    assert second["values"] == {"path": str(tmp_path)}


def test_a_full_disk_costs_the_records_written_meanwhile_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = SpoolWriter(tmp_path / "a.jsonl")
    spool.metrics(1, {"a": 1.0})
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:9]))  # what a disk does that fills up mid-write
    spool.metrics(2, {"a": 2.0})

    def refuse(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", refuse)
    spool.metrics(3, {"a": 3.0})
    monkeypatch.setattr(os, "write", real)
    spool.metrics(4, {"a": 4.0})
    spool.close()
    assert spool.lost == 2
    assert [record["step"] for record in records(spool.path) if record] == [1, 4]


def test_several_threads_write_whole_lines_with_their_own_sequence_numbers(tmp_path: Path) -> None:
    spool = SpoolWriter(tmp_path / "a.jsonl")

    def write(name: str) -> None:
        for step in range(300):
            spool.metrics(step, {name: step / 8})

    threads = [threading.Thread(target=write, args=(name,)) for name in ("train/loss", "system/cpu_percent")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spool.close()
    spool.close()
    assert [record["seq"] for record in records(spool.path)] == list(range(1, 601))


def test_metrics_costs_less_than_50_microseconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"train/loss": 0.123456789, "train/lr": 1e-3, "train/grad_norm": 1.7, "perf/samples_per_s": 51234.5}
    costs = []
    with SpoolWriter(tmp_path / "a.jsonl") as spool:
        for step in range(4000):
            start = time.perf_counter()
            spool.metrics(step, values)
            costs.append((time.perf_counter() - start) * 1e6)
    median, late = statistics.median(costs), sorted(costs)[int(0.99 * len(costs))]
    with capsys.disabled():
        print(f"\nspool: metrics() with 4 values: median {median:.1f} us, 99th percentile {late:.1f} us")
    assert median < 50
    assert len(records(spool.path)) == 4000
    assert json.loads(spool.path.read_text().splitlines()[-1])["step"] == 3999
