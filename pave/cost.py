"""What a patch costs, before anything large is loaded: parameters, bytes, tokens, FLOPs, memory.

In: the config of a base, and a patch or a recipe; all modules lie on the meta device. Out: a `Cost`, counted in two
ways. Honest: the products of what this library and its base compute. Paper: as the authors count (LLM-Viewer's
formulas, Yuan et al., arXiv 2402.16363; the fusion's own as in the supplement of PAVE, arXiv 2503.19794).

t key frames, s visual tokens per key frame, k side tokens of a key frame's segment, n of them all
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pave import catalogue, hub
from pave.attached import Attached, base_match
from pave.base import Base, last_again
from pave.config import RESAMPLED, PatchConfig, SenseFacts
from pave.encoder import Encoder, load_encoder, missing
from pave.errors import BaseModelError, SignalError
from pave.fusion import Beside, Folded, Official
from pave.opening import outline
from pave.patch import Patch, fusion_of
from pave.patch import outline as patch_outline
from pave.peft_folder import load_peft
from pave.qformer import Resampler
from pave.sync import Clock
from pave.train import patch_config

TEXT = 40  # tokens of a question with its template, as the authors count
DECODER = ("hidden_size", "num_hidden_layers", "num_attention_heads")  # in the words of transformers
NOTES = {0: "no network", None: "not counted"}  # where the FLOPs of an encoder would stand
SECONDS = 60.0  # of a clip, where nobody says how many side tokens it has or when its key frames are

WORDS = """
  honest: matrix products, 2 operations per multiplication. Newlines are in the prompt, a token attends to those before
          it; a fusion takes its cheaper order, LoRA runs beside its layers, the head reads one token.
  paper:  the authors' way. No newlines, every token attends to every token; norms, softmax, additions and activations
          count; each layer of a fusion has an output projection; no vision tower, no encoder; LoRA is merged. A
          resampler, which they do not have, counts as it is.""".splitlines()


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Of one prefill, as somebody counts them; 0: not counted."""

    vision: int  # vision tower and projector
    encoders: Mapping[str, int | None]  # by sense; 0: it has no network, None: nobody can say
    language_model: int
    head: int
    resampler: int
    fusion: Mapping[str, int]  # by what it reads
    lora: int

    @property
    def total(self) -> int:
        patch = self.resampler + sum(self.fusion.values()) + self.lora
        return (
            self.vision + sum(count or 0 for count in self.encoders.values()) + self.language_model + self.head + patch
        )


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that stay while a question is answered."""

    base: int
    patch: int
    cache: int  # keys and values of the prompt
    features: int  # visual tokens before and after the projector

    @property
    def total(self) -> int:
        return self.base + self.patch + self.cache + self.features


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one patch on one base, for one question about one clip."""

    base: str
    patch: str
    dtype: str
    resampler_params: int
    fusion_params: Mapping[str, int]  # by what it reads: a sense, or what a resampler makes of all
    dead_params: Mapping[str, int]  # of the authors' v_linear, which they count and nothing reads
    lora_params: int
    trained: bool  # False: a recipe, whose file is not here
    released: bool = False  # and is converted from the authors' checkpoint, rather than trained
    file_bytes: int
    shrunk_bytes: int
    frames: int
    visual: int  # tokens, from here on
    newlines: int
    around: int | None  # of the base's own words around key frames; None: not counted, its tokenizer is not here
    beside: int  # side tokens in the prompt
    text: int
    side: Mapping[str, tuple[int, int, int]]  # steps, rows and columns of side tokens, by sense
    honest: Flops
    paper: Flops
    memory: Memory

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
    """What `patch` (whatever `hub.locate` knows, or a recipe) costs on `base`, of which only the config is read."""
    if _untrained(patch):
        recipe = catalogue.recipe(patch)
        host = outline(base, dtype=dtype, frames=recipe.frames if frames is None else frames)
        encoders = {sense: load_encoder(each.encoder, **each.options).on(host) for sense, each in recipe.senses.items()}
        config = patch_config(recipe, host, encoders)
        blank = Patch(config, Attached(config, host, blank=True).state_dict(), source=str(patch))
        released = any(each.dim == host.dim for each in recipe.released) and host.model_type == catalogue.OFFICIAL_BASE
        return replace(cost_of(host, blank, text=text, side_steps=side_steps), released=released)
    host = outline(base, dtype=dtype, frames=frames)
    place = hub.locate(patch, dim=host.dim, model_type=host.model_type)
    if catalogue.is_peft(place.path):
        found, file = load_peft(place.path, host), place.path / catalogue.PEFT_WEIGHTS
    else:
        found, file = patch_outline(place.path, place.source), place.path
    return cost_of(host, found, text=text, side_steps=side_steps, file_bytes=file.stat().st_size)


