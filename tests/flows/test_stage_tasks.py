"""Stages as Prefect tasks, on a real server: cached by fingerprint, forced, retried or not."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    FlowFilter,
    FlowFilterName,
)
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings
from prefect.states import State

import flows.stage_tasks
from flows.binding import Place, Produced, StageRun
from flows.events import StageEvent, listening
from flows.stage_tasks import StageTask, stage_task
from schemas.errors import ExecutorError, PolicyError, StoreError, StoreUnavailable
from schemas.refs import Ref, StageOutput
from schemas.tables import RejectedProblems
from storage import Store

FRAME = pl.DataFrame(
    {"row": [1], "reason": ["why"], "text": ["x"]}, schema=RejectedProblems.create_empty().schema
)
WORK: dict[str, Callable[[], Produced]] = {}
"""What the task of these tests does; each test sets `compute`."""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    Store.open(tmp_path / "store", create=True)
    return Place(store=str(tmp_path / "store"), run="demo", iteration=1)


@pytest.fixture(autouse=True)
def _own_results(tmp_path: Path) -> Any:
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "results"}):
        yield


@pytest.fixture
def calls() -> list[str]:
    """Fills with a word a computation."""
    done: list[str] = []

    def count() -> Produced:
        done.append("computed")
        return Produced(tables={"rejected_problems": FRAME})

    WORK["compute"] = count
    return done


@stage_task("probe {place.iteration}")
def problems_task(place: Place, content: str) -> StageRun:
    return StageRun(
        place=place,
        slot=place.slot("problems"),
        config={},
        inputs={"file": Ref(uri="elsewhere", name="file", digest=content, content=content)},
        compute=WORK["compute"],
    )


def run_in_flow(
    place: Place, content: str = "a", task: StageTask[Any] = problems_task
) -> tuple[StageOutput, State[Any]]:
    """Runs the task inside a flow; returns its output and its final state."""

    @flow(persist_result=False)
    def one() -> Any:
        future = task.submit(place, content)
        future.wait()
        return future.state.result(raise_on_failure=False), future.state

    output, state = one()
    return output, state


def test_a_second_run_is_cached_in_prefect_too(place: Place, calls: list[str]) -> None:
    first, state = run_in_flow(place)
    assert state.name == "Completed"
    second, state = run_in_flow(place)
    assert state.name == "Cached"
    assert second == first
    assert calls == ["computed"]


def test_another_input_is_no_hit(place: Place, calls: list[str]) -> None:
    run_in_flow(place)
    _, state = run_in_flow(place, "b")
    assert state.name == "Completed"
    assert calls == ["computed", "computed"]


@pytest.mark.parametrize("damage", ["deleted", "flipped"])
def test_a_record_of_prefect_is_no_hit_once_the_file_is_lost(
    place: Place, calls: list[str], damage: str
) -> None:
    output, _ = run_in_flow(place)
    file = Path(place.store) / output.tables["rejected_problems"].uri
    if damage == "deleted":
        file.unlink()
    else:
        file.write_bytes(b"x" * file.stat().st_size)
    _, state = run_in_flow(place)
    assert state.name == "Completed"
    assert calls == ["computed", "computed"]
    assert place.open().read(output.tables["rejected_problems"]).equals(FRAME)


def test_a_store_hit_without_a_record_of_prefect_is_told_and_recorded(
    place: Place, calls: list[str], tmp_path: Path
) -> None:
    run_in_flow(place)
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "other-machine"}):
        events: list[StageEvent] = []
        with listening(events.append):
            _, state = run_in_flow(place)
        assert [event.kind for event in events] == ["reused"]
        assert state.name == "Completed"
        assert run_in_flow(place)[1].name == "Cached"
    assert calls == ["computed"]


def test_references_are_kept_as_readable_json(
    place: Place, calls: list[str], tmp_path: Path
) -> None:
    output, _ = run_in_flow(place)
    (record,) = (tmp_path / "results").iterdir()
    kept = json.loads(json.loads(record.read_text())["result"])["data"]
    assert StageOutput.model_validate(kept) == output


def test_refresh_of_a_place_computes_one_stage_anew(place: Place, calls: list[str]) -> None:
    run_in_flow(place)
    refreshed = place.model_copy(update={"refresh": ("problems",)})
    events: list[StageEvent] = []
    with listening(events.append):
        run_in_flow(refreshed)
    assert calls == ["computed", "computed"]
    assert events[0].reason == "refresh was asked for"


def test_prefects_own_option_refreshes_too(place: Place, calls: list[str]) -> None:
    run_in_flow(place)

    @flow(persist_result=False)
    def forced() -> None:
        problems_task.task.with_options(refresh_cache=True)(place, "a")

    forced()
    assert calls == ["computed", "computed"]


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (ExecutorError("the sandbox died"), 3),
        (StoreUnavailable("the bucket does not answer"), 3),
        (StoreError("damaged"), 1),
        (PolicyError("no tokenizer"), 1),
        (ValueError("a mistake"), 1),
    ],
)
def test_only_what_may_pass_is_tried_again(
    place: Place, monkeypatch: pytest.MonkeyPatch, error: Exception, attempts: int
) -> None:
    tried: list[int] = []

    def fail() -> Produced:
        tried.append(1)
        raise error

    monkeypatch.setitem(WORK, "compute", fail)
    monkeypatch.setattr(problems_task.task, "retry_delay_seconds", [0, 0])
    _, state = run_in_flow(place)
    assert state.is_failed()
    assert len(tried) == attempts


def test_a_training_leaves_tables_and_links_in_prefect(trained: Path) -> None:
    async def artifacts() -> dict[str, Any]:
        async with get_client() as client:
            trainings = await client.read_flow_runs(
                flow_filter=FlowFilter(name=FlowFilterName(any_=["train"]))
            )
            # Other tests train runs of the same name in stores of their own.
            ours = [run.id for run in trainings if run.parameters["store"] == str(trained)]
            found = await client.read_artifacts(
                artifact_filter=ArtifactFilter(
                    key=ArtifactFilterKey(like_="small-"),
                    flow_run_id=ArtifactFilterFlowRunId(any_=ours),
                )
            )
        return {artifact.key: artifact for artifact in found if artifact.key}

    found = asyncio.run(artifacts())
    assert {"small-stages", "small-policy", "small-accuracy", "small-shaping"} <= found.keys()
    assert json.loads(found["small-shaping"].data)[0]["groups"] == 6
    rows = json.loads(found["small-stages"].data)
    assert {row["stage"] for row in rows} >= {"rollout", "advantages"}
    assert "stage=optimisation/policy" in found["small-policy"].data


def test_the_store_is_asked_once_a_task_run(
    place: Place, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = flows.stage_tasks.look_up

    def counted(run: StageRun) -> Any:
        asked.append(run.slot.uri)
        return real(run)

    monkeypatch.setattr(flows.stage_tasks, "look_up", counted)
    run_in_flow(place)
    assert len(asked) == 1
    run_in_flow(place)
    assert len(asked) == 2
