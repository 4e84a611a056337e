"""Are media files read as a player shows them? More than 200 files of four kinds, made here, against their design and
against the ffmpeg command; then hostile files, and the memory and time of the process that decodes them.

    python benchmarks/media.py                              # writes benchmarks/results/media.json; some minutes
    python benchmarks/media.py --only NAME --keep FOLDER    # one file alone (a part of its name), which stays
    python benchmarks/media.py --small                      # files that need no ffmpeg command; writes nothing
    python benchmarks/media.py --hostile                    # the hostile files alone

Each file has white pictures and 1 kHz tones at known seconds (`media_cases.py`). Right is: as many pictures as the
design says (or ffmpeg decodes), each flash and each tone within 20 ms, and their distance within 20 ms; a warning where
one is due, none in a clean file; an error of ours where a file cannot be read. `witness` says what ffmpeg made of it,
with its usual repair of clocks (`-af aresample=async=1`); the design decides where both differ, unless the case says
otherwise.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
import torch
from av import logging  # pyright: ignore[reportPrivateImportUsage]
from media_case import NOTHING, Case, Heard, Moments
from media_cases import cases
from media_hostile import Hostile, hostile
from study import Study

from pave.errors import PaveError
from pave.media import Clip
from pave.media.decoding import WORKERS

NEAR = 0.020  # seconds
WHITE = 225.0
LEVEL = 1.0  # dB
WITNESS = 300.0  # seconds for the ffmpeg command
LIMIT, GRACE = 30.0, 60.0  # seconds given to a hostile file; more for a busy machine, and to copy what was read
MEMORY = 1536.0  # MB of the process that decodes


@dataclass(frozen=True)
class Seen:
    """What somebody saw in a file."""

    pictures: int = 0
    heard: Heard = NOTHING
    seconds: float = 0.0
    level: float | None = None  # dB of the first tone
    warnings: tuple[str, ...] = ()
    refused: str = ""


def flashes_of(times: np.ndarray, means: np.ndarray) -> Moments:
    """Seconds of each first white picture."""
    white = means > WHITE
    return tuple(float(times[n]) for n in np.flatnonzero(white & ~np.r_[False, white[:-1]]))


def loudness(sound: np.ndarray, rate: int) -> np.ndarray:
    """Amplitude of the 1 kHz band around each sample, over 10 ms."""
    window = max(round(rate * 0.01), 2)
    wave = np.zeros(len(sound), np.float32)
    for low in range(0, len(sound), 1 << 20):
        piece = sound[max(low - window, 0) : low + (1 << 20) + window].astype(np.float64)
        if not piece.any():
            continue
        turned = piece * np.exp(-2j * np.pi * 1000 / rate * np.arange(len(piece)))
        total = np.concatenate([[0], np.cumsum(turned)])
        at = np.arange(low, min(low + (1 << 20), len(sound))) - max(low - window, 0)
        first, last = np.clip(at - window // 2, 0, len(piece)), np.clip(at + window - window // 2, 0, len(piece))
        wave[low : low + len(at)] = 2 * np.abs(total[last] - total[first]) / window
    return wave


def tones_of(sound: np.ndarray, rate: int, begin: float) -> tuple[Moments, float | None]:
    """Seconds of each onset, and the dB of the loudest."""
    wave = loudness(sound, rate)
    peak = float(wave.max(initial=0.0))
    if peak < 0.003:
        return (), None
    loud = np.flatnonzero(wave > peak / 2)
    starts = loud[np.r_[True, np.diff(loud) > 0.25 * rate]]
    ends = np.r_[loud[:-1][np.diff(loud) > 0.25 * rate], loud[-1]]
    tones = tuple(float(begin + a / rate) for a, b in zip(starts, ends, strict=True) if b - a > 0.02 * rate)
    return tones, 20 * float(np.log10(peak))


def by_pave(path: Path, case: Case) -> Seen:
    try:
        clip = Clip.read(path, **{"frames": None, **case.read})
    except PaveError as error:
        return Seen(refused=str(error).replace(str(path), ""))
    flashes: Moments = ()
    if clip.frames is not None and clip.times is not None:
        means = torch.stack([picture.float().mean() for picture in clip.frames]).numpy()
        flashes = flashes_of(clip.times.numpy(), means)
    tones, level = (), None
    if clip.audio is not None and clip.rate:
        tones, level = tones_of(clip.audio[0].numpy(), clip.rate, clip.audio_start)
    count = 0 if clip.frames is None else len(clip.frames)
    return Seen(count, (flashes, tones), clip.report.seconds, level, clip.report.warnings)


def by_ffmpeg(path: Path, case: Case) -> Seen:
    """What the command decodes, with its repair of clocks; seconds after its first picture."""
    out = path.with_name("witness.mkv")
    choose = [f"0:v:{case.read.get('video_track', 0)}?" if "video_track" in case.read else None]
    choose += [f"0:a:{case.read['audio_track']}?" if "audio_track" in case.read else None]
    maps = [part for name in choose if name for part in ("-map", name)]
    maps += ["-map", "0:v?"] if maps and not choose[0] else ["-map", "0:a?"] if maps and not choose[1] else []
    command = ["ffmpeg", "-hide_banner", "-nostdin", "-y", "-i", str(path), *maps, "-vf", "scale=16:16,format=gray"]
    command += [
        "-fps_mode",
        "passthrough",
        "-enc_time_base",
        "1/1000",
        "-c:v",
        "rawvideo",
        "-af",
        "aresample=async=1:first_pts=0",
        "-ac",
        "1",
    ]
    command += ["-c:a", "pcm_s16le", "-t", "8000", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WITNESS, errors="replace")
    if done.returncode or not out.exists() or not out.stat().st_size:
        return Seen(refused=done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"rc {done.returncode}")
    return stored(out)


def stored(path: Path) -> Seen:
    """Flashes and tones of a witness."""
    times, means, pieces, rate, begin = [], [], [], 0, None
    with av.open(str(path)) as container:
        for frame in container.decode(*container.streams):
            if isinstance(frame, av.VideoFrame):
                times.append(float(frame.time or 0.0))
                means.append(float(frame.to_ndarray().mean()))
            elif isinstance(frame, av.AudioFrame):
                rate = frame.sample_rate
                begin = float(frame.time or 0.0) if begin is None else begin
                pieces.append(frame.to_ndarray()[0] / np.float32(32768))
    origin = times[0] if times else 0.0
    sound = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    tones, level = tones_of(sound, rate or 1, (begin or 0.0) - origin)
    flashes = flashes_of(np.array(times) - origin, np.array(means)) if times else ()
    seconds = max(times[-1] - origin if times else 0.0, len(sound) / (rate or 1))
    path.unlink()
    return Seen(len(times), (flashes, tones), seconds, level)


# ---------------------------------------------------------------- verdicts


def apart(seen: Moments, right: Moments) -> float:
    """The greatest difference in seconds; infinite if they are not equally many."""
    if len(seen) != len(right):
        return float("inf")
    return max((abs(a - b) for a, b in zip(seen, right, strict=True)), default=0.0)


def differences(seen: Heard, right: Heard) -> tuple[float, float, float]:
    """Of flashes, of tones, and of the distance between the two."""
    flash, tone = apart(seen[0], right[0]), apart(seen[1], right[1])
    pairs = min(len(right[0]), len(right[1]))
    both = apart(
        tuple(b - a for a, b in zip(*seen, strict=False))[:pairs],
        tuple(b - a for a, b in zip(*right, strict=False))[:pairs],
    )
    return flash, tone, both if flash < float("inf") and tone < float("inf") else 0.0


def judge(case: Case, seen: Seen, witness: Seen | None) -> dict[str, Any]:
    """Faults by kind; none is right."""
    faults: list[str] = []
    if case.refused is not None or (case.or_refused and seen.refused):
        if not seen.refused:
            faults.append(f"read ({seen.pictures} pictures, {rounded(seen.heard)}), but it must be refused")
        elif case.refused and not re.search(case.refused, seen.refused):
            faults.append(f"refused in other words: {seen.refused}")
        return {"faults": faults, "said": seen.refused}
    if seen.refused:
        return {"faults": [f"refused: {seen.refused}"]}
    rights = list(case.heard)
    if case.as_ffmpeg and witness and not witness.refused:
        rights.append(witness.heard)
    best = min((differences(seen.heard, right) for right in rights), key=lambda d: (max(d) == float("inf"), max(d)))
    for name, difference in zip(("flash", "tone", "flash to tone"), best, strict=True):
        if difference > NEAR:
            amount = "other number" if difference == float("inf") else f"{difference * 1000:.0f} ms off"
            faults.append(f"{name}: {amount}")
    wanted = case.pictures if case.pictures is not None else witness.pictures if witness else None
    if wanted is not None and abs(seen.pictures - wanted) > case.slack:
        faults.append(f"pictures: {seen.pictures} of {wanted}")
    if case.seconds is not None and abs(seen.seconds - case.seconds) > max(0.1, 0.001 * case.seconds):
        faults.append(f"length: {seen.seconds:.2f} s of {case.seconds:.2f} s")
    if case.level and witness and witness.level is not None:
        off = float("inf") if seen.level is None else seen.level - witness.level
        if abs(off) > LEVEL:
            faults.append(f"level: {off:+.1f} dB")
    if case.warns and not any(any(c.isdigit() for c in text) for text in seen.warnings):
        faults.append("no warning" if not seen.warnings else "a warning without numbers")
    if case.warns is False and seen.warnings:
        faults.append("a warning in a clean file")
    return {
        "faults": faults,
        "pictures": seen.pictures,
        "differences_ms": [None if d == float("inf") else round(d * 1000, 1) for d in best],
        "heard": rounded(seen.heard),
        "warnings": list(seen.warnings),
    }


def rounded(heard: Heard) -> list[list[float]]:
    return [[round(moment, 3) for moment in moments] for moments in heard]


def against_witness(case: Case, witness: Seen) -> str:
    """How ffmpeg's reading differs from the design; empty if it does not."""
    if case.witness:
        return case.witness
    if witness.refused:
        return f"ffmpeg refuses: {witness.refused[:120]}"
    best = min(max(differences(witness.heard, right)) for right in case.heard)
    words = [] if best <= NEAR else [f"flashes and tones at {rounded(witness.heard)}"]
    if case.pictures is not None and witness.pictures != case.pictures:
        words.append(f"{witness.pictures} pictures, not {case.pictures}")
    return "; ".join(words)


