"""The Playroom: exact probabilities, no leaks between splits or channels, real files."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest

from pave.media.clip import Clip
from pave.playroom import draw, signs, sound
from pave.playroom.questions import (
    CAPTION,
    CHANNELS,
    CHOICES,
    captions,
    draw_questions,
    optimum_without_sound,
    sound_questions,
    video_questions,
)
from pave.playroom.words import make_tokenizer, story
from pave.playroom.world import FPS, FRAMES, GRID, SOUNDS, Script, draw_scene, draw_script, schedule, scripts
from pave.playroom.writer import clip_seeds, write_clip, write_clips


def test_probabilities_of_all_scripts_sum_to_one():
    assert sum(share for share, _ in scripts()) == 1


def test_no_two_splits_share_a_changer():
    seen = defaultdict(set)
    for seed in range(3000):
        scene = draw_scene(seed)
        seen[scene.split].add((scene.changer.shape, scene.changer.colours))
    assert all(len(states) > 50 for states in seen.values())
    assert not (seen["train"] & seen["test"] or seen["train"] & seen["val"] or seen["val"] & seen["test"])


def test_a_scene_of_a_split_is_in_that_split():
    assert {draw_scene(seed, "test").split for seed in range(50)} == {"test"}


def test_splits_and_runs_share_no_seed():
    ranges = [set(clip_seeds(2000, seed, split)) for split in ("train", "val", "test") for seed in (0, 1, 2)]
    assert len(set().union(*ranges)) == 9 * 2000


def test_enumerated_optimum_is_the_score_of_the_best_guess_without_sound():
    scene = draw_scene(5)
    tally = defaultdict(Counter)
    for seed in range(6000):
        for question in draw_questions(scene, draw_script(seed), CHANNELS, seed):
            tally[question.text][question.answer] += 1
    checked = 0
    for text, answers in tally.items():
        asked = answers.total()
        if asked > 500:
            best = answers.most_common(1)[0][1] / asked
            optimum = float(optimum_without_sound(scene, text))
            # the best guess on a sample scores a little above the true optimum
            assert -0.03 < best - optimum < 0.07, (text, best, optimum)
            checked += 1
    assert checked > 10


def test_optimum_without_sound_is_one_for_video_questions_and_at_most_half_for_others():
    scene = draw_scene(3)
    assert all(optimum_without_sound(scene, question.text) == 1 for question in video_questions(scene))
    for _, script in scripts():
        for choice in sound_questions(scene, script):
            assert all(optimum_without_sound(scene, question.text) <= Fraction(1, 2) for _, question in choice)


ANSWERS = {  # number of answers to a question of each kind, all equally likely
    "count": 3,
    "colour": 7,
    "shape": 6,
    "side": 2,
    "colour-at": 7,
    "colour-dim": 7,
    "colour-when": 7,
    "is-there": 2,
    "what": 7,
    "times": 3,
    "sound-dim": 6,
    "which-first": 2,
    "which-last": 2,
}


def test_from_the_question_alone_no_kind_is_easier_than_its_number_of_answers():
    answers = defaultdict(Counter)
    for seed in range(4000):
        for question in draw_questions(draw_scene(seed), draw_script(seed), CHANNELS, seed):
            key = question.text if question.kind in ("is-there", "times", "colour-when") else question.kind
            answers[key, question.kind][question.answer] += 1
    for (key, kind), found in answers.items():
        if found.total() > 300:
            assert found.most_common(1)[0][1] / found.total() < 1 / ANSWERS[kind] + 0.08, key


def test_probabilities_of_every_choice_of_questions_sum_to_one():
    for _, script in scripts():
        for choice in (*sound_questions(draw_scene(1), script), *captions(draw_scene(1), script)):
            assert sum(share for share, _ in choice) == 1
            assert all(CHOICES % share.denominator == 0 for share, _ in choice)


def test_frames_do_not_depend_on_the_sounds(tmp_path):
    scene = draw_scene(8)
    films = []
    three = Script("three", tuple((sound, phase) for phase, sound in enumerate(SOUNDS[:3])))
    for name, script in (("quiet", Script("quiet", ())), ("three", three)):
        write_clip(tmp_path / f"{name}.mp4", scene, script, 8)
        with av.open(str(tmp_path / f"{name}.mp4")) as container:
            films.append(np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]))
    assert np.array_equal(*films)


def test_stream_parameters_are_the_same_for_every_clip(tmp_path):
    found = set()
    file = write_clips(tmp_path, 6, seed=3, split="val")
    for path in sorted((tmp_path / "clips").iterdir()):
        with av.open(str(path)) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            samples = sum(frame.samples for frame in container.decode(audio))
            found.add((container.duration, video.frames, video.average_rate, audio.rate, audio.duration, samples))
    assert len(found) == 1 and len(file.read_text().splitlines()) > 12


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    files = [write_clips(tmp_path / name, 3, seed=1, split="test") for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()
    for one in (tmp_path / "a" / "clips").iterdir():
        assert one.read_bytes() == (tmp_path / "b" / "clips" / one.name).read_bytes()
    other = write_clips(tmp_path / "c", 3, seed=2, split="test")
    assert other.read_bytes() != files[0].read_bytes()


def test_lines_have_question_answer_channel_and_optimum(tmp_path):
    lines = [json.loads(line) for line in write_clips(tmp_path, 8, split="train").read_text().splitlines()]
    assert {line["channel"] for line in lines} <= set(CHANNELS)
    for line in lines:
        human, answer = line["conversations"]
        assert human["value"].startswith("<video>\n") and answer["value"] and 0 < line["optimum"] <= 1
        assert (line["optimum"] == 1) == (line["channel"] == "video")


def test_channels_can_be_chosen(tmp_path):
    lines = write_clips(tmp_path, 8, split="train", channels=("video",)).read_text().splitlines()
    assert {json.loads(line)["channel"] for line in lines} == {"video"}


@pytest.mark.parametrize("name", SOUNDS)
def test_every_sound_is_at_its_scheduled_time_and_nowhere_else(name):
    scene = draw_scene(2)
    script = Script("one", ((name, 1),))
    track = sound.samples(scene, script, 2)
    ((_, start),) = schedule(scene, script)
    loud = np.abs(track) > 0.05
    times = np.flatnonzero(loud) / sound.RATE
    assert len(times) and start - 0.01 <= times.min() and times.max() <= start + 0.35


def test_a_sound_is_in_the_file_at_its_scheduled_time(tmp_path):
    scene, script = draw_scene(2), Script("one", (("beep", 1),))
    ((_, start),) = schedule(scene, script)
    write_clip(tmp_path / "clip.mp4", scene, script, 2)
    clip = Clip.read(tmp_path / "clip.mp4", frames=0, audio_rate=None)
    assert clip.audio is not None and clip.rate == sound.RATE and clip.audio_start == 0
    first = (clip.audio[0].abs() > 0.05).nonzero().min().item() / clip.rate
    assert start <= first < start + 0.01, (start, first)


def test_cards_show_every_sound_in_order_and_cover_no_toy():
    for seed in range(100):
        scene, script = draw_scene(seed), draw_script(seed)
        shown = signs.cards(scene, script)
        assert [name for names in shown for name in names] == [name for name, _ in script.events]
        times = draw.key_times(FRAMES, FPS)
        bare = draw.frames(scene, times)
        signed = bare.copy()
        signs.draw_cards(signed, scene, shown)
        labels = signs.square_labels(shown)
        for row, names, time, before, after in zip(labels, shown, times, bare, signed, strict=True):
            halves = (names[0], names[-1]) if names else (None, None)
            assert row == [halves[column >= GRID // 2] for _ in range(GRID) for column in range(GRID)]
            changed = (before != after).any(-1).reshape(GRID, draw.CELL, GRID, draw.CELL).any((1, 3))
            assert changed.sum() == len(names)
            for toy in scene.toys:
                y, x = draw.place(toy, scene.move_at, time)
                assert not changed[round(y), round(x)]


def test_both_sounds_of_a_pair_are_within_one_second():
    for seed in range(200):
        (_, first), (_, second) = schedule(draw_scene(seed), Script("pair", (("beep", seed % 3), ("horn", seed % 3))))
        assert first >= 0 and 0.25 < second - first < 0.9 and second < 3.7


def test_the_light_is_dim_in_some_key_frame_of_every_scene():
    times = draw.key_times(8, 20)
    for seed in range(200):
        scene = draw_scene(seed)
        lit = [draw.is_dim(scene, time) for time in times]
        assert any(lit) and not all(lit)
        dims = {draw.colour(scene, scene.changer, time) for time, dim in zip(times, lit, strict=True) if dim}
        assert dims == {scene.changer.colours[scene.dim_phase]}


def test_a_toy_that_changes_colour_changes_pixels():
    scene = draw_scene(4)
    same = replace(scene, toys=(replace(scene.changer, colours=(scene.changer.colours[0],) * 3), *scene.toys[1:]))
    last = np.array([3.9])
    assert not np.array_equal(draw.frames(scene, last), draw.frames(same, last))


def test_tokenizer_encodes_any_text_and_every_answer_as_one_token():
    tokenizer = make_tokenizer()
    text = "Grüße, 42 Bälle!"
    assert tokenizer.decode(tokenizer(text).input_ids) == text.lower()
    for seed in range(100):
        for question in draw_questions(draw_scene(seed), draw_script(seed), CHANNELS, seed):
            assert len(tokenizer(question.answer).input_ids) == 1, question


def test_stories_contain_every_answer():
    for seed in range(100):
        text, questions = story(seed)
        for question in questions:
            for word in question.answer.replace(",", "").split():
                assert word in text or word in ("yes", "no", "nothing", "one", "two", "three")


def test_captions_contain_all_sounds_and_cannot_be_guessed():
    scene = draw_scene(6)
    colours = scene.changer.colours
    for _, script in scripts():
        (heard,), (seen,), each = ([question for _, question in choice] for choice in captions(scene, script))
        sounds = [sound for sound, _ in script.events]
        assert heard.answer.split() == (sounds or ["nothing"])
        phases = [phase.split() for phase in seen.answer.split(", ")]
        assert tuple(phase[0] for phase in phases) == colours
        assert [word for phase in phases for word in phase[1:] if word != "nothing"] == sounds
        pairs = sorted(f"{sound} {colours[phase]}" for sound, phase in script.events) or ["nothing"]
        assert all(sorted(question.answer.split(", ")) == pairs for question in each)
        assert all(optimum_without_sound(scene, question.text) < 0.1 for question in (heard, seen, *each))


def test_captions_are_written_only_on_request(tmp_path):
    for channels, expected in ((CHANNELS, set()), ((*CHANNELS, CAPTION), {"told", "told-seen", "told-each"})):
        lines = write_clips(tmp_path, 2, split="train", channels=channels).read_text().splitlines()
        assert {json.loads(line)["kind"] for line in lines} & {"told", "told-seen", "told-each"} == expected


def test_two_who_write_the_same_clips_at_once_both_succeed(tmp_path):
    channels = ("audio", "imu", "views", "depth")
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: write_clips(tmp_path / "both", 2, channels=channels), range(2))
    assert one == two and not [file for file in one.parent.rglob("*") if "pave-" in file.name]
    alone = write_clips(tmp_path / "alone", 2, channels=channels)
    listed = [sorted(file.relative_to(jsonl.parent) for file in jsonl.parent.rglob("*")) for jsonl in (one, alone)]
    assert listed[0] == listed[1] and one.read_bytes() == alone.read_bytes()
