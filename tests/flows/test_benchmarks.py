"""Stored policies on benchmarks: what is computed, what is told."""

import json
import re
import shutil
from pathlib import Path

import polars as pl
import pytest
from small_runs import Cli

from flows.benchmarks import ANSWER_FIELDS, ProblemSet, section_of, shards_of
from schemas.config import RunConfig
from schemas.errors import ConfigError, ProblemFileError
from storage import open_table


def write_problems(path: Path, count: int, **fields: str) -> Path:
    """Writes problems with the usual field names, or with those given."""
    problem, answer = fields.get("problem", "problem"), fields.get("answer", "answer")
    rows = [
        {problem: f"What is {n} + {n}?", answer: str(2 * n), "level": n % 2} for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def store(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the run `small`, to add benchmarks to."""
    copy = tmp_path_factory.mktemp("benchmarks") / "store"
    shutil.copytree(trained, copy)
    return copy


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_problems(tmp_path_factory.mktemp("problems") / "sums.jsonl", 70)


@pytest.fixture(scope="module")
def first(cli: Cli, store: Path, sums: Path) -> str:
    """What the command says of two samples on two benchmarks."""
    return said(cli, store, "--on", f"sums={sums}", "--on", "held_out", "--samples", "2")


def said(cli: Cli, store: Path, *arguments: str) -> str:
    done = cli.run("benchmark", "--store", str(store), "--run", "small", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(cli: Cli, store: Path, *arguments: str) -> str:
    done = cli.run("benchmark", "--store", str(store), "--run", "small", *arguments)
    assert done.returncode == 1, done.stdout
    assert done.stderr.count("\n") == 1
    return done.stderr


def results(store: Path, benchmark: str, run: str = "small") -> pl.DataFrame:
    return open_table(store, run, "evaluations", split=benchmark).collect()


def test_each_benchmark_is_a_part_of_the_policys_iteration(
    first: str, store: Path, sums: Path
) -> None:
    found = results(store, "sums")
    assert found["iteration"].unique().to_list() == [2]
    assert found["benchmark"].unique().to_list() == ["sums"]
    assert found.select("task_id", "sample_index").is_unique().all()
    assert len(found) == 70 * 2
    assert len(results(store, "held_out")) == 4 * 2
    assert "sums" in first
    assert "held_out" in first


def test_the_figures_told_are_those_of_the_stored_rows(first: str, store: Path) -> None:
    row = next(line for line in first.splitlines() if line.split()[:1] == ["sums"]).split()
    found = results(store, "sums")
    assert row[1:3] == ["70", "2"]
    assert float(row[3]) == pytest.approx(found["correct"].mean() * 100, abs=0.06)
    assert float(row[7]) == pytest.approx(found["turns"].mean(), abs=0.006)


def test_a_policy_that_is_never_right_is_told_with_a_bound(first: str, store: Path) -> None:
    assert not results(store, "sums")["correct"].any()
    # 1 - 0.05^(1/70)
    assert "sums: no sample is right" in first
    assert "below 4.2%" in first.replace("\n", " ")


def test_asked_again_nothing_is_computed(first: str, cli: Cli, store: Path) -> None:
    again = said(cli, store, "--on", "sums", "--samples", "2")
    assert "0 stage runs computed" in again


@pytest.fixture(scope="module")
def more(first: str, cli: Cli, store: Path) -> tuple[pl.DataFrame, str]:
    """The rows before a third sample was asked for, and what the command said of it."""
    before = results(store, "sums")
    return before, said(cli, store, "--on", "sums", "--samples", "3")


def test_a_further_sample_computes_only_its_own_shards(
    more: tuple[pl.DataFrame, str],
) -> None:
    told = re.search(r"(\d+) stage runs computed, (\d+) found stored", more[1])
    assert told is not None
    # Two blocks of problems, three turns and two executions each, and the grading. Where a block
    # has no code left to execute, its empty results serve again.
    assert 8 <= int(told[1]) <= 12
    assert int(told[1]) + int(told[2]) == 3 * 12 + 1


def test_a_further_sample_leaves_the_others_as_they_are(
    more: tuple[pl.DataFrame, str], store: Path
) -> None:
    after = results(store, "sums")
    assert len(after) == 70 * 3
    order = ["task_id", "sample_index"]
    assert after.filter(pl.col("sample_index") < 2).sort(order).equals(more[0].sort(order))


def test_samples_of_a_problem_differ(first: str, store: Path) -> None:
    turns = open_table(store, "small", "turns", split="sums").collect()
    texts = turns.filter(turn_index=0).group_by("task_id").agg(pl.col("text").n_unique())
    assert texts["text"].max() > 1


def test_two_policies_meet_the_same_luck(first: str, cli: Cli, store: Path) -> None:
    said(cli, store, "--on", "sums", "--iteration", "0", "--samples", "1")
    turns = open_table(store, "small", "turns", split="sums").collect()
    seeds = turns.filter(turn_index=0, sample_index=0).select("iteration", "task_id", "seed")
    by_policy = seeds.partition_by("iteration", include_key=False)
    assert len(by_policy) == 2
    assert by_policy[0].sort("task_id").equals(by_policy[1].sort("task_id"))


def test_two_policies_are_compared_problem_by_problem(first: str, cli: Cli, store: Path) -> None:
    said(cli, store, "--on", "held_out", "--iteration", "0", "--samples", "2")
    told = said(cli, store, "--on", "held_out", "--samples", "2", "--against", "small:0")
    assert "Against small, iteration 0" in told


def test_a_policy_without_results_is_told_before_anything_is_sampled(
    first: str, cli: Cli, store: Path
) -> None:
    told = refused(cli, store, "--on", "held_out", "--against", "small:1")
    assert "turnledger benchmark --run small --iteration 1 --on held_out" in told


@pytest.mark.parametrize("ending", [".md", ".tex"])
def test_a_report_has_every_table(
    first: str, cli: Cli, store: Path, tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"report{ending}"
    said(cli, store, "--on", "sums", "--samples", "2", "--to", str(path))
    text = path.read_text()
    for title in ("Benchmarks", "By number of samples", "By level", "By turns"):
        assert title in text
    if ending == ".tex":
        assert text.count("\\begin{tabular}") == text.count("\\end{tabular}") == 4
    else:
        assert text.count("\n## ") == 4


def test_problems_that_training_asked_are_told(cli: Cli, store: Path, tmp_path: Path) -> None:
    asked = open_table(store, "small", "prompts").select("problem", "answer").collect()
    path = tmp_path / "leak.jsonl"
    asked.head(2).write_ndjson(path)
    told = said(cli, store, "--on", f"leak={path}", "--samples", "1")
    assert "leak: 2 problems are training problems" in told


def test_other_settings_go_into_a_branch(first: str, cli: Cli, store: Path, sums: Path) -> None:
    before = results(store, "sums")
    said(
        *(cli, store, "--on", f"sums={sums}", "--into", "cold"),
        *("--set", "temperature=0.5", "--samples", "1"),
    )
    assert results(store, "sums").equals(before)
    turns = open_table(store, "cold", "turns", split="sums").collect()
    assert turns["temperature"].unique().to_list() == [0.5]


def test_another_content_under_a_known_name_is_refused(
    first: str, cli: Cli, store: Path, tmp_path: Path
) -> None:
    other = write_problems(tmp_path / "sums.jsonl", 3)
    assert "take another name" in refused(cli, store, "--on", f"sums={other}")
    assert len(results(store, "sums").filter(sample_index=0, iteration=2)) == 70


def test_a_name_without_stored_problems_asks_for_the_file(cli: Cli, store: Path) -> None:
    assert "--on aime24=problems.jsonl" in refused(cli, store, "--on", "aime24")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train=x.jsonl", "neither train nor evaluation"),
        ("Math 500=x.jsonl", "small letters"),
        ("sums=", "the path is missing"),
        ("held_out=x.jsonl", "embedded problems"),
    ],
)
def test_names_that_cannot_be_used_are_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ProblemSet.parse(text)


@pytest.mark.parametrize(("problem", "answer"), [("question", "answer"), ("Problem", "Answer")])
def test_fields_are_found_by_their_usual_names(tmp_path: Path, problem: str, answer: str) -> None:
    path = write_problems(tmp_path / "p.jsonl", 1, problem=problem, answer=answer)
    section = section_of(str(path), RunConfig())
    assert (section.problem_field, section.answer_field) == (problem, answer)


def test_a_file_without_such_fields_is_refused_with_its_own(tmp_path: Path) -> None:
    path = write_problems(tmp_path / "p.jsonl", 1, answer="solution")
    with pytest.raises(ProblemFileError, match=f"solution.*{ANSWER_FIELDS[0]}"):
        section_of(str(path), RunConfig())


@pytest.mark.parametrize(("problems", "samples"), [(1, 1), (64, 3), (65, 2), (500, 2)])
def test_shards_hold_each_sample_of_each_problem_once(problems: int, samples: int) -> None:
    shards = shards_of(problems, samples)
    assert [shard.number for shard in shards] == list(range(len(shards)))
    assert {shard.first_sample for shard in shards} == set(range(samples))
    fewer = shards_of(problems, 1)
    assert shards[: len(fewer)] == fewer


def test_contamination_of_two_files_is_told(cli: Cli, tmp_path: Path, sums: Path) -> None:
    training = write_problems(tmp_path / "training.jsonl", 5)
    rows = tmp_path / "found.parquet"
    done = cli.run("contamination", str(training), "--on", f"sums={sums}", "--to", str(rows))
    assert done.returncode == 0, done.stderr
    assert "sums: of 70 problems 5 are in the training set, 0 nearly" in done.stdout
    assert pl.read_parquet(rows)["kind"].to_list() == ["exact"] * 5
