"""Claims about reading by ranges: the right bytes whatever the connection does, or an error that says what to do."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import pytest
from huggingface_hub import constants
from ranges import Web

from pave.errors import FileError
from pave.hub import remote
from pave.hub.remote import RangeFile, Remote

DATA = bytes(range(256)) * 400


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with Web(DATA) as web:
        yield web


def test_ranges_are_read_and_nothing_else(web: Web) -> None:
    file = Remote(web.address)
    assert (file.size, file.ranges, file.version) == (len(DATA), True, '"one"')
    assert file.read(1000, 3000) == DATA[1000:3000] and web.sent() == 2001


@pytest.mark.parametrize(
    "fault",
    [
        lambda handler: handler.send(cut=500),
        lambda handler: handler.send(cut=0),
        lambda handler: handler.answer(503, b"busy"),
        lambda handler: handler.answer(429, b"slowly"),
        lambda handler: handler.connection.close(),
        lambda handler: handler.send(slow=0.01),
    ],
)
def test_a_read_that_is_cut_or_refused_for_now_goes_on_where_it_stopped(web: Web, fault: Any) -> None:
    file, web.faults = Remote(web.address), [fault, fault]
    assert file.read(100, 90_000) == DATA[100:90_000]


def test_a_stalled_connection_is_opened_again(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Remote(web.address)
    monkeypatch.setattr(remote, "STALL", 0.2)

    def stall(handler: Any) -> None:
        handler.send(cut=-1)
        handler.rfile.read(1)  # until the client hangs up

    web.faults = [stall]
    assert file.read(0, 9000) == DATA[:9000]


def test_what_cannot_be_had_is_an_error_with_the_address(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileError, match=f"{web.root}/other: the server answers 404 .*; check the address"):
        Remote(f"{web.root}/other")
    web.faults = [lambda handler: handler.answer(403, b"no")]
    with pytest.raises(FileError, match=r"answers 403 .*; you have no access"):
        Remote(web.address)
    file = Remote(web.address)
    web.faults = [lambda handler: handler.send(cut=0)] * 9
    with pytest.raises(FileError, match="9,000 bytes early, 5 times in a row; try again: what has arrived is kept"):
        file.read(0, 9000)
    web.faults, web.etag = [], '"two"'
    with pytest.raises(FileError, match="changed on the server"):
        file.read(0, 9000)
    wrong: Any = {"Content-Range": "bytes 0-9/10"}
    web.faults = [lambda handler: handler.answer(206, DATA[:10], **wrong)]
    with pytest.raises(FileError, match="answers 206 'bytes 0-9/10' to a request for bytes 50-59"):
        file.read(50, 60)
    for address, cause in (("file:///etc/passwd", "is not an http"), ("http://127.0.0.1:1/x", "cannot be reached")):
        with pytest.raises(FileError, match=cause):
            Remote(address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileError, match="offline mode is on; unset HF_HUB_OFFLINE"):
        Remote(web.address)


def test_redirects_are_followed_without_the_token(web: Web) -> None:
    with Web(DATA) as other:
        file = Remote(f"{web.root}/to/{other.address}", {"authorization": "Bearer hf_secret"})
        assert file.read(5, 50) == DATA[5:50]
        assert {token for *_, token in web.seen} == {"Bearer hf_secret"} and {token for *_, token in other.seen} == {""}
    for address in (f"{web.root}/to/file:///etc/passwd", f"{web.root}/to/{web.root}/to/{web.root}/nowhere"):
        with pytest.raises(FileError, match=r"the server answers 30|the server answers 404"):
            Remote(address)


def test_a_remote_zip_is_read_as_a_local_one_with_few_bytes(web: Web) -> None:
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in "abc":
            archive.writestr(name, name.encode() * 3_000_000)
    web.data = packed.getvalue()
    with zipfile.ZipFile(RangeFile(Remote(web.address))) as archive:
        assert archive.namelist() == ["a", "b", "c"] and web.sent() <= remote.TAIL + 1
        assert archive.read("c") == b"c" * 3_000_000
    assert web.sent() < 5_000_000
