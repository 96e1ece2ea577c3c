"""A small file from which an ONNX file is restored bit for bit: masks, codebooks and codes, entropy-coded.

`python -m orchestrator.compress.archive FILE OUT` restores one. Standard library and numpy only: the judging process
and whoever deploys the model need nothing else. Layout: MAGIC, length of the header (4 bytes, little endian), the
header (JSON, LZMA), then one LZMA stream each for what is not weights, codebooks, gaps between weights that are not
zero, codes, and weights without a codebook.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.compress.graph import float_payloads
from orchestrator.errors import ExportError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Words = NDArray[np.uint32]
    Bytes = NDArray[np.uint8]

MAGIC = b"ORCPACK1"
STREAMS = ("rest", "books", "gaps", "codes", "plain")
# Order-0 statistics of bytes: what LZMA looks for between neighbours is not there in gaps and codes.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 0, "pb": 0}]
_MIN_VALUES = 64
_MAX_BOOK = 255
_JUMP = 255  # a gap byte that says: 255 zeros more, and no weight after them


def pack(content: bytes) -> bytes:
    """Return the archive of an ONNX file. Weights whose layers have few different values become codes."""
    import numpy as np

    streams: dict[str, list[bytes]] = {name: [] for name in STREAMS}
    tensors: list[list[int]] = []
    done = 0
    for begin, end in float_payloads(content):
        words = np.frombuffer(content[begin:end], dtype="<u4")
        streams["rest"].append(content[done:begin])
        tensors.append([begin, *_put(words, streams)])
        done = end
    streams["rest"].append(content[done:])
    packed = [_squeeze(b"".join(streams[name])) for name in STREAMS]
    header = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "num_bytes": len(content),
        "tensors": tensors,
        "streams": [len(each) for each in packed],
    }
    text = _squeeze(json.dumps(header, separators=(",", ":")).encode())
    return b"".join([MAGIC, len(text).to_bytes(4, "little"), text, *packed])


def unpack(archive: bytes) -> bytes:
    """Return the ONNX file. Raises ExportError when the archive is damaged: nothing but the very bytes is returned."""
    try:
        header, streams = _open(archive)
        content = _restore(header, streams)
        wanted = header["sha256"]
    except (ValueError, KeyError, IndexError, TypeError, lzma.LZMAError, EOFError) as error:
        raise ExportError(f"the archive is damaged: {error}") from error
    if hashlib.sha256(content).hexdigest() != wanted:
        raise ExportError("the archive does not restore the bytes it was made of: its SHA-256 differs")
    return content


def read_header(archive: bytes) -> dict[str, Any]:
    """Return the header: `sha256` and `num_bytes` of the file that is restored. Raises ExportError."""
    try:
        return _open(archive)[0]
    except (ValueError, KeyError, lzma.LZMAError, EOFError) as error:
        raise ExportError(f"the archive is damaged: {error}") from error


def _put(words: Words, streams: dict[str, list[bytes]]) -> tuple[int, int, int, int]:
    """Write one tensor; return (numbers, size of its codebook or 0, numbers that are not zero or -1, gap bytes)."""
    import numpy as np

    values = np.unique(words)
    book = values[values != 0]
    if len(words) < _MIN_VALUES or len(book) > _MAX_BOOK:
        streams["plain"].append(words.tobytes())
        return len(words), 0, -1, 0
    streams["books"].append(book.tobytes())
    places = np.flatnonzero(words)
    if 2 * len(places) > len(words):
        codes = np.searchsorted(values, words).astype(np.uint8)
        has_zero = int(values[0] == 0)
        streams["codes"].append((codes + (1 - has_zero)).astype(np.uint8).tobytes())
        return len(words), len(book), -1, 0
    gaps = _gaps(places)
    streams["gaps"].append(gaps)
    streams["codes"].append(np.searchsorted(book, words[places]).astype(np.uint8).tobytes())
    return len(words), len(book), len(places), len(gaps)


def _gaps(places: Any) -> bytes:
    found = bytearray()
    last = -1
    for place in places.tolist():
        jumps, gap = divmod(place - last - 1, _JUMP)
        found += bytes([_JUMP]) * jumps + bytes([gap])
        last = place
    return bytes(found)


def _open(archive: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    if not archive.startswith(MAGIC):
        raise ValueError("it does not begin as an archive does")
    at = len(MAGIC) + 4
    size = int.from_bytes(archive[len(MAGIC) : at], "little")
    header: dict[str, Any] = json.loads(_expand(archive[at : at + size]))
    at += size
    streams: dict[str, bytes] = {}
    for name, length in zip(STREAMS, header["streams"], strict=True):
        streams[name] = _expand(archive[at : at + length])
        at += length
    if at != len(archive):
        raise ValueError("its length is not what its header says")
    return header, streams


def _restore(header: dict[str, Any], streams: dict[str, bytes]) -> bytes:
    read = {name: _Reader(content) for name, content in streams.items()}
    found = bytearray()
    for begin, *sizes in header["tensors"]:
        found += read["rest"].take(begin - len(found))
        found += _get(sizes, read)
    return bytes(found + read["rest"].take(header["num_bytes"] - len(found)))


def _get(sizes: Sequence[int], read: dict[str, _Reader]) -> bytes:
    import numpy as np

    count, num_book, num_left, num_gaps = sizes
    if num_book == 0 and num_left < 0:
        return read["plain"].take(4 * count)
    book = np.frombuffer(read["books"].take(4 * num_book), dtype="<u4")
    if num_left < 0:
        codes = np.frombuffer(read["codes"].take(count), dtype=np.uint8)
        return bytes(np.concatenate([np.zeros(1, dtype="<u4"), book])[codes].tobytes())
    gaps = np.frombuffer(read["gaps"].take(num_gaps), dtype=np.uint8).astype(np.int64)
    codes = np.frombuffer(read["codes"].take(num_left), dtype=np.uint8)
    ends = np.cumsum(np.where(gaps == _JUMP, _JUMP, gaps + 1)) - 1
    words = np.zeros(count, dtype="<u4")
    words[ends[gaps != _JUMP]] = book[codes]
    return words.tobytes()


class _Reader:
    """Bytes taken from the front, never fewer than asked for."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0

    def take(self, size: int) -> bytes:
        part = self._content[self._at : self._at + size]
        if size < 0 or len(part) != size:
            raise ValueError("a stream ends too early")
        self._at += size
        return part


def _squeeze(content: bytes) -> bytes:
    return lzma.compress(content, format=lzma.FORMAT_RAW, filters=_FILTERS)


def _expand(content: bytes) -> bytes:
    return lzma.decompress(content, format=lzma.FORMAT_RAW, filters=_FILTERS)


def main(arguments: list[str]) -> int:
    """Restore the ONNX file of an archive."""
    source, target = Path(arguments[0]), Path(arguments[1])
    target.write_bytes(unpack(source.read_bytes()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
