"""Give the Playroom's base a new sense without writing code: a motion sensor under the rug.

    python examples/new_sense.py [FOLDER]

The encoder `array` reads any rows of numbers (motion, heart rate, radar, your own sensor); the patch learns their
meaning from questions. A line of data names the sensor's file next to the video; the recipe describes the rows. The run
takes about a minute on two CPU cores; `pave-train FOLDER` does the same, with a progress bar. For a sense that needs
its own code, `pave new-encoder` writes a template.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pave
from pave.playroom.writer import write_clips
from pave.readers.questions import read_data
from pave.recipe import read_recipe

RECIPE = """\
name: my-imu
base: playroom   # or llava-hf/llava-onevision-qwen2-7b-ov-hf, on a machine with a large GPU
senses:
  imu: {encoder: array, options: {signal: imu, dim: 6, rate: 100, stack: 5}}   # 100 rows per second, 5 per token
fusion: {width: 96}
data: {train: train.jsonl, val: val.jsonl}
train: {batch: 8, steps: 100}
"""


def main(folder: Path, clips: int = 160, overrides: Sequence[str] = ()) -> None:
    train = write_clips(folder, clips, split="train", channels=["imu", "caption"])
    val = write_clips(folder, clips // 4, split="val", channels=["imu"])
    (folder / "patch.yaml").write_text(RECIPE)
    print(f"a line of {train}:\n{train.read_text().splitlines()[0]}\n\n{folder / 'patch.yaml'}:\n{RECIPE}")

    def show(step: int, steps: int, figures: dict[str, float]) -> None:
        if step % 10 == 0 or step == steps:
            print(f"step {step} of {steps}", *(f"{name} {value:.3f}" for name, value in figures.items()))

    recipe = read_recipe(folder, [f"train.output={folder / 'my-imu'}", *overrides])
    result = pave.train(recipe, resume=True, progress=show)  # started again, it goes on from its checkpoint

    model = pave.load("playroom")
    print(f"\n{model.apply_patch(result.patch)}\n")
    example = read_data(val)[0]
    rows = dict(example.source.signals)["imu"]  # a path; an array works too
    print(f"{example.question}\n  truth    {example.answer}")
    print(f"  patched  {model.ask(example.video, example.question, imu=rows)}")
    with model.patches_off():
        print(f"  base     {model.ask(example.video, example.question)}")
    held_out: Any = result.metrics["held_out"]
    print("correct answers to held-out questions: base {base:.3f}, patched {patched:.3f}".format(**held_out["imu"]))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/new-sense"))
