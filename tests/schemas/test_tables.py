"""Tables: every column is explained, and no schema changes without a new version."""

import hashlib

import dataframely as dy
import polars as pl
import pytest

from schemas.tables import (
    TABLES,
    TURN_KEY,
    Evaluations,
    GenerationTimes,
    Table,
    TurnRewards,
    Turns,
    Updates,
)
from schemas.upgrades import UPGRADES, missing_upgrades, upgraded

PINNED: dict[str, dict[int, str]] = {
    "problems": {1: "3028e54617a73214"},
    "rejected_problems": {1: "d771c3822e00bac1"},
    "prompts": {1: "c2ebe610a3b87181", 2: "3d8eb2a03166bdf5"},
    "turns": {1: "81b17a9da8d2877c", 2: "4ab0411be75fd5d6"},
    "generation_times": {1: "65d642fcdae70bd6", 2: "a70a51173fae432f"},
    "execution_times": {1: "65d642fcdae70bd6"},
    "executions": {1: "3e41363251304b77"},
    "turn_rewards": {1: "2e889c3d1c41df9b", 2: "cd1e45ce9fa8e226"},
    "shaped_rewards": {1: "e55236e91cd0c52c", 2: "bc00639ca6a9d898"},
    "advantages": {1: "541fef2c63795517", 2: "2ac20d8d0dc490f2"},
    "updates": {1: "68ab74f1f7a8e378", 2: "1fb9e7f4e5debab1"},
    "turn_updates": {1: "f2e8803a0b6d9590"},
    "optimisation_faults": {1: "a2cc42ad8804a173"},
    "gradient_noise": {1: "392d57ad95e82899"},
    "evaluations": {1: "55394564de891d48"},
    "demonstrations": {1: "128cc5f92c9f56d7"},
    "rejected_trajectories": {1: "d771c3822e00bac1"},
    "foreign_labels": {1: "882c0ae31a555dfc"},
    "cold_start_updates": {1: "773dbb347d9af3f1"},
    "cold_start_examples": {1: "c8fc67b7a4710207"},
}
"""Digest of every table's schema, by version. Older versions stay, as a record."""


def described(dtype: pl.DataType) -> str:
    """Returns a data type as text that does not depend on how polars prints it."""
    if isinstance(dtype, pl.List):
        return f"list[{described(dtype.inner)}]"  # type: ignore[arg-type]
    if isinstance(dtype, pl.Struct):
        fields = ", ".join(f"{f.name}: {described(f.dtype)}" for f in dtype.fields)  # type: ignore[arg-type]
        return f"struct[{fields}]"
    if isinstance(dtype, pl.Enum):
        return f"enum[{', '.join(dtype.categories)}]"
    return str(dtype)


def schema_digest(schema: type[dy.Schema]) -> str:
    """Returns a digest of the column names, types, nullability and primary key of a table."""
    columns = schema.columns()
    lines = [
        f"{name} {described(column.dtype)} nullable={column.nullable} key={column.primary_key}"
        for name, column in columns.items()
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@pytest.mark.parametrize("table", sorted(TABLES))
def test_a_changed_schema_has_a_new_version(table: str) -> None:
    version, digest = TABLES[table].version, schema_digest(TABLES[table].schema)
    assert PINNED.get(table, {}).get(version) == digest, (
        f"the schema of {table} is not the one pinned for version {version}: raise its version "
        f"in schemas.tables.TABLES and pin {version + 1}: {digest!r} here beside the old one "
        f"(a new table is pinned as {version}: {digest!r})"
    )


class Plain(dy.Schema):
    a = dy.Int64()
    b = dy.String()


class WithDocs(dy.Schema):
    a = dy.Int64(metadata={"doc": "A."})
    b = dy.String(metadata={"doc": "B."})


class OtherType(dy.Schema):
    a = dy.Int32()
    b = dy.String()


class OtherOrder(dy.Schema):
    b = dy.String()
    a = dy.Int64()


class OtherNullability(dy.Schema):
    a = dy.Int64(nullable=True)
    b = dy.String()


class OtherKey(dy.Schema):
    a = dy.Int64(primary_key=True)
    b = dy.String()


@pytest.mark.parametrize("other", [OtherType, OtherOrder, OtherNullability, OtherKey])
def test_the_digest_tells_schemas_apart(other: type[dy.Schema]) -> None:
    assert schema_digest(other) != schema_digest(Plain)


def test_the_digest_does_not_depend_on_what_is_said_of_columns() -> None:
    assert schema_digest(WithDocs) == schema_digest(Plain)


def test_no_table_is_pinned_that_is_gone() -> None:
    assert sorted(PINNED) == sorted(TABLES)


@pytest.mark.parametrize("table", sorted(TABLES))
def test_the_version_is_the_newest_pinned(table: str) -> None:
    assert TABLES[table].version == max(PINNED[table])


@pytest.mark.parametrize("table", sorted(TABLES))
def test_every_older_version_can_be_read(table: str) -> None:
    missing = missing_upgrades(table)
    assert missing == [], (
        f"files of {table} written with schema {missing[0]} cannot be read any more: register a "
        f"function that makes schema {missing[0] + 1} of it as schemas.upgrades.UPGRADES"
        f"[{table!r}][{missing[0]}]"
    )


def test_a_raised_version_without_an_upgrade_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLES, "updates", Table(schema=Updates, version=3))
    monkeypatch.setitem(UPGRADES, "updates", {1: lambda frame: frame})
    with pytest.raises(AssertionError, match=r"register .* as .*UPGRADES\['updates'\]\[2\]"):
        test_every_older_version_can_be_read("updates")


