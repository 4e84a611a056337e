"""Which of its senses a clip is trained with in a step: its pictures, its sound, or both, drawn at random, so that a
patch learns to answer from each of them (modality-augmented training: Shu et al., "Audio-Visual LLM for Video
Understanding", arXiv 2312.06720, section 3.2).

In: a clip, its questions, and the shares of a recipe. Out: the clip as a step sees it, with the questions that can be
answered so. Everything depends on the seed, the step and the place of the clip in it alone. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from random import Random

from pave.data import Example
from pave.features.stored import Finish, Stored
from pave.model.inputs import ClipFeatures
from pave.packing.rows import Turn
from pave.recipe import MODALITIES, Modalities, Modality
from pave.training.dataset import TrainingClip


def drawn(clips: Sequence[TrainingClip], shares: Modalities, seed: int, step: int) -> list[TrainingClip]:
    """The clips of a step, each with what was drawn for it."""
    return [_drawn(clip, shares, Random(f"{seed} {step} {place}")) for place, clip in enumerate(clips)]


def possible(clip: TrainingClip, shares: Modalities) -> dict[Modality, list[int]]:
    """What a clip can be trained with, and the numbers of the questions that can be answered so, if there are any. A
    question of a dialogue comes with all of it."""
    stored, found = clip.stored, {}
    kinds = MODALITIES if stored.present and not stored.blind else ("sound",) if stored.present else ("pictures",)
    for kind in (kind for kind in kinds if getattr(shares, kind)):
        needs = [shares.need(example.facts) for example in clip.examples]
        answered = [kind == "both" or need in (kind, None) for need in needs]
        kept = [place for part in _dialogues(clip.turns) if all(answered[each] for each in part) for place in part]
        if kept:
            found[kind] = kept
    return found


def _drawn(clip: TrainingClip, shares: Modalities, rng: Random) -> TrainingClip:
    choices = possible(clip, shares)
    if not choices:
        return clip  # as it is: no share is for it
    kind = rng.choices(list(choices), [getattr(shares, each) for each in choices])[0]
    examples, turns = _parts(clip, choices[kind])
    return replace(seen_with(clip, kind), examples=examples, turns=turns)


def seen_with(clip: TrainingClip, kind: Modality) -> TrainingClip:
    """The clip with all its questions, as if it had this alone."""
    return replace(clip, stored=_without(clip.stored, kind), modality=kind)


def _dialogues(turns: Sequence[Turn]) -> list[list[int]]:
    """The numbers of the turns of each dialogue."""
    parts: list[list[int]] = []
    for place, turn in enumerate(turns):
        if turn.follows:
            parts[-1].append(place)
        else:
            parts.append([place])
    return parts


def _parts(clip: TrainingClip, places: Sequence[int]) -> tuple[tuple[Example, ...], tuple[Turn, ...]]:
    return tuple(clip.examples[place] for place in places), tuple(clip.turns[place] for place in places)


def _without(stored: Stored, kind: Modality) -> Stored:
    """The clip without its sound, or without its pictures."""
    match kind:
        case "pictures":
            return replace(stored, fetch=partial(_silent, stored), present=frozenset())
        case "sound":
            return replace(stored, fetch=partial(_dark, stored), blind=True)
        case _:
            return stored


def _silent(stored: Stored) -> Finish:
    finish = stored.fetch()

    def features() -> ClipFeatures:
        own = finish()
        return replace(own, sides=dict.fromkeys(own.sides))

    return features


def _dark(stored: Stored) -> Finish:
    finish = stored.fetch()
    return lambda: finish().without_pictures()
