"""Foreign trajectories become a run on which rerun, show and diff work."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from small_runs import Cli, contents

from flows.binding import Place
from flows.catalogue import ORDER, Scope
from flows.events import StageEvent, listening
from flows.foreign_runs import TrajectoryFile, import_file
from flows.rerun import check_source, rerun
from flows.sessions import branch_config, refuse_imported, session
from schemas.config import RunConfig
from schemas.errors import ConfigError, StoreError, TrajectoryFileError
from stages.turn_rewards import score_turns
from storage import RunParent, Store, open_table
from storage.garbage import find_garbage, remove_garbage
from tests.prefect_servers import flows_on
from tests.stages.foreign.foreign_rows import trajectory

DATA = Path(__file__).parents[2].parent / "shared" / "data"
REAL = sorted(DATA.glob("traj_*.jsonl"))
CREDIT = ("turn_rewards", "similarity", "advantages")


def two_groups() -> list[dict[str, Any]]:
    """Returns right and wrong samples of two problems, and a row that cannot be used."""
    wrong = [{"text": "Try.", "code": "print(6 + 7)", "output": "13"}, {"text": "So 13."}]
    silent = [{"text": "It is 42."}]
    other = {"problem": "What is 1 + 1?", "gold": 2}
    return [
        trajectory(correct=True),
        trajectory(turns=wrong, prediction="13", correct=False),
        trajectory(turns=silent, correct=True),
        trajectory(**other, prediction="2", correct=True),
        trajectory(**other, prediction="3", correct=False),
        trajectory(gold=None),
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def take_in(store: Store, path: Path, run: str = "theirs") -> bool:
    return import_file(store, run, TrajectoryFile.find(path, None, lambda row: None))


def credit(store: Store, run: str, into: str, *overrides: str) -> None:
    scope = Scope.of("turn_rewards", "advantages")
    _, config = branch_config(store, run, scope, overrides)
    parent = RunParent(
        run=run, iteration=1, stage=scope.first, until=scope.last, overrides=[*overrides]
    )
    with session(store, into, config, parent=parent):
        rerun(store.url, run, into, 1, scope.first, config, scope.last)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store", create=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "dump.jsonl", two_groups())


@pytest.fixture(scope="module")
def credited(tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> Store:
    """A store with the imported run `theirs` and its branch `credited`; only read."""
    folder = tmp_path_factory.mktemp("credited")
    store = Store.open(folder / "store", create=True)
    take_in(store, write_rows(folder / "dump.jsonl", two_groups()))
    with flows_on(prefect_server):
        credit(store, "theirs", "credited")
    return store


def test_an_imported_run_is_credited_from_the_rewards_to_the_advantages(credited: Store) -> None:
    rows = open_table(credited.url, "credited", "advantages").collect()
    assert rows.height == 9
    assert rows["excluded"].null_count() == 9
    last = rows.group_by("task_id", "sample_index").agg(pl.col("advantage").last())
    rewards = open_table(credited.url, "credited", "turn_rewards").filter("is_last").collect()
    told = last.join(rewards, on=["task_id", "sample_index"])
    assert (told["advantage"] > 0).to_list() == (told["outcome"] == 1).to_list()


def test_a_wrong_trajectory_is_shaped_by_the_right_ones_of_its_group(credited: Store) -> None:
    shaped = open_table(credited.url, "credited", "shaped_rewards").collect()
    wrong = shaped.filter(pl.col("shaping") == "shaped", pl.col("shaped_accuracy") > 0)
    assert wrong.select("sample_index", "peers").rows() == [(1, 1), (1, 1)]


def test_an_import_is_a_finished_run_that_says_where_it_comes_from(
    store: Store, path: Path
) -> None:
    assert take_in(store, path)
    record = store.run_record("theirs")
    assert (record.status, record.imported_from) == ("finished", "dump.jsonl")
    assert record.config["rollout"]["prompts"] == 2
    assert record.config["rollout"]["samples"] == 3
    rejected = open_table(store.url, "theirs", "rejected_trajectories").collect()
    assert rejected.select("row", "reason").rows() == [(6, "no gold answer")]


def test_the_same_file_again_changes_nothing_wherever_it_lies(
    store: Store, path: Path, tmp_path: Path
) -> None:
    take_in(store, path)
    before = contents(store, "theirs"), store.run_record("theirs")
    (tmp_path / "moved").mkdir()
    moved = Path(shutil.move(path, tmp_path / "moved" / path.name))
    events: list[StageEvent] = []
    with listening(events.append):
        assert not take_in(store, moved)
    assert {event.kind for event in events} == {"reused"}
    assert (contents(store, "theirs"), store.run_record("theirs")) == before


def test_the_same_file_under_another_name_of_a_run_is_taken_over(store: Store, path: Path) -> None:
    take_in(store, path)
    events: list[StageEvent] = []
    with listening(events.append):
        take_in(store, path, "again")
    assert {event.kind for event in events} == {"reused"}


def test_other_content_under_the_same_name_is_refused(store: Store, path: Path) -> None:
    take_in(store, path)
    before = contents(store, "theirs")
    write_rows(path, two_groups()[:3])
    with pytest.raises(ConfigError, match=r"theirs holds another import \(data file"):
        take_in(store, path)
    assert contents(store, "theirs") == before


def test_a_run_that_was_sampled_is_not_written_over(trained: Path, path: Path) -> None:
    with pytest.raises(ConfigError, match="run small exists and is no import"):
        take_in(Store.open(trained), path, "small")


def test_a_file_without_a_usable_row_leaves_no_run(store: Store, tmp_path: Path) -> None:
    bad = write_rows(tmp_path / "bad.jsonl", [trajectory(gold=None)])
    with pytest.raises(TrajectoryFileError, match=r"bad\.jsonl: no row can be used as turns"):
        take_in(store, bad)
    assert not store.has_run("theirs")
    assert not store.has_results("theirs")


def stop_after(count: int) -> Callable[[StageEvent], None]:
    def stop(event: StageEvent) -> None:
        nonlocal count
        count -= event.kind == "computed"
        if count == 0:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize("done", [1, 4, 8])
def test_an_import_that_was_killed_is_no_run_and_can_be_done_again(
    store: Store, path: Path, done: int
) -> None:
    with listening(stop_after(done)), pytest.raises(KeyboardInterrupt):
        take_in(store, path)
    assert store.run_names() == []
    assert take_in(store, path)
    undisturbed = Store.open(path.parent / "other", create=True)
    take_in(undisturbed, path)
    assert contents(store, "theirs") == contents(undisturbed, "theirs")


def test_what_a_killed_import_of_another_file_left_is_not_taken_in(
    store: Store, path: Path, tmp_path: Path
) -> None:
    long = write_rows(tmp_path / "long.jsonl", [trajectory(turns=[{"text": "a"}] * 7)])
    with listening(stop_after(7)), pytest.raises(KeyboardInterrupt):
        take_in(store, long)
    with pytest.raises(StoreError, match="is left of another import: `turnledger gc` removes it"):
        take_in(store, path)
    remove_garbage(store, find_garbage(store))
    assert take_in(store, path)


def test_importing_again_mends_what_is_damaged(store: Store, path: Path) -> None:
    take_in(store, path)
    before = contents(store, "theirs")
    table = next(store.root.glob("run=theirs/**/shard=00/turn=0/turns.parquet"))
    table.write_bytes(table.read_bytes()[:-1])
    assert take_in(store, path)
    assert contents(store, "theirs") == before
    open_table(store.url, "theirs", "turns", verify=True)


@pytest.mark.parametrize("stage", [stage for stage in ORDER if stage not in CREDIT])
@pytest.mark.parametrize("run", ["theirs", "credited"])
def test_what_needs_a_policy_or_log_probabilities_is_refused(
    credited: Store, run: str, stage: str
) -> None:
    place = Place(store=credited.url, run=run, iteration=1)
    with pytest.raises(ConfigError, match="without log-probabilities of sampling"):
        check_source(credited, place, Scope.of(stage), RunConfig())


def test_a_rerun_that_would_end_in_an_update_is_refused(store: Store, path: Path) -> None:
    take_in(store, path)
    place = Place(store=store.url, run="theirs", iteration=1)
    with pytest.raises(ConfigError, match="--until advantages"):
        check_source(store, place, Scope.of("turn_rewards"), RunConfig())
    check_source(store, place, Scope.of("turn_rewards", "advantages"), RunConfig())


def test_a_sampled_run_is_not_taken_for_an_imported_one(trained: Path) -> None:
    refuse_imported(Store.open(trained), "small")


def test_the_commands_work_on_an_imported_run(cli: Cli, path: Path, tmp_path: Path) -> None:
    store = ["--store", str(tmp_path / "by-command")]
    done = cli.run("import-trajectories", str(path), "--run", "theirs", *store)
    assert done.returncode == 0, done.stderr
    assert "5 trajectories of 2 problems, 9 turns, 4 executions with 0 failed" in done.stdout
    assert "1  no gold answer" in done.stdout
    again = cli.run("import-trajectories", str(path), "--run", "theirs", *store)
    assert "is unchanged and stored already" in again.stdout
    rerun_it = ("rerun", "turn_rewards", "--run", "theirs", "--iteration", "1", *store)
    done = cli.run(*rerun_it, "--until", "advantages", "--into", "credited")
    assert done.returncode == 0, done.stderr
    assert "Compare" not in done.stdout
    shown = cli.run("show", "advantages", "--run", "credited", *store)
    assert "advantages of credited, train: 9 rows" in shown.stdout
    listed = cli.run("runs", *store)
    assert "imported from dump.jsonl" in listed.stdout
    for command in (("train", "--run", "theirs", *store), rerun_it):
        refused = cli.run(*command)
        assert refused.returncode == 1
        assert "log-probabilities of sampling, which optimisation needs" in refused.stderr
        assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["no.jsonl"], "error: trajectory file no.jsonl does not exist\n"),
        (["."], "error: . is a folder: name one of its files\n"),
        (["bad.jsonl"], "error: bad.jsonl: the format is not known, a row has a: say it with"),
        (["bad.jsonl", "--format", "verl"], "no row can be used as verl (1 rejected): row 1"),
    ],
)
def test_a_bad_path_is_told_in_one_line(
    cli: Cli, tmp_path: Path, arguments: list[str], told: str
) -> None:
    write_rows(tmp_path / "bad.jsonl", [{"a": 1}])
    here = Cli({**cli.environment, "PYTHONPATH": str(Path(__file__).parents[2])}, tmp_path)
    done = here.run("import-trajectories", *arguments, "--run", "theirs")
    assert done.returncode == 1
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not REAL, reason="the published trajectories are not beside the tree")
@pytest.mark.parametrize("named", [True, False], ids=["named answers", "answers from the text"])
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_our_grading_agrees_with_the_labels_of_published_files(
    path: Path, tmp_path: Path, named: bool
) -> None:
    from schemas.config import TurnRewardsConfig

    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = rows if named else [{k: v for k, v in r.items() if k != "prediction"} for r in rows]
    copy = write_rows(tmp_path / path.name, rows)
    tables = TrajectoryFile.find(copy, None, lambda row: None).tables
    assert tables.rejected.is_empty()
    rewards = score_turns(tables.prompts, tables.turns, tables.executions, TurnRewardsConfig())
    graded = rewards.filter("is_last").join(tables.labels, on=["task_id", "sample_index"])
    apart = graded.filter(pl.col("score") != pl.col("outcome"))
    listed = apart.join(tables.prompts, on="task_id").select("row", "answer", "score", "verdict")
    assert len(apart) <= 0.03 * len(graded), listed.rows()
