"""Errors that a person can mend: one line that names the thing and says what to do."""


class TurnledgerError(Exception):
    """Base of every error whose message is meant for the user, shown without a traceback."""


class ConfigError(TurnledgerError):
    """A configuration key or value that cannot be used."""


class ProblemFileError(TurnledgerError):
    """A problem source that is missing, empty or unreadable."""


class TrajectoryFileError(TurnledgerError):
    """A file of foreign trajectories that is missing, of no known format, or unusable."""


class ImitationError(TurnledgerError):
    """Trajectories or conversations that a policy cannot learn from."""


class StoreError(TurnledgerError):
    """A store, run or table that is missing, damaged, too new or cannot be written."""


class StoreUnavailable(StoreError):
    """A store that cannot be reached just now; trying again may help."""


class PolicyError(TurnledgerError):
    """A policy folder that is missing or holds no causal language model and tokenizer."""


class EmbeddingError(TurnledgerError):
    """A folder that is missing or holds no text-embedding model."""


class ExecutorError(TurnledgerError):
    """Code execution that cannot be isolated on this machine or failed as a whole."""


class StageError(TurnledgerError):
    """A stage whose result cannot be what it says, such as rows that break their schema."""


class EngineError(TurnledgerError):
    """A rollout engine that does not start, answer or hold the right weights."""


class ClusterError(TurnledgerError):
    """A Ray or Dask cluster that is missing, lost a worker too often, or runs other code."""
