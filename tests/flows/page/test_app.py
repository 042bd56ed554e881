"""Addresses and what they answer, whatever is asked."""

import re
from html import escape, unescape
from pathlib import Path

import pytest
from page_addresses import addresses
from page_runs import BENCHMARK, BRANCH, RUN, make_store
from starlette.testclient import TestClient

from flows.page.app import HEADERS, make_app
from flows.page.links import iteration_url, run_url, trajectory_url
from storage import Store


@pytest.mark.parametrize("name", addresses())
def test_page_is_there(client: TestClient, name: str) -> None:
    answer = client.get(addresses()[name])
    assert answer.status_code == 200
    assert answer.text.count("<h1>") == 1


@pytest.mark.parametrize(
    ("address", "status", "says"),
    [
        ("/nothing", 404, "there is no page /nothing"),
        ("/runs/nobody", 404, "there is no run nobody in this store"),
        ("/runs/..%2F..", 404, "there is no page /runs/../.."),
        ("/runs/%00", 404, "there is no run \\x00 in this store"),
        ("/runs/nobody/timeline", 404, "there is no run nobody"),
        ("/compare?a=nobody&b=main", 404, "there is no run nobody"),
        (f"/runs/{RUN}/iterations/9", 404, "has no iteration 9: it has 0 to 2"),
        (f"/runs/{RUN}/iterations/1?split=evaluation", 404, "has no evaluation 1: it has 0 to 2"),
        (
            f"/runs/{RUN}/iterations/2?split=evaluation&show=shaped",
            400,
            "take one of all, timeouts",
        ),
        ("/runs/empty/iterations/1", 404, "has no iteration 1: it has none yet"),
        (f"/runs/{RUN}/iterations/{10**30}", 404, "there is no iteration 1000"),
        (f"/runs/{RUN}/iterations/one", 404, "there is no page"),
        (f"/runs/{RUN}/iterations/1?page=2", 404, "there is no page 2: there are 1"),
        (f"/runs/{RUN}/iterations/1?page=0", 404, "there is no page 0: there are 1"),
        (f"/runs/{RUN}/iterations/1?page=-1", 400, "page=-1 cannot be used: take a whole number"),
        (f"/runs/{RUN}/iterations/1?page=²", 400, "page=² cannot be used"),
        (f"/runs/{RUN}/iterations/1?show=best", 400, "show=best cannot be used: take one of all,"),
        (f"/runs/{RUN}/iterations/1?split=Te/st", 400, "split=Te/st cannot be used"),
        (f"/runs/{RUN}/iterations/1?split=sums", 404, "has no benchmark sums of iteration 1: it"),
        (f"/runs/{RUN}/iterations/1?split=test", 404, "test of iteration 1: it has none yet"),
        (f"/runs/{RUN}/iterations/1?show=flips", 400, "show=flips needs the other run"),
        (f"/runs/{RUN}/iterations/1?show=flips&against=nobody", 404, "there is no run nobody"),
        (f"/runs/{RUN}/iterations/1/trajectory", 400, "names its task: add task=TASK"),
        (f"/runs/{RUN}/iterations/1/trajectory?task=sum&sample=x", 400, "sample=x cannot be used"),
        (f"/runs/{RUN}/iterations/1/trajectory?task=sum&sample=99", 404, "no trajectory 99"),
        (f"/runs/{RUN}/iterations/1/trajectory?task=nobody", 404, "of task nobody"),
        (f"/runs/{RUN}/iterations/7/trajectory?task=sum", 404, "no trajectory 0 of task sum"),
        (f"/runs/{RUN}/iterations/9/estimators", 404, "no shaped_rewards of iteration 9"),
        (f"/runs/{RUN}/iterations/1/estimators?a=best", 404, "there is no estimator best"),
        (f"/compare?a={RUN}&b={BRANCH}&iteration=x", 400, "iteration=x cannot be used"),
        (f"/runs/{RUN}/timeline?iteration=99999999999", 400, "iteration=99999999999 cannot be"),
    ],
)
def test_what_is_not_there_is_told_in_one_line(
    client: TestClient, address: str, status: int, says: str
) -> None:
    answer = client.get(address)
    assert answer.status_code == status
    (line,) = [line for line in answer.text.splitlines() if line.startswith('<p class="text">')]
    assert says in line
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    "address", ["/", "/style.css", "/nothing", "/compare?a=main&b=main&iteration=x"]
)
def test_every_answer_forbids_scripts(client: TestClient, address: str) -> None:
    answer = client.get(address)
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "unsafe" not in answer.headers["Content-Security-Policy"]


def test_a_benchmark_leads_from_the_run_to_its_trajectories(client: TestClient) -> None:
    address = iteration_url(RUN, 2, split=BENCHMARK)
    assert f'href="{escape(address)}"' in client.get(run_url(RUN)).text
    groups = client.get(address).text
    assert f"<title>Benchmark {BENCHMARK}, iteration 2 of {RUN}" in groups
    trajectory = trajectory_url(RUN, 2, "sum", 0, BENCHMARK)
    assert f'href="{escape(trajectory)}' in groups
    assert f"Benchmark {BENCHMARK}, iteration 2 of {RUN}" in client.get(trajectory).text


def test_nothing_can_be_sent(client: TestClient) -> None:
    answer = client.post("/")
    assert answer.status_code == 405
    assert "Method Not Allowed" in answer.text


def test_other_names_of_a_loopback_address_are_refused(store: Store) -> None:
    app = make_app(store, hosts=["127.0.0.1", "localhost"])
    assert TestClient(app, base_url="http://127.0.0.1:8321").get("/").status_code == 200
    assert TestClient(app, base_url="http://evil.example:8321").get("/").status_code == 400


def test_a_damaged_table_is_told_in_one_line(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    (file,) = store.root.glob(f"run={RUN}/iteration=0001/**/advantages.parquet")
    file.write_bytes(b"")
    client = TestClient(make_app(store))
    for address in (f"/runs/{RUN}", f"/runs/{RUN}/iterations/1", "/compare?a=main&b=gamma-50"):
        answer = client.get(address)
        assert answer.status_code == 500
        assert f"damaged file {file}" in answer.text
    assert client.get(f"/runs/{BRANCH}").status_code == 200


def test_a_damaged_record_does_not_hide_the_others(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    (store.root / f"run={BRANCH}" / "run.json").write_text("{}")
    client = TestClient(make_app(store))
    runs = client.get("/")
    assert "damaged run record" in runs.text
    assert f'href="/runs/{RUN}"' in runs.text
    answer = client.get(f"/runs/{BRANCH}")
    assert answer.status_code == 500
    assert "damaged run record" in answer.text


def test_pages_of_a_bucket_are_those_of_a_folder(client: TestClient, s3: str) -> None:
    store = make_store(s3)
    in_bucket = TestClient(make_app(store))
    for name in ("iteration", "trajectory", "estimators", "evaluation"):
        address = addresses()[name]
        assert in_bucket.get(address).text == client.get(address).text


def test_no_link_leads_to_an_error(client: TestClient) -> None:
    seen, found = set[str](), ["/"]
    failed = []
    while found:
        address = found.pop()
        if address in seen:
            continue
        seen.add(address)
        answer = client.get(address)
        if answer.status_code != 200:
            failed.append(address)
        links = re.findall(r'<a [^>]*href="(/[^"#]*)', answer.text)
        found += [unescape(link) for link in links]
    assert len(seen) > 50
    assert sorted(failed) == []
