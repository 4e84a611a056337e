"""Claims about `pave profile`: the paper's numbers in the paper's counting, torch's count in the honest one, and the
sizes of real files; of the base only the config is read."""

from __future__ import annotations

import json
import math
import re
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import torch
from damage import DAMAGE
from families import FAMILIES, make_base
from hub_server import HubServer
from huggingface_hub import constants
from listening import BEATS
from patched import config_for
from released import HEARING, QWEN, fusion_tensors, lora_tensors, write_checkpoint
from small import make_clip, make_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    LlavaOnevisionConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from pave.base import Host
from pave.cli.profile import table
from pave.config import FusionConfig, LoraConfig, PatchConfig, SenseFacts
from pave.encoder import load_encoder, module_of
from pave.errors import BaseModelError, PatchError, PatchMismatch, RecipeError, SignalError
from pave.evaluation.cost import Cost, _encoder, cost_of, profile
from pave.evaluation.flops import Decoder, flops_of, fusion_flops
from pave.files.tensorfile import read_metadata
from pave.fusion.align import align
from pave.fusion.cross_attention import build_fusion
from pave.hub import catalogue
from pave.loading.base import outline
from pave.media.clip import Clip
from pave.model.patched import PatchedModel, load
from pave.patch.attached import Attached
from pave.patch.file import Patch
from pave.patch.file import outline as patch_outline
from pave.patch.lora import Call, Lora, Loras, running, targets
from pave.patch.official import convert
from pave.patch.peft import export_peft
from pave.recipe import read_recipe
from pave.sidechannel import SideTokens

COUNTED = {"llava_onevision", "video_llava", "llava_next_video", "internvl"}  # towers of one size
SIZES = {  # Qwen2's config.json: channels, inner channels, layers, heads, key heads, vocabulary
    "0.5B": (896, 4864, 24, 14, 2, 151936),
    "7B": (3584, 18944, 28, 28, 4, 152064),
}
FUSIONS = {
    "authors'": FusionConfig(kind="official", values="shared", rope="off", head="norm"),
    "folded": FusionConfig(),
    "interleave": FusionConfig(combine="interleave"),
    "compact": FusionConfig(combine="compact"),
}
SENSES = {"audio": (120, 1), "video": (240, 2), "3d": (32, 24), "multiview": (32, 28)}  # steps, side of the grid
every_size = pytest.mark.parametrize("size", SIZES)


def write_config(folder: Path, size: str, eyes: int = 26) -> Path:
    """The config.json of a LLaVA-OneVision of a real size. `eyes`: layers of its vision tower, of which each costs a
    test some 20 ms."""
    hidden, inner, layers, heads, key_heads, vocabulary = SIZES[size]
    text = Qwen2Config(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocabulary,
    )
    vision = SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=eyes,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
        vision_use_head=False,
    )
    config = LlavaOnevisionConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), tie_word_embeddings=size == "0.5B", dtype="bfloat16"
    )
    config.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Host]:
    return {size: outline(write_config(tmp_path_factory.mktemp(size), size)) for size in SIZES}


def patch_on(base: Host, fusion: str = "authors'", grid: int = 1, rank: int = 64) -> Patch:
    """An untrained patch of 1024 side channels."""
    facts = SenseFacts(encoder="logmel", dim=1024, grid=(grid, grid), preprocessing="none")
    config = PatchConfig(
        name="patch",
        base=base.facts(),
        newline="grid",
        senses={"sense": facts},
        fusion=FUSIONS[fusion],
        lora=LoraConfig(r=rank, lora_alpha=16),
    )
    return Patch(config, Attached(config, base, blank=True).state_dict())


@cache
def cost_at(base: Host, sense: str = "audio", fusion: str = "authors'") -> Cost:
    steps, grid = SENSES[sense]
    return cost_of(base, patch_on(base, fusion, grid), side_steps=[steps])


# The paper's numbers


