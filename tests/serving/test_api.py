"""The API with long answers, of a base with random weights: streams, ends, limits, keys, clients that leave."""

from __future__ import annotations

import json
import queue
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from clips import click, counting_frames, write_clip
from families import make_base
from patched import hears
from served import Served, about, inline, served

from pave.errors import UsageError
from pave.model.patched import PatchedModel
from pave.serving.engine import Done, Event
from pave.serving.messages import asked
from pave.serving.reading import UNHEARD
from pave.serving.settings import Limits, Settings

QUESTION = "What do you hear?"
MODELS = ("tiny", "tiny+ears")
LONG = 400  # tokens: an answer that is still being written when something happens


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    write_clip(path, counting_frames(20), fps=10, audio=click(2.0, 0.5), rate=48000)
    return path


@pytest.fixture(scope="module")
def model(tokenizer) -> PatchedModel:
    """Its answers do not end by themselves."""
    host = make_base(tokenizer)
    head: Any = host.model.get_output_embeddings()
    head.weight.data[host.stops] = 0
    model = PatchedModel(host)
    hears(model)
    return model


@pytest.fixture(scope="module")
def place(model: PatchedModel) -> Iterator[Served]:
    limits = Limits(rows=4, waiting=4, tokens=LONG, clip_bytes=1 << 20, uploads=1, clip_seconds=60, upload=2)
    with served(model, Settings("tiny", frozenset({"key", "other"}), "admin", limits=limits)) as place:
        yield place


@pytest.fixture
def client(place: Served) -> openai.OpenAI:
    return place.client("key")


def asks(clip: Path, question: str = QUESTION, **options: Any) -> dict[str, Any]:
    return {"model": "tiny+ears", "messages": [about(inline(clip), question)], "max_tokens": 12, **options}


def idle(place: Served) -> bool:
    return not place.engine.running and not place.engine.waiting


def test_an_answer_is_that_of_ask_with_how_it_ended(client, model, clip):
    alone = model.ask(clip, QUESTION, max_new_tokens=12)
    reply = client.chat.completions.create(**asks(clip))
    [choice], usage = reply.choices, reply.usage
    assert choice.message.content == alone and choice.finish_reason == alone.finish_reason == "length"
    assert (usage.prompt_tokens, usage.completion_tokens) == (alone.prompt_tokens, alone.tokens)
    assert reply.pave == {"patches": ["ears"], "signals": dict(alone.signals), "warnings": []}


