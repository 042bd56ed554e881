"""Values of the columns that hold one of a few words, each with its meaning."""

from enum import StrEnum


class FinishReason(StrEnum):
    """Why generation of a turn stopped."""

    CODE = "code"
    """A tool call was closed; an execution follows."""
    ANSWER = "answer"
    """A final answer was closed; the trajectory ends."""
    END = "end"
    """The policy ended its turn with neither call nor answer; the trajectory ends."""
    LENGTH = "length"
    """The token limit of the turn was reached; the trajectory ends."""
    CONTEXT = "context"
    """The context, or the trajectory's token limit, left no more room; the trajectory ends."""


class ParseError(StrEnum):
    """What is wrong with a turn's tool call or answer."""

    UNCLOSED_CODE = "unclosed_code"
    """A call that was opened and not closed, or closed and not opened."""
    EMPTY_CODE = "empty_code"
    SYNTAX_ERROR = "syntax_error"
    """The code is no Python; it is executed all the same, so that the policy sees the error."""
    UNCLOSED_ANSWER = "unclosed_answer"
    MALFORMED_CALL = "malformed_call"
    """A tool call that is no JSON object with the name of the tool and its code."""


class ExecutionStatus(StrEnum):
    """What happened to a snippet, decided by the parent process and never by its output."""

    OK = "ok"
    ERROR = "error"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    OUTPUT_LIMIT = "output_limit"
    REFUSED = "refused"
    INFRASTRUCTURE = "infrastructure"
    """The machine failed, not the snippet: never scored as a wrong answer."""


class Verdict(StrEnum):
    """Outcome of comparing a final answer with the gold answer."""

    RIGHT = "right"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    TIMEOUT = "timeout"
    """The comparison itself did not end in time; counted as wrong, and told apart."""


class GradingMethod(StrEnum):
    """What decided a verdict; cheap methods first, the first that can decide does."""

    ABSENT = "absent"
    """There is no answer to compare."""
    TEXT = "text"
    """Equal texts after normalisation; or words, or letters of a choice, that differ."""
    NUMBER = "number"
    """Exact numbers, element by element in tuples, intervals and matrices."""
    FORM = "form"
    """Forms that cannot be equal: several numbers for one, other bases, other sizes of matrices."""
    CAP = "cap"
    """Too long, too deeply nested or too costly to be evaluated, and not the gold text: wrong."""
    MATH_VERIFY = "math_verify"
    """math-verify; also where it did not end in time."""


class Shaping(StrEnum):
    """What similarity shaping did to a trajectory."""

    RIGHT = "right"
    """Right already: accuracy stays 1."""
    SHAPED = "shaped"
    """Wrong with code, and the group has right peers with code."""
    NO_PEERS = "no_peers"
    """No right trajectory with code in the group: nothing to resemble."""
    NO_CODE = "no_code"
    """The trajectory holds no code."""
    EXCLUDED = "excluded"
    """The trajectory was left out before."""


class Excluded(StrEnum):
    """Why a turn is left out of the update. Such turns stay in the tables."""

    INFRASTRUCTURE = "infrastructure"
    """An execution of the trajectory failed for reasons outside the policy."""
    ZERO_OUTCOME_VARIANCE = "zero_outcome_variance"
    """All trajectories of the group are right, or all are wrong, and such groups are dropped."""
    ZERO_RETURN_VARIANCE = "zero_return_variance"
    """All returns of the normalisation set are equal: there is nothing to learn from."""
