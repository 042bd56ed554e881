import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from schemas.errors import ProblemFileError
from storage import LoadedProblems, load_problems

GOOD = {"id": "a", "problem": "1 + 1?", "answer": "2", "level": 3}


def load(path: Path, **names: Any) -> LoadedProblems:
    fields = {"problem_field": "problem", "answer_field": "answer", "id_field": "id", **names}
    return load_problems(path, **fields)


def jsonl(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def arrow(path: Path, *rows: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(rows))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def row(name: str, **parts: Any) -> dict[str, Any]:
    return {"id": name, "problem": f"problem {name}", "answer": "1", **parts}


def ids(loaded: LoadedProblems) -> list[str]:
    return loaded.problems["task_id"].to_list()


def test_load_jsonl(tmp_path: Path) -> None:
    loaded = load(jsonl(tmp_path / "sums.jsonl", GOOD))
    assert loaded.problems.rows() == [("a", "1 + 1?", "2", "sums", 3)]
    assert loaded.rejected.is_empty()


def test_load_jsonl_with_byte_order_mark_and_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\r\n")
    assert ids(load(path)) == ["a"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"{not json", "not JSON"),
        (b'{"problem": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
        ([1], "not a JSON object"),
        ({"id": "b", "answer": "2"}, "field problem missing"),
        ({"id": "b", "problem": "2?"}, "field answer missing"),
        (row("b", problem="  "), "empty problem"),
        (row("b", problem=None), "empty problem"),
        (row("b", problem=7), "problem is not text"),
        (row("b", problem="\ud800"), "problem is not text"),
        (row("b", answer=""), "empty answer"),
        (row("b", answer=None), "empty answer"),
        (row("b", answer="so #### "), "empty answer"),
        (row("b", answer=["2"]), "answer is not text"),
        (row("b", answer=True), "answer is not text"),
        (row("b", answer=float("nan")), "answer is not text"),
        (row("b", id=[1]), "problem id is not text"),
        (row("a"), "duplicate problem id"),
        (row("b", problem=" 1 + 1? "), "duplicate problem text"),
    ],
)
def test_load_rejects_a_row_with_its_reason(tmp_path: Path, bad: Any, reason: str) -> None:
    loaded = load(jsonl(tmp_path / "a.jsonl", GOOD, bad, row("c")))
    assert ids(loaded) == ["a", "c"]
    assert loaded.rejected.select("row", "reason").rows() == [(2, reason)]
    assert 0 < len(loaded.rejected["text"][0]) <= 80


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (42, "42"),
        (3.0, "3"),
        (-0.5, "-0.5"),
        (" x ", "x"),
        ("5 + 2 = 7\n#### 7", "7"),
        (10**30, str(10**30)),
    ],
)
def test_load_turns_answers_into_text(tmp_path: Path, answer: Any, text: str) -> None:
    loaded = load(jsonl(tmp_path / "a.jsonl", row("a", answer=answer)))
    assert loaded.problems["answer"].to_list() == [text]


def test_load_reads_dotted_fields(tmp_path: Path) -> None:
    nested = {"prompt": [{"content": "2?"}], "reward_model": {"ground_truth": 2}, "meta": {"n": 7}}
    for name in ("a.jsonl", "a.parquet"):
        if name.endswith("jsonl"):
            jsonl(tmp_path / name, nested)
        else:
            pl.DataFrame([nested]).write_parquet(tmp_path / name)
        loaded = load(
            tmp_path / name,
            problem_field="prompt.0.content",
            answer_field="reward_model.ground_truth",
            id_field="meta.n",
        )
        assert loaded.problems.rows() == [("7", "2?", "2", "a", None)]


def test_load_takes_a_field_with_a_dot_in_its_name(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"q.text": "2?", "answer": 2})
    assert load(path, problem_field="q.text").problems["problem"].to_list() == ["2?"]


@pytest.mark.parametrize("id_field", [None, "id"])
def test_load_names_rows_without_identifier_by_position(
    tmp_path: Path, id_field: str | None
) -> None:
    rows = [{"problem": name, "answer": "1"} for name in "xy"]
    loaded = load(jsonl(tmp_path / "sums.jsonl", *rows), id_field=id_field)
    assert ids(loaded) == ["sums-00001", "sums-00002"]


