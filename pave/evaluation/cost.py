"""The cost of a patch, without loading weights: parameters, bytes, tokens, FLOPs, memory.

In: the config of a base, and a patch or a recipe; all modules are on the meta device. Out: a `Cost`, counted in two
ways. Honest: the matrix products that this library and its base compute. Paper: as the PAVE paper counts (LLM-Viewer's
formulas, Yuan et al., arXiv 2402.16363; for the fusion, the supplement of PAVE, arXiv 2503.19794).

t key frames, s visual tokens per key frame, k side tokens of a key frame's segment, n of them all
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pave.base import Host, last_again
from pave.config import RESAMPLED, PatchConfig, SenseFacts
from pave.encoder import Encoder, load_encoder, missing
from pave.errors import SignalError
from pave.evaluation.flops import Decoder, Flops, flops_of, fusion_flops, linear_weights
from pave.fusion.clock import Clock
from pave.fusion.qformer import Resampler
from pave.hub import catalogue
from pave.hub.locate import locate
from pave.loading.base import outline
from pave.patch import filenames
from pave.patch.attached import Attached
from pave.patch.base_match import base_match
from pave.patch.file import Patch, fusion_of
from pave.patch.file import outline as patch_outline
from pave.patch.peft import load_peft
from pave.training.setup import patch_config

RELEASED = torch.bfloat16  # of the official checkpoints
TEXT = 40  # tokens of a question with its template, as in the PAVE paper
SECONDS = 60.0  # assumed length of a clip whose side tokens and key-frame times are not given


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Bytes that stay allocated while a question is answered; activations are not counted."""

    base: int
    patch: int
    cache: int  # keys and values of the prompt
    features: int  # visual tokens before and after the projector

    @property
    def total(self) -> int:
        return self.base + self.patch + self.cache + self.features


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of one patch on one base, for one question about one clip."""

    base: str
    patch: str
    dtype: str
    resampler_params: int
    fusion_params: Mapping[str, int]  # by input: a sense, or the output of a resampler
    dead_params: Mapping[str, int]  # of v_linear, which the official release counts but never uses
    lora_params: int
    trained: bool  # False: a recipe without a patch file
    released: bool = False  # True: a recipe whose patch is converted from the official checkpoint
    file_bytes: int
    shrunk_bytes: int
    frames: int
    visual: int  # tokens, from here on
    newlines: int
    around: (
        int | None
    )  # of the text that the base puts around key frames; None: unknown, its tokenizer is not available
    beside: int  # side tokens in the prompt
    text: int
    side: Mapping[str, tuple[int, int, int]]  # steps, rows and columns of side tokens, by sense
    honest: Flops
    paper: Flops
    memory: MemoryUse

    @property
    def prompt(self) -> int:
        return self.visual + self.newlines + (self.around or 0) + self.beside + self.text

    @property
    def params(self) -> int:
        return self.resampler_params + sum(self.fusion_params.values()) + self.lora_params


def profile(
    base: str | Path,
    patch: str | Path,
    *,
    frames: int | None = None,
    text: int = TEXT,
    side_steps: Sequence[int] = (),
    dtype: str = "auto",
) -> Cost:
    """The cost of `patch` (anything that `locate` accepts, or a recipe) on `base`; only the base's config is read."""
    if _untrained(patch):
        recipe = catalogue.recipe(patch)
        host = outline(base, dtype=dtype, frames=recipe.frames if frames is None else frames)
        encoders = {sense: load_encoder(each.encoder, **each.options).on(host) for sense, each in recipe.senses.items()}
        config = patch_config(recipe, host, encoders)
        released = any(each.dim == host.dim for each in recipe.released) and host.model_type == filenames.OFFICIAL_BASE
        tensors = Attached(config, host, blank=True).state_dict()
        if released:  # a converted checkpoint keeps the dtype of its file
            tensors = {name: tensor.to(RELEASED) for name, tensor in tensors.items()}
        blank = Patch(config, tensors, source=str(patch))
        return replace(cost_of(host, blank, text=text, side_steps=side_steps), released=released)
    host = outline(base, dtype=dtype, frames=frames)
    place = locate(patch, dim=host.dim, model_type=host.model_type)
    if filenames.is_peft(place.path):
        found, file = load_peft(place.path, host), place.path / filenames.PEFT_WEIGHTS
    else:
        found, file = patch_outline(place.path, place.source), place.path
    return cost_of(host, found, text=text, side_steps=side_steps, file_bytes=file.stat().st_size)


