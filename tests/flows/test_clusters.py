"""Shards on workers of Ray and Dask, real ones: equal results, killed workers, other code."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import polars as pl
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterName
from prefect.context import serialize_context
from prefect.task_runners import ThreadPoolTaskRunner
from small_runs import SMALL, Cli, contents, sets

from flows import clusters
from flows.binding import Place
from flows.clusters import Cluster, Handed, compute_handed, scaled_out
from flows.credit_tasks import turn_rewards_task
from flows.events import StageEvent, listening
from flows.policies import made_policy
from flows.sampling_tasks import execution_task
from flows.sessions import stored_config
from flows.task_inputs import Shard
from schemas.config import ComputeConfig, ExecutionConfig, TurnRewardsConfig
from schemas.errors import ClusterError, StoreError
from schemas.refs import StageOutput
from schemas.tables import Turns
from storage import Fingerprint, Store
from tests.process_trees import alive, processes_below, wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
WORKING = "ray::on a worker"
"""What Ray calls a worker process while it computes one of our tasks."""


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """A Ray cluster of this process, which flows in it use."""
    ray = pytest.importorskip("ray")
    context = ray.init(
        "local",  # another test has a cluster on this machine
        num_cpus=2,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=100 * 2**20,
    )
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Place:
    """An iteration in a copy of the small run's store."""
    shutil.copytree(trained, tmp_path / "store")
    return Place(store=str(tmp_path / "store"), run="small", iteration=1)


def outputs(place: Place, stage: str, *, shard: int = 0) -> list[StageOutput]:
    """Returns what a stage stored for the turns of a shard."""
    store, found = place.open(), []
    for turn in range(10):
        slot = place.slot(stage, shard=shard, turn=turn)
        manifest = store.manifest(slot)
        if manifest is not None:
            found.append(manifest.output(slot.uri))
    return found


def score(place: Place, into: str, runner: ComputeConfig, **changes: Any) -> StageOutput:
    """Scores the first shard of the run into another one, on a cluster or on threads."""
    slot = place.slot("prompts")
    manifest = place.open().manifest(slot)
    assert manifest is not None
    prompts = manifest.output(slot.uri).tables["prompts"]
    arguments = (
        place.model_copy(update={"run": into, **changes}),
        Shard(index=0, of=2),
        prompts,
        outputs(place, "rollout"),
        outputs(place, "execution"),
        # Another penalty than any other test of this store: the result must not be found stored.
        TurnRewardsConfig(no_tool_penalty=-0.37),
    )

    @flow(persist_result=False)
    def scoring() -> StageOutput:
        with scaled_out(runner):
            future = turn_rewards_task.submit(*arguments)
            future.wait()
            return future.result()

    return scoring()


def turns_with(store: Store, output: StageOutput, code: str) -> pl.DataFrame:
    """Returns turns that all say the same code."""
    turns = store.read(output.tables["turns"])
    return Turns.validate(
        turns.with_columns(
            code=pl.lit(code),
            answer=pl.lit(None, pl.String),
            parse_error=pl.lit(None, pl.String),
        ),
        cast=True,
    )


@pytest.mark.parametrize("runner", ["ray", "dask"])
def test_a_training_on_a_cluster_has_the_results_of_one_on_threads(
    cli: Cli, trained: Path, tmp_path: Path, runner: str
) -> None:
    told = cli.train(tmp_path / "store", f"compute.task_runner={runner}")
    assert contents(Store.open(tmp_path / "store")) == contents(Store.open(trained))
    assert "59 stage runs computed" in told or "found stored" in told
    assert told.count("iteration ") == 2


def test_what_a_worker_computes_is_a_task_run_and_an_event_of_the_flow(
    ray_address: str, place: Place
) -> None:
    events: list[StageEvent] = []
    with listening(events.append):
        output = score(place, "events", ComputeConfig(task_runner="ray"))
    started, computed = events
    assert (started.kind, computed.kind) == ("started", "computed")
    assert computed.output == output
    assert computed.seconds > 0
    name = "turn rewards 1 shard 0 on a worker"
    with get_client(sync_client=True) as client:
        known = TaskRunFilter(name=TaskRunFilterName(any_=[name]))
        assert wait_until(lambda: client.read_task_runs(task_run_filter=known), 30)


def test_a_result_that_is_stored_is_not_handed_over(place: Place, ray_address: str) -> None:
    compute = ComputeConfig(task_runner="ray")
    first = score(place, "once", compute)
    events: list[StageEvent] = []
    with listening(events.append):
        assert score(place, "once", compute) == first
    assert [event.kind for event in events] == ["reused"]


