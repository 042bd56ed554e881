"""What is asked for, by a command or by a deployment: settled and checked before anything runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from flows.binding import Place
from flows.catalogue import ORDER, Scope, check_stage
from flows.failed_branches import note_refused_branch, refuse_failed_branch
from flows.interrupts import interrupts_told
from flows.outside import PROBLEM_PATHS
from flows.sessions import (
    branch_config,
    branch_name,
    check_inputs,
    default_run_name,
    refuse_imported,
    session,
    visit,
)
from schemas.config import RunConfig
from schemas.errors import ConfigError, TurnledgerError
from storage import RunParent, Store

T = TypeVar("T")


@contextmanager
def holding(
    store: Store,
    run: str,
    config: RunConfig,
    parent: RunParent | None = None,
    *,
    in_place: bool = False,
) -> Iterator[None]:
    """Holds a run for the time of a flow, and makes interrupts known as what they are.

    Args:
        store: Where the run is.
        run: Name of the run.
        config: Settings of the flow.
        parent: Where a branch comes from; null for a run of its own.
        in_place: Whether the flow adds to a run that exists and leaves its state as it is.

    Raises:
        ConfigError: If the run exists with other settings.
        StoreError: If another process holds the run, or the name is that of a dropped run.
    """
    held = visit(store, run) if in_place else session(store, run, config, parent=parent)
    with held, interrupts_told():
        yield


def existing_store(store: str) -> Store | None:
    """Opens a store, if there is one."""
    is_there = "://" in store or Path(store).exists()
    return Store.open(store, create=True) if is_there else None


def checked_training(store: str, run: str | None, config: RunConfig) -> tuple[Store, str]:
    """Returns store and name of a run that can be trained, and makes the store.

    Args:
        store: Folder or address of the store.
        run: Name of the run; null names it by its settings.
        config: Its settings.

    Raises:
        TurnledgerError: If it would fail later; see `flows.sessions.check_inputs`.
    """
    name = run or default_run_name(config)
    there = existing_store(store)
    place = None if there is None else Place(store=there.url, run=name, iteration=0)
    if there is not None:
        refuse_imported(there, name)
        refuse_failed_branch(there, name)
    check_inputs(config, place)
    return Store.open(store, create=True), name


@dataclass(frozen=True, slots=True)
class AskedRerun:
    """A rerun, or an evaluation, as asked for."""

    store: Store
    source: str
    """Run that is branched."""
    into: str | None
    """Name of the branch; null for the next free one."""
    iteration: int
    scope: Scope
    overrides: list[str]
    old: RunConfig
    config: RunConfig

    @classmethod
    def of(
        cls,
        store: Store,
        source: str,
        *,
        stage: str,
        iteration: int,
        until: str | None = None,
        into: str | None = None,
        overrides: Sequence[str] = (),
    ) -> "AskedRerun":
        """Settles what is asked for.

        Args:
            store: Where the run is.
            source: The run.
            stage: First stage to compute.
            iteration: Iteration to run again.
            until: Last stage to compute; null for all that depend on the first.
            into: Name of the branch; null for the next free one.
            overrides: Changed settings, `key=value`; a key without a section is of the stage.

        Raises:
            ConfigError: If there is no such stage, a setting cannot be changed so, or a branch is
                to be the run itself.
            StoreError: If there is no such run.
        """
        if into == source:
            raise ConfigError(f"--into {into} is the run itself: name another one")
        scope, changes = Scope.of(check_stage(stage), until), list(overrides)
        old, config = branch_config(store, source, scope, changes)
        return cls(store, source, into, iteration, scope, changes, old, config)

    @property
    def in_place(self) -> bool:
        """Whether an evaluation adds to its run, since it changes nothing."""
        return self.scope.first == "evaluation" and self.config == self.old and self.into is None

    @property
    def parent(self) -> RunParent:
        """What the record of the branch says of where it comes from."""
        return RunParent(
            run=self.source,
            iteration=self.iteration,
            stage=self.scope.first,
            until=None if self.scope.last == ORDER[-1] else self.scope.last,
            overrides=self.overrides,
        )

    def target(self) -> str:
        """Returns the run that takes the results; a free name is not kept for the caller."""
        if self.in_place:
            return self.source
        return self.into or branch_name(self.store, self.source, self.parent, self.config)

    def in_target(self, work: Callable[[str], T]) -> T:
        """Does the work in the run that takes the results.

        Of two flows that find the same name free, one is refused by what the other made of it, and
        begins again with the next free one.

        Args:
            work: Takes the name, and holds the run before it changes anything.

        Raises:
            TurnledgerError: What the work raises in a run that is its own.
        """
        name = self.target()
        while True:
            try:
                return work(name)
            except TurnledgerError:
                refused, name = name, self.target()
                if name == refused:
                    raise

    def place(self) -> Place:
        """Returns the iteration that is run again."""
        return Place(store=self.store.url, run=self.source, iteration=self.iteration)

    def check(self) -> None:
        """Refuses what would fail later; a branch with a name of its own is noted as refused.

        Raises:
            TurnledgerError: If it would; see `flows.sessions.check_inputs`.
        """
        try:
            self._check()
        except TurnledgerError as error:
            if self.into is not None:
                note_refused_branch(self.store, self.into, self.config, self.parent, error)
            raise

    def _check(self) -> None:
        from flows.rerun import check_source, reads_problems

        old, scope = self.place(), self.scope
        check_source(self.store, old, scope, self.config)
        check_inputs(
            self.config,
            old.at(0),
            reads=PROBLEM_PATHS if reads_problems(old, scope, self.config) else (),
            samples=scope.samples,
            runs_code=scope.runs_code,
            shapes=scope.computes("similarity"),
        )

    def compute(self, into: str, *, refresh: bool = False) -> list[dict[str, Any]]:
        """Runs the flow, in a session, and notes in the record what it made.

        Args:
            into: The run that takes the results, as `target` names it.
            refresh: Whether to compute the first stage even if its result is stored.

        Returns:
            What changed, as `flows.rerun.rerun` returns it.

        Raises:
            StoreError: If the source lacks results that the rerun builds on.
        """
        from flows.rerun import rerun
        from flows.train import note_iteration

        changes = rerun(
            *(self.store.url, self.source, into, self.iteration, self.scope.first),
            config=self.config,
            until=self.parent.until,
            refresh=refresh,
        )
        if self.scope.needs("optimisation") and not self.in_place:
            note_iteration(self.place().model_copy(update={"run": into}))  # it holds the policy
        return changes
