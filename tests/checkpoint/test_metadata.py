"""Hostile checkpoints whose hashes all agree (the writer owns the manifest too): refused, and nothing in them runs."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
)

from orchestrator.checkpoint import rng
from orchestrator.checkpoint.load import load_consolidated, load_into, read_metadata
from orchestrator.checkpoint.manifest import CheckpointRef
from orchestrator.checkpoint.metadata import parse_metadata
from orchestrator.checkpoint.verify import open_checkpoint
from orchestrator.errors import CheckpointError
from tests.checkpoint.states import make_state, save_steps

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
CANARY = "canary"


class _Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def _touch() -> _Call:
    return _Call(os.system, f"touch {CANARY}")


def _honest(ref: CheckpointRef) -> Metadata:
    """The checkpoint's metadata, as DCP itself would unpickle it."""
    loaded = pickle.loads((ref.path / ".metadata").read_bytes())
    assert isinstance(loaded, Metadata)
    return loaded


def _with(ref: CheckpointRef, **changes: Any) -> bytes:
    return pickle.dumps(dataclasses.replace(_honest(ref), **changes))


def _storage(ref: CheckpointRef, change: Callable[[_StorageInfo], Any]) -> bytes:
    metadata = _honest(ref)
    first = next(iter(metadata.storage_data))
    metadata.storage_data[first] = change(metadata.storage_data[first])
    return pickle.dumps(metadata)


def _first_tensor(ref: CheckpointRef, **changes: Any) -> bytes:
    metadata = _honest(ref)
    name = "model/head.weight"
    metadata.state_dict_metadata[name] = dataclasses.replace(metadata.state_dict_metadata[name], **changes)
    return pickle.dumps(metadata)


def _at(path: str) -> Callable[[CheckpointRef], bytes]:
    return lambda ref: _storage(ref, lambda info: dataclasses.replace(info, relative_path=path))


def _bytes_item(ref: CheckpointRef) -> bytes:
    metadata = _honest(ref)
    metadata.state_dict_metadata["optim/evil"] = BytesStorageMetadata()
    metadata.storage_data[MetadataIndex("optim/evil")] = _StorageInfo("__0_0.distcp", 0, 10)
    return pickle.dumps(metadata)


def _class_attack(ref: CheckpointRef) -> bytes:
    """BUILD on a class object: sets an attribute on Metadata itself, for whoever uses it later."""
    module, name = b"torch.distributed.checkpoint.metadata", b"Metadata"
    attack = b"\x80\x04\x8c" + bytes([len(module)]) + module + b"\x8c" + bytes([len(name)]) + name + b"\x93"
    return attack + b"N}\x8c\x05taint\x88s\x86b."


def _getattr_chain(ref: CheckpointRef) -> bytes:
    system = _Call(getattr, _Call(__import__, "os"), "system")
    return _with(ref, planner_data=_CallOf(system, f"touch {CANARY}"))


