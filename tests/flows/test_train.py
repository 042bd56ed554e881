import os
import pty
import re
import select
import shutil
import signal
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from small_runs import SMALL, Cli, sets

from flows.binding import open_store
from flows.events import StageEvent, listening
from flows.sessions import session
from flows.train import train
from schemas.config_text import parse_config
from schemas.tables import TABLES, TURN_KEY
from storage import Slot, Store, open_table

MADE_BY_TRAINING = {
    ("prompts", "train"),
    ("turns", "train"),
    ("executions", "train"),
    ("turn_rewards", "train"),
    ("shaped_rewards", "train"),
    ("advantages", "train"),
    ("updates", "train"),
    ("demonstrations", "train"),
    ("cold_start_updates", "train"),
    ("turns", "evaluation"),
    ("evaluations", "evaluation"),
}


def policy_digest(store: Path, run: str, iteration: int) -> str:
    slot = Slot(run=run, iteration=iteration, split="train", stage="optimisation")
    manifest = Store.open(store).manifest(slot)
    assert manifest is not None
    weights = manifest.files["policy/model.safetensors"]
    return weights.digest


@pytest.mark.parametrize(("table", "split"), sorted(MADE_BY_TRAINING))
def test_train_fills_table(trained: Path, table: str, split: str) -> None:
    frame = open_table(trained, "small", table, split=split).collect()
    assert frame.height > 0
    own = frame.select(TABLES[table].schema.column_names())
    assert own.schema == TABLES[table].schema.create_empty().schema


def test_hive_scan_reads_the_turns_of_a_whole_run(trained: Path) -> None:
    pattern = f"{trained}/run=small/iteration=*/split=train/stage=rollout/**/turns.parquet"
    scanned = pl.scan_parquet(pattern, hive_partitioning=True).collect()
    opened = open_table(trained, "small", "turns").collect()
    assert scanned.height == opened.height
    assert set(scanned["iteration"]) == {1, 2}


def test_every_turn_of_the_rollout_has_an_advantage_row(trained: Path) -> None:
    key = ["iteration", *TURN_KEY]
    turns = open_table(trained, "small", "turns").select(key).collect().sort(key)
    credited = open_table(trained, "small", "advantages").select(key).collect().sort(key)
    assert turns.equals(credited)


def test_every_called_turn_before_the_last_has_its_execution(trained: Path) -> None:
    calls = open_table(trained, "small", "turns").filter(
        pl.col("code").is_not_null(), pl.col("turn_index") < 2
    )
    key = ["iteration", *TURN_KEY]
    missing = calls.join(open_table(trained, "small", "executions"), on=key, how="anti")
    assert missing.collect().is_empty()


def test_training_and_held_out_problems_have_none_in_common(trained: Path) -> None:
    asked = open_table(trained, "small", "prompts").collect()
    shown = open_table(trained, "small", "demonstrations").collect()
    held_out = open_table(trained, "small", "prompts", split="evaluation").collect()
    assert not set(held_out["task_id"]) & (set(asked["task_id"]) | set(shown["task_id"]))
    assert not set(held_out["problem"]) & (set(asked["problem"]) | set(shown["problem"]))


def test_second_identical_training_finds_everything_stored(trained: Path) -> None:
    events: list[StageEvent] = []
    config = parse_config("", SMALL)
    store = Store.open(trained)
    with listening(events.append), session(store, "small", config):
        train(str(store.root), "small", config)
    assert {event.kind for event in events} == {"reused"}
    assert len(events) > 40


def test_same_settings_under_another_name_take_the_results_over(cli: Cli, trained: Path) -> None:
    output = cli.train(trained, run="twin")
    assert "0 stage runs computed" in output
    assert policy_digest(trained, "twin", 2) == policy_digest(trained, "small", 2)


def test_training_from_nothing_repeats_bit_for_bit(cli: Cli, trained: Path, tmp_path: Path) -> None:
    cli.train(tmp_path / "again")
    for table in ("turns", "turn_rewards", "shaped_rewards", "advantages"):
        first, second = (
            open_table(store, "small", table).collect() for store in (trained, tmp_path / "again")
        )
        assert first.equals(second), table
    assert policy_digest(trained, "small", 2) == policy_digest(tmp_path / "again", "small", 2)


def test_killed_training_continues_to_the_same_policy(
    cli: Cli, trained: Path, tmp_path: Path
) -> None:
    store = tmp_path / "killed"
    arguments = ("train", "--store", str(store), "--run", "small", *sets(*SMALL))
    for wanted in (
        "run=small/iteration=0000/split=evaluation/stage=rollout",
        "run=small/iteration=0001/split=train/stage=rollout/shard=01/turn=1",
        "run=small/iteration=0002/split=train/stage=turn_rewards/shard=00",
    ):
        process = cli.start(*arguments)
        deadline = time.monotonic() + 120
        while not (store / wanted).exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert Store.open(store).run_record("small").status == "interrupted"
    before = len(list(store.glob("run=small/**/manifest.json")))
    output = cli.train(store)
    assert policy_digest(store, "small", 2) == policy_digest(trained, "small", 2)
    found = re.search(r"(\d+) stage runs computed, (\d+) found stored", output)
    assert found is not None
    assert int(found[2]) >= before


