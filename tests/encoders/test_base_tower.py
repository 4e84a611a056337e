"""More pictures through the base's vision tower: equal to its own features, at their own times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from clips import click, counting_frames, write_clip
from einops import rearrange
from families import FRAMES, make_base
from small import make_clip, make_config
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pave.base import PASS, Host, last_again
from pave.encoder import Encoder, load_encoder
from pave.errors import EncoderError, MediaError, SignalError
from pave.evaluation.cost import profile
from pave.media.clip import Clip
from pave.model.patched import PatchedModel
from pave.sidechannel import SideTokens


def frames(count: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 64, 64), generator=draw, dtype=torch.uint8)


def seconds(count: int, rate: float = 2) -> Tensor:
    return torch.arange(count, dtype=torch.float64) / rate


def tower_of(base: Host, **options: Any) -> Encoder:
    return load_encoder("base-tower", **options).on(base)


def seen(encoder: Encoder, clip: Clip) -> SideTokens:
    side = encoder.encode(clip)
    assert side is not None
    return side


def key_frames(base: Host, pictures: Tensor, grid: tuple[int, int] = (2, 2)) -> Tensor:
    """The base's own features of pictures as key frames, averaged (t h w c)."""
    vision = base.encode([base.pixels(Clip(pictures))]).vision[0]
    whole = rearrange(vision[:, -base.grid[0] * base.grid[1] :], "t (y x) c -> t c y x", y=base.grid[0])
    return rearrange(F.adaptive_avg_pool2d(whole, grid), "t c h w -> t h w c")


# Fast