@pytest.mark.parametrize(
    ("size", "fusion", "lora", "whole"),
    [("0.5B", 6_235_776, 35_192_832, 41_428_608), ("7B", 8_996_352, 161_480_704, 170_477_056)],
)
def test_parameters_are_those_of_the_paper_and_the_unused_ones_are_named(
    bases: dict[str, Host], size: str, fusion: int, lora: int, whole: int
) -> None:
    cost = cost_at(bases[size])
    assert cost.dead_params == {"sense": 2 * 512 * 513}, "two layers' v_linear, weight and bias"
    assert (cost.fusion_params["sense"] + cost.dead_params["sense"], cost.lora_params) == (fusion, lora)
    assert cost.params + cost.dead_params["sense"] == whole
    assert f"{whole:,}" in table(cost) and "525,312" in table(cost)


@pytest.mark.parametrize(("size", "tera"), [("0.5B", 8.01), ("7B", 98.54)])
def test_the_paper_s_prefill(bases: dict[str, Host], size: str, tera: float) -> None:
    paper = cost_at(bases[size]).paper
    assert round((paper.language_model + paper.head) / 1e12, 2) == tera and not paper.vision and not paper.lora


def test_the_paper_s_prefill_with_side_tokens_between_the_visual_ones(bases: dict[str, Host]) -> None:
    """The baseline of its ablation: 18432 more tokens."""
    cost = cost_at(bases["0.5B"], "3d", "interleave")
    assert cost.beside == 18432 and round((cost.paper.language_model + cost.paper.head) / 1e12, 2) == 71.41


@pytest.mark.parametrize(
    ("sense", "small", "large"),
    [
        ("audio", 0.0653, 0.0998),
        ("video", 0.0677, 0.1023),
        ("3d", 0.1184, 0.1529),
        ("multiview", 0.1377, 0.1722),
    ],
)
def test_the_paper_s_fusions(bases: dict[str, Host], sense: str, small: float, large: float) -> None:
    counted = [cost_at(bases[size], sense).paper.fusion["sense"] / 1e12 for size in SIZES]
    assert [round(each, 4) for each in counted] == [small, large]


def test_a_compact_clip_is_232_tokens_instead_of_6720(bases: dict[str, Host]) -> None:
    """T + N + K of Audio-Visual LLM with 14 × 14 places."""
    few, all_ = cost_at(bases["7B"], "audio", "compact"), cost_at(bases["7B"], "audio", "folded")
    assert (few.visual, few.newlines, few.beside) == (32 + 196, 0, 4)
    assert all_.visual + all_.newlines == 6720
    assert few.honest.language_model < all_.honest.language_model / 20
    assert few.fusion_params["pictures"] and few.honest.fusion["pictures"]


# The honest count


