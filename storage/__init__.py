"""Where tables live: references, atomic writes, digests, fingerprints, lineage.

Knows what a row is and nothing of stages, flows or models.
"""

from storage.closures import module_closure
from storage.fingerprints import Fingerprint, explain
from storage.found import Found
from storage.layout import Slot
from storage.problems import LoadedProblems, load_problems
from storage.runs import RunParent, RunRecord
from storage.scans import MissingTableError, RunTables, open_table, scan_errors, table_iterations
from storage.store import Store
from storage.verification import Verify

__all__ = [
    "Fingerprint",
    "Found",
    "LoadedProblems",
    "MissingTableError",
    "RunParent",
    "RunRecord",
    "RunTables",
    "Slot",
    "Store",
    "Verify",
    "explain",
    "load_problems",
    "module_closure",
    "open_table",
    "scan_errors",
    "table_iterations",
]
