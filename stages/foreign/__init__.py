"""Foreign trajectories: rows of other projects' files in, the tables of a rollout out.

One module a format (`turns`, `verl`, `trl`, `verifiers`); all make the record of
`stages.foreign.record`, and `stages.foreign.frames` makes tables of it. Nothing here opens a file,
runs code or grades an answer.
"""

from stages.foreign.frames import ImportedTables
from stages.foreign.reading import FORMATS, format_of, read_trajectories

__all__ = ["FORMATS", "ImportedTables", "format_of", "read_trajectories"]
