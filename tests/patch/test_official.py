"""Claims about official checkpoints: a converted one computes the same, and no code in one is executed."""

from __future__ import annotations

import math
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families import make_base
from hub_server import HubServer
from huggingface_hub import constants
from peft import PeftModel
from released import (
    BLOCKS,
    CONFIG,
    FUSION,
    HEARING,
    PEFT_CONFIG,
    PEFT_WEIGHTS,
    QWEN,
    SIZES,
    TINY,
    VISION,
    change_json,
    fusion_tensors,
    lora_tensors,
    write_checkpoint,
    zipped,
)
from small import make_clip
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from pave.config import FusionConfig, LoraConfig
from pave.encoder import load_encoder
from pave.errors import (
    EncoderError,
    PatchDamaged,
    PatchError,
    PatchMismatch,
    PatchNotFound,
    SignalError,
)
from pave.fusion.align import align
from pave.fusion.cross_attention import Official
from pave.hub import catalogue
from pave.hub.card import card
from pave.hub.locate import locate
from pave.model.inputs import ClipFeatures
from pave.model.patched import PatchedModel
from pave.patch import official
from pave.patch.file import Patch, fusion_of
from pave.patch.official import LICENCE, _facts, convert, named
from pave.sidechannel import SideBatch, SideTokens
from pave.training.plan import stretches

# Official checkpoints: channels of their base, layers of their fusion.
OURS = {"favor-av", "favor-av-prefix", "avllm-mat", *(name for name in catalogue.names() if name.endswith("-playroom"))}
RELEASED = {
    "ScanQA 0.5B": (896, 2),
    "ScanQA 7B": (3584, 2),
    "SQA3D 7B": (3584, 2),
    "AVSD 7B": (3584, 2),
    "Music-AVQA 7B": (3584, 3),
    "enhanced video 7B": (3584, 2),
}
# Features (τ h w) for 32 key frames: as many steps, more (divisible or not), fewer.
FEATURES = [
    ("ScanQA 0.5B", (32, 12, 12)),
    ("ScanQA 0.5B", (20, 3, 3)),
    ("ScanQA 7B", (32, 6, 6)),
    ("SQA3D 7B", (64, 3, 3)),
    ("AVSD 7B", (33, 1, 1)),
    ("AVSD 7B", (1, 1, 1)),
    ("Music-AVQA 7B", (59, 1, 1)),
    ("Music-AVQA 7B", (7, 1, 1)),
    ("enhanced video 7B", (240, 2, 2)),
]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# a converted fusion is the official fusion


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], tuple[dict[str, Tensor], Patch]]:
    """The official tensors and the converted patch, by channels and layers of an official checkpoint."""
    made: dict[tuple[int, int], tuple[dict[str, Tensor], Patch]] = {}

    def get(dim: int, layers: int) -> tuple[dict[str, Tensor], Patch]:
        if (dim, layers) not in made:
            fusion = fusion_tensors(dim, layers)
            folder = tmp_path_factory.mktemp("released") / f"pave_{dim}_{layers}"
            # LoRA of one block suffices for the layout; the 3-layer checkpoint has a second block without LoRA.
            write_checkpoint(folder, fusion, lora_tensors(QWEN[dim], 1, 64), blocks=layers - 1)
            made[dim, layers] = fusion, convert(zipped(folder, "pave_lora"), "side", "the-features")
        return made[dim, layers]

    return get


