"""The cookies of one rollout with one server."""

from functools import lru_cache

import aiohttp
from yarl import URL

LASTING_S = 86_400
"""A cookie that lives longer than this outlives its rollout."""


class Cookies:
    """What the server set goes back to it.

    Session cookies for the whole server (`path=/`), which is all that NeMo Gym's servers set, are kept as a name and a value and
    sent back as they came. The first cookie that asks for more brings in aiohttp's jar, for all of them. Measured: aiohttp's jar
    alone took a fifth of a rollout's CPU time.
    """

    def __init__(self) -> None:
        self._plain: dict[str, str] = {}
        self._jar: aiohttp.CookieJar | None = None

    def header(self, url: URL) -> str | None:
        """The value of the `Cookie` header for a request to `url`; None where there is none to send."""
        if self._jar is None:
            return "; ".join([f"{name}={value}" for name, value in self._plain.items()]) or None
        return "; ".join([f"{one.key}={one.coded_value}" for one in self._jar.filter_cookies(url).values()]) or None

    def take(self, reply: aiohttp.ClientResponse) -> None:
        """Keep what a reply asks for."""
        lines = reply.headers.getall("Set-Cookie", ())
        if self._jar is None and not all(map(self._keep, lines)):
            self._jar = aiohttp.CookieJar(unsafe=True)  # unsafe: also cookies of servers that are addressed by number
            self._jar.update_cookies(self._plain, reply.url.origin())
        if self._jar is not None:
            self._jar.update_cookies(reply.cookies, reply.url)

    def _keep(self, line: str) -> bool:
        """Take a plain cookie; False for one that is none."""
        pair, _, attributes = line.partition(";")
        name, equals, value = pair.partition("=")
        if not equals or not _is_plain(attributes):
            return False
        self._plain[name.strip()] = value.strip()
        return True


@lru_cache(maxsize=256)
def _is_plain(attributes: str) -> bool:
    """Whether a cookie with these attributes goes with every later request of a rollout to its server."""
    whole_server = False
    for attribute in attributes.split(";"):
        name, _, value = (part.strip().lower() for part in attribute.partition("="))
        if name == "path" and value == "/":
            whole_server = True
        elif name == "max-age" and value.isdecimal() and int(value) > LASTING_S:
            continue
        elif name not in ("httponly", "samesite"):
            return False
    return whole_server
