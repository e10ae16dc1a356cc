"""Serves the page: files of its own, and what runs measure as JSON. It reads; nothing can be changed by it.

    /                    the page
    /api/runs            which runs there are
    /api/now?run=        what is going on
    /api/names?run=      which curves there are
    /api/curve?run=&name=&x=step|seconds|time|tokens|compute&most=
    /api/fit?run=&name=&x=       the scaling law's fit of a curve
    /api/results?run=&page=&step=&end=&reason=&verdict=&code=&search=    what results there are
    /api/group?run=&group=       all results of a problem's group
    /api/transcript?run=&ticket= one result, token by token
    /api/lives?run=&step=&page=  when a step's results were issued, begun, published and used
    /metrics             for Prometheus

What actors write is hostile text: it travels as JSON, the script makes text nodes of it, and a content security policy lets
the browser run, and fetch, nothing but the page's own files. On the loopback interface requests must name it as their host,
so that no other site's script can reach the page under a name of its own; elsewhere each request needs the token.
"""

import asyncio
import hmac
import re
import secrets
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

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

import transcripts
from bus.codec import MessageError
from configs.errors import UserError
from learner.tickets.archive_tail import ArchiveChangedError
from page.aside import aside
from page.prometheus import CONTENT_TYPE, exposition
from page.results import Results, Wanted
from page.run_view import RunView
from page.store import curve_name, thinned

STATIC = Path(__file__).with_name("static")
VIEW = Path(transcripts.__file__).parent
LOOPBACK = ("127.0.0.1", "localhost")
MOST_POINTS = 2000
READ_S = 0.5
"""Seconds for which an answer waits for what the archive has got."""
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
        found = _curve(view, given.get("name", ""), given.get("x", "step"), _most(given.get("most", "")))
        return JSONResponse(found)

    async def fit(request: Request) -> Response:
        given = request.query_params
        try:
            return JSONResponse(await asked(request).fits.fit(given.get("name", ""), given.get("x", "step")))
        except ModuleNotFoundError as error:
            raise HTTPException(503, f"fits need {error.name}, of the extra `scaling`") from error

    async def results(request: Request) -> Response:
        view, given = asked(request), request.query_params
        found = await _read(view)
        texts = {name: given.get(name, "") for name in ("end", "reason", "verdict", "code", "search")}
        wanted = Wanted(step=_number(request, "step", None), **texts)
        page = await aside(partial(found.find, wanted, _number(request, "page", 0) or 0))
        reasons = await aside(found.reasons)
        return JSONResponse({**page, "reasons": reasons, "reading": found.is_reading, "trouble": found.trouble})

    async def group(request: Request) -> Response:
        view = asked(request)
        rows = await aside(partial(_results(view).group, _required(request, "group")))
        assert view.transcripts is not None
        return JSONResponse(await aside(partial(view.transcripts.with_advantages, rows)))

    async def transcript(request: Request) -> Response:
        return JSONResponse(await aside(partial(_transcript, asked(request), _required(request, "ticket"))))

    async def lives(request: Request) -> Response:
        found = await _read(asked(request))
        lives = await aside(partial(found.lives, _required(request, "step"), _number(request, "page", 0) or 0))
        return JSONResponse({**lives, "reading": found.is_reading, "trouble": found.trouble})

    async def metrics(request: Request) -> Response:
        return Response(await exposition(views), media_type=CONTENT_TYPE)

    answers = [
        Route("/api/runs", runs),
        Route("/api/now", now),
        Route("/api/names", names),
        Route("/api/curve", curve),
        Route("/api/fit", fit),
        Route("/api/results", results),
        Route("/api/group", group),
        Route("/api/transcript", transcript),
        Route("/api/lives", lives),
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
    view = [Route(f"/static/{name}", partial(_file, VIEW / name)) for name in ("view.css", "view.js")]
    routes = [Route("/", index), *answers, *view, Mount("/static", StaticFiles(directory=STATIC))]
    return Starlette(routes=routes, middleware=middleware)


def _knows(request: Request, token: str) -> bool:
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    tried = [request.query_params.get("token", ""), *[given] * (kind.lower() == "bearer")]
    return any(hmac.compare_digest(each.encode(), token.encode()) for each in tried)


def _most(text: str) -> int:
    """Returns how many points are asked for, `MOST_POINTS` at most."""
    return min(max(1, int(text)), MOST_POINTS) if re.fullmatch(r"[0-9]{1,15}", text) else MOST_POINTS


def _number(request: Request, name: str, otherwise: int | None) -> int | None:
    """Returns a parameter that counts something; `otherwise` where it is not given. Raises HTTPException."""
    text = request.query_params.get(name, "")
    if not text:
        return otherwise
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise HTTPException(400, f"{name} must be a whole number, 0 or more")
    return int(text)


def _required(request: Request, name: str) -> int:
    number = _number(request, name, None)
    if number is None:
        raise HTTPException(400, f"{name} is missing")
    return number


async def _file(path: Path, request: Request) -> Response:
    return FileResponse(path)


def _results(view: RunView) -> Results:
    if view.results is None:
        raise HTTPException(
            404,
            "the results lie on the learner's host: start `zerotir page` there, by the version that has written them",
        )
    return view.results


async def _read(view: RunView) -> Results:
    """Returns the results of a run, with what can be read of its archive soon; the rest is read on."""
    results = _results(view)
    if view.transcripts is not None:
        view.transcripts.prepare()
    if view.is_stale:
        # What became of more results only the metrics would say, which are not followed any more.
        return results
    done, _ = await asyncio.wait({aside(results.read)}, timeout=READ_S)
    for each in done:
        each.result()
    return results


def _transcript(view: RunView, ticket: int) -> dict[str, Any]:
    try:
        found = _results(view).result(ticket)
        if found is None:
            raise HTTPException(404, f"no result of ticket {ticket} is there, or not yet")
        assert view.transcripts is not None
        return view.transcripts.draw(*found)
    except ModuleNotFoundError as error:
        raise HTTPException(503, f"{error.name}, which reads tokens, is not installed here") from error
    except (UserError, MessageError, ArchiveChangedError) as error:
        raise HTTPException(503, str(error)) from error


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
