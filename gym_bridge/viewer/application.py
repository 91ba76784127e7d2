"""The web application: one address a page, for this machine alone. What pages show can neither run nor fetch anything."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from multidict import MultiDict

from gym_bridge.config import validate
from gym_bridge.errors import ConfigError, GymBridgeError
from gym_bridge.io.charts import escaped
from gym_bridge.io.html_report import STYLE
from gym_bridge.transforms.reasons import REASONS
from gym_bridge.viewer.comparisons import Comparisons
from gym_bridge.viewer.exports import FORMATS, Exports
from gym_bridge.viewer.filters import Filter, picked_rows
from gym_bridge.viewer.list_pages import ListPages
from gym_bridge.viewer.overview_pages import OverviewPages
from gym_bridge.viewer.rollout_pages import RolloutPages
from gym_bridge.viewer.shared_page import export_selection
from gym_bridge.viewer.site import Site
from gym_bridge.viewer.templating import asset
from gym_bridge.viewer.token_pages import TokenPages

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; form-action 'self'; "
        "frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
log = logging.getLogger(__name__)

OWN_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
"""By which a browser may ask: under another name, a page of somebody else could read these."""
OWN_SITES = ("same-origin", "none")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Viewer:
    """The handlers; what takes long is done in threads."""

    def __init__(self, site: Site, tokens: TokenPages, exports: Exports):
        self._site, self._tokens, self._exports = site, tokens, exports
        self._overview, self._lists, self._rollouts = OverviewPages(site), ListPages(site), RolloutPages(site)
        self._comparisons = Comparisons(site)

    def routes(self) -> list[web.RouteDef]:
        """Every address."""
        file = r"/files/{file:\d{1,9}}"
        place = r"{place:f?\d{1,9}}"
        return [
            web.get("/", self._page(lambda request: self._overview.overview())),
            web.get("/runs", self._page(self._runs)),
            web.get(file, self._page(lambda request: self._lists.rollouts(_file(request), _filter(request.query)))),
            web.get(f"{file}/groups", self._page(lambda request: self._lists.groups(_file(request), _filter(request.query)))),
            web.get(f"{file}/groups/{place}", self._page(lambda one: self._rollouts.group(_file(one), one.match_info["place"]))),
            web.get(f"{file}/rollouts/{place}", self._page(self._rollout)),
            web.get(f"{file}/rollouts/{place}/tokens", self._page(self._token_page)),
            web.get(f"{file}/failures", self._page(lambda request: self._lists.failures(_file(request)))),
            web.get(f"{file}/compare", self._page(self._compare_picked)),
            web.post(f"{file}/export", self._export),
            web.get("/compare", self._page(self._compare)),
            web.get("/versus", self._page(self._versus)),
            web.get(r"/exports/{key:\d{1,9}}", self._page(self._export_page)),
            web.get(r"/exports/{key:\d{1,9}}/{name}", self._saved),
            web.get("/version", self._version),
            web.get("/style.css", _static("text/css", STYLE + asset("page.css"))),
            web.get("/page.js", _static("text/javascript", asset("page.js"))),
        ]

    def problem(self, status: int, message: str) -> web.Response:
        """A page that says what is wrong."""
        title = "Not found" if status == 404 else "This cannot be shown"
        return _html(self._site.page("problem.html", title, message=message), status=status)

    def _page(self, make: Callable[[web.Request], str]) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            try:
                return _html(await asyncio.to_thread(make, request))
            except GymBridgeError as error:
                return await asyncio.to_thread(self.problem, 400, str(error))

        return handle

    def _runs(self, request: web.Request) -> str:
        numbers = [_whole(one) for one in request.query.getall("run", [])]
        return self._overview.runs(numbers, details="details" in request.query)

    def _rollout(self, request: web.Request) -> str:
        whole = request.query.get("whole")
        return self._rollouts.rollout(_file(request), request.match_info["place"], _filter(request.query, "whole"), whole=whole)

    def _token_page(self, request: web.Request) -> str:
        query = request.query
        page = max(1, _whole(query.get("page", "1")))
        return self._tokens.page(_file(request), request.match_info["place"], colour=query.get("colour", "trained"), page=page)

    def _compare_picked(self, request: web.Request) -> str:
        picks = request.query.getall("pick", [])
        if len(picks) != 2:
            raise ConfigError(f"{len(picks)} rollouts are ticked; tick two to compare them")
        return self._comparisons.rollouts((_file(request), picks[0]), (_file(request), picks[1]))

    def _compare(self, request: web.Request) -> str:
        sides = [request.query.get(name, "").partition(":") for name in ("a", "b")]
        (first, _, first_place), (second, _, second_place) = sides
        return self._comparisons.rollouts((_whole(first), first_place), (_whole(second), second_place))

    def _versus(self, request: web.Request) -> str:
        sides = request.query.getall("side", [])
        if len(sides) != 2:
            raise ConfigError(f"{len(sides)} files are ticked; tick two to compare them")
        return self._comparisons.files(sides[0], sides[1], page=max(1, _whole(request.query.get("page", "1"))))

    async def _export(self, request: web.Request) -> web.Response:
        """Make the file that a form asks for, and lead to the page that tells of it."""
        form = MultiDict((name, value) for name, value in (await request.post()).items() if isinstance(value, str))
        try:
            key = await asyncio.to_thread(self._exported, _file(request), form)
        except GymBridgeError as error:
            return await asyncio.to_thread(self.problem, 400, str(error))
        raise web.HTTPSeeOther(f"/exports/{key}")

    def _exported(self, number: int, form: MultiDict[str]) -> str:
        to, picks = form.get("to", ""), form.getall("pick", [])
        if to not in FORMATS:
            raise ConfigError(f"there is no export as {to!r}; expected one of {', '.join(FORMATS)}")
        shown, asked = self._site.shown(number), _filter(form, "to", "pick")
        chosen = picked_rows(shown.rows, picks) if picks else self._site.chosen(number, shown.rows, asked)
        if to == "page":
            return export_selection(self._site, self._exports, number, chosen)
        return self._exports.dataset(shown.file, chosen, to, of=number)

    def _export_page(self, request: web.Request) -> str:
        made = self._exports.find(request.match_info["key"])
        dropped = sorted(made.dropped.items(), key=lambda one: (-one[1], one[0]))
        name, links = self._site.file(made.of).name, self._site.links
        return self._site.page(
            "exported.html",
            f"Export: {FORMATS[made.to]}",
            [{"text": name, "href": links.rollouts(made.of), "key": "r"}, {"text": "export", "href": None}],
            made=made,
            href=f"{request.path}/{made.name}",
            dropped=[(reason, count, REASONS.get(reason, "")) for reason, count in dropped],
            back=links.rollouts(made.of),
        )

    async def _saved(self, request: web.Request) -> web.StreamResponse:
        try:
            made = self._exports.find(request.match_info["key"])
        except ConfigError as error:
            return self.problem(404, str(error))
        headers = {"Content-Disposition": f'attachment; filename="{made.name}"', "Content-Type": "application/octet-stream"}
        return web.FileResponse(made.path, headers=headers)

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": await asyncio.to_thread(self._site.version)})


def application(site: Site, tokens: TokenPages, exports: Exports) -> web.Application:
    """The application; it answers to the names of this machine's loopback alone."""
    viewer = Viewer(site, tokens, exports)

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if _name_of(request.host) not in OWN_NAMES:
            return web.Response(status=403, text=f"{escaped(request.host)} is no name of this machine's loopback", headers=HEADERS)
        if request.headers.get("Sec-Fetch-Site", "none") not in OWN_SITES and not _is_visit(request):
            return web.Response(status=403, text="another site asks for this", headers=HEADERS)
        try:
            response = await handler(request)
        except web.HTTPRedirection as redirection:
            redirection.headers.update(HEADERS)
            raise
        except web.HTTPException as error:
            told = f"there is no page {request.path}" if error.status == 404 else f"{request.method} {request.path}: {error.reason}"
            response = await asyncio.to_thread(viewer.problem, error.status, told)
        except Exception as error:  # one request: our own fault, told on its page
            log.exception("%s %s", request.method, request.path)
            response = await asyncio.to_thread(viewer.problem, 500, f"internal error: {type(error).__name__}: {error}")
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    app = web.Application(middlewares=[guard])
    app.add_routes(viewer.routes())
    return app


def _is_visit(request: web.Request) -> bool:
    """True where somebody follows a link from elsewhere: that shows a page, to them alone, and changes nothing."""
    return request.method == "GET" and request.headers.get("Sec-Fetch-Mode") == "navigate"


def _name_of(host: str) -> str:
    """A host without its port."""
    host = host.lower()
    return host if host.endswith("]") else host.rsplit(":", 1)[0] if ":" in host else host


def _file(request: web.Request) -> int:
    return int(request.match_info["file"])


def _filter(query: Mapping[str, str], *others: str) -> Filter:
    """What a query asks for, `others` left out. Raises ConfigError for an unknown name and for a value that is none."""
    return validate(Filter, {name: value.strip() for name, value in query.items() if value.strip() and name not in others})


def _whole(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise ConfigError(f"{text!r} is no number of anything here")
    return int(text)


def _html(text: str, status: int = 200) -> web.Response:
    return web.Response(body=text.encode("utf-8", "replace"), status=status, content_type="text/html", charset="utf-8")


def _static(kind: str, text: str) -> Handler:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(text=text, content_type=kind, charset="utf-8")

    return handle
