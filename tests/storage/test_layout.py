from pathlib import Path

import pytest
from storage_builders import slot

from schemas.errors import StoreError
from storage.layout import Layout


@pytest.mark.parametrize(
    ("parts", "uri"),
    [
        ({}, "run=demo/iteration=0003/split=train/stage=advantages"),
        (
            {"shard": 0, "turn": 2},
            "run=demo/iteration=0003/split=train/stage=advantages/shard=00/turn=2",
        ),
        (
            {"split": "evaluation", "iteration": 12_345},
            "run=demo/iteration=12345/split=evaluation/stage=advantages",
        ),
    ],
)
def test_slot_uri(parts: dict[str, object], uri: str) -> None:
    assert slot("advantages", **parts).uri == uri


@pytest.mark.parametrize("name", ["", "a/b", "a b", "ä", "x" * 65, "a\n", "a=b"])
def test_slot_refuses_run_name(name: str) -> None:
    with pytest.raises(StoreError, match="run name"):
        slot(run=name)


@pytest.mark.parametrize("uri", ["/etc/passwd", "../other/turns.parquet", "run=a/../../x"])
def test_resolve_refuses_to_leave_the_store(tmp_path: Path, uri: str) -> None:
    with pytest.raises(StoreError, match="points out of the store"):
        Layout(tmp_path).resolve(uri)
