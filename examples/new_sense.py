"""Give the Playroom's base a sense that it never had, without a line of code for it: a motion sensor under the rug.

    python examples/new_sense.py [FOLDER]

Whatever comes as rows of numbers (motion, heart rate, radar, a sensor of your own) is read by the encoder `array`; what
the rows mean, the patch learns from questions. A line of data names the sensor's file beside the video, and the recipe
says what a row is. The run takes about a minute of two CPU cores. `pave new-encoder` writes code for what needs some.
"""

import sys
from pathlib import Path
from typing import Any

import yaml

import pave
from pave.config import Recipe, parse
from pave.data import read_jsonl
from pave.playroom.writer import write_clips

RECIPE = """\
name: my-imu
base: playroom   # or llava-hf/llava-onevision-qwen2-7b-ov-hf, on a machine with a large GPU
senses:
  imu: {encoder: array, options: {signal: imu, dim: 6, rate: 100, stack: 5}}   # 100 rows a second, 5 to a token
fusion: {width: 96}
train: {batch: 8}
"""


def main(folder: Path, clips: int = 160, steps: int = 100) -> None:
    train = write_clips(folder, clips, split="train", channels=["imu", "caption"])
    val = write_clips(folder, clips // 4, split="val", channels=["imu"])
    print(f"a line of {train}:\n{train.read_text().splitlines()[0]}\n\nthe recipe:\n{RECIPE}")

    words = yaml.safe_load(RECIPE) | {"data": {"train": train, "val": val}}
    words["train"] |= {"steps": steps, "eval_every": steps, "output": folder / "my-imu"}

    def show(step: int, steps: int, figures: dict[str, float]) -> None:
        if step % 10 == 0 or step == steps:
            print(f"step {step} of {steps}", *(f"{name} {value:.3f}" for name, value in figures.items()))

    result = pave.train(parse(Recipe, words, "this example"), progress=show)

    model = pave.load("playroom")
    print(f"\n{model.apply_patch(result.patch)}\n")
    example = read_jsonl(val)[0]
    rows = dict(example.source.signals)["imu"]  # a path; an array does as well
    print(f"{example.question}\n  truth    {example.answer}")
    print(f"  patched  {model.ask(example.video, example.question, imu=rows)}")
    with model.patches_off():
        print(f"  base     {model.ask(example.video, example.question)}")
    held_out: Any = result.metrics["held_out"]
    print("right answers to held-out questions: base {base:.3f}, patched {patched:.3f}".format(**held_out["imu"]))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/new-sense"))