def authors_update(weights: Mapping[str, Tensor], vision: Tensor, x: Tensor) -> Tensor:
    """The update of visual tokens (t s q) by side tokens (τ h w c) as in the official code: a literal reference in
    float64, one key frame and one head at a time."""
    w = {name: value.double() for name, value in weights.items()}

    def linear(name: str, value: Tensor) -> Tensor:
        return value @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def norm(name: str, value: Tensor) -> Tensor:
        centred = value - value.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]
        )

    def gelu(value: Tensor) -> Tensor:
        return value * (1 + torch.erf(value / math.sqrt(2))) / 2

    frames, layers = len(vision), len([name for name in w if name.endswith("attn.q_linear.weight")])
    m = linear("input_mapping", x.double())
    if len(m) < frames:
        size = (frames, *m.shape[1:3])
        m = F.interpolate(m.permute(3, 0, 1, 2)[None], size=size, mode="trilinear", align_corners=True)
        m = m[0].permute(1, 2, 3, 0)
    steps, longer = divmod(len(m), frames)
    updates, begin = [], 0
    for i in range(frames):
        end = begin + steps + (i < longer)
        own, begin = m[begin:end].flatten(0, 2), end
        z = linear("query_input_mapping", vision[i].double())
        for layer in (f"cross_attn_layers.{n}" for n in range(layers)):
            q, k = linear(f"{layer}.attn.q_linear", z), linear(f"{layer}.attn.k_linear", own)
            e = q.shape[-1] // 4
            heads = [slice(e * h, e * (h + 1)) for h in range(4)]
            z = z + torch.cat([(q[:, h] @ k[:, h].T / math.sqrt(e)).softmax(-1) @ k[:, h] for h in heads], -1)
            z = z + linear(f"{layer}.ffn.3", gelu(linear(f"{layer}.ffn.1", norm(f"{layer}.ffn.0", z))))
        updates.append(norm("output_norm", linear("output_mapping.2", gelu(linear("output_mapping.0", z)))))
    return torch.stack(updates)


def doubled(side: SideBatch) -> SideBatch:
    return replace(side, x=side.x.double())


@pytest.mark.parametrize(("checkpoint", "shape"), FEATURES)
def test_a_converted_fusion_computes_what_the_paper_computes(
    converted: Callable[..., Any], checkpoint: str, shape: tuple[int, int, int]
) -> None:
    dim, layers = RELEASED[checkpoint]
    weights, patch = converted(dim, layers)
    fusion = fusion_of(patch.config, "side")
    assert isinstance(fusion, Official)
    mine = {name.removeprefix("fusion.side."): value for name, value in patch.weights().items() if "fusion" in name}
    fusion.load_state_dict(mine)
    vision, x = random(32, 4, VISION), random(*shape, 1024, seed=1)
    side = align([SideTokens.regular(x, rate=1)], [torch.arange(32.0)], patch.config.senses["side"].align)
    with torch.no_grad():
        got = fusion.double()(vision[None].double(), torch.zeros(1, 32, 4, dim).double(), doubled(side))[0]
        rounded = fusion.float()(vision[None], torch.zeros(1, 32, 4, dim), side)[0]
    want = authors_update(weights, vision, x)
    assert want.abs().max() > 0.1
    assert (got - want).abs().max() <= 1e-12 * want.abs().max()
    assert (rounded - want).abs().max() <= 1e-5 * want.abs().max()  # 0.8 to 4.9e-6 were measured: rounding


@pytest.mark.parametrize("checkpoint", RELEASED)
def test_a_converted_patch_has_the_shapes_and_facts_of_the_checkpoint(
    converted: Callable[..., Any], checkpoint: str
) -> None:
    dim, layers = RELEASED[checkpoint]
    weights, patch = converted(dim, layers)
    config = patch.config
    dead = {f"cross_attn_layers.{i}.attn.v_linear.{part}" for i in range(layers) for part in ("weight", "bias")}
    kept = {f"fusion.side.{name}" for name in weights.keys() - dead}
    assert {name for name in patch.tensors if name.startswith("fusion.")} == kept
    assert {value.dtype for value in patch.tensors.values()} == {torch.bfloat16}
    size = sum(value.numel() for name, value in patch.tensors.items() if name in kept)
    dead_values = layers * (512 * 512 + 512)
    assert size == {(896, 2): 6_235_776, (3584, 2): 8_996_352, (3584, 3): 10_833_920}[dim, layers] - dead_values
    base = config.base
    assert (base.dim, base.vision_dim, base.tokens_per_frame, base.frames) == (dim, 1152, 196, 32)
    assert (base.repo, base.fingerprint) == ("lmms-lab/llava-onevision-qwen2-7b-ov", "")
    assert config.fusion.layers == layers and config.newline == "grid" and config.licence == LICENCE
    assert config.lora is not None and (config.lora.r, config.lora.lora_alpha, config.lora.scaling) == (64, 16, 0.25)
    names = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    paths = {f"layers.0.{'self_attn' if len(name) == 6 else 'mlp'}.{name}" for name in names}
    assert set(config.lora.target_modules) == (names if layers == 2 else paths), "short names if all blocks have LoRA"