def test_interrupt_ends_in_one_line_and_leaves_a_run_to_continue(cli: Cli, tmp_path: Path) -> None:
    store = tmp_path / "interrupted"
    process = cli.start("train", "--store", str(store), "--run", "small", *sets(*SMALL))
    while not (store / "run=small/iteration=0000/split=train/stage=cold_start").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stderr.strip().splitlines()[-1].startswith("interrupted: ")
    assert "Traceback" not in stderr
    assert Store.open(store).run_record("small").status == "interrupted"


def test_ctrl_c_in_a_terminal_interrupts_with_a_temporary_server(cli: Cli, tmp_path: Path) -> None:
    """A terminal sends the signal to the server and the sandbox too, not to the command alone."""
    store = tmp_path / "terminal"
    started = "run=small/iteration=0000/split=train/stage=cold_start"
    environment = {k: v for k, v in cli.environment.items() if k != "PREFECT_API_URL"}
    command = [sys.executable, "-m", "flows.cli", "train", "--store", str(store), "--run", "small"]
    child, terminal = pty.fork()
    if child == 0:
        os.execve(sys.executable, [*command, *sets(*SMALL)], environment)
    shown = b""
    pressed = False
    while True:
        ready, _, _ = select.select([terminal], [], [], 0.05)
        if ready:
            try:
                shown += os.read(terminal, 65536)
            except OSError:  # the other side is closed: the command has ended
                break
        if not pressed and (store / started).exists():
            os.write(terminal, b"\x03")
            pressed = True
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 130, shown[-2000:].decode()
    assert b"Traceback" not in shown
    assert b"interrupted: the same command continues" in shown
    assert Store.open(store).run_record("small").status == "interrupted"


def test_one_shard_executes_while_another_generates(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import flows.sampling_tasks

    class Slow:
        """The real executor, slowed down."""

        def __init__(self, executor: object) -> None:
            self.executor = executor

        def execute(self, snippets: pl.DataFrame) -> pl.DataFrame:
            time.sleep(0.5)
            return self.executor.execute(snippets)

    real = flows.sampling_tasks.executor_of
    monkeypatch.setattr(flows.sampling_tasks, "executor_of", lambda config: Slow(real(config)))
    spans: dict[Slot, list[float]] = {}

    def note(event: StageEvent) -> None:
        if event.kind != "progress":
            spans.setdefault(event.slot, []).append(time.monotonic())

    config = parse_config("", [*SMALL, "seed=1", "iterations=1", "rollout.max_turns=2"])
    store = Store.open(tmp_path / "store", create=True)
    with listening(note), session(store, "overlap", config):
        train(str(store.root), "overlap", config)
    executing = [(s.shard, span) for s, span in spans.items() if s.stage == "execution"]
    generating = [(s.shard, span) for s, span in spans.items() if s.stage == "rollout"]
    assert any(
        shard != other and start < busy_end and busy_start < end
        for shard, (start, end) in executing
        for other, (busy_start, busy_end) in generating
    )


def test_a_failing_stage_tells_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import flows.sampling_tasks
    from schemas.errors import ExecutorError

    class Broken:
        def execute(self, snippets: pl.DataFrame) -> pl.DataFrame:
            raise ExecutorError("the machine is on fire")

    monkeypatch.setattr(flows.sampling_tasks, "executor_of", lambda config: Broken())
    config = parse_config("", [*SMALL, "seed=2"])
    store = Store.open(tmp_path / "store", create=True)
    with pytest.raises(ExecutorError, match="on fire"), session(store, "broken", config):
        train(str(store.root), "broken", config)
    record = store.run_record("broken")
    assert (record.status, record.message) == ("failed", "the machine is on fire")


def test_code_edited_while_a_run_goes_on_does_not_name_its_results(
    cli: Cli, tmp_path: Path
) -> None:
    copy = tmp_path / "source"
    root = Path(__file__).parents[2]
    for package in ("flows", "stages", "storage", "schemas"):
        shutil.copytree(root / package, copy / package)
    store = tmp_path / "store"
    arguments = ("train", "--store", str(store), "--run", "small", *sets(*SMALL, "iterations=1"))
    own = Cli({**cli.environment, "PYTHONPATH": str(copy)}, folder=copy)
    process = own.start(*arguments)
    while not (store / "run=small/iteration=0000/split=train/stage=cold_start").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    edited = copy / "stages" / "advantages" / "stage.py"
    edited.write_text(edited.read_text() + "\nEDITED = True\n")
    assert process.wait(timeout=100) == 0
    done = own.run(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("1 stage runs computed")


def test_stores_are_opened_once_a_process(trained: Path) -> None:
    assert open_store(str(trained)) is open_store(str(trained))