def cost_of(
    base: Base, patch: Patch, *, text: int = TEXT, side_steps: Sequence[int] = (), file_bytes: int | None = None
) -> Cost:
    """The same of a base and a patch that are open; their tensors need no values. side_steps: time steps of each sense,
    in the patch's order; without them, those of a clip of one minute. file_bytes: of the patch's file, if it has one.
    """
    base_match(patch.config, base, patch.source, strict=False)
    blank = Patch(patch.config, {name: tensor.to("meta") for name, tensor in patch.tensors.items()})
    attached = Attached(patch.config, base, blank=True)
    attached.load(blank.weights(), patch.source)
    decoder, combine, resampler = Decoder.of(base), patch.config.fusion.combine, attached.resampler
    t, s = -(-base.frames // base.pair), base.tokens_per_frame
    side = _side(patch, base, t, side_steps)
    read, resampling = (side, 0) if resampler is None else _resampled(resampler, patch.config, base, side)
    resampler_params = 0 if resampler is None else _numbers(resampler)
    fusion_params = {name: _numbers(attached.fusion[name]) for name in read}
    lora_params = _numbers(attached.lora) if attached.lora else 0
    beside = 0
    if combine != "add":  # a key frame without a side token of its own borrows one
        borrowed = t if combine == "interleave" and resampler is None else 0
        beside = sum(max(steps, borrowed) * h * w for steps, h, w in read.values())
    rows = base.rows_of(t, patch.config.newline)
    around = _around(base)
    prompt, short = rows + (around or 0) + beside + text, t * s + beside + text
    fusion, written = {}, {}
    for name, (steps, h, w) in read.items():
        # Split evenly; aligned by time, segments at the ends are shorter and the others longer, by one part in t.
        n, padded = steps * h * w, math.ceil(steps / t) * h * w
        fusion[name] = fusion_flops(attached.fusion[name], t, s, n, padded)
        written[name] = fusion_flops(attached.fusion[name], t, s, n, n / t, paper=True)
    each = base.dtype.itemsize
    return Cost(
        base=base.repo or base.model_type,
        patch=patch.config.name,
        dtype=str(base.dtype).removeprefix("torch."),
        resampler_params=resampler_params,
        fusion_params=fusion_params,
        dead_params={name: _dead(patch.config, name) for name in read},
        lora_params=lora_params,
        trained=file_bytes is not None,
        file_bytes=file_bytes or blank.file_bytes,
        shrunk_bytes=blank.shrink().file_bytes,
        frames=t,
        visual=t * s,
        newlines=rows - t * s,
        around=around,
        beside=beside,
        text=text,
        side=side,
        honest=Flops(
            vision=_vision(base),
            encoders={sense: _encoder(patch.config.senses[sense], base, steps) for sense, (steps, *_) in side.items()},
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
        memory=Memory(
            base=sum(parameter.nbytes for parameter in base.model.parameters()),
            patch=(resampler_params + sum(fusion_params.values())) * attached.precision.itemsize + lora_params * each,
            cache=2 * decoder.key_width * prompt * each,
            features=(base.vision_dim + base.dim) * t * s * each,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """What a language model's FLOPs depend on. Each is two per multiplication of a matrix product, biases left out."""

    weights: int  # that one token meets: all matrices but embeddings and the head, and of experts those it is sent to
    head: int  # FLOPs of one token's logits
    hidden: int
    layers: int
    heads: int
    width: int  # channels of all heads of all layers together
    key_width: int  # of all their key heads

    @classmethod
    def of(cls, base: Base) -> Decoder:
        lm, head = base.language_model, base.model.get_output_embeddings()
        config = getattr(lm, "config", None)
        sizes: dict[str, Any] = {name: getattr(config, name, None) for name in DECODER}
        lacking = [name for name, size in sizes.items() if not isinstance(size, int)]
        width, key_width = (_channels(lm, name) for name in ("q_proj", "k_proj"))
        met = getattr(config, "num_experts_per_tok", None) or getattr(config, "top_k_experts", None) or 0
        lacking += [] if width else ["q_proj"]
        lacking += [] if met or not _matrices(lm, 3) else ["num_experts_per_tok"]
        if head is None or lacking:
            cause = f"its language model has no {', '.join(lacking) or 'head'}"
            raise BaseModelError(f"{base.model_type}: {cause}, so nobody can say what it costs; give another base")
        hidden, layers, heads = sizes.values()
        experts = sum(met * each.numel() // len(each) for each in _matrices(lm, 3))
        return cls(
            weights=sum(each.numel() for each in _matrices(lm, 2)) + experts,
            head=2 * _linear(head),
            hidden=hidden,
            layers=layers,
            heads=heads,
            width=width,
            key_width=key_width,
        )

    def products(self, n: int, *, pairs: int) -> int:
        """Linear layers and attention for n tokens, of which `pairs` attend to each other."""
        return 2 * n * self.weights + 4 * pairs * self.width

    def as_llm_viewer(self, n: int) -> int:
        """Every token attends to every token; softmax takes 5 operations per score; two norms take 7 per number, two
        additions 1, an activation 2."""
        others = 5 * self.heads * n**2 + (2 * 7 + 2 * 1 + 2) * n * self.hidden
        return self.products(n, pairs=n**2) + self.layers * others


def fusion_flops(fusion: nn.Module, t: int, s: int, n: int, k: float, *, paper: bool = False) -> int:
    """Matrix products of a fusion for n side tokens, two per multiplication. k counts padding, if padding shall count.

    paper: with one projection more, of what each layer has read; and never folded, but as the equations are written."""
    if isinstance(fusion, Beside):
        return 2 * n * _linear(fusion)
    assert isinstance(fusion, Folded | Official)
    width, placed = fusion.config.width, 0 if fusion.place is None else n * _linear(fusion.place)
    if isinstance(fusion, Folded):
        made = placed + n * (_linear(fusion.key) + _linear(fusion.value))
        folded = not paper and fusion.folds(s, k + 1)  # one for the null key
        return round(2 * (made + t * fusion.products(s, k + 1, folded=folded)))
    ask = fusion.query_input_mapping
    asked = 0 if ask is None else _linear(ask)
    answers = (2 if fusion.config.values == "own" else 1) * width * fusion.input_mapping.out_features
    layer = t * s * (6 if paper else 5) * width**2 + n * answers + 2 * t * s * k * width
    ends = placed + t * s * (asked + _linear(fusion.output_mapping)) + n * _linear(fusion.input_mapping)
    return round(2 * (ends + fusion.config.layers * layer))


def table(cost: Cost) -> str:
    """For people."""
    dead = sum(cost.dead_params.values())
    note = f"the paper's: with {dead:,} of a v_linear that nothing reads" if dead else ""
    lines = [f"{cost.patch} on {cost.base} ({cost.dtype}); no weights were loaded", ""]
    lines.append(_line("parameters", "here", "paper", indent=0))
    if cost.resampler_params:
        lines.append(_line("resampler", *[f"{cost.resampler_params:,}"] * 2))
    for sense, count in cost.fusion_params.items():
        lines.append(_line(f"fusion, {sense}", f"{count:,}", f"{count + cost.dead_params[sense]:,}"))
    lines.append(_line("LoRA", f"{cost.lora_params:,}", f"{cost.lora_params:,}"))
    lines.append(_line("trainable", f"{cost.params:,}", f"{cost.params + dead:,}", note))
    state = "" if cost.trained else " or so, once converted" if cost.released else " once trained"
    small = f"{cost.shrunk_bytes / 1e6:,.2f} MB after `pave patch shrink`"
    parts = [f"{cost.frames} key frames × {cost.visual // cost.frames} = {cost.visual:,} visual"]
    counts = {"newline": cost.newlines, "around them": cost.around, "side": cost.beside, "text": cost.text}
    parts += [f"{count:,} {name}" for name, count in counts.items() if count]
    lines += ["", f"file    {cost.file_bytes / 1e6:,.2f} MB{state}, {small}"]
    unknown = "; words around key frames: not counted, the tokenizer is not here" if cost.around is None else ""
    lines += [f"tokens  {' + '.join(parts)} = {cost.prompt:,}{unknown}", ""]
    unit, name = (1e12, "TFLOPs") if cost.honest.total > 1e11 else (1e9, "GFLOPs")
    lines.append(_line(f"{name} of a prefill", "honest", "paper", indent=0))
    rows = [
        ("vision, projector", cost.honest.vision, cost.paper.vision, "" if cost.honest.vision else "not counted"),
        *(
            (f"encoder, {sense}", counted, None, NOTES.get(counted, ""))
            for sense, counted in cost.honest.encoders.items()
        ),
        ("language model", cost.honest.language_model, cost.paper.language_model, ""),
        ("head", cost.honest.head, cost.paper.head, ""),
    ]
    tokens = {sense: f"{steps} × {h} × {w} side tokens" for sense, (steps, h, w) in cost.side.items()}
    if cost.resampler_params:
        rows.append(("resampler", cost.honest.resampler, cost.paper.resampler, ", ".join(tokens.values())))
    for name, counted in cost.honest.fusion.items():
        rows.append((f"fusion, {name}", counted, cost.paper.fusion[name], tokens.get(name, "")))
    rows.append(("LoRA", cost.honest.lora, cost.paper.lora, ""))
    rows.append(("total", cost.honest.total, cost.paper.total, ""))
    for label, honest, paper, words in rows:
        shown = (f"{count / unit:,.4f}" if count else "–" for count in (honest, paper))
        lines.append(_line(label, *shown, note=words))
    unit, name = (1e9, "GB") if cost.memory.total > 1e8 else (1e6, "MB")
    lines += [*WORDS, "", f"{name} of memory, without activations"]
    held = cost.memory
    for label, count in (
        ("base", held.base),
        ("patch", held.patch),
        ("keys and values", held.cache),
        ("visual features", held.features),
        ("total", held.total),
    ):
        lines.append(_line(label, f"{count / unit:,.3f}"))
    return "\n".join(lines)


def _line(label: str, here: str, paper: str = "", note: str = "", *, indent: int = 2) -> str:
    return f"{' ' * indent + label:20}{here:>14}{paper:>14}   {note}".rstrip()


def _side(patch: Patch, base: Base, frames: int, steps: Sequence[int]) -> dict[str, tuple[int, int, int]]:
    """Time steps, rows and columns of each sense's side tokens."""
    senses = patch.config.senses
    if unknown := [facts.encoder for facts in senses.values() if missing(facts.encoder)]:
        if patch.config.resampler is not None:
            cause = (
                f"a resampler costs so much a second, and how many tokens a second {unknown[0]} gives is not known here"
            )
            raise SignalError(f"{cause}; name the folder it lies in with PAVE_ENCODERS")
        if not steps:
            raise SignalError(f"how many tokens {unknown[0]} gives is not known here; say it with --side-steps")
    if not steps:
        rates = [load_encoder(facts.encoder, **facts.options).on(base).spec.rate for facts in senses.values()]
        steps = [math.ceil(rate * SECONDS) or frames for rate in rates]
    if len(steps) != len(senses) or min(steps, default=1) < 1:
        has = f"{patch.config.name} has {len(senses)} senses ({', '.join(senses) or 'none'})"
        raise SignalError(f"side_steps={list(steps)}: {has}; give one number of 1 or more for each, in this order")
    return {sense: (count, *facts.grid) for count, (sense, facts) in zip(steps, senses.items(), strict=True)}


@torch.no_grad()
def _resampled(
    resampler: Resampler, config: PatchConfig, base: Base, side: Mapping[str, tuple[int, int, int]]
) -> tuple[dict[str, tuple[int, int, int]], int]:
    """Time steps, rows and columns of what a resampler makes of so many side tokens, and its FLOPs, as torch counts."""
    projected, seconds = 0, 0.0
    for sense, (steps, h, w) in side.items():
        facts = config.senses[sense]
        projected += 2 * steps * h * w * _linear(resampler.project[sense])
        rate = load_encoder(facts.encoder, **facts.options).on(base).spec.rate
        seconds = max(seconds, steps / rate if rate else SECONDS)
    shape = resampler.config
    count = math.ceil(seconds * shape.rate)
    clock = Clock(0, count, shape.rate, shape.window, shape.stride or shape.window, {})
    x = torch.empty(*clock.steps.shape, shape.slots, resampler.width, device="meta", dtype=resampler.position.dtype)
    with FlopCounterMode(display=False) as counter:
        made, _ = resampler.look(x, clock)
    return {RESAMPLED: (len(made), made.shape[1], 1)}, projected + counter.get_total_flops()


def _around(base: Base) -> int | None:
    """Tokens of what the family writes around the key frames of a clip of one minute; None where nobody here knows."""
    times = last_again(torch.linspace(0, SECONDS, base.frames), base.pair).view(-1, base.pair).mean(1).tolist()
    if not any(before or behind for before, behind in base.around(times)):
        return 0
    if not base.encode_text("0"):  # an outline has no words where the tokenizer of its checkpoint is not here
        return None
    return len(base.visual_ids(times, "none")) - base.rows_of(len(times), "none")


def _vision(base: Base) -> int:
    """FLOPs of the vision tower and the projector."""
    frames = -(-base.frames // base.pair) * base.pair
    return _counted(base.look, torch.empty(frames, 3, *base.size, device="meta", dtype=base.dtype))


def _encoder(facts: SenseFacts, base: Base, steps: int) -> int | None:
    """FLOPs of an encoder for so many time steps, in whole passes of its network; 0 for one that has none, None for one
    that is not here or cannot be counted."""
    if missing(facts.encoder):
        return None
    encoder = load_encoder(facts.encoder, **facts.options).on(base)
    found = encoder.outline()
    if found is None:
        return 0 if type(encoder).network is Encoder.network else None
    run = found.run.to("meta").requires_grad_(False) if isinstance(found.run, nn.Module) else found.run
    return math.ceil(steps / found.steps - 1e-9) * _counted(run, *found.inputs) or None


@torch.no_grad()
def _counted(run: Callable[..., Any], *inputs: Tensor) -> int:
    """FLOPs of a network: torch counts while inputs without values pass through. 0 for networks that ask for values on
    the way, as vision towers for pictures of any size do."""
    try:
        with FlopCounterMode(display=False) as counter:
            run(*inputs)
    except (NotImplementedError, RuntimeError) as error:
        if "meta" not in str(error):  # torch says so where a value is asked for that is not there
            raise
        return 0
    return counter.get_total_flops()


def _linear(module: nn.Module) -> int:
    """Numbers in the matrices of all Linear layers."""
    return sum(each.weight.numel() for each in module.modules() if isinstance(each, nn.Linear))


def _matrices(module: nn.Module, dims: int) -> list[Tensor]:
    """All weights of so many dimensions that a token is multiplied with; in those of three, each row is an expert."""
    held = [each for each in module.modules() if not isinstance(each, nn.Embedding)]
    return [weight for each in held for weight in each.parameters(recurse=False) if weight.ndim == dims]


def _channels(module: nn.Module, name: str) -> int:
    """That all Linear layers of this name give together."""
    found = [each for path, each in module.named_modules() if path.endswith(f".{name}")]
    return sum(each.out_features for each in found if isinstance(each, nn.Linear))


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _dead(config: PatchConfig, sense: str) -> int:
    """How many parameters of this fusion the authors have besides: they keep a v_linear even where values are keys."""
    if config.fusion.values == "own":
        return 0
    own = config.model_copy(update={"fusion": config.fusion.model_copy(update={"values": "own"})})
    return _numbers(fusion_of(own, sense, blank=True)) - _numbers(fusion_of(config, sense, blank=True))


def _untrained(source: str | Path) -> bool:
    """Whether this is a recipe: a YAML file, or a folder or name with a recipe and no trained file. What its authors
    have released needs not be fetched: the recipe tells all."""
    folder = catalogue.find(str(source)) if catalogue.named(source) else Path(source)
    if folder.is_dir():
        return (folder / "patch.yaml").is_file() and not (folder / catalogue.WEIGHTS).exists()
    return folder.suffix in (".yaml", ".yml")
