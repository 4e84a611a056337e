"""The page at `/` and what it asks the server for: its files, clips to try, cards, explanations."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from clips import counting_frames, write_clip
from families import make_base
from patched import hears
from places import ROOT
from served import Served, about, inline, served

from pave.media.clip import Clip
from pave.model.patched import PatchedModel
from pave.serving.settings import Limits, Settings

FILM = ROOT / "examples" / "room.mp4"
QUESTION = "what colour is the ball when you hear the bell?"
KEY = {"authorization": "Bearer key"}
ADMIN = {"authorization": "Bearer admin"}


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patch in a folder of somebody else's, who has written the card."""
    folder = tmp_path_factory.mktemp("patches") / "copied"
    shutil.copytree(ROOT / "patches" / "audio-playroom", folder)
    (folder / "README.md").write_text("---\nlibrary_name: pave\n---\n\n# Not ours\n")
    return folder


@pytest.fixture(scope="module")
def place(playroom: PatchedModel, copied: Path) -> Iterator[Served]:
    playroom.apply_patch("audio-playroom")
    playroom.apply_patch(str(copied), name="copied")
    with served(playroom, Settings("room", frozenset({"key"}), "admin", limits=Limits(waiting=4))) as place:
        yield place


def fetched(place: Served, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    reply = place.send(path, body, **{**KEY, **headers})
    return reply.status, json.load(reply)


def asks(model: str = "room+audio-playroom", **options: Any) -> dict[str, Any]:
    return {"model": model, "messages": [about(inline(FILM), QUESTION)], **options}


def test_the_page_may_run_its_own_scripts_and_ask_its_own_server(place):
    reply = place.send("/")
    policy, html = reply.getheader("content-security-policy"), reply.read().decode()
    assert reply.status == 200 and "default-src 'none'" in policy and "unsafe" not in policy
    kinds = {}
    left = re.findall(r'(?:src|href)="([^"]+)"', html)
    while left:
        name = left.pop()
        part = place.send(f"/{name}")
        assert part.status == 200 and part.getheader("content-security-policy") == policy, name
        kinds[name] = part.getheader("content-type").partition(";")[0]
        left += [f"page/{each}" for each in re.findall(r'from "\./([^"]+)"', part.read().decode())]
    assert set(kinds.values()) == {"text/css", "text/javascript", "image/svg+xml"}
    assert len([name for name in kinds if name.endswith(".js")]) == 4
    assert place.send("/page/routes.py").status == place.send("/page/..%2Frun.py").status == 404


def test_without_a_key_there_is_only_the_page(place):
    for path, body in (
        ("/v1/examples", None),
        ("/v1/examples/1", None),
        ("/v1/cards/copied", None),
        ("/v1/explain", {}),
    ):
        assert place.send(path, body).status == 401


def test_examples_are_clips_with_sound_and_the_answers_of_their_scenes(place, tmp_path):
    _, listed = fetched(place, "/v1/examples")
    example = listed["data"][0]
    path = tmp_path / "clip.mp4"
    path.write_bytes(place.send(example["clip"], **KEY).read())
    clip = Clip.read(path)
    assert clip.report.seconds == 4 and clip.audio is not None
    asked = [each for each in example["questions"] if "you hear the" in each["text"]]
    rows = [(path, each["text"], ["audio-playroom"]) for each in asked]
    assert len({each["answer"] for each in asked}) == 3
    assert place.engine.model.ask_batch(rows) == [each["answer"] for each in asked]
    assert {"sounds", "signs"} == {each["about"] for each in listed["data"]}
    assert place.send("/v1/examples/0", **KEY).status == place.send("/v1/examples/x", **KEY).status == 404


def test_a_card_is_that_of_the_file_that_was_applied(place, copied):
    _, own = fetched(place, "/v1/cards/audio-playroom")
    assert own["card"].lstrip().startswith("# audio-playroom") and "library_name" not in own["card"]
    assert own["certificate"]["kind"] == "certified" and "Certified: `match`" in own["certificate"]["text"]
    assert fetched(place, "/v1/cards/copied")[1]["card"].strip() == "# Not ours"
    (copied / "README.md").unlink()
    assert "pave.load" in fetched(place, "/v1/cards/copied")[1]["card"]  # written from its own facts
    shutil.copy(ROOT / "patches" / "fast-playroom" / "patch.safetensors", copied)
    status, changed = fetched(place, "/v1/cards/copied")
    assert status == 200 and "has changed" in changed["card"] and changed["certificate"]["kind"] == "none"
    status, unknown = fetched(place, "/v1/cards/audio-playrom")
    assert status == 404 and "'audio-playroom'" in unknown["error"]["message"]


def test_an_explanation_is_that_of_the_model(place):
    status, found = fetched(place, "/v1/explain", asks())
    alone = place.engine.model.explain(FILM, QUESTION, patches=["audio-playroom"])
    assert status == 200 and found["text"] == str(alone).splitlines()
    assert [(each["start"], each["end"]) for each in found["cited"]] == [(each.start, each.end) for each in alone.cited]
    assert found["cited"] and found["deletions"][0]["lost"] == pytest.approx(alone.deletions[0].lost.tolist(), abs=1e-5)
    assert found["pave"]["signals"]["audio"].startswith("present")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"stream": True}, "stream"),
        ({"temperature": 1.0}, "temperature"),
        ({"stop": "x"}, "stop"),
        ({"logprobs": True}, "logprobs"),
        ({"model": "room"}, None),
    ],
)
def test_what_has_no_explanation_is_refused(change, param, place):
    status, reply = fetched(place, "/v1/explain", {**asks(), **change})
    assert (status, reply["error"]["param"]) == (400, param)


def test_nobody_explains_for_a_client_that_has_left(place):
    engine, free = place.engine, threading.Event()
    engine._explaining.submit(free.wait)
    client = place.client("key", timeout=0.2)
    with pytest.raises(openai.APITimeoutError):
        client.post("/explain", body=asks(), cast_to=object)
    place.until(lambda: not engine._held and not engine._used["audio-playroom"])
    free.set()
    place.engine.load("fast-playroom", None)
    assert fetched(place, "/v1/explain", asks("room+fast-playroom"))[0] == 200
    assert fetched(place, "/v1/unload_patch", {"name": "fast-playroom"}, **ADMIN)[0] == 200  # after it, at once


def test_other_bases_have_no_clips_to_try_and_a_patch_from_memory_has_no_card(tokenizer):
    model = PatchedModel(make_base(tokenizer))
    hears(model)
    with served(model, Settings("tiny")) as place:
        assert fetched(place, "/v1/examples") == (200, {"object": "list", "data": []})
        assert place.send("/v1/examples/1").status == 404
        assert fetched(place, "/v1/cards/ears")[1]["card"].startswith("No card")


def test_the_embedded_base_says_what_it_knows_of_other_films(place, tmp_path):
    write_clip(tmp_path / "film.mp4", counting_frames(8, (48, 64)), fps=4)
    body = {"model": "room", "messages": [about(inline(tmp_path / "film.mp4"), "what do you see?")]}
    _, reply = fetched(place, "/v1/chat/completions", body)
    assert any("not a clip of the Playroom" in each for each in reply["pave"]["warnings"])
