"""What cannot be exported is refused with its reason, whole or not at all, and does not stop the other formats."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.errors import ExportError, JobFileError
from orchestrator.export import package, verify
from orchestrator.export.manifest import read_manifest, with_verified, write_manifest
from orchestrator.export.package import open_export
from orchestrator.export.safetensors import SafetensorsExporter
from orchestrator.spec.job import JobSpec
from orchestrator.train.engine import load_dataset
from tests.export.making import MLP, VerifiedHere, export, make_inputs, make_job


@pytest.fixture(autouse=True)
def verified_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "Verification", VerifiedHere)


def test_a_model_that_branches_on_values_says_so_and_its_weights_still_come(tmp_path: Path) -> None:
    job = make_job({"use": "tests.export.nets:Branching"})
    program, onnx, weights = export(job, ["program", "onnx", "safetensors"], tmp_path)
    assert not program.ok
    assert "Branching cannot be traced" in program.error
    assert "safetensors needs no trace" in program.hint
    assert not onnx.ok
    assert weights.ok
    assert [path.name for path in tmp_path.iterdir()] == ["safetensors"]


def test_a_model_that_fixes_its_batch_size_is_refused(tmp_path: Path) -> None:
    job = make_job({"use": "tests.export.nets:FixedBatch"})
    (outcome,) = export(job, ["program"], tmp_path)
    assert not outcome.ok
    assert "batch" in outcome.error
    assert not list(tmp_path.iterdir())


def test_a_model_with_two_outputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="does not return one tensor"):
        export(make_job({"use": "tests.export.nets:Pair"}), ["safetensors"], tmp_path)


def test_one_row_is_too_few(tmp_path: Path) -> None:
    job = make_job(MLP)
    with pytest.raises(ExportError, match="at least 2"):
        export(job, ["safetensors"], tmp_path, make_inputs(job, 1))


def test_a_manifest_has_no_secret_of_the_data_and_the_folder_alone_cannot_load_it(tmp_path: Path) -> None:
    job = make_job(MLP)
    secret = {**job.data.options, "api_key": "abc123", "mirror": "http://ann:s3cret@host/x"}
    job = job.model_copy(update={"data": type(job.data)(use=job.data.use, **secret)})
    (made,) = export(job, ["safetensors"], tmp_path)
    assert made.ok, made.error
    text = (tmp_path / "safetensors" / "manifest.json").read_text()
    assert "abc123" not in text
    assert "s3cret" not in text
    with pytest.raises(JobFileError, match="data: api_key is masked"):
        load_dataset(JobSpec.model_validate(read_manifest(tmp_path / "safetensors").job))


def test_an_unknown_format_and_a_misspelt_option_are_outcomes(tmp_path: Path) -> None:
    unknown, good = export(make_job(MLP), ["onxn", "safetensors"], tmp_path)
    assert "no exporters plug-in is called 'onxn'" in unknown.error
    assert good.ok


def test_an_equal_export_is_reused_and_a_damaged_one_is_made_again(tmp_path: Path) -> None:
    job = make_job(MLP)
    (first,) = export(job, ["safetensors"], tmp_path)
    (second,) = export(job, ["safetensors"], tmp_path)
    assert not first.reused
    assert second.reused
    assert second.verified == first.verified
    weights = first.path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0\0")
    (third,) = export(job, ["safetensors"], tmp_path)
    assert third.ok
    assert not third.reused


def test_drafts_of_dead_processes_are_removed(tmp_path: Path) -> None:
    stale = tmp_path / ".draft-safetensors-999999999"
    stale.mkdir()
    mine = tmp_path / f".draft-safetensors-{os.getppid()}"
    mine.mkdir()
    export(make_job(MLP), ["safetensors"], tmp_path)
    assert not stale.exists()
    assert mine.exists()


class _Lying(SafetensorsExporter):
    """Gives other outputs than the model."""

    def load(self, folder: Path):  # type: ignore[no-untyped-def]
        run = super().load(folder)
        return lambda inputs: run(inputs) + 1e-3


class _Broken(SafetensorsExporter):
    """Gives no numbers at all."""

    def load(self, folder: Path):  # type: ignore[no-untyped-def]
        run = super().load(folder)
        return lambda inputs: run(inputs) * float("nan")


def lying() -> _Lying:
    return _Lying()


def broken() -> _Broken:
    return _Broken()


@pytest.mark.parametrize("name", ["lying", "broken"])
def test_an_export_that_does_not_compare_is_not_kept(name: str, tmp_path: Path) -> None:
    (outcome,) = export(make_job(MLP), [f"tests.export.test_package:{name}"], tmp_path)
    assert not outcome.ok
    assert "other outputs than the trained model" in outcome.error
    assert not list(tmp_path.iterdir())


def test_a_verifying_process_that_dies_is_an_error_not_a_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dying(verify.Verification):
        def add(self, folders) -> None:  # type: ignore[no-untyped-def]
            self._process.kill()
            self._process.wait()
            super().add(folders)

    monkeypatch.setattr(package, "Verification", Dying)
    (outcome,) = export(make_job(MLP), ["safetensors"], tmp_path)
    assert "the verifying process failed" in outcome.error
    assert not list(tmp_path.iterdir())


class TestAFinishedFolder:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (outcome,) = export(make_job(MLP), ["safetensors"], tmp_path)
        return outcome.path

    def test_opens(self, folder: Path) -> None:
        run, page = open_export(folder)
        assert run(make_inputs(make_job(MLP), 3)).shape == (3, 10)
        assert page.verified is not None

    def test_can_be_verified_again(self, folder: Path) -> None:
        assert verify.verify_folder(folder).max_abs_diff == 0.0

    @pytest.mark.parametrize("at", [0, 9, 200, -1])
    def test_with_a_flipped_byte_is_refused(self, folder: Path, at: int) -> None:
        weights = folder / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[at] ^= 1
        weights.write_bytes(bytes(content))
        with pytest.raises(ExportError, match=r"model\.safetensors was altered"):
            open_export(folder)
        with pytest.raises(ExportError, match="was altered"):
            verify.verify_folder(folder)

    def test_cut_short_is_refused(self, folder: Path) -> None:
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-10])
        with pytest.raises(ExportError, match="bytes, written were"):
            open_export(folder)

    def test_without_its_file_is_refused(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        with pytest.raises(ExportError, match="is missing"):
            open_export(folder)

    @pytest.mark.parametrize("old", ['"max_abs_diff": 0.0', "step-00000012-a1-abcdef", '"samples": 45'])
    def test_with_an_edited_manifest_is_refused(self, folder: Path, old: str) -> None:
        page = folder / "manifest.json"
        text = page.read_text()
        assert old in text
        page.write_text(text.replace(old, old.replace("0", "1").replace("45", "46")))
        with pytest.raises(ExportError, match="altered after it was written"):
            open_export(folder)

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"sha256": 1}', "null", "\x00"])
    def test_with_a_manifest_that_is_none_is_refused(self, folder: Path, content: str) -> None:
        (folder / "manifest.json").write_text(content)
        with pytest.raises(ExportError, match=r"manifest\.json"):
            open_export(folder)

    def test_never_verified_is_refused(self, folder: Path) -> None:
        from dataclasses import replace

        write_manifest(folder, replace(read_manifest(folder), verified=None))
        with pytest.raises(ExportError, match="never verified"):
            open_export(folder)

    def test_with_other_weights_under_a_rewritten_manifest_fails_verification(self, folder: Path) -> None:
        from dataclasses import replace

        from safetensors.torch import load_file, save_file

        from orchestrator.export.manifest import hash_files

        weights = load_file(str(folder / "model.safetensors"))
        save_file({name: tensor + 1 for name, tensor in weights.items()}, str(folder / "model.safetensors"))
        page = read_manifest(folder)
        assert page.verified is not None
        page = replace(page, files=hash_files(folder, list(page.files)))
        write_manifest(folder, with_verified(page, page.verified))
        with pytest.raises(ExportError, match="the weights in the file are not those of checkpoint"):
            verify.verify_folder(folder)

    def test_with_a_file_outside_the_folder_is_refused(self, folder: Path) -> None:
        from dataclasses import replace

        page = read_manifest(folder)
        write_manifest(folder, replace(page, files={"../secret": page.files["check.safetensors"]}))
        with pytest.raises(ExportError, match="outside the folder"):
            open_export(folder)


def test_verification_of_several_folders_reports_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (outcome,) = export(make_job(MLP), ["safetensors"], tmp_path)
    assert verify.main([str(outcome.path), str(tmp_path / "none")]) == 1
    good, bad = capsys.readouterr().out.splitlines()
    assert '"max_abs_diff": 0.0' in good
    assert "holds no manifest.json" in bad