def test_a_refreshed_stage_is_computed_on_the_cluster_again(place: Place, ray_address: str) -> None:
    compute = ComputeConfig(task_runner="ray")
    first = score(place, "again", compute)
    events: list[StageEvent] = []
    with listening(events.append):
        again = score(place, "again", compute, refresh=("turn_rewards",))
    assert again.tables["turn_rewards"].content == first.tables["turn_rewards"].content
    assert [event.kind for event in events] == ["started", "computed"]
    assert events[0].reason == "refresh was asked for"


def test_what_a_worker_raises_is_raised_in_the_flow(place: Place, ray_address: str) -> None:
    ref = outputs(place, "rollout")[0].tables["turns"]
    (Path(place.store) / ref.uri).write_bytes(b"no parquet")
    with pytest.raises(StoreError, match="turns"):
        score(place, "damaged", ComputeConfig(task_runner="ray"))


def test_a_killed_worker_is_replaced_and_leaves_nothing_half_written(
    place: Place, ray_address: str
) -> None:
    store, config = place.open(), stored_config(place.open().run_record("small"))
    slow = turns_with(store, outputs(place, "rollout")[0], "import time; time.sleep(3)\nprint(1)")
    made = {}
    for run in ("killed", "undisturbed"):
        slot = place.model_copy(update={"run": run}).slot("rollout", shard=0, turn=0)
        by = Fingerprint(
            stage="rollout", code={}, config={"made": run}, inputs={}, seed=None, libraries={}
        )
        made[run] = store.write(slot, by, tables={"turns": slow}, seconds=0.0, parents=[])

    def executed(run: str, runner: ComputeConfig, *refresh: str) -> StageOutput:
        @flow(persist_result=False)
        def executing() -> StageOutput:
            with scaled_out(runner):
                future = execution_task.submit(
                    place.model_copy(update={"run": run, "refresh": refresh}),
                    Shard(index=0, of=2),
                    0,
                    [made[run]],
                    made_policy(store, "small", 0),
                    ExecutionConfig(workers=2),
                    config.rollout.dialogue,
                )
                future.wait()
                return future.result()

        return executing()

    killed: list[int] = []

    def kill() -> None:
        def working() -> list[int]:
            below = processes_below(os.getpid())
            return [pid for pid, name in below.items() if name.startswith(WORKING)]

        if wait_until(working, 120):
            killed.extend(working())
            # Its sandbox is there once it is at the snippets.
            wait_until(lambda: processes_below(killed[0]), 60)
            os.kill(killed[0], signal.SIGKILL)

    watching = threading.Thread(target=kill)
    watching.start()
    output = executed("killed", ComputeConfig(task_runner="ray"))
    watching.join()
    assert killed
    # Else it would be found stored, as what the cluster made of equal turns.
    expected = executed("undisturbed", ComputeConfig(), "execution")
    assert output.tables["executions"].content == expected.tables["executions"].content
    assert store.read(output.tables["executions"])["stdout"].str.strip_chars().eq("1").all()
    there, right = (
        {file.name for file in (Path(place.store) / ref.uri).parent.iterdir()}
        for ref in (output.tables["executions"], expected.tables["executions"])
    )
    assert there == right


class _Weighing(ThreadPoolTaskRunner[Any]):
    """Notes the bytes of what a task runner with workers would send."""

    weights: list[int]

    def submit(self, task: Any, parameters: dict[str, Any], *more: Any, **named: Any) -> Any:
        sent = (task, parameters, serialize_context())
        self.weights.append(len(cloudpickle.dumps(sent)))
        return super().submit(task, parameters, *more, **named)


