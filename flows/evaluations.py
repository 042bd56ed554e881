"""What evaluations found, as values with names, and as lines for a person."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import polars as pl

from schemas.refs import StageOutput
from stages.evaluation import summarise
from storage import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationDone:
    """What an evaluation found on one benchmark."""

    kind: ClassVar[str] = "evaluation"

    iteration: int
    benchmark: str
    problems: int
    samples: int
    """Samples a problem, k of avg@k."""
    avg_at_k: float | None
    low: float | None
    """Lower end of the 95 % interval of avg@k."""
    high: float | None
    """Upper end of it."""
    pass_at_k: float | None

    @property
    def lines(self) -> list[str]:
        """Says it to a person."""
        return [
            f"evaluation {self.iteration:2d}  avg@{self.samples} {number_text(self.avg_at_k)} "
            f"({number_text(self.low)} to {number_text(self.high)}) "
            f"on {self.problems} held-out problems"
        ]


def evaluation_facts(store: Store, iteration: int, output: StageOutput) -> Iterator[EvaluationDone]:
    """Yields what an evaluation found, benchmark by benchmark."""
    yield from found_in(iteration, store.read(output.tables["evaluations"]))


def found_in(iteration: int, evaluations: pl.DataFrame) -> Iterator[EvaluationDone]:
    """Yields what evaluated samples of one policy say, benchmark by benchmark.

    Args:
        iteration: Which made the policy.
        evaluations: The columns that `stages.evaluation.summarise` reads.
    """
    wanted = [name for name in EvaluationDone.__slots__ if name != "iteration"]
    for row in summarise(evaluations).iter_rows(named=True):
        yield EvaluationDone(iteration=iteration, **{name: row[name] for name in wanted})


def number_text(value: float | None) -> str:
    """Writes a number with two decimals; nothing known is a dash."""
    return "-" if value is None else f"{value:.2f}"
