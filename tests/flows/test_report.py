import io
from pathlib import Path

from rich.console import Console

from flows.compare import diff
from flows.report import accuracy_by_iteration, accuracy_table, changes_line, draw_accuracy

PNG = b"\x89PNG\r\n\x1a\n"


def test_accuracy_has_one_row_an_evaluated_iteration(trained: Path) -> None:
    accuracy = accuracy_by_iteration(trained, "small")
    assert accuracy["iteration"].to_list() == [0, 2]
    assert accuracy["problems"].to_list() == [4, 4]


def test_table_shows_every_evaluated_iteration(trained: Path) -> None:
    text = io.StringIO()
    table = accuracy_table(accuracy_by_iteration(trained, "small"))
    Console(file=text, width=80).print(table)
    assert "avg@2" in text.getvalue()
    assert len(text.getvalue().strip().splitlines()) == 4


def test_picture_is_a_png(trained: Path, tmp_path: Path) -> None:
    draw_accuracy(accuracy_by_iteration(trained, "small"), "small", tmp_path / "accuracy.png")
    assert (tmp_path / "accuracy.png").read_bytes().startswith(PNG)


def test_a_run_does_not_differ_from_itself(trained: Path) -> None:
    summary = diff(trained, "small", "small", iteration=1).summary.row(0, named=True)
    told = changes_line(summary, 1)
    assert told.endswith("0 changed, 0 changed sign")
