"""The pages in a real Chromium: nothing that a policy wrote runs, a keyboard is enough."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from browsers import FAINT_TEXTS, OPEN_ALL, chromium, window
from page_addresses import addresses
from page_runs import BRANCH, PLAIN, RUN, make_store
from playwright.sync_api import Browser, Page, expect

from flows.cli_page import listen
from flows.page.app import LOOPBACK, make_app
from flows.page.reading import Reader
from flows.page.rendering import DASH, MINUS, heat, visible
from flows.page.report import report_html
from storage import Store

SORTS = ("runs", "run", "iteration", "trajectory", "comparison", "estimators", "timeline")
MARKUP = (
    '"\'><script>document.title = "HIT"</script><img src=x onerror="document.title = `HIT`">'
    "</pre></title></style><svg onload=\"document.title = 'HIT'\"></svg>"
    '<iframe srcdoc="<script>parent.document.title = `HIT`</script>"></iframe>{{ 7 * 7 }}'
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def hostile_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store in which every text from outside holds markup."""
    texts = {name: f"{text}{MARKUP}" for name, text in PLAIN.items()}
    texts["code"] = f"{PLAIN['code']} # {MARKUP}"
    return make_store(tmp_path_factory.mktemp("hostile") / "store", texts)


@pytest.fixture(scope="session")
def served(store: Store) -> Iterator[str]:
    yield from _serve(store)


@pytest.fixture(scope="session")
def hostile(hostile_store: Store) -> Iterator[str]:
    yield from _serve(hostile_store)


