"""Animated WebP, which FFmpeg 8.1 cannot decode, and Pillow can.

In: a path. Out: when each picture is shown, from the file's chunks (RFC 9649, section 2.7), and the pictures.

A stamp is in milliseconds from the beginning of the animation.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import accumulate

import numpy as np

from pave.files.atomic import opened
from pave.media.container import MAX_SIDE, Survey, refuse
from pave.media.stamps import Packet, Track

KIND = "animated WebP"
ANIMATED = 0x02  # flag of the VP8X chunk


def animated(path: str) -> bool:
    """Whether a file is an animated WebP."""
    with opened(path) as file:
        head = file.read(21)
    return head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) > 20 and bool(head[20] & ANIMATED)


def survey_of(path: str) -> Survey:
    """What the animation holds."""
    size, lengths, cut = (0, 0), [], False
    with opened(path) as file:
        end = 8 + int.from_bytes(file.read(8)[4:], "little")
        file.seek(12)
        while len(head := file.read(8)) == 8:
            name, length = head[:4], int.from_bytes(head[4:], "little")
            begin, fields = file.tell(), file.read(min(length, 16))
            if name == b"VP8X":
                width, height = (1 + int.from_bytes(fields[k : k + 3], "little") for k in (4, 7))
                size = (height, width)
            elif name == b"ANMF":
                lengths.append(int.from_bytes(fields[12:15], "little"))
            file.seek(begin + length + length % 2)
        cut = file.seek(0, 2) < end
    if max(size) > MAX_SIDE:
        cause = f"its pictures are {size[1]}x{size[0]} pixels, more than {MAX_SIDE} a side"
        raise refuse(path, cause, "scale it down first")
    stamps = [0, *accumulate(lengths)]
    gap = Fraction((lengths or [0])[-1], 1000)
    survey = Survey(KIND, video=Track(0, Fraction(1, 1000), gap, size, False), reached=stamps[-1] / 1000)
    survey.packets = [Packet(stamp, True, True) for stamp in stamps[:-1]]
    survey.warnings += ["cut short: the file is smaller than its header says"] if cut else []
    return survey


def pictures_of(path: str, packets: list[Packet]) -> Iterator[tuple[int, np.ndarray]]:
    """The pictures (y x 3) that decode, with their stamps."""
    from PIL import Image  # rarely needed; keeps the worker's start fast

    try:
        with Image.open(path) as image:
            for number, packet in enumerate(packets):
                image.seek(number)
                yield packet.stamp, np.asarray(image.convert("RGB"))
    except (OSError, EOFError, ValueError, SyntaxError, Image.DecompressionBombError):
        return  # what was read so far counts, as in other damaged files
