"""What `doctor` looks at. Torch is asked in a process of its own, so that a broken one is a finding, not a crash."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from orchestrator.environment import own_token_path, ray_address, ray_token, ray_token_file
from orchestrator.plan.available import Available

GIB = 1024**3
_TORCH_TIMEOUT_S = 120
_SERVER_TIMEOUT_S = 5
_TORCH = """
import json, torch, torch.distributed as d
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
gloo, nccl = (d.is_available() and is_there() for is_there in (d.is_gloo_available, d.is_nccl_available))
print(json.dumps({"version": torch.__version__, "gpus": gpus, "gloo": gloo, "nccl": nccl}))
"""


@dataclass(frozen=True)
class Finding:
    """One answer: ok, worth knowing, or to be mended before a run can work."""

    level: Literal["ok", "warn", "fail"]
    what: str
    text: str
    repair: str = ""


def examine(storage: str, uri: str | None) -> Iterator[Finding]:
    """Yield all findings for runs under `storage` tracked at `uri` (None: SQLite inside `storage`)."""
    yield _python()
    yield from _torch()
    yield from _packages()
    yield _cores()
    yield _memory()
    yield _shared_memory(Path("/dev/shm"))
    yield from _tokens()
    yield storage_finding(Path(storage))
    yield tracking_finding(Path(storage), uri)
    if (address := ray_address()) is not None:
        yield Finding("ok", "ray address", f"RAY_ADDRESS={address} is set; a job uses cluster.address only")


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding("ok", "python", f"python {found}")
    return Finding("fail", "python", f"python {found} is not supported", "use Python 3.11, 3.12 or 3.13")


def _torch() -> Iterator[Finding]:
    answer = _ask_torch()
    if isinstance(answer, str):
        yield Finding("fail", "torch", f"torch cannot be imported: {answer}", "pip install 'torch>=2.11,<2.14'")
        return
    gpus = answer["gpus"]
    names = ", ".join(sorted(set(gpus)))
    yield Finding("ok", "torch", f"torch {answer['version']}, {f'{len(gpus)} x {names}' if gpus else 'no GPU'}")
    if not gpus and shutil.which("nvidia-smi"):
        yield Finding(
            "warn", "gpu", "there is an NVIDIA driver, but torch sees no GPU", "install a CUDA build of torch"
        )
    if answer["gloo"]:
        backends = "gloo, nccl" if answer["nccl"] else "gloo"
        yield Finding("ok", "collectives", f"collectives: {backends}")
    else:
        yield Finding("fail", "collectives", "torch has no gloo", "install a usual build of torch")
    if gpus and not answer["nccl"]:
        yield Finding("warn", "nccl", "GPUs, but torch has no nccl", "install a Linux build of torch with CUDA")


def _ask_torch() -> dict[str, Any] | str:
    """Return what torch says of itself, or the last line of why it cannot."""
    if find_spec("torch") is None:
        return "not installed"
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TORCH], capture_output=True, text=True, timeout=_TORCH_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {_TORCH_TIMEOUT_S} s"
    if done.returncode != 0:
        return (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def _packages() -> Iterator[Finding]:
    for name in ("ray", "mlflow"):
        found = _version(name)
        if found is None:
            yield Finding("fail", name, f"{name} is not installed", f"pip install {name}")
        else:
            yield Finding("ok", name, f"{name} {found}")
    if _version("ray") and not all(find_spec(each) for each in ("aiohttp", "opencensus")):
        text = "ray[default] is missing: no dashboard and no job server (local runs are fine)"
        yield Finding("warn", "ray dashboard", text, 'pip install "ray[default]"')
    missing = [each for each in ("onnx", "onnxscript", "onnxruntime") if _version(each) is None]
    if missing:
        text = f"{', '.join(missing)} missing: `export: [{{use: onnx}}]` cannot work"
        yield Finding("warn", "onnx", text, 'pip install "orchestrator[onnx]"')
    else:
        yield Finding("ok", "onnx", f"onnx {_version('onnx')}, onnxruntime {_version('onnxruntime')}")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cores() -> Finding:
    cores = Available.local().num_cpus
    if cores >= 2:
        return Finding("ok", "cores", f"{cores:g} CPU cores")
    return Finding("warn", "cores", "1 CPU core: several workers will share it", "set cluster.cpus_per_worker=0.5")


def _memory() -> Finding:
    import psutil

    free = psutil.virtual_memory().available
    limit = _container_limit()
    room = min(free, limit) if limit else free
    text = f"{room / GIB:.1f} GiB of memory free" + (" (container limit)" if limit and limit < free else "")
    if room < 2 * GIB:
        return Finding("warn", "memory", text, "two workers with Ray and MLflow take about 2 GiB; close other programs")
    return Finding("ok", "memory", text)


def _container_limit() -> int | None:
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _shared_memory(path: Path) -> Finding:
    try:
        found = os.statvfs(path)
    except OSError:
        return Finding("ok", "shared memory", "no /dev/shm on this system")
    size = found.f_frsize * found.f_blocks
    text = f"/dev/shm {size / GIB:.2g} GiB"
    if size < GIB:
        return Finding(
            "warn", "shared memory", f"{text}: Ray's object store falls back to disk", "docker run --shm-size=2g"
        )
    return Finding("ok", "shared memory", text)


def _tokens() -> Iterator[Finding]:
    if ray_token() is not None:
        yield Finding("ok", "ray token", "Ray token: from RAY_AUTH_TOKEN")
        return
    yield _token(own_token_path()) or Finding("ok", "ray token", "Ray token: none yet, made by the first run")
    joined = _token(ray_token_file())
    if joined is not None:
        yield joined


def _token(path: Path) -> Finding | None:
    """Judge a file with a token; None where there is none."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Finding(
            "fail", "ray token", f"Ray token {path}: {error.strerror}", f"give yourself access to {path.parent}"
        )
    if mode & 0o077:
        text = f"Ray token {path} can be read by others (mode {mode:04o})"
        return Finding("warn", "ray token", text, f"chmod 600 {path}")
    return Finding("ok", "ray token", f"Ray token {path}, mode {mode:04o}")


