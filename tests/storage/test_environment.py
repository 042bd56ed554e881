import subprocess
from pathlib import Path

from storage.environment import code_version


def git(folder: Path, *arguments: str) -> str:
    user = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    command = ["git", "-C", folder, *user, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def checkout(folder: Path) -> str:
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "code.py").write_text("1\n")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "first")
    return git(folder, "describe", "--always")


def test_code_version_names_the_commit_of_a_checkout(tmp_path: Path) -> None:
    commit = checkout(tmp_path / "code")
    assert code_version(tmp_path / "code").endswith(f"+{commit}")


def test_code_version_tells_that_sources_were_edited(tmp_path: Path) -> None:
    commit = checkout(tmp_path / "code")
    (tmp_path / "code" / "code.py").write_text("2\n")
    assert code_version(tmp_path / "code").endswith(f"+{commit}-dirty")


def test_code_version_does_not_name_the_commit_of_a_foreign_checkout(tmp_path: Path) -> None:
    checkout(tmp_path / "theirs")
    (tmp_path / "theirs" / "site-packages").mkdir()
    assert "+" not in code_version(tmp_path / "theirs" / "site-packages")


def test_code_version_does_without_git(tmp_path: Path) -> None:
    assert "+" not in code_version(tmp_path / "absent")
