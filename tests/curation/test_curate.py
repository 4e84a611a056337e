"""Claims about `pave curate`: real captioners, a real server that is busy, refusing and malformed, and a real kill."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
import wave
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from author import Author
from captioners import HEARD, write_chat, write_of_pictures, write_of_sounds, write_of_speech, write_seeing_chat
from chat_server import Answer, completion, serving
from forked import begin
from killing import flaws, killed, lines
from places import ROOT

from pave.curation import captions
from pave.curation.captions import Captioned
from pave.curation.config import Curation
from pave.curation.duplicates import Seen
from pave.curation.instructions import Entry, written
from pave.curation.prompts import pairs, prompts_of, scores
from pave.curation.run import Curated, curate
from pave.curation.writer import Asking, LocalModel, Spent, writer_of
from pave.data import Source
from pave.endpoint import client
from pave.endpoint.client import Pace, Reply
from pave.endpoint.kept import Kept
from pave.errors import DataError, EncoderError, FileError, RecipeError, UsageError, WriterError
from pave.features.extract import found
from pave.files.validation import parse
from pave.media.clip import Clip
from pave.playroom.world import draw_scene, draw_script
from pave.playroom.writer import write_clip, write_clips

URL = "http://127.0.0.1:9/v1"  # where nothing listens
BOTH = Captioned(((0.0, "a ball"), (2.0, "a drum")), ((0.0, 2.0, "a bell"),))
FINE = {"relevance": 5, "completeness": 5, "soundness": 5, "fluency": 5}
PAIR = [{"question": "What is there?", "answer": "A ball."}]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "pictures": (str(write_of_pictures(folder / "blip")),),
        "sounds": (str(write_of_sounds(folder / "ast")),),
    }


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Any]) -> Path:
    """A folder with ten clips, and their captions in `captions.jsonl`."""
    folder = tmp_path_factory.mktemp("room")
    write_clips(folder, 10)
    with serving(Author()) as server:
        curate(options(models, server.url), found(folder / "clips")[0], folder / "whole")
    return folder


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAVE_WRITER_KEY", "OPENAI_API_KEY", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)


def options(models: dict[str, Any], url: str = URL, **more: Any) -> Curation:
    own = {"frames": 2, "segments": 2, "longest": 6, **models, **more}
    return Curation(writer=url, model="author-1", **own)


def copied(room: Path, name: str) -> Path:
    """A new folder beside `whole`, with the captions alone."""
    (room / name).mkdir()
    shutil.copy(room / "whole" / "captions.jsonl", room / name)
    return room / name


def words_of(models: dict[str, Any], source: Path, out: Path, url: str) -> list[str]:
    """The command for the same as `options`."""
    words = ["curate", source, out, "--writer", url, "--writer-model", "author-1"]
    words += ["--pictures", *models["pictures"], "--sounds", *models["sounds"]]
    own = ("frames=2", "segments=2", "longest=6")
    return [str(word) for word in (*words, *(part for each in own for part in ("--option", each)))]


def run(room: Path, name: str, models: dict[str, Any], url: str, **more: Any) -> Curated:
    out = room / name
    return curate(options(models, url, **more), found(room / "clips")[0], out if out.exists() else copied(room, name))


def entries(ask: Callable[[list[dict[str, str]]], Reply], clip: Captioned = BOTH, **more: Any) -> list[Entry]:
    own = Curation(writer=URL, model="m", pictures=("x",), **more)
    return list(written(clip, ask, prompts_of(own), own))


def scripted(pair: Any = PAIR, score: Any = None) -> Callable[[list[dict[str, str]]], Reply]:
    """Who replies to all steps with the same."""

    def ask(messages: list[dict[str, str]]) -> Reply:
        system = messages[0]["content"]
        if "numbered entries" in system:
            return Reply(json.dumps([FINE if score is None else score]))
        return Reply(json.dumps(pair) if "JSON list" in system else "a caption")

    return ask


# The whole way


def test_clips_of_all_sorts_become_instructions_that_training_can_read(models, tmp_path: Path, command) -> None:
    media = tmp_path / "media"
    write_clips(media, 2)
    write_clip(media / "deaf.mp4", draw_scene(1), draw_script(1), 1, audio=False)
    (media / "broken.mp4").write_bytes(b"no film")
    with wave.open(str(media / "alone.wav"), "wb") as file:
        file.setparams((1, 2, 8_000, 0, "NONE", ""))
        file.writeframes((np.sin(np.arange(16_000)) * 9_000).astype(np.int16).tobytes())
    with serving(Author()) as server:
        words = words_of(models, media, tmp_path / "out", server.url)
        code, out, err = command(*words)
        assert code == 0, err
        assert "5 of 5 clips done" in out and "left out: train.jsonl" in err
        asked, before = len(server.asked), (tmp_path / "out/instructions.jsonl").read_bytes()
        assert command(*words)[0] == 0
        assert len(server.asked) == asked and (tmp_path / "out/instructions.jsonl").read_bytes() == before
    assert flaws(tmp_path / "out") == []
    kept, dropped = lines(tmp_path / "out/instructions.jsonl"), lines(tmp_path / "out/dropped.jsonl")
    channels = {name: {each["channel"] for each in kept + dropped if name in each["id"]} for name in ("deaf", "alone")}
    assert channels == {"deaf": {"video"}, "alone": {"audio"}}
    assert {each["channel"] for each in kept} == {"video", "audio", "audio+video"}
    assert all(each.get("audio") == "../media/alone.wav" for each in kept if "alone" in each["id"])
    assert {each["kind"] for each in kept} == {"description", "dialogue", "reasoning"}
    (broken,) = [each for each in dropped if "broken" in each["id"]]
    assert broken["why"] == "unreadable clip" and "broken.mp4" in broken["detail"]
    words = {
        word
        for each in lines(tmp_path / "out/captions.jsonl")
        for *_, text in each["sounds"]
        for word in text.split(", ")
    }
    assert words <= set(HEARD) and words


def test_a_curation_that_is_killed_ends_as_one_that_is_not(room: Path, models, tmp_path: Path) -> None:
    assert flaws(room / "whole") == []
    whole, out = lines(room / "whole/replies.jsonl"), copied(room, "broken")
    with serving(author := Author()) as server:
        words = words_of(models, room / "clips", out, server.url)
        killed(begin(tmp_path, ["pave", *words]), lambda: author.paid.total() >= len(whole) // 2)
        paid, replies = author.paid.total(), out / "replies.jsonl"
        assert not (out / "instructions.jsonl").exists()
        replies.write_bytes(replies.read_bytes()[:-5])  # as if the kill had come within the last write
        run(room, "broken", models, server.url)
    assert flaws(out) == []
    for name in ("instructions.jsonl", "dropped.jsonl"):
        assert (out / name).read_bytes() == (room / "whole" / name).read_bytes(), name
    assert len({each["key"] for each in lines(replies)}) == len(lines(replies)) == len(whole)
    assert paid < author.paid.total() <= len(whole) + 8 + 1, "what was under way is asked again, and no more"


def test_captions_made_on_ray_are_the_same(room: Path, models) -> None:
    pytest.importorskip("ray", reason='pip install "pave[ray]"')
    with serving(Author()) as server:
        words = words_of(models, room / "clips", room / "ray", server.url)
        command = [sys.executable, "-m", "pave.cli.main", *words, "--engine", "ray", "--workers", "1"]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0 and "10 of 10 clips done" in done.stdout, done.stderr
    for name in ("captions", "instructions"):
        one, other = (sorted((room / way / f"{name}.jsonl").read_text().splitlines()) for way in ("ray", "whole"))
        assert one == other


def test_the_limit_of_tokens_holds_and_a_larger_one_goes_on(room: Path, models) -> None:
    with serving(author := Author()) as server:
        first = run(room, "short", models, server.url, tokens=20_000, at_once=2)
        assert 0 < first.complete < 10 and 10_000 < first.tokens <= 20_000
        assert "raise --tokens" in str(first) and flaws(room / "short") == []
        second = run(room, "short", models, server.url)
    assert second.complete == 10 and max(author.paid.values()) == 1
    assert (room / "short/instructions.jsonl").read_bytes() == (room / "whole/instructions.jsonl").read_bytes()


def test_a_server_that_stays_down_ends_it_with_what_was_paid(room: Path, models, monkeypatch) -> None:
    author, down = Author(busy=False), 30
    monkeypatch.setattr(client, "FIRST", 0.01)

    def answer(number: int, body: dict[str, Any]) -> Answer:
        return author(number, body) if number < down else (500, {}, b"out of order")

    with serving(answer) as server:
        with pytest.raises(WriterError, match=r"writer http.*answers 500 .*out of order, 2 times; the same command"):
            run(room, "down", models, server.url, tries=2)
        assert len(lines(room / "down/replies.jsonl")) == down - 1
        down = 10**6
        run(room, "down", models, server.url)
    assert max(author.paid.values()) == 1


def test_an_error_ends_the_clips_that_have_begun_too(room: Path, models) -> None:
    author, whole = Author(busy=False), len(lines(room / "whole/replies.jsonl"))

    def answer(number: int, body: dict[str, Any]) -> Answer:
        time.sleep(0.05 if number > 5 else 0)  # until the error has been heard of
        return (400, {}, b"no such parameter") if number == 5 else author(number, body)

    with serving(answer) as server:
        with pytest.raises(WriterError, match="no such parameter"):
            run(room, "stopped", models, server.url)
        assert len(server.asked) < whole / 2
        run(room, "stopped", models, server.url)
    assert max(author.paid.values()) == 1


def test_one_film_with_two_sounds_is_two_clips(room: Path, models, tmp_path: Path) -> None:
    film = sorted((room / "clips").glob("*.mp4"))[0]
    clips = [("film", Source(film)), ("film", Source(film, (("audio", str(film)),)))]
    with serving(Author(0.0)) as server:
        told = curate(options(models, server.url, similar=0.01), clips, tmp_path)
    assert told.complete == 2
    ids = [each["id"] for name in ("instructions", "dropped") for each in lines(tmp_path / f"{name}.jsonl")]
    assert {each.partition("#")[0] for each in ids} == {"film", "film (2)"} and len({*ids}) == len(ids)


# What is said


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (Reply("", ended="refused"), "refused"),
        (Reply("words", ended="cut"), "cut"),
        (Reply(""), "unreadable reply"),
    ],
)
def test_a_caption_that_is_not_had_is_told_and_leaves_the_other_channel(reply: Reply, why: str) -> None:
    known = scripted()
    told = entries(lambda messages: reply if "frames of one video" in messages[0]["content"] else known(messages))
    assert [(each.channel, each.why) for each in told if each.why] == [("video", why)]
    assert {each.channel for each in told if not each.why} == {"audio"}


def test_a_reply_that_cannot_be_read_is_sent_back_once_with_the_reason() -> None:
    known, asked = scripted(), []

    def ask(messages: list[dict[str, str]]) -> Reply:
        asked.append(messages)
        wrong = "JSON list" in messages[0]["content"] and len(messages) == 2
        return Reply("I think [it] is so") if wrong else known(messages)

    assert not [each for each in entries(ask, kinds=("reasoning",)) if each.why]
    again = [each for each in asked if len(each) > 2]
    assert again[0][2] == {"role": "assistant", "content": "I think [it] is so"}
    assert "cannot be used" in again[0][3]["content"] and len(again) == 6
    lost = entries(lambda messages: Reply("no"), kinds=("reasoning",))
    assert {each.why for each in lost} == {"unreadable reply"} and not any(each.turns for each in lost)


@pytest.mark.parametrize("name", ["relevance", "completeness", "soundness", "fluency"])
def test_an_entry_below_a_criterion_is_dropped_for_it(name: str) -> None:
    told = entries(scripted(score=FINE | {name: 3}), kinds=("dialogue",), least=4)
    assert [(each.why, each.detail) for each in told] == [(name, f"{name} 3")] * 3
    assert not [each for each in entries(scripted(score=FINE | {name: 4}), least=4) if each.why]
    unread = entries(scripted(score={"relevance": 5}), kinds=("dialogue",))
    assert [each.why for each in unread] == ["not verified: unreadable reply"] * 3 and all(
        each.turns for each in unread
    )


def test_each_channel_is_written_from_its_own_captions() -> None:
    contexts: list[str] = []

    def ask(messages: list[dict[str, str]]) -> Reply:
        assert [messages[0]["content"].count(f"# {name}\n") for name in ("ROLE", "REQUIREMENT", "EXAMPLE")] == [1, 1, 1]
        assert (
            messages[1]["content"].startswith("# CONTEXT\n") and "{" not in messages[0]["content"].split("# EXAMPLE")[0]
        )
        contexts.append(messages[1]["content"])
        return scripted()(messages)

    entries(ask)
    assert "0.0 s: a ball\n2.0 s: a drum" in contexts[0] and "bell" not in contexts[0]
    (heard,) = [each for each in contexts if "0.0 to 2.0 s: a bell" in each]
    assert "ball" not in heard and any("Seen: a caption\nHeard: a caption" in each for each in contexts)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "no JSON list"),
        ("[]", "no JSON list"),
        ('[{"question": "a"}]', "lacks a text under question or answer"),
        ('[{"question": "a", "answer": " "}]', "lacks a text"),
        ('[{"question": "a", "answer": 3}]', "lacks a text"),
        ('[{"question": "a", "answer": "b"}', "its list is not JSON"),
        ('{"question": "a", "answer": "b"}', "no JSON list"),
        ("[" * 50_000, "deep"),
    ],
)
def test_a_reply_without_questions_and_answers_says_why(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        pairs(text)


def test_words_around_a_list_are_left_out() -> None:
    fenced = f"Here [3 of them]:\n```json\n{json.dumps({'items': PAIR})}\n```\nEnjoy!"
    assert pairs(fenced) == [("What is there?", "A ball.")]
    with pytest.raises(ValueError, match="scores 1 of 2 entries"):
        scores(json.dumps([FINE]), 2)
    with pytest.raises(ValueError, match="'fluency' must be a number from 1 to 5, got True"):
        scores(json.dumps([FINE | {"fluency": True}]), 1)


def test_prompts_of_ones_own_replace_ours(tmp_path: Path) -> None:
    own, models = tmp_path / "own.yaml", {"pictures": ("x",)}
    own.write_text("video: {role: Be brief., requirement: '{count} of {about}', example: none}\n")
    found = prompts_of(options(models, prompts=own))
    assert found["video"].messages("seen", count="2", about="all")[0]["content"].endswith("2 of all\n\n# EXAMPLE\nnone")
    assert found["audio"] == prompts_of(options(models))["audio"]
    own.write_text("vidio: {role: a, requirement: b, example: c}\n")
    with pytest.raises(RecipeError, match="no prompt 'vidio'; there are video, audio"):
        prompts_of(options(models, prompts=own))
    own.write_text("video: {role: a, requirement: b}\n")
    with pytest.raises(RecipeError, match="example"):
        prompts_of(options(models, prompts=own))


# Near-duplicates


def test_near_duplicates_are_found_among_many_and_others_are_not() -> None:
    rng, seen = Random(0), Seen(0.8)
    words = [f"w{number}" for number in range(400)]
    texts = [" ".join(rng.choices(words, k=30)) for _ in range(300)]
    assert not any(seen.twin(str(place), text) for place, text in enumerate(texts))
    changed = [f"{text.upper()}  !" if place % 2 else text.replace("w1", "v1", 1) for place, text in enumerate(texts)]
    assert [seen.twin(f"again {place}", text) for place, text in enumerate(changed)] == [str(n) for n in range(300)]


def test_equal_questions_with_other_answers_are_no_duplicates() -> None:
    seen = Seen(0.9)
    assert seen.twin("a", "What colour is the ball?\nRed.") is None
    assert seen.twin("b", "What colour is the ball?\nGreen, with a blue dot.") is None
    assert seen.twin("c", "what colour is the  ball?\nred.") == "a"
    assert Seen(1.0).twin("d", "") is None


# Who writes


def test_equal_requests_are_paid_once(tmp_path: Path) -> None:
    with serving(author := Author(0.0)) as server:
        own = options({"pictures": ("x",)}, server.url)
        asking = Asking(own, writer_of(own), tmp_path / "replies.jsonl")
        messages = prompts_of(own)["video"].messages("0.0 s: a ball")
        with ThreadPoolExecutor(8) as pool:
            told = list(pool.map(asking, [messages] * 16))
    assert author.paid.total() == 1 and set(told) == {told[0]}
    assert asking.known(messages) == told[0] and asking.spent == told[0].tokens
    again = Asking(own, writer_of(own), tmp_path / "replies.jsonl")
    assert again(messages) == told[0] and again.spent == asking.spent
    with pytest.raises(Spent):
        again.known(prompts_of(own)["audio"].messages("0.0 s: a bell"))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((200, {}, completion("yes", "m", tokens=7)), Reply("yes", "m", 7)),
        ((200, {}, completion("half", "m", "length")), Reply("half", "m", None, "cut")),
        ((200, {}, completion(None, "m", "content_filter")), Reply("", "m", None, "refused")),
        ((400, {}, b'{"error": {"code": "content_policy_violation"}}'), Reply("", ended="refused")),
        ((413, {}, b""), Reply("", ended="refused")),
        ((200, {}, completion("\ud83d", "m")), Reply("?", "m")),
    ],
)
def test_an_endpoint_may_cut_or_refuse_one_reply(answer: Answer, expected: Reply, tmp_path: Path) -> None:
    with serving(lambda number, body: answer) as server:
        own = options({"pictures": ("x",)}, server.url, request={"max_tokens": None, "seed": 3})
        asking = Asking(own, writer_of(own), tmp_path / "replies.jsonl")
        assert asking([{"role": "user", "content": "x"}]) == expected
        assert asking.known([{"role": "user", "content": "x"}]) == expected
        ((_, _, body),) = server.asked
    assert body["seed"] == 3 and body["temperature"] == 0 and "max_tokens" not in body


def test_a_wrong_request_ends_the_curation() -> None:
    with serving(lambda number, body: (400, {}, b"no such parameter")) as server:
        writer = writer_of(options({"pictures": ("x",)}, server.url))
        with pytest.raises(WriterError, match=r"answers 400 .*no such parameter; check the address and --writer-model"):
            writer.reply([])


def test_requests_begin_evenly_spaced(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(client.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(client.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    pace, begun = Pace(30), []
    for _ in range(4):
        pace.wait()
        begun.append(now[0])
    assert begun == [100, 102, 104, 106]
    now[0] = 200.0
    pace.wait()
    assert now[0] == 200, "what was not used is not saved up"


def test_a_model_on_this_machine_can_write(tmp_path: Path) -> None:
    model = LocalModel(str(write_chat(tmp_path / "chat")), {"max_tokens": 6, "temperature": 0})
    reply = model.reply([{"role": "user", "content": "a red ball"}])
    assert len(reply.text.split()) == 6 and reply.ended == "cut" and reply.tokens == 6 + 6
    assert model.reply([{"role": "user", "content": "a red ball"}]) == reply
    with pytest.raises(WriterError, match="no chat template"):
        LocalModel(str(write_chat(tmp_path / "plain", None)), {})
    with pytest.raises(WriterError, match="cannot be loaded"):
        LocalModel(str(tmp_path / "none"), {})
    with pytest.raises(UsageError, match=r"request\.seed is for an endpoint"):
        LocalModel(str(tmp_path / "chat"), {"seed": 1})


# Captions and options


def test_sound_is_cut_into_equal_parts_and_silence_is_not_captioned(models) -> None:
    sound = np.concatenate([np.zeros(8_000), np.sin(np.arange(8_000)) * 0.5]).astype(np.float32)
    told = captions._captioned(options({"sounds": models["sounds"]}), Clip.from_frames(audio=sound, rate=8_000))
    assert [span[:2] for span in told.sounds] == [(0.0, 1.0), (1.0, 2.0)] and told.alone and not told.pictures
    assert told.sounds[0][2] == "silence" and set(told.sounds[1][2].split(", ")) <= set(HEARD)


def test_a_chat_model_that_sees_is_asked_the_question(tmp_path: Path) -> None:
    model = {"pictures": (str(write_seeing_chat(tmp_path / "llava")),)}
    clip = Clip.from_frames(np.random.default_rng(0).integers(0, 255, (1, 40, 40, 3), dtype=np.uint8))
    told = [captions._captioned(options(model, asked=asked), clip) for asked in ("a drum near", "the wall")]
    (one,), (other,) = (each.pictures for each in told)
    assert one[1] != other[1] and len(one[1].split()) <= 6 and "drum near" not in one[1]


def test_speech_of_over_half_a_minute_is_written_down_in_parts(tmp_path: Path) -> None:
    model = {"sounds": (str(write_of_speech(tmp_path / "speech")),)}
    sound = np.random.default_rng(0).normal(0, 0.1, 8_000 * 32).astype(np.float32)
    (part,) = captions._captioned(options(model, segments=1), Clip.from_frames(audio=sound, rate=8_000)).sounds
    assert part[:2] == (0.0, 32.0) and len(part[2].split("; ")) == 2


def test_a_captioner_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"captioner of sounds '.*none': cannot be loaded"):
        captions.refuse_unknown(options({"sounds": (str(tmp_path / "none"),)}))


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"writer": URL, "model": "m"}, "there is no captioner"),
        ({"writer": URL, "pictures": ("x",)}, "an endpoint needs the name of its model"),
        ({"writer": "a-model", "model": "m", "pictures": ("x",)}, "an endpoint needs the name of its model"),
        ({"writer": URL, "model": "m", "pictures": ("x",), "similer": 1}, "did you mean 'similar'"),
        ({"writer": URL, "model": "m", "pictures": ("x",), "least": 6}, "least"),
    ],
)
def test_options_that_cannot_be_are_refused(given: dict[str, Any], wrong: str) -> None:
    with pytest.raises(RecipeError, match=wrong):
        parse(Curation, given, "pave curate")


def test_parts_of_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="parts of files"):
        curate(options({"pictures": ("x",)}), [("a", Source(Path("a.mp4"), start=1.0))], tmp_path / "out")


def test_a_full_disk_loses_one_value_and_no_other(tmp_path: Path) -> None:
    kept, limits = Kept(tmp_path / "kept.jsonl"), resource.getrlimit(resource.RLIMIT_FSIZE)
    kept.add("a", {"text": "a"})
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, limits[1]))
    try:
        with pytest.raises(FileError, match="free disk space"):
            kept.add("b", {"text": "b" * 40})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    kept.add("c", {"text": "c"})
    for each in (kept, Kept(kept.file)):
        assert [(each.get(key) or {}).get("text") for key in "abc"] == ["a", None, "c"]


def test_what_is_kept_is_found_again(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept.jsonl")
    kept.add("a", {"text": "zwölf\n"})
    kept.add("b", {"text": "b"})
    (tmp_path / "kept.jsonl").open("ab").write(b'{"key": "c", "te')
    again = Kept(tmp_path / "kept.jsonl")
    assert "c" not in again and [each["text"] for each in again.all()] == ["zwölf\n", "b"]
    again.add("c", {"text": "c"})
    assert [again.get(key) for key in "abc"] == [Kept(again.file).get(key) for key in "abc"]
