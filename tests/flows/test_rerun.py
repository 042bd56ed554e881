import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from small_runs import Cli

import flows.credit_tasks
import flows.resources
import flows.sampling_tasks
from flows.binding import Place
from flows.catalogue import ORDER, Scope
from flows.events import StageEvent, listening
from flows.rerun import check_source, rerun
from flows.sessions import branch_config, branch_name, session
from schemas.config import RunConfig
from schemas.errors import ConfigError, StoreError
from schemas.tables import TURN_KEY
from storage import RunParent, Store, open_table
from storage.digests import folder_digest


def rerun_stage(
    store: Path,
    stage: str,
    iteration: int,
    overrides: list[str],
    *,
    until: str | None = None,
    refresh: bool = False,
) -> str:
    opened = Store.open(store)
    _, config = branch_config(opened, "small", Scope.of(stage, until), overrides)
    parent = RunParent(
        run="small", iteration=iteration, stage=stage, until=until, overrides=overrides
    )
    name = branch_name(opened, "small", parent, config)
    with session(opened, name, config, parent=parent):
        rerun(opened.url, "small", name, iteration, stage, config, until, refresh)
    return name


def computed_by(work: Callable[[], object]) -> list[str]:
    """Returns the stages that were computed meanwhile, one name a stage run."""
    events: list[StageEvent] = []
    with listening(events.append):
        work()
    return [event.slot.stage for event in events if event.kind == "computed"]


@pytest.fixture
def no_model_and_no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was opened or a sandbox started")

    for module in (flows.sampling_tasks, flows.credit_tasks, flows.resources):
        for name in ("engine_of", "executor_of", "load_policy", "make_executor"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, refuse)


@pytest.mark.usefixtures("no_model_and_no_sandbox")
def test_rerun_up_to_the_advantages_opens_no_model_and_starts_no_sandbox(trained: Path) -> None:
    overrides = ["no_tool_penalty=-0.4", "similarity.alpha=0.25", "advantages.gamma=0.7"]
    computed = computed_by(
        lambda: rerun_stage(trained, "turn_rewards", 1, overrides, until="advantages")
    )
    assert set(computed) == {"turn_rewards", "similarity", "advantages"}


def test_rerun_of_advantages_computes_what_depends_on_them(trained: Path) -> None:
    computed = computed_by(lambda: rerun_stage(trained, "advantages", 1, ["gamma=0.5"]))
    assert computed == ["advantages", "optimisation"]


ALONE = {
    "prompts": "rollout.prompts=5",
    "rollout": "temperature=0.5",
    "execution": "wall_time_s=4.5",
    "turn_rewards": "no_tool_penalty=-0.35",
    "similarity": "alpha=0.35",
    "advantages": "gamma=0.35",
    "optimisation": "learning_rate=0.00035",
    "evaluation": "samples=3",
}


@pytest.mark.parametrize("stage", ORDER)
def test_any_stage_can_be_rerun_alone(trained: Path, stage: str) -> None:
    computed = computed_by(lambda: rerun_stage(trained, stage, 2, [ALONE[stage]], until=stage))
    with_own_rollout = {"prompts", "rollout", "execution", "evaluation"}
    assert set(computed) <= (with_own_rollout if stage == "evaluation" else {stage})
    assert stage in computed


def test_refresh_computes_what_is_stored(trained: Path) -> None:
    rerun_stage(trained, "advantages", 1, ["gamma=0.15"], until="advantages")
    again = computed_by(
        lambda: rerun_stage(
            trained, "advantages", 1, ["gamma=0.15"], until="advantages", refresh=True
        )
    )
    assert again == ["advantages"]


def test_a_scope_that_runs_backwards_is_refused() -> None:
    with pytest.raises(ConfigError, match="rollout stands before advantages"):
        Scope.of("advantages", "rollout")


def test_training_a_branch_goes_on_after_its_iteration(cli: Cli, trained: Path) -> None:
    branch = rerun_stage(trained, "advantages", 1, ["gamma=0.45"])
    done = cli.run("train", "--store", str(trained), "--run", branch)
    assert done.returncode == 0, done.stderr
    frame = open_table(trained, branch, "advantages").collect()
    assert set(frame["iteration"]) == {1, 2}
    assert set(frame["gamma"]) == {0.45}
    record = Store.open(trained).run_record(branch)
    assert (record.status, record.iterations_done) == ("finished", 2)
    assert record.parent is not None


def test_rerun_keeps_the_old_result_beside_the_new_one(trained: Path) -> None:
    before = folder_digest(trained / "run=small" / "iteration=0001")
    branch = rerun_stage(trained, "advantages", 1, ["gamma=0.25"])
    assert folder_digest(trained / "run=small" / "iteration=0001") == before
    old, new = (
        open_table(trained, run, "advantages").filter(iteration=1).collect()
        for run in ("small", branch)
    )
    assert set(old["gamma"]) == {0.9}
    assert set(new["gamma"]) == {0.25}