def cost_of(
    host: Host, patch: Patch, *, text: int = TEXT, side_steps: Sequence[int] = (), file_bytes: int | None = None
) -> Cost:
    """The same for a base and a patch in memory; tensors on the meta device suffice. side_steps: time steps of each
    sense, in the patch's order; default: those of a 60 s clip. file_bytes: of the patch's file, if it has one.
    """
    base_match(patch.config, host, patch.source, strict=False)
    blank = Patch(patch.config, {name: tensor.to("meta") for name, tensor in patch.tensors.items()})
    attached = Attached(patch.config, host, blank=True)
    attached.load(blank.weights(), patch.source)
    decoder, combine, resampler = Decoder.of(host), patch.config.fusion.combine, attached.resampler
    t, s = -(-host.frames // host.pair), host.tokens_per_frame
    side = _side(patch, host, t, side_steps)
    read, resampling = (side, 0) if resampler is None else _resampled(resampler, patch.config, host, side)
    resampler_params = 0 if resampler is None else _numbers(resampler)
    fusion_params = {name: _numbers(attached.fusion[name]) for name in read}
    lora_params = _numbers(attached.lora) if attached.lora else 0
    beside = 0
    if combine != "add":  # a key frame without a side token of its own borrows one
        borrowed = t if combine == "interleave" and resampler is None else 0
        beside = sum(max(steps, borrowed) * h * w for steps, h, w in read.values())
    rows, visual, around = host.rows_of(t, patch.config.newline), t * s, _around(host)
    fusion, written, dead = {}, {}, {name: _dead(patch.config, name) for name in read}
    if attached.summary is not None:  # tokens of the patch stand in place of the visual ones
        rows = visual = t + s
        around, beside = 0, sum(min(patch.config.fusion.segments, steps) for steps, *_ in read.values())
        fusion["pictures"] = written["pictures"] = flops_of(
            attached.summary, torch.empty(t, s, host.dim, device="meta")
        )
        fusion_params["pictures"], dead["pictures"] = _numbers(attached.summary), 0
    if attached.marker is not None:
        fusion_params["marker"], dead["marker"] = _numbers(attached.marker), 0
        beside += 0 if attached.adds else 1
    prompt, short = rows + (around or 0) + beside + text, visual + beside + text
    for name, (steps, h, w) in read.items():
        # Even segments. Aligned by time, the segments at the ends are shorter and the others longer, by one part in t.
        n, padded = steps * h * w, math.ceil(steps / t) * h * w
        fusion[name] = fusion_flops(attached.fusion[name], t, s, n, padded)
        written[name] = fusion_flops(attached.fusion[name], t, s, n, n / t, paper=True)
    each = host.dtype.itemsize
    return Cost(
        base=host.repo or host.model_type,
        patch=patch.config.name,
        dtype=str(host.dtype).removeprefix("torch."),
        resampler_params=resampler_params,
        fusion_params=fusion_params,
        dead_params=dead,
        lora_params=lora_params,
        trained=file_bytes is not None,
        file_bytes=file_bytes or blank.file_bytes,
        shrunk_bytes=blank.shrink().file_bytes,
        frames=t,
        visual=visual,
        newlines=rows - visual,
        around=around,
        beside=beside,
        text=text,
        side=side,
        honest=Flops(
            vision=_vision(host),
            encoders={sense: _encoder(patch.config.senses[sense], host, steps) for sense, (steps, *_) in side.items()},
            language_model=decoder.products(prompt, pairs=prompt * (prompt + 1) // 2),
            head=decoder.head,
            resampler=resampling,
            fusion=fusion,
            lora=2 * prompt * lora_params,  # each number of A and B meets each token once
        ),
        paper=Flops(
            vision=0,
            encoders=dict.fromkeys(side),
            language_model=decoder.as_llm_viewer(short),
            head=decoder.head,
            resampler=resampling,
            fusion=written,
            lora=0,
        ),
        memory=MemoryUse(
            base=sum(parameter.nbytes for parameter in host.model.parameters()),
            patch=(resampler_params + sum(fusion_params.values())) * attached.precision.itemsize + lora_params * each,
            cache=2 * decoder.key_width * prompt * each,
            features=(host.vision_dim + host.dim) * t * s * each,
        ),
    )


def _side(patch: Patch, host: Host, frames: int, steps: Sequence[int]) -> dict[str, tuple[int, int, int]]:
    """Time steps, rows and columns of each sense's side tokens."""
    senses = patch.config.senses
    if unknown := [facts.encoder for facts in senses.values() if missing(facts.encoder)]:
        if patch.config.resampler is not None:
            cause = (
                f"the cost of a resampler depends on the token rate of {unknown[0]}, an encoder that is not installed"
            )
            raise SignalError(f"{cause}; name its folder in PAVE_ENCODERS")
        if not steps:
            cause = f"{patch.source}: its encoder {unknown[0]} is not installed, so the number of its tokens is unknown"
            raise SignalError(f"{cause}; pass --side-steps")
    if not steps:
        rates = [load_encoder(facts.encoder, **facts.options).on(host).spec.rate for facts in senses.values()]
        steps = [math.ceil(rate * SECONDS) or frames for rate in rates]
    if len(steps) != len(senses) or min(steps, default=1) < 1:
        has = f"{patch.config.name} has {len(senses)} senses ({', '.join(senses) or 'none'})"
        raise SignalError(f"side_steps={list(steps)}: {has}; pass one integer >= 1 for each, in this order")
    return {sense: (count, *facts.grid) for count, (sense, facts) in zip(steps, senses.items(), strict=True)}


@torch.no_grad()
def _resampled(
    resampler: Resampler, config: PatchConfig, host: Host, side: Mapping[str, tuple[int, int, int]]
) -> tuple[dict[str, tuple[int, int, int]], int]:
    """Time steps, rows and columns of a resampler's output for these side tokens, and its FLOPs as counted by torch."""
    projected, seconds = 0, 0.0
    for sense, (steps, h, w) in side.items():
        facts = config.senses[sense]
        projected += 2 * steps * h * w * linear_weights(resampler.project[sense])
        rate = load_encoder(facts.encoder, **facts.options).on(host).spec.rate
        seconds = max(seconds, steps / rate if rate else SECONDS)
    shape = resampler.config
    count = math.ceil(seconds * shape.rate)
    clock = Clock(0, count, shape.rate, shape.window, shape.stride or shape.window, {})
    x = torch.empty(*clock.steps.shape, shape.slots, resampler.width, device="meta", dtype=resampler.position.dtype)
    with FlopCounterMode(display=False) as counter:
        made, _ = resampler.look(x, clock)
    return {RESAMPLED: (len(made), made.shape[1], 1)}, projected + counter.get_total_flops()


def _around(host: Host) -> int | None:
    """Tokens of the text around the key frames of a 60 s clip; None if the tokenizer is not available."""
    times = last_again(torch.linspace(0, SECONDS, host.frames), host.pair).view(-1, host.pair).mean(1).tolist()
    if not any(before or behind for before, behind in host.around(times)):
        return 0
    if not host.encode_text("0"):  # an outline without its checkpoint's tokenizer encodes any text as no tokens
        return None
    return len(host.visual_ids(times, "none")) - host.rows_of(len(times), "none")


def _vision(host: Host) -> int:
    """FLOPs of the vision tower and the projector."""
    frames = -(-host.frames // host.pair) * host.pair
    return flops_of(host.look, torch.empty(frames, 3, *host.size, device="meta", dtype=host.dtype))


def _encoder(facts: SenseFacts, host: Host, steps: int) -> int | None:
    """FLOPs of an encoder for these time steps, in whole passes of its network; 0 without a network, None if it is not
    installed or cannot be counted."""
    if missing(facts.encoder):
        return None
    encoder = load_encoder(facts.encoder, **facts.options).on(host)
    found = encoder.outline()
    if found is None:
        return 0 if type(encoder).network is Encoder.network else None
    run = found.run.to("meta").requires_grad_(False) if isinstance(found.run, nn.Module) else found.run
    return math.ceil(steps / found.steps - 1e-9) * flops_of(run, *found.inputs) or None


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _dead(config: PatchConfig, sense: str) -> int:
    """Unused parameters that the official release has in this fusion: a v_linear even where values are the keys."""
    if config.fusion.values == "own":
        return 0
    own = config.model_copy(update={"fusion": config.fusion.model_copy(update={"values": "own"})})
    return _numbers(fusion_of(own, sense, blank=True)) - _numbers(fusion_of(config, sense, blank=True))


def _untrained(source: str | Path) -> bool:
    """Whether this is a recipe: a YAML file, or a folder or name with a recipe and no patch file. An official
    checkpoint need not be downloaded: its recipe determines the cost."""
    folder = catalogue.folder_of(str(source)) if catalogue.named(source) else Path(source)
    if os.path.isdir(folder):
        return (folder / "patch.yaml").is_file() and not (folder / filenames.WEIGHTS).exists()
    return folder.suffix in (".yaml", ".yml")