@pytest.mark.parametrize(
    ("pictures", "fps", "rate", "steps"), [(1, 25, 2, 1), (40, 20, 8, 16), (19, 10, 5, 10), (26, 25, 2, 3)]
)
def test_a_file_is_encoded_at_the_rate_by_the_base_s_own_tower(pictures, fps, rate, steps, tmp_path, playroom_host):
    path = write_clip(tmp_path / "a.mp4", counting_frames(pictures), fps, click(1, 0.5))
    clip, every = (Clip.read(path, frames=count, timeout=None) for count in (4, None))
    side = seen(tower_of(playroom_host, rate=rate), clip)
    assert (
        side.x.dtype == torch.float32 and side.x.shape == (steps, 2, 2, playroom_host.vision_dim) and side.valid.all()
    )
    assert side.times.tolist() == [i / rate for i in range(steps)]
    assert torch.equal(side.spans, side.times[:, None].expand(-1, 2))
    assert every.frames is not None
    chosen = [i * fps // rate for i in range(steps)]
    assert torch.allclose(side.x, key_frames(playroom_host, every.frames[chosen]), atol=1e-5)


def test_tokens_depend_only_on_their_picture(tmp_path, playroom_host, monkeypatch):
    passes: list[int] = []
    look = type(playroom_host).look
    monkeypatch.setattr(
        type(playroom_host), "look", lambda self, pixels: passes.append(len(pixels)) or look(self, pixels)
    )
    encoder = tower_of(playroom_host, rate=10)
    path = write_clip(tmp_path / "a.mp4", counting_frames(30), 10)
    clip = Clip.read(path, frames=4, timeout=None)
    whole = seen(encoder, clip)
    less = seen(encoder, Clip.read(path, frames=4, end=1.3, timeout=None))
    assert torch.equal(whole.x[:13], less.x) and len(less.x) == 13
    assert not torch.equal(whole.x[0], whole.x[1])
    assert set(passes) == {PASS}, "rounding depends on the size of a pass"


def test_parts_share_rows_when_the_grid_does_not_divide(playroom_host: Host) -> None:
    pictures = frames(4)
    side = seen(tower_of(playroom_host, rate=2, grid=[3, 4]), Clip.from_frames(pictures, seconds(4, 2)))
    assert torch.allclose(side.x, key_frames(playroom_host, pictures, (3, 4)), atol=1e-5)


@pytest.mark.parametrize("family", ["qwen2_vl", "video_llava"])
def test_pairs_and_tokens_equal_those_of_key_frames(family, tokenizer: PreTrainedTokenizerFast):
    base = make_base(tokenizer, family=family)
    count = 5 * base.pair + 1  # the last one is repeated to fill a pair
    pictures, times = frames(count), seconds(count, 4)
    side = seen(tower_of(base, rate=4, grid=[1, 2]), Clip.from_frames(pictures, times))
    clocks = base.encode([base.pixels(Clip(pictures))], [times]).times[0]
    assert side.x.shape == (6, 1, 2, base.vision_dim) and torch.equal(side.times, clocks)
    assert side.spans.tolist() == last_again(times, base.pair).view(6, base.pair)[:, (0, -1)].tolist()
    assert torch.allclose(side.x, key_frames(base, pictures, (1, 2)), atol=1e-5)
    assert tower_of(base, rate=4).spec.rate == 4 / base.pair


def test_a_single_picture_is_repeated_to_a_pair(tokenizer: PreTrainedTokenizerFast):
    base = make_base(tokenizer, family="qwen2_vl")
    alone = seen(tower_of(base), Clip.from_frames(frames(1)))
    twice = seen(tower_of(base), Clip.from_frames(frames(1).repeat(2, 1, 1, 1), [0.0, 0.0]))
    assert len(alone.x) == 1 and torch.equal(alone.x, twice.x)
    views = seen(
        tower_of(base, sense="views"), Clip.from_frames(frames(3), seconds(3), views=[(frames(3), seconds(3))])
    )
    assert views.times.tolist() == [0.25, 1.0] and views.spans.tolist() == [[0.0, 0.5], [1.0, 1.0]]
    assert torch.allclose(views.x, key_frames(base, frames(3), base.grid), atol=1e-5)


def test_frames_passed_as_fast_replace_those_of_the_clip(tmp_path, playroom_host):
    encoder, path = tower_of(playroom_host, rate=4), write_clip(tmp_path / "a.mp4", counting_frames(8), 4)
    film = Clip.read(path, frames=None, timeout=None)
    assert film.frames is not None and film.times is not None
    alone = seen(encoder, film)
    for fast in (path, str(path), film, (film.frames, film.times)):
        given = seen(encoder, Clip.from_frames(frames(2), fast=fast))
        assert torch.equal(alone.x, given.x) and torch.equal(alone.times, given.times)
    for absent in (Clip.from_frames(frames(2), fast=None), Clip.from_frames(audio=torch.zeros(9), rate=9)):
        assert encoder.encode(absent) is None
    with pytest.raises(EncoderError, match=r"fast= is a int; pass \(frames, times\)"):
        encoder.encode(Clip.from_frames(frames(2), fast=3))
    with pytest.raises(MediaError, match="no such file"):
        encoder.encode(Clip.from_frames(frames(2), fast=tmp_path / "gone.mp4"))


# Views


def test_cameras_are_stacked_vertically_at_the_times_of_the_key_frames(tmp_path, playroom_host):
    encoder = tower_of(playroom_host, sense="views", views=3, grid=[2, 4])
    shown = counting_frames(40)
    path = write_clip(tmp_path / "b.mp4", shown, 10)
    film = Clip.read(path, frames=None, timeout=None)
    times, pictures = seconds(4, 1), frames(30)
    side = seen(encoder, Clip.from_frames(frames(4), times, views=[(pictures, seconds(30, 10)), None, path]))
    assert side.x.shape == (4, 6, 4, playroom_host.vision_dim) == (4, *encoder.spec.grid, encoder.spec.dim)
    assert torch.equal(side.times, times) and torch.equal(side.spans, times[:, None].expand(-1, 2))
    assert film.frames is not None
    for place, chosen in ((0, pictures[[0, 10, 20, 29]]), (4, film.frames[::10])):
        assert torch.allclose(side.x[:, place : place + 2], key_frames(playroom_host, chosen, (2, 4)), atol=1e-5)
    # The first camera ends at 2.9 s, more than half a tenth of a second before the last key frame.
    assert side.valid[:, 0, 0].tolist() == [True, True, True, False] and side.valid[:, 4:].all()
    assert not side.valid[:, 2:4].any()
    two = seen(tower_of(playroom_host, sense="views", views=2), Clip.from_frames(frames(4), times, views=(path, film)))
    assert torch.equal(*two.x.chunk(2, 1))


def test_tokens_before_the_start_of_a_camera_are_invalid(playroom_host):
    encoder = tower_of(playroom_host, sense="views", grid=[1, 1])
    clip = Clip.from_frames(frames(4), seconds(4, 1), views=[(frames(5), seconds(5, 1) + 1.4)])
    assert seen(encoder, clip).valid.flatten().tolist() == [False, True, True, True]


def test_without_cameras_the_sense_is_absent(playroom_host):
    encoder = tower_of(playroom_host, sense="views")
    for clip in (Clip.from_frames(frames(2)), Clip.from_frames(frames(2), views=None)):
        assert encoder.encode(clip) is None
    assert not seen(encoder, Clip.from_frames(frames(2), views=[None])).present


def test_a_file_without_pictures_is_refused(tmp_path, playroom_host):
    sound = write_clip(tmp_path / "a.m4a", None, audio=click(1, 0.5))
    clip = Clip.from_frames(frames(2), fast=sound, views=[sound])
    for sense in ("fast", "views"):
        with pytest.raises(MediaError, match=r"a\.m4a: holds sound only, .*; give a video"):
            tower_of(playroom_host, sense=sense).encode(clip)


@pytest.mark.parametrize(
    ("views", "error", "message"),
    [
        ([], SignalError, r"has 0 cameras, this encoder needs 2"),
        ([None] * 3, SignalError, r"has 3 cameras, this encoder needs 2"),
        ("a.mp4", EncoderError, "views= is a str; pass a list"),
        (Clip.from_frames(frames(2)), EncoderError, "views= is a Clip; pass a list"),
        ([None, 3], EncoderError, r"views\[1\]= is a int"),
        ([None, "nowhere.mp4"], MediaError, "no such file"),
        ([None, Clip()], MediaError, r"views\[1\] has no pictures"),
        ([None, (frames(2), [9.0, 9.5])], SignalError, r"9.00 to 9.50 s, the key frames are from 0.00 to 1.00 s"),
        ([None, (frames(2), [1.0, 0.5])], MediaError, "run backwards"),
        ([None, (frames(2).float(), [0.0, 0.5])], MediaError, "pass uint8"),
    ],
)
def test_invalid_views_are_refused(views, error, message, playroom_host):
    encoder = tower_of(playroom_host, sense="views", views=2)
    with pytest.raises(error, match=message):
        encoder.encode(Clip.from_frames(frames(2), views=views))


# Spec


def test_the_spec_depends_on_the_base(playroom_host, tokenizer):
    encoder = load_encoder("base-tower")
    for use in (lambda: encoder.spec, lambda: encoder.fingerprint, lambda: encoder.encode(make_clip())):
        with pytest.raises(EncoderError, match=r"has no base yet; call on\(base\) first"):
            use()
    fast, views = tower_of(playroom_host).spec, tower_of(playroom_host, sense="views", views=2).spec
    assert (fast.sense, fast.dim, fast.rate, fast.grid) == ("fast", playroom_host.vision_dim, 2, (2, 2))
    assert (views.sense, views.rate, views.grid) == ("views", 0, (8, 4))
    assert fast.preprocessing == tower_of(playroom_host, **fast.options).spec.preprocessing != views.preprocessing
    assert (
        fast.preprocessing == tower_of(playroom_host, **json.loads(json.dumps(dict(fast.options)))).spec.preprocessing
    )


def test_the_fingerprint_is_that_of_the_vision_tower(tokenizer):
    one, other = make_base(tokenizer), make_base(tokenizer)
    first = tower_of(one).fingerprint
    other.model.lm_head.weight.data += 1
    assert tower_of(other).fingerprint == first
    next(other.model.model.vision_tower.parameters()).data += 1
    assert tower_of(other).fingerprint != first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sense": "audio"}, "encodes fast or views, got sense='audio'"),
        ({"rate": 0}, "up to 1000 frames per second, got rate=0"),
        ({"rate": float("nan")}, "got rate=nan"),
        ({"rate": "2"}, "got rate='2'"),
        ({"views": 0}, "got views=0"),
        ({"views": True}, "got views=True"),
        ({"grid": 2}, "cannot average its 4 x 4 tokens of a picture to grid=2; use two"),
        ({"grid": [2]}, r"grid=\[2\]"),
        ({"grid": []}, r"grid=\[\]"),
        ({"grid": "22"}, r"grid='22'"),
        ({"grid": [2, 0]}, r"grid=\[2, 0\]"),
        ({"grid": [2, True]}, r"grid=\[2, True\]"),
        ({"grid": [5, 2]}, r"grid=\[5, 2\]"),
    ],
)
def test_invalid_options_are_refused(options, message, playroom_host):
    with pytest.raises(EncoderError, match=message):
        tower_of(playroom_host, **options)


