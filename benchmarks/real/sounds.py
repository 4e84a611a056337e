"""Sound files as samples, and synthetic voices.

In: a file in any format that PyAV opens, or a text and a voice. Out: float32 samples at 16 kHz.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np

from pave.errors import DataError

RATE = 16_000  # Hz
LIBRARIES = "usr/lib/x86_64-linux-gnu"
FLITE = tuple(f"flite:{voice}:{pace}" for voice in ("slt", "rms", "awb", "kal16") for pace in (0.85, 1.0, 1.25))
ESPEAK = tuple(
    f"espeak:{voice}:{pace}"
    for voice, pace in (
        ("en-us+m1", 140),
        ("en-us+m3", 160),
        ("en-us+m7", 130),
        ("en-us+f1", 140),
        ("en-us+f2", 160),
        ("en-us+f4", 130),
        ("en-gb", 150),
        ("en-gb+f3", 140),
        ("en-gb-scotland", 145),
        ("en-gb-x-rp+m2", 150),
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
    """flite and espeak-ng, run where they were unpacked."""

    packages: Mapping[str, Path]

    def say(self, text: str, voice: str) -> np.ndarray:
        """A text in one of VOICES (n,)."""
        engine, name, pace = voice.split(":")
        with TemporaryDirectory() as folder:
            out = Path(folder, "said.wav")
            if engine == "flite":
                program = self.packages["flite"] / "usr/bin/flite"
                words = ["-voice", name, "--setf", f"duration_stretch={pace}", "-t", text, "-o", str(out)]
            else:
                program = self.packages["espeak-ng"] / "usr/bin/espeak-ng"
                words = ["-v", name, "-s", pace, "-w", str(out), text]
            run = subprocess.run([str(program), *words], env=self.environment, capture_output=True, text=True)
            if run.returncode or not out.is_file():
                raise DataError(f"{program}: cannot say {text!r} ({run.stderr.strip()}); `ldd {program}` shows why")
            return samples(out)

    @property
    def environment(self) -> dict[str, str]:
        libraries = [str(self.packages[name] / LIBRARIES) for name in self.packages if name.startswith("lib")]
        data = self.packages["espeak-ng-data"] / LIBRARIES
        return {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries), "ESPEAK_DATA_PATH": str(data)}
