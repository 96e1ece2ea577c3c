"""Tables: what becomes of columns, and complaints that name file, line, column and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.data import table
from orchestrator.errors import PlanError

ROWS = ["size,colour,big,price"] + [
    f"{row},{('red', 'green', 'blue')[row % 3]},{'yes' if row > 20 else 'no'},{row / 4}" for row in range(40)
]


def written(folder: Path, lines: list[str], name: str = "goods.csv") -> str:
    (folder / name).write_text("\n".join(lines) + "\n")
    return str(folder / name)


def whole(config: table.Config) -> tuple[torch.Tensor, torch.Tensor]:
    split = table.load(config).splits["train"]
    return split.batch(torch.arange(len(split)))


def test_numbers_are_standardised_and_text_becomes_one_column_per_category(tmp_path: Path) -> None:
    config = table.Config(path=written(tmp_path, ROWS), target="price", features=("size", "colour"))
    dataset = table.load(config)
    inputs, targets = whole(config)
    assert dataset.transform["columns"] == ["size", "colour=blue", "colour=green", "colour=red"]
    assert dataset.shape.target_kind == "value"
    assert abs(float(inputs[:, 0].mean())) < 1e-6
    assert abs(float(inputs[:, 0].std(correction=0)) - 1) < 1e-6
    assert torch.equal(inputs[:, 1:].sum(1), torch.ones(len(inputs)))
    assert targets.shape == (28, 1)


def test_statistics_come_from_the_training_rows_alone(tmp_path: Path) -> None:
    lines = ROWS.copy()
    config = table.Config(path=written(tmp_path, lines), target="price", features=("size",))
    before = table.load(config)
    raw = before.splits["test"].batch(torch.arange(1))[0] * _number(before, "divide_by") + _number(before, "subtract")
    row = round(float(raw))
    lines[1 + row] = lines[1 + row].replace(f"{row},", "100000,", 1)
    after = table.load(table.Config(path=written(tmp_path, lines), target="price", features=("size",)))
    assert after.transform == before.transform
    assert after.digest != before.digest


def _number(dataset: Any, key: str) -> float:
    return float(dataset.transform[key][0])


@pytest.mark.parametrize(
    ("options", "kind", "classes", "targets"),
    [
        ({"target": "big"}, "class", ("no", "yes"), ()),
        ({"target": "big", "kind": "binary"}, "binary", ("no", "yes"), (1,)),
        ({"target": "colour"}, "class", ("blue", "green", "red"), ()),
        ({"target": "price"}, "value", (), (1,)),
        ({"target": "size"}, "value", (), (1,)),
    ],
)
def test_the_kind_of_target_is_told_or_guessed(
    tmp_path: Path, options: dict[str, Any], kind: str, classes: tuple[str, ...], targets: tuple[int, ...]
) -> None:
    shape = table.shape(table.Config(path=written(tmp_path, ROWS), **options))
    assert (shape.target_kind, shape.classes, shape.targets) == (kind, classes, targets)


def test_whole_number_labels_sort_as_numbers(tmp_path: Path) -> None:
    path = written(tmp_path, ["x,label", *[f"{row},{(10, 9, 2)[row % 3]}" for row in range(30)]])
    assert table.shape(table.Config(path=path, target="label")).classes == ("2", "9", "10")


def test_parquet_and_tsv_give_what_csv_gives(tmp_path: Path) -> None:
    from pyarrow import csv, parquet

    path = written(tmp_path, ROWS)
    parquet.write_table(csv.read_csv(path), tmp_path / "goods.parquet")
    written(tmp_path, [line.replace(",", "\t") for line in ROWS], "goods.tsv")
    paths = [path, str(tmp_path / "goods.parquet"), str(tmp_path / "goods.tsv")]
    assert len({table.load(table.Config(path=path, target="big")).digest for path in paths}) == 1


def test_a_path_is_from_the_working_folder_else_beside_the_shipped_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert table.shape(table.Config(path="data/iris.csv", target="species")).inputs == (4,)
    (tmp_path / "data").mkdir()
    written(tmp_path / "data", ["a,species", *[f"{row},{'xy'[row % 2]}" for row in range(20)]], "iris.csv")
    assert table.shape(table.Config(path="data/iris.csv", target="species")).inputs == (1,)


def test_blank_lines_at_the_end_do_no_harm(tmp_path: Path) -> None:
    path = written(tmp_path, [*ROWS, "", ""])
    assert sum(table.shape(table.Config(path=path, target="big")).num_samples.values()) == 40


def changed(line: int, text: str) -> list[str]:
    return [*ROWS[: line - 1], text, *ROWS[line:]]


@pytest.mark.parametrize(
    ("lines", "options", "says", "advice"),
    [
        (ROWS, {"target": "prise"}, "has no column 'prise'", "did you mean `price`"),
        (ROWS, {"target": "price", "features": ("size", "color")}, "has no column 'color'", "did you mean `colour`"),
        (
            changed(5, "3,,no,0.75"),
            {"target": "big"},
            "goods.csv:5: column 'colour' has no value here (1 missing",
            "fill",
        ),
        (changed(9, ""), {"target": "big"}, "goods.csv:9: column 'size' has no value here", "fill it in"),
        (changed(7, "5,red,no"), {"target": "big"}, "Row #7: Expected 4 columns, got 3", "mend"),
        (
            changed(6, "oops,red,no,1"),
            {"target": "big", "max_categories": 8},
            "goods.csv:6: column 'size' holds 'oops'",
            "",
        ),
        (changed(6, "inf,red,no,1"), {"target": "big"}, "goods.csv:6: column 'size' holds inf", "remove the row"),
        (changed(1, "size,size,big,price"), {"target": "big"}, "has 2 columns called 'size'", "name of its own"),
        (ROWS, {"target": "colour", "kind": "binary"}, "has 3 labels, binary needs 2", "data.kind=class"),
        (ROWS, {"target": "big", "kind": "value"}, "column 'big' is string, not numbers", "data.kind=class"),
        (ROWS, {"target": "big", "max_categories": 2}, "'colour' has 3 categories, at most 2", "raise data.max_cat"),
    ],
)
def test_complaints_name_line_column_and_cure(
    tmp_path: Path, lines: list[str], options: dict[str, Any], says: str, advice: str
) -> None:
    with pytest.raises(PlanError) as caught:
        table.shape(table.Config(path=written(tmp_path, lines), **options))
    assert says in caught.value.problems[0].message
    assert advice in caught.value.problems[0].hint
    assert caught.value.problems[0].path.startswith("data.")


def test_a_missing_file_is_answered_with_the_nearest_name(tmp_path: Path) -> None:
    written(tmp_path, ROWS)
    with pytest.raises(PlanError, match="no file") as caught:
        table.shape(table.Config(path=str(tmp_path / "good.csv"), target="big"))
    assert "goods.csv" in caught.value.hint


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    lines = changed(5, "3,,no,0.75")
    lines[9] = "8,red,no,"
    with pytest.raises(PlanError) as caught:
        table.shape(table.Config(path=written(tmp_path, lines), target="big"))
    assert len(caught.value.problems) == 2


def test_the_target_cannot_be_a_feature() -> None:
    with pytest.raises(ValueError, match="given away"):
        table.Config(path="x.csv", target="y", features=("x", "y"))
