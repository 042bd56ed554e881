"""The report of a run: one file, the same each time, with what it promises."""

import re

import pytest
from page_runs import EMPTY, IMPORTED, RUN

from flows.page.reading import NotFoundError, Reader
from flows.page.report import report_html
from flows.page.telling import most_telling


def test_a_report_holds_the_telling_trajectories_in_full(reader: Reader) -> None:
    page = report_html(reader, RUN)
    chosen = most_telling(reader, RUN, 20)
    assert page.count('<details class="told">') == len(chosen) == 20
    assert page.count("Here because it is") == 20


def test_a_report_names_nothing_outside_itself(reader: Reader) -> None:
    page = report_html(reader, RUN)
    targets = re.findall(r'(?:href|src|action|data)="([^"]*)"', page)
    assert targets
    assert {target for target in targets if not target.startswith(("#", "data:,"))} == set()
    assert "@import" not in page
    assert "url(" not in page


def test_links_of_a_report_lead_to_its_parts(reader: Reader) -> None:
    page = report_html(reader, RUN)
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert {target for target in re.findall(r'href="#([^"]*)"', page)} <= set(ids)


def test_counts_are_told_as_whole_numbers(reader: Reader) -> None:
    page = report_html(reader, RUN)
    assert re.search(r"</a>: longest in turns, \d+</li>", page)
    assert re.search(r"</a>: most code that ran out of time, \d+</li>", page)


def test_equal_runs_give_equal_reports(reader: Reader) -> None:
    assert report_html(reader, RUN) == report_html(reader, RUN)


@pytest.mark.parametrize("run", [EMPTY, IMPORTED])
def test_a_report_of_little_says_what_is_missing(reader: Reader, run: str) -> None:
    page = report_html(reader, run)
    assert 'class="note"' in page


def test_a_report_of_nothing_is_refused(reader: Reader) -> None:
    with pytest.raises(NotFoundError, match="there is no run nobody in this store"):
        report_html(reader, "nobody")
