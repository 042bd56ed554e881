import gzip
from pathlib import Path

import pytest

from schemas.errors import ProblemFileError, TrajectoryFileError
from storage.trajectory_files import find_trajectories


def test_a_file_is_read_row_by_row_under_its_name(tmp_path: Path) -> None:
    path = tmp_path / "dump.jsonl"
    path.write_text('{"a": 1}\n\nno\n')
    source = find_trajectories(path)
    assert source.name == "dump"
    assert [row.fields for row in source.rows()] == [{"a": 1}, None]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no.jsonl", r"no\.jsonl does not exist"),
        ("folder", "is a folder: name one of its files"),
        ("a.json", r"unknown type: take \.jsonl"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(TrajectoryFileError, match=told):
        find_trajectories(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"problem": "1+1"}\n'.encode("utf-16"), "is UTF-16 text: write it as UTF-8"),
        (gzip.compress(b"{}"), "is compressed by gzip: unpack it"),
    ],
    ids=["utf-16", "gzip"],
)
def test_a_file_of_other_content_is_refused_as_a_whole(
    tmp_path: Path, content: bytes, told: str
) -> None:
    path = tmp_path / "dump.jsonl"
    path.write_bytes(content)
    with pytest.raises(ProblemFileError, match=told):
        list(find_trajectories(path).rows())
