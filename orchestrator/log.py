"""Logging set-up: called by doors and workers only. Our lines go where the caller says, third parties go to a file."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LOGGER_NAME = "orchestrator"
_CREDENTIALS = re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s]+@")
_QUERY = re.compile(r"([?&](?:[a-z_-]*(?:token|password|passwd|secret|key|sig|signature))=)[^&\s\"']+", re.IGNORECASE)
_OVERRIDE = re.compile(
    r"""(?P<quote>['"])(?P<whole>[\w-]+(?:\.[\w-]+)+)=.*?(?P=quote)"""  # as a shell quotes a word with spaces in it
    r"""|\b(?P<key>[\w-]+(?:\.[\w-]+)+)=(?:"[^"]*"|'[^']*'|[^\s'"]+)"""
)
_MASK = "***"
_SECRET_WORDS = {"token", "password", "passwd", "passphrase", "secret", "key", "apikey", "credential", "credentials"}


def get_logger(name: str = "") -> logging.Logger:
    """Return our logger, or a child of it (`get_logger("train")` -> `orchestrator.train`)."""
    return logging.getLogger(f"{LOGGER_NAME}.{name}" if name else LOGGER_NAME)


class RedactingFormatter(logging.Formatter):
    """Formats a record and its traceback without the credentials that URIs may carry."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return redact(super().format(record))


def setup_file_logging(path: Path, *, rank: int | None = None, level: int = logging.INFO) -> None:
    """Send every record of this process (ours and third parties') to `path`, appended; nothing to the terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tag = f"rank {rank} " if rank is not None else ""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(RedactingFormatter(f"%(asctime)s {tag}%(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


def redact(text: str) -> str:
    """Return `text` without credentials: `scheme://user:password@host`, `?token=...`, and `data.api_key=...`."""
    return _OVERRIDE.sub(_without_secret, _QUERY.sub(r"\1***", _CREDENTIALS.sub(r"\1***@", text)))


def _without_secret(found: re.Match[str]) -> str:
    key = found["whole"] or found["key"]
    return f"{found['quote'] or ''}{key}=***{found['quote'] or ''}" if _is_secret(key) else found.group()


def redact_value(key: str, value: object) -> str:
    """Return `value` as text to show: masked when its key reads like a secret (`s3.secret_key`), else redacted."""
    if _is_secret(key) and value not in (None, "") and not isinstance(value, bool | int | float):
        return "***"
    return redact(str(value))


def redact_data(data: Any, key: str = "") -> Any:
    """Return nested plain data with every value masked as `redact_value` does; below a secret key all texts are."""
    if isinstance(data, Mapping):
        return {name: redact_data(value, key if _is_secret(key) else str(name)) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [redact_data(value, key) for value in data]
    return redact_value(key, data) if isinstance(data, str) else data


def masked_keys(data: Any, key: str = "") -> list[str]:
    """Return the dotted keys of nested data at which `redact_data` has left no value that could be used."""
    if isinstance(data, Mapping):
        return [each for name, value in data.items() for each in masked_keys(value, f"{key}.{name}".lstrip("."))]
    if isinstance(data, list | tuple):
        return [each for number, value in enumerate(data) for each in masked_keys(value, f"{key}.{number}".lstrip("."))]
    return [key] if isinstance(data, str) and _MASK in data else []


def _is_secret(key: str) -> bool:
    last = key.replace("/", ".").rsplit(".", 1)[-1].lower()
    return any(word in _SECRET_WORDS for word in re.split(r"[_\-]", last))