def test_rerun_computes_returns_with_the_new_discount(trained: Path) -> None:
    branch = rerun_stage(trained, "advantages", 1, ["gamma=0.5"])
    rows = open_table(trained, branch, "advantages").collect().sort(TURN_KEY)
    for _, trajectory in rows.group_by("task_id", "sample_index"):
        expected = 0.0
        for row in reversed(trajectory.rows(named=True)):
            expected = row["reward"] + 0.5 * expected
            assert row["return"] == pytest.approx(expected)


def test_rerun_leaves_a_branch_with_every_table_of_the_iteration(trained: Path) -> None:
    branch = rerun_stage(trained, "advantages", 1, ["gamma=0.5"])
    for table in ("turns", "executions", "turn_rewards", "shaped_rewards"):
        old, new = (
            open_table(trained, run, table).filter(iteration=1).drop("run").collect()
            for run in ("small", branch)
        )
        assert old.equals(new), table


def test_the_same_rerun_again_finds_its_branch(trained: Path) -> None:
    first = rerun_stage(trained, "similarity", 1, ["alpha=0.25"])
    events: list[StageEvent] = []
    with listening(events.append):
        assert rerun_stage(trained, "similarity", 1, ["alpha=0.25"]) == first
    assert {event.kind for event in events} == {"reused"}


