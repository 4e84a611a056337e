"""A media file, opened safely, and its packets.

In: a path. Out: a `Survey` of what the file holds (from a pass over its packets, because headers can be wrong), and
decoded frames of one track. Refuses anything but a plain media file before FFmpeg opens it. Knows nothing of requests.

A stamp is a presentation time in ticks of the track's time base.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
from av.error import FFmpegError
from av.format import Flags
from av.stream import Disposition

from pave.errors import MediaError
from pave.files import atomic
from pave.media import announced
from pave.media.stamps import FAR, JUMP, UNKNOWN, Clock, Packet, Shifts, Track, moved_at, spread

MAX_PIXELS = 1 << 28  # FFmpeg decodes no more, counted with a border (libavutil/imgutils.c, av_image_check_size2)
MAX_SIDE = 16384  # pixels: larger pictures are damaged headers or attacks, not video
RAW_SOUND = ("mp3", "aac", "ac3", "eac3")  # no header: FFmpeg estimates the length from the bit rate
COUNTED = (*RAW_SOUND, "wav", "w64", "aiff", "au", "dts", "amr", "tta", "wv", "ape")  # samples are the clock
SHORT = 0.9  # of the announced length: less present, and the report warns that the file is cut short
TRAILER = 256  # bytes after the last packet that may be no packet: an error there loses nothing
THREADS_FROM = 640 * 360  # pixels: for smaller pictures, threads cost more than they save
THREADS_TO = 8192 * 4320  # pixels: each thread holds pictures of its own
MOST_THREADS = 4
# Tracks that are read only if there is no other.
ASIDE = Disposition.hearing_impaired | Disposition.visual_impaired | Disposition.comment | Disposition.descriptions


@dataclass
class Survey:
    """What a file holds, from a pass over its packets."""

    kind: str
    counted: bool = False  # samples are the clock of its sound, not stamps
    video: Track | None = None
    audio: list[int] = field(default_factory=list)  # sound tracks, in the file's order
    heard: list[int] = field(default_factory=list)  # their indices, the one to read first, then those to try instead
    packets: list[Packet] = field(default_factory=list)
    sounds: int = 0  # coded pieces of sound
    shifts: Shifts = field(default_factory=dict)
    promised: float | None = None  # seconds that the header announces
    reached: float = 0.0  # seconds that packets cover
    frames: int = 0  # pictures that the header announces, 0 if it does not
    cut: int = 0  # pictures that an edit list cuts off
    missing: str = ""  # what the file lacks at its end, by its header, in words
    encrypted: bool = False
    warnings: list[str] = field(default_factory=list)

    @property
    def stamps(self) -> list[int]:
        """Those of the coded pictures, in the file's order."""
        return [packet.stamp for packet in self.packets]

    @property
    def cut_short(self) -> list[str]:
        """The warning of a file that holds less than its header announces."""
        if self.promised and self.reached < SHORT * self.promised:
            return [f"cut short: {self.reached:.2f} s of the announced {self.promised:.2f} s are present"]
        return [self.missing] if self.missing else []


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
        with atomic.opened(path) as file:
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
    with atomic.opened(path) as file:
        head = file.read(12)
    if head[4:8] == b"ftyp":
        return "is an MP4 whose index is missing or damaged", "it was probably cut short: download or record it again"
    reason = getattr(error, "strerror", None) or type(error).__name__
    return f"not a media file that FFmpeg can open ({reason})", "pass a video, sound or image file"


