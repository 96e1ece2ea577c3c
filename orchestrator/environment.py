"""The one place where environment variables are read. Standard library only; everybody may call it."""

from __future__ import annotations

import os
from pathlib import Path

_PARENT = "ORCHESTRATOR_PARENT"


def no_color() -> bool:
    """Say whether the user asked for plain text (https://no-color.org: set and not empty, or a dumb terminal)."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def ray_token() -> str | None:
    """Return the Ray authentication token given in the environment; None when a file must hold it."""
    return os.environ.get("RAY_AUTH_TOKEN") or None


def ray_token_file() -> Path:
    """Return where Ray looks for its authentication token."""
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(given).expanduser() if given else Path.home() / ".ray" / "auth_token"


def ray_address() -> str | None:
    """Return the cluster address that Ray itself would take from the environment."""
    return os.environ.get("RAY_ADDRESS") or None


def cpp_compiler() -> str:
    """Return the C++ compiler that torch compiles models with."""
    return os.environ.get("CXX") or "g++"


def visible_cuda_devices() -> list[str] | None:
    """Return the devices that CUDA_VISIBLE_DEVICES leaves visible; None when it is not set (all are)."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return None
    return [part for part in value.split(",") if part.strip() and part.strip() != "-1"]


def torchrun_ranks() -> tuple[int, int, int] | None:
    """Return (rank, world size, local rank) as torchrun sets them; None outside torchrun."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", "0"))


def tracking_environment() -> dict[str, str]:
    """Return this process's environment with what MLflow must find before it is imported; the user's own choices win.

    The retry count is ours alone: the sender has its own endless back-off, and MLflow's would block for minutes.
    """
    environment = dict(os.environ)
    environment["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    environment["MLFLOW_ENABLE_ASYNC_LOGGING"] = "false"
    environment["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "60",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "GIT_PYTHON_REFRESH": "quiet",
        "OMP_NUM_THREADS": "1",
    }.items():
        environment.setdefault(name, value)
    return environment


def prepare_ray(*, local: bool, token_file: Path | None) -> None:
    """Set what Ray reads from the environment, before it is imported; the user's own choices win.

    `local` is a cluster that we start on this machine; `token_file` holds the token it is started with.
    """
    if token_file is not None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if "RAY_AUTH_TOKEN" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN_PATH", str(token_file))
    chosen = {
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2" if local else "0.5",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    if local:
        chosen |= {
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
            "RAY_TRAIN_METRICS_ENABLED": "0",
            "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
            "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
        }
    for name, value in chosen.items():
        os.environ.setdefault(name, value)


def state_folder() -> Path:
    """Return the folder for small files of ours that outlive a run, after the XDG convention."""
    given = os.environ.get("XDG_STATE_HOME")
    return (Path(given) if given else Path.home() / ".local" / "state") / "orchestrator"


def own_token_path() -> Path:
    """Return where the token of the Ray clusters that we start is kept (made by the first of them)."""
    return state_folder() / "ray_token"


def cache_folder() -> Path:
    """Return the folder for what can be made again at any time, after the XDG convention."""
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / "orchestrator"


def rank_environment() -> dict[str, str]:
    """Return the environment of a supervised rank process: this one's, without what belongs to other launchers."""
    foreign = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", _PARENT)
    return {name: value for name, value in os.environ.items() if name not in foreign}


def child_environment() -> dict[str, str]:
    """Return the environment of a process that ends with this one (`runs.parent`): it is told whose child it is."""
    return rank_environment() | {_PARENT: str(os.getpid())}


def take_parent() -> int | None:
    """Return the process that started this one, when it said so, once: children of this one are not to find it."""
    value = os.environ.pop(_PARENT, "")
    return int(value) if value.isdigit() else None