def test_optional_config_keys_do_not_change_the_converted_patch(released: Callable[..., Path], patch: Patch) -> None:
    folder = released()
    assert patch.config.lora is not None
    change_json(folder / CONFIG, mm_patch_merge_type="spatial_unpad", mm_spatial_pool_mode="bilinear")
    for targets in (sorted(patch.config.lora.target_modules), "all-linear"):
        change_json(folder / PEFT_CONFIG, target_modules=targets)
        assert convert(folder, "audio", HEARING, name=patch.config.name).sha256 == patch.sha256


# a converted LoRA is the official LoRA


@pytest.fixture(scope="module")
def patch(tmp_path_factory: pytest.TempPathFactory) -> Patch:
    """A small checkpoint, converted."""
    pairs = lora_tensors(SIZES, BLOCKS, 4)
    folder = write_checkpoint(
        tmp_path_factory.mktemp("tiny") / "pave_lora", fusion_tensors(**TINY), pairs, blocks=BLOCKS
    )
    return convert(zipped(folder), "audio", HEARING, name="audio-avsd")


@pytest.fixture
def seeing(tokenizer: PreTrainedTokenizerFast) -> PatchedModel:
    """A small base in float64, with as many visual tokens per key frame as a real one."""
    return PatchedModel(make_base(tokenizer, torch.float64, side=378))


def with_features(model: PatchedModel, patch: Patch, x: Tensor) -> ClipFeatures:
    """Features of a clip, with given side tokens."""
    seen = model.encode([make_clip(frames=2)], [])[0]
    return replace(seen, sides={patch.config.senses["audio"].preprocessing: SideTokens.regular(x, rate=1)})


def test_a_converted_patch_gives_the_logits_of_the_official_model(
    seeing: PatchedModel, patch: Patch, released: Callable[..., Path], tokenizer: PreTrainedTokenizerFast
) -> None:
    """Reference: Qwen2 with the adapter loaded by PEFT, on visual rows of the paper's formula, with a newline after
    each of the 14 rows of a key frame."""
    report = seeing.apply_patch(patch)
    assert report.base_match.startswith("unknown")
    assert report.lora_params == sum(value.numel() for value in lora_tensors(SIZES, BLOCKS, 4).values())
    sound = random(3, 1, 1, 24)
    features = with_features(seeing, patch, sound)
    before, behind = seeing.host.prompt("Well?")
    bare: Any = make_base(tokenizer, torch.float64, side=378).model
    theirs: Any = Qwen2ForCausalLM(bare.config.text_config)
    theirs.model, theirs.lm_head = bare.model.language_model, bare.lm_head
    with torch.no_grad():
        first, last = (theirs.model.embed_tokens(torch.tensor(ids)) for ids in (before, behind))
        update = authors_update(fusion_tensors(**TINY), features.vision, sound)
        grid = (features.tokens + update).view(2, 14, 14, 64)
        rows = torch.cat([grid, bare.model.image_newline.expand(2, 14, 1, 64)], 2).view(-1, 64)
        theirs = PeftModel.from_pretrained(theirs, str(released())).double().eval()
        want = theirs(inputs_embeds=torch.cat([first, rows, last])[None]).logits[0]
        got = seeing.forward(seeing.prepare([features], ["Well?"])).logits[0]
        plain = seeing.forward(seeing.prepare([features], ["Well?"], patches=[])).logits[0]
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()
    assert (got[-1] - plain[-1]).abs().max() > 0.01 * want.abs().max()


# by the name of the catalogue


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer() as running, running.client(tmp_path / "cache"):
        yield running


