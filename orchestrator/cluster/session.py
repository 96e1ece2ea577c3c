"""The Ray cluster of a run: started here when no address is given, else joined. What was started is always shut down.

All calls into Ray are made on one thread of its own: the kernel ties the life of Ray's processes to the thread that
started them, and the main thread stays free for signals, heartbeats and progress.
"""

from __future__ import annotations

import os
import queue
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestrator.cluster import guard
from orchestrator.environment import own_token_path, prepare_ray, ray_token, ray_token_file
from orchestrator.errors import ClusterError, NotAbleError
from orchestrator.log import get_logger
from orchestrator.plan.plan import Resources

_log = get_logger("cluster")
_PREFIX = "orch-ray-"
_OBJECT_STORE_BYTES = 128 * 2**20


class RaySession:
    """A Ray cluster, ours or joined. Use as a context manager; `start` returns at once, `submit` waits its turn."""

    def __init__(self, address: str | None, *, num_cpus: int, log_file: Path) -> None:
        self.local = address is None
        self._address = address
        self._num_cpus = num_cpus
        self._log_file = log_file
        self._folder: Path | None = None
        self._tasks: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ours = False
        self._killed = False
        self._guard: subprocess.Popen[str] | None = None
        self.opened: Future[None] = Future()

    def __enter__(self) -> RaySession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Begin to start or join the cluster, and to import what training needs, and return at once."""
        prepare_ray(local=self.local, token_file=own_token_file() if self.local else _given_token_file())
        self._thread = threading.Thread(target=self._serve, name="ray", daemon=True)
        self._thread.start()
        self.opened = self.submit(self._open)
        threading.Thread(target=_preload, name="ray-imports", daemon=True).start()

    def submit(self, task: Callable[[], Any]) -> Future[Any]:
        """Run a function on Ray's thread, after what was submitted before."""
        future: Future[Any] = Future()
        self._tasks.put((task, future))
        return future

    def wait_for(self, need: Resources, wait_s: float) -> None:
        """Wait until the cluster has what the workers need (on Ray's thread). Raises NotAbleError at the deadline."""
        import ray

        asked = {"CPU": need.num_workers * need.cpus_per_worker, "GPU": need.num_workers * need.gpus_per_worker}
        deadline = time.monotonic() + wait_s
        while True:
            free, total = ray.available_resources(), ray.cluster_resources()
            short = [name for name, amount in asked.items() if free.get(name, 0.0) + 1e-6 < amount]
            if not short:
                return
            if time.monotonic() > deadline:
                said = ", ".join(
                    f"{asked[name]:g} {name} asked, {free.get(name, 0.0):g} free of {total.get(name, 0.0):g}"
                    for name in short
                )
                raise NotAbleError(
                    f"the cluster did not have the resources within {wait_s:g} s: {said}",
                    hint="lower `parallel` degrees or `cluster.cpus_per_worker`, wait for other jobs, or add nodes",
                )
            time.sleep(min(0.5, wait_s))

    def close(self, timeout_s: float = 15.0) -> None:
        """Leave the cluster; what was started here is shut down and no process of it is left."""
        if self._thread is None:
            return
        started = self._processes()
        done = self.submit(self._shutdown)
        self._tasks.put(None)
        with suppress(
            Exception
        ):  # Ray may raise anything while it goes down; what counts is that its processes are gone
            done.result(0.1 if self._killed else timeout_s)
        kill_processes(started)
        self._thread.join(1.0)
        self._thread = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._dismiss_guard()
        _sweep()

    def kill(self) -> None:
        """Kill every process that was started here, at once. Whatever runs on Ray's thread fails soon after."""
        self._killed = True
        kill_processes(self._processes())

    def _serve(self) -> None:
        while (item := self._tasks.get()) is not None:
            task, future = item
            try:
                future.set_result(task())
            except BaseException as error:  # handed to whoever waits for the result
                future.set_exception(error)

    def _open(self) -> None:
        import ray

        _quiet_ray(self._log_file)
        if ray.is_initialized():
            return
        _read_token_anew()
        try:
            if self.local:
                self._folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
                ray.init(
                    address="local",
                    num_cpus=self._num_cpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    configure_logging=False,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    _temp_dir=str(self._folder),
                    # Idle workers started ahead would have another environment than Train's and only cost time.
                    _system_config={"prestart_worker_first_driver": False},
                )
            else:
                ray.init(address=self._address, log_to_driver=False, configure_logging=False)
        except Exception as error:  # Ray raises many types here, and all mean the same to the user
            raise _start_error(self._address, error) from error
        self._ours = True
        if self.local:
            self._post_guard()

    def _post_guard(self) -> None:
        """Leave somebody who cleans up if this process is killed: some of Ray's agents would stay."""
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(guard.__file__)), str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )
        stdin = self._guard.stdin
        if stdin is None:
            return
        for pid, _ in self._processes():
            stdin.write(f"{pid} {guard.start_ticks(pid)}\n")
        stdin.flush()

    def _dismiss_guard(self) -> None:
        if self._guard is not None:
            with suppress(OSError, subprocess.TimeoutExpired):
                self._guard.communicate("done\n", timeout=3.0)
            self._guard = None

    def _shutdown(self) -> None:
        import ray

        if self._ours:
            ray.shutdown()

    def _processes(self) -> list[tuple[int, float]]:
        """Return (pid, start) of all processes of the cluster that was started here."""
        if not self.local or self._folder is None:
            return []
        import psutil

        found: list[tuple[int, float]] = []
        own = self._guard.pid if self._guard is not None else 0
        with suppress(psutil.Error):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    words = " ".join(process.cmdline())
                    if process.pid == own:
                        continue
                    if str(self._folder) in words or words.startswith("ray::"):
                        found.append((process.pid, process.create_time()))
        return found


