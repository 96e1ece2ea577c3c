"""A process tied to the one that started it ends with it, also when that one is gone before the tie is made."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.environment import child_environment

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the Linux kernel")

TIE = "import sys, time; from orchestrator.runs.parent import die_with_parent\n{before}\ndie_with_parent()\n{after}"


def start(before: str = "", after: str = "", environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    code = TIE.format(before=before, after=after)
    environment = environment or child_environment()
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)


def test_a_process_whose_parent_was_gone_before_it_was_tied_to_it_leaves_at_once() -> None:
    left = start(after="time.sleep(60)", environment=child_environment() | {"ORCHESTRATOR_PARENT": str(2**22 + 1)})
    assert left.wait(10) == -signal.SIGKILL


def test_a_process_tied_to_a_parent_that_lives_goes_on_and_its_own_children_know_nothing_of_it() -> None:
    said = start(after="import os; print(os.environ.get('ORCHESTRATOR_PARENT')); die_with_parent()")
    assert said.communicate(timeout=10)[0] == "None\n"
    assert said.returncode == 0


def test_a_forked_or_spawned_rank_whose_parent_is_gone_leaves(tmp_path: Path) -> None:
    code = (
        "import multiprocessing, os, sys, time; from pathlib import Path\n"
        "from orchestrator.runs.parent import die_with_parent\n"
        "def work(folder):\n"
        "    (folder / 'pid').write_text(str(os.getpid())); os.rename(folder / 'pid', folder / 'up')\n"
        "    while os.getppid() == multiprocessing.parent_process().pid: time.sleep(0.01)\n"
        "    die_with_parent(); time.sleep(60)\n"
        "multiprocessing.get_context('fork').Process(target=work, args=(Path(sys.argv[1]),)).start()\n"
        "while not (Path(sys.argv[1]) / 'up').exists(): time.sleep(0.01)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=10)
    pid = int((tmp_path / "up").read_text())
    end = time.monotonic() + 5
    while _runs(pid) and time.monotonic() < end:
        time.sleep(0.02)
    found = _runs(pid)
    if found:
        os.kill(pid, signal.SIGKILL)
    assert not found


@pytest.mark.parametrize(
    "module",
    [
        "orchestrator.cluster.child",
        "orchestrator.export.finish",
        "orchestrator.cluster.compress_stage",
        "orchestrator.cluster.trial_stage",
    ],
)
def test_every_stage_ends_with_the_driver(module: str, tmp_path: Path) -> None:
    environment = child_environment() | {"ORCHESTRATOR_PARENT": str(2**22 + 1)}
    done = subprocess.run([sys.executable, "-m", module, str(tmp_path)], env=environment, timeout=30, check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