def walk(path: str, video_track: int | None = None, audio_track: int | None = None) -> Survey:
    """Read all packets without decoding any. Tracks are counted from 0 within their kind; None: the default one."""
    with opened(path) as container:
        pictures = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        sounds = list(container.streams.audio)
        survey = Survey(container.format.name, container.format.name in COUNTED, audio=[s.index for s in sounds])
        survey.missing = announced.cut_short(path)
        if not pictures and not sounds:
            kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
            raise refuse(path, f"holds neither pictures nor sound (only {kinds})", "pass a video, sound or image file")
        if films := ordered(path, pictures, "video", video_track):
            survey.video = track_of(path, films[0], survey.kind)
            survey.frames = films[0].frames if "mp4" in survey.kind else 0  # AVI counts ticks, not pictures
            if len(pictures) > 1 and video_track is None:
                number = pictures.index(films[0])
                survey.warnings.append(f"{len(pictures)} video tracks: video_track={number} is used")
        survey.heard = [sounds.index(stream) for stream in ordered(path, sounds, "audio", audio_track)]
        if container.duration and survey.kind not in RAW_SOUND:
            survey.promised = container.duration / av.time_base
        begin = (container.start_time or 0) / av.time_base
        clock = Clock(bool(container.format.flags & Flags.ts_discont.value))
        end = 0
        try:
            for packet in container.demux():
                end = max(end, (packet.pos or 0) + packet.size)
                note(packet, survey, clock)
        except FFmpegError as error:
            if os.path.getsize(path) - end > TRAILER:
                survey.warnings.append(f"reading stopped after {len(survey.packets)} pictures: {error.strerror}")
        except IndexError:
            survey.warnings.append("a track that begins in the middle of the file is left out")  # PyAV 18 raises this
    if not survey.counted:
        clock.settle()
    if survey.kind == "flac" and clock.breaks:  # joined: the piece at the join has no stamp
        survey.counted, clock.shifts = True, {}
    survey.shifts, survey.reached = clock.shifts, clock.reached() - begin
    if survey.promised and "mp4" in survey.kind and survey.promised > begin > 0:
        survey.promised -= begin  # fragments that begin late: their header counts from 0
    if clock.breaks or clock.strays:
        survey.promised = None  # the header's length was computed from stamps that are wrong
    survey.warnings += clock.told(begin)
    if survey.video is not None:
        settle_pictures(survey, survey.video)
    return survey


def settle_pictures(survey: Survey, track: Track) -> None:
    """Put the stamps of the pictures on the clip's clock, each of its own."""
    places = survey.shifts.get(track.index, [])
    moved = [
        each._replace(stamp=each.stamp + moved_at(places, n)) if each.stamp > UNKNOWN else each
        for n, each in enumerate(survey.packets)
    ]
    survey.packets, survey.video, count = spread(moved, track)
    if count and survey.packets[0].stamp > UNKNOWN:
        told = "pictures repeat the time stamp of another: they are spread evenly up to the next stamp"
        survey.warnings.append(f"{count} {told}")
    elif count:
        survey.promised = None  # nothing is known about their end
        survey.warnings.append(f"the {count} pictures share few time stamps: they are shown at the frame rate")


def ordered(path: str, streams: list[Any], kind: str, chosen: int | None) -> list[Any]:
    """Tracks of one kind, the one to use first: the caller's alone, or else the file's default one before the others,
    and those for the blind or deaf and commentaries last."""
    if chosen is None:
        return sorted(streams, key=lambda s: (bool(s.disposition & ASIDE), not s.disposition & Disposition.default))
    if not 0 <= chosen < len(streams):
        has = f"has {len(streams)} {kind} tracks" if len(streams) != 1 else f"has 1 {kind} track"
        raise refuse(path, f"{has}, and {kind}_track={chosen} was requested", "tracks are counted from 0")
    return [streams[chosen]]


def note(packet: Any, survey: Survey, clock: Clock) -> None:
    """Record one packet in the survey."""
    stream = packet.stream
    if not packet.size or stream.type not in ("video", "audio"):
        return
    for name in ("dts", "pts"):
        if getattr(packet, name) is not None and not -FAR < getattr(packet, name) < FAR:
            setattr(packet, name, None)
    if None not in (packet.dts, packet.pts) and abs(packet.pts - packet.dts) * packet.time_base > JUMP:
        packet.pts, clock.strays = packet.dts, clock.strays + 1
    cut = packet.is_discard and not fragmented(survey.kind, stream)
    clock.see(packet, stream, cut)
    survey.encrypted |= packet.has_sidedata("encryption_info")
    if survey.video is not None and stream.index == survey.video.index:
        survey.cut += cut
        shown = not cut  # one that is flagged as corrupt may decode well: the last before a join
        usable = UNKNOWN if packet.pts is None or survey.video.unsorted else packet.pts
        survey.packets.append(Packet(usable, packet.is_keyframe, shown))
    elif stream.type == "audio":
        survey.sounds += 1


