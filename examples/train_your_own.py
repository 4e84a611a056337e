"""Train a patch on a folder of your own clips, apply it, and evaluate it.

    python examples/train_your_own.py [FOLDER]

FOLDER holds `train.jsonl`, optionally `val.jsonl`, and their clips; one question per line (wrapped here to fit):

    {"id": "1", "video": "clips/1.mp4", "conversations": [{"from": "human", "value": "<video>\\nwhat do you hear?"},
                                                          {"from": "gpt", "value": "a bell"}]}

Without FOLDER it generates small Playroom clips in `runs/own`. The run is short (a minute on two CPU cores), enough to
see that the patch begins to use the sound. `pave-train FILE.yaml` does the same, with a progress bar.
"""

import sys
from pathlib import Path

import pave
from pave.files.validation import parse
from pave.playroom.writer import write_clips
from pave.recipe import Recipe


def recipe(folder: Path) -> Recipe:
    """A minimal recipe; everything else has its default."""
    held_out = folder / "val.jsonl"
    fields = {
        "name": "my-ears",
        "description": "Recognises whether there is a sound, and which.",
        "base": "playroom",  # or "llava-hf/llava-onevision-qwen2-7b-ov-hf", on a machine with a large GPU
        "senses": {"audio": {"encoder": "logmel", "options": {"bands": 48, "rate": 20}}},
        "fusion": {"width": 64},
        "data": {"train": folder / "train.jsonl", "val": held_out if held_out.exists() else None},
        "train": {"steps": 60, "batch": 16, "eval_every": 60, "output": folder / "my-ears"},
    }
    return parse(Recipe, fields, "this example")


def main(folder: Path) -> None:
    if not (folder / "train.jsonl").exists():
        print(f"generating clips in {folder}")
        write_clips(folder, clips=240, split="train", channels=["audio", "caption"])
        write_clips(folder, clips=24, split="val", channels=["audio"])

    def show(step: int, steps: int, figures: dict[str, float]) -> None:
        if step % 10 == 0 or step == steps:
            print(f"step {step} of {steps}", *(f"{name} {value:.3f}" for name, value in figures.items()))

    result = pave.train(recipe(folder), resume=True, progress=show)  # started again, it goes on from its checkpoint

    model = pave.load("playroom")
    print(model.apply_patch(result.patch))
    if (folder / "val.jsonl").exists():
        print("held-out questions, base\n", pave.evaluate(model, folder / "val.jsonl", patches=()), sep="")
        print("held-out questions, patched\n", pave.evaluate(model, folder / "val.jsonl"), sep="")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own"))
