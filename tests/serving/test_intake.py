"""Media of clients: what is refused, and that nothing is touched on the way; and what works."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from pave.errors import MediaError, UsageError
from pave.serving.media import Given, Intake
from pave.serving.remote import Remote, _Clock, _Connection, hosts_of, is_public

CLIP = b"a clip" * 1000
PUBLIC = "93.184.215.14"
ZONE = {  # what the name server says
    "inside.test": ["127.0.0.1"],
    "private.test": ["10.1.2.3"],
    "cloud.test": ["169.254.169.254"],
    "mixed.test": [PUBLIC, "192.168.0.1"],
    "mapped.test": ["::ffff:127.0.0.1"],
    "six.test": ["::1"],
    "unique.test": ["fd00::1"],
    "linked.test": ["fe80::1%1"],
    "many.test": ["224.0.0.1"],
    "shared.test": ["100.64.0.1"],
}


class Host(BaseHTTPRequestHandler):
    """A host on loopback that counts who comes."""

    def do_GET(self) -> None:
        self.server.hits.append(self.path)  # type: ignore[attr-defined]
        kind, _, rest = self.path[1:].partition("/")
        if kind == "to":
            self.send_response(302)
            self.send_header("Location", rest)
            self.end_headers()
            return
        self.send_response(404 if kind == "missing" else 200)
        if kind == "packed":
            self.send_header("Content-Encoding", "gzip")
        if kind in ("short", "late"):
            self.send_header("Content-Length", str(2 * len(CLIP)))
        self.end_headers()
        try:
            slow = kind in ("slow", "late")
            for _ in range(10**6 if kind == "endless" or slow else 1):
                self.wfile.write(b"." if slow else CLIP)
                time.sleep(0.01 if slow else 0)
        except OSError:
            self.server.left.set()  # type: ignore[attr-defined]

    def log_message(self, *_: Any) -> None:
        pass


@dataclass
class Outside:
    """The host, which stands for a public one of the name `media.test`; its intake allows it, and loopback for it."""

    server: ThreadingHTTPServer
    asked: list[str] = field(default_factory=list)  # of the name server

    def resolve(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        return ZONE.get(host, ["127.0.0.1"])

    def url(self, path: str = "clip.mp4") -> str:
        return f"http://media.test:{self.server.server_port}/{path}"

    def intake(self, **limits: Any) -> Intake:
        hosts = frozenset({"media.test", f"media.test:{self.server.server_port}"})
        limits = {"most": 1 << 20, "seconds": 5.0, **limits}
        return Intake(1 << 20, None, Remote(hosts, resolve=self.resolve, allows=lambda _: True, **limits))


@pytest.fixture
def outside() -> Iterator[Outside]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        server.hits, server.left = [], threading.Event()  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield Outside(server)
        server.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A media folder with a clip, links out of it, and things that are no files."""
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "mediathek").mkdir()
    (tmp_path / "mediathek" / "clip.mp4").write_bytes(b"secret")
    inside = tmp_path / "media"
    inside.mkdir()
    (inside / "clip.mp4").write_bytes(CLIP)
    (inside / "link").symlink_to(tmp_path / "secret")
    (inside / "up").symlink_to(tmp_path)
    (inside / "own").symlink_to(inside / "clip.mp4")
    (inside / "loop").symlink_to(inside / "loop")
    os.mkfifo(inside / "pipe")
    return inside


