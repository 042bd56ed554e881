from pathlib import Path

import pytest

from flows.task_inputs import foreign_ref


def digest_of(path: Path, contents: dict[str, str], named: str = ".") -> str:
    """Writes files below a folder; returns the digest of all under the name given to them."""
    files = []
    for name, content in contents.items():
        files.append(path / name)
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        files[-1].write_text(content)
    return foreign_ref(str(path / named), files).digest


POLICY = {"config.json": "{}", "deep/weights": "w"}


def test_a_folder_may_be_moved(tmp_path: Path) -> None:
    assert digest_of(tmp_path / "a", POLICY) == digest_of(tmp_path / "b", POLICY)


@pytest.mark.parametrize(
    "other",
    [
        {"config.json": "{}", "deep/renamed": "w"},
        {"config.json": "{}", "moved/weights": "w"},
        {"config.json": "w", "deep/weights": "{}"},
    ],
)
def test_a_file_renamed_in_a_folder_makes_it_another_one(
    tmp_path: Path, other: dict[str, str]
) -> None:
    assert digest_of(tmp_path / "a", POLICY) != digest_of(tmp_path / "b", other)


def test_a_single_file_may_be_moved_and_renamed(tmp_path: Path) -> None:
    one = digest_of(tmp_path, {"one.jsonl": "x"}, "one.jsonl")
    assert one == digest_of(tmp_path / "deep", {"other.jsonl": "x"}, "other.jsonl")


def test_every_file_of_a_split_counts_where_several_have_one_name(tmp_path: Path) -> None:
    """The split is a part of their names: no folder has the path that leads to them."""
    split = {"x/train-0.jsonl": "1", "y/train-0.jsonl": "2"}
    before = digest_of(tmp_path, split, "train")
    assert before != digest_of(tmp_path, split | {"x/train-0.jsonl": "3"}, "train")
