"""Texts out of files that others wrote: what counts as text, and what does not."""

from typing import Any


def as_text(value: Any, *, numbers: bool) -> str | None:
    """Returns text, or a number as text if asked for; null for anything else.

    Text that cannot be written as UTF-8 is none. A number without fraction is written without
    one: 18.0 gives `18`.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold
            return None
        return value
    if not numbers or isinstance(value, bool):
        return None
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and value - value == 0:  # neither infinite nor NaN
        return str(int(value)) if value.is_integer() else repr(value)
    return None