def examine(case: Case, folder: Path, ask_ffmpeg: bool) -> dict[str, Any]:
    """Make one file, read it, judge."""
    path = folder / case.name
    begun = time.monotonic()
    case.make(path)
    made = time.monotonic() - begun
    witness = None
    if ask_ffmpeg and case.refused is None:
        with suppress(subprocess.TimeoutExpired):
            witness = by_ffmpeg(path, case)
    begun = time.monotonic()
    try:
        verdict = judge(case, by_pave(path, case), witness)
    except Exception as error:  # a benchmark of strangers' files goes on, whatever comes
        verdict = {"faults": [f"raw {type(error).__name__}: {str(error)[:200]}"]}
    figures = {"kind": case.kind, "bytes": path.stat().st_size, **verdict}
    if witness and (note := against_witness(case, witness)):
        figures["witness"] = note
    return figures | {"made_s": round(made, 2), "read_s": round(time.monotonic() - begun, 2)}


# ---------------------------------------------------------------- hostile files


class Watch(threading.Thread):
    """The greatest memory of the processes that this one has started, in MB, while it is entered."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.over = 0.0, threading.Event()

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.over.set()
        self.join()

    def run(self) -> None:
        mine = Path("/proc/self/cmdline").read_bytes()
        while not self.over.wait(0.005):
            for status in self.children():
                with suppress(OSError, StopIteration):
                    if status.with_name("cmdline").read_bytes() == mine:
                        continue  # a fork of this process that has not become the worker yet, with our memory
                    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
                    self.peak = max(self.peak, int(line.split()[1]) / 1024)

    @staticmethod
    def children() -> list[Path]:
        numbers: list[str] = []
        for task in Path("/proc/self/task").iterdir():
            with suppress(OSError):
                numbers += (task / "children").read_text().split()
        return [Path("/proc", number, "status") for number in numbers]


def endure(case: Hostile, folder: Path, limit: float = LIMIT) -> dict[str, Any]:
    """Read one hostile file in a fresh worker process, with a limit of time."""
    path = folder / case.name
    case.make(path)
    WORKERS.clear()
    said, faults = "", []
    begun = time.monotonic()
    with Watch() as watch:
        try:
            clip = Clip.read(path, **{"timeout": limit, **case.read})
            said = f"read: {str(clip.report)[:300]}"
        except PaveError as error:
            said = str(error).replace(f"{path}: ", "")[:300]
        except BaseException as error:
            faults.append(f"raw {type(error).__name__}: {str(error)[:200]}")
    seconds = time.monotonic() - begun
    if watch.peak > MEMORY:
        faults.append(f"{watch.peak:.0f} MB")
    if seconds > limit + GRACE:
        faults.append(f"ended after {seconds:.0f} s of {limit:.0f}")
    if "bug in PAVE" in said or "crashed" in said:
        faults.append(said)
    figures = {"faults": faults, "said": said, "peak_MB": round(watch.peak), "seconds": round(seconds, 1)}
    return {"kind": "hostile", "bytes": path.stat().st_size, **figures}


def row(name: str, figures: dict[str, Any]) -> str:
    if figures["kind"] == "hostile":
        good = f"{figures['peak_MB']} MB, {figures['seconds']} s: {figures['said'].splitlines()[0][:100]}"
    else:
        good = f"off by {figures.get('differences_ms', '-')} ms"
    verdict = "BAD" if figures["faults"] else "ok"
    return f"{name:38} {figures['kind']} {verdict:4} {'; '.join(figures['faults']) or good}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="files that need no ffmpeg command; writes no result")
    parser.add_argument("--only", metavar="NAME", help="files with this in their name; writes no result")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the files are made, and stay")
    parser.add_argument("--files", action="store_true", help="the files of strangers alone")
    parser.add_argument("--hostile", action="store_true", help="the hostile files alone")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.set_level(None)
    command = not asked.small and shutil.which("ffmpeg") is not None
    parts = {"files": [] if asked.hostile else cases(), "hostile": [] if asked.files else hostile()}
    bad: list[str] = []
    for part, every in parts.items():
        found: dict[str, Any] = {}
        for case in every:
            if (asked.only or "") in case.name and case.small >= asked.small and command >= case.command:
                found[case.name] = one(case, asked.keep, command)
                print(row(case.name, found[case.name]), flush=True)
                if asked.only:
                    print(json.dumps(found[case.name], indent=1, ensure_ascii=False))
        wrong = [name for name, figures in found.items() if figures["faults"]]
        bad += wrong
        print(f"{part}: {len(found) - len(wrong)} of {len(found)} right")
        if found and not (asked.small or asked.only):
            peak = {"peak_MB": max(figures["peak_MB"] for figures in found.values())} if part == "hostile" else {}
            right = {"files": len(found), "right": len(found) - len(wrong)}
            Study("media").add(part, {**right, **peak, "bad": wrong, "each": found})
    if bad:
        raise SystemExit(1)


def one(case: Case | Hostile, keep: Path | None, command: bool) -> dict[str, Any]:
    with TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        return endure(case, folder) if isinstance(case, Hostile) else examine(case, folder, command)


if __name__ == "__main__":
    main()
