"""How much of the embedded base's other answers do the shipped patches keep? They were trained without `train.keep`.

    python benchmarks/playroom_kept.py       # writes benchmarks/results/playroom_kept.json

For each patch: general questions that need no sense, about clips that have it, as `pave-train` asks them at its end.
`tokens` is the share of the tokens of the base's own answers that stay the most likely ones.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from study import Study

from pave.hub import catalogue
from pave.training.dataset import read_dataset
from pave.training.retention import Probe
from pave.training.setup import Setup

CLIPS = 20


def main() -> None:
    study = Study("playroom_kept")
    for patch in catalogue.list_patches():
        if patch.file and patch.name not in study:
            with TemporaryDirectory() as folder:
                words = [f"data.playroom.clips={CLIPS}", f"train.output={Path(folder) / 'out'}", "train.batch=8"]
                setup = Setup.of(catalogue.recipe(patch.name, words))
                clips = read_dataset(setup).train
                probe = Probe.of(setup.model, [clip.stored for clip in clips], setup.names[:-1])
                setup.model.apply_patch(patch.name)
                study.add(patch.name, probe.measure(setup.model, setup.names, whole=True).facts())
        if patch.name in study:
            print(patch.name, study.runs[patch.name], flush=True)


if __name__ == "__main__":
    main()
