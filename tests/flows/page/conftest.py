"""One handmade store for all tests of the pages; none of them needs Prefect."""

import pytest
from page_runs import make_store
from starlette.testclient import TestClient

from flows.page.app import make_app
from flows.page.reading import Reader
from storage import Store


@pytest.fixture(autouse=True)
def _use_the_server() -> None:
    """In place of the fixture that starts a server for all other tests of flows."""


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with runs of every sort; tests only read it."""
    return make_store(tmp_path_factory.mktemp("pages") / "store")


@pytest.fixture(scope="session")
def reader(store: Store) -> Reader:
    return Reader(store)


@pytest.fixture(scope="session")
def client(store: Store) -> TestClient:
    """Asks for pages without a network."""
    return TestClient(make_app(store), raise_server_exceptions=True)
