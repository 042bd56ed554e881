import pytest

from stages.execution import SandboxExecutor
from tests.stages.execution.frames import isolated


@pytest.fixture(scope="package")
def executor() -> SandboxExecutor:
    return isolated()


@pytest.fixture(scope="package")
def hasty_executor() -> SandboxExecutor:
    """Ends a snippet after a second."""
    return isolated(wall_time_s=1.0)
