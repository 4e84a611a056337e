"""A scripted writer of instructions behind a real endpoint: what it replies depends on the request alone.

Some requests it refuses, some replies cannot be read, once or always; with `busy`, some requests are turned away at the
first try. So a run that is killed can be compared with one that is not.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from hashlib import sha256
from random import Random
from typing import Any

from chat_server import Answer, completion

NOUNS = "ball drum bell car block wall door floor toy kettle whistle horn lamp shelf box"  # words
VERBS = "rolls rings stops falls turns hides flashes waits starts leaves returns shines"  # words


class Author:
    """Answers requests of `pave curate`, and counts them. `flawed`: the share of requests that go wrong."""

    def __init__(self, flawed: float = 0.1, busy: bool = True) -> None:
        self.flawed, self.busy, self.lock = flawed, busy, threading.Lock()
        self.tries: Counter[str] = Counter()
        self.paid: Counter[str] = Counter()  # replies by request

    def __call__(self, number: int, body: dict[str, Any]) -> Answer:
        key = sha256(json.dumps(body["messages"]).encode()).hexdigest()
        with self.lock:
            self.tries[key] += 1
            first = self.tries[key] == 1
        rng = Random(key)
        flaw, busy, share = rng.random(), rng.random(), self.flawed  # both are drawn at every try
        if self.busy and first and busy < share:
            return 429 if busy < share / 2 else 503, {"Retry-After": "0"}, b"slow down"
        with self.lock:
            self.paid[key] += 1
        tokens = 100 + len(json.dumps(body["messages"])) // 4
        if flaw < share / 4:
            return 400, {}, b'{"error": {"code": "content_filter"}}'
        if flaw < share / 2:
            return 200, {}, completion(None, "author-1", "content_filter", tokens)
        if flaw < share:
            return 200, {}, completion("Sorry, [here] are some: [{", "author-1", tokens=tokens)
        return 200, {}, completion(self.text(body["messages"], rng), "author-1", tokens=tokens)

    def text(self, messages: list[dict[str, str]], rng: Random) -> str:
        """What it says."""
        system, context = messages[0]["content"], messages[1]["content"].removeprefix("# CONTEXT\n")
        if "numbered entries" in system:
            count = len(re.findall(r"^\d+\.$", context, re.MULTILINE))
            names = ("relevance", "completeness", "soundness", "fluency")
            scored = [{name: rng.choice([3, 4, 5, 5, 5, 5, 5, 5, 5]) for name in names} for _ in range(count)]
            return f"```json\n{json.dumps(scored)}\n```"
        if "JSON list" not in system:
            return (
                f"{context.splitlines()[0][:60]}, and then the {rng.choice(NOUNS.split())} {rng.choice(VERBS.split())}."
            )
        count = int(re.findall(r"Write (\d+) ", system)[0])
        return "Here they are:\n" + json.dumps([self.pair(rng) for _ in range(count)])

    @staticmethod
    def pair(rng: Random) -> dict[str, str]:
        """A question and its answer; some are asked about every clip."""
        if rng.random() < 0.1:
            return {"question": "What is this about?", "answer": "It is about a room with toys."}
        told = " and ".join(f"the {rng.choice(NOUNS.split())} {rng.choice(VERBS.split())}" for _ in range(4))
        return {"question": f"What happens near the {rng.choice(NOUNS.split())}?", "answer": f"At first {told}."}
