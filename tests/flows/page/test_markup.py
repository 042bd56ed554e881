"""What a policy wrote is text on every page: the elements do not depend on it."""

from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_addresses import addresses
from page_runs import PLAIN, RUN, make_store
from starlette.testclient import TestClient

from flows.page.app import make_app
from flows.page.reading import Reader
from flows.page.rendering import highlighted, token_text, visible
from flows.page.report import report_html

MARKUP = (
    '"\'><script>document.title = "HIT"</script><img src=x onerror="document.title = `HIT`">'
    "</pre></title></style><svg onload=\"document.title = 'HIT'\"><a href=javascript:hit()>"
    "{{ 7 * 7 }}<!-- \u202e\x1b[31m"
)
"""Markup that would do something wherever it were not escaped."""


class Elements(HTMLParser):
    """Lists the elements of a page with the names of their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.text = ""
        self._depth_of_code = 0
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # The words of code are coloured, so code makes spans; of these only the class may be told.
        if tag == "span" and self._depth_of_code:
            assert [name for name, _ in attrs] == ["class"]
            return
        self._depth_of_code += tag == "pre"
        self.found.append((tag, tuple(name for name, _ in attrs)))

    def handle_endtag(self, tag: str) -> None:
        self._depth_of_code -= tag == "pre"

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    """Pages of a store in which every text from outside holds markup."""
    texts = {name: f"{text}{MARKUP}" for name, text in PLAIN.items()}
    # Right and wrong stay what they are.
    texts |= {"gold": f"45{MARKUP}", "answer": f"45{MARKUP}", "code": f"{PLAIN['code']} # {MARKUP}"}
    return TestClient(make_app(make_store(tmp_path_factory.mktemp("hostile") / "store", texts)))


@pytest.mark.parametrize("name", addresses())
def test_elements_do_not_depend_on_texts(
    client: TestClient, hostile: TestClient, name: str
) -> None:
    plain = Elements(client.get(addresses()[name]).text)
    marked = Elements(hostile.get(addresses(PLAIN["task"] + MARKUP)[name]).text)
    assert marked.found == plain.found


@pytest.mark.parametrize("name", [*addresses(), "report"])
def test_no_page_has_scripts_styles_of_its_own_or_handlers(
    hostile: TestClient, tmp_path: Path, name: str
) -> None:
    if name == "report":
        texts = {key: f"{text}{MARKUP}" for key, text in PLAIN.items()}
        page = report_html(Reader(make_store(tmp_path / "store", texts)), RUN)
    else:
        page = hostile.get(addresses(PLAIN["task"] + MARKUP)[name]).text
    elements = Elements(page).found
    assert elements
    assert not {tag for tag, _ in elements} & {"script", "iframe", "object", "embed", "img", "base"}
    names = {attribute for _, attributes in elements for attribute in attributes}
    assert not {attribute for attribute in names if attribute.startswith("on")}
    assert not names & {"style", "srcdoc", "srcset", "formaction", "background"}


def test_markup_is_shown_as_it_was_written(hostile: TestClient) -> None:
    address = addresses(PLAIN["task"] + MARKUP)["trajectory"]
    text = Elements(hostile.get(address).text).text
    for part in ("task", "problem", "reasoning", "observation", "stdout", "stderr"):
        assert visible(f"{PLAIN[part]}{MARKUP}") in text
    assert visible(f"{PLAIN['code']} # {MARKUP}") in text


@pytest.mark.parametrize(
    "address",
    [
        "/runs/{}",
        "/compare?a={}&b=main",
        f"/runs/{RUN}/iterations/1?show={{}}",
        f"/runs/{RUN}/iterations/1?show=flips&against={{}}",
        f"/runs/{RUN}/iterations/1/trajectory?task={{}}",
        f"/runs/{RUN}/iterations/1/estimators?a={{}}",
        "/{}",
    ],
)
def test_an_error_shows_the_question_as_text(client: TestClient, address: str) -> None:
    question = "<script>document.title='HIT'<!script>"
    answer = client.get(address.format(question))
    assert answer.status_code in (400, 404)
    elements = Elements(answer.text)
    assert question in elements.text
    assert "script" not in {tag for tag, _ in elements.found}


@given(st.text())
@settings(deadline=None)
def test_coloured_code_says_what_the_code_says(code: str) -> None:
    assert Elements(f"<pre>{highlighted(code)}</pre>").text == visible(code)


@given(st.text())
def test_nothing_is_hidden_in_a_visible_text(text: str) -> None:
    shown = visible(text)
    assert all(c.isprintable() or c in "\n\t" for c in shown)
    assert "".join(c for c in text if c.isprintable()) == "".join(
        c for c in text if visible(c) == c and c not in "\n\t"
    )


@given(st.text())
def test_a_token_is_always_seen(text: str) -> None:
    shown = token_text(text)
    assert shown
    assert not any(c.isspace() for c in shown)
