"""Serves the page: files of its own, and what runs measure as JSON. It reads; nothing can be changed by it.

    /                    the page
    /api/runs            which runs there are
    /api/now?run=        what is going on
    /api/names?run=      which curves there are
    /api/curve?run=&name=&x=step|seconds|time|tokens|compute&most=
    /metrics             for Prometheus

What actors write is hostile text: it travels as JSON, the script makes text nodes of it, and a content security policy lets
the browser run, and fetch, nothing but the page's own files. On the loopback interface requests must name it as their host,
so that no other site's script can reach the page under a name of its own; elsewhere each request needs the token.
"""

import hmac
import secrets
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from page.prometheus import CONTENT_TYPE, exposition
from page.run_view import RunView
from page.store import curve_name, thinned

STATIC = Path(__file__).with_name("static")
LOOPBACK = ("127.0.0.1", "localhost")
MOST_POINTS = 2000
LONGEST_NUMBER = 7
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def new_token() -> str:
    """Returns a token that nobody guesses."""
    return secrets.token_urlsafe(24)


def application(views: Sequence[RunView], token: str | None) -> Starlette:
    """Returns the application of the page for some runs; without a token it must be served on the loopback interface."""
    by_name = {view.name: view for view in views}

    def asked(request: Request) -> RunView:
        view = by_name.get(request.query_params.get("run", ""))
        if view is None:
            raise HTTPException(404, "no such run")
        return view

    async def index(request: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    async def runs(request: Request) -> Response:
        return JSONResponse([{"name": view.name, "live": view.is_live} for view in views])

    async def now(request: Request) -> Response:
        return JSONResponse(await asked(request).now())

    async def names(request: Request) -> Response:
        return JSONResponse(asked(request).store.names())

    async def curve(request: Request) -> Response:
        view, given = asked(request), request.query_params
        found = _curve(view, given.get("name", ""), given.get("x", "step"), _number(given.get("most", "")))
        return JSONResponse(found)

    async def metrics(request: Request) -> Response:
        return Response(await exposition(views), media_type=CONTENT_TYPE)

    answers = [
        Route("/api/runs", runs),
        Route("/api/now", now),
        Route("/api/names", names),
        Route("/api/curve", curve),
        Route("/metrics", metrics),
    ]

    async def guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        is_open = request.url.path == "/" or request.url.path.startswith("/static/")
        if token is not None and not is_open and not _knows(request, token):
            response: Response = PlainTextResponse("the token is missing or wrong: use the address as printed", 401)
        else:
            response = await answer(request)
        response.headers.update(HEADERS)
        return response

    middleware = [Middleware(BaseHTTPMiddleware, dispatch=guard), Middleware(GZipMiddleware)]
    if token is None:
        middleware.insert(0, Middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK)))
    routes = [Route("/", index), *answers, Mount("/static", StaticFiles(directory=STATIC))]
    return Starlette(routes=routes, middleware=middleware)


def _knows(request: Request, token: str) -> bool:
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    tried = [request.query_params.get("token", ""), *[given] * (kind.lower() == "bearer")]
    return any(hmac.compare_digest(each.encode(), token.encode()) for each in tried)


def _number(text: str) -> int:
    """Returns how many points are asked for, `MOST_POINTS` at most."""
    is_number = text.isascii() and text.isdigit() and len(text) < LONGEST_NUMBER
    return min(max(1, int(text)), MOST_POINTS) if is_number else MOST_POINTS


def _curve(view: RunView, name: str, x: str, most: int) -> dict[str, list[float] | str | bool]:
    """Returns the points of a curve; `why` says why there are none."""
    series = next((series for key, series in view.store.series.items() if curve_name(*key) == name), None)
    if series is None:
        return {"x": [], "y": [], "unit": x, "final": view.is_final, "why": "not measured, or not yet"}
    places, times, values = series.points()
    unit = x
    if x == "time":
        places = times
    elif not series.by_step or x == "seconds":
        # What belongs to no step has no other abscissa.
        places = times - (view.store.began or 0.0)
        unit = "seconds"
    elif x in ("tokens", "compute"):
        axis = view.store.axis(x)
        if axis is None:
            why = f"the run's metrics do not say how many {'tokens' if x == 'tokens' else 'operations'} its steps took"
            return {"x": [], "y": [], "unit": x, "final": view.is_final, "why": why}
        places = np.interp(places, *axis)
    else:
        unit = "step"
    xs, ys = thinned(places, values, most)
    is_number = np.isfinite(xs) & np.isfinite(ys)
    return {"x": xs[is_number].tolist(), "y": ys[is_number].tolist(), "unit": unit, "final": view.is_final, "why": ""}
