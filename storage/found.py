"""What a look for a stored result tells."""

from dataclasses import dataclass

from schemas.refs import StageOutput


@dataclass(frozen=True, slots=True)
class Found:
    """Answer of `Store.find` and `Store.look`."""

    output: StageOutput | None
    """The verified result; null if the stage must run."""
    reason: str
    """Why there is a result, or why the stage must run, in one line."""
    expected: StageOutput | None = None
    """What running the stage will give again: the slot has a result of this fingerprint, and its
    files are damaged or missing. Null in all other cases."""

    seconds: float | None = None
    """Wall time that computing the result took; null without one."""

    @property
    def is_hit(self) -> bool:
        """Whether there is a result."""
        return self.output is not None
