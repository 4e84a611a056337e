"""Claims about what is kept of pictures: it is counted before anything is written, and changes no feature by a bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from clips import click, counting_frames, write_clip
from families import FAMILIES, FRAMES, SIDE, make_base
from small import make_clip
from transformers import PreTrainedTokenizerFast

from pave.data import Source
from pave.encoder import load_encoder
from pave.errors import DataError, RecipeError
from pave.features.cache import FeatureCache
from pave.features.pictures import packed, unpacked
from pave.features.room import Mode, bytes_of_features, bytes_of_pictures, room
from pave.features.shards import Shards
from pave.model.patched import PatchedModel
from pave.recipe import Recipe, read_recipe
from pave.sidechannel import PARTS
from pave.training.dataset import read_dataset
from pave.training.setup import Setup

Make = Callable[..., Recipe]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    """A clip larger than the vision tower reads, and one of a single picture."""
    folder = tmp_path_factory.mktemp("films")
    write_clip(folder / "0.mp4", counting_frames(9), fps=8, audio=click(1.0, 0.2))
    write_clip(folder / "1.mp4", counting_frames(1), fps=8, audio=click(1.0, 0.4))
    return [Source(folder / "0.mp4"), Source(folder / "1.mp4")]


@pytest.mark.parametrize("family", FAMILIES)
def test_features_of_kept_pictures_are_those_of_the_files_bit_for_bit(
    tokenizer: PreTrainedTokenizerFast, films: list[Source], tmp_path: Path, family: str
) -> None:
    model = PatchedModel(make_base(tokenizer, family=family))
    encoders = [load_encoder("logmel", bands=16, rate=5), load_encoder("base-tower").on(model.host)]
    fresh = FeatureCache(model, encoders).read(films)
    kept = FeatureCache(model, encoders, tmp_path, mode="none").read(films)
    assert all(key.endswith("-pictures") for key in Shards.of(tmp_path).entries)
    for film in films:
        for name in ("vision", "tokens", "times", "deep"):
            one, other = getattr(fresh[film], name), getattr(kept[film], name)
            assert (one is None) == (other is None), name
            assert one is None or (one.dtype == other.dtype and torch.equal(one, other)), name
        for key, side in fresh[film].sides.items():
            twin = kept[film].sides[key]
            assert side and twin and all(torch.equal(getattr(side, part), getattr(twin, part)) for part in PARTS)
        assert kept.stored[film].visual == fresh.stored[film].visual == fresh[film].tokens.shape[:2].numel()
        assert kept.stored[film].present == fresh.stored[film].present


def test_pictures_are_packed_without_loss() -> None:
    noise = make_clip().frames
    assert noise is not None
    pictures = torch.cat([noise, torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)])
    again = unpacked(packed(pictures))
    assert again is not None and torch.equal(again, pictures)
    assert unpacked({"vision": torch.zeros(1)}) is None


def test_kept_features_are_used_where_pictures_would_do_and_not_the_other_way_round(
    tokenizer: PreTrainedTokenizerFast, films: list[Source], tmp_path: Path
) -> None:
    model, seen = PatchedModel(make_base(tokenizer)), []

    def read(mode: Mode) -> int:
        seen.clear()
        FeatureCache(model, [], tmp_path, mode=mode).read(films, on_clip=lambda *each: seen.append(each))
        return len(seen)

    assert [read(mode) for mode in ("none", "none", "keep", "keep", "none")] == [2, 0, 2, 0, 0]


def test_the_bytes_counted_are_those_written(
    tokenizer: PreTrainedTokenizerFast, films: list[Source], tmp_path: Path
) -> None:
    for family in ("llava_onevision", "qwen3_vl"):
        model = PatchedModel(make_base(tokenizer, family=family))
        clip = FeatureCache(model, []).read(films[:1])[films[0]]
        parts = [part for part in (clip.vision, clip.tokens, clip.deep) if part is not None]
        assert bytes_of_features(model.host) == sum(part.nbytes for part in parts)
        assert bytes_of_pictures(model.host) == FRAMES * 3 * SIDE * SIDE


def test_features_are_kept_if_disk_and_budget_have_room(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    host = make_base(tokenizer)
    each, free = bytes_of_features(host), shutil.disk_usage(tmp_path).free
    many = free // each
    for place in (tmp_path, tmp_path / "not" / "yet"):
        assert room(host, "auto", None, place, 1000, 1000).features
        assert not room(host, "auto", None, place, many, many).features, "a tenth stays free"
        assert room(host, "auto", None, place, 2 * many, many // 2).features, "what is there takes no more room"
        assert room(host, "auto", 1001 * each / 1e9, place, 1000, 0).features
        assert not room(host, "auto", 999 * each / 1e9, place, 1000, 0).features, "the budget is for all"
        assert not room(host, "none", None, place, 1, 1).features
    told = room(host, "auto", 1e-6, tmp_path, 1000, 1000).why
    assert f"features of 1,000 clips take {1000 * each / 1e6:.3g} MB" in told and "data.budget is 1 kB" in told
    assert "data.cache: none" in told and "the pictures are kept instead, without loss" in told
    with pytest.raises(DataError, match=r"data.cache is keep, but features of .* are free; set data.cache to none"):
        room(host, "keep", None, tmp_path, many, many)
    assert "may be more than is free" in room(host, "none", None, tmp_path, free, 1).why


def test_a_run_says_what_it_keeps_before_it_reads_a_clip(recipe: Make, tmp_path: Path) -> None:
    told: list[str] = []
    place = f"train.output={tmp_path / 'fresh'}"

    def seeing(done: int, total: int) -> None:
        assert told, "nothing has been said yet"

    dataset = read_dataset(Setup.of(recipe(place, "data.budget=1e-9")), on_clip=seeing, tell=told.append)
    assert len(told) == 1 and told[0].startswith("data.cache: none; features of 6 clips take ")
    assert {key[-9:] for key in Shards.of(tmp_path / "fresh" / "features").entries} == {"-pictures"}
    assert all(clip.features.tokens.any() for clip in dataset.train)
    told.clear()
    read_dataset(Setup.of(recipe(place)), tell=told.append)
    assert told[0].startswith("data.cache: none; the pictures are kept instead"), "a resumed run goes on as it began"
    told.clear()
    read_dataset(Setup.of(recipe(place, "data.cache=keep")), tell=told.append)
    assert told[0].startswith("data.cache: keep; ")
    told.clear()
    read_dataset(Setup.of(recipe(place)), tell=told.append)
    assert told[0].startswith("data.cache: keep; ")
    (tmp_path / "fresh" / "features" / "old.safetensors").write_bytes(b"")
    told.clear()
    read_dataset(Setup.of(recipe(place)), tell=told.append)
    assert len(told) == 1, "a damaged file is not an earlier version's"


def test_the_keys_are_values_not_paths(workshop: Path) -> None:
    told = read_recipe(workshop, ["data.cache=none", "data.budget=0.5"]).data
    assert (told.cache, told.budget) == ("none", 0.5)
    for wrong in ("data.cache=some", "data.budget=0", "data.budget=lots"):
        with pytest.raises(RecipeError, match=wrong.partition("=")[0]):
            read_recipe(workshop, [wrong])
