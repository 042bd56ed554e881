"""A real Chromium of the system, and what the tests of pages ask it for."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Starts the browser; skips the test where it is not installed."""
    if not CHROMIUM.exists():
        pytest.skip("there is no /usr/bin/chromium: `make browser` installs it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


@contextmanager
def window(browser: Browser, **options: Any) -> Iterator[Page]:
    """Opens a page in a context of its own."""
    context: BrowserContext = browser.new_context(**options)
    yield context.new_page()
    context.close()


OPEN_ALL = "document.querySelectorAll('details').forEach(d => { d.open = true })"

FAINT_TEXTS = """
() => {
  const parse = c => (c.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const over = (top, under) => {
    const a = top.length > 3 ? top[3] : 1;
    return [0, 1, 2].map(i => a * top[i] + (1 - a) * under[i]);
  };
  const light = c => {
    const [r, g, b] = c.map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const base = parse(getComputedStyle(document.documentElement).backgroundColor);
  const canvas = base.length > 3 && base[3] === 0
    ? (matchMedia('(prefers-color-scheme: dark)').matches ? [18, 18, 18] : [255, 255, 255]) : base;
  const found = [];
  let seen = 0;
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest('.hidden, title, .skip:not(:focus), option')) continue;
    seen += 1;
    const style = getComputedStyle(e);
    const behind = [];
    for (let at = e; at; at = at.parentElement) {
      if (e instanceof SVGElement && at.tagName === 'g' && at.querySelector('rect'))
        behind.push(parse(getComputedStyle(at.querySelector('rect')).fill));
      behind.push(parse(getComputedStyle(at).backgroundColor));
    }
    const back = behind.reverse().reduce((under, top) => over(top, under), canvas);
    const ink = parse(e instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(over(ink, back)), light(back)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push([e.textContent.slice(0, 40), e.className, ratio]);
  }
  return {seen, found};
}
"""
"""Counts the elements with text, and lists those whose contrast is below 4.5 to 1 (WCAG 2)."""
