"""Ask a frozen video LLM about a clip, without and with a patch.

    python examples/ask.py                                     # generates a Playroom clip and asks about it
    python examples/ask.py clip.mp4 "what sound do you hear?"

In: a clip and a question. Out: both answers, and the report of the patch.
"""

import sys
import tempfile
from pathlib import Path

import pave
from pave.playroom.writer import write_clips
from pave.readers.questions import read_data


def main(clip: str | Path, question: str) -> None:
    model = pave.load("playroom")  # or "llava-hf/llava-onevision-qwen2-7b-ov-hf"
    print(model.apply_patch("audio-playroom"), "\n")

    answer = model.ask(clip, question)
    with model.patches_off():
        print(f"{question}\n  base     {model.ask(clip, question)}\n  patched  {answer}")
    print(f"  signals  {dict(answer.signals)}")

    model.remove_patch("audio-playroom")
    print(f"  removed  {model.ask(clip, question)}  (the base again, bit for bit)")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        main(sys.argv[1], sys.argv[2])
    else:
        with tempfile.TemporaryDirectory() as folder:
            first = read_data(write_clips(folder, clips=4, split="test", channels=["audio"]))[-1]
            print(f"correct answer: {first.answer}\n")
            main(first.video, first.question)