@pytest.mark.parametrize(
    ("level", "expected"), [(2, 2), ("Level 2", None), (True, None), (2**40, None)]
)
def test_load_takes_integer_levels_only(tmp_path: Path, level: Any, expected: int | None) -> None:
    loaded = load(jsonl(tmp_path / "a.jsonl", row("a", level=level)))
    assert loaded.problems["level"].to_list() == [expected]


def test_load_parquet(tmp_path: Path) -> None:
    pl.DataFrame([row("a"), row("b", problem=None)]).write_parquet(tmp_path / "p.parquet")
    loaded = load(tmp_path / "p.parquet")
    assert ids(loaded) == ["a"]
    assert loaded.rejected["reason"].to_list() == ["empty problem"]


def test_load_folder_that_datasets_saved(tmp_path: Path) -> None:
    folder = tmp_path / "gsm"
    arrow(folder / "data-00000-of-00002.arrow", row("a"))
    arrow(folder / "data-00001-of-00002.arrow", row("b"))
    arrow(folder / "cache-1234.arrow", row("c"))
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    state = {"_data_files": [{"filename": name} for name in names]}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    loaded = load(folder)
    assert ids(loaded) == ["a", "b"]
    assert set(loaded.problems["source"]) == {"gsm"}


def test_load_one_split_of_a_saved_dict(tmp_path: Path) -> None:
    for split in ("train", "test"):
        arrow(tmp_path / "gsm" / split / "data-00000-of-00001.arrow", row(split))
    assert ids(load(tmp_path / "gsm" / "test")) == ["test"]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_load_one_split_of_a_hub_folder(tmp_path: Path, suffix: str) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        path = tmp_path / "gsm" / "data" / f"{name}.{suffix}"
        if suffix == "jsonl":
            jsonl(path, row(name))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            pl.DataFrame([row(name)]).write_parquet(path)
    loaded = load(tmp_path / "gsm" / "train")
    assert ids(loaded) == ["train-00000-of-00002", "train-00001-of-00002"]
    assert set(loaded.problems["source"]) == {"gsm-train"}


def test_load_refuses_to_mix_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        jsonl(tmp_path / "gsm" / f"{split}.jsonl", row(split))
    with pytest.raises(ProblemFileError, match=r"several splits \(test, train\): name one"):
        load(tmp_path / "gsm")


def test_load_reads_a_folder_without_splits_whole(tmp_path: Path) -> None:
    for name in ("algebra", "geometry"):
        jsonl(tmp_path / "own" / f"{name}.jsonl", row(name))
    assert ids(load(tmp_path / "own")) == ["algebra", "geometry"]


def test_load_refuses_a_missing_path(tmp_path: Path) -> None:
    with pytest.raises(ProblemFileError, match=r"no\.jsonl does not exist"):
        load(tmp_path / "no.jsonl")


def test_load_refuses_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(ProblemFileError, match=r"a\.jsonl is empty"):
        load(tmp_path / "a.jsonl")


def test_load_refuses_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ProblemFileError, match="holds no"):
        load(tmp_path)


def test_load_refuses_an_unknown_type(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    with pytest.raises(ProblemFileError, match=r"unknown type: take \.jsonl, \.parquet"):
        load(tmp_path / "a.csv")


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_load_refuses_a_damaged_file(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.{suffix}").write_bytes(b"no such thing")
    with pytest.raises(ProblemFileError, match=f"cannot read .* as {suffix}"):
        load(tmp_path / f"a.{suffix}")


def test_load_without_usable_row_tells_the_first_three_reasons(tmp_path: Path) -> None:
    rows = [{"question": str(n), "answer": "1"} for n in range(5)]
    with pytest.raises(ProblemFileError) as told:
        load(jsonl(tmp_path / "a.jsonl", *rows))
    message = str(told.value)
    assert "no usable row" in message
    assert message.count("field problem missing") == 3
    assert '"question"' in message
