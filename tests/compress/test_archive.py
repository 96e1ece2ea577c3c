"""The archive restores every bit, tells when it cannot, and is small where weights were left out or shared."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from orchestrator.compress import archive
from orchestrator.compress.archive import main, pack, read_header, unpack
from orchestrator.compress.codebooks import cluster, quantised
from orchestrator.compress.finetune import Config as FinetuneConfig
from orchestrator.compress.finetune import Finetune
from orchestrator.compress.fold import fold_norms
from orchestrator.compress.graph import float_payloads
from orchestrator.compress.pipeline import Outcome, Trained, compress
from orchestrator.compress.report import metrics, table
from orchestrator.compress.share import Config as ShareConfig
from orchestrator.compress.share import Share
from orchestrator.compress.verify import check_artifact
from orchestrator.errors import ExportError

from .making import RESNET, context_of, in_memory, make_job, make_trained, rewrite

STEPS = (
    {"use": "prune", "kind": "unstructured", "ratio": 0.8},
    {"use": "finetune", "epochs": 2, "lr": 0.005, "distill": {}},
    {"use": "share"},
    {"use": "finetune", "epochs": 0.5, "lr": 0.0005},
    {"use": "export"},
    {"use": "pack"},
)


def graph_with(*arrays: np.ndarray) -> bytes:
    tensors = [numpy_helper.from_array(array, f"w{at}") for at, array in enumerate(arrays)]
    nodes = [helper.make_node("Identity", [f"w{at}"], [f"y{at}"]) for at in range(len(arrays))]
    outputs = [helper.make_tensor_value_info(f"y{at}", TensorProto.FLOAT, None) for at in range(len(arrays))]
    return helper.make_model(helper.make_graph(nodes, "g", [], outputs, tensors)).SerializeToString()


@pytest.fixture(scope="module")
def trained() -> Trained:
    return make_trained(make_job(RESNET, STEPS), epochs=4)


@pytest.fixture(scope="module")
def outcome(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    found = compress(trained, tmp_path_factory.mktemp("packed") / "compress")
    assert found.ok, found.error
    return found


@settings(max_examples=60, deadline=None)
@given(
    zeros=st.sampled_from([0.0, 0.3, 0.6, 0.97, 1.0]),
    book=st.integers(1, 400),
    size=st.sampled_from([1, 63, 64, 1000, 3000]),
    seed=st.integers(0, 99),
)
@pytest.mark.slow
def test_every_bit_comes_back_whatever_the_weights_are(zeros: float, book: int, size: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.standard_normal(book).astype(np.float32)
    values[:1] = [-0.0]  # bits, not numbers: a zero with a sign is another value
    weight = np.where(random.random(size) < zeros, np.float32(0), random.choice(values, size)).astype(np.float32)
    content = graph_with(weight, np.array([np.nan, np.inf], dtype=np.float32), weight[::-1].copy())
    assert unpack(pack(content)) == content


def test_payloads_are_the_raw_bytes_of_float_initializers() -> None:
    first, second = np.arange(6, dtype=np.float32), np.arange(4, dtype=np.float32) + 10
    content = graph_with(first, np.arange(3, dtype=np.int64).view(np.int64), second)
    assert [content[begin:end] for begin, end in float_payloads(content)] == [first.tobytes(), second.tobytes()]


def test_long_runs_of_zeros_and_the_command_that_restores(tmp_path: Path) -> None:
    weight = np.zeros(100_000, dtype=np.float32)
    weight[[0, 254, 510, 1021, 99_999]] = [1, 2, 1, 2, 1]
    content = graph_with(weight)
    (tmp_path / "a.pack").write_bytes(pack(content))
    assert main([str(tmp_path / "a.pack"), str(tmp_path / "a.onnx")]) == 0
    assert (tmp_path / "a.onnx").read_bytes() == content
    assert (tmp_path / "a.pack").stat().st_size < 700


def test_any_damaged_byte_is_found() -> None:
    content = graph_with(np.where(np.arange(500) % 9 == 0, 2.5, 0).astype(np.float32), np.ones(100, dtype=np.float32))
    good = pack(content)
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 0x10
        with suppress(ExportError):
            assert unpack(bytes(bad)) == content, f"byte {at}"  # what LZMA does not use may differ, the answer may not
    for cut in (0, 5, 12, len(good) // 2, len(good) - 1):
        with pytest.raises(ExportError, match="archive"):
            unpack(good[:cut])
    with pytest.raises(ExportError, match="archive"):
        unpack(good + b"0")


def test_k_means_finds_the_groups_and_never_gets_worse_than_its_start() -> None:
    values = torch.cat([torch.full((50,), -1.0), torch.full((30,), 0.5), torch.full((20,), 3.0)])
    book, codes = cluster(values + 0.01 * torch.randn(100, generator=torch.Generator().manual_seed(0)), 3)
    torch.testing.assert_close(book, torch.tensor([-1.0, 0.5, 3.0]), atol=0.02, rtol=0)
    assert codes.tolist() == [0] * 50 + [1] * 30 + [2] * 20
    loose = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    book, codes = cluster(loose, 16)
    even = torch.linspace(float(loose.min()), float(loose.max()), 16)
    start = (loose[:, None] - even).abs().min(1).values.square().mean()
    assert (book[codes] - loose).square().mean() < 0.7 * start
    assert (loose[:, None] - book).abs().argmin(1).equal(codes)


def test_sharing_leaves_zeros_alone_and_counts_values() -> None:
    weight = torch.randn(20, 20, generator=torch.Generator().manual_seed(0))
    mask = weight.abs() > 0.5
    shared, codes = quantised(weight * mask, mask, 8)
    assert not shared[~mask].any()
    assert (codes[~mask] == -1).all()
    assert len(shared[mask].unique()) <= 8


def test_folding_norms_changes_no_answer_and_leaves_none_behind(trained: Trained, tmp_path: Path) -> None:
    from orchestrator.export.weights import plain_copy

    model, inputs = plain_copy(trained.model), torch.rand(4, 1, 8, 8)
    assert fold_norms(model, inputs[:2]) == 6
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in model.modules())
    torch.testing.assert_close(model(inputs), trained.model(inputs), rtol=1e-4, atol=1e-4)


def test_values_in_common_stay_so_while_finetuning(trained: Trained, tmp_path: Path) -> None:
    context = context_of(trained, tmp_path)
    state = Share(ShareConfig(clusters=8)).apply(in_memory(trained), context).state
    after = Finetune(FinetuneConfig(epochs=0.3)).apply(state, context).state
    assert after.codes.keys() == state.codes.keys()
    moved = 0
    for name, codes in after.codes.items():
        weight, old = after.model.get_parameter(name), state.model.get_parameter(name)
        for code in codes.unique():
            assert len(weight[codes == code].unique()) == 1
        moved += int(not torch.equal(weight, old))
    assert moved == len(after.codes)


def test_what_a_first_share_gave_values_in_common_keeps_them_after_a_second(trained: Trained, tmp_path: Path) -> None:
    context = context_of(trained, tmp_path)
    first = Share(ShareConfig(clusters=4, keep=("block2",))).apply(in_memory(trained), context).state
    second = Share(ShareConfig(clusters=8, keep=("block1",))).apply(first, context).state
    after = Finetune(FinetuneConfig(epochs=0.05)).apply(second, context).state
    assert len(after.codes) == 7
    for name, codes in after.codes.items():
        values = after.model.get_parameter(name)
        assert all(len(values[codes == code].unique()) == 1 for code in codes.unique())
        assert ("block1" in name) <= (len(codes.unique()) <= 4)
    apart = Share(ShareConfig(keep=("block2",), fold_norms=False)).apply(in_memory(trained), context).state
    with pytest.raises(ExportError, match=r"takes layers\.block1\.\S+ off the values that a share before gave it"):
        Share(ShareConfig(keep=("block1",))).apply(apart, context)


def test_an_archive_holds_without_torch_and_says_what_it_restores(outcome: Outcome) -> None:
    checked = outcome.checked
    restored = unpack((outcome.folder / "artifact" / "model.pack").read_bytes())
    assert restored == (outcome.folder / "5_export" / "model.onnx").read_bytes()
    assert checked["restored_bytes"] == len(restored)
    assert checked["size_bytes"] == (outcome.folder / "artifact" / "model.pack").stat().st_size
    assert checked["size_ratio"] > 12
    assert metrics(outcome)["compress/restored_bytes"] == len(restored)
    assert any("restored bit for bit" in line for line in table(outcome))


def test_masks_and_codebooks_are_not_called_idle_but_pack_counts(outcome: Outcome) -> None:
    assert not [note for note in outcome.notes if "SMALLER" in note]


def test_one_flipped_byte_of_an_archive_fails_even_when_its_hash_was_written_anew(
    outcome: Outcome, tmp_path: Path
) -> None:
    shutil.copytree(outcome.folder, tmp_path / "compress")
    place = tmp_path / "compress" / "artifact"
    content = bytearray((place / "model.pack").read_bytes())
    content[len(content) // 2] ^= 1
    (place / "model.pack").write_bytes(content)
    with pytest.raises(ExportError, match="was altered"):
        check_artifact(place)
    rewrite(place)
    with pytest.raises(ExportError, match=r"archive (is damaged|does not restore)"):
        check_artifact(place)


def test_an_archive_of_another_graph_fails(outcome: Outcome, tmp_path: Path) -> None:
    shutil.copytree(outcome.folder, tmp_path / "compress")
    place = tmp_path / "compress" / "artifact"
    proto = onnx.load_from_string(unpack((place / "model.pack").read_bytes()))
    proto.producer_name = "somebody else"
    (place / "model.pack").write_bytes(pack(proto.SerializeToString()))
    rewrite(place)
    with pytest.raises(ExportError, match="restores another graph than the one it was made of"):
        check_artifact(place)


@pytest.mark.slow
def test_packing_dense_weights_is_said_to_bring_nothing(trained: Trained, tmp_path: Path) -> None:
    job = make_job(RESNET, [{"use": "export"}, {"use": "pack"}])
    found = compress(replace(trained, job=job), tmp_path / "compress")
    assert any(note.startswith("2_pack MADE NOTHING SMALLER") for note in found.notes) or found.checked[
        "size_ratio"
    ] == pytest.approx(1.08, abs=0.08)


def test_a_header_names_what_it_restores() -> None:
    content = graph_with(np.ones(70, dtype=np.float32))
    assert read_header(pack(content))["num_bytes"] == len(content)
    with pytest.raises(ExportError, match="does not begin as an archive does"):
        read_header(archive.MAGIC[:4] + b"0000")