def test_what_goes_to_a_worker_is_small_however_large_the_tables_are(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = place.open()
    weights: list[int] = []

    def start(url: str | None, running: Any) -> Any:
        runner = _Weighing(max_workers=1)
        runner.weights = weights
        return running.enter_context(runner), ()

    monkeypatch.setattr(clusters, "_start_ray", start)
    small = outputs(place, "rollout")[0]
    turns = store.read(small.tables["turns"])
    longer = turns.with_columns(text=pl.col("text") + "x" * 100_000)
    for run, frame in (("light", turns), ("heavy", longer)):
        slot = place.model_copy(update={"run": run}).slot("rollout", shard=0, turn=0)
        by = Fingerprint(
            stage="rollout", code={}, config={"made": run}, inputs={}, seed=None, libraries={}
        )
        output = store.write(slot, by, tables={"turns": frame}, seconds=0.0, parents=[])
        monkeypatch.setattr(
            sys.modules[__name__],
            "outputs",
            lambda place, stage, output=output: [output] if stage == "rollout" else [],
        )
        score(place, run, ComputeConfig(task_runner="ray"))
    light, heavy = weights
    assert abs(heavy - light) < 100
    assert heavy < 64_000


def handed(place: Place, change: Callable[[Fingerprint], Fingerprint]) -> Handed:
    slot = place.slot("prompts")
    manifest = place.open().manifest(slot)
    assert manifest is not None
    arguments = {
        "place": place.model_copy(update={"run": "handed"}),
        "shard": Shard(index=0, of=2),
        "prompts": manifest.output(slot.uri).tables["prompts"],
        "turns": outputs(place, "rollout"),
        "executions": outputs(place, "execution"),
        "config": TurnRewardsConfig(no_tool_penalty=-0.47),
    }
    return Handed(
        name="scoring",
        module=turn_rewards_task.describe.__module__,
        task=turn_rewards_task.describe.__name__,
        arguments=arguments,
        fingerprint=change(turn_rewards_task.describe(**arguments).fingerprint),
        reason="first run",
        replace=False,
    )


def test_a_worker_without_the_store_says_so(place: Place, tmp_path: Path) -> None:
    there = handed(place, lambda fingerprint: fingerprint)
    nowhere = there.arguments["place"].model_copy(update={"store": str(tmp_path / "nowhere")})
    arguments = {**there.arguments, "place": nowhere}
    lost = Handed(
        **{name: getattr(there, name) for name in Handed.__slots__ if name != "arguments"},
        arguments=arguments,
    )
    with pytest.raises(ClusterError, match=r"has no such store.*nowhere"):
        compute_handed(lost)


def test_a_worker_with_other_code_is_refused(cli: Cli, place: Place, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for package in ("flows", "stages", "storage", "schemas"):
        shutil.copytree(ROOT / package, other / package)
    edited = other / "stages" / "turn_rewards.py"
    edited.write_text(edited.read_text() + "\n\nOTHER = 1\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    environment = {**cli.environment, "PYTHONPATH": str(other)}
    commands = [
        ["scheduler", "--port", address.rpartition(":")[2], "--no-dashboard"],
        ["worker", address, "--nthreads", "1", "--no-dashboard"],
    ]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_" + name, *options],
            env=environment,
            cwd=other,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for name, *options in commands
    ]
    try:
        compute = ComputeConfig(task_runner="dask", cluster_url=address)
        assert wait_until(lambda: _answers(compute), 60)
        with pytest.raises(
            ClusterError, match=r"another installation than the flow's \(code stages.turn_rewards"
        ):
            score(place, "other", compute)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(timeout=30)
    assert (
        place.open().manifest(
            place.model_copy(update={"run": "other"}).slot("turn_rewards", shard=0)
        )
        is None
    )


def _answers(compute: ComputeConfig) -> bool:
    from flows.cluster_addresses import require_task_runner

    try:
        require_task_runner(compute, prefect_url="http://127.0.0.1:4200/api")
    except ClusterError:
        return False
    return True


def test_a_cluster_that_is_lost_is_told_as_such() -> None:
    class Lost(ThreadPoolTaskRunner[Any]):
        def submit(self, *arguments: Any, **named: Any) -> Any:
            raise ConnectionError("worker 7 is gone\nand more")

    with Lost() as lost:
        cluster = Cluster("ray", lost, (ConnectionError,), lost)
        with pytest.raises(ClusterError, match="the ray cluster could not compute it: worker 7"):
            cluster.compute(
                Handed(
                    name="x",
                    module="",
                    task="",
                    arguments={},
                    fingerprint=Fingerprint(
                        stage="x", code={}, config={}, inputs={}, seed=None, libraries={}
                    ),
                    reason="",
                    replace=False,
                )
            )


@pytest.mark.soak
@pytest.mark.parametrize("runner", ["ray", "dask"])
def test_ctrl_c_ends_flow_and_cluster_in_one_line(cli: Cli, tmp_path: Path, runner: str) -> None:
    store = tmp_path / "store"
    training = cli.start(
        *("train", "--store", str(store), "--run", "small"),
        *sets(*SMALL, "iterations=50", f"compute.task_runner={runner}"),
    )
    first = Place(store=str(store), run="small", iteration=1).slot("advantages")
    assert wait_until((store / first.uri / "manifest.json").exists, 240)
    started = set(processes_below(training.pid))
    assert len(started) > 2
    os.killpg(training.pid, signal.SIGINT)  # as a terminal does
    _, said = training.communicate(timeout=120)
    assert training.returncode == 130
    assert said.splitlines() == ["interrupted: the same command continues run small"]
    assert wait_until(lambda: not alive(started), 60)