def test_rerun_takes_rollouts_over_although_their_code_changed(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import flows.binding

    real = flows.binding._code
    edited = {"rollout": {"stages.rollout": "edited"}, "execution": {"stages": "edited"}}
    monkeypatch.setattr(
        flows.binding, "_code", lambda stage, more: edited.get(stage) or real(stage, more)
    )
    events: list[StageEvent] = []
    with listening(events.append):
        rerun_stage(trained, "turn_rewards", 1, ["no_tool_penalty=-0.3"])
    computed = {event.slot.stage for event in events if event.kind == "computed"}
    assert computed == {"turn_rewards", "similarity", "advantages", "optimisation"}


def test_changed_reward_rule_reaches_the_rewards(trained: Path) -> None:
    branch = rerun_stage(trained, "turn_rewards", 1, ["no_tool_penalty=-0.3"])
    rewards = open_table(trained, branch, "turn_rewards").collect()
    assert set(rewards["no_tool"].unique()) <= {0.0, -0.3}


def test_rerun_of_an_evaluated_iteration_evaluates_the_new_policy(trained: Path) -> None:
    branch = rerun_stage(trained, "optimisation", 2, ["learning_rate=0.01"])
    frame = open_table(trained, branch, "evaluations", split="evaluation").collect()
    assert set(frame["iteration"]) == {2}


def test_rerun_of_the_cold_start_iteration_is_refused(trained: Path) -> None:
    with pytest.raises(StoreError, match="iteration 0 holds only the cold start"):
        rerun_stage(trained, "advantages", 0, ["gamma=0.125"])


def test_rerun_of_an_iteration_that_was_never_trained_is_refused(trained: Path) -> None:
    with pytest.raises(StoreError, match="no rollout of iteration 9"):
        rerun_stage(trained, "advantages", 9, ["gamma=0.125"])


@pytest.mark.parametrize(
    "lost",
    [
        "stage=rollout/shard=01/turn=0",
        "stage=rollout/shard=01",
        "stage=rollout/shard=00/turn=2",
        "stage=execution/shard=00/turn=1",
    ],
)
@pytest.mark.parametrize("stage", ["turn_rewards", "advantages"])
def test_rerun_on_a_rollout_that_is_not_complete_is_refused(
    trained: Path, tmp_path: Path, lost: str, stage: str
) -> None:
    """As a kill amid the rollout leaves it: the trajectories would be scored as if finished."""
    store = Path(shutil.copytree(trained, tmp_path / "store"))
    shutil.rmtree(store / "run=small/iteration=0002/split=train" / lost)
    with pytest.raises(StoreError, match=rf"not complete, .*{lost}.* is missing"):
        rerun_stage(store, stage, 2, [], until="advantages")


def test_command_says_what_changed(cli: Cli, trained: Path) -> None:
    done = cli.run(
        *("rerun", "advantages", "--store", str(trained), "--run", "small"),
        *("--iteration", "1", "--set", "gamma=0.75", "--into", "told"),
    )
    assert done.returncode == 0, done.stderr
    old, new = (
        open_table(trained, run, "advantages").filter(iteration=1).collect()
        for run in ("small", "told")
    )
    changed = old.join(new, on=TURN_KEY, suffix="_new").filter(
        ~pl.col("advantage").eq_missing(pl.col("advantage_new"))
    )
    assert f"{old.height} turns, {changed.height} changed" in done.stdout


def test_evaluate_with_more_samples_goes_into_a_branch(cli: Cli, trained: Path) -> None:
    done = cli.run(
        *("evaluate", "--store", str(trained), "--run", "small"),
        *("--set", "samples=3", "--into", "more"),
    )
    assert done.returncode == 0, done.stderr
    assert "avg@3" in done.stdout
    frame = open_table(trained, "more", "evaluations", split="evaluation").collect()
    assert frame.height == 12


def test_evaluate_without_changes_finds_the_stored_result(cli: Cli, trained: Path) -> None:
    done = cli.run("evaluate", "--store", str(trained), "--run", "small")
    assert done.returncode == 0, done.stderr
    assert "0 stage runs computed" in done.stdout


def test_a_branch_can_be_branched_and_evaluated(cli: Cli, trained: Path) -> None:
    branch = rerun_stage(trained, "advantages", 2, ["gamma=0.625"])
    twig = cli.run(
        *("rerun", "optimisation", "--store", str(trained), "--run", branch),
        *("--iteration", "2", "--set", "learning_rate=0.001", "--into", "twig"),
    )
    assert twig.returncode == 0, twig.stderr
    assert set(open_table(trained, "twig", "advantages").collect()["gamma"]) == {0.625}
    done = cli.run("evaluate", "--store", str(trained), "--run", "twig")
    assert done.returncode == 0, done.stderr


def test_a_refused_rerun_leaves_no_record(cli: Cli, trained: Path) -> None:
    known = {record.name for record in Store.open(trained).runs()}
    done = cli.run(
        *("rerun", "advantages", "--store", str(trained), "--run", "small", "--iteration", "9")
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert {record.name for record in Store.open(trained).runs()} == known


def test_rerun_refuses_a_setting_that_it_would_not_use(trained: Path) -> None:
    with pytest.raises(ConfigError, match=r"rollout\.samples does not belong to advantages"):
        rerun_stage(trained, "advantages", 1, ["rollout.samples=8"])


def test_rerun_refuses_another_dialogue_than_that_of_the_prompts(trained: Path) -> None:
    with pytest.raises(ConfigError, match=r"rollout\.dialogue decides how prompts are written"):
        rerun_stage(trained, "rollout", 1, ["dialogue=text"])


def test_rerun_refuses_a_source_that_lacks_a_stage_before_it(trained: Path) -> None:
    branch = rerun_stage(trained, "similarity", 1, ["alpha=0.65"], until="similarity")
    opened = Store.open(trained)
    place = Place(store=opened.url, run=branch, iteration=1)
    with pytest.raises(StoreError, match=f"run {branch} holds no advantages of iteration 1"):
        check_source(opened, place, Scope.of("optimisation"), RunConfig())


def test_an_evaluation_without_its_policy_is_refused(trained: Path) -> None:
    branch = rerun_stage(trained, "advantages", 2, ["gamma=0.85"], until="advantages")
    opened = Store.open(trained)
    place = Place(store=opened.url, run=branch, iteration=2)
    with pytest.raises(StoreError, match=f"run {branch} holds no policy of iteration 2"):
        check_source(opened, place, Scope.of("evaluation"), RunConfig())


def test_a_refused_evaluation_changes_no_record(cli: Cli, trained: Path) -> None:
    before = Store.open(trained).runs()
    done = cli.run(
        *(
            "evaluate",
            "--store",
            str(trained),
            "--run",
            "small",
            "--iteration",
            "9",
            "--set",
            "samples=5",
        )
    )
    assert done.returncode == 1
    assert "run small holds no policy of iteration 9" in done.stderr
    assert Store.open(trained).runs() == before


def test_an_evaluation_in_place_leaves_the_state_of_the_run(cli: Cli, trained: Path) -> None:
    store = Store.open(trained)
    cli.train(trained, run="stopped")
    record = store.run_record("stopped")
    # As kill -9 leaves it, after the second iteration's policy and before its record.
    store.save_run(record.model_copy(update={"status": "running", "iterations_done": 1}))
    done = cli.run("evaluate", "--store", str(trained), "--run", "stopped", "--iteration", "2")
    assert done.returncode == 0, done.stderr
    record = store.run_record("stopped")
    assert (record.status, record.iterations_done) == ("interrupted", 1)
    assert max(store.runs(), key=lambda known: known.updated_at).name == "stopped"


def test_a_rerun_that_makes_no_policy_counts_no_iteration(cli: Cli, trained: Path) -> None:
    for until, counted in (("advantages", 0), ("optimisation", 2)):
        done = cli.run(
            *("rerun", "advantages", "--store", str(trained), "--run", "small", "--iteration", "2"),
            *("--set", "gamma=0.55", "--until", until, "--into", f"to-{until}"),
        )
        assert done.returncode == 0, done.stderr
        assert Store.open(trained).run_record(f"to-{until}").iterations_done == counted
    done = cli.run("evaluate", "--store", str(trained), "--run", "to-advantages")
    assert done.returncode == 0, done.stderr