ADDRESSES = [
    *("http://127.0.0.1/", "http://127.1/", "http://127.0.0.1.:80/", "http://2130706433/", "http://0x7f000001/"),
    *("http://0x7f.0.0.1/", "http://0177.0.0.1/", "http://017700000001/", "http://127.0.0.1:8000/", "http://0/"),
    *("http://0.0.0.0/", "http://localhost/", "http://LOCALHOST./", "http://10.0.0.1/", "http://172.16.0.1/"),
    *("http://192.168.1.1/", "http://169.254.169.254/latest/meta-data/", "http://100.64.0.1/", "http://198.18.0.1/"),
    *("http://224.0.0.1/", "http://255.255.255.255/", "http://240.0.0.1/", "http://[::1]/", "http://[::]/"),
    *("http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/", "http://[::127.0.0.1]/", "http://[fe80::1]/"),
    *("http://[fe80::1%251]/", "http://[fe80::1%1]/", "http://[fc00::1]/", "http://[fec0::1]/", "http://[ff02::1]/"),
    *("http://[2002:7f00:1::]/", "http://[64:ff9b::7f00:1]/", "http://[64:ff9b:1::a00:1]/", "http://[2001:db8::1]/"),
    *("http://[2001:0:7f00:1::]/", "http://[2001:0:4136:e378:8000:63bf:80ff:fffe]/", "http://[::ffff:0:7f00:1]/"),
    *("http://inside.test/", "http://private.test/", "http://cloud.test/", "http://mixed.test/", "http://mapped.test/"),
    *("http://six.test/", "http://unique.test/", "http://linked.test/", "http://many.test/", "http://shared.test/"),
    *("http://user@inside.test/", "http://media.test@127.0.0.1/", "http://media.test:80@127.0.0.1/"),
    *("http://127.0.0.1\\@media.test/", "http://media.test\\.127.0.0.1/", "http://127.0.0.1#@media.test/"),
    *(
        "http://①②⑦.⓪.⓪.①/",
        "http://127。0。0。1/",
        "http://%31%32%37.0.0.1/",
        "http://inside.test\t/",
        "http://in side/",
    ),
    *("http:///inside.test", "http:inside.test", "http://", "http://:80/", "http://media.test:0x50/", "http://[::1"),
    *(
        "http://media.test:22/",
        "http://media.test:99999/",
        "https://media.test:80/",
        "ftp://media.test/",
        "gopher://a/",
    ),
    *(
        "file:///etc/passwd",
        "file:/etc/passwd",
        "/etc/passwd",
        "concat:/etc/passwd|/etc/hosts",
        "subfile,,start,0:/etc",
    ),
    *(
        "tcp://127.0.0.1:80",
        "rtsp://127.0.0.1/",
        "lavfi:testsrc",
        "pipe:0",
        "fd:0",
        "async:file:/etc/passwd",
        "",
        "data",
    ),
    *("data:video/mp4,abc", "data:;base64", "data:video/mp4;base64,===", "data:video/mp4;base64,AA\nAA", "dаta:,"),
]
FILES = [
    *("../secret", "link", "up/secret", "pipe", "", ".", "none.mp4", "loop", "%2e%2e/secret", "..%2fsecret"),
    *("clip.mp4%00", "clip.mp4?x", "clip.mp4#x", "../mediathek/clip.mp4", "up/mediathek/clip.mp4"),
]


def refused(intake: Intake, uri: str, path: Path) -> str:
    with pytest.raises(MediaError) as caught:
        intake.store(Given("video", uri), path)
    return str(caught.value)


@pytest.mark.parametrize("uri", ADDRESSES)
def test_no_request_reaches_what_is_not_public(uri, outside, tmp_path):
    remote = Remote(frozenset({"*"}), resolve=outside.resolve)
    assert ";" in refused(Intake(1 << 20, None, remote), uri, tmp_path / "video")  # a cause and a remedy
    assert not outside.server.hits  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", FILES)
def test_no_file_outside_the_media_folder_is_read(name, folder, tmp_path):
    message = refused(Intake(1 << 20, folder), f"file://{folder}/{name}", tmp_path / "video")
    assert message == "no such file in the media folder; check the name"


def test_what_is_no_uri_is_no_file(folder, tmp_path):
    message = refused(Intake(1 << 20, folder), "file://[::1", tmp_path / "video")
    assert message == "no such file in the media folder; check the name"


def test_files_in_the_media_folder_are_read(folder, tmp_path):
    for number, name in enumerate(("clip.mp4", "own", "up/media/clip.mp4", "c%6Cip.mp4")):
        stored = Intake(1 << 20, folder).store(Given("video", f"file://{folder}/{name}"), tmp_path / str(number))
        assert stored.path.read_bytes() == CLIP


def test_a_host_that_is_not_allowed_is_not_even_looked_up(outside, tmp_path):
    intake = outside.intake()
    assert "not allowed" in refused(intake, "http://other.test/clip.mp4", tmp_path / "video")
    assert "not allowed" in refused(intake, "http://sub.media.test/", tmp_path / "video1")
    assert "not allowed" in refused(intake, "http://media.test.evil.test/", tmp_path / "video2")
    assert not outside.asked


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("Media.test", "https://media.test/a"),
        ("media.test.", "http://MEDIA.test:80/a"),
        ("media.test:443", "https://media.test/a"),
        ("media.test:8080", "http://media.test:8080/a"),
        ("[2606:2800::1]:8080", "http://[2606:2800::1]:8080/a"),
        ("*", "https://media.test/a"),
    ],
)
def test_an_operator_may_write_a_host_with_its_port(given, url):
    remote = Remote(hosts_of([given]))
    assert remote.checked(url).path == "/a"
    for other in ("https://other.test:8443/a", "http://media.test:81/a"):
        with pytest.raises(MediaError, match="not allowed"):
            remote.checked(other)


@pytest.mark.parametrize("given", ["https://media.test", "media.test/", "a@media.test", "media.test:x", "*.test", ""])
def test_what_is_no_host_cannot_be_allowed(given):
    with pytest.raises(UsageError, match="is no host; write"):
        hosts_of([given])


