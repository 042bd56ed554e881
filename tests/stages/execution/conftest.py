import pytest

from stages.execution import NamespaceExecutor
from tests.stages.execution.frames import isolated


@pytest.fixture
def executor() -> NamespaceExecutor:
    return isolated()


@pytest.fixture
def hasty_executor() -> NamespaceExecutor:
    """Ends a snippet after a second."""
    return isolated(wall_time_s=1.0)
