"""Which text files there are, and the packed byte stream made of them: kept once in a cache file, mapped by every rank.

The cache is named after names, sizes and times of the files and what the stream depends on. It is written beside its
final name and renamed, so that ranks and jobs that start together never see half of it.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.environment import cache_folder
from orchestrator.log import get_logger

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

END_OF_DOCUMENT = b"\0"  # no byte of UTF-8 text, so a document's end is told from its content
_FORMAT = 1
_NOT_OURS = ("site-packages", "dist-packages", "test", "tests", "__pycache__", "idlelib", "lib2to3")

log = get_logger("data.text")


@dataclass(frozen=True)
class TextFile:
    """One document: its path, the name it goes by in digests, how many of its bytes are used, its change time."""

    path: str
    name: str
    num_bytes: int
    changed_ns: int


def python_sources() -> list[tuple[str, str]]:
    """Return (path, name) of the sources of Python's own standard library on this machine, sorted by name."""
    root = os.path.dirname(os.path.abspath(os.__file__))
    found: list[tuple[str, str]] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _NOT_OURS]
        for file in files:
            if file.endswith(".py"):
                path = os.path.join(folder, file)
                found.append((path, os.path.relpath(path, root).replace(os.sep, "/")))
    return sorted(found, key=lambda pair: pair[1])


def matching(pattern: str) -> list[tuple[str, str]]:
    """Return (path, name) of the files that a glob (`**` goes into folders) finds from here, sorted."""
    paths = glob.glob(os.path.expanduser(pattern), recursive=True)
    return [(path, path.replace(os.sep, "/")) for path in sorted(paths) if os.path.isfile(path)]


def bounded(pairs: Sequence[tuple[str, str]], max_bytes: int) -> list[TextFile]:
    """Return the first files that fit into `max_bytes` (the last one is cut); empty files are left out."""
    found: list[TextFile] = []
    left = max_bytes
    for path, name in pairs:
        status = os.stat(path)
        size = min(status.st_size, left)
        if size > 0:
            found.append(TextFile(path, name, size, status.st_mtime_ns))
            left -= size
    return found


def stream_bytes(files: Sequence[TextFile]) -> int:
    """Return the length of the stream: every file and the byte that ends it."""
    return sum(file.num_bytes for file in files) + len(END_OF_DOCUMENT) * len(files)


def load_stream(files: Sequence[TextFile], folder: str | None) -> tuple[NDArray[np.uint8], str]:
    """Return the stream (uint8, read-only, mapped from the cache) and its SHA-256.

    A cache that cannot be written costs memory, not the run. Raises ValueError when a file changes meanwhile.
    """
    import numpy as np

    place = Path(folder).expanduser() if folder else cache_folder() / "text"
    key = hashlib.sha256(json.dumps([_FORMAT, [vars(file) for file in files]]).encode()).hexdigest()[:16]
    data, facts = place / f"{key}.bin", place / f"{key}.json"
    stream = _mapped(data, facts, stream_bytes(files))
    if stream is not None:
        return stream
    try:
        place.mkdir(parents=True, exist_ok=True)
        digest = _write(data, files)
        _replace(facts, json.dumps({"num_bytes": stream_bytes(files), "sha256": digest}).encode())
    except OSError as error:
        log.warning("text is kept in memory: the cache %s cannot be written (%s)", place, error)
        content = b"".join(_pieces(files))
        return np.frombuffer(content, dtype=np.uint8), hashlib.sha256(content).hexdigest()
    return np.memmap(data, dtype=np.uint8, mode="r"), digest


def _mapped(data: Path, facts: Path, num_bytes: int) -> tuple[NDArray[np.uint8], str] | None:
    import numpy as np

    with suppress(OSError, ValueError, KeyError, TypeError):
        said = json.loads(facts.read_text(encoding="utf-8"))
        stream = np.memmap(data, dtype=np.uint8, mode="r")
        if len(stream) == said["num_bytes"] == num_bytes:
            return stream, str(said["sha256"])
    return None


def _pieces(files: Sequence[TextFile]) -> Iterator[bytes]:
    for file in files:
        with open(file.path, "rb") as source:
            content = source.read(file.num_bytes)
        if len(content) != file.num_bytes:
            raise ValueError(f"{file.path} became shorter while it was read; start again when it no longer changes")
        yield content + END_OF_DOCUMENT


def _write(path: Path, files: Sequence[TextFile]) -> str:
    """Write the stream beside `path` and rename; return its SHA-256. Every writer has the same bytes: the last wins."""
    found = hashlib.sha256()
    with _beside(path) as temporary, temporary.open("xb") as target:
        for piece in _pieces(files):
            found.update(piece)
            target.write(piece)
    return found.hexdigest()


def _replace(path: Path, content: bytes) -> None:
    with _beside(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