def test_an_allowed_host_gives_its_clip(outside, tmp_path):
    stored = outside.intake().store(Given("video", outside.url() + "?key=1"), tmp_path / "video")
    assert stored.path.read_bytes() == CLIP and stored.sha256 == hashlib.sha256(CLIP).hexdigest()
    assert outside.server.hits == ["/clip.mp4?key=1"]  # type: ignore[attr-defined]


def test_a_redirect_within_an_allowed_host_is_followed(outside, tmp_path):
    stored = outside.intake().store(Given("video", outside.url("to//clip.mp4")), tmp_path / "video")
    assert stored.path.read_bytes() == CLIP


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1/",
        "http://inside.test/",
        "file:///etc/passwd",
        "//other.test/",
        "ftp://media.test/",
        "http://a@b/",
    ],
)
def test_a_redirect_elsewhere_is_refused(target, outside, tmp_path):
    assert ";" in refused(outside.intake(), outside.url(f"to/{target}"), tmp_path / "video")
    assert len(outside.server.hits) == 1  # type: ignore[attr-defined]


def test_a_redirect_to_itself_ends(outside, tmp_path):
    url = outside.url("to/" * 9 + "clip.mp4")
    assert "redirects" in refused(outside.intake(), url, tmp_path / "video")


def test_the_name_is_looked_up_once_so_that_a_later_answer_changes_nothing(outside, tmp_path):
    """DNS rebinding: public for the check, private for the connection."""
    later = iter([["127.0.0.1"], ["10.0.0.1"]])
    remote = Remote(outside.intake().remote.hosts, resolve=lambda *_: next(later), allows=lambda a: a.is_loopback)
    stored = Intake(1 << 20, None, remote).store(Given("video", outside.url()), tmp_path / "video")
    assert stored.path.read_bytes() == CLIP and next(later) == ["10.0.0.1"]


def test_an_address_that_does_not_answer_is_followed_by_the_next(outside, tmp_path):
    """As for a host with IPv6 on a machine without it. Nobody listens at 127.0.0.2."""
    for number, addresses in enumerate((["127.0.0.2", "::1", "127.0.0.1"], ["127.0.0.1", "127.0.0.2"])):
        remote = Remote(outside.intake().remote.hosts, resolve=lambda *_, all=addresses: all, allows=lambda _: True)
        assert Intake(1 << 20, None, remote).store(Given("video", outside.url()), tmp_path / str(number))
    remote = Remote(outside.intake().remote.hosts, resolve=lambda *_: ["::1", "127.0.0.2"], allows=lambda _: True)
    assert "cannot be fetched" in refused(Intake(1 << 20, None, remote), outside.url(), tmp_path / "video")


@pytest.mark.parametrize(("path", "cause"), [("missing/", "404"), ("packed/", "compressed"), ("short/", "early")])
def test_what_is_no_clip_is_refused(path, cause, outside, tmp_path):
    assert cause in refused(outside.intake(), outside.url(path), tmp_path / "video")


def test_a_clip_without_end_is_cut_off_by_its_bytes(outside, tmp_path):
    assert "more than 20,000 bytes" in refused(outside.intake(most=20_000), outside.url("endless/"), tmp_path / "video")
    assert outside.server.left.wait(10)  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", ["slow/", "late/"])  # without a length, and with one
def test_a_host_that_drips_is_left_after_the_limit(path, outside, tmp_path):
    assert "longer than 0.3 s" in refused(outside.intake(seconds=0.3), outside.url(path), tmp_path / "video")
    assert outside.server.left.wait(10)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("url", "host"), [("https://media.test/a", "media.test"), ("https://b.test:80/", "b.test:80")])
def test_a_host_is_named_as_in_its_address(url, host):
    near, far = socket.socketpair()
    with near, far:
        connection = _Connection(urlsplit(url), "127.0.0.1", _Clock(60))
        connection.sock = near
        connection.request("GET", "/")
        assert f"\r\nHost: {host}\r\n".encode() in far.recv(1000)


def test_inline_media_are_stored_within_their_limit(tmp_path):
    uri = f"data:video/mp4;base64,{base64.b64encode(CLIP).decode()}"
    stored = Intake(len(CLIP)).store(Given("video", uri), tmp_path / "video")
    assert stored.path.read_bytes() == CLIP
    assert "bytes" in refused(Intake(len(CLIP) - 1), uri, tmp_path / "video1")


@pytest.mark.parametrize("address", [PUBLIC, "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "64:ff9b::5db8:d70e"])
def test_public_addresses_are_public(address):
    assert is_public(ip_address(address))
