"""`orchestrator ui`: a slim MLflow page on this machine, and the link of the last run."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from orchestrator.cli.flags import Out, verb

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@verb(example="orchestrator ui --port 5001")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=5000, show_default=True, help="The next free one is taken."
)
@click.option("--storage", default="runs", show_default=True, help="Folder of the runs and of their MLflow store.")
@click.option("--uri", default=None, help="Tracking URI, when it is not the store in the storage folder.")
@click.option("--open", "open_browser", is_flag=True, help="Open the page in the browser.")
def command(out: Out, port: int, storage: str, uri: str | None, open_browser: bool) -> int:
    """Show runs in MLflow: start its page on this machine and print the link of the last run. Ctrl-C ends it."""
    from orchestrator.errors import TrackingError
    from orchestrator.log import redact
    from orchestrator.tracking.links import last_run_link
    from orchestrator.tracking.request import resolve_uri
    from orchestrator.tracking.server import LocalServer, free_port

    folder = Path(storage).resolve()
    store = resolve_uri(uri, folder)
    if store.startswith(("http://", "https://")):
        link = last_run_link(folder, redact(store)) or redact(store)
        out.result({"url": link, "started": False}, [f"That server has a page of its own: {link}"])
        return _open(link, open_browser)
    if uri is None and not (folder / "mlflow.db").is_file():
        raise TrackingError(
            f"{folder} holds no MLflow store", hint="run a job first, or name its folder with --storage, or a --uri"
        )
    free = free_port(port)
    if free != port:
        out.note(f"port {port} is taken, using {free}")
    started = time.monotonic()
    with _terminable(), LocalServer(store, (folder / "mlartifacts").as_uri(), folder / "ui.log", port=free) as server:
        out.say(f"starting MLflow on {server.url} ...", err=True)
        try:
            server.wait_ready()
            link = last_run_link(folder, server.url) or server.url
            lines = [f"MLflow     {server.url}  ({time.monotonic() - started:.1f} s)", f"last run   {link}"]
            out.result({"url": link, "server": server.url, "started": True}, lines)
            out.say(
                "Ctrl-C ends it. On a first visit MLflow opens its assistant: its cross closes it for good", err=True
            )
            _open(link, open_browser)
            return server.wait()
        except KeyboardInterrupt:
            out.say("MLflow stopped", err=True)
            return 0


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end the server as Ctrl-C does, which a shell's `&` would have us ignore."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    kept = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _open(link: str, wanted: bool) -> int:
    if wanted:
        click.launch(link)
    return 0