class _CallOf:
    """Pickles as a call of what another payload evaluates to (protocol 0 to 2 allow it through apply-like helpers)."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        import functools

        return functools.reduce, (_apply, self.arguments, self.function)


def _apply(function: Callable[[Any], Any], argument: Any) -> Any:
    return function(argument)


def _globals_by_opcode(module: str, name: str, argument: str) -> Callable[[CheckpointRef], bytes]:
    """Protocol 0, as the oldest attacks: c GLOBAL, a string, a tuple, REDUCE."""
    return lambda ref: f"c{module}\n{name}\n(S'{argument}'\ntR.".encode()


TOUCH = f"touch {CANARY}"
OPEN = f"open('{CANARY}', 'w')"
PAYLOADS: dict[str, Callable[[CheckpointRef], bytes]] = {
    "a call of os.system": lambda ref: pickle.dumps(_touch()),
    "os.system in protocol 0": _globals_by_opcode("os", "system", TOUCH),
    "posix.system": _globals_by_opcode("posix", "system", TOUCH),
    "builtins.eval": lambda ref: pickle.dumps(_Call(eval, OPEN)),
    "builtins.exec": lambda ref: pickle.dumps(_Call(exec, OPEN)),
    "builtins.open": lambda ref: pickle.dumps(_Call(open, CANARY, "w")),
    "subprocess.Popen": lambda ref: pickle.dumps(_Call(__import__("subprocess").Popen, ["touch", CANARY])),
    "nested in the planner's data": lambda ref: _with(ref, planner_data={"a": [({"b": _touch()},)]}),
    "nested in a tensor's pieces": lambda ref: _first_tensor(ref, chunks=[_touch()]),
    "nested as a size": lambda ref: _first_tensor(ref, size=_touch()),
    "as a table's key": lambda ref: _with(ref, storage_data={_touch(): 1}),
    "as the version": lambda ref: _with(ref, version=_touch()),
    "in the module list": lambda ref: _with(ref, storage_meta=StorageMeta(modules=[_touch()])),  # type: ignore[list-item]
    "getattr chain": _getattr_chain,
    "dotted name": lambda ref: b"\x80\x04\x8c\x05torch\x8c\x0bos.systemxx\x93.",
    "dotted name below an allowed module": lambda ref: b"\x80\x04\x8c\x05torch\x8c\x0fSize.__class__.x\x93.",
    "torch.load": lambda ref: pickle.dumps(_Call(torch.load, CANARY)),
    "a torch function beside the dtypes": lambda ref: pickle.dumps(_Call(torch.zeros, 3)),
    "a hub download": lambda ref: pickle.dumps(_Call(torch.hub.load, "x/y", "z")),
    "pickle in pickle": lambda ref: pickle.dumps(_Call(pickle.loads, pickle.dumps(_touch()))),
    "a class changed by BUILD": _class_attack,
    "INST instruction": lambda ref: f"(S'{TOUCH}'\nios\nsystem\n.".encode(),
    "OBJ instruction": lambda ref: f"(cos\nsystem\nS'{TOUCH}'\no.".encode(),
    "NEWOBJ_EX instruction": lambda ref: b"\x80\x04\x8c\x02os\x8c\x06system\x93)}\x92.",
    "persistent id": lambda ref: b"Pcanary\n.",
    "extension registry": lambda ref: b"\x80\x02\x82\x01.",
    "a giant memory table": lambda ref: b"\x80\x04Nr" + struct.pack("<I", 2**32 - 1) + b".",
    "a pickled item": _bytes_item,
    "a path out of the folder": _at("../outside.distcp"),
    "an absolute path": _at("/etc/passwd"),
    "a path to the manifest": _at("manifest.json"),
    "a file that the manifest does not list": _at("__7_0.distcp"),
    "a negative offset": lambda ref: _storage(ref, lambda info: dataclasses.replace(info, offset=-5)),
    "a decompressor": lambda ref: _storage(ref, lambda info: dataclasses.replace(info, transform_descriptors=["zstd"])),
    "a tensor of a petabyte": lambda ref: _first_tensor(ref, size=torch.Size([2**50])),
    "a negative size": lambda ref: _first_tensor(ref, size=torch.Size([-1, 6])),
    "a piece out of bounds": lambda ref: _first_tensor(
        ref, chunks=[ChunkStorageMetadata(torch.Size([8, 0]), torch.Size([10, 6]))]
    ),
    "a piece that lies nowhere": lambda ref: _with(ref, storage_data={}),
    "no table at all": lambda ref: pickle.dumps({"state_dict_metadata": {}}),
    "an empty file": lambda ref: b"",
    "noise": lambda ref: bytes(range(256)) * 4,
    "cut short": lambda ref: (ref.path / ".metadata").read_bytes()[:-40],
}


@pytest.fixture
def ref(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CheckpointRef:
    """An honest checkpoint; the working folder is one where a canary would show."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (tmp_path / "outside.distcp").write_bytes(b"secret")
    return save_steps(tmp_path / "c", 1)[0]


