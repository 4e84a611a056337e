"""Claims about stored clips: they are read ahead, once for each batch, and what is known of them needs no reading."""

from __future__ import annotations

import threading
from pathlib import Path

import torch

from pave.data import Source
from pave.features.stored import Ahead, Features, Finish, Stored
from pave.model.inputs import ClipFeatures
from pave.sidechannel import SideTokens


class Reads:
    """A clip that counts how often it is read and finished, and in which thread."""

    def __init__(self) -> None:
        self.read, self.threads = threading.Event(), list[str]()
        side = SideTokens.regular(torch.ones(9, 2), rate=1)
        self.features = ClipFeatures(
            torch.zeros(3, 4, 5), torch.zeros(3, 4, 6), torch.arange(3.0), {"imu": side, "ears": None}, {"ears": "deaf"}
        )
        self.stored = Stored(self.fetch)

    def fetch(self) -> Finish:
        self.threads.append(threading.current_thread().name)
        self.read.set()
        return self.finish

    def finish(self) -> ClipFeatures:
        self.threads.append(threading.current_thread().name)
        return self.features


def test_the_next_batch_is_read_while_this_one_is_used_and_finished_in_the_own_thread() -> None:
    ahead, (one, two, three) = Ahead(), (Reads(), Reads(), Reads())
    found = ahead.features([one.stored, two.stored, one.stored], [three.stored])
    assert found == [one.features, two.features, one.features]
    assert three.read.wait(10) and len(three.threads) == 1, "it is read, and waits for its batch"
    assert ahead.features([three.stored], []) == [three.features] and ahead.features([two.stored]) == [two.features]
    own = threading.current_thread().name
    assert [name == own for name in three.threads] == [False, True], "read once"
    assert [name == own for name in one.threads] == [False, True, True] and len(two.threads) == 4


def test_a_batch_that_was_not_foreseen_is_read_too() -> None:
    ahead, (one, two) = Ahead(), (Reads(), Reads())
    ahead.features([one.stored], [one.stored])
    assert ahead.features([two.stored]) == [two.features]


def test_what_is_known_of_a_clip_needs_no_reading() -> None:
    clip = Reads()
    clip.features = ClipFeatures(**{**vars(clip.features), "sensors": frozenset({"imu"}), "warnings": ("cut",)})
    known = Stored.of(clip.features)
    assert (known.present, known.absent, known.warnings) == ({"imu"}, {"ears": "deaf"}, ("cut",))
    assert (known.outside, known.visual) == ({"imu": 6}, 12) and known.features is clip.features


def test_features_are_read_at_every_access_and_not_to_look_for_a_clip() -> None:
    clip, source = Reads(), Source(Path("a.mp4"))
    features = Features({source: clip.stored})
    assert source in features and list(features) == [source] and len(features) == 1 and features != {}
    reads = len(clip.threads)
    assert features[source] is clip.features and features.get(Source(Path("b.mp4"))) is None
    assert len(clip.threads) == reads + 2