def fragmented(kind: str, stream: Any) -> bool:
    """Whether a track is an MP4's whose header lists no samples. FFmpeg marks those of a fragment that goes back in
    time as if an edit list had cut them off."""
    return "mp4" in kind and not stream.frames


def uncut(packet: Any) -> Any:
    """The packet without the mark of an edit list, which makes decoders drop its pictures."""
    whole = av.Packet(bytes(packet))
    whole.pts, whole.dts, whole.time_base, whole.duration = packet.pts, packet.dts, packet.time_base, packet.duration
    whole.is_keyframe = packet.is_keyframe
    return whole


def track_of(path: str, stream: Any, kind: str) -> Track:
    """The header of a video track in a container of this kind; oversized pictures are refused."""
    context = stream.codec_context
    if context is None:
        raise refuse(path, "its video track has a codec that this FFmpeg does not know", "re-encode it as H.264")
    if max(context.width, context.height) > MAX_SIDE or (context.width + 128) * (context.height + 128) >= MAX_PIXELS:
        cause = f"its pictures are {context.width}x{context.height} pixels, more than {MAX_SIDE} a side"
        cause += f" or {MAX_PIXELS >> 20} M in all"
        raise refuse(path, cause, "scale it down first")
    pace = stream.average_rate or stream.guessed_rate
    gap, size = 1 / pace if pace else Fraction(0), (context.height, context.width)
    return Track(stream.index, stream.time_base, gap, size, kind == "avi" and bool(context.has_b_frames))


def stamped(
    container: Any, track: Track, stamps: Sequence[int] | None = None, feed: Sequence[bool] | None = None
) -> Iterator[tuple[int, Any]]:
    """Decoded pictures with ascending stamps: those of `stamps` by packet, or the file's own. A stream without stamps
    gets them from its frame rate; AVI, which has none for reordered pictures, from the packet that made the decoder
    output the picture."""
    stream = container.streams[track.index]
    many = THREADS_FROM <= track.size[0] * track.size[1] <= THREADS_TO
    stream.codec_context.thread_type = "AUTO" if many else "NONE"
    stream.codec_context.thread_count = min(os.cpu_count() or 1, MOST_THREADS) if many else 1
    stamp, step, first = None, max(round(track.gap / track.base), 1), None

    def place(number: int, packet: Any) -> None:
        if stamps is not None:
            packet.pts = None if stamps[number] == UNKNOWN else stamps[number]

    for frame in decoded(container, stream, place, feed):
        known = frame.pts
        if track.unsorted:
            first = frame.dts if first is None else first
            known = None if frame.dts is None or first is None else frame.dts - first
            step = known - stamp if known is not None and stamp is not None else step
        stamp = known if known is not None else 0 if stamp is None else stamp + step
        yield stamp, frame


def heard(container: Any, index: int, shifts: Shifts, failed: list[int] | None = None) -> Iterator[Any]:
    """Decoded pieces of a sound track, stamped on the clip's clock. `failed` gets the numbers of those that do not
    decode."""
    places = shifts.get(index, [])

    def place(number: int, packet: Any) -> None:
        if packet.pts is not None:
            packet.pts += moved_at(places, number)

    yield from decoded(container, container.streams[index], place, failed=failed)


def decoded(
    container: Any,
    stream: Any,
    place: Callable[[int, Any], None],
    feed: Sequence[bool] | None = None,
    failed: list[int] | None = None,
) -> Iterator[Any]:
    """Every frame that decodes, or only those of the packets that `feed` marks; damaged packets are skipped, and their
    numbers noted in `failed`. `place` sets the stamp of each packet."""
    context, number, dirty = stream.codec_context, -1, False
    whole = fragmented(container.format.name, stream)
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
                if packet.size:
                    place(number, packet)
                try:
                    frames = context.decode(uncut(packet) if packet.is_discard and whole else packet)
                except FFmpegError:
                    frames = failed.append(number) if failed is not None else None
                yield from frames or ()
    except (FFmpegError, IndexError):  # the survey has recorded this
        yield from tried(context, None) if dirty else ()


def tried(context: Any, packet: Any) -> list[Any]:
    """Frames of one packet; none if it is damaged."""
    try:
        return context.decode(packet)
    except FFmpegError:
        return []
