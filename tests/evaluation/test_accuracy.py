"""Claims about evaluation: with its senses off a model answers as its base; shuffling gives no clip its own senses."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import pytest
from small import make_clip, write_line

import pave
from pave.data import Example, Source
from pave.errors import DataError, UsageError
from pave.evaluation.accuracy import Evaluation, Sample, Side, evaluate
from pave.evaluation.sides import changed
from pave.features.cache import FeatureCache
from pave.features.shards import Shards
from pave.hub import catalogue
from pave.model.inputs import ClipFeatures
from pave.model.patched import PatchedModel, load
from pave.playroom.writer import write_clips
from pave.readers.questions import read_data

CLIPS = 5


@pytest.fixture(scope="module")
def seen(model: PatchedModel) -> dict[Source, ClipFeatures]:
    clips = [make_clip(seed) for seed in range(CLIPS)]
    return {Source(Path(f"{i}.mp4")): features for i, features in enumerate(model.encode(clips))}


@pytest.fixture(scope="module")
def questions(seen: dict[Source, ClipFeatures]) -> list[Example]:
    texts = ("What do you hear?", "Is it loud?")
    return [Example(path, text, "x", i) for i, path in enumerate(seen) for text in texts]


def answers(model: PatchedModel, questions: list[Example], seen: dict[Source, ClipFeatures], **options) -> list[str]:
    done = evaluate(model, questions, features=seen, max_new_tokens=4, **options)
    assert [sample.example for sample in done.samples] == questions
    return [sample.answer for sample in done.samples]


def test_side_off_gives_every_answer_of_the_base(model, questions, seen) -> None:
    base = answers(model, questions, seen, patches=())
    assert answers(model, questions, seen, side="off") == base
    assert answers(model, questions, seen) != base, "the patch has an effect"


def test_shuffled_is_neither_own_nor_off(model, questions, seen) -> None:
    found: list[Side] = ["own", "shuffled", "off"]
    assert len({tuple(answers(model, questions, seen, side=side)) for side in found}) == 3


@pytest.mark.parametrize("seed", range(5))
def test_shuffling_gives_no_clip_its_own_sound_and_loses_none(seen: dict[Source, ClipFeatures], seed: int) -> None:
    shuffled = changed(seen, "shuffled", seed, {})
    owner = {id(clip.sides): path for path, clip in seen.items()}
    donors = {path: owner[id(clip.sides)] for path, clip in shuffled.items()}
    assert list(donors) == list(seen) and set(donors.values()) == set(seen)
    assert all(path != donor for path, donor in donors.items())
    assert all(shuffled[path].tokens is seen[path].tokens for path in seen), "every clip keeps its frames"


def test_shuffling_depends_on_the_seed_alone(seen: dict[Source, ClipFeatures]) -> None:
    orders = [tuple(id(c.sides) for c in changed(seen, "shuffled", seed, {}).values()) for seed in (1, 1, 2, 3, 4)]
    assert orders[0] == orders[1] and len(set(orders)) > 1


def test_one_clip_cannot_be_shuffled(model, questions, seen) -> None:
    path = next(iter(seen))
    with pytest.raises(DataError, match="two clips or more"):
        evaluate(model, questions[:1], features={path: seen[path]}, side="shuffled")


def test_answers_do_not_depend_on_the_size_of_batches(model, questions, seen) -> None:
    assert answers(model, questions, seen, batch=3) == answers(model, questions, seen, batch=100)


# Scores


def sample(answer: str, truth: str = "yes", **facts: object) -> Sample:
    return Sample(Example(Source(Path("1.mp4")), "?", truth, 1, dict(facts)), answer)


def test_scores_are_by_channel_with_the_mean_optimum() -> None:
    evaluation = Evaluation(
        (
            sample("yes", channel="audio", optimum=0.5),
            sample("no", channel="video", optimum=1),
            sample("no", channel="audio", optimum=0.25),
            sample("yes", channel="audio", optimum=0.75),
        )
    )
    scores = evaluation.by()
    assert list(scores) == ["audio", "video"]
    assert (scores["audio"].right, scores["audio"].asked, scores["audio"].optimum) == (2, 3, 0.5)
    assert (scores["video"].accuracy, scores["video"].optimum) == (0.0, 1.0)
    assert evaluation.accuracy == 0.5
    rows = [line.split() for line in str(evaluation).splitlines()]
    assert rows[1:] == [["audio", "0.667", "3", "0.500"], ["video", "0.000", "1", "1.000"]]


def test_an_optimum_is_shown_only_if_every_line_has_one() -> None:
    scores = Evaluation((sample("yes", optimum=0.5), sample("yes"))).by()
    assert scores["all"].optimum is None and scores["all"].accuracy == 1
    assert str(Evaluation((sample("yes"),))).splitlines()[1].split() == ["all", "1.000", "1"]


def test_scores_can_be_grouped_by_any_fact() -> None:
    evaluation = Evaluation((sample("yes", kind="is-there"), sample("no", kind="what")))
    assert {name: score.accuracy for name, score in evaluation.by("kind").items()} == {"is-there": 1, "what": 0}


@pytest.mark.parametrize(("answer", "right"), [("Yes", True), (" yes\n", True), ("yes!", False), ("", False)])
def test_an_answer_is_right_if_its_text_is_equal_ignoring_case(answer: str, right: bool) -> None:
    assert sample(answer).right is right


# Files


def test_a_file_is_evaluated_clip_by_clip_without_unreadable_clips(model, workshop: Path, tmp_path: Path) -> None:
    """A user's file: no optimum, no channel, one clip without sound, one that does not exist."""
    file = workshop / "own.jsonl"
    names = ["deaf-0.mp4", *sorted(path.name for path in (workshop / "clips").glob("train-*.mp4"))[:2]]
    file.write_text("".join(write_line(f"clips/{name}", "?", "yes", "what?", "no") for name in [*names, "gone.mp4"]))
    first = evaluate(model, file, cache=tmp_path / "kept", max_new_tokens=2)
    assert len(first.samples) == 6 and first.by()["all"].optimum is None
    (path,) = first.refused
    assert path.video.name == "gone.mp4" and "gone.mp4" in str(first).splitlines()[-1]
    again = pave.evaluate(model, str(file), cache=tmp_path / "kept", max_new_tokens=2)
    assert [s.answer for s in again.samples] == [s.answer for s in first.samples]
    assert len(Shards.of(tmp_path / "kept").entries) == 3


