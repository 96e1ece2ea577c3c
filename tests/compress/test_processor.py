"""What ONNX Runtime is told depends on the processor: right sums without VNNI, full speed with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.compress import processor
from orchestrator.compress.runtimes import onnx

INTEL = "model name\t: Intel(R) Xeon(R)\nflags\t\t: fpu avx2 avx512f avx512_vnni\n"
HYBRID = "model name\t: Intel(R) Core(TM)\nflags\t\t: fpu avx2 avx_vnni\n"
OLD = "model name\t: AMD EPYC 7571\nflags\t\t: fpu avx2\n"


@pytest.mark.parametrize(("text", "has"), [(INTEL, True), (HYBRID, True), (OLD, False), (None, False)])
def test_sums_of_integers_are_made_safe_where_the_processor_does_not(
    text: str | None, has: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "cpuinfo")
    told: dict[str, Any] = {}

    def remember(content: bytes, options: Any, providers: list[str]) -> None:
        told["options"] = options

    monkeypatch.setattr(onnxruntime, "InferenceSession", remember)
    onnx._session("model.onnx", b"")
    assert processor.has_vnni() is has
    try:
        said = told["options"].get_session_config_entry("session.x64quantprecision")
    except RuntimeError:  # how the runtime says that there is none
        said = "0"
    assert (said == "1") is not has
