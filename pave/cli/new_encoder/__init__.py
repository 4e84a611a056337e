"""The template of an encoder and of its test: they run as they are, and are there to be changed.

In: a name and a folder. Out: copies of `encoder.py` and `test.py`, which lie here, under that name.
"""

from __future__ import annotations

import re
from pathlib import Path

from pave.encoder import known_encoders
from pave.errors import EncoderError

# What a model that is asked, or a clip, calls something else: no signal can have these names.
TAKEN = {"audio", "video", "fast", "clip", "question", "patches", "max_new_tokens", "frames", "times", "rate"}


def write_encoder(name: str, folder: Path) -> list[Path]:
    """Write an encoder called `name` into `folder`, and its test beside it; where that is a project's `encoders` beside
    its `tests`, there. Nothing that exists is written over."""
    word = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or name.startswith("test-"):
        raise EncoderError(f"an encoder's name is small letters, digits and single dashes, as heart-rate; got {name!r}")
    if word in TAKEN:
        raise EncoderError(f"{name!r} is what PAVE calls something else; say what you perceive, as heart-rate")
    if name in known_encoders():
        raise EncoderError(f"there is an encoder {name!r} already; take another name")
    tests = folder.absolute().parent / "tests"
    beside = tests if folder.absolute().name == "encoders" and tests.is_dir() else folder
    targets = {"encoder.py": folder / f"{word}.py", "test.py": beside / f"test_{word}.py"}
    if found := [str(target) for target in targets.values() if target.exists()]:
        raise EncoderError(f"{' and '.join(found)}: there already; take another name or folder, or delete it")
    folder.mkdir(parents=True, exist_ok=True)
    class_name = "".join(part.capitalize() for part in name.split("-"))
    for source, target in targets.items():
        text = Path(__file__).with_name(source).read_text("utf-8")
        text = text.replace("my-sense", name).replace("my_sense", word).replace("MySense", class_name)
        target.write_text(text, "utf-8")
    return list(targets.values())
