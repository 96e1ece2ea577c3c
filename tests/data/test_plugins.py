"""Every shipped data set keeps the contract."""

from __future__ import annotations

from orchestrator.data import digits, synthetic, table, text
from orchestrator.testing.datasets import DataConformance


class TestDigits(DataConformance):
    plugin = digits


class TestFlatDigits(DataConformance):
    plugin = digits
    options = {"flat": True, "val_fraction": 0.0, "split_seed": 7}
    test_another_process_loads_the_same = None  # shown once per plug-in and by pinned digests


class TestTable(DataConformance):
    plugin = table
    options = {"path": "data/iris.csv", "target": "species"}


class TestBlobs(DataConformance):
    plugin = synthetic
    options = {"kind": "blobs", "classes": 5, "features": 3}


class TestRegression(DataConformance):
    plugin = synthetic
    options = {"kind": "regression", "features": 8, "outputs": 2}
    test_another_process_loads_the_same = None  # shown once per plug-in and by pinned digests


class TestXor(DataConformance):
    plugin = synthetic
    options = {"kind": "xor", "num_samples": 64}
    test_another_process_loads_the_same = None  # shown once per plug-in and by pinned digests


class TestImages(DataConformance):
    plugin = synthetic
    options = {"kind": "images", "classes": 4, "channels": 3, "image_size": 16, "num_samples": 128}
    test_another_process_loads_the_same = None  # shown once per plug-in and by pinned digests


class TestText(DataConformance):
    plugin = text
    options = {"corpus": "python", "seq_len": 32, "max_bytes": 100_000}
