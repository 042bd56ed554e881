"""The web application: addresses to views, errors to pages of one line."""

import re
from collections.abc import Callable, Mapping
from functools import wraps

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from flows.page.comparison import compared_estimators, compared_runs
from flows.page.conversation import Key, conversation
from flows.page.groups import OF_EVALUATIONS, SHOWN, Choice, groups_view
from flows.page.overview import run_list, run_view
from flows.page.reading import NotFoundError, Reader
from flows.page.rendering import render, style
from flows.page.timing import timing_view
from schemas.errors import StoreUnavailable, TurnledgerError
from storage import Store
from storage.layout import SPLIT_NAME

HEADERS = {
    # Nothing but our own style sheet is loaded, and no script runs, whatever a page may hold.
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
LOOPBACK = ("127.0.0.1", "localhost", "::1")
LARGEST = 2**31 - 1
"""Of whole numbers in an address: keys are of 32 bits."""

Query = Mapping[str, str]
View = Callable[[Reader, Request], str]


class BadQueryError(TurnledgerError):
    """An address with a value that cannot be used."""


def make_app(store: Store, *, hosts: list[str] | None = None) -> Starlette:
    """Returns the application that shows a store.

    Args:
        store: What is shown.
        hosts: Names under which it may be asked for, against other sites whose name is made to lead
            here; null for any.
    """
    reader = Reader(store)

    def page(view: View) -> Callable[[Request], HTMLResponse]:
        # A plain function: Starlette calls it in a thread, as reading takes its time.
        @wraps(view)
        def respond(request: Request) -> HTMLResponse:
            return HTMLResponse(view(reader, request))

        return respond

    iteration = "/runs/{run}/iterations/{iteration:int}"
    return Starlette(
        routes=[
            Route("/", page(show_runs)),
            Route("/style.css", show_style),
            Route("/compare", page(show_comparison)),
            Route("/runs/{run}", page(show_run)),
            Route("/runs/{run}/timeline", page(show_timeline)),
            Route(iteration, page(show_groups)),
            Route(f"{iteration}/trajectory", page(show_trajectory)),
            Route(f"{iteration}/estimators", page(show_estimators)),
        ],
        middleware=[
            Middleware(BaseHTTPMiddleware, dispatch=_with_headers),
            Middleware(TrustedHostMiddleware, allowed_hosts=hosts or ["*"], www_redirect=False),
        ],
        exception_handlers={TurnledgerError: _told, HTTPException: _refused},
    )


def show_runs(reader: Reader, request: Request) -> str:
    """Shows the list of runs."""
    return render("runs.html", view=run_list(reader))


def show_run(reader: Reader, request: Request) -> str:
    """Shows one run."""
    return render("run.html", view=run_view(reader, _run(request)))


def show_groups(reader: Reader, request: Request) -> str:
    """Shows the groups of an iteration."""
    query = request.query_params
    split = _split(query)
    filters = {n: s for n, s in SHOWN.items() if split == "train" or n in OF_EVALUATIONS}
    choice = Choice(
        run=_run(request),
        iteration=_iteration(request),
        split=split,
        show=_one_of(query, "show", tuple(filters)),
        against=query.get("against") or None,
        page=_whole(query, "page", 1),
    )
    if choice.show == "flips" and choice.against is None:
        raise BadQueryError("show=flips needs the other run: add against=RUN")
    others = [name for name in reader.store.run_names() if name != choice.run]
    view = groups_view(reader, choice)
    return render("iteration.html", view=view, shown=filters, others=others)


def show_trajectory(reader: Reader, request: Request) -> str:
    """Shows one trajectory."""
    query = request.query_params
    if "task" not in query:
        raise BadQueryError("an address of a trajectory names its task: add task=TASK")
    split, sample = _split(query), _whole(query, "sample", 0)
    key = Key(_run(request), _iteration(request), split, query["task"], sample)
    return render("trajectory.html", view=conversation(reader, key))


def show_comparison(reader: Reader, request: Request) -> str:
    """Shows two runs side by side; a form without them."""
    query, names = request.query_params, reader.store.run_names()
    a, b = query.get("a"), query.get("b")
    if not a or not b:
        return render("compare.html", view=None, names=names, a=a or "", b=b or "")
    iteration = _whole(query, "iteration") if query.get("iteration") else None
    view = compared_runs(reader, a, b, iteration)
    return render("compare.html", view=view, names=names, a=a, b=b)


def show_estimators(reader: Reader, request: Request) -> str:
    """Shows two estimators side by side."""
    query = request.query_params
    a, b = query.get("a") or "gtpo", query.get("b") or "grpo"
    view = compared_estimators(reader, _run(request), _iteration(request), a, b)
    return render("estimators.html", view=view)


def show_timeline(reader: Reader, request: Request) -> str:
    """Shows where the time of an iteration went."""
    query = request.query_params
    iteration = _whole(query, "iteration") if query.get("iteration") else None
    view = timing_view(reader, _run(request), iteration, _split(query))
    return render("timeline.html", view=view)


def show_style(request: Request) -> Response:
    """Returns the style sheet."""
    return Response(style(), media_type="text/css")


def _run(request: Request) -> str:
    return str(request.path_params["run"])


def _iteration(request: Request) -> int:
    iteration = int(request.path_params["iteration"])
    if iteration > LARGEST:
        raise NotFoundError(f"there is no iteration {iteration}")
    return iteration


def _split(query: Query) -> str:
    split = query.get("split") or "train"
    if not re.fullmatch(SPLIT_NAME, split):
        raise BadQueryError(f"split={split} cannot be used: take train, evaluation or a benchmark")
    return split


def _one_of(query: Query, name: str, values: tuple[str, ...]) -> str:
    """Returns a value of the query; the first one where there is none."""
    value = query.get(name) or values[0]
    if value not in values:
        raise BadQueryError(f"{name}={value} cannot be used: take one of {', '.join(values)}")
    return value


def _whole(query: Query, name: str, default: int | None = None) -> int:
    value = query.get(name)
    if not value and default is not None:
        return default
    if value is None or not (value.isascii() and value.isdigit()) or int(value) > LARGEST:
        raise BadQueryError(f"{name}={value or ''} cannot be used: take a whole number")
    return int(value)


def _told(request: Request, error: Exception) -> HTMLResponse:
    status = 500
    for kind, code in ((BadQueryError, 400), (NotFoundError, 404), (StoreUnavailable, 503)):
        if isinstance(error, kind):
            status = code
    return _error_page(status, str(error))


def _refused(request: Request, error: Exception) -> HTMLResponse:
    assert isinstance(error, HTTPException)
    message = f"there is no page {request.url.path}" if error.status_code == 404 else error.detail
    return _error_page(error.status_code, message)


def _error_page(status: int, message: str) -> HTMLResponse:
    return HTMLResponse(render("error.html", status=status, message=message), status_code=status)


async def _with_headers(request: Request, respond: RequestResponseEndpoint) -> Response:
    response = await respond(request)
    response.headers.update(HEADERS)
    return response
