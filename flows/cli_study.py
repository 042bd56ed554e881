"""The command that trains and reports a study."""

import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.status import Status

from flows.cli_options import StoreOption, read_text
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from flows.study import Training
    from schemas.study import StudyConfig
    from storage import Store


def study(
    file: Annotated[Path, typer.Argument(help="TOML file of the study; see recipes/study.toml.")],
    store: StoreOption = "turnledger-study",
    piece: Annotated[
        list[str] | None,
        typer.Option("--piece", help="Part of the study; left out, all. Repeatable."),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, help="Trainings at once, each a process.")
    ] = 2,
    to: Annotated[
        Path | None, typer.Option("--to", help="Folder for the report, its figures and its tables.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Says what would be trained, and trains nothing.")
    ] = False,
    stored: Annotated[
        bool,
        typer.Option(
            "--stored", help="Reports what is stored, whatever code made it, and trains nothing."
        ),
    ] = False,
) -> None:
    """Trains every arm of a study on every task and seed, and reports what differs.

    First the learning rate of each arm is chosen by the same trainings on other seeds; then the
    pieces are trained. Each training is a run of the store. Interrupted or killed, the same command
    goes on: what is stored is not trained again.

    Example: turnledger study recipes/study.toml --piece main --to docs/study
    """
    from flows.study import piece_trainings, rates_in, tuned_rates, tuning_trainings
    from flows.study_report import write_study
    from schemas.study import parse_study
    from storage import Store

    asked = parse_study(read_text(file, "study"), name=str(file))
    pieces = _known_pieces(asked, piece)
    if to is not None and to.exists() and not to.is_dir():
        raise ConfigError(f"{to} is no folder: name one for the report")
    tuning = tuning_trainings(asked, pieces)
    if plan:
        _tell_plan(asked, pieces, tuning)
        return
    opened = Store.open(store, create=not stored)
    # Not that of SIGINT, which a shell has ignored in what it starts in the background.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not stored:
        _train(asked, opened, tuning, jobs, "tuning")
    tuned = tuned_rates(opened, tuning)
    rates = rates_in(tuned)
    trained = {}
    for name in pieces:
        trained[name] = piece_trainings(asked, name, rates)
        if not stored:
            _train(asked, opened, trained[name], jobs, name)
        _measure(opened, trained[name], name)
    report = write_study(opened, asked, tuned, trained, to)
    typer.echo(report)


def _known_pieces(study: "StudyConfig", asked: list[str] | None) -> list[str]:
    for name in asked or []:
        if name not in study.pieces:
            raise ConfigError(f"piece {name} is unknown; pieces: {', '.join(study.pieces)}")
    return list(dict.fromkeys(asked or study.pieces))


def _tell_plan(study: "StudyConfig", pieces: Sequence[str], tuning: "list[Training]") -> None:
    from flows.study import arms_of

    rates = ", ".join(f"{rate:g}" for rate in study.tuning.learning_rates)
    typer.echo(f"{study.name}: {study.title}")
    typer.echo(f"tuning  {len(tuning)} trainings on {study.tuning.task}, learning rates {rates}")
    for name in pieces:
        piece = study.pieces[name]
        arms = arms_of(piece)
        count = len(arms) * len(piece.tasks) * len(piece.seeds)
        typer.echo(
            f"{name}  {count} trainings: {', '.join(arms)} on {', '.join(piece.tasks)}, "
            f"{len(piece.seeds)} seeds"
        )


def _train(
    study: "StudyConfig", store: "Store", trainings: "list[Training]", jobs: int, part: str
) -> None:
    """Trains what is not trained yet, with the cold starts that it shares first."""
    from prefect.task_runners import ThreadPoolTaskRunner

    from flows.prefect_server import check_prefect_home, prefect_started
    from flows.sessions import check_inputs
    from flows.study import is_trained, starts_of, train_all

    console = Console()
    with console.status(f"{part}: looking for what is trained"):
        missing = [one for one in trainings if not is_trained(store, one)]
    stored = len(trainings) - len(missing)
    console.print(f"{part}: {stored} of {len(trainings)} trainings are stored", highlight=False)
    if not missing:
        return
    check_prefect_home()
    check_inputs(missing[0].config, None)
    starts = [one for one in starts_of(study, missing) if not is_trained(store, one)]
    runner: Any = ThreadPoolTaskRunner(max_workers=jobs)
    telling = Teller(console, len(starts) + len(missing))
    with _interrupts_told(), telling as teller, prefect_started():
        flow = train_all.with_options(task_runner=runner)
        flow(store.url, [starts, missing], teller.note)


def _measure(store: "Store", trainings: "list[Training]", part: str) -> None:
    """Measures the gradient noise of the first and last updates, where it is not stored."""
    from flows.gradients import is_measured, measure_gradients
    from flows.prefect_server import check_prefect_home, prefect_started
    from flows.study import measured_updates

    with Console().status(f"{part}: gradient noise") as status:
        updates = measured_updates(store, trainings)
        missing = [place for place in updates if not is_measured(place)]
        if not missing:
            return

        def tell(done: int) -> None:
            status.update(f"{part}: gradient noise, {done} of {len(missing)} updates")

        check_prefect_home()
        with _interrupts_told(), prefect_started():
            measure_gradients(missing, tell)


@contextmanager
def _interrupts_told() -> Iterator[None]:
    from flows.interrupts import told_as_ctrl_c

    try:
        with told_as_ctrl_c():
            yield
    except KeyboardInterrupt as error:
        typer.echo("interrupted: the same command goes on", err=True)
        raise typer.Exit(130) from error


class Teller:
    """Tells how far the trainings of a study are: a line for each that is done, and what runs."""

    def __init__(self, console: Console, count: int) -> None:
        """Begins with none done.

        Args:
            console: Where it is told.
            count: Trainings to come.
        """
        self._console, self._count = console, count
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._done = 0
        self._at: dict[str, str] = {}
        self._accuracy: dict[str, list[float]] = {}
        self._status: Status = console.status("begins")

    def __enter__(self) -> "Teller":
        self._status.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._status.stop()

    def note(self, run: str, fact: Mapping[str, Any]) -> None:
        """Takes in what a training said; called from several threads."""
        with self._lock:
            if fact["event"] == "evaluation" and fact["avg_at_k"] is not None:
                self._accuracy.setdefault(run, []).append(fact["avg_at_k"])
            if fact["event"] in ("begin", "iteration"):
                self._at[run] = f"{run} {fact.get('iteration', 0)}"
            if fact["event"] == "end":
                self._at.pop(run, None)
                if fact["status"] == "finished":
                    self._tell_done(run, fact["seconds"])
            self._status.update(", ".join(self._at.values()) or "begins")

    def _tell_done(self, run: str, seconds: float) -> None:
        self._done += 1
        gone = time.monotonic() - self._began
        left = gone / self._done * (self._count - self._done)
        found = self._accuracy.get(run, [])
        accuracy = f"  avg@k {found[0]:.2f} -> {found[-1]:.2f}" if found else ""
        self._console.print(
            f"[{self._done}/{self._count}] {run}{accuracy}  {seconds:.0f} s, "
            f"{left / 60:.0f} min left",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
