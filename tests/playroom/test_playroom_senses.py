"""The Playroom's further senses: exact probabilities, signals that nothing else reveals, real files."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from fractions import Fraction
from random import Random
from typing import Any, get_args
from zlib import crc32

import numpy as np
import pytest
import torch
from PIL import Image

from pave.data_sets import Channel
from pave.encoder import load_encoder
from pave.media.clip import Clip
from pave.playroom import distances, draw, events, matches, mixed, signs, sound
from pave.playroom.events import CARDS, FLASHES, SHAKES, SHAKING, SPOKEN
from pave.playroom.mixed import BOTH
from pave.playroom.questions import CHOICES
from pave.playroom.senses import SENSES, draw_more, draw_states
from pave.playroom.world import FPS, FRAMES, SECONDS, SOUNDS, Script, draw_scene, draw_script, schedule
from pave.playroom.writer import write_clip, write_clips

CHANNELS = ("fast", "fast+video", "views", "views+video", "depth", "imu", "imu+video")
MIXED = (BOTH, "audio+fast+video")
HEARD = ("speech", "speech+video", "match")


def test_channels_are_those_of_a_recipe():
    assert {*CHANNELS, *HEARD, *MIXED, "video", "audio", "audio+video", "order", "conflict", "caption"} == set(
        get_args(Channel)
    )


@pytest.mark.parametrize("name", SENSES)
def test_probabilities_of_states_and_of_every_choice_sum_to_one(name):
    sense, scene = SENSES[name], draw_scene(1)
    states = sense.states(scene)
    assert sum(share for share, _ in states) == 1
    for _, state in states:
        for choice in sense.questions(scene, state):
            assert sum(share for share, _ in choice) == 1
            assert all(CHOICES % share.denominator == 0 for share, _ in choice)


@pytest.mark.parametrize("name", SENSES)
def test_drawn_states_are_those_of_the_enumeration(name):
    sense, scene = SENSES[name], draw_scene(2)
    known = {state: float(share) for share, state in sense.states(scene)}
    seen = Counter(sense.draw(scene, seed) for seed in range(3000))
    assert set(seen) <= set(known)
    for state, share in known.items():
        assert abs(seen[state] / 3000 - share) < 5 * (share / 3000) ** 0.5 + 1e-3


@pytest.mark.parametrize(("scene", "channels"), [(6, CHANNELS), (5, HEARD), (5, MIXED)])
def test_enumerated_optimum_is_the_score_of_the_best_guess_without_the_sense(scene, channels):
    scene = draw_scene(scene)
    tally, optima = defaultdict(Counter), {}
    for seed in range(10**6, 10**6 + 4000):
        states = draw_states(scene, channels, seed)
        for question, scores in draw_more(scene, states, channels, seed):
            tally[question.text][question.answer] += 1
            assert optima.setdefault(question.text, scores["optimum"]) == scores["optimum"]
    checked = 0
    for text, answers in tally.items():
        asked = answers.total()
        if asked > 400:
            best = answers.most_common(1)[0][1] / asked
            assert -0.03 < best - float(optima[text]) < 0.08, (text, best, optima[text])
            checked += 1
    assert checked > 8


def test_the_question_does_not_reveal_the_answer():
    scene = draw_scene(7)
    for name, sense in SENSES.items():
        for _, state in sense.states(scene):
            states = {name: state}
            for question, scores in draw_more(scene, states, [name], 0):
                assert scores["optimum"] <= Fraction(1, 2), question


def test_states_are_independent_of_sounds_and_of_each_other():
    scene, odd = draw_scene(3), defaultdict(list)
    for seed in range(4000):
        for name, state in {**draw_states(scene, CHANNELS, seed), "sound": draw_script(seed)}.items():
            odd[name].append(crc32(repr(state).encode()) % 2)
    assert len(odd) == 5
    together = np.corrcoef(list(odd.values())) - np.eye(5)
    assert np.abs(together).max() < 0.06, together


# Words, and what they belong to


def test_a_clip_has_either_sounds_or_words_or_a_match(tmp_path):
    channels = ("video", "audio", "order", *HEARD)
    lines = [json.loads(line) for line in write_clips(tmp_path, 24, 0, "val", channels).read_text().splitlines()]
    asked = defaultdict(set)
    for line in lines:
        asked[line["video"]].add(line["channel"].split("+")[0].replace("order", "audio"))
    kinds = Counter(tuple(sorted(each - {"video"})) for each in asked.values())
    assert all(len(kind) <= 1 for kind in kinds)
    assert min(kinds["audio",], kinds["speech",], kinds["match",]) > 3


def test_conflicting_clips_are_asked_what_is_heard_and_what_is_seen(tmp_path):
    lines = [json.loads(line) for line in write_clips(tmp_path, 24, 0, "val", ["conflict"]).read_text().splitlines()]
    of_clip = defaultdict(dict)
    for line in lines:
        of_clip[line["video"]][line["kind"]] = line["conversations"][1]["value"]
    assert len(of_clip) == 24 and all(set(each) == {"heard", "seen"} for each in of_clip.values())
    assert 6 <= sum(each["heard"] == each["seen"] for each in of_clip.values()) <= 18


def test_words_differ_at_fifty_spectra_per_second_but_not_at_one():
    encoders: dict[int, Any] = {rate: load_encoder("logmel", bands=48, rate=rate) for rate in (1, 50)}
    for seed in range(30):
        scene = draw_scene(seed)
        script = SPOKEN.draw(scene, seed)
        edges = (0.0, *scene.changes, SECONDS)
        for (name, start), (_, phase) in zip(sound.word_times(scene, script), script.events, strict=True):
            end = start + len(sound.say(name, np.random.default_rng(0))) / sound.RATE
            assert int(start) == int(end) and edges[phase] <= start < end <= edges[phase + 1]
    spectra = []
    for name in SOUNDS:
        samples = np.zeros(sound.RATE, np.float32)
        wave = 0.4 * sound.say(name, np.random.default_rng(0))
        samples[4000 : 4000 + len(wave)] = wave
        spectra.append({rate: each.spectra(torch.from_numpy(samples)).flatten() for rate, each in encoders.items()})
    nearest = torch.pdist(torch.stack([each[50] for each in spectra])).min()
    farthest = torch.pdist(torch.stack([each[1] for each in spectra])).max()
    assert nearest > 5 and farthest < 0.2, (nearest, farthest)


@pytest.mark.parametrize("seed", range(10))
def test_a_match_sounds_while_a_card_is_shown(seed):
    scene = draw_scene(seed)
    state = matches.draw(scene, seed)
    plain = draw.frames(scene, draw.pictures())
    shown = plain.copy()
    matches.show(shown, scene, state)
    there = draw.pictures()[(plain != shown).any((1, 2, 3))]
    ((name, start),) = schedule(scene, state.heard)
    assert name == state.sound and there[0] < start + 0.28 and start < there[-1]
    assert np.isin(np.round(draw.key_times(FRAMES, FPS) * FPS), np.round(there * FPS)).sum() == 1


# Flashes


def test_flashes_avoid_key_frames_and_are_visible_at_ten_frames_per_second():
    keys = np.round(draw.key_times(FRAMES, FPS) * FPS).astype(int)
    for seed in range(60):
        scene = draw_scene(seed)
        script = FLASHES.draw(scene, seed)
        plain = draw.frames(scene, draw.pictures())
        lit = plain.copy()
        events.flash(lit, scene, script)
        changed = np.flatnonzero((plain != lit).any((1, 2, 3)))
        assert len(changed) == events.FLASH_PICTURES * len(script.events)
        assert not script.events or min(abs(picture - key) for picture in changed for key in keys) > 2
        edges = (0.0, *scene.changes, SECONDS)
        for i, (_, phase) in enumerate(script.events):
            own = changed[i * events.FLASH_PICTURES :][: events.FLASH_PICTURES]
            assert edges[phase] < own[0] / FPS and own[-1] / FPS < edges[phase + 1], "in the phase of its colour"
            assert any(picture % 2 == 0 for picture in own)


def test_mixed_events_are_partly_audible_and_partly_visible(tmp_path):
    shares = Counter()
    for seed in range(300):
        scene = draw_scene(seed)
        state = draw_states(scene, (BOTH,), seed)[BOTH]
        events = sorted((*state.heard.events, *state.seen.events), key=lambda event: event[1])
        assert tuple(events) == state.script.events and {name for name, _ in events} <= set(SOUNDS)
        shares[bool(state.heard.events), bool(state.seen.events)] += 1
        asked = [question for ((_, question), *_) in mixed.questions(scene, state)]
        assert all("see or hear" in question.text and "see or see" not in question.text for question in asked)
    assert min(shares.values()) > 10 and len(shares) == 4
    scene, state = (
        draw_scene(1),
        mixed.Mixed(Script("three", (("bell", 0), ("horn", 1), ("drum", 2))), (True, False, True)),
    )
    write_clip(tmp_path / "mixed.mp4", scene, Script("quiet", ()), 0, extra={BOTH: state})
    write_clip(tmp_path / "parts.mp4", scene, state.heard, 0, extra={"fast": state.seen})
    assert (tmp_path / "mixed.mp4").read_bytes() == (tmp_path / "parts.mp4").read_bytes()


@pytest.mark.parametrize("way", ["hearing", "seeing"])
def test_best_score_with_one_of_two_senses_is_exact(way):
    """Compared with the most frequent answer in many clips in which the one known event is a bell."""
    scene, tally, scores = draw_scene(5), defaultdict(Counter), {}
    shares, known = zip(*mixed.states(scene), strict=True)
    for seed, state in enumerate(Random(0).choices(known, list(map(float, shares)), k=60000)):
        if (state.heard if way == "hearing" else state.seen).events != (("bell", 1),):
            continue
        for question, found in draw_more(scene, {BOTH: state}, MIXED, seed):
            tally[question.text][question.answer] += 1
            assert scores.setdefault(question.text, found[way]) == found[way]
    assert scores["do you see or hear the bell?"] == 1
    checked = {text: answers.total() for text, answers in tally.items() if answers.total() > 150}
    for text, total in checked.items():
        best = tally[text].most_common(1)[0][1] / total
        assert abs(best - scores[text]) < 4.5 * (0.25 / total) ** 0.5, (text, best, scores[text])
    assert len(checked) > 4


# Shakes


@pytest.mark.parametrize("seed", range(20))
def test_a_shake_is_measured_at_its_time_in_its_own_direction(seed):
    scene = draw_scene(seed)
    script = SHAKING.draw(scene, seed)
    rows = events.sensor_rows(scene, script, seed) - [0, 0, 1, 0, 0, 0]
    assert rows.shape == (400, events.IMU_DIM)
    for name, start in schedule(scene, script):
        middle = int((start + events.SHAKE_SECONDS / 2) * events.IMU_RATE)
        part = rows[middle - 5 : middle + 5].mean(0)
        assert max(SOUNDS, key=lambda word: part @ np.array(SHAKES[word])) == name
    still = rows[:20]
    assert np.abs(still).max() < 5 * events.TREMBLE


# Further cameras


def test_each_card_is_shown_to_one_camera_at_the_key_frame_of_its_phase():
    for seed in range(40):
        scene = draw_scene(seed)
        script = CARDS.draw(scene, seed)
        films, bare = (np.stack(events.further_views(scene, each, seed)) for each in (script, Script("quiet", ())))
        there = (films != bare).any((2, 3, 4))  # camera, picture
        keys = np.round(draw.key_times(FRAMES, FPS) * FPS).astype(int)
        shown = [i for i, names in enumerate(signs.cards(scene, script)) if names]
        assert there[:, keys].sum(0).nonzero()[0].tolist() == shown and there.sum(0).max(initial=0) <= 1


# Distances


def test_a_scan_has_the_distance_of_every_card_and_no_colour_image_reveals_it(tmp_path):
    scene = draw_scene(4)
    times = draw.key_times(FRAMES, FPS)
    for seed, near in enumerate([(True, True, False), (False, True, True)]):
        distances.write(tmp_path / str(seed), scene, near, 1)
        cards = distances.show(draw.frames(scene, times), scene, times)
        for places, left_is_near in zip(cards, near, strict=True):
            for place, close in zip(places, (left_is_near, not left_is_near), strict=True):
                (shown,) = place.any((1, 2)).nonzero()
                assert len(shown) == 1, "one key frame of every phase"
                number = round(float(times[shown[0]]) * FPS)
                depth = np.asarray(Image.open(tmp_path / str(seed) / "depth" / f"{number}.png")) / 1000
                metres = np.median(depth[place[shown[0], 1::2, 1::2]])
                assert abs(metres - (distances.NEAR if close else distances.FAR)) < distances.SPREAD + 0.02
                assert 0.005 < (depth == 0).mean() < 0.05, "holes"
    for number in (times * FPS).round().astype(int):
        one, other = ((tmp_path / str(seed) / "color" / f"{number}.png").read_bytes() for seed in (0, 1))
        assert one == other


def test_every_card_is_shown_once():
    for seed in range(50):
        names = [name for pair in distances.pairs(draw_scene(seed)) for name in pair]
        assert sorted(names) == sorted(SOUNDS)


# Files


def test_lines_name_existing_files_and_views_and_imu_leave_the_film_unchanged(tmp_path):
    lines = [json.loads(line) for line in write_clips(tmp_path, 16, 2, "val", CHANNELS).read_text().splitlines()]
    assert {line["channel"] for line in lines} == set(CHANNELS)
    for line in lines:
        files = line["signals"]
        assert (tmp_path / files["depth"] / "pose" / "79.txt").is_file() and (tmp_path / files["imu"]).is_file()
        for view in files["views"]:
            clip = Clip.read(tmp_path / view, frames=2)
            assert clip.audio is None and clip.report.pictures == SECONDS * FPS
    plain = write_clips(tmp_path / "plain", 16, 2, "val", ("video", "views", "imu"))
    bare = write_clips(tmp_path / "bare", 16, 2, "val", ("video",))
    films = [sorted(path.name for path in (file.parent / "clips").iterdir()) for file in (plain, bare)]
    assert films[0] == films[1], "views and imu change no film"
    assert all("signals" not in json.loads(line) for line in bare.read_text().splitlines())


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    for name in "ab":
        write_clips(tmp_path / name, 3, 1, "test", CHANNELS)
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) > 3 * 20
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


def test_without_sound_channels_captions_do_not_mention_sounds(tmp_path):
    lines = write_clips(tmp_path, 8, 2, "train", ("fast", "caption")).read_text().splitlines()
    texts = {json.loads(line)["conversations"][0]["value"] for line in lines}
    assert any("sign" in text for text in texts) and not any("hear" in text for text in texts)
