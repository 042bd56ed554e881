"""The shaping as a stage run: its embedding model is an input, named by its content."""

from pathlib import Path

import pytest

from flows.binding import Place
from flows.credit_tasks import similarity_task
from flows.events import StageEvent, listening
from flows.sessions import check_inputs
from flows.task_inputs import Shard
from schemas.config import ComputeConfig, RunConfig, SimilarityConfig, TurnRewardsConfig
from schemas.errors import EmbeddingError
from schemas.refs import StageOutput
from stages.turn_rewards import score_turns
from storage import Fingerprint, Store
from tests.embedding_folders import write_embedding_folder
from tests.stages.reward_frames import executions_frame, prompts_frame, turns_frame

TURNS = turns_frame(
    {
        ("t", 0): [{"code": "a = 1"}, {"answer": "8"}],
        ("t", 1): [{"code": "print(1)"}, {"answer": "7"}],
    }
)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    Store.open(tmp_path / "store", create=True)
    return Place(store=str(tmp_path / "store"), run="demo", iteration=1)


@pytest.fixture
def inputs(place: Place) -> tuple[StageOutput, StageOutput]:
    """Stored turns and their rewards."""
    rewards = score_turns(prompts_frame({"t": "7"}), TURNS, executions_frame(), TurnRewardsConfig())
    made_by = Fingerprint(stage="", code={}, config={}, inputs={}, seed=0, libraries={})

    def stored(stage: str, **tables: object) -> StageOutput:
        slot = place.slot(stage, shard=0, turn=0 if stage == "rollout" else None)
        store = Store.open(place.store)
        return store.write(slot, made_by, tables=tables, seconds=0.0, parents=[])

    return stored("rollout", turns=TURNS), stored("turn_rewards", turn_rewards=rewards)


def shape(
    place: Place, inputs: tuple[StageOutput, StageOutput], **settings: object
) -> tuple[list[float | None], list[StageEvent]]:
    """Runs the stage as the flow does, without a server."""
    events: list[StageEvent] = []
    config = SimilarityConfig.model_validate(settings)
    shard, compute = Shard(index=0, of=1), ComputeConfig(threads=1)
    with listening(events.append):
        output = similarity_task.here(place, shard, [inputs[0]], inputs[1], config, compute)
    shaped = Store.open(place.store).read(output.tables["shaped_rewards"])
    return shaped["similarity_mean"].to_list(), events


def test_another_model_in_the_same_place_is_another_input(
    tmp_path: Path, place: Place, inputs: tuple[StageOutput, StageOutput]
) -> None:
    folder = write_embedding_folder(tmp_path / "model", seed=0)
    settings = {"measure": "embedding", "embedding_path": str(folder)}
    first, _ = shape(place, inputs, **settings)
    again, events = shape(place, inputs, **settings)
    assert [event.kind for event in events] == ["reused"]
    write_embedding_folder(folder, seed=1)
    other, events = shape(place, inputs, **settings)
    assert events[0].reason == "data embedding changed"
    assert again == first
    assert other[0] != first[0]


def test_the_same_model_elsewhere_is_the_same_input(
    tmp_path: Path, place: Place, inputs: tuple[StageOutput, StageOutput]
) -> None:
    folder = write_embedding_folder(tmp_path / "model")
    shape(place, inputs, measure="embedding", embedding_path=str(folder))
    moved = folder.rename(tmp_path / "moved")
    _, events = shape(place, inputs, measure="embedding", embedding_path=str(moved))
    assert [event.kind for event in events] == ["reused"]


def test_a_model_that_no_measure_asks_for_does_not_count(
    place: Place, inputs: tuple[StageOutput, StageOutput]
) -> None:
    shape(place, inputs, measure="edit")
    _, events = shape(place, inputs, measure="edit", embedding_path="/nowhere")
    assert [event.kind for event in events] == ["reused"]


def test_a_wrong_folder_is_refused_before_anything_runs() -> None:
    config = RunConfig.model_validate(
        {"similarity": {"measure": "embedding", "embedding_path": "/nowhere"}}
    )
    with pytest.raises(EmbeddingError, match=r"similarity\.embedding_path: /nowhere is no sent"):
        check_inputs(config, None, runs_code=False)
    check_inputs(config, None, runs_code=False, shapes=False)
