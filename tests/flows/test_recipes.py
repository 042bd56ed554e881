"""Recipes for large models: every setting loads, and one iteration runs with a tiny policy."""

from pathlib import Path

import polars as pl
import pytest
from small_runs import Cli, sets

from flows.catalogue import ORDER
from schemas.config import RunConfig
from schemas.config_text import changed_keys, override_config, parse_config
from storage import Store, open_table

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "qwen2.5-7b-gtpo.toml"
PROBLEMS = ROOT / "docs" / "examples"

TINY = (
    "iterations=1",
    "policy.path=null",
    "policy.hidden_size=32",
    "policy.layers=2",
    "policy.heads=2",
    "policy.feed_forward_size=64",
    "cold_start.demonstrations=400",
    "cold_start.steps=40",
    f"problems.path={PROBLEMS / 'problems.jsonl'}",
    f"evaluation.path={PROBLEMS / 'held-out.jsonl'}",
    "evaluation.problems=4",
    "rollout.engine=transformers",
    "rollout.dialogue=tags",
    "rollout.prompts=3",
    "execution.workers=2",
    "vllm.dtype=float32",
    "compute.device=cpu",
    "compute.processes=1",
    "compute.threads=1",
)
"""What stands in for the large model, its problems and its machine; the method stays."""
METHOD = ("turn_rewards", "similarity", "advantages", "optimisation")


def recipe() -> RunConfig:
    return parse_config(RECIPE.read_text(), name=RECIPE.name)


@pytest.fixture(scope="module")
def dry_run(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one iteration of the recipe, with a tiny policy in place of the large one."""
    store = tmp_path_factory.mktemp("recipes") / "store"
    arguments = ("--store", str(store), "--run", "dry", "--config", str(RECIPE))
    done = cli.run("train", *arguments, *sets(*TINY))
    assert done.returncode == 0, done.stderr
    return store


def test_the_stand_in_leaves_the_method_as_it_is() -> None:
    changed = changed_keys(recipe(), override_config(recipe(), TINY))
    assert not [key for key in changed if key.startswith(METHOD)]


def test_the_recipe_is_the_published_one() -> None:
    config = recipe()
    assert (config.rollout.samples, config.rollout.max_turns) == (16, 16)
    assert config.rollout.max_trajectory_tokens == 16_384
    assert config.optimisation.learning_rate == 1e-6
    assert (config.optimisation.clip_low, config.optimisation.clip_high) == (0.2, 0.28)
    assert (config.advantages.gamma, config.similarity.alpha) == (0.9, 0.5)


def test_one_iteration_goes_through_every_stage(dry_run: Path) -> None:
    stages = {manifest.slot.stage for _, manifest in Store.open(dry_run).results("dry")}
    assert {*ORDER} <= stages | {"problems"}
    turns = open_table(dry_run, "dry", "turns").collect()
    groups = turns.group_by("task_id").agg(pl.col("sample_index").n_unique())
    assert groups["sample_index"].to_list() == [16, 16, 16]


def test_every_stage_is_planned(cli: Cli, dry_run: Path) -> None:
    arguments = ("--store", str(dry_run), "--run", "dry", "--iteration", "1")
    planned = cli.run("plan", "prompts", *arguments, *sets("rollout.temperature=0.9"))
    assert planned.returncode == 0, planned.stderr
    for stage in ("rollout", "execution", "turn_rewards", "similarity", "advantages"):
        assert stage in planned.stdout
