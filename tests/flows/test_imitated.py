"""Cold starts on the trajectories of another run, and on conversations of a file."""

import json
from pathlib import Path

import polars as pl
import pytest
from small_runs import SMALL, Cli, sets

from flows.binding import Place
from flows.imitated import cold_start_settings
from flows.plan import plan_training
from flows.sampling_tasks import cold_start_task
from flows.sessions import check_inputs
from schemas.config import RunConfig
from schemas.config_text import parse_config
from schemas.errors import TurnledgerError
from storage import Store, open_table
from storage.garbage import drop_run, restore_run

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
FEW = (*SMALL, "cold_start.steps=3", "cold_start.learning_rate=1e-3", "iterations=0")
OF_RUN = (*FEW, "cold_start.run=source", "cold_start.only_right=false")
CHAT = {
    "messages": [
        {"role": "user", "content": "Take 12. Multiply it by 7."},
        {"role": "assistant", "content": "product<code>print(12 * 7)</code>"},
        {"role": "tool", "content": "84"},
        {"role": "assistant", "content": "<answer>84</answer>"},
    ]
}


def said(cli: Cli, *arguments: str) -> str:
    done = cli.run(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def train(cli: Cli, store: Path, run: str, *settings: str) -> str:
    return said(cli, "train", "--store", str(store), "--run", run, *sets(*settings))


def start(store: Path, run: str, settings: tuple[str, ...]) -> None:
    """Makes the cold start of a run as its training does, checks first, in this process."""
    config = parse_config(overrides=settings)
    place = Place(store=str(store), run=run, iteration=0)
    check_inputs(config, place)
    cold_start_task.here(place, config)


def refusal(store: Path, run: str, *settings: str) -> str:
    """Returns the one line with which a cold start is refused."""
    with pytest.raises(TurnledgerError) as raised:
        start(store, run, settings)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def store(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose run `imitator` has learnt from the first iteration of `source`."""
    folder = tmp_path_factory.mktemp("imitated") / "store"
    train(cli, folder, "source", *SMALL, "iterations=1")
    told = train(cli, folder, "imitator", *OF_RUN)
    assert "imitated 24 of 24 trajectories\n" in told
    return folder


# A run


def test_every_trajectory_of_the_run_is_learnt_as_it_was_sampled(store: Path) -> None:
    examples = open_table(store, "imitator", "cold_start_examples").collect()
    turns = open_table(store, "source", "turns").filter(iteration=1).collect()
    own = (
        examples.explode("token_ids", "carries_loss")
        .filter("carries_loss")
        .group_by("task_id", "sample_index")
        .agg("token_ids")
    )
    sampled = (
        turns.sort("turn_index")
        .explode("token_ids")
        .group_by("task_id", "sample_index", maintain_order=True)
        .agg("token_ids")
    )
    key = ["task_id", "sample_index"]
    assert own.sort(key).rows() == sampled.sort(key).rows()
    assert set(examples["sampled_in"]) == {1}


def test_the_policy_is_evaluated_and_its_tables_are_traced_to_the_run(store: Path) -> None:
    evaluated = open_table(store, "imitator", "evaluations", split="evaluation").collect()
    assert set(evaluated["iteration"]) == {0}
    slot = Place(store=str(store), run="imitator", iteration=0).slot("cold_start")
    manifest = Store.open(store).manifest(slot)
    assert manifest is not None
    assert {ref.name for ref in manifest.parents} == {
        *("prompts", "turns", "executions", "turn_rewards"),
    }
    assert all(ref.uri.startswith("run=source/iteration=0001/") for ref in manifest.parents)
    assert set(manifest.tables) == {"cold_start_examples", "cold_start_updates"}


def test_nothing_is_computed_again(cli: Cli, store: Path) -> None:
    assert "\n0 stage runs computed" in train(cli, store, "imitator", *OF_RUN)


def test_a_run_stays_with_what_it_learnt_from_when_the_other_goes_on_or_is_dropped(
    cli: Cli, store: Path
) -> None:
    train(cli, store, "source", *SMALL, "iterations=2")
    assert starts(store, "imitator") == [("hit", "unchanged")]
    assert "imitated 48 of 48 trajectories\n" in train(cli, store, "later", *OF_RUN)
    drop_run(Store.open(store), "source")
    try:
        for run in ("imitator", "later"):
            assert starts(store, run) == [("hit", "unchanged")]
        assert "cold_start.run: run source is not in" in refusal(store, "new", *OF_RUN)
    finally:
        restore_run(Store.open(store), "source")


def starts(store: Path, run: str, *settings: str) -> list[tuple[str, str]]:
    """Returns what a training would do with the cold start, and why."""
    place = Place(store=str(store), run=run, iteration=0)
    plan = plan_training(place, parse_config(overrides=settings or OF_RUN))
    return plan.filter(pl.col("stage") == "cold_start").select("action", "reason").rows()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["cold_start.run=bad"], "cold_start.run: run bad cannot imitate itself"),
        (["cold_start.run=nobody"], "cold_start.run: run nobody is not in"),
        (["cold_start.run=imitator"], "run imitator holds no scored trajectories: train it"),
        (["cold_start.run=theirs"], "run theirs holds imported trajectories, without token ids"),
        (["cold_start.run=source"], "run source: nothing is left to imitate: "),
        (
            ["cold_start.run=source", "policy.vocabulary_size=400"],
            "has other token ids here: take a policy with the tokenizer of that run",
        ),
        (
            ["cold_start.run=source", "cold_start.path=x.jsonl"],
            "run and path are both set: trajectories come from one of them",
        ),
    ],
)
def test_a_run_that_cannot_be_imitated_is_refused_in_one_line(
    cli: Cli, store: Path, settings: list[str], reason: str
) -> None:
    if "cold_start.run=theirs" in settings:
        said(cli, "import-trajectories", str(EXAMPLES / "trajectories.jsonl"), "--run", "theirs",
             "--store", str(store))  # fmt: skip
    assert reason in refusal(store, "bad", *FEW, *settings)


def test_a_refusal_ends_the_command_with_one_line(cli: Cli, store: Path) -> None:
    done = cli.run("train", "--store", str(store), "--run", "bad",
                   *sets(*FEW, "cold_start.run=nobody"))  # fmt: skip
    assert done.returncode == 1
    assert "cold_start.run: run nobody is not in" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


# A file


def test_a_file_is_learnt_and_what_is_left_out_is_told(
    cli: Cli, store: Path, tmp_path: Path
) -> None:
    silent = {"messages": CHAT["messages"][:1]}
    long = [*CHAT["messages"][:2], {"role": "tool", "content": "9" * 600}, CHAT["messages"][3]]
    file = written(tmp_path / "chats.jsonl", CHAT, silent, {"messages": long})
    told = train(cli, store, "of-file", *FEW, f"cold_start.path={file}")
    assert (
        "imitated 1 of 3 trajectories; left out: 1 no message of the assistant, "
        "1 longer than the context"
    ) in told or (
        "imitated 1 of 3 trajectories; left out: 1 longer than the context, "
        "1 no message of the assistant"
    ) in told
    examples = open_table(store, "of-file", "cold_start_examples").collect()
    assert examples["row"].to_list() == [1, 2, 3]
    assert examples["tokens"].is_null().to_list() == [False, True, False]


def test_a_file_counts_by_its_content_and_may_be_gone(
    cli: Cli, store: Path, tmp_path: Path
) -> None:
    file = written(tmp_path / "chats.jsonl", CHAT)
    settings = (*FEW, f"cold_start.path={file}")
    train(cli, store, "counted", *settings)
    written(file, CHAT, CHAT)
    assert starts(store, "counted", *settings) == [("run", "data file changed")]
    file.unlink()
    assert starts(store, "counted", *settings) == [("hit", "unchanged")]
    moved = written(tmp_path / "moved.jsonl", CHAT)
    told = train(cli, store, "counted", *FEW, f"cold_start.path={moved}")
    assert "\n0 stage runs computed" in told
    other = written(tmp_path / "other.jsonl", CHAT, CHAT)
    done = cli.run("train", "--store", str(store), "--run", "counted",
                   *sets(*FEW, f"cold_start.path={other}"))  # fmt: skip
    assert "run counted was made with other settings (cold_start.path" in done.stderr


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("none.jsonl", None, "trajectory file {file} does not exist"),
        ("page.txt", "Hello", "{file} has an unknown type: take .jsonl (one JSON object a line)"),
        ("page.jsonl", "Hello\n", "{file}: no row has fields: rows are not JSON"),
        ("other.jsonl", '{"a": 1}\n', "{file}: the format is not known, a row has a: take rows"),
        (
            "silent.jsonl",
            '{"messages": [{"role": "user", "content": "Hello?"}]}\n',
            "{file}: nothing is left to imitate: 1 no message of the assistant",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(
    store: Path, tmp_path: Path, name: str, text: str | None, reason: str
) -> None:
    file = tmp_path / name
    if text is not None:
        file.write_text(text)
    told = refusal(store, "bad-file", *FEW, f"cold_start.path={file}")
    assert reason.format(file=file) in told
    assert "cold_start.path: " in told


# What counts


def test_code_of_imitation_counts_only_where_there_is_any(store: Path) -> None:
    place = Place(store=str(store), run="new", iteration=0)
    codes = [
        cold_start_task.describe(place, parse_config(overrides=settings)).fingerprint.code
        for settings in (SMALL, OF_RUN)
    ]
    of_imitation = {"stages.cold_start.imitation", "stages.optimisation.packing"}
    assert of_imitation.isdisjoint(codes[0])
    assert of_imitation <= codes[1].keys()


def test_settings_of_imitation_count_only_where_there_is_any() -> None:
    demonstrated = cold_start_settings(RunConfig())
    assert {"run", "path", "only_right", "learning_rate"}.isdisjoint(demonstrated)
    imitated = cold_start_settings(parse_config(overrides=["cold_start.run=a"]))
    assert {"only_right", "learning_rate", "micro_batch_tokens", "dtype"} <= imitated.keys()
    assert {"run", "path"}.isdisjoint(imitated)