@pytest.mark.parametrize(("size", "before", "here"), [("0.5B", 6.23, 6.80), ("7B", 90.37, 97.39)])
def test_the_honest_prefill_has_newlines_and_half_of_the_pairs(
    bases: dict[str, Host], size: str, before: float, here: float
) -> None:
    cost, n = cost_at(bases[size]), 6312
    assert (cost.visual, cost.newlines, cost.text, cost.prompt) == (6272, 448, 40, 6760)
    assert round(cost.honest.language_model / 1e12, 2) == here
    assert round(Decoder.of(bases[size]).products(n, pairs=n * (n + 1) // 2) / 1e12, 2) == before
    assert cost.honest.lora == 2 * 6760 * cost.lora_params


@every_size
def test_the_flops_of_the_vision_tower_are_those_of_siglip_s_matrices(bases: dict[str, Host], size: str) -> None:
    patches, q, inner, layers, d = 27 * 27, 1152, 4304, 26, SIZES[size][0]
    layer = patches * (4 * q * q + 2 * q * inner) + 2 * patches**2 * q
    frame = patches * 3 * 14 * 14 * q + layers * layer + patches * (q * d + d * d)
    assert cost_at(bases[size]).honest.vision == 2 * 32 * frame


def counted(run: object) -> int:
    """FLOPs as torch counts them, with unfused attention: its counter has no formula for fused attention on a CPU."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()  # type: ignore[operator]
    return counter.get_total_flops()


def test_a_language_model_with_and_without_lora_costs_what_torch_counts(tokenizer: PreTrainedTokenizerFast) -> None:
    """Torch counts every pair of tokens, causal or not, and, in versions that compute them with a product, the rotary
    angles, which are left out here."""
    base, n = make_base(tokenizer), 23
    decoder, lm = Decoder.of(base), base.language_model
    rows = torch.zeros(1, n, base.dim)
    bare = counted(lambda: lm(inputs_embeds=rows))
    angles = 2 * n * base.dim // 4 // 2
    assert bare - decoder.products(n, pairs=n * n) in (0, angles)
    assert decoder.head == counted(lambda: base.model.lm_head(rows[:, -1:]))
    config = LoraConfig(r=3)
    lora = Lora(config, targets(config, lm)).requires_grad_(False)
    Loras(lm).add(lora)
    with running(Call({lora: torch.ones(1)})):
        patched = counted(lambda: lm(inputs_embeds=rows))
    assert patched - bare == 2 * n * sum(each.numel() for each in lora.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_language_model_of_every_family_costs_what_torch_counts(
    family: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Including two head sizes in Gemma 4, and experts in GLM-4.5V."""
    base, n = make_base(tokenizer, family=family), 23
    if family == "glm4v_moe":
        base.model.set_experts_implementation("eager")  # torch miscounts grouped products
    bare = counted(lambda: base.language_model(input_ids=torch.zeros(1, n, dtype=torch.long)))
    products = Decoder.of(base).products(n, pairs=n * n)
    assert products <= bare < 1.001 * products, "plus the rotary angles, in versions that compute them with a product"


def test_experts_are_counted_only_if_the_number_of_active_ones_is_known(tokenizer: PreTrainedTokenizerFast) -> None:
    base = make_base(tokenizer, family="glm4v_moe")
    base.language_model.config.num_experts_per_tok = 0  # type: ignore[union-attr]
    with pytest.raises(BaseModelError, match="its language model has no num_experts_per_tok"):
        Decoder.of(base)


@pytest.mark.parametrize(("steps", "grid"), [(4, 1), (6, 1), (8, 3), (4, 6), (3, 2)])
@pytest.mark.parametrize(
    "words",
    [
        {"kind": "official", "values": "shared", "head": "norm", "rope": "off"},
        {"kind": "official", "layers": 3, "query": "projected"},
        {"kind": "official", "query": "learnable"},
        {"kind": "folded"},
        {"kind": "folded", "query": "projected", "rope": "off"},
        {"kind": "folded", "query": "learnable"},
        {"combine": "prefix"},
        {"combine": "compact"},
    ],
    ids=lambda words: " ".join(words.values() if "layers" not in words else ["official", "projected"]),
)
def test_a_fusion_costs_what_torch_counts(words: dict[str, object], steps: int, grid: int) -> None:
    t, s, q, d, c = 4, 9, 10, 40, 6
    config = FusionConfig.model_validate({"width": 16, "heads": 2, **words})
    fusion = build_fusion(config, side_dim=c, vision_dim=q, visual_dim=d, tokens=s, frames=t).requires_grad_(False)
    side = align([SideTokens.regular(torch.zeros(steps, grid, grid, c), rate=2)], [torch.arange(t) / 2], "index")
    visual = torch.zeros(1, t, s, q), torch.zeros(1, t, s, d)
    n, k = steps * grid**2, -(-steps // t) * grid**2
    run = (lambda: fusion(side)) if config.combine != "add" else (lambda: fusion(*visual, side))
    assert fusion_flops(fusion, t, s, n, k) == counted(run)


NETWORKS = {  # minutes of a clip per pass, and millions of weights in the release
    "imagebind-audio": (1 / 60, 86),
    "whisper-speech": (1 / 2, 637),
    "beats-audio": (9.92 / 60, 90),
    "clap-audio": (1 / 6, 28),
    "pe-audio": (1 / 2, 237),
    "languagebind-audio": (10.36 / 60, 304),
    "languagebind-video": (4 / 60, 404),
    "instructblip-video": (1 / 120, 1172),
    "vjepa2-video": (4 / 60, 304),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_an_encoder_costs_what_its_passes_cost(name: str, bases: dict[str, Host]) -> None:
    """A partial pass counts as a whole one; a pass costs at least its weights times one token per time step."""
    encoder, (minutes, millions) = load_encoder(name), NETWORKS[name]
    found = encoder.outline()
    assert found and round(sum(each.numel() for each in found.run.parameters()) / 1e6) == millions
    assert found.steps == pytest.approx(60 * minutes * encoder.spec.rate, rel=0.01)
    facts, steps = encoder.spec.facts("time"), math.floor(found.steps)
    one, more = (_encoder(facts, bases["7B"], count) or 0 for count in (steps, 3 * steps + 1))
    assert more == (4 if found.steps == steps else math.ceil((3 * steps + 1) / found.steps)) * one
    assert one >= 1e6 * millions


def test_a_small_encoder_costs_what_torch_counts_when_it_encodes() -> None:
    """A sound of 992 frames of 25 ms, 10 ms apart; its spectrum is not counted."""
    beats = module_of("beats-audio")
    encoder = beats.BeatsAudio(beats.Options(release="tiny"), BEATS)
    found = encoder.outline()
    network = found.run.to_empty(device="cpu")
    mel = beats.spectrum(torch.zeros(400 + 991 * 160))[None]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        features = network(mel)
    assert features.shape[1] == 8 * found.steps
    again = encoder.outline()
    assert counter.get_total_flops() == flops_of(again.run, *again.inputs) > 0


def test_frames_cost_the_same_through_base_tower_as_through_the_base(bases: dict[str, Host]) -> None:
    cost = cost_of(bases["7B"], patch_on(bases["7B"]), side_steps=[1])
    each = cost.honest.vision / bases["7B"].frames
    for options, pictures in (({"rate": 2}, 120), ({"sense": "views", "views": 3}, 3 * 120)):
        facts = load_encoder("base-tower", **options).on(bases["7B"]).spec.facts("time")
        assert _encoder(facts, bases["7B"], 120) == pytest.approx(pictures * each)
    assert _encoder(SenseFacts(encoder="lost", dim=4, preprocessing="none"), bases["7B"], 120) is None


def test_an_encoder_without_a_network_is_not_shown_as_uncounted(
    bases: dict[str, Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = cost_of(bases["7B"], patch_on(bases["7B"]), side_steps=[1])
    assert cost.honest.encoders == {"sense": 0} and re.search("encoder, sense .* no network", table(cost))
    (tmp_path / "uncounted.py").write_text("""
from torch import nn
from pave.encoder import Encoder

class Uncounted(Encoder):
    network = nn.Linear(2, 2)

    def encode(self, clip):
        return None

def build():
    return Uncounted()
""")
    package = import_module("pave.encoders")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    own = SenseFacts(encoder="uncounted", dim=1024, preprocessing="none")
    patch = patch_on(bases["7B"])
    config = patch.config.model_copy(update={"senses": {"sense": own}})
    cost = cost_of(bases["7B"], Patch(config, patch.tensors), side_steps=[1])
    assert cost.honest.encoders == {"sense": None} and re.search("encoder, sense .* not counted", table(cost))


def test_a_folded_fusion_folds_where_that_is_cheaper(bases: dict[str, Host]) -> None:
    few, many = (cost_at(bases["7B"], sense, "folded") for sense in ("audio", "multiview"))
    assert few.honest.fusion["sense"] < few.paper.fusion["sense"] / 10
    assert many.honest.fusion["sense"] == many.paper.fusion["sense"], "no fold, no padding"


# Files and memory


def test_sizes_are_those_of_real_files(tmp_path: Path) -> None:
    cost, place = profile("playroom", "audio-playroom"), catalogue.file_of("audio-playroom")
    small = Patch.load(place).shrink().save(tmp_path / "small.safetensors")
    assert (cost.trained, cost.file_bytes) == (True, place.stat().st_size)
    assert cost.shrunk_bytes == small.stat().st_size
    again = profile("playroom", small)
    assert (again.file_bytes, again.params) == (small.stat().st_size, cost.params)


def test_a_converted_checkpoint_of_full_depth_fits_the_names_and_shapes_of_its_base(tmp_path: Path) -> None:
    weights = fusion_tensors(896, 2), lora_tensors(QWEN[896], 24, 64)
    patch = convert(write_checkpoint(tmp_path / "pave", *weights, blocks=24), "depth", HEARING)
    assert patch.config.lora and set(patch.config.lora.target_modules) == set(LoraConfig().target_modules)
    file = patch.save(tmp_path / "patch.safetensors")
    cost = profile(write_config(tmp_path / "base", "0.5B", eyes=1), file, side_steps=[32])
    assert cost.file_bytes == file.stat().st_size == pytest.approx(2 * cost.params, rel=0.02)
    assert cost.memory.patch < 4 * cost.params
    assert cost.lora_params == 35_192_832 and cost.params + sum(cost.dead_params.values()) == 41_428_608


def test_a_recipe_is_profiled_before_it_is_trained(tmp_path: Path) -> None:
    trained = profile("playroom", "audio-playroom")
    untrained = profile("playroom", catalogue.folder() / "audio-playroom" / "patch.yaml", side_steps=[1200])
    assert not untrained.trained and "once trained" in table(untrained)
    certificate = len(read_metadata(catalogue.folder() / "audio-playroom" / "patch.safetensors")["pave.certificate"])
    more = trained.file_bytes - untrained.file_bytes - certificate
    assert abs(more) < 1_000, "a trained file also records numbers of clips, and escapes its certificate"
    known = {"trained": True, "file_bytes": trained.file_bytes, "shrunk_bytes": trained.shrunk_bytes}
    assert replace(untrained, **known) == trained


@pytest.mark.parametrize(("size", "params"), [("0.5B", 41_428_608), ("7B", 170_477_056)])
def test_an_official_checkpoint_is_profiled_without_a_download(
    size: str, params: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cost = profile(write_config(tmp_path, size, eyes=1), "audio-avsd")
    assert cost.params + sum(cost.dead_params.values()) == params
    # In bfloat16, as PAVE's training script saves them; trained here, patches are in float32.
    assert cost.file_bytes == pytest.approx(cost.params * (2 if size == "7B" else 4), rel=0.01)
    note = "MB approximately, once converted" if size == "7B" else "MB once trained"
    assert cost.released == (size == "7B") and note in table(cost)


@pytest.mark.parametrize("name", [name for name in catalogue.names() if not name.endswith("-playroom")])
def test_a_recipe_of_the_catalogue_can_be_built_on_its_base(name: str, tmp_path: Path) -> None:
    """For LLaVA-OneVision 7B: every encoder, resampler and fusion is built with its dimensions."""
    cost = profile(write_config(tmp_path, "7B", eyes=1), catalogue.folder() / name / "patch.yaml")
    assert not cost.trained and cost.lora_params > 20e6 and sum(cost.fusion_params.values()) > 2e6
    assert cost.shrunk_bytes < 20e6 or name == "favor-av-prefix", "whose Q-Former has FAVOR's 42 million parameters"


@pytest.mark.parametrize(
    ("words", "need"),
    [
        (["resampler.slots=24"], 25),
        (["senses.fast={encoder: instructblip-video}"], 32),
        (["senses.fast.options.grid=[7, 7]"], 49),
    ],
)
def test_a_sense_that_overflows_its_slots_is_refused_before_any_clip(
    words: list[str], need: int, tmp_path: Path
) -> None:
    file = tmp_path / "patch.yaml"
    recipe = read_recipe(catalogue.folder() / "favor-av", [*words, "data.train=/nowhere.jsonl"])
    file.write_text(json.dumps(recipe.model_dump(mode="json")))
    with pytest.raises(RecipeError, match=rf"set resampler\.slots={need}, or use an encoder with fewer tokens"):
        profile(write_config(tmp_path, "7B"), file)


def test_a_peft_folder_has_no_senses(tmp_path: Path) -> None:
    model = load("playroom")
    model.apply_patch("audio-playroom")
    export_peft(model.export("audio-playroom"), model.host, tmp_path)
    cost = profile("playroom", tmp_path)
    assert (cost.fusion_params, cost.side, cost.lora_params) == ({}, {}, 97_280)
    assert "fusion," not in table(cost)


def test_memory_is_that_of_weights_keys_and_features_in_the_chosen_dtype(
    bases: dict[str, Host], tmp_path: Path
) -> None:
    memory = cost_at(bases["7B"]).memory
    assert memory.base == 2 * 8_030_348_832, "parameters of this shape"
    assert memory.cache == 2 * 28 * 4 * 128 * 6760 * 2 and memory.features == (1152 + 3584) * 6272 * 2
    patch = patch_on(bases["7B"])
    wide = cost_of(outline(write_config(tmp_path, "7B"), dtype="float32"), patch, side_steps=[120])
    assert wide.memory.total == 2 * memory.total and wide.dtype == "float32"
    assert wide.honest == cost_at(bases["7B"]).honest
    fusion = patch.config.fusion.model_copy(update={"precision": "float32"})
    exact = Patch(patch.config.model_copy(update={"fusion": fusion}), patch.tensors)
    more = cost_of(bases["7B"], exact, side_steps=[120]).memory.patch - memory.patch
    assert more == 2 * sum(cost_at(bases["7B"]).fusion_params.values()), "the fusion in float32, LoRA in bfloat16"


# Reading and refusing


def test_only_the_config_of_a_hub_base_is_downloaded_and_then_it_works_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, "7B", eyes=1) / "config.json"
    files = {"config.json": config.read_bytes(), "model.safetensors": b"\0" * 9}
    with HubServer() as hub, hub.client(tmp_path / "cache"):
        hub.create("tester/seven", files)
        online = outline("tester/seven")
        assert not hub.asked("*", "*.safetensors") and not hub.asked("GET", "*tokenizer*")
        assert [one.path.rpartition("/")[2] for one in hub.asked("GET") if "resolve" in one.path] == ["config.json"]
        hub.close()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        offline = outline("tester/seven")
    assert cost_at(online) == cost_at(offline) and cost_at(online).base == "tester/seven"


def test_a_patch_of_another_base_is_refused_with_the_difference(bases: dict[str, Host], tmp_path: Path) -> None:
    with pytest.raises(PatchMismatch, match=r"dim=128, this base has 3584; load playroom"):
        profile(write_config(tmp_path, "7B"), "audio-playroom")
    deeper = make_config(bases["7B"])
    other = Patch(deeper, Attached(deeper, bases["7B"], blank=True).state_dict())
    lost = {name: tensor for name, tensor in other.tensors.items() if ".27." not in name}
    with pytest.raises(PatchMismatch, match=r"layers\.27\..* is missing"):
        cost_of(bases["7B"], Patch(deeper, lost), side_steps=[9])


def test_a_damaged_header_is_refused_and_values_are_not_read(tmp_path: Path) -> None:
    place, file, passed = catalogue.file_of("audio-playroom"), tmp_path / "patch.safetensors", set()
    data, shapes = place.read_bytes(), {name: tensor.shape for name, tensor in Patch.load(place).tensors.items()}
    for kind, (_, damage) in DAMAGE.items():
        file.write_bytes(damage(data))
        with suppress(PatchError):
            assert {name: tensor.shape for name, tensor in patch_outline(file).tensors.items()} == shapes
            passed.add(kind)
    assert {"bit of a tensor", "signed, NaN"} < passed and len(passed) < len(DAMAGE) / 4


@pytest.mark.parametrize("steps", [[1, 2], [0]])
def test_side_steps_that_do_not_fit_the_senses_are_refused(bases: dict[str, Host], steps: list[int]) -> None:
    with pytest.raises(SignalError, match=r"has 1 senses \(sense\); pass one integer >= 1 for each"):
        cost_of(bases["0.5B"], patch_on(bases["0.5B"]), side_steps=steps)


def test_a_base_without_a_language_model_to_count_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    base = make_base(tokenizer)
    base.language_model.config = PretrainedConfig(hidden_size=64)  # type: ignore[assignment]
    with pytest.raises(BaseModelError, match="its language model has no num_hidden_layers, num_attention_heads"):
        Decoder.of(base)


def test_broken_configs_and_recipes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(BaseModelError, match="unsupported model_type 'bert'"):
        outline(tmp_path)
    with pytest.raises(RecipeError, match="recipe not found"):
        profile("playroom", tmp_path / "patch.yaml")
    with pytest.raises(BaseModelError, match="frames=0"):
        profile("playroom", "audio-playroom", frames=0)


def test_json_holds_the_same_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    from pave.cli.main import app

    app(["profile", "playroom", "audio-playroom", "--side-steps", "80", "--json"], standalone_mode=False)
    cost = profile("playroom", "audio-playroom", side_steps=[80])
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(asdict(cost)))
    app(["profile", "playroom", "audio-playroom", "--frames", "4", "--text", "9"], standalone_mode=False)
    assert "4 key frames × 16 = 64 visual + 1 newline + 9 text = 74" in capsys.readouterr().out


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_of_a_prompt_are_those_that_are_prepared(
    family: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Including the text around the key frames of a 60 s clip if the tokenizer is available; else the table says that
    it is not counted."""
    base = make_base(tokenizer, family=family)
    base.model.config.save_pretrained(tmp_path)
    config = config_for(base)
    patch = Patch(config, Attached(config, base, blank=True).state_dict())

    def cost() -> Cost:
        host = outline(tmp_path, frames=base.frames)
        if hasattr(base, "side"):
            host.side = base.side  # type: ignore[attr-defined]
        return cost_of(host, patch, side_steps=[1] * len(config.senses), text=sum(map(len, base.prompt("What?"))))

    without = cost()
    base.tokenizer.save_pretrained(tmp_path)
    pictures = make_clip(0, base.frames, sound=False).frames
    clip = Clip.from_frames(pictures, torch.linspace(0, 60, base.frames, dtype=torch.float64))
    prepared = PatchedModel(base).prepare([clip], ["What?"])
    assert cost().prompt == prepared.input_ids.shape[1]
    assert (
        (without.around is None) == ("key frames: not counted" in table(without)) == any(map(any, base.around([0.0])))
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_profiled(family: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    base = make_base(tokenizer, family=family)
    base.model.config.save_pretrained(tmp_path)
    recipe = {"name": "ears", "base": str(tmp_path), "senses": {"audio": {"encoder": "logmel"}}}
    recipe |= {"lora": {"target_modules": ["q_proj"]}, "data": {"train": "x.jsonl"}}
    (tmp_path / "patch.yaml").write_text(json.dumps(recipe))
    cost = profile(tmp_path, tmp_path / "patch.yaml", frames=4)
    assert cost.visual == (4 // base.pair) * outline(tmp_path).tokens_per_frame and cost.honest.language_model
    counted = not re.search(r"vision, projector .* not counted", table(cost))
    assert counted == (cost.honest.vision > 0) == (family in COUNTED)
