import math
from typing import Any

import pytest

from schemas.texts import as_text


@pytest.mark.parametrize(("value", "text"), [("a", "a"), (18, "18"), (18.0, "18"), (0.5, "0.5")])
def test_texts_and_numbers_are_texts(value: Any, text: str) -> None:
    assert as_text(value, numbers=True) == text


@pytest.mark.parametrize("value", [True, None, [], {}, math.nan, math.inf, "\ud800"])
def test_all_else_is_none(value: Any) -> None:
    assert as_text(value, numbers=True) is None


def test_numbers_are_none_unless_asked_for() -> None:
    assert as_text(18, numbers=False) is None