def storage_finding(storage: Path) -> Finding:
    """Say whether runs can be written to a folder and whether there is room."""
    folder = storage.resolve()
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".orchestrator-"):
            pass
    except OSError as error:
        text = f"storage {storage} cannot be written: {error.strerror}"
        return Finding("fail", "storage", text, "set cluster.storage to a folder of yours")
    free = shutil.disk_usage(folder).free
    text = f"storage {storage}: {free / GIB:.1f} GiB free"
    return Finding("warn" if free < GIB else "ok", "storage", text, "`orchestrator clean`" if free < GIB else "")


def tracking_finding(storage: Path, uri: str | None) -> Finding:
    """Say whether the tracking store can be reached; asks a server only for its health."""
    if uri is None:
        return _sqlite(storage.resolve() / "mlflow.db")
    kind = urlparse(uri).scheme
    if kind in ("http", "https"):
        return _server(uri)
    if kind == "sqlite":
        return _sqlite(Path(uri.removeprefix("sqlite:///")))
    return Finding("ok", "tracking", f"tracking {kind or uri}: not checked here, MLflow opens it at the start of a run")


def _sqlite(path: Path) -> Finding:
    import sqlite3

    if not path.exists():
        return Finding("ok", "tracking", f"tracking {path}: none yet, made by the first run")
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=2)) as store:
            store.execute("select version_num from alembic_version").fetchone()
    except sqlite3.Error as error:
        return Finding(
            "fail", "tracking", f"tracking {path}: {error}", f"move {path} away; the next run makes a new one"
        )
    return Finding("ok", "tracking", f"tracking {path}")


def _server(uri: str) -> Finding:
    address = f"{uri.rstrip('/')}/health"
    try:
        with urllib.request.urlopen(address, timeout=_SERVER_TIMEOUT_S) as answer:  # http(s) only, see the caller
            answer.read(64)
    except urllib.error.HTTPError as error:
        return Finding(
            "fail", "tracking", f"tracking {uri}: answers {error.code}", "check track.uri and your credentials"
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        repair = "start it with `orchestrator ui`, remove track.uri, or set track.offline=true"
        return Finding("fail", "tracking", f"tracking {uri}: {reason}", repair)
    return Finding("ok", "tracking", f"tracking {uri}")