def test_a_file_without_a_readable_clip_is_refused(model, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(write_line("gone.mp4", "?", "yes"))
    with pytest.raises(DataError, match=r"none of the 1 clips.*gone\.mp4"):
        evaluate(model, tmp_path / "a.jsonl")


def test_the_base_alone_can_be_evaluated(workshop: Path, tmp_path: Path) -> None:
    bare = load(workshop / "base", device="cpu")
    asked = read_data(workshop / "train.jsonl")[:2]
    assert len(evaluate(bare, asked, max_new_tokens=2).samples) == 2


SHIPPED = {
    "audio": ("audio", "audio+video", "order"),
    "depth": ("depth",),
    "fast-on-audio": ("audio+fast", "audio+fast+video"),
    "favor": ("audio", "audio+video", "order", "speech", "speech+video", "match"),
    **{name: (name, f"{name}+video") for name in ("imu", "views", "fast")},
}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_patch_uses_its_sense_and_questions_about_the_video_lose_little(name: str, tmp_path: Path) -> None:
    model = pave.load("playroom")
    for earlier in catalogue.recipe(f"{name}-playroom").train.on_top_of:
        model.apply_patch(earlier)
    report = model.apply_patch(f"{name}-playroom")
    assert report.base_match == "exact" and not report.remarks
    clips = 96 if name == "favor" else 32  # a third of them with sounds, a third with words
    asked = read_data(write_clips(tmp_path, clips, seed=5, split="test", channels=("video", *SHIPPED[name])))
    features = FeatureCache(model, model.encoders()).read(list(dict.fromkeys(example.source for example in asked)))
    own, shuffled = (evaluate(model, asked, features=features, side=side).by() for side in ("own", "shuffled"))
    base = evaluate(model, asked, features=features, patches=()).by()
    for channel in SHIPPED[name]:
        optimum = own[channel].optimum
        assert optimum is not None and own[channel].accuracy > 0.85, channel
        assert max(base[channel].accuracy, shuffled[channel].accuracy) < optimum + 0.15 < 0.7, channel
        facts = [example.facts for example in asked if example.facts["channel"] == channel]
        for way in {"hearing", "seeing"} & facts[0].keys():
            assert own[channel].accuracy > mean(each[way] for each in facts) + 0.1, (
                "better than one of two senses alone"
            )
    assert base["video"].accuracy > 0.95 and own["video"].accuracy > base["video"].accuracy - 0.05


def test_an_unknown_side_is_refused(model, questions, seen) -> None:
    with pytest.raises(UsageError, match="did you mean 'shuffled'"):
        evaluate(model, questions, features=seen, side="shufled")  # type: ignore[arg-type]
