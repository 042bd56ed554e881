"""Views to HTML: the templates, with everything that a policy wrote shown as text.

Autoescape is on for all of it. The only markup that is not from a template are the spans around the
words of code, whose texts are escaped one by one.
"""

import base64
import hashlib
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pygments.lexers import PythonLexer
from pygments.token import STANDARD_TYPES

from flows.page import links

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"

STEPS = 4
"""Classes of colour on each side of zero."""
STRONGEST = 2.0
"""Advantage from which on the colour is the strongest."""
PALE = (0.5, 1.5, 3.0)
"""Bounds of how unlikely a token was, in negative log-probability, nats."""


def render(template: str, **values: Any) -> str:
    """Returns a page.

    Args:
        template: Its file.
        values: What the template names.
    """
    return _environment().get_template(template).render(**values)


@lru_cache
def style() -> str:
    """Returns the style sheet."""
    return files("flows.page").joinpath("static", "style.css").read_text()


def style_digest() -> str:
    """Returns what a content security policy calls the style sheet when it is part of the page."""
    return "sha256-" + base64.b64encode(hashlib.sha256(style().encode()).digest()).decode()


def visible(text: str) -> str:
    """Returns a text in which nothing is hidden.

    Control characters, marks that turn the direction of writing and the like become Python
    escapes, so that what is read is what was written. Line breaks and tabs stay.
    """
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


def token_text(text: str) -> str:
    """Returns a token in which white space is seen as well."""
    return visible(text).replace("\n", "↵").replace("\t", "⇥").replace(" ", "·") or "∅"


def highlighted(code: str) -> Markup:
    """Returns Python code, escaped, with its words in spans of Pygments' classes."""
    lexer = PythonLexer(stripnl=False, ensurenl=False)
    span = Markup('<span class="{}">{}</span>')
    return Markup("").join(
        span.format(STANDARD_TYPES[kind], text) if STANDARD_TYPES.get(kind) else text
        for kind, text in lexer.get_tokens(visible(code))
    )


def number(value: float | int | None, digits: int = 2) -> str:
    """Writes a count, or a number with so many decimals and no negative zero; null is a dash."""
    if value is None:
        return DASH
    return f"{value:,}" if isinstance(value, int) else f"{value:z,.{digits}f}".replace("-", MINUS)


def signed(value: float | None) -> str:
    """Writes a number with its sign; null is a dash."""
    return DASH if value is None else f"{value:+z.2f}".replace("-", MINUS).replace("+0.00", "0.00")


def percent(value: float | None) -> str:
    """Writes a share; null is a dash."""
    return DASH if value is None else f"{value:.1%}"


def heat(advantage: float | None) -> str:
    """Returns the class of colour of an advantage."""
    if advantage is None:
        return "none"
    step = round(STEPS * max(-1.0, min(1.0, advantage / STRONGEST)))
    return "zero" if step == 0 else f"{'pos' if step > 0 else 'neg'}{abs(step)}"


def surprise(logprob: float) -> str:
    """Returns the class of a token by how unlikely it was."""
    return f"s{sum(-logprob > bound for bound in PALE)}"


def excerpt(text: str, length: int = 280) -> str:
    """Returns the start of a text."""
    return text if len(text) <= length else f"{text[:length]} …"


@lru_cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("flows.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = (visible, token_text, highlighted, number, signed, percent, heat, surprise, excerpt)
    environment.filters.update({function.__name__: function for function in shown})
    addresses = (
        links.run_url,
        links.iteration_url,
        links.trajectory_url,
        links.estimators_url,
        links.timeline_url,
        links.compare_url,
    )
    environment.globals.update({function.__name__: function for function in addresses})
    return environment
