"""Claims about the judge, against a real server on this machine that is slow, malformed, refusing or busy."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from email.utils import formatdate
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from chat_server import Answer, Endpoint, completion, serving

from pave.data import Example, Source
from pave.endpoint import client
from pave.errors import FileDamaged, JudgeError, UsageError
from pave.evaluation.aspects import ASPECTS
from pave.evaluation.judge import VERDICTS, Judge, Verdict

KEYS = ("PAVE_JUDGE_KEY", "PAVE_WRITER_KEY", "OPENAI_API_KEY")
KEY = "sk-only-from-the-environment"


def yes(score: float = 5) -> Answer:
    return 200, {}, completion(f"{{'pred': 'yes', 'score': {score}}}")


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    for name in (*KEYS, "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(client, "FIRST", 0.01)  # seconds of the first wait
    with serving(lambda number, body: yes()) as server:
        yield server


def question(text: str = "What is it?", right: str = "A kettle.", line: int = 1) -> Example:
    return Example(Source(Path("a.mp4")), text, right, line)


def judged(endpoint: Endpoint, answers: list[str], **options: Any) -> tuple[dict[str, Any], list[str]]:
    judge = Judge(endpoint.url, "judge-1", **{"timeout": 5.0, "tries": 3, **options})
    examples = [question(line=i) for i in range(len(answers))]
    return judge.verdicts(examples, {"own": answers})


# What is asked


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("match", "6dd6e095533b9d13"),
        ("correctness", "ef1c37ae62a37ff4"),
        ("detail", "d36914e66c630248"),
        ("context", "2d869c002d0d2cb8"),
        ("temporal", "5dbf6f43c8b0b1af"),
        ("consistency", "3d7e103aaa2e206e"),
    ],
)
def test_prompts_are_those_of_video_chatgpt(name: str, digest: str) -> None:
    """Digests of what the scripts at 659e04b send for the question QQ, the answer PP and the right one RR."""
    two = name == "consistency"
    messages = ASPECTS[name].messages(["QQ", "Q2"] if two else ["QQ"], "RR", ["PP", "P2"] if two else ["PP"])
    told = json.dumps([[each["role"], each["content"]] for each in messages])
    assert sha256(told.encode()).hexdigest().startswith(digest)


def test_a_request_has_the_model_the_texts_and_the_key_of_the_environment(endpoint, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    judge = Judge(endpoint.url + "/", "judge-1")
    found, notes = judge.verdicts([question()], {"own": ["a {pot} "]})
    ((path, headers, body),) = endpoint.asked
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert body["model"] == "judge-1" and body["temperature"] == 0
    assert (
        "Question: What is it?\nCorrect Answer: A kettle.\nPredicted Answer: a {pot}\n"
        in body["messages"][1]["content"]
    )
    assert found["judge"]["own"].value == 1 and found["judge score"]["own"].value == 5
    assert notes == ["judged by 'judge-1-2026'"]
    assert KEY not in json.dumps(judge.as_json()) + repr(judge), "the key is written nowhere"
    assert judge.as_json()["url"] == endpoint.url and "{question}" in json.dumps(judge.as_json()["prompts"])


def test_equal_answers_are_judged_once_and_kept(endpoint, tmp_path: Path) -> None:
    judge = Judge(endpoint.url, "judge-1")
    examples, told = [question(line=i) for i in range(4)], []
    runs = {"base": ["no"] * 4, "own": ["a kettle", "no", "no", "no"]}
    first = judge.verdicts(examples, runs, tmp_path, lambda done, total: told.append((done, total)))
    assert len(endpoint.asked) == 2 and told == [(1, 2), (2, 2)]
    again = judge.verdicts(examples, runs, tmp_path)
    assert len(endpoint.asked) == 2, "what is kept is not asked again"
    assert [each.value for each in again[0]["judge"].values()] == [each.value for each in first[0]["judge"].values()]
    assert Judge(endpoint.url, "judge-2").verdicts(examples, runs, tmp_path) and len(endpoint.asked) == 4


def test_a_cut_line_is_asked_again_and_a_damaged_one_refused(endpoint, tmp_path: Path) -> None:
    judge, runs = Judge(endpoint.url, "judge-1"), {"own": ["x", "y"]}
    examples = [question(line=i) for i in range(2)]
    judge.verdicts(examples, runs, tmp_path)
    data = (tmp_path / VERDICTS).read_bytes()
    (tmp_path / VERDICTS).write_bytes(data[:-9])
    judge.verdicts(examples, runs, tmp_path)
    assert len(endpoint.asked) == 3 and len((tmp_path / VERDICTS).read_bytes().splitlines()) == 2
    (tmp_path / VERDICTS).write_bytes(b"{broken\n")
    with pytest.raises(FileDamaged):
        judge.verdicts(examples, runs, tmp_path)


def test_consistency_compares_two_questions_with_the_same_answer(endpoint) -> None:
    endpoint.answer = lambda number, body: (200, {}, completion("{'score': 3}"))
    judge = Judge(endpoint.url, "judge-1", aspects=("consistency",))
    examples = [question("What is it?"), question("Which thing?"), question("Alone?", line=2)]
    found, _ = judge.verdicts(examples, {"own": ["a pot", "a pan", "yes"]})
    ((_, _, body),) = endpoint.asked
    assert "Question 1: What is it?\nQuestion 2: Which thing?" in body["messages"][1]["content"]
    assert "Answer to Question 1: a pot\nPredicted Answer to Question 2: a pan" in body["messages"][1]["content"]
    assert found["judge consistency"]["own"].value == 3
    with pytest.raises(UsageError, match="compares two questions with the same answer, and there are none"):
        judge.verdicts(examples[2:], {"own": ["yes"]})


# Replies


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("{'pred': 'yes', 'score': 4}", (True, 4.0)),
        ('```json\n{"pred": "No", "score": 1.5}\n```', (False, 1.5)),
        ("pred: yes, score = 3.", (True, 3.0)),
        ("{'pred': 'yes', 'score': 7}", (None, None)),
        ("{'pred': 'yes', 'score': -1}", (None, None)),
        ("{'score': 4}", (None, None)),
        ("{'pred': 'maybe', 'score': 4}", (None, None)),
        ("I cannot judge this.", (None, None)),
        ("", (None, None)),
    ],
)
def test_a_verdict_is_read_or_counted_as_unreadable(reply: str, expected: tuple[Any, Any]) -> None:
    verdict = Verdict.read(reply, ASPECTS["match"], "")
    assert (verdict.yes, verdict.score) == expected


def test_replies_that_cannot_be_read_are_counted_and_do_not_count(endpoint) -> None:
    texts = {"a": "{'pred': 'yes', 'score': 4}", "b": "Sorry.", "c": None, "d": "{'pred': 'no', 'score': 0}"}

    def answer(number: int, body: dict[str, Any]) -> Answer:
        return 200, {}, completion(texts[body["messages"][1]["content"].split("Predicted Answer: ")[1][0]])

    endpoint.answer = answer
    found, notes = judged(endpoint, list("abcd"))
    assert found["judge"]["own"].value == 0.5 and found["judge score"]["own"].value == 2.0
    assert notes[0] == "of 4 replies of the judge 2 cannot be read and do not count"
    assert len(endpoint.asked) == 4, "an unreadable reply is not asked for again"


# Servers


def test_a_busy_server_is_asked_again_when_it_says(endpoint, monkeypatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(client.time, "sleep", waits.append)
    turns = [
        (429, {"Retry-After": "7"}, b"slow down"),
        (503, {"Retry-After": formatdate(time.time() + 30, usegmt=True)}, b""),
    ]
    turns += [(429, {"Retry-After": "9999"}, b""), (500, {}, b"oops"), (429, {"Retry-After": "soon"}, b"")]
    endpoint.answer = lambda number, body: turns[number - 1] if number <= len(turns) else yes()
    found, _ = judged(endpoint, ["x"], tries=6)
    assert found["judge"]["own"].value == 1 and len(endpoint.asked) == 6
    assert waits[0] == 7 and 25 < waits[1] <= 30 and waits[2] == client.LONGEST
    assert waits[3:] == [0.08, 0.16], "without a time, the wait doubles"


def test_a_server_that_stays_busy_ends_the_evaluation_with_its_reason(endpoint, tmp_path: Path) -> None:
    endpoint.answer = lambda number, body: (429, {}, b'{"error": "quota \x1b[31m"}') if number > 1 else yes()
    judge = Judge(endpoint.url, "judge-1", tries=3)
    examples = [question(line=i) for i in range(2)]
    judge.verdicts(examples[:1], {"own": ["x"]}, tmp_path)
    with pytest.raises(JudgeError, match=r"answers 429 .*quota.*, 3 times; the same command goes on") as told:
        judge.verdicts(examples, {"own": ["x", "y"]}, tmp_path)
    assert "\x1b" not in str(told.value) and len(endpoint.asked) == 4
    endpoint.answer = lambda number, body: yes()
    assert judge.verdicts(examples, {"own": ["x", "y"]}, tmp_path)[0]["judge"]["own"].value == 1
    assert len(endpoint.asked) == 5, "the first verdict was kept"


@pytest.mark.parametrize(("status", "remedy"), [(401, "set its key in PAVE_JUDGE_KEY"), (404, "check the address")])
def test_a_refusal_is_not_repeated(endpoint, status: int, remedy: str) -> None:
    endpoint.answer = lambda number, body: (status, {}, b"no")
    with pytest.raises(JudgeError, match=rf"answers {status} .*: no; {remedy}"):
        judged(endpoint, ["x"])
    assert len(endpoint.asked) == 1


@pytest.mark.parametrize(
    "body", [b"<html>", b"[]", b'{"choices": []}', b'{"choices": [{"message": 3}]}', b"[" * 100_000]
)
def test_a_body_that_is_no_completion_is_tried_again_and_told(endpoint, body: bytes) -> None:
    endpoint.answer = lambda number, each: (200, {}, body)
    with pytest.raises(JudgeError, match=r"replies with no chat completion: .*, 3 times"):
        judged(endpoint, ["x"])
    assert len(endpoint.asked) == 3


def test_a_reply_without_end_is_bounded(endpoint, monkeypatch) -> None:
    monkeypatch.setattr(client, "LARGEST", 10_000)
    endpoint.answer = lambda number, body: (200, {}, completion("x" * 20_000))
    with pytest.raises(JudgeError, match="replies with over 10,000 bytes"):
        judged(endpoint, ["x"])


def test_a_slow_reply_is_given_up(endpoint) -> None:
    endpoint.slow = 0.02  # for each of some hundred bytes: no single one is late
    begin = time.monotonic()
    with pytest.raises(JudgeError, match=r"takes over 0.3 s for a reply, 2 times"):
        judged(endpoint, ["x"], timeout=0.3, tries=2)
    assert time.monotonic() - begin < 10


def test_a_silent_server_is_given_up(endpoint) -> None:
    endpoint.answer = lambda number, body: (time.sleep(2), yes())[1]
    with pytest.raises(JudgeError, match=r"cannot be reached \(.*timed out.*\), 2 times|cannot be reached"):
        judged(endpoint, ["x"], timeout=0.2, tries=2)


def test_a_server_that_is_not_there_is_told() -> None:
    judge = Judge("http://127.0.0.1:9/v1", "judge-1", tries=1)
    with pytest.raises(JudgeError, match=r"judge http://127.0.0.1:9/v1: cannot be reached \(.*refused"):
        judge.verdicts([question()], {"own": ["x"]})


def test_a_redirect_is_not_followed_with_the_key(endpoint, monkeypatch) -> None:
    monkeypatch.setenv("PAVE_JUDGE_KEY", KEY)
    endpoint.answer = lambda number, body: (302, {"Location": f"{endpoint.url}/elsewhere"}, b"moved")
    with pytest.raises(JudgeError, match="answers 302"):
        judged(endpoint, ["x"])
    assert len(endpoint.asked) == 1


# Addresses


@pytest.mark.parametrize(
    "url",
    ["", "file:///etc/passwd", "api.openai.com/v1", "http://", "http://a:b@c/v1", "http://h:x/v1", "http://h/v1?a=b"],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="address is not one of an endpoint; give one as https"):
        Judge(url, "judge-1")


def test_a_key_does_not_cross_the_network_in_the_clear(monkeypatch) -> None:
    monkeypatch.setenv("PAVE_JUDGE_KEY", KEY)
    with pytest.raises(UsageError, match="the key would cross the network unencrypted; use https"):
        Judge("http://judge.example/v1", "judge-1")
    for url in ("https://judge.example/v1", "http://localhost:8000/v1", "http://[::1]:8000/v1"):
        Judge(url, "judge-1")


def test_a_misspelt_aspect_and_a_missing_model_are_refused() -> None:
    with pytest.raises(UsageError, match=r"no aspect 'detial'; did you mean 'detail'\?"):
        Judge("http://localhost/v1", "judge-1", aspects=("detial",))
    with pytest.raises(UsageError, match="name the model with --judge-model"):
        Judge("http://localhost/v1", " ")
