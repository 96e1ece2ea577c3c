"""Text: windows over the right bytes, splits that do not overlap, and a cache that many processes may make at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from orchestrator.data import text, text_files
from orchestrator.errors import PlanError
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.plan.shapes import DataShape
from orchestrator.spec.job import JobSpec

WORDS = ["the quick brown fox", "jumps over", "a lazy dog", "", "und so weiter: äöü"]


@pytest.fixture
def files(tmp_path: Path) -> str:
    (tmp_path / "books" / "more").mkdir(parents=True)
    for number, words in enumerate(WORDS * 4):
        place = tmp_path / "books" / ("more" if number % 2 else ".") / f"{number:02}.txt"
        place.write_text(words * (number % 3 + 1), encoding="utf-8")
    return str(tmp_path / "books" / "**" / "*.txt")


def config(files: str, tmp_path: Path, **options: object) -> text.Config:
    return text.Config(files=files, seq_len=8, cache=str(tmp_path / "cache"), **options)  # type: ignore[arg-type]


def whole(dataset: object, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    part = dataset.splits[split]  # type: ignore[attr-defined]
    pair: tuple[torch.Tensor, torch.Tensor] = part.batch(torch.arange(len(part)))
    return pair


def test_each_target_is_the_byte_after_its_input(files: str, tmp_path: Path) -> None:
    inputs_BL, targets_BL = whole(text.load(config(files, tmp_path)), "train")
    assert inputs_BL.dtype == targets_BL.dtype == torch.int64
    assert torch.equal(inputs_BL[:, 1:], targets_BL[:, :-1])
    assert torch.equal(targets_BL[:-1, -1], inputs_BL[1:, 0]), "windows lie end to end"


def test_every_file_is_in_one_split_whole(files: str, tmp_path: Path) -> None:
    dataset = text.load(config(files, tmp_path, val_fraction=0.3, test_fraction=0.2))
    found: list[bytes] = []
    for name in ("train", "val", "test"):
        inputs_BL, targets_BL = whole(dataset, name)
        stream = bytes(inputs_BL.flatten().tolist()) + bytes(targets_BL[-1:, -1].tolist())
        found += [part for part in stream.split(b"\0")[:-1] if part]
    on_disk = {path.read_bytes() for path in tmp_path.rglob("*.txt")}
    assert set(found) <= on_disk
    assert len(found) >= 13, "of 16 files that are not empty a split's last may be cut"


def test_windows_of_one_long_file_are_divided(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_bytes(bytes(range(1, 250)) * 4)
    options = config(str(tmp_path / "long.txt"), tmp_path, split_by="window")
    dataset = text.load(options)
    assert dict(dataset.shape.num_samples) == {"train": 100, "val": 12, "test": 12}
    starts = [set(split.starts.tolist()) for split in dataset.splits.values()]  # type: ignore[attr-defined]
    assert len(set.union(*starts)) == 124
    with pytest.raises(ValueError, match=r"leave no window of 8 for val and test; .* split_by: window"):
        text.shape(config(str(tmp_path / "long.txt"), tmp_path))


def test_no_more_than_max_bytes_are_used(files: str, tmp_path: Path) -> None:
    chosen = text_files.bounded(text_files.matching(files), 50)
    assert sum(file.num_bytes for file in chosen) == 50
    assert text.load(config(files, tmp_path, max_bytes=200)).source.endswith("200 bytes")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "give either files"),
        ({"files": "x", "corpus": "python"}, "give either files"),
        ({"files": "x", "seq_len": 0}, "seq_len must be at least 1"),
        ({"files": "x", "max_bytes": 8, "seq_len": 8}, "max_bytes 8 must be more than seq_len 8"),
    ],
)
def test_impossible_options_are_named(options: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        text.Config(**options)  # type: ignore[arg-type]


def test_a_glob_without_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no text in .*nothing\*"):
        text.shape(config(str(tmp_path / "nothing*"), tmp_path))


def test_the_cache_is_made_once_and_follows_the_files(files: str, tmp_path: Path) -> None:
    first = text.load(config(files, tmp_path))
    cached = sorted((tmp_path / "cache").iterdir())
    assert [path.suffix for path in cached] == [".bin", ".json"], "nothing half-made is left"
    made = cached[0].stat().st_mtime_ns
    assert text.load(config(files, tmp_path)).digest == first.digest
    assert cached[0].stat().st_mtime_ns == made
    (tmp_path / "books" / "00.txt").write_text("THE QUICK BROWN FOX")
    assert text.load(config(files, tmp_path)).digest != first.digest


@pytest.mark.parametrize("harm", ["truncated", "facts gone", "facts nonsense"])
def test_a_damaged_cache_is_made_again(files: str, tmp_path: Path, harm: str) -> None:
    wanted = text.load(config(files, tmp_path)).digest
    data, facts = sorted((tmp_path / "cache").iterdir())
    if harm == "truncated":
        data.write_bytes(data.read_bytes()[:-1])
    elif harm == "facts gone":
        facts.unlink()
    else:
        facts.write_text('{"num_bytes"')
    again = text.load(config(files, tmp_path))
    assert again.digest == wanted
    assert data.stat().st_size == text_files.stream_bytes(text_files.bounded(text_files.matching(files), 10**6))


def test_a_folder_that_cannot_be_written_costs_memory_not_the_run(files: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    blocked = text.Config(files=files, seq_len=8, cache=str(tmp_path / "file" / "cache"))
    assert text.load(blocked).digest == text.load(config(files, tmp_path)).digest


def test_processes_that_start_together_load_the_same(files: str, tmp_path: Path) -> None:
    code = (
        "import sys; from orchestrator.data import text\n"
        f"config = text.Config(files={files!r}, seq_len=8, cache={str(tmp_path / 'cache')!r})\n"
        "sys.stdout.write(text.load(config).digest)\n"
    )
    ranks = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    digests = {rank.communicate(timeout=60)[0] for rank in ranks}
    assert digests == {text.load(config(files, tmp_path)).digest}
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_pythons_own_sources_are_real_text(tmp_path: Path) -> None:
    options = text.Config(corpus="python", seq_len=64, max_bytes=300_000, cache=str(tmp_path))
    dataset = text.load(options)
    assert isinstance(dataset.shape, DataShape)
    assert sum(dataset.shape.num_samples.values()) == pytest.approx(300_000 / 64, rel=0.01)
    inputs_BL, _ = whole(dataset, "train")
    assert b"def __init__(self" in bytes(inputs_BL.flatten().tolist())


def test_pythons_sources_leave_out_what_was_installed_later() -> None:
    names = [name for _, name in text_files.python_sources()]
    assert "argparse.py" in names
    assert not [name for name in names if "site-packages" in name or name.startswith("test/")]
    assert names == sorted(names)


def test_a_model_of_tokens_refuses_numbers_and_the_other_way_round(tmp_path: Path) -> None:
    digits = {"use": "digits", "flat": True}
    words = {"use": "text", "corpus": "python", "seq_len": 64, "max_bytes": 50_000, "cache": str(tmp_path)}
    tokens = {"use": "transformer", "seq_len": 64, "vocab": 10}
    for model, data, says in (
        (tokens, digits, "takes int64 inputs, the data gives float32"),
        ({"use": "mlp", "inputs": 64, "outputs": 256}, words, "takes float32 inputs, the data gives int64"),
        (tokens, words, "gives 10 outputs, the data has 256 classes"),
    ):
        job = JobSpec.model_validate({"version": 1, "model": model, "data": data})
        with pytest.raises(PlanError) as caught:
            build_plan(job, Available.unknown())
        assert any(says in problem.message for problem in caught.value.problems)
