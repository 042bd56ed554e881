"""A plan is checked against what really happens: hits are found, the rest is computed."""

import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from small_runs import SMALL, Cli

from flows.binding import Place, open_store
from flows.catalogue import Scope
from flows.events import StageEvent, listening
from flows.plan import plan_rerun, plan_training
from flows.plan_report import plan_lines
from flows.sessions import branch_config, session
from flows.train import train
from schemas.config_text import override_config, parse_config
from schemas.errors import StoreError
from storage import Slot, Store
from storage.digests import folder_digest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A store of its own with the finished run `small`."""
    return Path(shutil.copytree(trained, tmp_path / "store", ignore=only_small))


def only_small(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name.startswith("run=") and name != "run=small"]


def planned(store: Path, *overrides: str) -> pl.DataFrame:
    config = override_config(parse_config("", SMALL), overrides)
    return plan_training(Place(store=str(store), run="small", iteration=0), config)


def slots(plan: pl.DataFrame, *actions: str) -> set[str]:
    return set(plan.filter(pl.col("action").is_in(actions))["slot"])


def trained_again(store: Path) -> dict[str, str]:
    """Trains the run again; returns what happened to each slot."""
    events: list[StageEvent] = []
    config = parse_config("", SMALL)
    open_store.cache_clear()
    with listening(events.append), session(Store.open(store), "small", config):
        train(str(store), "small", config)
    return {e.slot.uri: e.kind for e in events if e.kind in ("computed", "reused")}


def stored(store: Path, pattern: str) -> Path:
    return next(iter(sorted(store.glob(f"run=small/{pattern}"))))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_everything_of_a_finished_run_is_a_hit(trained: Path) -> None:
    plan = planned(trained)
    assert set(plan["action"]) == {"hit"}
    assert set(plan["stage"]) >= {"cold_start", "rollout", "execution", "advantages", "evaluation"}


def test_a_plan_covers_every_stage_run_of_the_training(trained: Path) -> None:
    manifests = trained.glob("run=small/iteration=*/**/manifest.json")
    stored_slots = {m.parent.relative_to(trained).as_posix() for m in manifests}
    assert set(planned(trained)["slot"]) == stored_slots


def test_a_plan_of_a_new_run_runs_everything_and_knows_how_long_its_like_took(
    trained: Path,
) -> None:
    config = parse_config("", [*SMALL, "seed=77"])
    plan = plan_training(Place(store=str(trained), run="new", iteration=0), config)
    firsts = plan.filter(action="run")
    assert "first run" in firsts.filter(stage="cold_start")["reason"].item()
    assert plan["last_s"].null_count() == 0


def test_a_changed_setting_is_told_with_both_values_and_nothing_before_it_runs(
    trained: Path,
) -> None:
    plan = planned(trained, "advantages.gamma=0.95", "iterations=1")
    first = plan.filter(iteration=1, split="train")
    actions = dict(first.group_by("stage").agg(pl.col("action").first()).iter_rows())
    assert actions.pop("advantages") == "run"
    assert actions.pop("optimisation") == "depends"
    assert set(actions.values()) == {"hit"}
    reason = first.filter(stage="advantages")["reason"].item()
    assert reason == "config gamma: 0.9 -> 0.95"


def test_a_plan_writes_nothing(trained: Path) -> None:
    before = folder_digest(trained)
    planned(trained, "advantages.gamma=0.95")
    _, config = branch_config(
        Store.open(trained), "small", Scope.of("turn_rewards"), ["no_tool_penalty=-0.2"]
    )
    old = Place(store=str(trained), run="small", iteration=1)
    new = old.model_copy(update={"run": "not-there"})
    plan_rerun(old, new, Scope.of("turn_rewards"), config)
    assert folder_digest(trained) == before


@pytest.mark.parametrize(
    ("pattern", "damage", "told"),
    [
        ("iteration=0001/**/turn_rewards.parquet", Path.unlink, "missing file turn_rewards"),
        ("iteration=0001/**/advantages.parquet", truncate, "damaged file advantages"),
        ("iteration=0001/**/stage=rollout/**/turns.parquet", flip, "damaged file turns"),
        ("iteration=0001/**/model.safetensors", flip, "damaged file policy/model"),
    ],
)
def test_a_damaged_result_is_planned_to_run_alone_and_so_it_does(
    copy: Path, pattern: str, damage: Callable[[Path], None], told: str
) -> None:
    damage(stored(copy, pattern))
    plan = planned(copy)
    assert len(slots(plan, "run")) == 1
    assert told in plan.filter(action="run")["reason"].item()
    assert not slots(plan, "depends")
    happened = trained_again(copy)
    assert {slot for slot, kind in happened.items() if kind == "computed"} == slots(plan, "run")


def test_a_lost_manifest_makes_what_follows_depend_and_it_is_found_all_the_same(
    copy: Path,
) -> None:
    stored(copy, "iteration=0001/**/stage=similarity/**/manifest.json").unlink()
    plan = planned(copy)
    assert [Path(slot).parent.name for slot in slots(plan, "run")] == ["stage=similarity"]
    assert slots(plan, "depends")
    happened = trained_again(copy)
    assert {slot for slot, kind in happened.items() if kind == "computed"} == slots(plan, "run")


def test_an_edit_makes_exactly_the_stages_stale_that_import_the_module(
    cli: Cli, trained: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    for package in ("flows", "stages", "storage", "schemas"):
        shutil.copytree(ROOT / package, source / package)
    own = Cli({**cli.environment, "PYTHONPATH": str(source)}, folder=source)
    out = tmp_path / "plan.parquet"
    plan_it = ("plan", "--store", str(trained), "--run", "small", "--to", str(out))

    edited = source / "stages" / "grading.py"
    text = edited.read_text()
    edited.write_text(f"# a comment\n{text}\n\n# another\n")
    assert own.run(*plan_it).returncode == 0
    assert set(pl.read_parquet(out)["action"]) == {"hit"}

    edited.write_text(f"{text}\nEDITED = True\n")
    assert own.run(*plan_it).returncode == 0
    plan = pl.read_parquet(out)
    told = plan.filter(pl.col("reason").str.contains("code stages.grading changed", literal=True))
    assert set(told["stage"]) == {"turn_rewards", "evaluation"}
    assert set(plan.filter(action="run")["stage"]) == {"turn_rewards", "evaluation"}


def test_the_plan_of_a_rerun_says_what_is_taken_over(trained: Path) -> None:
    scope = Scope.of("similarity", "advantages")
    _, config = branch_config(Store.open(trained), "small", scope, ["alpha=0.125"])
    old = Place(store=str(trained), run="small", iteration=2)
    plan = plan_rerun(old, old.model_copy(update={"run": "planned"}), scope, config)
    kept = plan.filter(pl.col("reason") == "taken over from small")
    assert set(kept["stage"]) >= {"prompts", "rollout", "execution", "turn_rewards"}
    run = plan.filter(action="run")
    assert set(run["stage"]) == {"similarity"}
    assert set(run["reason"]) == {"config alpha: 0.5 -> 0.125"}
    assert set(plan.filter(action="depends")["stage"]) == {"advantages"}


def test_the_plan_of_fewer_prompts_has_the_shards_that_the_rerun_would_have(trained: Path) -> None:
    scope = Scope.of("prompts", "rollout")
    _, config = branch_config(Store.open(trained), "small", scope, ["rollout.prompts=1"])
    old = Place(store=str(trained), run="small", iteration=2)
    plan = plan_rerun(old, old.model_copy(update={"run": "planned"}), scope, config)
    assert plan.filter(stage="rollout")["shard"].unique().to_list() == [0]


def test_a_damaged_result_that_a_rerun_would_take_over_is_told_by_name(copy: Path) -> None:
    scope = Scope.of("advantages", "advantages")
    _, config = branch_config(Store.open(copy), "small", scope, ["gamma=1.0"])
    old = Place(store=str(copy), run="small", iteration=2)
    slot = old.slot("similarity", shard=0)
    flip(copy / slot.uri / "shaped_rewards.parquet")
    told = r"damaged file shaped_rewards.parquet in .*: `turnledger train --run small` makes it"
    with pytest.raises(StoreError, match=told):
        plan_rerun(old, old.model_copy(update={"run": "planned"}), scope, config)


def test_a_time_that_nobody_knows_is_a_dash(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    plan = plan_training(Place(store=store.url, run="new", iteration=0), parse_config("", SMALL))
    lines = list(plan_lines(plan))
    assert len(lines) > 5
    assert not [line for line in lines if "0.00s" in line]


def test_a_hit_of_another_run_is_planned_as_a_hit(trained: Path) -> None:
    place = Place(store=str(trained), run="twin-to-be", iteration=0)
    plan = plan_training(place, parse_config("", SMALL))
    assert set(plan["action"]) == {"hit"}
    assert all(reason.startswith("reused from ") for reason in plan["reason"])
    assert plan["last_s"].null_count() == 0


def test_the_command_folds_shards_and_sums_up(cli: Cli, trained: Path) -> None:
    done = cli.run("plan", "--store", str(trained), "--run", "small")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum("rollout" in line for line in lines) == 4
    assert lines[-1].endswith("found stored, 0 would run, 0 depend on these")
    every = cli.run("plan", "--store", str(trained), "--run", "small", "--all")
    assert sum(" rollout " in line for line in every.stdout.splitlines()) == 24


def test_slots_in_a_plan_are_those_of_the_store(trained: Path) -> None:
    uri = planned(trained)["slot"][0]
    assert uri == Slot(run="small", iteration=0, split="train", stage="cold_start").uri
