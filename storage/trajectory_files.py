"""Files of foreign trajectories: which can be read, and their raw rows.

Nothing is judged here beyond whether a line is a JSON object; see `stages.foreign`.
"""

from pathlib import Path

from schemas.errors import TrajectoryFileError
from storage.problem_sources import Source

SUFFIXES = (".jsonl", ".ndjson", ".parquet")


def find_trajectories(path: Path) -> Source:
    """Returns the file behind a path; its rows are read one by one.

    Raises:
        TrajectoryFileError: If it is missing, a folder or of an unknown type.
    """
    if path.is_dir():
        raise TrajectoryFileError(f"{path} is a folder: name one of its files")
    if not path.exists():
        raise TrajectoryFileError(f"trajectory file {path} does not exist")
    if path.suffix not in SUFFIXES:
        raise TrajectoryFileError(
            f"trajectory file {path} has an unknown type: take .jsonl (one JSON object a line) "
            "or .parquet"
        )
    return Source(path.stem, [path])
