"""Renders the column tables of the page on tables from the schemas."""

import ast
import inspect
from collections.abc import Callable
from enum import StrEnum
from itertools import pairwise

import polars as pl

import schemas.categories
from schemas.tables import TABLES


def columns(table: str) -> str:
    """Returns version, key and columns of a table as Markdown."""
    known = TABLES[table]
    parts = known.schema.columns()
    key = ", ".join(f"`{name}`" for name, column in parts.items() if column.primary_key)
    lines = [
        f"Key: {key}. Schema version {known.version}.",
        "",
        "| column | type | null | meaning |",
        "|---|---|---|---|",
    ]
    for name, column in parts.items():
        null = "yes" if column.nullable else ""
        doc = column.metadata["doc"].replace("|", "\\|")
        if name in known.measured:
            doc += " *Measured.*"
        lines.append(f"| `{name}` | {_type(column.dtype)} | {null} | {doc} |")
    return "\n".join(lines)


def values(enum: str) -> str:
    """Returns the members of an enumeration with their meanings as Markdown."""
    members: type[StrEnum] = getattr(schemas.categories, enum)
    docs = _member_docs(enum)
    lines = ["| value | meaning |", "|---|---|"]
    lines += [f"| `{member.value}` | {docs.get(member.name, '')} |" for member in members]
    return "\n".join(lines)


def _type(dtype: pl.DataType) -> str:
    if isinstance(dtype, pl.Enum):
        return "Enum"
    if isinstance(dtype, pl.List):
        return f"List({_type(dtype.inner)})"
    if isinstance(dtype, pl.Struct):
        return "Struct(" + ", ".join(f"{f.name}: {_type(f.dtype)}" for f in dtype.fields) + ")"
    return str(dtype)


def _member_docs(enum: str) -> dict[str, str]:
    """Returns member name to the string that stands under it in the source."""
    tree = ast.parse(inspect.getsource(schemas.categories))
    body = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == enum).body
    docs = {}
    for member, below in pairwise(body):
        if isinstance(member, ast.Assign) and isinstance(below, ast.Expr):
            name, text = member.targets[0], below.value
            if isinstance(name, ast.Name) and isinstance(text, ast.Constant):
                docs[name.id] = str(text.value)
    return docs


RENDERERS: dict[str, Callable[[str], str]] = {"columns": columns, "values": values}
