"""One folder in which all pages are tried, with a real Prefect server and the run `small`."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from docs_pages import DOCS, ROOT
from docs_workplace import TRAIN, Workplace


@pytest.fixture(scope="session")
def workplace(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    folder = tmp_path_factory.mktemp("docs")
    (folder / "docs").symlink_to(DOCS)
    (folder / "recipes").symlink_to(ROOT / "recipes")
    environment = _environment(folder / "prefect") | {"PREFECT_API_URL": prefect_server}
    made = Workplace(folder=folder, environment=environment)
    done = made.run(TRAIN)
    assert done.returncode == 0, done.stderr
    return made


def _environment(home: Path) -> dict[str, str]:
    """Returns this process's environment, with our commands and without a user's settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "TURNLEDGER_"))}
    return kept | {
        "COLUMNS": "160",
        "DO_NOT_TRACK": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
