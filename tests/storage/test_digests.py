import hashlib
from pathlib import Path

import pytest

from storage.digests import file_digest, folder_digest, json_digest


def test_file_digest_is_sha256_of_content(tmp_path: Path) -> None:
    content = b"x" * 3_000_000
    (tmp_path / "f").write_bytes(content)
    assert file_digest(tmp_path / "f") == hashlib.sha256(content).hexdigest()


def test_folder_digest_does_not_depend_on_order_of_creation(tmp_path: Path) -> None:
    for folder, names in (("a", ("x", "sub/y")), ("b", ("sub/y", "x"))):
        for name in names:
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
    assert folder_digest(tmp_path / "a") == folder_digest(tmp_path / "b")


@pytest.mark.parametrize("change", ["rename", "edit", "add", "delete", "swap"])
def test_folder_digest_sees_every_change(tmp_path: Path, change: str) -> None:
    (tmp_path / "x").write_text("1")
    (tmp_path / "y").write_text("2")
    before = folder_digest(tmp_path)
    match change:
        case "rename":
            (tmp_path / "x").rename(tmp_path / "z")
        case "edit":
            (tmp_path / "x").write_text("3")
        case "add":
            (tmp_path / "z").touch()
        case "delete":
            (tmp_path / "x").unlink()
        case _:
            (tmp_path / "x").write_text("2")
            (tmp_path / "y").write_text("1")
    assert folder_digest(tmp_path) != before


def test_folder_digest_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        folder_digest(tmp_path / "missing")


def test_json_digest_does_not_depend_on_key_order() -> None:
    assert json_digest({"a": 1, "b": [True, None]}) == json_digest({"b": [True, None], "a": 1})


def test_json_digest_refuses_what_json_cannot_hold() -> None:
    with pytest.raises(ValueError, match="JSON"):
        json_digest(float("nan"))
