from pathlib import Path

import polars as pl
import pytest

from flows.binding import CODE, Place, Produced, adopt, run_stage
from flows.events import StageEvent, listening
from schemas.errors import StoreError
from schemas.refs import Ref, StageOutput
from schemas.tables import RejectedProblems
from storage import Slot, Store

FRAME = pl.DataFrame(
    {"row": [1], "reason": ["why"], "text": ["x"]}, schema=RejectedProblems.create_empty().schema
)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    Store.open(tmp_path / "store", create=True)
    return Place(store=str(tmp_path / "store"), run="demo", iteration=1)


def run(place: Place, calls: list[int], *, config: int = 1, digest: str = "a") -> StageOutput:
    def compute() -> Produced:
        calls.append(config)
        return Produced(tables={"rejected_problems": FRAME})

    return run_stage(
        place,
        place.slot("problems"),
        config={"setting": config},
        inputs={"file": Ref(uri="elsewhere", name="file", digest=digest, content=digest)},
        compute=compute,
    )


def test_second_run_computes_nothing(place: Place) -> None:
    calls: list[int] = []
    assert run(place, calls) == run(place, calls)
    assert calls == [1]


def test_changed_setting_is_told_with_both_values(place: Place) -> None:
    events: list[StageEvent] = []
    run(place, [])
    with listening(events.append):
        run(place, [], config=2)
    assert [event.kind for event in events] == ["started", "computed"]
    assert events[0].reason == "config setting: 1 -> 2"


def test_changed_input_computes_again(place: Place) -> None:
    calls: list[int] = []
    run(place, calls)
    run(place, calls, digest="b")
    assert len(calls) == 2


def test_damaged_result_is_computed_again(place: Place) -> None:
    calls: list[int] = []
    output = run(place, calls)
    file = Path(place.store) / output.tables["rejected_problems"].uri
    file.write_bytes(b"noise")
    run(place, calls)
    assert len(calls) == 2


def test_failing_stage_leaves_nothing(place: Place) -> None:
    def compute() -> Produced:
        raise RuntimeError("broken stage")

    with pytest.raises(RuntimeError, match="broken stage"):
        run_stage(place, place.slot("problems"), config={}, inputs={}, compute=compute)
    assert not list(Path(place.store).rglob("*.parquet"))


def test_edited_code_of_a_stage_computes_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    import flows.binding

    calls: list[int] = []
    run(place, calls)
    monkeypatch.setattr(flows.binding, "_code", lambda stage: {"stages.x": "edited"})
    run(place, calls)
    assert len(calls) == 2


def test_adopt_takes_a_result_over_as_it_is(place: Place) -> None:
    run(place, [])
    target = Slot(run="branch", iteration=1, split="train", stage="problems")
    output = adopt(place, place.slot("problems"), target)
    assert output is not None
    taken = Store.open(place.store).read(output.tables["rejected_problems"])
    assert taken.equals(FRAME)


def test_adopt_of_nothing_is_nothing(place: Place) -> None:
    assert adopt(place, place.slot("problems"), place.slot("prompts")) is None


def test_broken_schema_is_refused_by_column(place: Place) -> None:
    with pytest.raises(StoreError, match="reason"):
        run_stage(
            place,
            place.slot("problems"),
            config={},
            inputs={},
            compute=lambda: Produced(tables={"rejected_problems": FRAME.drop("reason")}),
        )


@pytest.mark.parametrize("stage", sorted(CODE))
def test_code_of_every_stage_is_found(stage: str) -> None:
    from flows.binding import _code

    assert set(CODE[stage]) <= set(_code(stage))