def test_the_pieces_of_a_stream_are_the_answer(client, model, clip):
    stream = client.chat.completions.create(**asks(clip), stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == model.ask(clip, QUESTION, max_new_tokens=12)
    assert chunks[-2].choices[0].finish_reason == "length" and chunks[-1].usage.completion_tokens == 12
    assert len(chunks) > 5


def test_earlier_turns_are_part_of_the_dialogue_and_their_clip_is_the_same(client, model, clip):
    turns = [about(inline(clip), "Who is there?"), {"role": "assistant", "content": "a dog"}]
    again = about(inline(clip), QUESTION)
    alone = model.ask(clip, QUESTION, history=[("Who is there?", "a dog")], max_new_tokens=12)
    for last in ({"role": "user", "content": QUESTION}, again):
        reply = client.chat.completions.create(**asks(clip, messages=[*turns, last]))
        assert reply.choices[0].message.content == alone
    usage = reply.usage  # the second prompt was the first
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1


def test_a_stop_ends_the_answer_before_it(client, model, clip):
    alone = model.ask(clip, QUESTION, max_new_tokens=40)
    stop = alone[len(alone) // 2 :][:2]
    reply = client.chat.completions.create(**asks(clip, max_tokens=40, stop=[stop]))
    assert reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].message.content == alone[: alone.index(stop)].strip()


def test_probabilities_come_with_the_tokens(client, clip):
    reply = client.chat.completions.create(**asks(clip, max_tokens=3, logprobs=True, top_logprobs=2))
    content = reply.choices[0].logprobs.content
    assert len(content) == 3
    for token in content:
        assert token.logprob == token.top_logprobs[0].logprob > token.top_logprobs[1].logprob


def test_a_seed_gives_the_same_draw_whoever_is_in_the_batch(client, clip):
    def draw(seed: int) -> str | None:
        reply = client.chat.completions.create(**asks(clip, temperature=2.0, seed=seed))
        return reply.choices[0].message.content

    with ThreadPoolExecutor(4) as pool:
        first, again, other, _ = pool.map(draw, (1, 1, 2, 3))
    assert first == again == draw(1) != other


def test_a_sound_beside_a_clip_replaces_its_own(client, model, clip, tmp_path):
    sound = tmp_path / "sound.mp4"
    noise = np.random.default_rng(0).uniform(-1, 1, 2 * 48000)
    write_clip(sound, counting_frames(2), fps=1, audio=noise, rate=48000)
    part = {"type": "input_audio", "input_audio": {"data": inline(sound).partition(",")[2], "format": "wav"}}
    message = about(inline(clip), QUESTION)
    message["content"].insert(0, part)
    reply = client.chat.completions.create(**asks(clip, messages=[message]))
    assert reply.choices[0].message.content == model.ask(clip, QUESTION, audio=sound, max_new_tokens=12)
    assert reply.choices[0].message.content != model.ask(clip, QUESTION, max_new_tokens=12)


# Requests that are refused


TEXT = {"role": "user", "content": QUESTION}
REFUSED: list[tuple[dict[str, Any], str | None]] = [
    ({"messages": []}, "messages"),
    ({"messages": [TEXT]}, "messages"),
    ({"messages": [TEXT, {"role": "assistant", "content": "yes"}]}, "messages"),
    ({"messages": [{"role": "system", "content": "Be brief."}, TEXT]}, "messages.0"),
    ({"messages": [{"role": "system", "content": ""}, TEXT, TEXT]}, "messages.2"),
    ({"messages": [TEXT, TEXT]}, "messages.1"),
    ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, "messages.0.content.0.type"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
    ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, "messages.0.content.0.video_url"),
    ({"messages": [about("https://example.org/a.mp4", QUESTION)]}, None),
    ({"messages": [about("file:///etc/passwd", QUESTION)]}, None),
    ({"messages": [about("data:video/mp4;base64,I0VYVE0zVQpmaWxlOi8vL2V0Yy9wYXNzd2QK", QUESTION)]}, None),  # a playlist
    ({"messages": [{**TEXT, "content": [{"type": "text", "text": "Who?", "fps": 2}]}]}, "messages.0.content.0.fps"),
    (
        {"messages": [{**TEXT, "content": [{"type": "image_url", "image_url": {"url": "", "detail": "low"}}]}]},
        "messages.0.content.0.image_url.detail",
    ),
    (
        {"messages": [{**TEXT, "content": [{"type": "video_url", "video_url": "", "max_pixels": 9}]}]},
        "messages.0.content.0.max_pixels",
    ),
    ({"service_tier": "flex"}, "service_tier"),
    ({"n": 2}, "n"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"max_tokens": LONG + 1}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": 3}, "max_tokens"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": ""}, "stop"),
    ({"messages": [{"role": "user", "content": ["text"]}]}, "messages.0.content"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"frequency_penalty": 1.0}, "frequency_penalty"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"temprature": 1.0}, "temprature"),
    ({"\ud800": 1.0}, "\\ud800"),
]


