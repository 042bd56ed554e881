"""Columns of tables that are made in the same way everywhere."""

from enum import StrEnum

import dataframely as dy


def category(values: type[StrEnum], doc: str, *, nullable: bool = False) -> dy.Enum:
    """Returns a column of named values.

    Args:
        values: The names.
        doc: Meaning of the column.
        nullable: Whether a row may have none.
    """
    return dy.Enum([v.value for v in values], nullable=nullable, metadata={"doc": doc})
