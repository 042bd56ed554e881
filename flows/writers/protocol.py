"""What a target for figures must be able to do."""

from collections.abc import Collection, Sequence
from typing import Protocol

from flows.writers.points import Key, Point


class Writer(Protocol):
    """Takes the figures of one run."""

    def known(self) -> Collection[Key]:
        """Returns the figures that are there already.

        Raises:
            TurnledgerError: If the target cannot be read.
        """

    def write(self, points: Sequence[Point]) -> None:
        """Adds figures; they are kept when this returns.

        Raises:
            TurnledgerError: If the target cannot be written.
        """

    def close(self, status: str) -> None:
        """Ends the writing.

        Args:
            status: State of the run, as in its record.

        Raises:
            TurnledgerError: If the target cannot be written.
        """
