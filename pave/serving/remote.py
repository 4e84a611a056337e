"""Media at http(s) addresses: only from hosts that the operator allows, and only if they are public addresses.

In: an address, and the hosts allowed. Out: its bytes in pieces, within limits of bytes and seconds. A name is resolved
once, all its addresses are checked, and the connection goes to a checked one, so that a later answer of the name server
changes nothing. Redirects are checked as if they had been asked for. Knows nothing of media.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import SplitResult, urljoin, urlsplit

from pave.errors import MediaError, UsageError
from pave.text.shown import quoted

PORTS = {"http": 80, "https": 443}
REDIRECTS = 3
PIECE = 1 << 16  # bytes
# One label or more of letters, digits, dashes and underscores; the last one has a letter first, which no number has in
# any notation (RFC 3696). Names in other scripts are written in Punycode.
NAME = re.compile(r"(?=.{1,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?\.)*[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")
# IPv6 that stands for the IPv4 address in its last four bytes (RFC 4291, 6052, 8215). 6to4 and Teredo: `ipaddress`.
EMBEDDING = [IPv6Network(each) for each in ("::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48")]
GLOBAL = IPv6Network("2000::/3")  # all that is assigned for public use

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Sequence[str]]


def resolved(host: str, port: int) -> list[str]:
    """The addresses of a host name."""
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        raise MediaError(f"{host}: its address is not found ({error}); check the name") from None


def hosts_of(given: Iterable[str]) -> frozenset[str]:
    """The hosts that an operator allows, as in `Remote.hosts`; UsageError for what is none."""
    found = set()
    for each in given:
        try:
            parts = urlsplit(f"//{each}")
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        host = (parts.hostname or "").removesuffix(".")
        if each != "*" and (parts.netloc != each or "@" in each or not (NAME.match(host) or is_address(host))):
            raise UsageError(f"{quoted(each)} is no host; write example.org or example.org:8080, without https://")
        found.add(each if each == "*" else host if port is None else f"{host}:{port}")
    return frozenset(found)


def is_public(address: Address) -> bool:
    """Whether an address, and any that it stands for, belongs to the public internet."""
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast
    if any(address in network for network in EMBEDDING):
        return is_public(IPv4Address(address.packed[-4:]))
    inner = [address.sixtofour, *(address.teredo or ())]
    return address in GLOBAL and address.is_global and all(is_public(each) for each in inner if each is not None)


@dataclass(frozen=True)
class Remote:
    """Who may be asked for media, and how much may come."""

    hosts: frozenset[str] = frozenset()  # "example.org", "example.org:8080"; "*": every public one; none: no address
    most: int = 64 << 20  # bytes
    seconds: float = 30.0  # for all of it, redirects included
    resolve: Resolve = resolved
    allows: Callable[[Address], bool] = is_public

    def pieces(self, url: str) -> Iterator[bytes]:
        """The bytes at an address; MediaError if it is refused, fails, or is too long or slow."""
        clock = _Clock(self.seconds)
        try:
            for _ in range(REDIRECTS + 1):
                parts = self.checked(url)
                with self._answer(parts, clock) as answer:
                    target = answer.getheader("location") if answer.status in (301, 302, 303, 307, 308) else None
                    if target is None:
                        yield from self._body(parts, answer)
                        if clock.over.is_set():  # which looks like the end of a body without a length
                            raise TimeoutError
                        return
                    url = urljoin(url, target)
                    if parts.scheme == "https" and not url.lower().startswith("https:"):
                        raise _refused(parts, "it leads from https to an address without", "give an https address")
            raise _refused(parts, f"more than {REDIRECTS} redirects", "give the address of the file itself")
        except (MediaError, OSError, HTTPException, ValueError) as error:
            if clock.over.is_set():
                raise MediaError(f"{_shown(url)}: took longer than {self.seconds:g} s; send the file itself") from None
            if isinstance(error, MediaError):
                raise
            cause = type(error).__name__ if isinstance(error, HTTPException) else error
            raise MediaError(f"{_shown(url)}: cannot be fetched ({cause}); check it, or send the file itself") from None
        finally:
            clock.stop()

    def checked(self, url: str) -> SplitResult:
        """The parts of an address that may be fetched, so far as its text tells; MediaError for others."""
        if re.search(r"[^\x21-\x7e]|\\", url):
            raise MediaError(
                f"{quoted(url)}: has characters that no address has; write them as %XX, a host in Punycode"
            )
        try:
            parts, port = urlsplit(url), urlsplit(url).port
        except ValueError as error:
            raise MediaError(f"{quoted(url)}: is no address ({error}); write https://host/file") from None
        if parts.scheme not in PORTS:
            raise MediaError(f"{_shown(url)}: is not http or https; send the file as a data: URI")
        if "@" in parts.netloc:
            raise MediaError(f"{_shown(url)}: names a user; addresses with credentials are not fetched")
        host = (parts.hostname or "").removesuffix(".")
        if not (NAME.match(host) or is_address(host)):
            raise MediaError(f"{_shown(url)}: {quoted(host)} is no host name; write https://host/file")
        plain = port in (None, PORTS[parts.scheme])
        named = host if plain else f"{host}:{port}"
        allowed = {named, f"{host}:{port or PORTS[parts.scheme]}", *("*" if plain else "")}
        if not allowed & self.hosts:
            remedy = "the server is started with --allow-media-from for hosts that it may ask; or send a data: URI"
            raise MediaError(f"{_shown(url)}: media from {named} are not allowed; {remedy}")
        return parts

    @contextmanager
    def _answer(self, parts: SplitResult, clock: _Clock) -> Iterator[HTTPResponse]:
        """The answer to a GET from a checked address."""
        connection = _Connection(parts, self._addresses(parts), clock)
        try:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", path, headers={"Accept-Encoding": "identity", "User-Agent": "pave"})
            with connection.getresponse() as answer:  # which holds the socket, too
                yield answer
        finally:
            connection.close()

    def _addresses(self, parts: SplitResult) -> Sequence[str]:
        """The addresses of the host; MediaError if one of them is not public."""
        host, port = (parts.hostname or "").removesuffix("."), parts.port or PORTS[parts.scheme]
        found = [host] if is_address(host) else self.resolve(host, port)
        for each in found:
            if "%" in each or not self.allows(ip_address(each)):
                raise _refused(parts, f"{host} is at {each}, which is not public", "send the file itself")
        return found

    def _body(self, parts: SplitResult, answer: HTTPResponse) -> Iterator[bytes]:
        if answer.status != 200:
            raise _refused(parts, f"the host answers {answer.status}", "check it, or send the file itself")
        if (coding := answer.getheader("content-encoding", "identity")).lower() != "identity":
            raise _refused(parts, f"comes compressed ({quoted(coding)})", "send the file itself")
        size = 0
        while piece := answer.read1(PIECE):
            size += len(piece)
            if size > self.most:
                raise _refused(parts, f"has more than {self.most:,} bytes", "send a smaller file")
            yield piece
        if answer.length:
            raise _refused(parts, f"ended {answer.length:,} bytes early", "try again")


class _Clock:
    """A limit on all that happens on some sockets: when it is over, they are shut, which ends what waits for them."""

    def __init__(self, seconds: float) -> None:
        self.over, self._sockets = threading.Event(), list[socket.socket]()
        self.seconds, self._timer = seconds, threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._timer.start()

    def watch(self, held: socket.socket) -> None:
        self._sockets.append(held)
        if self.over.is_set():
            raise TimeoutError

    def stop(self) -> None:
        self._timer.cancel()

    def _end(self) -> None:
        self.over.set()
        for held in self._sockets:
            with suppress(OSError):  # closed already
                socket.socket.shutdown(held, socket.SHUT_RDWR)  # that of TLS would pull the rug from under a reader


class _Connection(HTTPConnection):
    """A connection to the first of these addresses that takes it, whatever the name server says now; with TLS, of the
    host's own name."""

    def __init__(self, parts: SplitResult, addresses: Sequence[str], clock: _Clock) -> None:
        self.default_port = PORTS[parts.scheme]  # which the header Host leaves out, also for https
        super().__init__(parts.hostname or "", parts.port or self.default_port)
        self._secure, self._addresses, self._clock = parts.scheme == "https", addresses, clock

    def connect(self) -> None:
        plain = self._reached()
        self.sock = plain
        self._clock.watch(plain)
        if self._secure:
            context = ssl.create_default_context()
            secure = context.wrap_socket(plain, server_hostname=self.host, do_handshake_on_connect=False)
            self.sock = secure
            self._clock.watch(secure)
            secure.do_handshake()

    def _reached(self) -> socket.socket:
        *others, last = self._addresses
        patience = self._clock.seconds / len(self._addresses)  # one that says nothing leaves time for the others
        for each in others:
            with suppress(OSError):
                return socket.create_connection((each, self.port), timeout=patience)
        return socket.create_connection((last, self.port), timeout=self._clock.seconds)


def is_address(host: str) -> bool:
    """Whether a host is an IP address, not a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _shown(url: str) -> str:
    """An address without what may be a secret: user, query and fragment."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"[:200]


def _refused(parts: SplitResult, cause: str, remedy: str) -> MediaError:
    return MediaError(f"{_shown(parts.geturl())}: {cause}; {remedy}")
