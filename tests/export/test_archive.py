"""A `.pt2` archive with anything in it that could run code is refused before torch sees it; nothing in it runs."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.errors import ExportError
from orchestrator.export.archive import check_archive
from orchestrator.export.program import ProgramExporter, load_program
from tests.export.making import CNN, make_inputs, make_job, make_model

Records = dict[str, bytes]


class Bomb:
    """Leaves a file behind when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    folder = tmp_path_factory.mktemp("program")
    job = make_job(CNN)
    (path,) = ProgramExporter().write(make_model(job), make_inputs(job, 2), folder)
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def pack(records: Records, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return path


def _edit(records: Records, name: str, change: Callable[[Any], None]) -> Records:
    content = json.loads(records[name])
    change(content)
    return records | {name: json.dumps(content).encode()}


def _graph(change: Callable[[Any], None]) -> Callable[[Records, Path], Records]:
    return lambda records, trace: _edit(records, "model/models/model.json", change)


def _set_target(target: str) -> Callable[[Any], None]:
    def change(page: Any) -> None:
        page["graph_module"]["graph"]["nodes"][0]["target"] = target

    return change


def _set_expression(text: str) -> Callable[[Any], None]:
    def change(page: Any) -> None:
        size = page["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]
        assert "expr_str" in size["as_expr"]
        size["as_expr"]["expr_str"] = text

    return change


def _guard(text: str) -> Callable[[Any], None]:
    return lambda page: page["guards_code"].append(text)


def _name(page: Any) -> None:
    page["graph_module"]["graph"]["nodes"][0]["name"] = "x\n    import os"


def _signature_name(page: Any) -> None:
    spec = page["graph_module"]["module_call_graph"][0]["signature"]
    spec["forward_arg_names"] = ["x=__import__('os').getcwd()"]


def _tree(page: Any) -> None:
    spec = page["graph_module"]["module_call_graph"][0]["signature"]
    spec["in_spec"] = spec["in_spec"].replace("builtins.tuple", "collections.namedtuple")


def _pickled(kind: str) -> Callable[[Records, Path], Records]:
    def change(records: Records, trace: Path) -> Records:
        name = f"model/data/{kind}/model_{kind}_config.json"

        def mark(page: Any) -> None:
            prefix = "weight_0" if kind == "weights" else "tensor_0"
            page["config"]["bomb"] = {"path_name": prefix, "is_param": False, "use_pickle": True, "tensor_meta": None}

        return _edit(records, name, mark) | {f"model/data/{kind}/tensor_0": pickle.dumps(Bomb(trace))}

    return change


def _sample_inputs(records: Records, trace: Path) -> Records:
    buffer = io.BytesIO()
    torch.save((Bomb(trace),), buffer)
    return records | {"model/data/sample_inputs/model.pt": buffer.getvalue()}


def _record(name: str) -> Callable[[Records, Path], Records]:
    return lambda records, trace: records | {name: pickle.dumps(Bomb(trace))}


HOSTILE = {
    "pickle in the sample inputs": _sample_inputs,
    "pickled weight": _pickled("weights"),
    "pickled constant": _pickled("constants"),
    "opaque constant": _record("model/data/constants/opaque_obj_0"),
    "script object": _record("model/data/constants/custom_obj_0"),
    "legacy weights": _record("model/data/weights/model.pt"),
    "compiled library": _record("model/data/aotinductor/model/model.so"),
    "extra record": _record("model/extra/notes.txt"),
    "climbing record": _record("model/../../escape"),
    "operator outside torch.ops": _graph(_set_target("torch.os.system")),
    "library loader": _graph(_set_target("torch.ops.load_library")),
    "dunder walk": _graph(_set_target("torch.ops.aten.__class__.mro")),
    "operator that calls methods": _graph(_set_target("_operator.methodcaller")),
    "shape that calls": _graph(_set_expression("__import__('os').system('true')")),
    "shape that opens": _graph(_set_expression("open('x', 'w')")),
    "shape with an attribute": _graph(_set_expression("Symbol.mro()")),
    "guard that calls": _graph(_guard("exec('pass')")),
    "guard with a dunder": _graph(_guard("L.__class__")),
    "node name with a line break": _graph(_name),
    "argument name with a default": _graph(_signature_name),
    "foreign tree type": _graph(_tree),
}


def test_an_export_of_ours_passes_and_holds_no_pickle(records: Records, tmp_path: Path) -> None:
    path = pack(records, tmp_path / "model.pt2")
    check_archive(path)
    assert records["model/data/sample_inputs/model.pt"] == b""
    assert not [name for name, content in records.items() if content[:2] in (b"PK", b"\x80\x02", b"\x80\x05")]
    inputs = make_inputs(make_job(CNN), 3)
    assert load_program(path).module()(inputs).shape == (3, 10)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_and_nothing_runs(name: str, records: Records, tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    path = pack(HOSTILE[name](records, trace), tmp_path / "model.pt2")
    with pytest.raises(ExportError):
        load_program(path)
    assert not trace.exists()


def test_the_bomb_would_go_off_without_the_check(records: Records, tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    path = pack(_sample_inputs(records, trace), tmp_path / "model.pt2")
    with suppress(Exception):  # whatever torch makes of it: it may raise or only log, by which handlers there are
        torch.export.load(path)
    assert trace.exists()


@pytest.mark.parametrize("content", [b"", b"PK", b"not an archive"])
def test_what_is_no_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(content)
    with pytest.raises(ExportError, match="not a whole archive"):
        check_archive(path)


@pytest.mark.parametrize("cut", [0.3, 0.9, 0.99])
def test_a_truncated_archive_is_refused(cut: float, records: Records, tmp_path: Path) -> None:
    path = pack(records, tmp_path / "model.pt2")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * cut)])
    with pytest.raises(ExportError, match="not a whole archive"):
        check_archive(path)
