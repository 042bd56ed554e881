"""A run as one file to send: figures, settings, and its most telling trajectories."""

from dataclasses import dataclass

from flows.page.conversation import Conversation, Key, conversation
from flows.page.overview import RunView, run_view
from flows.page.reading import Reader
from flows.page.rendering import render, style, style_digest
from flows.page.telling import KINDS, most_telling

TRAJECTORIES = 20


@dataclass(frozen=True, slots=True)
class Told:
    """A trajectory, and why it is in the report."""

    why: str
    figure: float | int
    """A whole number where it is a count."""
    shown: Conversation


def report_html(reader: Reader, run: str) -> str:
    """Returns the report of a run: HTML that asks for nothing from anywhere.

    Raises:
        NotFoundError: If there is no such run.
        StoreError: If a table of it cannot be read.
    """
    view: RunView = run_view(reader, run)
    chosen = most_telling(reader, run, TRAJECTORIES)
    told = [
        Told(
            KINDS[kind].says,
            int(figure) if KINDS[kind].is_count else figure,
            conversation(reader, Key(run, iteration, "train", task, sample)),
        )
        for iteration, task, sample, kind, figure in chosen.iter_rows()
    ]
    return render(
        "report.html", view=view, told=told, kinds=KINDS, style=style(), digest=style_digest()
    )
