"""A template of an encoder and its test: they run as they are, for the user to change.

In: a name and a folder. Out: copies of this folder's `encoder.py` and `test.py` under that name.
"""

from __future__ import annotations

import re
from pathlib import Path

from pave.encoder import known_encoders
from pave.errors import EncoderError
from pave.files.atomic import write_text

# Parameters of PatchedModel.ask and Clip, and senses of PAVE itself: a signal with such a name could not be passed.
TAKEN = {"audio", "video", "fast", "clip", "question", "patches", "max_new_tokens", "frames", "times", "rate"}


def write_encoder(name: str, folder: Path) -> list[Path]:
    """Write an encoder called `name` into `folder`. Its test goes beside it, or into the project's `tests` if `folder`
    is `encoders` next to such a folder. Existing files are never overwritten."""
    word = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or name.startswith("test-"):
        cause = "an encoder's name has lowercase letters, digits and single dashes"
        raise EncoderError(f"{cause}, for example heart-rate; got {name!r}")
    if word in TAKEN:
        raise EncoderError(f"{name!r} is reserved by PAVE; name the signal, for example heart-rate")
    if name in known_encoders():
        raise EncoderError(f"an encoder {name!r} already exists; choose another name")
    tests = folder.absolute().parent / "tests"
    beside = tests if folder.absolute().name == "encoders" and tests.is_dir() else folder
    targets = {"encoder.py": folder / f"{word}.py", "test.py": beside / f"test_{word}.py"}
    if found := [str(target) for target in targets.values() if target.exists()]:
        raise EncoderError(f"{' and '.join(found)}: already exists; choose another name or folder, or delete it")
    folder.mkdir(parents=True, exist_ok=True)
    class_name = "".join(part.capitalize() for part in name.split("-"))
    for source, target in targets.items():
        text = Path(__file__).with_name(source).read_text("utf-8")
        text = text.replace("my-sense", name).replace("my_sense", word).replace("MySense", class_name)
        write_text(target, text)
    return list(targets.values())
