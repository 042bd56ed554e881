from typing import Any

import pytest
from storage_builders import fingerprint

from storage import explain


@pytest.mark.parametrize(
    ("parts", "reasons"),
    [
        ({"config": {"gamma": 0.95}}, ["config gamma: 0.9 -> 0.95"]),
        ({"config": {"gamma": 0.9, "a": {"b": True}}}, ["config a.b: unset -> true"]),
        ({"config": {}}, ["config gamma: 0.9 -> unset"]),
        ({"code": {"stages.optimisation": "c1"}}, ["code stages.optimisation changed"]),
        (
            {"code": {"stages.losses": "c0"}},
            ["code stages.losses added", "code stages.optimisation removed"],
        ),
        ({"inputs": {"advantages": "d1"}}, ["data advantages changed"]),
        ({"seed": 1}, ["seed 0 -> 1"]),
        ({"libraries": {"torch": "2.14"}}, ["library torch 2.13 -> 2.14"]),
        (
            {"seed": None, "config": {"gamma": 1}, "inputs": {}},
            ["config gamma: 0.9 -> 1", "data advantages removed", "seed 0 -> null"],
        ),
        ({}, []),
    ],
)
def test_explain_names_each_difference(parts: dict[str, Any], reasons: list[str]) -> None:
    assert explain(fingerprint(**parts), fingerprint()) == reasons


def test_explain_first_run() -> None:
    assert explain(fingerprint(), None) == ["first run"]


def test_fingerprint_digest_survives_json() -> None:
    original = fingerprint(config={"levels": (1, 2, 3), "path": None})
    again = type(original).model_validate_json(original.model_dump_json())
    assert again.digest == original.digest
    assert explain(original, again) == []


@pytest.mark.parametrize(
    "parts",
    [{"stage": "x"}, {"code": {}}, {"config": {}}, {"inputs": {}}, {"seed": 1}, {"libraries": {}}],
)
def test_fingerprint_digest_covers_every_part(parts: dict[str, Any]) -> None:
    assert fingerprint(**parts).digest != fingerprint().digest