def _serve(store: Store) -> Iterator[str]:
    listening = listen("127.0.0.1", 0)
    config = uvicorn.Config(make_app(store, hosts=[*LOOPBACK]), log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def assert_nothing_ran(page: Page, text: str) -> None:
    """Asserts that no markup of a text became elements, and that the text itself is read."""
    assert page.title() != "HIT"
    assert page.locator("script, img, iframe").count() == 0
    assert page.evaluate("document.documentElement.textContent").count(text) >= 1


def test_markup_in_texts_does_nothing(browser: Browser, hostile: str) -> None:
    with window(browser) as page:
        for name, address in addresses(PLAIN["task"] + MARKUP).items():
            page.goto(hostile + address)
            assert page.title() != "HIT", name
            assert page.locator("script, img, iframe").count() == 0, name


def test_a_conversation_shows_markup_as_text(browser: Browser, hostile: str) -> None:
    with window(browser) as page:
        page.goto(hostile + addresses(PLAIN["task"] + MARKUP)["trajectory"])
        for part in ("task", "problem", "reasoning", "observation", "stdout"):
            assert_nothing_ran(page, visible(f"{PLAIN[part]}{MARKUP}"))
        code = page.locator("pre.code").first.text_content()
        assert code == f"{PLAIN['code']} # {MARKUP}"


@pytest.mark.parametrize("address", ["/runs/{}", "/compare?a={}&b=main", "/{}"])
def test_markup_in_an_address_does_nothing(browser: Browser, served: str, address: str) -> None:
    question = "%3Cscript%3Edocument.title='HIT'%3C!script%3E%3Cimg src=x onerror=hit()%3E"
    with window(browser) as page:
        page.goto(served + address.format(question))
        assert_nothing_ran(page, "<script>document.title='HIT'<!script><img src=x onerror=hit()>")


def test_the_policy_of_the_page_stops_a_script_that_got_in(browser: Browser, served: str) -> None:
    with window(browser) as page:
        page.goto(served)
        page.evaluate(
            "const script = document.createElement('script');"
            "script.textContent = \"document.title = 'HIT'\"; document.body.append(script)"
        )
        assert page.title() != "HIT"


def test_no_page_makes_the_browser_complain(browser: Browser, served: str) -> None:
    said: list[str] = []
    with window(browser) as page:
        page.on("console", lambda message: said.append(f"{page.url}: {message.text}"))
        for address in addresses().values():
            page.goto(served + address)
    assert said == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", [*SORTS, "flips", "void trajectory", "empty run"])
def test_all_texts_have_contrast(browser: Browser, served: str, name: str, scheme: str) -> None:
    with window(browser, color_scheme=scheme) as page:
        page.goto(served + addresses()[name])
        page.evaluate(OPEN_ALL)
        texts = page.evaluate(FAINT_TEXTS)
    assert texts["seen"] > 3
    assert texts["found"] == []


def test_the_measure_of_contrast_finds_faint_text(browser: Browser, served: str) -> None:
    with window(browser) as page:
        page.goto(served)
        page.evaluate("document.querySelector('h1').style.color = '#aaaaaa'")
        assert [text for text, *_ in page.evaluate(FAINT_TEXTS)["found"]] == ["Runs"]


def test_every_colour_of_a_heat_strip_has_contrast(browser: Browser, served: str) -> None:
    steps = {heat(advantage / 4) for advantage in range(-12, 13)} | {heat(None)}
    assert len(steps) == 10
    with window(browser) as page:
        page.goto(served + addresses()["iteration"])
        for step in steps:
            page.evaluate(
                "step => document.querySelectorAll('td.cell').forEach(c => c.className = step)",
                f"cell {step}",
            )
            assert page.evaluate(FAINT_TEXTS)["found"] == [], step


@pytest.mark.parametrize("name", SORTS)
def test_a_page_has_title_language_landmarks_and_headings_in_order(
    browser: Browser, served: str, name: str
) -> None:
    with window(browser) as page:
        page.goto(served + addresses()[name])
        assert page.title().endswith(f"{DASH} turnledger")
        assert page.locator("html[lang=en]").count() == 1
        for landmark in ("main", "header", "header nav[aria-label]"):
            assert page.locator(landmark).count() == 1, landmark
        headings = page.eval_on_selector_all(
            "h1, h2, h3, h4", "found => found.map(h => Number(h.tagName[1]))"
        )
        assert headings.count(1) == 1
        assert all(b - a <= 1 for a, b in zip([0, *headings], headings, strict=False))


@pytest.mark.parametrize("name", SORTS)
def test_tables_and_drawings_say_what_they_are(browser: Browser, served: str, name: str) -> None:
    with window(browser) as page:
        page.goto(served + addresses()[name])
        assert page.locator("th:not([scope])").count() == 0
        assert page.locator("table:not(:has(caption))").count() == 0
        unnamed = page.locator("svg:not([aria-hidden]):not([aria-label])")
        assert unnamed.count() == 0
        ids = page.eval_on_selector_all("[id]", "found => found.map(e => e.id)")
        assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", SORTS)
def test_every_link_and_control_is_reached_by_keyboard_and_seen(
    browser: Browser, served: str, name: str
) -> None:
    wanted = "a[href], button, select, summary, [tabindex='0']"
    with window(browser) as page:
        page.goto(served + addresses()[name])
        page.evaluate(OPEN_ALL)
        count = page.locator(wanted).count()
        assert count > 2
        reached = set()
        for _ in range(count):
            page.keyboard.press("Tab")
            number, outline = page.evaluate(
                f"""() => {{
                    const focused = document.activeElement;
                    const style = getComputedStyle(focused);
                    const all = [...document.querySelectorAll("{wanted}")];
                    return [all.indexOf(focused), style.outlineStyle + style.outlineWidth];
                }}"""
            )
            assert outline == "solid3px"
            reached.add(number)
    assert reached == set(range(count))


def test_the_first_tab_leads_past_the_navigation(browser: Browser, served: str) -> None:
    with window(browser) as page:
        page.goto(served)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "To the content"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"


def test_a_narrow_window_scrolls_tables_and_not_the_page(browser: Browser, served: str) -> None:
    with window(browser, viewport={"width": 360, "height": 700}) as page:
        for name, address in addresses().items():
            page.goto(served + address)
            page.evaluate(OPEN_ALL)
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, name


def test_a_filter_is_used_by_keyboard_and_makes_an_address(browser: Browser, served: str) -> None:
    with window(browser) as page:
        page.goto(served + addresses()["iteration"])
        page.get_by_label("Show").focus()
        page.keyboard.type("with a timeout")
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(page.locator("section.group")).to_have_count(1)
        assert "show=timeouts" in page.url
        shared = page.url
    with window(browser) as page:
        page.goto(shared)
        expect(page.locator("section.group h2")).to_have_text(["slow"])


def test_links_lead_from_the_list_of_runs_to_a_turn(browser: Browser, served: str) -> None:
    with window(browser) as page:
        page.goto(served)
        page.get_by_role("link", name=BRANCH, exact=True).click()
        page.get_by_role("link", name=f"Compare with {RUN}").click()
        page.get_by_role("link", name="sum, sample 0, turn 1").first.click()
        assert page.url.endswith("#turn-1")
        expect(page.locator("h1")).to_have_text("Sample 0 of sum")


def test_log_probabilities_are_there_on_hover_and_without(browser: Browser, served: str) -> None:
    with window(browser) as page:
        page.goto(served + addresses()["trajectory"])
        page.locator("summary", has_text="As sampled").first.press("Enter")
        token = page.locator(".token").first
        expect(token).to_be_visible()
        assert token.get_attribute("title") == f"token 0: log-probability {MINUS}0.250"
        expect(token).to_have_text(f"one·{MINUS}0.25")


def test_a_report_asks_for_nothing_and_runs_nothing(
    browser: Browser, hostile_store: Store, tmp_path: Path
) -> None:
    file = tmp_path / "report.html"
    file.write_text(report_html(Reader(hostile_store), RUN), encoding="utf-8")
    asked: list[str] = []
    with window(browser, offline=True) as page:
        page.on("request", lambda request: asked.append(request.url))
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.goto(file.as_uri())
        assert_nothing_ran(page, visible(PLAIN["problem"] + MARKUP))
        # The style of the file is there: a policy that refused it would leave none.
        assert page.evaluate("getComputedStyle(document.querySelector('figure')).padding") != "0px"
        page.locator("ol a").first.click()
        expect(page.locator("#told-1")).to_be_visible()
        assert page.evaluate(FAINT_TEXTS)["found"] == []
        assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