def narrow(dim: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A fusion of few channels inside and a LoRA of low rank, for a base of so many channels."""
    return fusion_tensors(dim, 2, vision=48, width=32), lora_tensors(QWEN[dim], 1, 8)


LACKING = pytest.mark.filterwarnings("ignore:.*pave weights get")


@LACKING
def test_a_catalogue_name_downloads_the_official_zip_and_caches_the_conversion(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (entry,) = catalogue.recipe("audio-avsd").released
    made = zipped(write_checkpoint(tmp_path / "avsd", *narrow(3584), blocks=1))
    repo = server.create(entry.repo, {entry.file: made.read_bytes()})
    with pytest.warns(
        UserWarning, match=r"audio-avsd: .*CC-BY-NC-SA-4.0, 4.8 GB, .* `pave weights get imagebind-audio`"
    ):
        first = locate("audio-avsd", dim=entry.dim)
    assert f"converted from the official {entry.file}; licence: {LICENCE}" in first.remark
    assert first.source == f"{entry.repo}@{repo.branches['main'][:12]}"
    patch = first.load()
    assert patch.config.name == "audio-avsd" and patch.config.base.dim == 3584 and patch.config.licence == LICENCE
    assert patch.config.senses["audio"] == load_encoder("imagebind-audio", channel="first").spec.facts("index")
    assert patch.config.newline == "grid"
    fetched = len(server.asked("GET", "*.zip"))
    assert locate("audio-avsd", dim=entry.dim).path == first.path and len(server.asked("GET", "*.zip")) == fetched
    with pytest.raises(PatchNotFound, match="for a base of 3584 channels, this one has 896"):
        locate("audio-avsd", dim=896)
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "offline" in locate("audio-avsd", dim=entry.dim).remark
        shutil.rmtree(Path(constants.HF_HUB_CACHE))
        kept = locate("audio-avsd", dim=entry.dim)
        assert kept.path == first.path and "using the cached conversion" in kept.remark
    first.path.write_bytes(first.path.read_bytes()[:-1])
    with pytest.raises(PatchDamaged, match="deleted"):
        first.load()
    assert locate("audio-avsd", dim=entry.dim).load().sha256 == patch.sha256
    repo.commit({"notes.txt": b"another commit"})
    assert locate("audio-avsd", dim=entry.dim).path != first.path


@LACKING
def test_the_base_or_the_command_decides_between_two_sizes(
    server: HubServer,
    command: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
) -> None:
    entries = catalogue.recipe("3d-scanqa").released
    files = {}
    for entry in entries:
        folder = write_checkpoint(tmp_path / f"{entry.dim}", *narrow(entry.dim), blocks=1)
        files[entry.file] = zipped(folder).read_bytes()
    server.create(entries[0].repo, files)
    for entry in entries:
        assert locate("3d-scanqa", dim=entry.dim).load().config.base.dim == entry.dim
    with pytest.raises(PatchNotFound, match="896 channels or 3584 channels, and no base is given"):
        locate("3d-scanqa")
    small = tmp_path / "small.safetensors"
    for words, expected in (
        (("info", "3d-scanqa"), "tokens, dim 896"),
        (("verify", "3d-scanqa"), "3d-scanqa: ok"),
        (("pull", "3d-scanqa", "--out", tmp_path / "out"), "sha256"),
        (("push", "3d-scanqa", "you/scans", "--dry-run", "--uncertified"), "you/scans"),
        (("shrink", "3d-scanqa", small), str(small)),
    ):
        code, _, err = command("patch", *words)
        assert code and "no base is given; choose with --dim 896 or --dim 3584" in err
        code, out, err = command("patch", *words, "--dim", 896)
        assert code == 0 and expected in out, err
    assert Patch.load(small).config.base.dim == 896


def test_apply_says_which_weights_are_missing(
    seeing: PatchedModel, patch: Patch, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path))
    spec = load_encoder("imagebind-audio", channel="first").spec
    weights = fusion_tensors(**{**TINY, "side": 1024})
    shapes = {f"fusion.audio.{name}": each for name, each in weights.items() if ".v_linear." not in name}
    tensors = {**{n: each for n, each in patch.tensors.items() if n.startswith("lora.")}, **shapes}
    config = patch.config.model_copy(update={"senses": {"audio": spec.facts("index")}})
    assert "4.8 GB, of which 345 MB are fetched and kept; get them with `pave weights get" in str(
        seeing.apply_patch(Patch(config, tensors))
    )
    seeing.remove_patch(config.name)
    monkeypatch.setenv("PAVE_IMAGEBIND", "/somewhere.pth")
    assert "pave weights" not in str(seeing.apply_patch(Patch(config, tensors)))


@LACKING
def test_errors_on_the_way_name_the_requested_patch(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (entry,) = catalogue.recipe("audio-avsd").released
    with (
        monkeypatch.context() as offline,
        pytest.raises(PatchNotFound, match=r"^audio-avsd: .* \(offline\); go online"),
    ):
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        locate("audio-avsd")
    server.create(entry.repo, {entry.file: b"no zip"})
    with pytest.raises(PatchDamaged, match=rf"^audio-avsd: .*{entry.file} is not a zip"):
        locate("audio-avsd")
    weights = fusion_tensors(**{**TINY, "side": 1024}), lora_tensors(SIZES, BLOCKS, 4)
    made = zipped(write_checkpoint(tmp_path / "made", *weights, blocks=BLOCKS))
    server.create(entry.repo, {entry.file: made.read_bytes()})
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "file"))
    with pytest.raises(PatchError, match=r"^audio-avsd: .*file/pave/.* cannot be written"):
        locate("audio-avsd")


def test_a_model_applies_an_official_checkpoint_by_name_and_reports_its_source(
    server: HubServer,
    seeing: PatchedModel,
    released: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a catalogue with a checkpoint for the small base of the tests."""
    entry = catalogue.folder_of("audio-avsd") / "patch.yaml"
    (tmp_path / "catalogue" / "audio-avsd").mkdir(parents=True)
    text = entry.read_text().replace("dim: 3584", "dim: 64").replace("imagebind-audio", HEARING)
    (tmp_path / "catalogue" / "audio-avsd" / "patch.yaml").write_text(text)
    monkeypatch.setattr(catalogue, "folder", lambda: tmp_path / "catalogue")
    (official,) = catalogue.recipe("audio-avsd").released
    server.create(official.repo, {official.file: zipped(released()).read_bytes()})
    report = seeing.apply_patch("audio-avsd")
    assert report.name == "audio-avsd" and report.source.startswith(f"{official.repo}@")
    assert any(LICENCE in remark for remark in report.remarks) and report.base_match.startswith("unknown")


def test_nothing_is_fetched_for_a_base_of_another_family(server: HubServer) -> None:
    (entry,) = catalogue.recipe("audio-avsd").released
    server.create(entry.repo, {entry.file: b"a zip"})
    with pytest.raises(PatchMismatch, match=r"^audio-avsd: was released for llava_onevision, this base is qwen2_vl; "):
        locate("audio-avsd", dim=entry.dim, model_type="qwen2_vl")
    assert not server.asked("GET", "*") and not server.asked("HEAD", "*")


def test_every_official_checkpoint_is_in_the_catalogue() -> None:
    """The zips linked from the official README."""
    recipes = [entry.recipe for entry in catalogue.list_patches()]
    found = {each.file: (recipe.name, each.dim, recipe.fusion.layers) for recipe in recipes for each in recipe.released}
    assert found == {
        "pave_scanqa_v5_1_3_3d_lora.zip": ("3d-scanqa", *RELEASED["ScanQA 0.5B"]),
        "pave_scanqa_v5_1_3_3d_lora_7B.zip": ("3d-scanqa", *RELEASED["ScanQA 7B"]),
        "pave_sqa3d_v5_1_3_3d_lora_7B_2epoch.zip": ("3d-sqa3d", *RELEASED["SQA3D 7B"]),
        "pave_5_1_3_lora_avsd_7B_imagebind.zip": ("audio-avsd", *RELEASED["AVSD 7B"]),
        "pave_v5_1_3_lora_music_avqa7B_2epoch_imagebind_3layers.zip": ("audio-music-avqa", *RELEASED["Music-AVQA 7B"]),
        "pave_v5_1_3_lora_7B.zip": ("highfps-video", *RELEASED["enhanced video 7B"]),
    }
    assert {each.repo for recipe in recipes for each in recipe.released} == {"zhuomingliu/PAVE"}


def test_the_recipes_of_the_papers_tasks_have_the_official_hyperparameters() -> None:
    """Those of the official scripts/*.sh and argument defaults, shared by all tasks. Lines are of the authors' code
    (dragonlzm/PAVE at ef6a93f), in libs/utils/train_utils.py unless a file is named."""
    theirs = [entry.recipe for entry in catalogue.list_patches() if entry.name not in OURS]
    assert len(theirs) == 7
    for recipe in theirs:
        assert recipe.lora == LoraConfig(r=64, lora_alpha=16, lora_dropout=0.05)  # lines 1026 to 1031
        # Lines 104 to 840; in libs/model/multimodal_encoder/, info_aggregator.py from line 65 (the head) and blocks.py,
        # line 143 (keys are the values).
        assert recipe.fusion == FusionConfig(
            kind="official",
            width=512,
            heads=4,
            layers=3 if recipe.name == "audio-music-avqa" else 2,
            values="shared",
            rope="off",
            head="norm",
            precision="float32",
        )
        assert (recipe.frames, recipe.newline, recipe.base) == (32, "grid", "llava-hf/llava-onevision-qwen2-7b-ov-hf")
        assert {sense.align for sense in recipe.senses.values()} == {"index"}
        options = recipe.train
        assert (options.fusion_lr, options.lora_lr, options.warmup, options.weight_decay) == (2e-5, 2e-5, 0.03, 0)
        # Line 1034 and scripts/zero2.json; line 1036.
        assert (options.max_grad_norm, options.seed, options.dtype) == (0.1, 42, "bfloat16")
        assert (options.mean_over, options.gradient_checkpointing) == ("tokens", True), "of Hugging Face's Qwen2"
        assert (options.schedule, options.betas) == ("cosine", (0.9, 0.999)), "those of Hugging Face's adamw_torch"
        assert (options.keep, options.gate) == (0, False), "they do nothing of the kind"


# Of the paper and its supplement: epochs; clips; how many of them have the 32 samples of an optimiser step; and the
# steps that this makes.
TRAINED = {
    "audio-avsd": (1, 7_659, 16, 479),  # a clip is two samples of five turns
    "audio-avqa": (2, 40_425, 32, 2_527),
    "3d-scanqa": (1, 562, 1, 562),  # all questions of a scene, about 45
    "3d-sqa3d": (2, 518, 1, 1_036),
    "highfps-video": (1, 57_000, 16, 3_563),  # 114,000 questions
    "multiview-egoexo": (2, 1_656, 32, 104),
}


@pytest.mark.parametrize("name", TRAINED)
def test_recipes_train_as_long_as_the_paper_says(name: str) -> None:
    epochs, clips, batch, steps = TRAINED[name]
    options = catalogue.recipe(name).train
    assert (options.epochs, options.batch) == (epochs, batch)
    assert stretches(options, clips)[-1].end == steps
    assert catalogue.recipe("audio-music-avqa").train.epochs == 2


# a patch whose encoder is not installed


def test_without_its_encoder_a_patch_reads_features_only(seeing: PatchedModel, patch: Patch) -> None:
    report = seeing.apply_patch(patch)
    assert any("no encoder 'their-ears'" in remark for remark in report.remarks)
    with pytest.raises(EncoderError, match="no encoder 'their-ears'"):
        seeing.ask(make_clip(frames=2), "Well?")
    assert seeing.ask(make_clip(frames=2), "Well?", patches=[]).patches == ()
    assert seeing.prepare([with_features(seeing, patch, random(3, 24))], ["Well?"]).uses[0].sensing.all()
    with pytest.raises(SignalError, match="have no tokens of their-ears"):
        seeing.prepare(seeing.encode([make_clip(frames=2)], []), ["Well?"])


def test_an_installed_encoder_provides_its_facts() -> None:
    spec = load_encoder("logmel").spec
    assert _facts(Path("x.zip"), "audio", "logmel", 64, {}) == _facts(Path("x.zip"), "audio", spec, 64, {})
    assert _facts(Path("x.zip"), "audio", spec, 64, {}) == spec.facts("index")
    with pytest.raises(PatchMismatch, match=r"x.zip: its fusion reads 24 channels, logmel outputs 64"):
        _facts(Path("x.zip"), "audio", "logmel", 24, {})


# files


def test_the_command_converts_a_folder_with_a_pickled_lora_to_the_bytes_of_the_zip(
    command: Callable[..., tuple[int, str, str]],
    released: Callable[..., Path],
    patch: Patch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    nested = released("Theirs/checkpoint", pickled_lora=True).parent
    words = ["--sense", "audio=their-ears", "--name", "audio-avsd"]
    code, out, err = command("patch", "convert", nested, *words)
    assert code == 0 and "no encoder 'their-ears'" in err
    lines = ("their-ears, 24 channels", "dim 64", "width 32, 4 heads, 2 layers", "r=4, alpha=16", LICENCE)
    assert all(line in out for line in lines)
    written = patch.save(tmp_path / "zip.safetensors").read_bytes()
    assert Path("audio-avsd.safetensors").read_bytes() == written and str(tmp_path).encode() not in written
    back = Patch.load("audio-avsd.safetensors")
    assert back.config == patch.config and all(torch.equal(back.tensors[n], t) for n, t in patch.tensors.items())


@pytest.mark.parametrize("inside", ["", ".", "a/b", "./checkpoints/pave_avsd", "a/b/c/d/e/f/g/h", "work/con. /x"])
def test_a_checkpoint_is_found_at_any_depth_among_the_litter_of_other_systems(
    released: Callable[..., Path], tmp_path: Path, inside: str
) -> None:
    source = zipped(folder := released(), inside)
    with zipfile.ZipFile(source, "a") as archive:
        for litter in ("__MACOSX", f"__MACOSX/of/{inside}", ".git", "notes"):
            archive.writestr(f"{litter}/._{FUSION}", b"Mac OS X")
            archive.writestr(f"{litter}/.DS_Store", b"Bud1")
        archive.writestr(f"__MACOSX/{FUSION}", b"x")
        archive.writestr("notes/config.json", b"of something else")
    with zipfile.ZipFile(source) as archive:
        archive.extractall(tmp_path / "unpacked")
    want = {name: (folder / name).read_bytes() for name in (FUSION, PEFT_CONFIG, PEFT_WEIGHTS, CONFIG)}
    with official._unpacked(source) as found:
        assert {file.name: file.read_bytes() for file in found.iterdir()} == want
    with official._unpacked(tmp_path / "unpacked") as found:
        assert found.resolve() == (tmp_path / "unpacked" / inside).resolve()


def test_a_checkpoint_with_others_below_it_is_itself(released: Callable[..., Path]) -> None:
    """As training leaves them: NAME/ and NAME/checkpoint-2000/."""
    folder = released()
    (folder / "checkpoint-2000").mkdir()
    shutil.copy(folder / FUSION, folder / "checkpoint-2000")
    with official._unpacked(folder) as found:
        assert found == folder


def test_the_command_accepts_encoder_options(
    command: Callable[..., tuple[int, str, str]],
    released: Callable[..., Path],
    tmp_path: Path,
) -> None:
    source, out = released(), tmp_path / "out.safetensors"
    code, *_ = command("patch", "convert", source, out, "--sense", "audio=logmel", "--option", "bands=24")
    facts = Patch.load(out).config.senses["audio"]
    assert code == 0 and facts == load_encoder("logmel", bands=24).spec.facts("index")
    geometry = ("patch", "convert", source, "--sense", "depth=rgbd-geometry")
    code, _, err = command(*geometry)
    assert code == 2 and "uses the vision tower of the base" in err and "--option preset=llava3d" in err
    code, _, err = command(*geometry, "--option", "preset=llava3d")
    assert code == 2 and "reads 24 channels, rgbd-geometry outputs 1024" in err
    code, _, err = command(*geometry, "--option", "preset")
    assert code == 2 and "is not key.sub=value" in err


def test_a_name_becomes_a_valid_file_name() -> None:
    assert named(Path("pave.zip"), "../Ears of mine") == "ears-of-mine"


def test_the_card_says_that_there_is_no_licence(patch: Patch) -> None:
    text = card(patch, "you/audio-avsd")
    assert "license: unknown\n" in text and f"| licence | {LICENCE} |" in text


def test_the_command_requires_an_encoder(
    command: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
) -> None:
    code, _, err = command("patch", "convert", tmp_path, tmp_path / "out", "--sense", "audio")
    assert code == 2 and "names no encoder; write SENSE=ENCODER" in err
