"""The media of a request as files in a folder of its own.

In: URIs as OpenAI and vLLM write them: `data:`, http(s), and `file:` under one folder. Out: files, within a limit of
bytes, that only this process reads; none has a name that a client chose. Knows nothing of models.
"""

from __future__ import annotations

import binascii
import hashlib
import os
from base64 import b64decode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from pave.errors import MediaError
from pave.files import atomic
from pave.serving.remote import PIECE, Remote

Kind = Literal["image", "video", "audio"]


@dataclass(frozen=True)
class Given:
    """Where the bytes of one content part are."""

    kind: Kind
    uri: str


@dataclass(frozen=True)
class Stored:
    """A file of a request."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Intake:
    """What media a server takes."""

    most: int = 64 << 20  # bytes of a file
    folder: Path | None = None  # that `file:` URIs may name files in; None: none may
    remote: Remote = field(default_factory=Remote)

    def store(self, given: Given, path: Path) -> Stored:
        """Write the bytes of a content part to a new file; MediaError if they are refused."""
        digest = hashlib.sha256()
        size = 0
        with open(path, "xb") as file:
            for piece in self._pieces(given):
                size += len(piece)
                if size > self.most:
                    raise MediaError(f"the {given.kind} has more than {self.most:,} bytes; send a smaller file")
                digest.update(piece)
                file.write(piece)
        return Stored(path, digest.hexdigest())

    def _pieces(self, given: Given) -> Iterable[bytes]:
        scheme = given.uri[:16].partition(":")[0].lower()
        if scheme == "data":
            return [self._inline(given)]
        if scheme in ("http", "https"):
            return self.remote.pieces(given.uri)
        if scheme == "file":
            return self._local(given.uri)
        remedy = "send data:<type>;base64,<bytes>, or an address"
        raise MediaError(f"the {given.kind} is no data:, https:, http: or file: URI; {remedy}")

    def _inline(self, given: Given) -> bytes:
        head, comma, body = given.uri.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise MediaError(f"the {given.kind} is a data: URI without ;base64; write data:<type>;base64,<bytes>")
        if len(body) > self.most * 4 // 3 + 4:
            raise MediaError(f"the {given.kind} has more than {self.most:,} bytes; send a smaller file")
        try:
            return b64decode(body, validate=True)
        except (binascii.Error, ValueError) as error:
            raise MediaError(f"the {given.kind} is not valid base64 ({error}); encode the whole file again") from None

    def _local(self, uri: str) -> Iterator[bytes]:
        """A plain file under the folder, with all links followed. The same words for one that is not there and one that
        is elsewhere: a client learns nothing about other files."""
        if self.folder is None:
            raise MediaError("files of the server's machine are not read; send a data: URI (or: --media-folder)")
        refused = MediaError("no such file in the media folder; check the name")
        try:
            parts = urlsplit(uri)
            if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
                raise refused
            folder = self.folder.resolve(strict=True)
            path = Path(unquote(parts.path, errors="strict")).resolve(strict=True)
            if not path.is_relative_to(folder):
                raise refused
            with atomic.opened(path) as file:
                if path.resolve(strict=True) != path or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    raise refused  # a link has taken its place meanwhile
                while piece := file.read(PIECE):
                    yield piece
        except (OSError, ValueError, RuntimeError):  # RuntimeError: a loop of links, before Python 3.13
            raise refused from None
