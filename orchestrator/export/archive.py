"""Is a `.pt2` archive free of anything that runs when it is loaded? Every record and every string is on an allow-list.

torch 2.13 stores weights and constants as raw bytes and the graph as JSON, but `torch.export.load` is not safe with a
foreign file: it unpickles sample inputs (without restriction when the restricted way fails), payloads marked
`use_pickle` and opaque constants; loads compiled libraries; evaluates symbolic shapes with sympy; executes guard code;
resolves operator names anywhere under `torch`; writes node names into generated Python. None of that passes here.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import NoReturn

from orchestrator.errors import ExportError

_RECORD = re.compile(
    r"data/(weights/weight_\d+|constants/tensor_\d+)|data/(weights|constants)/\w+_config\.json"
    r"|models/\w+\.json|data/sample_inputs/\w+\.pt|archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
)
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|quantized_decomposed)\.[a-z]\w*\.\w+"
    r"|torch\.ops\.aten\._(scaled_mm|to_copy)\.default"
    r"|torch\.sym_(int|float|not|max|min|ite|sqrt)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
    r"|math\.(ceil|floor|sqrt|trunc)"
)
_SYMBOLS = frozenset(
    re.findall(
        r"\w+",
        """
        Symbol Integer Float Rational Add Mul Pow Max Min Mod PythonMod FloorDiv CleanDiv CeilDiv ModularIndexing Where
        Eq Ne Ge Gt Le Lt And Or Not True False oo int_oo IntTrueDiv FloatTrueDiv ToFloat TruncToInt CeilToInt
        FloorToInt Identity PowByNatural positive nonnegative integer nonzero real precision
        """,
    )
)
_SYMBOL = re.compile(r"[suz][uf]?\d+|e\d*")  # the last: the exponent of a number
_GUARD_WORDS = _SYMBOLS | {"L", "size", "stride", "storage_offset", "args", "kwargs", "flat_args", "and", "or", "not"}
_NAME = re.compile(r"[\w.\-$/:]*")
_TREE_TYPES = (None, "builtins.tuple", "builtins.list", "builtins.dict")
_SILENT_KEYS = ("metadata", "torch_version", "verifiers")  # carried along or compared, never resolved or run


def check_archive(path: Path, content: bytes | None = None) -> None:
    """Raise ExportError naming the first thing in the archive that could run code when loaded. Runs none of it.

    `content`: the bytes of the archive, where they are at hand; `path` is then its name only.
    """
    try:
        with zipfile.ZipFile(path if content is None else io.BytesIO(content)) as archive:
            for info in archive.infolist():
                _check_record(path, info.filename.partition("/")[2], archive.read(info))
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise ExportError(f"{path} is not a whole archive: {error}", hint="export again") from error
    except (UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(
            f"{path} holds a record that is not what its name says: {error}", hint="export again"
        ) from error


def _refuse(path: Path, what: str) -> NoReturn:
    raise ExportError(
        f"{path} is refused: {what}", hint="only archives of plain tensors and torch's own operators are loaded"
    )


def _check_record(path: Path, record: str, content: bytes) -> None:
    if not _RECORD.fullmatch(record):
        _refuse(path, f"record {record!r} is none that plain tensors need")
    if record.startswith("data/sample_inputs/") and content:
        _refuse(path, f"{record} is a pickle; programs are stored without sample inputs")
    if record.endswith("_config.json"):
        _check_payloads(path, record, json.loads(content))
    elif record.startswith("models/"):
        _check_graph(path, json.loads(content), record)


def _check_payloads(path: Path, record: str, content: dict[str, dict[str, dict[str, object]]]) -> None:
    for name, payload in content["config"].items():
        plain = payload["use_pickle"] is False and re.fullmatch(r"(weight|tensor)_\d+", str(payload["path_name"]))
        if not plain:
            _refuse(path, f"{record} stores {name!r} as a pickled object")


def _check_graph(path: Path, value: object, where: str) -> None:
    """Walk the JSON of a graph; the key under which a string stands decides which strings are allowed."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not _NAME.fullmatch(key):
                _refuse(path, f"{where} has the name {key!r}")
            if key not in _SILENT_KEYS:
                _check_graph(path, item, f"{where}.{key}" if not key.isdigit() else where)
    elif isinstance(value, list):
        for item in value:
            _check_graph(path, item, where)
    elif isinstance(value, str):
        _check_string(path, value, where)


def _check_string(path: Path, text: str, where: str) -> None:
    key = where.rpartition(".")[2]
    if key == "target":
        good = _OPERATOR.fullmatch(text) is not None and "__" not in text.replace("__and__", "").replace("__or__", "")
    elif key == "expr_str":
        good = _is_expression(text, _SYMBOLS)
    elif key == "guards_code":
        good = _is_expression(text, _GUARD_WORDS)
    elif key == "as_string":
        good = re.search(r"['\"\\\x00-\x1f]", text) is None
    elif key in ("in_spec", "out_spec"):
        good = not text or _is_plain_tree(json.loads(text)[1])
    else:
        good = _NAME.fullmatch(text) is not None
    if not good:
        _refuse(path, f"{where} is {text[:80]!r}")


def _is_expression(text: str, words: frozenset[str]) -> bool:
    """Say whether text is arithmetic over shape symbols (`s12`, `u0`), numbers and `words`, and nothing else."""
    bare = re.sub(r"'\w*'|\"\w*\"", "0", text)
    if re.search(r"[^\w\s.+\-*/%()\[\],<>=!&|]", bare) or "__" in bare:
        return False
    return all(word in words or _SYMBOL.fullmatch(word) for word in re.findall(r"[A-Za-z_]\w*", bare))


def _is_plain_tree(spec: dict[str, object]) -> bool:
    children = spec["children_spec"]
    return (
        spec["type"] in _TREE_TYPES
        and isinstance(children, list)
        and all(isinstance(child, dict) and _is_plain_tree(child) for child in children)
    )
