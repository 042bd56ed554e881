"""Commands for benchmarks: benchmark, contamination."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from flows.cli_options import (
    DEFAULT_STORE,
    IntoOption,
    RunOption,
    SetOption,
    StoreOption,
    chosen_run,
)
from flows.cli_train import in_session
from schemas.errors import ConfigError, TurnledgerError

if TYPE_CHECKING:
    import polars as pl

    from flows.asked import AskedRerun
    from flows.benchmark_report import BenchmarkReport
    from flows.benchmarks import Graded, ProblemSet
    from storage import Store

OnOption = Annotated[
    list[str],
    typer.Option(
        "--on",
        help="Benchmark as NAME=FILE (JSONL, Parquet or a dataset folder); NAME alone once its "
        "problems are stored; held_out for the embedded held-out problems. Repeatable.",
    ),
]


def benchmark(  # noqa: PLR0913, PLR0917, options of the command line
    on: OnOption,
    store: StoreOption = DEFAULT_STORE,
    run: RunOption = None,
    iteration: Annotated[
        int | None,
        typer.Option("--iteration", min=0, help="Policy to evaluate; left out, the last one."),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Samples a problem, k.")] = 1,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            help="Policy to compare with, as RUN or RUN:ITERATION; its results are stored.",
        ),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="File for the whole report: .md or .tex.")
    ] = None,
    into: IntoOption = None,
    overrides: SetOption = None,
) -> None:
    """Evaluates a stored policy on benchmarks: avg@k, pass@k, maj@k, with 95 % intervals.

    Turns are sampled, executed and graded as in training, with the temperature of evaluation.
    Results are stored in the run, under the benchmark's name; more samples or another benchmark
    compute only what is new. With other settings, the result goes into a branch. Problems that
    training asked too, or nearly, are told.

    Example: turnledger benchmark --run first --on math500=math500.jsonl --samples 8 --to first.md
    """
    from flows.asked import AskedRerun
    from flows.benchmark_report import write_report
    from flows.benchmarks import ProblemSet
    from storage import Store

    sets = [ProblemSet.parse(text) for text in on]
    _refuse_twice(sets)
    _check_report(to)
    opened = Store.open(store)
    source = chosen_run(opened, run)
    if iteration is None:
        iteration = opened.run_record(source).iterations_done
    asked = AskedRerun.of(
        opened,
        source,
        stage="evaluation",
        iteration=iteration,
        into=into,
        overrides=overrides or [],
    )
    report = _benchmark(asked, sets, samples, against)
    _print(report)
    if to is not None:
        write_report(report, to)
        typer.echo(f"report  {to}")


def _benchmark(
    asked: "AskedRerun", sets: "list[ProblemSet]", samples: int, against: str | None
) -> "BenchmarkReport":
    """Evaluates a policy on benchmarks and summarises the results."""
    from flows.benchmark_report import benchmark_report, other_policy
    from flows.policies import stored_policy
    from flows.sessions import check_inputs, refuse_imported

    store, source, iteration, config = asked.store, asked.source, asked.iteration, asked.config
    refuse_imported(store, source)
    stored_policy(store, source, iteration)
    other = None
    if against is not None:
        names = [chosen.name for chosen in sets]
        other = other_policy(store, *_policy(store, against), names)
    check_inputs(config, None, reads=(), shapes=False)
    name, graded = asked.in_target(lambda name: _grade_into(name, asked, sets, samples))
    return benchmark_report(
        *(store, name, iteration, graded),
        grading_time_s=config.turn_rewards.grading_time_s,
        other=other,
    )


def _grade_into(
    name: str, asked: "AskedRerun", sets: "list[ProblemSet]", samples: int
) -> "tuple[str, list[Graded]]":
    """Evaluates the policy in the run of that name, which is told as well."""
    from flows.reporters import TextReporter

    store, source, iteration, config = asked.store, asked.source, asked.iteration, asked.config
    typer.echo(f"benchmarks of {source}, iteration {iteration}, into {name}")
    graded: list[Graded] = []

    def work() -> None:
        from flows.benchmarks import benchmark as benchmark_flow
        from flows.prefect_server import prefect_started

        with prefect_started():
            graded[:] = benchmark_flow(store.url, source, name, iteration, sets, samples, config)

    in_session(store, name, config, asked.parent, work, TextReporter(), in_place=asked.in_place)
    return name, graded


def _policy(store: "Store", text: str) -> tuple[str, int]:
    """Reads RUN or RUN:ITERATION."""
    run, colon, iteration = text.partition(":")
    if colon and not iteration.isdecimal():
        raise ConfigError(f"--against {text}: write RUN or RUN:ITERATION")
    record = store.run_record(run)
    return record.name, int(iteration) if colon else record.iterations_done


def _print(report: "BenchmarkReport") -> None:
    from flows.benchmark_report import compared_table, notes, short_table

    console = Console()
    console.print(_laid_out(short_table(report), f"{report.title}, shares in percent"))
    if report.compared is not None:
        console.print(_laid_out(compared_table(report.compared), f"Against {report.against}"))
    for note in notes(report):
        console.print(note, markup=False, highlight=False)


def _laid_out(frame: "pl.DataFrame", title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None)
    for position, name in enumerate(frame.columns):
        table.add_column(name, justify="right" if position else "left")
    for row in frame.iter_rows():
        table.add_row(*("-" if value is None else str(value) for value in row))
    return table


def contamination(
    training: Annotated[Path, typer.Argument(help="Training problems: a file or folder.")],
    on: OnOption,
    to: Annotated[
        Path | None, typer.Option("--to", help="Parquet file for the rows with both texts.")
    ] = None,
) -> None:
    """Looks for benchmark problems that a training set holds too, exactly or nearly.

    Nothing is stored. Look before you train: take such rows out of the training set.

    Example: turnledger contamination problems.jsonl --on math500=math500.jsonl --to found.parquet
    """
    import polars as pl

    from flows.benchmarks import ProblemSet
    from flows.cli_options import write_frame
    from stages.contamination import find_contamination

    sets = [ProblemSet.parse(text) for text in on]
    _refuse_twice(sets)
    asked = pl.concat(
        _problems(chosen.path, f"--on {chosen.name}").with_columns(benchmark=pl.lit(chosen.name))
        for chosen in sets
    )
    found = find_contamination(asked, _problems(str(training), "the training set"))
    counts = found.group_by("benchmark", "kind").len()
    for chosen in sets:
        of_set = {kind: count for _, kind, count in counts.filter(benchmark=chosen.name).rows()}
        typer.echo(
            f"{chosen.name}: of {len(asked.filter(benchmark=chosen.name))} problems "
            f"{of_set.get('exact', 0)} are in the training set, {of_set.get('near', 0)} nearly"
        )
    if to is not None:
        write_frame(found, to)
        typer.echo(f"rows    {to}")


def _problems(path: str | None, what: str) -> "pl.DataFrame":
    from flows.benchmarks import section_of
    from schemas.config import RunConfig
    from storage import load_problems

    if path is None:
        raise ConfigError(f"{what}: name a file, as in --on NAME=FILE")
    fields = section_of(path, RunConfig())
    loaded = load_problems(
        path,
        problem_field=fields.problem_field,
        answer_field=fields.answer_field,
        id_field=fields.id_field,
    )
    return loaded.problems.select("task_id", "problem")


def _refuse_twice(sets: "list[ProblemSet]") -> None:
    names = [chosen.name for chosen in sets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"--on {twice} is given twice: take another name for one of them")


def _check_report(to: Path | None) -> None:
    from flows.benchmark_report import FORMATS

    if to is None:
        return
    if to.suffix not in FORMATS:
        raise TurnledgerError(
            f"{to} cannot be written: take a name that ends in {' or '.join(FORMATS)}"
        )
    if to.is_dir() or not to.parent.is_dir():
        reason = "it is a folder" if to.is_dir() else f"there is no folder {to.parent}"
        raise TurnledgerError(f"{to} cannot be written: {reason}")