def test_upgrades_are_those_of_tables_that_there_are() -> None:
    known = {(table, v) for table in TABLES for v in range(1, TABLES[table].version)}
    assert {(table, v) for table, steps in UPGRADES.items() for v in steps} <= known


@pytest.mark.parametrize("table", sorted(TABLES))
def test_every_column_says_what_it_means(table: str) -> None:
    columns = TABLES[table].schema.columns()
    silent = [name for name, c in columns.items() if not (c.metadata or {}).get("doc", "").strip()]
    assert silent == []


@pytest.mark.parametrize("table", sorted(TABLES))
def test_every_table_says_its_grain(table: str) -> None:
    assert (TABLES[table].schema.__doc__ or "").strip()


@pytest.mark.parametrize("table", sorted(TABLES))
def test_every_table_has_a_key(table: str) -> None:
    assert TABLES[table].schema.primary_key()


@pytest.mark.parametrize(
    "table", ["turns", "executions", "turn_rewards", "shaped_rewards", "advantages"]
)
def test_tables_of_turns_have_the_turns_key(table: str) -> None:
    assert tuple(TABLES[table].schema.primary_key()) == TURN_KEY


@pytest.mark.parametrize("table", sorted(TABLES))
def test_an_empty_frame_of_every_table_is_valid(table: str) -> None:
    schema = TABLES[table].schema
    assert schema.is_valid(schema.create_empty())


@pytest.mark.parametrize("column", ["text", "finish_reason", "token_ids", "seed"])
def test_a_null_is_refused_where_it_means_nothing(column: str) -> None:
    assert Turns.is_valid(one_turn())
    assert not Turns.is_valid(one_turn(**{column: None}), cast=True)


@pytest.mark.parametrize("column", ["code", "answer", "parse_error"])
def test_a_null_is_kept_where_it_means_not_there(column: str) -> None:
    assert Turns.is_valid(one_turn(**{column: None}), cast=True)


def test_a_turn_with_a_token_without_logprob_is_refused() -> None:
    assert not Turns.is_valid(one_turn(token_ids=[1, 2]), cast=True)


def test_a_value_outside_its_category_is_refused() -> None:
    assert not Turns.is_valid(one_turn(finish_reason="bored"), cast=True)


def test_two_rows_of_one_key_are_refused() -> None:
    assert not Turns.is_valid(pl.concat([one_turn(), one_turn()]))


def test_outcomes_are_told_apart_from_missing_ones() -> None:
    assert Evaluations.columns()["correct"].nullable
    assert Evaluations.columns()["verdict"].nullable


def one_turn(**changes: object) -> pl.DataFrame:
    values = {
        "task_id": "a",
        "sample_index": 0,
        "turn_index": 0,
        "text": "<answer>1</answer>",
        "token_ids": [1],
        "logprobs": [-0.5],
        "finish_reason": "answer",
        "reasoning": "",
        "code": None,
        "answer": "1",
        "parse_error": None,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "policy_version": 0,
        "seed": 0,
    }
    unknown = set(changes) - set(values)
    assert not unknown
    rows = [values | changes]
    frame = pl.DataFrame(rows, infer_schema_length=None)
    return frame if changes else frame.cast(dict(Turns.create_empty().schema))  # type: ignore[arg-type]


def test_turn_rewards_of_schema_1_have_no_grading_method() -> None:
    columns = {n: t for n, t in pl.Schema(TurnRewards).items() if n != "grading_method"}
    row = dict.fromkeys(columns) | {"task_id": "a", "verdict": "right"}
    read = upgraded("turn_rewards", 1, pl.LazyFrame([row], schema=columns)).collect()
    assert read.select("task_id", "verdict", "grading_method").rows() == [("a", "right", None)]
    assert read.schema == pl.Schema(TurnRewards)


def test_generation_times_of_schema_1_know_of_no_prefix_cache() -> None:
    new = {"prompt_tokens", "cached_tokens"}
    columns = {n: t for n, t in pl.Schema(GenerationTimes).items() if n not in new}
    row = dict.fromkeys(columns) | {"shard": 1, "tokens": 30}
    read = upgraded("generation_times", 1, pl.LazyFrame([row], schema=columns)).collect()
    assert read.select("tokens", *sorted(new)).rows() == [(30, None, None)]
    assert read.schema == pl.Schema(GenerationTimes)


def test_turns_of_schema_1_were_sampled_from_everything() -> None:
    columns = {n: t for n, t in pl.Schema(Turns).items() if n not in ("top_p", "top_k")}
    read = upgraded("turns", 1, one_turn().select(list(columns)).lazy()).collect()
    assert read.select("top_p", "top_k").rows() == [(1.0, 0)]
    assert Turns.is_valid(read)


def test_turns_of_schema_1_keep_their_parse_errors() -> None:
    known = ["unclosed_code", "empty_code", "syntax_error", "unclosed_answer"]
    old = (
        one_turn()
        .drop("top_p", "top_k")
        .with_columns(parse_error=pl.lit("empty_code", pl.Enum(known)))
    )
    assert upgraded("turns", 1, old.lazy()).collect()["parse_error"].to_list() == ["empty_code"]


def test_a_component_that_a_file_holds_already_keeps_its_values() -> None:
    columns = {n: t for n, t in pl.Schema(TurnRewards).items() if n != "void_turn"}
    row = dict.fromkeys(columns) | {"overlong": -0.5}
    read = upgraded("turn_rewards", 1, pl.LazyFrame([row], schema=columns)).collect()
    assert read.select("overlong", "void_turn").rows() == [(-0.5, 0.0)]
