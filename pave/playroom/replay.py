"""A reproducible example for the card of a patch: one question about a Playroom clip.

In: a patch. Out: the question, and the answers with and without the patch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pave.errors import PatchError

if TYPE_CHECKING:
    from pave.patch.file import Patch


def replay(patch: Patch, seed: int = 0) -> dict[str, Any]:
    """One question about a Playroom clip (reproducible from `seed` and `split`) that the patch answers correctly and
    the base does not, with both answers."""
    from pave.files.locks import scratch
    from pave.model.patched import load
    from pave.playroom.writer import write_clips
    from pave.readers.questions import read_data

    model = load("playroom")
    name = model.apply_patch(patch).name
    with scratch() as folder:
        for attempt in range(seed, seed + 20):
            examples = read_data(write_clips(folder / str(attempt), 1, attempt, "test"))
            for example in examples:
                base, patched = model.ask_batch([(example.video, example.question, asked) for asked in ([], [name])])
                if patched == example.answer != base:
                    video = example.video.relative_to(folder / str(attempt)).as_posix()
                    texts = {"question": example.question, "base": str(base), "patched": str(patched)}
                    return {"seed": attempt, "split": "test", "video": video, **texts}
    raise PatchError(patch.source, "is no better than the base in any of 20 clips", "push it without --example")