@pytest.mark.parametrize(("sense", "steps"), [("fast", 120), ("views", 8)])
def test_a_recipe_with_the_base_s_vision_tower_is_profiled(sense, steps, tmp_path):
    settings = {"encoder": "base-tower", "options": {"sense": sense, "views": 3, "grid": [2, 2]}}
    recipe = {"name": "eyes", "base": "playroom", "senses": {sense: settings}, "data": {"train": "x.jsonl"}}
    (tmp_path / "patch.yaml").write_text(json.dumps(recipe))
    assert profile("playroom", tmp_path).side == {sense: (steps, 2 if sense == "fast" else 6, 2)}


def test_a_patch_answers_with_further_cameras(playroom: PatchedModel, tmp_path: Path):
    facts = tower_of(playroom.host, sense="views", views=2).spec.facts("time")
    playroom.attach("views", make_config(playroom.host, "views", senses={"views": facts}))
    path = write_clip(tmp_path / "a.mp4", counting_frames(40), 10)
    clip = Clip.from_frames(frames(FRAMES), seconds(FRAMES, 1))
    answers = [playroom.ask(clip, "what is it?", max_new_tokens=1, views=views) for views in ([path, None], None)]
    assert answers[0].signals["views"] == "present: 4 steps from 0.00 s"
    assert answers[1].signals["views"] == "absent: the clip has no views"
    playroom.remove_patch("views")
