"""Training with pictures, sound or both by turns: what is drawn, what a question needs, and what comes of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from clips import write_clip
from runs import quiet, trained

from pave.errors import DataError, RecipeError
from pave.model.patched import load
from pave.patch.file import Patch
from pave.recipe import MODALITIES, Modalities, Recipe
from pave.training.dataset import TrainingClip, turns_of
from pave.training.modalities import Draw, possible
from pave.training.run import Run, train

Make = Callable[..., Recipe]
BY_TURNS = "train.modalities={pictures: 0.3, sound: 0.3, both: 0.4}"


@pytest.fixture
def mixed(workshop: Path) -> str:
    return f"data.train={workshop / 'mixed.jsonl'}"


@pytest.fixture
def sounds(workshop: Path) -> str:
    """Questions about six sound files, and about a film."""
    lines = []
    for number in range(6):
        name = f"{number}.m4a"
        if not (workshop / name).exists():
            write_clip(workshop / name, None, audio=torch.randn(16_000, generator=torch.manual_seed(number)).numpy())
        turns = [{"from": "human", "value": "which?"}, {"from": "gpt", "value": f"number {number}"}]
        lines.append(json.dumps({"audio": name, "conversations": turns}) + "\n")
    lines.append((workshop / "train.jsonl").read_text().splitlines(keepends=True)[0])
    (workshop / "sounds.jsonl").write_text("".join(lines))
    return f"data.train={workshop / 'sounds.jsonl'}"


def drawing(run: Run, **more: object) -> Draw:
    shares = run.setup.recipe.train.modalities
    assert shares
    shares = shares.model_validate({**shares.model_dump(), **more})
    return Draw(shares, run.dataset.train, partial(turns_of, run.setup.model.host))


def heard(clip: TrainingClip) -> torch.Tensor:
    (side,) = clip.features.sides.values()
    assert side
    return side.x


def test_what_is_drawn_has_the_shares_of_the_recipe(recipe: Make, mixed: str) -> None:
    run = Run.begin(recipe(mixed, BY_TURNS))
    draw = drawing(run)
    clip = next(clip for clip in run.dataset.train if run.acts(clip))
    deaf = next(clip for clip in run.dataset.train if not run.acts(clip))
    found = Counter(each.modality for step in range(400) for each in draw.step([clip] * 5, 0, step))
    assert all(abs(found[kind] / 2000 - getattr(draw.shares, kind)) < 0.05 for kind in MODALITIES)
    assert {each.modality for each in draw.step([deaf] * 50, 0, 0)} == {"pictures"}
    first, again = ([each.modality for each in draw.step([clip] * 9, 0, 3)] for _ in range(2))
    assert first == again


def test_a_question_is_not_asked_without_what_it_needs(recipe: Make, mixed: str) -> None:
    run = Run.begin(recipe(mixed, BY_TURNS))
    clip = next(clip for clip in run.dataset.train if run.acts(clip) and len(clip.turns) > 2)
    names = ["sound", "pictures", "both", "any"]
    examples = tuple(
        replace(each, facts={**each.facts, "channel": names[number % 4]}) for number, each in enumerate(clip.examples)
    )
    clip = replace(clip, examples=examples)
    shares = Modalities(needs={"sound": "sound", "pictures": "pictures", "both": "both"})
    allowed = possible(clip, shares)
    kept = {kind: {examples[place].facts["channel"] for place in places} for kind, places in allowed.items()}
    asked = {each.facts["channel"] for each in examples}
    assert kept == {
        "pictures": asked & {"pictures", "any"},
        "sound": asked & {"sound", "any"},
        "both": asked,
    }
    for each in Draw(shares, [clip], lambda asked: ()).step([clip] * 40, 0, 0):
        assert each.modality and len(each.turns) == len(each.examples) == len(allowed[each.modality])
    only = replace(clip, examples=tuple(replace(each, facts={"channel": "both"}) for each in examples))
    assert {each.modality for each in Draw(shares, [only], lambda asked: ()).step([only] * 40, 0, 0)} == {"both"}
    assert possible(only, Modalities(both=0, needs={"both": "both"})) == {}


MATCH = {"share": 1, "question": "does the sound belong to the picture?", "same": "yes", "other": "no"}
NEEDS = {"video": "pictures", "audio": "sound", "audio+video": "both", "order": "sound"}


def test_unpaired_clips_have_the_sound_of_another_and_questions_about_either(recipe: Make, mixed: str) -> None:
    run = Run.begin(recipe(mixed, BY_TURNS))
    draw = drawing(run, pictures=0, sound=0, both=1, unpaired=1, needs=NEEDS)
    hearing = []
    for clip in run.dataset.train:
        if run.acts(clip):
            asked = [
                replace(clip.examples[0], facts={"channel": channel}) for channel in ("audio+video", "order", "video")
            ]
            hearing.append(replace(clip, examples=tuple(asked), turns=draw.turns_of(asked)))
    files = set()
    for clip in replace(draw, clips=hearing).step(hearing, 0, 0):
        own = next(each for each in hearing if each.examples[0].source == clip.examples[0].source)
        donors = {example.source for example in clip.examples if example.facts["channel"] in ("audio", "order")}
        assert clip.modality == "both" and own.examples[0].source not in donors and len(donors) <= 1
        assert torch.equal(clip.features.tokens, own.features.tokens)
        (donor,) = (each for each in hearing if {each.examples[0].source} == donors)
        assert torch.equal(heard(clip), heard(donor)) and not torch.equal(heard(clip), heard(own))
        needs = [NEEDS[example.facts["channel"]] for example in clip.examples]
        assert needs == sorted(needs) and "both" not in needs and len(clip.turns) == len(needs)
        assert all(turn in (*own.turns, *donor.turns) for turn in clip.turns)
        files |= donors
    assert len(files) > 1


def test_sounds_may_come_with_any_pictures_where_no_question_needs_those(recipe: Make, mixed: str) -> None:
    run = Run.begin(recipe(mixed, BY_TURNS))
    draw = drawing(run, pictures=0, sound=0, both=1, unpaired=1, needs={"audio": "sound"})
    hearing = []
    for clip in run.dataset.train:
        if run.acts(clip):
            asked = [replace(clip.examples[0], facts={"channel": channel}) for channel in ("audio", "video")]
            hearing.append(replace(clip, examples=tuple(asked), turns=draw.turns_of(asked)))
    for own, clip in zip(hearing, replace(draw, clips=hearing).step(hearing, 0, 0), strict=True):
        (example,) = clip.examples
        (donor,) = (each for each in hearing if each.examples[0].source == example.source)
        assert donor is not own and example.facts["channel"] == "audio"
        assert torch.equal(heard(clip), heard(donor)) and torch.equal(clip.features.tokens, own.features.tokens)


def test_half_of_the_clips_that_are_asked_whether_they_match_do(recipe: Make, mixed: str) -> None:
    run = Run.begin(recipe(mixed, BY_TURNS))
    draw = drawing(run, pictures=0, sound=0, both=1, match=MATCH, needs=NEEDS)
    hearing = [clip for clip in run.dataset.train if run.acts(clip)]
    found = Counter[str]()
    for clip in draw.step([hearing[0]] * 60, 0, 0):
        (example,) = clip.examples
        assert (
            torch.equal(heard(clip), heard(hearing[0])) == (example.answer == "yes")
            and example.question == MATCH["question"]
        )
        assert clip.turns == turns_of(run.setup.model.host, [example])
        found[example.answer] += 1
    assert found.total() == 60 and 18 <= found["yes"] <= 42
    alone = replace(draw, clips=hearing[:1]).step([hearing[0]] * 20, 0, 0)
    assert {clip.examples[0].answer for clip in alone} == {"yes"}, "no other clip has a sound"


def test_a_sound_that_answers_the_same_is_not_called_another(recipe: Make, mixed: str) -> None:
    run = Run.begin(recipe(mixed, BY_TURNS))
    draw = drawing(run, pictures=0, sound=0, both=1, match=MATCH, needs={"audio": "sound"})
    first, second = [clip for clip in run.dataset.train if run.acts(clip)][:2]
    example = replace(first.examples[0], question="what do you hear?", answer="a bell", facts={"channel": "audio"})

    def answers(other: str) -> set[str]:
        clips = [
            replace(
                clip, examples=(replace(example, source=clip.examples[0].source, answer=answer),), turns=clip.turns[:1]
            )
            for clip, answer in ((first, "a bell"), (second, other))
        ]
        found = replace(draw, clips=clips).step([clips[0]] * 40, 0, 0)
        return {clip.examples[0].answer for clip in found}

    assert answers("a bell") == {"yes"} and answers("a horn") == {"yes", "no"}


def test_a_step_sees_what_was_drawn(recipe: Make, mixed: str) -> None:
    """Without pictures there are no visual features, without sound no side tokens; the clip itself is as it was."""
    run = Run.begin(recipe(mixed, BY_TURNS, "train.batch=8"))
    for step in range(3):
        for clip in run.clips_of(step):
            features = clip.features
            sides = any(side is not None for side in features.sides.values())
            assert features.blind == (clip.modality == "sound") == clip.stored.blind
            assert sides == (clip.modality != "pictures") == bool(clip.stored.present)
    assert run.clips_of(1)[0] is run.clips_of(1)[0], "which reading ahead depends on"
    assert not any(clip.features.blind for clip in run.dataset.train)


@pytest.mark.parametrize("more", [(), ("train.mean_over=tokens",)])
def test_the_loss_of_a_mixed_step_is_that_of_its_parts(recipe: Make, mixed: str, more: tuple[str, ...]) -> None:
    """Each part is one modality alone; weighed by its questions (or tokens)."""
    run = Run.begin(recipe(mixed, BY_TURNS, "train.batch=8", "train.keep=0", *more))
    clips = run.clips_of(0)
    assert {clip.modality for clip in clips} == {"pictures", "sound", "both"}
    with torch.no_grad():
        passes = [(float(loss), kinds) for loss, *_, kinds in run.losses_of(0)]
        whole = sum(loss for loss, _ in passes)

        def count(clip: object) -> int:
            return sum(len(turn.answer) if more else 1 for turn in clip.turns)  # type: ignore[attr-defined]

        parts = 0.0
        for kind in ("pictures", "sound", "both"):
            run.drawn = {0: [clip for clip in clips if clip.modality == kind]}
            run.stages[0] = replace(
                run.stages[0], options=run.stages[0].options.model_copy(update={"batch": len(run.drawn[0])})
            )
            ((loss, *_),) = run.losses_of(0)
            part = sum(kinds.get(f"loss, {kind}", 0.0) for _, kinds in passes)
            assert part == pytest.approx(float(loss), rel=1e-6)
            parts += float(loss) * sum(map(count, run.drawn[0]))
    assert whole == pytest.approx(parts / sum(map(count, clips)), rel=1e-6)


def test_an_interrupted_run_gives_the_bytes_of_an_uninterrupted_one(recipe: Make, mixed: str) -> None:
    needs = ", ".join(f"{channel}: {need}" for channel, need in NEEDS.items())
    asked = f"match: {{share: 0.3, question: '{MATCH['question']}', same: 'yes', other: 'no'}}"
    words = (mixed, f"{BY_TURNS[:-1]}, unpaired: 0.3, {asked}, needs: {{{needs}}}}}", "train.checkpoint_every=1")
    whole = train(recipe(*words)).patch.read_bytes()

    def stop(step: int, steps: int, figures: dict[str, float]) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe(*words, output="again"), progress=stop)
    assert train(recipe(*words, output="again"), resume=True, progress=quiet).patch.read_bytes() == whole
    assert train(recipe(mixed, output="plain")).patch.read_bytes() != whole


def test_sound_files_train_a_patch_that_answers_about_them(recipe: Make, sounds: str, workshop: Path) -> None:
    result = train(recipe(sounds, "train.modalities={}", "train.steps=3"))
    assert not result.metrics["unreadable"]
    patch = Patch.load(result.patch)
    assert patch.config.sound_alone
    carrier = patch.weights()["carrier.tokens"]
    assert carrier.any()
    model = load(workshop / "base")
    model.apply_patch(result.patch)
    answer = model.ask(workshop / "0.m4a", "which?", max_new_tokens=2)
    assert answer.signals["audio"].startswith("present")


def test_the_carrier_learns_where_pictures_are_left_out(recipe: Make, mixed: str) -> None:
    def moved(words: str) -> bool:
        run = Run.begin(recipe(mixed, words, "train.batch=8"))
        carrier = run.trainee.attached.carrier
        assert carrier is not None
        before = carrier.tokens.detach().clone()
        run.fit(quiet)
        return not torch.equal(carrier.tokens.detach(), before)

    assert moved(BY_TURNS)
    assert trained(recipe(mixed, "train.modalities={sound: 0}")).trainee.attached.carrier is None


def test_sound_files_without_modalities_are_refused_with_the_remedy(recipe: Make, sounds: str, workshop: Path) -> None:
    run = Run.begin(recipe(sounds))
    assert len(run.dataset.refused) == 6
    assert all("train.modalities" in why for why in run.dataset.refused.values())
    (workshop / "only.jsonl").write_text("".join((workshop / "sounds.jsonl").read_text().splitlines(True)[:6]))
    with pytest.raises(DataError, match=r"train\.modalities"):
        Run.begin(recipe(f"data.train={workshop / 'only.jsonl'}", output="only"))


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ("train.modalities={pictures: 0, sound: 0, both: 0}", "nothing to draw"),
        ("train.modalities={pictures: 2}", "1 or less|less than"),
        ("train.modalities={audio: 1}", "audio"),
        ("train.modalities={needs: {question: hearing}}", "hearing"),
        ("train.modalities={unpaired: 0.1}", "name channels of the data for either"),
        ("train.modalities={both: 0, match: {}}", "give both a share"),
        ("train.modalities={match: {share: 0.7}, unpaired: 0.4, needs: {a: sound, b: pictures}}", "lower one"),
        ("train.modalities={match: {question: ''}}", "question"),
        ("train.modalities=0.5", "modalities"),
    ],
)
def test_impossible_shares_are_errors(recipe: Make, words: str, cause: str) -> None:
    with pytest.raises(RecipeError, match=cause):
        recipe(words)


def test_stages_have_shares_of_their_own(recipe: Make, mixed: str) -> None:
    """First together, then apart: a schedule of the same sampler."""
    together, apart = "{pictures: 0, sound: 0, both: 1}", "{pictures: 0.5, sound: 0.5, both: 0}"
    stages = f"train.stages=[{{steps: 2, modalities: {together}}}, {{steps: 2, modalities: {apart}}}]"
    run = Run.begin(recipe(mixed, stages, "train.steps=null", "train.batch=8"))
    found = [{clip.modality for clip in run.clips_of(step)} for step in range(run.steps)]
    assert found[0] == found[1] == {None, "both"}, "a clip without sound is as it is"
    assert found[2] | found[3] == {"pictures", "sound"}
    patch = train(recipe(mixed, stages, "train.steps=null", output="again")).patch
    assert Patch.load(patch).config.sound_alone
