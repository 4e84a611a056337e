"""A media file, opened safely, and its packets.

In: a path. Out: a `Survey` of what the file holds (from a pass over its packets, because headers can be wrong), and
decoded frames of one track. Refuses anything but a plain media file before FFmpeg opens it. Knows nothing of requests.

A stamp is a presentation time in ticks of the track's time base.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import av
from av.error import FFmpegError
from av.stream import Disposition

from pave.errors import MediaError

MAX_SIDE = 16384  # pixels: larger pictures are damaged headers or attacks, not video
UNKNOWN = -(1 << 62)  # below every real stamp
RAW_SOUND = ("mp3", "aac", "ac3", "eac3")  # no header: FFmpeg estimates the length from the bit rate
THREADS_FROM = 640 * 360  # pixels: for smaller pictures, threads cost more than they save


class Track(NamedTuple):
    """The header of a video track."""

    index: int
    base: Fraction  # seconds of one tick
    gap: Fraction  # usual seconds between two pictures
    size: tuple[int, int]  # y x
    unsorted: bool  # its stamps are in coding order, not in display order


class Packet(NamedTuple):
    """One coded picture, not decoded."""

    stamp: int  # UNKNOWN if the file has none
    key: bool
    shown: bool  # False: never displayed (cut off by an edit list, or flagged as damaged)


@dataclass
class Survey:
    """What a file holds, from a pass over its packets."""

    kind: str
    video: Track | None = None
    audio: list[int] = field(default_factory=list)
    packets: list[Packet] = field(default_factory=list)
    promised: float | None = None  # seconds that the header announces
    reached: float = 0.0  # seconds that packets cover
    frames: int = 0  # pictures that the header announces, 0 if it does not
    cut: int = 0  # pictures that an edit list cuts off
    warnings: list[str] = field(default_factory=list)


def refuse(path: str, cause: str, remedy: str) -> MediaError:
    """A MediaError that names the file, the cause and the remedy."""
    return MediaError(f"{path}: {cause}; {remedy}")


def decoder() -> str:
    """Name and versions of the decoder, for reports and run cards."""
    return f"PyAV {av.__version__} (FFmpeg {av.ffmpeg_version_info})"


def check_file(path: str) -> None:
    """Refuse anything but a plain media file, before FFmpeg opens it (a named pipe would block it)."""
    if "://" in path:
        raise refuse(path, "is an address, not a file", "download it first")
    try:
        info = os.stat(path)
        if stat.S_ISDIR(info.st_mode):
            raise refuse(path, "is a folder", "pass a file in it")
        if not stat.S_ISREG(info.st_mode):
            raise refuse(path, "is a pipe or a device, not a file", "save the media to a file first")
        if info.st_size == 0:
            raise refuse(path, "is empty (0 bytes)", "download or record it again")
        with open(path, "rb") as file:
            head = file.read(256)
    except FileNotFoundError:
        raise refuse(path, "no such file", "check the name and the folder") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise refuse(path, f"cannot be read ({error})", "check its name and permissions") from None
    check_head(path, head.lstrip(b"\xef\xbb\xbf \t\r\n"))


def check_head(path: str, head: bytes) -> None:
    """Refuse common files that are not media. Playlists are refused because they make FFmpeg open other files."""
    if head.startswith(b"version https://git-lfs"):
        raise refuse(path, "is a Git LFS pointer, not the media file itself", "run `git lfs pull`")
    if head[:9].lower().startswith((b"<!doctype", b"<html")):
        raise refuse(path, "is a web page, not media", "the download failed: download the file itself")
    if head.startswith((b"#EXTM3U", b"ffconcat", b"<?xml", b"<MPD")):
        raise refuse(path, "is a playlist, not media", "pass the media file that it points to")


@contextmanager
def opened(path: str) -> Iterator[Any]:
    """The file as a PyAV container that can read nothing but this file."""
    try:
        # "file:" keeps FFmpeg from reading names such as "concat:a|b" or "http:x" as protocols, and pattern_type from
        # reading "a%d.png" as a sequence of files.
        container = av.open(
            f"file:{path}", metadata_errors="ignore", options={"protocol_whitelist": "file", "pattern_type": "none"}
        )
    except (FFmpegError, UnicodeError) as error:
        raise refuse(path, *why_not_opened(path, error)) from None
    with container:
        if container.format.name in ("tty", "concat", "hls", "dash", "lavfi", "sdp"):
            raise refuse(path, f"is not media (FFmpeg reads it as {container.format.name!r})", "pass a video file")
        yield container


def why_not_opened(path: str, error: Exception) -> tuple[str, str]:
    """Cause and remedy for a file that FFmpeg cannot open."""
    with open(path, "rb") as file:
        head = file.read(12)
    if head[4:8] == b"ftyp":
        return "is an MP4 whose index is missing or damaged", "it was probably cut short: download or record it again"
    reason = getattr(error, "strerror", None) or type(error).__name__
    return f"not a media file that FFmpeg can open ({reason})", "pass a video, sound or image file"


def walk(path: str) -> Survey:
    """Read all packets without decoding any."""
    with opened(path) as container:
        pictures = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        survey = Survey(container.format.name, audio=[s.index for s in container.streams.audio])
        if not pictures and not survey.audio:
            kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
            raise refuse(path, f"holds neither pictures nor sound (only {kinds})", "pass a video, sound or image file")
        if pictures:
            survey.video = track_of(path, pictures[0], survey.kind)
            survey.frames = pictures[0].frames if "mp4" in survey.kind else 0  # AVI counts ticks, not pictures
        if len(pictures) > 1:
            survey.warnings.append(f"{len(pictures)} video tracks: the first is used")
        if container.duration and survey.kind not in RAW_SOUND:
            survey.promised = container.duration / av.time_base
        begin = (container.start_time or 0) / av.time_base
        ticks = [float(stream.time_base or 0) for stream in container.streams]
        try:
            for packet in container.demux():
                note(packet, survey, begin, ticks)
        except FFmpegError as error:
            survey.warnings.append(f"reading stopped at {survey.reached:.2f} s: {error.strerror}")
        except IndexError:
            survey.warnings.append("a track that begins in the middle of the file is left out")  # PyAV 18 raises this
    return survey


def note(packet: Any, survey: Survey, begin: float, ticks: list[float]) -> None:
    """Record one packet in the survey."""
    if not packet.size:
        return
    index, stamp = packet.stream_index, packet.pts
    if survey.video is not None and index == survey.video.index:
        survey.cut += packet.is_discard
        shown = not (packet.is_discard or packet.is_corrupt)
        usable = UNKNOWN if stamp is None or survey.video.unsorted else stamp
        survey.packets.append(Packet(usable, packet.is_keyframe, shown))
    if stamp is not None:
        survey.reached = max(survey.reached, (stamp + (packet.duration or 0)) * ticks[index] - begin)


def track_of(path: str, stream: Any, kind: str) -> Track:
    """The header of a video track in a container of this kind; oversized pictures are refused."""
    context = stream.codec_context
    if context is None:
        raise refuse(path, "its video track has a codec that this FFmpeg does not know", "re-encode it as H.264")
    if max(context.width, context.height) > MAX_SIDE:
        cause = f"its pictures are {context.width}x{context.height} pixels, more than {MAX_SIDE} a side"
        raise refuse(path, cause, "scale it down first")
    pace = stream.average_rate or stream.guessed_rate
    gap, size = 1 / pace if pace else Fraction(0), (context.height, context.width)
    return Track(stream.index, stream.time_base, gap, size, kind == "avi" and bool(context.has_b_frames))


def stamped(container: Any, track: Track, feed: list[bool] | None = None) -> Iterator[tuple[int, Any]]:
    """Decoded pictures with ascending stamps. A stream without stamps gets them from its frame rate; AVI, which has
    none for reordered pictures, from the packet that made the decoder output the picture."""
    stream = container.streams[track.index]
    if track.size[0] * track.size[1] < THREADS_FROM:
        stream.codec_context.thread_count = 1
    else:
        stream.codec_context.thread_type = "AUTO"
    stamp, step, first = None, max(round(track.gap / track.base), 1), None
    for frame in decoded(container, stream, feed):
        known = frame.pts
        if track.unsorted:
            first = frame.dts if first is None else first
            known = None if frame.dts is None or first is None else frame.dts - first
            step = known - stamp if known is not None and stamp is not None else step
        stamp = known if known is not None else 0 if stamp is None else stamp + step
        yield stamp, frame


def decoded(container: Any, stream: Any, feed: list[bool] | None = None) -> Iterator[Any]:
    """Every frame that decodes, or only those of the packets that `feed` marks; damaged packets are skipped."""
    context, number, dirty = stream.codec_context, -1, False
    try:
        for packet in container.demux(stream):
            number += bool(packet.size)  # the empty packet at the end flushes the decoder
            if packet.size and feed is not None and not feed[number]:
                if dirty:
                    yield from tried(context, None)
                    context.flush_buffers()
                dirty = False
            elif packet.size or dirty:
                dirty = True
                yield from tried(context, packet)
    except (FFmpegError, IndexError):  # the survey has recorded this
        yield from tried(context, None) if dirty else ()


def tried(context: Any, packet: Any) -> list[Any]:
    """Frames of one packet; none if it is damaged."""
    try:
        return context.decode(packet)
    except FFmpegError:
        return []