def kill_processes(processes: list[tuple[int, float]]) -> None:
    """Kill processes given as (pid, start time); those that are gone or whose number was reused are left alone."""
    import psutil

    doomed = []
    for pid, started in processes:
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            if abs(process.create_time() - started) < 1.0:
                process.kill()
                doomed.append(process)
    psutil.wait_procs(doomed, timeout=3.0)


def own_token_file() -> Path | None:
    """Return a file (mode 0600 in a folder of mode 0700) with the token of clusters we start, made once per user.

    None when the user's environment names a token already.
    """
    if ray_token() is not None:
        return None
    path = own_token_path()
    try:
        return _make_token(path)
    except OSError:
        # A home that cannot be written to: a token for this process alone does as well.
        return _make_token(Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-token-")) / path.name)


def _make_token(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.chmod(path.parent, 0o700)
    if not path.exists():
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
        with suppress(FileExistsError):
            os.link(draft, path)  # the first of two that start at once wins
        draft.unlink()
    os.chmod(path, 0o600)
    return path


def _given_token_file() -> Path | None:
    path = ray_token_file()
    return path if path.is_file() else None


def _preload() -> None:
    import ray.train.torch  # noqa: F401


def _read_token_anew() -> None:
    """Have Ray read its token and how it authenticates again: it keeps both from its import or the cluster before."""
    import ray._raylet

    compiled: Any = ray._raylet  # has no types
    compiled.Config.initialize("")
    compiled.AuthenticationTokenLoader.instance().reset_cache()


def _quiet_ray(path: Path) -> None:
    import logging

    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("ray", "ray._private.worker"):  # importing parts of Ray gives the first a handler of its own again
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
    _silence_raylet()


def _silence_raylet() -> None:
    """Send to the log what the raylet says of dead workers: Ray prints it on standard output, where `--json` speaks.

    `log_to_driver=False` does not cover it, and what is replaced is internal: Ray's minor version is pinned.
    """
    import logging

    from ray._private import worker

    def tell(data: Mapping[str, Any], ignore_prefix: bool) -> None:
        logging.getLogger("ray").warning("(%s) %s", data.get("pid"), "\n".join(map(str, data.get("lines", ()))))

    worker.print_to_stdstream = tell


def _start_error(address: str | None, error: Exception) -> ClusterError:
    if address is None:
        return ClusterError(
            f"a local Ray cluster could not be started on {socket.gethostname()}: {error}",
            hint="`orchestrator doctor` looks at the machine; one process (`parallel.replicate=1`) needs no Ray",
        )
    return NotAbleError(
        f"the Ray cluster at {address} could not be joined: {error}",
        hint="check `cluster.address`, that the cluster runs, and its token (RAY_AUTH_TOKEN or ~/.ray/auth_token)",
    )


def _sweep() -> None:
    """Remove temporary folders of sessions whose process was killed before it could."""
    import psutil

    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        number = path.name.removeprefix(_PREFIX).split("-")[0]
        if number.isdigit() and not psutil.pid_exists(int(number)):
            shutil.rmtree(path, ignore_errors=True)