def _replace(ref: CheckpointRef, name: str, data: bytes) -> CheckpointRef:
    """Put `data` in place of a file and make the manifest agree, as an attacker with write access would."""
    (ref.path / name).write_bytes(data)
    manifest = json.loads((ref.path / "manifest.json").read_text())
    entry = next(one for one in manifest["files"] if one["name"] == name)
    entry.update(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    (ref.path / "manifest.json").write_text(json.dumps(manifest))
    return open_checkpoint(ref.path)


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS.keys())
def test_a_hostile_metadata_is_refused_by_every_loader_and_runs_nothing(
    ref: CheckpointRef, payload: Callable[[CheckpointRef], bytes]
) -> None:
    evil = _replace(ref, ".metadata", payload(ref))
    for load in (load_consolidated, lambda one: load_into(one, make_state(1))):
        with pytest.raises(CheckpointError) as caught:
            load(evil)
        assert caught.value.message
        assert "\n" not in caught.value.message
    assert not Path(CANARY).exists()
    assert not hasattr(Metadata, "taint")


def test_the_payloads_are_armed(ref: CheckpointRef) -> None:
    """Plain pickle does run them: the test above would not pass by accident."""
    for name in ("a call of os.system", "nested in the planner's data", "builtins.eval", "pickle in pickle"):
        pickle.loads(PAYLOADS[name](ref))
        assert Path(CANARY).exists(), name
        Path(CANARY).unlink()


@pytest.mark.parametrize("forced", [False, True], ids=["", "unsafe loading forced by the environment"])
def test_a_hostile_shard_is_refused_and_runs_nothing(
    ref: CheckpointRef, forced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    buffer = io.BytesIO()
    torch.save(_touch(), buffer)
    data = buffer.getvalue()
    evil = _replace(ref, "__0_0.distcp", data + bytes(20000))

    def everywhere(info: _StorageInfo) -> _StorageInfo:
        return dataclasses.replace(info, offset=0, length=len(data))

    metadata = _honest(ref)
    metadata.storage_data = {index: everywhere(info) for index, info in metadata.storage_data.items()}
    evil = _replace(evil, ".metadata", pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"loading .* failed: UnpicklingError"):
        load_consolidated(evil)
    assert not Path(CANARY).exists()


def test_hostile_random_number_states_are_refused_and_run_nothing(ref: CheckpointRef) -> None:
    evil = _replace(ref, "rng-0.safetensors", pickle.dumps(_touch()))
    with pytest.raises(CheckpointError, match="random-number states"):
        rng.restore_from(evil, rank=0, world_size=1, seed=0)
    assert not Path(CANARY).exists()


@pytest.mark.parametrize(
    "name", ["../outside.distcp", "/etc/passwd", "a/b", "..", ".", "", "x\0y", "manifest.json", "a" * 200, 7, None]
)
def test_a_manifest_cannot_name_a_file_outside_the_folder(ref: CheckpointRef, name: Any) -> None:
    manifest = json.loads((ref.path / "manifest.json").read_text())
    manifest["files"][0]["name"] = name
    (ref.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="not a plain file name"):
        open_checkpoint(ref.path)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "rng-0.safetensors", "manifest.json"])
def test_symbolic_links_are_not_followed(ref: CheckpointRef, tmp_path: Path, name: str) -> None:
    real = tmp_path / "elsewhere"
    (ref.path / name).rename(real)
    (ref.path / name).symlink_to(real)
    with pytest.raises(CheckpointError):
        open_checkpoint(ref.path)


def test_a_shard_swapped_for_a_link_after_verification_is_not_read(ref: CheckpointRef, tmp_path: Path) -> None:
    read_metadata(ref)
    real = tmp_path / "elsewhere"
    (ref.path / "__0_0.distcp").rename(real)
    (ref.path / "__0_0.distcp").symlink_to(real)
    with pytest.raises(CheckpointError):
        load_consolidated(ref)


def test_an_honest_metadata_is_rebuilt_field_by_field(ref: CheckpointRef) -> None:
    data = (ref.path / ".metadata").read_bytes()
    rebuilt = parse_metadata(data, {"__0_0.distcp"}, ref.manifest.total_bytes)
    honest = _honest(ref)
    assert rebuilt.state_dict_metadata == honest.state_dict_metadata
    assert rebuilt.storage_data == honest.storage_data
    assert str(ref.path).encode() not in data, "the folder's path stays out, so that checkpoints can be moved"
