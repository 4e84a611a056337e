"""The laws of patches hold for every family of bases: one suite, on a small random model of each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, FRAMES, SIDE, make_base, with_marks
from packaging.version import Version
from patched import QUESTIONS, alike, config_for, favor_config, portrait
from PIL import Image
from small import awaken, make_clip
from torch import Tensor
from transformers import (
    Gemma4ImageProcessorPil,
    GenerationConfig,
    Glm4vImageProcessorPil,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
)

from pave.base import Seen
from pave.bases.smolvlm import in_words
from pave.config import FusionConfig, PatchConfig
from pave.encoder import load_encoder
from pave.errors import BaseModelError, EncoderError, PatchMismatch
from pave.loading.base import families
from pave.media.clip import Clip
from pave.model.inputs import Inputs
from pave.model.patched import PatchedModel, load
from pave.packing.rows import collate, pack
from pave.patch.file import Patch
from pave.patch.peft import export_peft, load_peft
from pave.training.trainee import trainable, training

ON_A_GRID = {
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "glm4v",
    "glm46v",
    "glm4v_moe",
}  # positions in time, height and width


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def built(family: str, tokenizer: PreTrainedTokenizerFast) -> PatchedModel:
    return PatchedModel(make_base(tokenizer, family=family))


@pytest.fixture
def one(built: PatchedModel) -> Iterator[PatchedModel]:
    """The model of a family, without patches before and after."""
    yield built
    for name in list(built.patches):
        built.remove_patch(name)


def test_every_family_has_a_small_model() -> None:
    assert sorted(FAMILIES) == families()


def test_it_opens_from_a_folder(family: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    base = make_base(tokenizer, family=family)
    base.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    one = load(tmp_path)
    assert type(one.host) is type(base) and one.host.frames == (8 if family == "video_llava" else 32)
    assert one.host.fingerprint() == base.fingerprint() and one.host.template == base.template
    assert one.host.around([0.0, 61.5]) == base.around([0.0, 61.5])


@pytest.mark.parametrize(
    ("name", "mark"),
    [
        ("video_llava", "<s>"),
        ("qwen3_vl", "<|vision_start|>"),
        ("glm4v", "[gMASK]"),
        ("glm4v", "<|end_of_image|>"),
        ("internvl", "<img>"),
        ("smolvlm", "<global-img>"),
        ("gemma4", "<|image>"),
        ("gemma4", "<turn|>"),
    ],
)
def test_a_tokenizer_without_the_special_tokens_of_the_family_is_refused(
    name: str, mark: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    make_base(tokenizer, family=name).model.save_pretrained(tmp_path)
    with_marks(tokenizer, without=mark).save_pretrained(tmp_path)
    with pytest.raises(BaseModelError, match=f"lacks {re.escape(mark)}, which its prompt template contains"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "pattern"), [("glm4v", "{:.0f}"), ("glm4v_moe", "{:.0f}"), ("glm46v", "{:.1f} seconds")]
)
def test_glm_writes_the_time_of_the_first_frame_of_each_step(
    name: str, pattern: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    base = make_base(tokenizer, family=name)
    for frames in ([1.0, 3.0, 5.0, 7.0], [0.0, 0.5, 1.0, 1.5, 2.0, 2.5], [4.0, 4.0]):
        times = [(frames[i] + frames[i + 1]) / 2 for i in range(0, len(frames), 2)]
        expected = [f"<|end_of_image|>{pattern.format(seconds)}" for seconds in frames[::2]]
        assert [behind for _, behind in base.around(times)] == expected


def test_the_prompt_of_smolvlm_spells_out_the_number_of_frames(tokenizer: PreTrainedTokenizerFast) -> None:
    (head, _), *_ = make_base(tokenizer, family="smolvlm").around([0.5, 2.5, 61.5])
    assert head.startswith("You are provided the following series of three frames from a 0:01:01 [H:MM:SS] video.")
    spelled = {1: "one", 13: "thirteen", 18: "eighteen", 20: "twenty", 32: "thirty-two", 45: "forty-five", 128: "128"}
    assert {count: in_words(count) for count in spelled} == spelled


@pytest.mark.parametrize("thought", ["", "<|channel>thought\n<channel|>"])
def test_an_answer_begins_as_the_chat_template_of_the_checkpoint_does(
    thought: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    make_base(tokenizer, family="gemma4").model.save_pretrained(tmp_path)
    chatting = with_marks(tokenizer)
    chatting.chat_template = (
        "{{ '<bos>' }}{% for each in messages %}{{ '<|turn>' + each['role'] + '\n' + each['content'] + '<turn|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|turn>model\n"
        + thought.replace("\n", "\\n")
        + "' }}{% endif %}"
    )
    chatting.save_pretrained(tmp_path)
    base = load(tmp_path).host
    assert base.template == "<bos><|turn>user\n{video}{question}<turn|>\n<|turn>model\n" + thought
    assert base.end == base.tokenizer.convert_tokens_to_ids("<turn|>")


def test_a_broken_chat_template_is_named(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    make_base(tokenizer, family="gemma4").model.save_pretrained(tmp_path)
    chatting = with_marks(tokenizer)
    chatting.chat_template = "{% for each in messages %}"
    chatting.save_pretrained(tmp_path)
    with pytest.raises(BaseModelError, match=r"its chat template cannot be rendered \(.*; fix chat_template\.jinja"):
        load(tmp_path)


def test_a_family_without_features_before_its_projector_accepts_projected_queries(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    base = make_base(tokenizer)

    class Projected(type(base)):  # type: ignore[misc]
        @property
        def vision_dim(self) -> int:
            return 0

        def look(self, pixels: Tensor) -> Seen:
            seen = super().look(pixels)
            return seen._replace(vision=seen.vision[..., :0])

    base.__class__ = Projected
    one = PatchedModel(base)
    before = forward(one, one.prepare(clips(), QUESTIONS))
    with pytest.raises(PatchMismatch, match=r"before the projector as queries, .*; use fusion.query: projected"):
        one.attach("ears", config(one))
    with pytest.raises(EncoderError, match=r"base-tower .* llava_onevision has none"):
        _ = load_encoder("base-tower").on(base).spec
    hears(one, fusion=FusionConfig(width=32, heads=2, query="projected"))
    patched = one.prepare(clips(), QUESTIONS)
    assert not torch.equal(forward(one, patched), before)
    one.remove_patch("ears")
    assert torch.equal(forward(one, one.prepare(clips(), QUESTIONS)), before)


def config(one: PatchedModel, **changes: Any) -> PatchConfig:
    return config_for(one.host, **changes)


def hears(one: PatchedModel, name: str = "ears", seed: int = 1, **changes: Any) -> None:
    torch.manual_seed(seed)
    one.attach(name, config(one, **changes))
    awaken(one, name, seed=seed)


def clips() -> list[Clip]:
    return [make_clip(0), make_clip(1)]


def forward(one: PatchedModel, inputs: Inputs) -> Tensor:
    return one.forward(inputs).logits.detach()


def greedy(one: PatchedModel, inputs: Inputs, **options: Any) -> Tensor:
    ids = one.generate(inputs, max_new_tokens=5, do_sample=False, **options)
    return ids[:, inputs.input_ids.shape[1] :]


def own_pixels(one: PatchedModel, clips: list[Clip]) -> dict[str, Any]:
    """Outputs of the family's own processor for these clips, under its names."""
    host: Any = one.host
    frames = [host.pixels(clip) for clip in clips]
    together = torch.cat(frames)
    match host.model_type:
        case "internvl":
            return {"pixel_values": together}
        case "smolvlm":
            return {"pixel_values": torch.stack(frames)}
        case "gemma4":
            patches, places = host.patches(together)
            counts = {"num_frames_per_video": torch.tensor([len(each) for each in frames])}
            if "num_frames_per_video" not in signature(host.model.model.get_video_features).parameters:  # before 5.23
                patches, places = (each.unflatten(0, (len(frames), -1)) for each in (patches, places))
                counts = {}
            return {"pixel_values_videos": patches, "video_position_ids": places, **counts}
        case "llava_onevision" | "video_llava" | "llava_next_video":
            return {"pixel_values_videos": torch.stack(frames)}
    grids = torch.cat([host.patch_grid(len(each) // host.pair) for each in frames])
    inputs = {"pixel_values_videos": host.patches(together), "video_grid_thw": grids}
    if host.model_type == "video_llama_3":
        inputs["video_merge_sizes"] = torch.tensor([host.merge] * len(clips))
    if host.model_type == "qwen2_5_vl":
        inputs["second_per_grid_ts"] = torch.tensor([float(host.pair)] * len(clips))  # a frame per second
    return inputs


@pytest.mark.parametrize("name", ["qwen2_vl", "glm4v", "gemma4"])
def test_patches_are_cut_as_the_familys_own_processor_does(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    base: Any = make_base(tokenizer, family=name)
    edge = 48 * 16 if name == "gemma4" else SIDE  # its processor supports a few numbers of tokens only
    base.side = edge
    picture = torch.randint(0, 256, (edge, edge, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    options = {"min_pixels": edge**2, "max_pixels": edge**2} if name == "qwen2_vl" else {"do_resize": name == "gemma4"}
    kind = {"qwen2_vl": Qwen2VLImageProcessorPil, "glm4v": Glm4vImageProcessorPil, "gemma4": Gemma4ImageProcessorPil}
    processor = kind[name](**options)
    expected = processor(Image.fromarray(picture.numpy()), return_tensors="pt")
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (processor.image_mean, processor.image_std))
    pixels = (picture.permute(2, 0, 1) / 255 - mean) / std
    if name == "gemma4":
        base.model.config.vision_config.patch_size, base.model.config.vision_config.pooling_kernel_size = 16, 3
        patches, places = base.patches(pixels[None])
        assert torch.equal(places, expected["image_position_ids"][:, : places.shape[1]])
        expected["pixel_values"] = expected["pixel_values"][:, : places.shape[1]]
    else:
        patches = base.patches(pixels.expand(base.pair, -1, -1, -1))
    torch.testing.assert_close(patches, expected["pixel_values"], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_changing_a_grid_cell_changes_the_features_of_that_cell_most(
    family: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Before and after the projector, on a grid of several windows if the tower has window attention."""
    base = make_base(tokenizer, family=family, side=2 * SIDE)
    (rows, columns), (high, wide) = base.grid, base.size
    assert rows >= 4 and columns >= 4
    pixels = torch.randn(base.pair, 3, high, wide, generator=torch.Generator().manual_seed(0))
    before = base.look(pixels)
    for place in range(rows * columns):
        changed = pixels.clone()
        cells = changed.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))
        cells[:, :, place // columns, :, place % columns].neg_()
        after = base.look(changed)
        for old, new in ((before.vision, after.vision), (before.tokens, after.tokens)):
            moved = (new - old)[0, -rows * columns :].norm(dim=-1)  # without a class token
            assert moved.argmax() == place


def types(one: PatchedModel, ids: Tensor) -> dict[str, Tensor]:
    needed = one.host.model_type in ON_A_GRID | {"gemma4"}
    return {"mm_token_type_ids": 2 * (ids == one.host.placeholder).long()} if needed else {}


def test_without_patches_outputs_are_those_of_the_model_on_pixels(one: PatchedModel) -> None:
    inputs = one.prepare(clips(), QUESTIONS)
    inputs_of_base = {**own_pixels(one, clips()), **types(one, inputs.input_ids)}
    base: Any = one.base
    ids, mask = inputs.input_ids, inputs.attention_mask
    if one.host.model_type in ON_A_GRID:
        expected = base(input_ids=ids, attention_mask=mask, **inputs_of_base).logits
    else:  # the model's own forward() would count padding
        expected = base(input_ids=ids, attention_mask=mask, position_ids=inputs.positions(), **inputs_of_base).logits
    real = mask.bool()
    torch.testing.assert_close(forward(one, inputs)[real], expected[real], atol=1e-4, rtol=1e-4)
    ends = {
        "pad_token_id": one.host.pad,
        "eos_token_id": one.host.stops,
    }  # those of the config are beyond the small vocabulary
    expected_ids = base.generate(
        input_ids=ids, attention_mask=mask, **inputs_of_base, **ends, max_new_tokens=5, do_sample=False
    )
    assert torch.equal(greedy(one, inputs), expected_ids[:, ids.shape[1] :])
    assert torch.equal(greedy(one, inputs, num_beams=None), expected_ids[:, ids.shape[1] :])
    if not one.host.beams:
        many: list[tuple[str, dict[str, Any]]] = [
            ("num_beams=2", {"num_beams": 2}),
            ("num_beams=2", {"generation_config": GenerationConfig(num_beams=2)}),
            ("num_beams=3", {"num_beams": 3, "generation_config": GenerationConfig(num_beams=2)}),
            ("num_return_sequences=2", {"do_sample": True, "num_return_sequences": 2}),
        ]
        for named, options in many:
            with pytest.raises(ValueError, match=f"does not support {named}; leave it out"):
                one.generate(inputs, max_new_tokens=5, **options)
        with pytest.raises(ValueError, match="non-empty list"):  # nor does the model support it
            base.generate(input_ids=ids, attention_mask=mask, **inputs_of_base, **ends, max_new_tokens=5, num_beams=2)


def test_all_inputs_of_the_model_are_on_its_device(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    one = PatchedModel(make_base(tokenizer, family=family))
    whole = one.prepare(clips(), QUESTIONS)
    features = one.encode(clips())
    (before, behind), seen = one.host.prompt("hm?"), one.lay_out(features, None).visual
    rows = [pack([*before, *ids], [(behind, [1]), (behind, [2])]) for ids in seen]
    tokens = collate(rows, one.host.pad)
    del tokens["labels"]
    shared = one.lay_out(features, None).inputs(**tokens)
    received: list[Any] = []

    def spy(module: torch.nn.Module, args: Any, options: dict[str, Any]) -> None:
        received.extend([*args, *options.values()])
        raise InterruptedError

    one.base.register_forward_pre_hook(spy, with_kwargs=True)
    model: Any = one.base
    model.to("meta")
    for inputs in (whole, shared):
        with pytest.raises(InterruptedError):
            one.forward(inputs)
    places = [tensor.device.type for tensor in tensors_in(received)]
    assert len(places) >= 8 and set(places) == {"meta"}


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in lists, dicts and outputs."""
    if isinstance(value, Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for each in inner for tensor in tensors_in(each)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_untrained_patch_changes_nothing_and_a_trained_one_does(
    family: str, tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype
) -> None:
    one = PatchedModel(make_base(tokenizer, dtype, family=family))
    inputs = one.prepare(clips(), QUESTIONS)
    logits, answer = forward(one, inputs), greedy(one, inputs)
    beams = greedy(one, inputs, num_beams=2) if one.host.beams else None
    one.attach("ears", config(one))
    inputs = one.prepare(clips(), QUESTIONS)
    assert torch.equal(forward(one, inputs), logits) and torch.equal(greedy(one, inputs), answer)
    assert beams is None or torch.equal(greedy(one, inputs, num_beams=2), beams)
    awaken(one, "ears")
    assert not torch.equal(forward(one, inputs), logits)


def test_removal_leaves_no_trace(one: PatchedModel) -> None:
    inputs = one.prepare(clips(), QUESTIONS)
    logits, answer, before = forward(one, inputs), greedy(one, inputs), portrait(one)
    hears(one)
    patched = one.prepare(clips(), QUESTIONS)
    assert not torch.equal(forward(one, patched), logits)
    greedy(one, patched)
    one.remove_patch("ears")
    assert torch.equal(forward(one, inputs), logits) and torch.equal(greedy(one, inputs), answer)
    assert alike(before, portrait(one))


def test_a_resampler_reads_two_senses(one: PatchedModel) -> None:
    inputs = one.prepare(clips(), QUESTIONS)
    logits, answer, before = forward(one, inputs), greedy(one, inputs), portrait(one)
    favor = favor_config(one.host)
    parts = {"senses": favor.senses, "resampler": favor.resampler, "fusion": favor.fusion}
    one.attach("favor", config(one, **parts), trainable=False)
    inputs = one.prepare(clips(), QUESTIONS)
    assert torch.equal(forward(one, inputs), logits) and torch.equal(greedy(one, inputs), answer)
    awaken(one, "favor")
    assert not torch.equal(forward(one, inputs), logits)
    greedy(one, inputs)
    one.remove_patch("favor")
    inputs = one.prepare(clips(), QUESTIONS)
    assert torch.equal(forward(one, inputs), logits) and alike(before, portrait(one))


def test_logits_of_selected_positions(one: PatchedModel) -> None:
    inputs = one.prepare(clips(), QUESTIONS)
    places, whole = torch.tensor([3, 7]), forward(one, inputs)
    some, last = (one.forward(inputs, logits_to_keep=keep).logits for keep in (places, 1))
    torch.testing.assert_close(some, whole[:, places], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(last, whole[:, -1:], atol=1e-4, rtol=1e-4)


def test_the_head_multiplies_one_matrix(one: PatchedModel) -> None:
    """For a slice of the states, torch would copy its weights for every row."""
    seen, head = list[bool](), one.base.get_output_embeddings()
    assert head is not None
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
    greedy(one, one.prepare(clips(), QUESTIONS))
    handle.remove()
    assert len(seen) > 1 and all(seen)


def test_only_the_patch_learns(one: PatchedModel) -> None:
    hears(one)
    inputs = one.prepare(clips(), QUESTIONS)
    with training(one.applied.module("ears")):
        one.forward(inputs).logits.square().mean().backward()
    assert all(parameter.grad is None for parameter in one.base.parameters())
    parts = trainable(one.applied.module("ears"))
    assert all(parameter.grad is not None for part in parts.values() for parameter in part.values())
    assert any(parameter.grad.any() for parameter in parts["fusion"].values() if parameter.grad is not None)


def test_a_key_frame_hears_its_own_moment_only(one: PatchedModel) -> None:
    hears(one)
    clip = make_clip()
    assert clip.audio is not None
    before = one.fused_tokens(one.prepare([clip], QUESTIONS[:1]))[0]
    steps = len(before)
    assert steps == FRAMES // one.host.pair
    for step in range(steps):
        sound = clip.audio.clone()
        middle = (step + 0.5) * one.host.pair - 0.5  # seconds: a key frame per second
        sound[:, max(0, round((middle - 0.1) * 16_000)) : round((middle + 0.1) * 16_000)] = 0
        changed = Clip.from_frames(clip.frames, clip.times, audio=sound, rate=16_000)
        after = one.fused_tokens(one.prepare([changed], QUESTIONS[:1]))[0]
        assert [not torch.equal(*pair) for pair in zip(before, after, strict=True)] == [i == step for i in range(steps)]


def test_a_clip_without_sound_gets_the_answer_of_the_base(one: PatchedModel) -> None:
    silent = [make_clip(0, sound=False), make_clip(1, sound=False)]
    inputs = one.prepare(silent, QUESTIONS)
    logits, answer = forward(one, inputs), greedy(one, inputs)
    hears(one)
    inputs = one.prepare(silent, QUESTIONS)
    assert torch.equal(forward(one, inputs), logits) and torch.equal(greedy(one, inputs), answer)


def test_it_reads_a_question_alone(one: PatchedModel) -> None:
    heard, known, again = (one.perception.reads(text) for text in (*QUESTIONS, QUESTIONS[0]))
    assert heard.shape == (one.host.dim,) and heard.dtype == torch.float32 and heard.isfinite().all()
    assert torch.equal(heard, again) and not torch.equal(heard, known)
    hears(one, gate=True)
    one.perception._questions.clear()
    assert torch.equal(one.perception.reads(QUESTIONS[0]), heard), "patches have no part in it"


def test_rows_of_one_batch_have_their_own_patches(one: PatchedModel) -> None:
    hears(one)
    hears(one, "more", seed=7)
    features = one.encode(clips())

    def logits(*patches: Any) -> Tensor:
        return forward(one, one.prepare(features, QUESTIONS, patches=patches[0] if len(patches) == 1 else patches))

    mixed, off = logits(["ears"], ["more", "ears"]), logits([], ["ears"])
    assert torch.equal(mixed[0], logits(["ears"])[0]) and torch.equal(mixed[1], logits(["ears", "more"])[1])
    assert torch.equal(off[0], logits([])[0]) and not torch.equal(mixed[1], logits(["ears"])[1])


def test_rows_of_different_lengths_get_the_answers_of_single_rows(one: PatchedModel) -> None:
    hears(one)
    ragged = [make_clip(0), make_clip(1, FRAMES - 2)]
    ways: list[dict[str, Any]] = [{}, {"num_beams": 2}] if one.host.beams else [{}]
    for way in ways:
        together = greedy(one, one.prepare(ragged, QUESTIONS), **way)
        for i, clip in enumerate(ragged):
            alone = greedy(one, one.prepare([clip], QUESTIONS[i : i + 1]), **way)[0]
            assert together[i, : len(alone)].tolist() == alone.tolist()


def test_questions_that_share_a_clip_equal_questions_alone(one: PatchedModel) -> None:
    if one.host.model_type == "smolvlm" and Version(version("transformers")) < Version("5.20"):
        pytest.skip("it counts the rows of a whole batch as those of one image")
    hears(one)
    host, features = one.host, one.encode([make_clip(0), make_clip(1, FRAMES - 2)])
    rows = []
    for seen in one.lay_out(features, ["ears"]).visual:
        turns = [(host.prompt(question)[1], host.encode_text("yes")) for question in QUESTIONS]
        rows.append(pack([*host.prompt("")[0], *seen], turns))
    tokens = collate(rows, host.pad)
    labels = tokens.pop("labels")
    packed = forward(one, one.lay_out(features, ["ears"]).inputs(**tokens))
    for i in range(2):
        places = (labels[i] != -100).nonzero()[:, 0]
        for question, place in zip(QUESTIONS, places[:: len(host.encode_text("yes"))], strict=True):
            alone = forward(one, one.prepare(features[i : i + 1], [question]))[0, -1]
            torch.testing.assert_close(packed[i, place - 1], alone, atol=2e-4, rtol=2e-4)


def test_a_saved_and_loaded_patch_has_equal_logits(one: PatchedModel, tmp_path: Path) -> None:
    hears(one)
    inputs = one.prepare(clips(), QUESTIONS)
    logits = forward(one, inputs)
    file = one.export("ears").save(tmp_path / "ears.safetensors")
    one.remove_patch("ears")
    report = one.apply_patch(file)
    assert report.base_match == "exact"
    assert torch.equal(forward(one, one.prepare(clips(), QUESTIONS)), logits)
    one.swap_patch("ears", Patch.load(file).shrink(8, None))
    assert not torch.equal(forward(one, one.prepare(clips(), QUESTIONS)), logits)


def test_a_lora_goes_to_peft_and_comes_back(one: PatchedModel, tmp_path: Path) -> None:
    hears(one, senses={})
    logits = forward(one, one.prepare(clips(), QUESTIONS))
    export_peft(one.export("ears"), one.host, tmp_path)
    one.remove_patch("ears")
    one.apply_patch(load_peft(tmp_path, one.host))
    assert torch.equal(forward(one, one.prepare(clips(), QUESTIONS)), logits)


@pytest.mark.parametrize("query", ["vision", "projected", "learnable"])
@pytest.mark.parametrize("kind", ["folded", "official"])
def test_queries_of_every_kind_fit_the_channels_of_the_base(one: PatchedModel, query: Any, kind: Any) -> None:
    logits = forward(one, one.prepare(clips(), QUESTIONS))
    hears(one, fusion=FusionConfig(kind=kind, query=query, width=32, heads=2))
    assert not torch.equal(forward(one, one.prepare(clips(), QUESTIONS)), logits)


@pytest.mark.parametrize("combine", ["prefix", "interleave"])
def test_tokens_are_inserted_only_where_positions_are_1d(one: PatchedModel, combine: Any) -> None:
    fusion = FusionConfig(combine=combine, width=32, heads=2)
    if one.host.model_type in ON_A_GRID:
        with pytest.raises(PatchMismatch, match="on a grid"):
            one.attach("ears", config(one, fusion=fusion))
        return
    hears(one, fusion=fusion)
    plain = one.prepare(clips(), QUESTIONS, patches=[])
    inputs = one.prepare(clips(), QUESTIONS)
    assert inputs.input_ids.shape[1] > plain.input_ids.shape[1]
    assert len(greedy(one, inputs)) == 2


def test_newlines_that_the_base_does_not_have_are_refused(one: PatchedModel) -> None:
    for newline in {"end", "grid", "none"} - set(one.host.newlines):
        with pytest.raises(PatchMismatch, match=f"newline: {newline}"):
            one.attach("ears", config(one, newline=newline))
