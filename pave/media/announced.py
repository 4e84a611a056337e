"""How long a file says that it is, in bytes.

In: a path. Out: bytes that its header announces, at least; 0 where it announces none. FFmpeg reads a file that was cut
short to its end and says nothing. Knows nothing of decoders.

Formats: ISO 14496-12 (boxes), RIFF with EBU Tech 3306 (RF64) and AIFF, RFC 8794 (Matroska's segment), ASF 1.20.03
section 3.2, Adobe's FLV (`filesize` in onMetaData), the Xing header of MP3.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from pave.files import atomic

HEAD = 1 << 16  # bytes in which a header announces the length
SLACK = 1024  # bytes: headers that count padding, or tags at the end, as others do not
MOST_BOXES = 100_000
ENDLESS = 0x7FFF0000  # RIFF lengths from here on are placeholders of tools that wrote to a pipe
ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def cut_short(path: str) -> str:
    """What is missing at the end of a file, in words; empty if nothing is."""
    with atomic.opened(path) as file:
        head, size = file.read(HEAD), file.seek(0, 2)
        announced = boxes(file, size) if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide") else in_head(head)
    if announced - size <= SLACK:
        return ""
    return f"cut short: {size} of the announced {announced} bytes are present"


def boxes(file: BinaryIO, size: int) -> int:
    """Where the last box of an MP4 ends."""
    at = 0
    for _ in range(MOST_BOXES):
        file.seek(at)
        head = file.read(16)
        if len(head) < 8 or not head[4:8].isalnum():
            break
        length = int.from_bytes(head[:4], "big")
        length = int.from_bytes(head[8:16], "big") if length == 1 else length
        if length < 8 or at + length > 1 << 62:  # 0: to the end of the file
            break
        at += length
        if at >= size:
            return at
    return 0


def in_head(head: bytes) -> int:
    """The length of a file that begins like this."""
    if head.startswith((b"RIFF", b"FORM")):
        length = int.from_bytes(head[4:8], "little" if head.startswith(b"RIFF") else "big")
        return length + 8 if length < ENDLESS else 0
    if head.startswith(b"RF64") and head[12:16] == b"ds64":
        return int.from_bytes(head[20:28], "little") + 8
    if head.startswith(EBML):
        return of_segment(head)
    if (at := head.find(ASF_FILE)) >= 0:
        return int.from_bytes(head[at + 40 : at + 48], "little")
    name = b"\x00\x08filesize\x00"
    if head.startswith(b"FLV") and 0 <= (at := head.find(name)) <= len(head) - len(name) - 8:
        (length,) = struct.unpack_from(">d", head, at + len(name))
        return int(length) if 0 < length < 1 << 62 else 0
    return of_mp3(head)


def of_segment(head: bytes) -> int:
    """The end of the first segment of a Matroska file."""
    at = head.find(SEGMENT) + len(SEGMENT)
    width = 9 - head[at].bit_length() if len(SEGMENT) <= at < len(head) else 9
    length = int.from_bytes(head[at : at + width], "big") & ((1 << 7 * width) - 1)
    known = width <= 8 and length != (1 << 7 * width) - 1
    return at + width + length if known else 0


def of_mp3(head: bytes) -> int:
    """The end of the MP3 that the Xing header tells."""
    size = head[6:10]
    begin = 10 + sum(byte << 7 * (3 - k) for k, byte in enumerate(size)) if head.startswith(b"ID3") else 0
    frame = head[begin : begin + 256]
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    if len(frame) < 2 or frame[0] != 0xFF or frame[1] & 0xE0 != 0xE0 or at < 0:
        return 0
    flags, after = int.from_bytes(frame[at + 4 : at + 8], "big"), at + 8 + 4 * (frame[at + 7] & 1)
    return begin + int.from_bytes(frame[after : after + 4], "big") if flags & 2 else 0
