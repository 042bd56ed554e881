"""Further groups, asked in place of those that are all right or all wrong."""

import math
from pathlib import Path

import polars as pl
import pytest
from small_runs import SMALL, Cli, contents, sets

from storage import Store, open_table

WANTED, ROUNDS = 8, 2
RESAMPLED = (
    *SMALL,
    "advantages.groups_without_outcome_variance=drop",
    # Large enough, and trained long enough, that some groups vary; not all do.
    "policy.hidden_size=64",
    "cold_start.steps=300",
    "cold_start.demonstrations=4000",
    f"rollout.prompts={WANTED}",
    f"rollout.resample_rounds={ROUNDS}",
    "evaluation.every=9",
)


@pytest.fixture(scope="module")
def resampled(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("resampled") / "store"
    done = cli.run("train", "--store", str(store), "--run", "dapo", *sets(*RESAMPLED))
    assert done.returncode == 0, done.stderr
    return store


def table(store: Path, name: str, run: str = "dapo") -> pl.DataFrame:
    return open_table(store, run, name).collect()


def varying_tasks(store: Path, run: str = "dapo") -> dict[tuple[int, str], bool]:
    """Says of each group whether it has both right and wrong trajectories, one by one."""
    seen: dict[tuple[int, str], set[float]] = {}
    for row in table(store, "turn_rewards", run).iter_rows(named=True):
        seen.setdefault((row["iteration"], row["task_id"]), set()).add(row["outcome"])
    return {group: len(outcomes) > 1 for group, outcomes in seen.items()}


def test_rounds_ask_what_is_missing_and_no_more(resampled: Path) -> None:
    varies = varying_tasks(resampled)
    assert 0 < sum(varies.values()) < len(varies)
    prompts = table(resampled, "prompts")
    for iteration in (1, 2):
        asked = varying = 0
        for round_index in range(ROUNDS + 1):
            tasks = prompts.filter(iteration=iteration, round=round_index)["task_id"].to_list()
            if round_index == 0:
                expected = WANTED
            elif varying >= WANTED:
                expected = 0
            else:
                expected = min(WANTED, math.ceil((WANTED - varying) * asked / max(varying, 1)))
            assert len(tasks) == expected
            asked += len(tasks)
            varying += sum(varies[iteration, task] for task in tasks)


def test_no_problem_is_asked_twice_in_an_iteration(resampled: Path) -> None:
    prompts = table(resampled, "prompts")
    assert prompts.select("iteration", "task_id").is_unique().all()


def test_every_group_stays_in_the_tables_with_its_reason(resampled: Path) -> None:
    advantages = table(resampled, "advantages")
    groups = advantages.group_by("iteration", "task_id").agg(
        taught=pl.col("excluded").is_null().any(),
        reasons=pl.col("excluded").cast(pl.String).unique(),
    )
    varies = varying_tasks(resampled)
    assert len(groups) == len(varies) == len(table(resampled, "prompts"))
    for iteration, task, taught, reasons in groups.iter_rows():
        assert taught == varies[iteration, task]
        assert taught or reasons == ["zero_outcome_variance"]


def test_an_optimiser_step_learns_from_the_groups_of_all_rounds(resampled: Path) -> None:
    taught = table(resampled, "advantages").filter(pl.col("excluded").is_null())
    counted = taught.group_by("iteration").agg(
        trajectories=pl.struct("task_id", "sample_index").n_unique()
    )
    updates = table(resampled, "updates").group_by("iteration").agg(pl.col("trajectories").sum())
    assert counted.sort("iteration").rows() == updates.sort("iteration").rows()
    rounds = taught.join(table(resampled, "prompts"), on=["iteration", "task_id"])["round"]
    assert rounds.max() > 0


def test_a_stored_training_is_found_again(cli: Cli, resampled: Path) -> None:
    before = contents(Store.open(resampled), "dapo")
    done = cli.run("train", "--store", str(resampled), "--run", "dapo", *sets(*RESAMPLED))
    assert "0 stage runs computed" in done.stdout
    planned = cli.run("plan", "--store", str(resampled), "--run", "dapo", *sets(*RESAMPLED))
    assert "0 would run" in planned.stdout, planned.stdout + planned.stderr
    assert contents(Store.open(resampled), "dapo") == before


def test_a_changed_reward_rule_keeps_the_rounds(cli: Cli, resampled: Path) -> None:
    source = ("--store", str(resampled), "--run", "dapo", "--iteration", "1", "--into", "rule")
    done = cli.run("rerun", "turn_rewards", *source, *sets("no_tool_penalty=-0.3"))
    assert done.returncode == 0, done.stderr
    both = [
        table(resampled, "turns", run).filter(iteration=1).drop("run") for run in ("dapo", "rule")
    ]
    assert both[0].equals(both[1])
    assert len(table(resampled, "advantages", "rule")) == len(both[1])


def test_another_sampling_asks_its_own_rounds(cli: Cli, resampled: Path) -> None:
    source = ("--store", str(resampled), "--run", "dapo", "--iteration", "1", "--into", "cold")
    done = cli.run("rerun", "rollout", *source, *sets("temperature=0.3"))
    assert done.returncode == 0, done.stderr
    prompts = table(resampled, "prompts", "cold").filter(iteration=1)
    assert prompts["task_id"].is_unique().all()
    first = prompts.filter(round=0)["task_id"].to_list()
    varies = varying_tasks(resampled, "cold")
    varying = sum(varies[1, task] for task in first)
    asked = len(prompts.filter(round=1))
    assert asked == min(WANTED, math.ceil((WANTED - varying) * WANTED / max(varying, 1)))


def test_groups_that_are_kept_are_not_replaced(cli: Cli, tmp_path: Path) -> None:
    settings = sets(*RESAMPLED, "advantages.groups_without_outcome_variance=keep")
    done = cli.run("train", "--store", str(tmp_path), *settings)
    assert done.returncode != 0
    assert "groups_without_outcome_variance=drop" in done.stderr
