"""LLaVA: `conversations` about a `video` or `image`, and our own format, which adds `signals` and the choice of tracks.

Also LLaVA-Video-178K, and whatever else was written for LLaVA's trainers: lists or lines of
`{"id", "video", "conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}]}`. Ours adds files of further
signals, {"imu": "imu/1.npy", "views": ["left.mp4", "right.mp4"], "depth": "scans/1"}; `audio` there replaces the
video's own sound (null: without sound). A record with an `audio` file and neither is about a sound alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from pave.data import TRACKS
from pave.readers.records import Record
from pave.readers.sample import Broken, Format, Sample, needs, paired
from pave.text.shown import quoted


class Llava(Format):
    NEEDS = needs("video conversations", "image conversations", "audio conversations")

    def samples(self, record: Record) -> Iterator[Sample]:
        value = record.value
        video = value.get("video", value.get("image"))
        alone = not video and isinstance(value.get("audio"), str)
        if not video and not alone:
            raise Broken(f"needs 'video', the path of a media file; has the keys {quoted(sorted(value))}")
        if "video" in value and "image" in value:
            raise Broken("has 'video' and 'image', but an entry is about one clip")
        turns = paired(value.get("conversations"), "conversations", "from", "value", ("human",), ("gpt",))
        signals = value.get("signals", {})
        if not isinstance(signals, dict):
            raise Broken(f"'signals' must map names to paths, got {type(signals).__name__}")
        if alone:
            video = value["audio"]
        elif "audio" in value and not isinstance(value["audio"], str):  # packed with the video, in a shard or table
            signals = {"audio": value["audio"], **signals}
        tracks = {name: value[name] for name in TRACKS if value.get(name) is not None}
        used = ["video", "image", "signals", "conversations", *TRACKS, *(["audio"] if alone else [])]
        facts = {key: each for key, each in value.items() if key not in used and each is not signals.get("audio")}
        yield Sample(video, turns, signals, tracks, facts)


READER = Llava
