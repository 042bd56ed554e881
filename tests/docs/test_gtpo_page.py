import re
from typing import Any

import polars as pl
import pytest
from docs_pages import DOCS, blocks_of, rows_of

from schemas.config import AdvantagesConfig, RunConfig
from schemas.config_text import parse_config
from schemas.reward_components import COMPONENTS

PAGE = DOCS / "gtpo.md"


def numbers(cell: str) -> list[float]:
    return [float(number) for number in cell.split(",")]


SETTINGS = [row for row in rows_of(PAGE, "setting") if row[0] != "turn_rewards.components"]


@pytest.mark.parametrize("row", SETTINGS, ids=lambda row: row[0])
def test_default_is_as_the_page_says(row: list[str]) -> None:
    section, key = row[0].split(".")
    assert str(getattr(getattr(RunConfig(), section), key)) == row[1]


def test_page_lists_every_setting_of_reward_shaping_and_credit() -> None:
    listed = {row[0] for row in rows_of(PAGE, "setting")}
    for section in ("turn_rewards", "similarity", "advantages"):
        keys = {f"{section}.{key}" for key in type(getattr(RunConfig(), section)).model_fields}
        assert keys - listed <= {"turn_rewards.grading_time_s"}


def test_page_lists_every_set_of_normalisation() -> None:
    listed = tuple(row[0] for row in rows_of(PAGE, "`advantages.normalise`"))
    assert listed == AdvantagesConfig.model_fields["normalise"].annotation.__args__


@pytest.mark.parametrize("setting", ["baseline", "estimator"])
def test_page_lists_every_value_of(setting: str) -> None:
    listed = tuple(row[0] for row in rows_of(PAGE, setting))
    assert listed == AdvantagesConfig.model_fields[setting].annotation.__args__


def test_page_lists_every_reward_component() -> None:
    assert {row[0]: row[1] for row in rows_of(PAGE, "component")} == COMPONENTS


def test_worked_example_is_what_the_stage_computes() -> None:
    code = next(block for block in blocks_of(PAGE) if "estimate_advantages" in block.text)
    names: dict[str, Any] = {}
    exec(compile(code.text, code.name, "exec"), names)
    credit: pl.DataFrame = names["credit"]
    for row, sample in zip(rows_of(PAGE, "trajectory"), range(4), strict=True):
        turns = credit.filter(pl.col("sample_index") == sample)
        assert turns["reward"].to_list() == numbers(row[1])
        assert turns["return"].to_list() == pytest.approx(numbers(row[2]))
        assert turns["advantage"].to_list() == pytest.approx(numbers(row[3]), abs=5e-5)
    assert f"{credit['baseline'][0]:.4f}" in PAGE.read_text()
    assert f"{credit['scale'][0]:.4f}" in PAGE.read_text()


def test_settings_that_the_text_names_can_be_set_as_written() -> None:
    named = re.findall(r"`(?:--set )?((?:advantages|similarity|turn_rewards)\.[\w.]+=\S+?)`",
                       PAGE.read_text())  # fmt: skip
    assert "advantages.scale=off" in named
    for setting in named:
        parse_config("", [setting])