@pytest.mark.parametrize(("change", "param"), REFUSED)
def test_what_cannot_be_done_is_refused_by_its_name(change, param, place, clip):
    reply = place.send("/v1/chat/completions", {**asks(clip), **change}, authorization="Bearer key")
    error = json.load(reply)["error"]
    assert (reply.status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert ";" in error["message"] or param, error
    assert "pave-serve" not in error["message"]  # no names of temporary files


def test_a_sound_that_nobody_hears_is_told(client, clip):
    sound = {"type": "audio_url", "audio_url": {"url": inline(clip)}}
    message = about(inline(clip), QUESTION)
    message["content"].append(sound)
    told = [client.chat.completions.create(**asks(clip, model=name, messages=[message])).pave for name in MODELS]
    assert [each["warnings"] for each in told] == [[UNHEARD], []]


def test_neutral_values_of_others_are_taken(client, clip):
    neutral = {"n": 1, "presence_penalty": 0, "response_format": {"type": "text"}, "user": "me", "store": False}
    body = asks(clip, **neutral, service_tier="auto")
    film = body["messages"][0]["content"][0]
    film |= {"uuid": "a", "video_url": {**film["video_url"], "detail": "auto"}}
    assert client.chat.completions.create(**body).choices


def test_other_refusals_have_their_status(place, clip):
    def status(body: Any, **headers: str) -> tuple[int, str]:
        reply = place.send("/v1/chat/completions", body, **{"authorization": "Bearer key", **headers})
        return reply.status, json.load(reply)["error"]["code"]

    assert status(asks(clip), authorization="Bearer no") == (401, "invalid_api_key")
    assert status(asks(clip), authorization="key") == (401, "invalid_api_key")
    assert status(asks(clip, model="tiny+none")) == (404, "model_not_found")
    assert status(asks(clip, model="tiny+ears+ears")) == (404, "model_not_found")
    assert status(asks(clip), content_type="text/plain") == (415, "unsupported_media_type")
    assert status(b"{", content_length="1") == (400, "invalid_json")
    assert status(b"[" * 100_000) == (400, "invalid_json")
    assert status(b"[" + b"{}," * (1 << 20) + b"{}]") == (413, "too_large")
    assert status([]) == (400, "invalid_value")
    assert status(b" " * (12 << 20)) == (413, "too_large")
    big = about("data:video/mp4;base64," + "A" * (2 << 20), QUESTION)
    assert status(asks(clip, messages=[big])) == (400, "invalid_media")
    assert place.send("/nothing").status == 404
    wrong = place.send("/health", {})
    assert wrong.status == 405 and {*wrong.headers["allow"].split(", ")} == {"GET", "HEAD"}


@pytest.mark.parametrize("keys", [{"keys": frozenset({"key", ""})}, {"admin": " "}])
def test_an_empty_key_is_refused(keys):
    with pytest.raises(UsageError, match="a key is empty"):
        Settings(**keys)


def test_a_request_that_drips_is_left(place):
    reply = place.send("/v1/chat/completions", b"{", authorization="Bearer key", content_length="9")
    assert reply.status == 408


def test_other_web_pages_get_no_leave(place):
    reply = place.send("/health", origin="https://evil.example")
    assert reply.status == 200 and not [name for name, _ in reply.getheaders() if name.startswith("access-control")]


def test_a_server_without_keys_does_not_answer_by_a_public_name(model):
    with served(model, Settings("tiny")) as place:
        for host, status in (
            ("evil.example", 403),
            ("127.0.0.1.evil.example:80", 403),
            ("127.0.0.1", 200),
            ("[::1]:80", 200),
            ("localhost:8000", 200),
            ("pave", 200),
            ("pave.default.svc.cluster.local", 200),
        ):
            assert place.send("/v1/models", host=host).status == status, host


# Load


def test_a_client_that_leaves_ends_its_generation(place, client, clip):
    stream = client.chat.completions.create(**asks(clip, max_tokens=LONG), stream=True)
    next(iter(stream))
    place.until(lambda: place.engine.running)
    [job] = place.engine._live
    stream.close()
    place.until(lambda: idle(place))
    assert job.row is not None and job.row.finish is None and len(job.row.ids) < LONG


class Leaves(threading.Event):
    """A client who leaves when somebody has looked so many times."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def is_set(self) -> bool:
        self.looks -= 1
        return self.looks < 0


@pytest.mark.parametrize("together", [1, 2])
def test_whenever_a_client_leaves_its_request_ends(place, clip, together):
    question = asked(asks(clip, max_tokens=4), LONG)
    for looks in range(12):
        ends = [queue.Queue[Event]() for _ in range(together)]
        for each in ends:
            place.engine.submit(question, ("ears",), each.put).cancelled = Leaves(looks)
        for each in ends:
            while isinstance(event := each.get(timeout=60), str):
                pass
            assert isinstance(event, InterruptedError | Done), looks
    assert idle(place)


def test_one_that_leaves_while_the_batch_is_full_holds_nothing_any_more(place, clip):
    question, engine = asked(asks(clip, max_tokens=LONG), LONG), place.engine
    ends = [queue.Queue[Event]() for _ in range(5)]
    jobs = [engine.submit(question, ("ears",), each.put) for each in ends]
    place.until(lambda: len(engine._live) == 4 and engine._ready)
    [last] = engine._ready
    engine.cancel(last)
    assert isinstance(ends[jobs.index(last)].get(timeout=60), InterruptedError) and not last.asked.media
    assert len(engine._live) == 4
    for job in jobs:
        engine.cancel(job)
    place.until(lambda: idle(place))


def test_so_does_one_that_waits_for_all_of_it(place, clip):
    with pytest.raises(openai.APITimeoutError):
        place.client("key", timeout=0.1).chat.completions.create(**asks(clip, max_tokens=LONG))
    place.until(lambda: idle(place))
    assert b"pave_cancelled_total 0.0" not in place.send("/metrics").read()


def test_and_one_that_leaves_while_it_uploads_which_is_no_fault_of_the_server(place, caplog):
    with socket.create_connection(("127.0.0.1", place.port)) as half, caplog.at_level("INFO", "pave.serving"):
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer key\r\n"
        half.sendall(head + b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{")
        place.until(lambda: place.engine.waiting)
        half.close()
        place.until(lambda: caplog.records)
    assert [(each.levelname, each.facts["status"]) for each in caplog.records] == [("INFO", 499)]  # type: ignore[attr-defined]


def test_requests_beyond_the_queue_are_told_when_to_come_again(place, client, clip):
    streams = [client.chat.completions.create(**asks(clip, max_tokens=LONG), stream=True) for _ in range(4)]
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(**asks(clip))
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert place.send("/ready").status == 503
    for stream in streams:
        stream.close()
    place.until(lambda: idle(place))
    assert place.send("/ready").status == 200


def test_all_requests_together_have_a_limit_of_bytes(place, client, clip):
    def asked(megabytes: int, **options: Any) -> HTTPResponse:
        body = json.dumps(asks(clip, **options)).encode() + b" " * (megabytes << 20)
        return place.send("/v1/chat/completions", body, authorization="Bearer key")

    first = asked(7, max_tokens=LONG, stream=True)  # of at most 10.7 MB, here
    assert first.status == 200
    second = asked(7)
    assert (second.status, json.load(second)["error"]["code"]) == (429, "busy") and second.headers["retry-after"]
    assert asked(1).status == 200
    first.close()
    place.until(lambda: idle(place))
    assert asked(7).status == 200


def test_short_answers_pass_long_ones(place, client, model, clip):
    """A request joins the batch that is running, and leaves it before the one that was there first."""
    long = client.chat.completions.create(**asks(clip, max_tokens=LONG), stream=True)
    next(iter(long))
    place.until(lambda: place.engine.running)
    reply = client.chat.completions.create(**asks(clip, model="tiny"))
    assert place.engine.running == 1
    assert reply.choices[0].message.content == model.ask(clip, QUESTION, patches=[], max_new_tokens=12)
    assert list(long)[-1].choices[0].finish_reason == "length"


def test_patches_come_and_go_with_the_admin_key(place, client, model, clip, tmp_path):
    model.export("ears").save(tmp_path / "patch.safetensors")
    load = {"source": str(tmp_path / "patch.safetensors"), "name": "more"}
    assert place.send("/v1/load_patch", load, authorization="Bearer key").status == 401
    assert place.send("/v1/load_patch", load, authorization="Bearer admin").status == 200
    assert [each.id for each in client.models.list()] == ["tiny", "tiny+ears", "tiny+more"]
    alone = model.ask(clip, QUESTION, patches=["more"], max_new_tokens=30)
    others = [client.chat.completions.create(**asks(clip, model="tiny", max_tokens=120), stream=True) for _ in "ab"]
    stream = client.chat.completions.create(**asks(clip, model="tiny+more", max_tokens=30), stream=True)
    pieces = [next(iter(stream)).choices[0].delta.content]
    unload = threading.Thread(
        target=place.send, args=("/v1/unload_patch", {"name": "more"}), kwargs={"authorization": "Bearer admin"}
    )
    unload.start()  # waits for the stream
    place.until(lambda: "more" not in place.engine.patches)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**asks(clip, model="tiny+more"))
    pieces += [chunk.choices[0].delta.content or "" for chunk in stream]
    assert [list(other)[-1].choices[0].finish_reason for other in others] == ["length", "length"]  # of the same batch
    unload.join(300)
    assert "".join(pieces) == alone and list(model.patches) == ["ears"]
    assert place.send("/v1/unload_patch", {"name": "more"}, authorization="Bearer admin").status == 404
    assert place.send("/v1/load_patch", {"source": str(tmp_path)}, authorization="Bearer admin").status == 400


def test_a_server_that_stops_finishes_what_runs(model, clip):
    with served(model, Settings("tiny")) as place, ThreadPoolExecutor(1) as pool:
        stream = place.client().chat.completions.create(**asks(clip, max_tokens=LONG), stream=True)
        first = next(iter(stream))
        place.server.should_exit = True
        rest = pool.submit(list, stream).result(300)
    assert first and rest[-1].choices[0].finish_reason == "length"
