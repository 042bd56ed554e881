"""References: the small JSON values that flow through the scheduler in place of frames."""

from pydantic import BaseModel, ConfigDict

FOREIGN = "foreign"
"""Name of a reference to files from outside the store."""


class Ref(BaseModel):
    """Points at one output of one stage run inside a store.

    A reference is enough to find, verify and read the output; it never holds rows.
    """

    model_config = ConfigDict(frozen=True)

    uri: str
    """Path relative to the store root, with `/` between the parts."""
    name: str
    """Name of the table (`turns`, `advantages`, ...), or `policy` for a checkpoint."""
    digest: str
    """SHA-256 of the bytes, hexadecimal: of the file, or of a folder's files and names."""
    content: str
    """SHA-256 of what counts as data: of the table written without its measured columns.

    Equal to `digest` where nothing is measured. Results that depend on this output are looked up
    by it, so that a timing which differs does not make them run again.
    """


class TableRef(Ref):
    """Points at one stored Parquet table."""

    rows: int
    """Number of rows, so that a flow can branch without opening the file."""
    schema_version: int
    """Version of the table's schema when it was written."""


class CheckpointRef(Ref):
    """Points at one stored policy: a Hugging Face folder with optimiser state beside it."""

    policy_version: int
    """Number of optimisation stages that made this policy; 0 is the cold start."""


class StageOutput(BaseModel):
    """What one stage run returns to its flow."""

    model_config = ConfigDict(frozen=True)

    tables: dict[str, TableRef] = {}
    checkpoint: CheckpointRef | None = None
