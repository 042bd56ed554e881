from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from flows.adoption import adopt
from flows.binding import Place, Produced, StageRun, compute_and_keep, look_up
from flows.catalogue import STAGES
from flows.events import StageEvent, listening
from schemas.errors import StageError, StoreError
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


def stage_run(
    place: Place, compute: Callable[[], Produced], *, config: int = 1, content: str = "a"
) -> StageRun:
    return StageRun(
        place=place,
        slot=place.slot("problems"),
        config={"setting": config},
        inputs={"file": Ref(uri="elsewhere", name="file", digest=content, content=content)},
        compute=compute,
    )


def run(place: Place, calls: list[int], *, config: int = 1, content: str = "a") -> StageOutput:
    def compute() -> Produced:
        calls.append(config)
        return Produced(tables={"rejected_problems": FRAME})

    wanted = stage_run(place, compute, config=config, content=content)
    found = look_up(wanted)
    return found.output or compute_and_keep(wanted, found.reason)


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
    run(place, calls, content="b")
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
        compute_and_keep(stage_run(place, compute), "first run")
    assert not list(Path(place.store).rglob("*.parquet"))


def test_edited_code_of_a_stage_computes_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    import flows.binding

    calls: list[int] = []
    run(place, calls)
    monkeypatch.setattr(flows.binding, "_code", lambda stage, more: {"stages.x": "edited"})
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
    broken = Produced(tables={"rejected_problems": FRAME.drop("reason")})
    with pytest.raises(StoreError, match="reason"):
        compute_and_keep(stage_run(place, lambda: broken), "first run")


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_code_of_every_stage_is_found(stage: str) -> None:
    from flows.binding import _code

    assert set(STAGES[stage].code) <= set(_code(stage, ()))


def test_rows_that_break_their_schema_are_told_in_one_line_that_names_the_stage_run(
    place: Place,
) -> None:
    """As after an edit of a stage: the one mistake that everybody makes who changes a rule."""

    def compute() -> Produced:
        frame = FRAME.with_columns(reason=pl.lit(None, pl.String))
        return Produced(tables={"rejected_problems": RejectedProblems.validate(frame)})

    told = r"^run=demo/.*stage=problems: what the stage made breaks its schema: [^\n]*reason[^\n]*$"
    with pytest.raises(StageError, match=told):
        compute_and_keep(stage_run(place, compute), "first run")
    assert Store.open(place.store).manifest(place.slot("problems")) is None
