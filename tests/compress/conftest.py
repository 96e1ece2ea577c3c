"""What the tests of lies share: an artifact that holds, made anew for each so that it can be spoilt."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from orchestrator.compress.pipeline import Outcome


@pytest.fixture
def copied(good: Outcome, tmp_path: Path) -> Path:
    """A copy of the artifact folder of `good`, which each module makes its own way."""
    shutil.copytree(good.folder, tmp_path / "compress")
    return tmp_path / "compress" / "artifact"
