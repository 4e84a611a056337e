"""Sound files as samples, and synthetic voices.

In: a file in any format that PyAV opens, or a text and a voice. Out: float32 samples at 16 kHz.
"""

from __future__ import annotations

import os
import subprocess
import wave
from collections.abc import Mapping
from ctypes import CDLL, CFUNCTYPE, POINTER, c_int, c_short, c_void_p, string_at
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np

from pave.errors import DataError

RATE = 16_000  # Hz
LIBRARIES = "usr/lib/x86_64-linux-gnu"
FLITE = tuple(f"flite:{voice}:{pace}" for voice in ("slt", "rms", "awb", "kal16") for pace in (0.85, 1.0, 1.25))
ESPEAK = tuple(  # f2, f3 and f5 breathe at random, otherwise in each process: they are left out
    f"espeak:{voice}:{pace}"
    for voice, pace in (
        ("en-US+m1", 140),
        ("en-US+m3", 160),
        ("en-US+m7", 130),
        ("en-US+f1", 140),
        ("en-US+m4", 160),
        ("en-US+f4", 130),
        ("en", 150),
        ("en+f4", 150),
        ("en-GB-scotland", 145),
        ("en-GB-x-rp+m2", 150),
    )
)
VOICES = FLITE + ESPEAK


def samples(file: Path) -> np.ndarray:
    """The sound of a file (n,), one channel, without silence at its ends."""
    resampler = av.AudioResampler("flt", "mono", RATE)
    parts = []
    with av.open(str(file)) as container:
        for frame in container.decode(audio=0):
            parts += [each.to_ndarray()[0] for each in resampler.resample(frame)]
    parts += [each.to_ndarray()[0] for each in resampler.resample(None)]
    return trimmed(np.concatenate(parts))


def trimmed(sound: np.ndarray, share: float = 0.02) -> np.ndarray:
    """Without what is below a share of its peak at both ends, but for a twentieth of a second."""
    loud = np.flatnonzero(np.abs(sound) > share * np.abs(sound).max(initial=1e-9))
    if not len(loud):
        return sound
    room = RATE // 20
    return sound[max(0, loud[0] - room) : loud[-1] + room]


@dataclass(frozen=True)
class Voices:
    """flite and eSpeak NG, run where they were unpacked."""

    packages: Mapping[str, Path]

    def say(self, text: str, voice: str) -> np.ndarray:
        """A text in one of VOICES (n,)."""
        engine, name, pace = voice.split(":")
        with TemporaryDirectory() as folder:
            out = Path(folder, "said.wav")
            if engine == "flite":
                self._flite(text, name, pace, out)
            else:
                self._espeak.say(text, name, int(pace), out)
            return samples(out)

    def _flite(self, text: str, name: str, pace: str, out: Path) -> None:
        program = self.packages["flite"] / "usr/bin/flite"
        command = [program, "-voice", name, "--setf", f"duration_stretch={pace}", "-t", text, "-o", out]
        environment = {**os.environ, "LD_LIBRARY_PATH": str(self.packages["libflite1"] / LIBRARIES)}
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        if run.returncode or not out.is_file():
            raise DataError(f"{program}: cannot say {text!r} ({run.stderr.strip()}); `ldd {program}` shows why")

    @cached_property
    def _espeak(self) -> Espeak:
        return Espeak(self.packages["espeakng-loader"] / "espeakng_loader")


class Espeak:
    """eSpeak NG's library, called by its C interface (speak_lib.h); one per process."""

    def __init__(self, folder: Path) -> None:
        self.library = CDLL(str(folder / "libespeak-ng.so"))
        self.rate = self.library.espeak_Initialize(2, 0, str(folder).encode(), 0x8000)  # synchronous; do not exit
        if self.rate <= 0:
            raise DataError(f"{folder}: eSpeak NG cannot start; delete the folder and run again")
        self.heard = bytearray()
        self.listener = CFUNCTYPE(c_int, POINTER(c_short), c_int, c_void_p)(self._hear)  # kept: C holds no reference
        self.library.espeak_SetSynthCallback(self.listener)

    def _hear(self, pieces: Any, count: int, events: Any) -> int:
        if pieces:
            self.heard += string_at(pieces, 2 * count)
        return 0

    def say(self, text: str, voice: str, pace: int, out: Path) -> None:
        """Write a text as a wav, at `pace` words a minute."""
        self.heard.clear()
        spoken = text.encode()
        wrong = self.library.espeak_SetVoiceByName(f"gmw/{voice}".encode())  # the file of the voice
        wrong = wrong or self.library.espeak_SetParameter(1, pace, 0)  # espeakRATE
        wrong = wrong or self.library.espeak_Synth(spoken, len(spoken) + 1, 0, 1, 0, 1, None, None)  # UTF-8
        if wrong or not self.heard:
            raise DataError(f"eSpeak NG cannot say {text!r} with the voice {voice!r} (status {wrong})")
        with wave.open(str(out), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(self.rate)
            file.writeframes(self.heard)
