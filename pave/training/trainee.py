"""The patch in training: its parameters, its optimiser, and its initialisation.

In: a `Setup` and a `Dataset`. Out: a `Trainee`, whose patch is calibrated on some clips.

t key frames, s visual tokens per key frame, d channels
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pave.base import Host
from pave.config import PatchConfig
from pave.model.inputs import ClipFeatures
from pave.model.patched import PatchedModel
from pave.patch.attached import Attached
from pave.patch.file import Patch
from pave.patch.lora import recompute_context
from pave.patch.report import FUSING
from pave.recipe import TrainConfig
from pave.training.dataset import Dataset
from pave.training.plan import stretches
from pave.training.setup import Setup, same_lora

CALIBRATION = 16  # clips for the statistics of an untrained patch
SHORT = 128  # tokens of a row


@dataclass(frozen=True)
class Trainee:
    """A patch in training."""

    attached: Attached
    parameters: dict[str, dict[str, nn.Parameter]]  # by part: "resampler", "fusion" and "lora"
    optimiser: torch.optim.Optimizer

    @classmethod
    def of(cls, setup: Setup, dataset: Dataset) -> Trainee:
        """Attach an untrained patch, or that of train.start_from, to the model, and create its optimiser."""
        recipe, model, options = setup.recipe, setup.model, setup.recipe.train
        torch.manual_seed(options.seed)
        steps = stretches(options, dataset.epoch)[-1].end
        config = setup.config(dataset.clips, dataset.questions, steps)
        tensors = None if setup.start is None else _begun(setup.start, config, model.host)
        attached = model.attach(recipe.name, config, tensors, trainable=True)
        if tensors is None:
            clips = dataset.sensing() or dataset.train
            calibrate(attached, [clip.features for clip in clips[:CALIBRATION]])
        setup.ranks.copy_from_first([*attached.state_dict().values()])
        checkpoint_activations(model, options.gradient_checkpointing)
        parameters = trainable(attached)
        groups = [{"params": list(own.values()), "part": part} for part, own in parameters.items() if own]
        optimiser = torch.optim.AdamW(groups, lr=0.0, betas=options.betas, weight_decay=options.weight_decay)
        trainee = cls(attached, parameters, optimiser)
        trainee.set_rates(options.parts[0], 1.0)
        return trainee

    def set_rates(self, options: TrainConfig, factor: float) -> float:
        """Set learning rates to a fraction of their peak; returns that of the first group. A part of the patch whose
        peak is 0 gets no gradient."""
        for group in self.optimiser.param_groups:
            peak = getattr(options, f"{group['part']}_lr")
            group["lr"] = peak * factor
            for parameter in group["params"]:
                parameter.requires_grad_(peak > 0)
        return self.optimiser.param_groups[0]["lr"]

    @property
    def all(self) -> list[nn.Parameter]:
        """All parameters, in the optimiser's order."""
        return [parameter for group in self.optimiser.param_groups for parameter in group["params"]]

    def clip_gradients(self, max_norm: float) -> torch.Tensor:
        """Clip the gradient of all parameters to `max_norm`; returns the norm before."""
        return torch.nn.utils.clip_grad_norm_(self.all, max_norm)


def _begun(start: Patch, config: PatchConfig, host: Host) -> dict[str, Tensor]:
    """The tensors of a patch to start from. A gate is fitted anew; a LoRA of another shape begins anew, and a carrier
    and markers that the patch does not have."""
    anew = ("gate.", *(() if same_lora(start.config.lora, config.lora) else ("lora.",)))
    anew += () if start.config.sound_alone and config.sound_alone else ("carrier.",)
    anew += tuple(f"marker.{each}" for each in {*start.config.marked} ^ {*config.marked})
    fresh = Attached(config, host).state_dict()
    kept = {name: value for name, value in start.weights().items() if not name.startswith(anew)}
    return {**kept, **{name: value for name, value in fresh.items() if name.startswith(anew)}}


def trainable(attached: Attached) -> dict[str, dict[str, nn.Parameter]]:
    """The parameters of a patch by part: "resampler", "fusion", with what stands for pictures, and "lora"."""
    parts: dict[str, dict[str, nn.Parameter]] = {"resampler": {}, "fusion": {}, "lora": {}}
    for path, parameter in attached.named_parameters():
        part = path.partition(".")[0]
        parts["fusion" if part in FUSING else part][path] = parameter
    return parts


def calibrate(attached: Attached, clips: Sequence[ClipFeatures]) -> None:
    """Calibrate the untrained fusions, and the resampler before them, on the tokens of some clips. Without a picture
    among them, scales stay at 1."""
    seen = [clip for clip in clips if not clip.blind]
    host = attached.host
    tokens = torch.cat([rearrange(clip.tokens, "t s d -> (t s) d") for clip in seen] or [torch.ones(1, host.dim)])
    tokens = tokens.float()
    if attached.carrier is not None and seen:
        vision = torch.cat([rearrange(clip.vision, "t s q -> (t s) q") for clip in seen])
        attached.carrier.calibrate(vision.float(), tokens)
    if attached.marker is not None and seen and not attached.adds:
        attached.marker.calibrate(tokens)
    side_tokens = {}
    for sense, facts in attached.config.senses.items():
        sides = [side for clip in clips if (side := clip.sides[facts.preprocessing]) is not None]
        valid = [side.x[side.valid] for side in sides] or [tokens.new_zeros(0, facts.dim)]
        side_tokens[sense] = torch.cat(valid).float()
    if attached.resampler is not None:
        attached.resampler.calibrate(side_tokens)
    for name in attached.fusion:
        fusion: Any = attached.fusion[name]
        fusion.calibrate(tokens, side_tokens.get(name, tokens.new_zeros(0, 0)))  # a resampler scales its own outputs


@contextmanager
def training(attached: Attached) -> Iterator[None]:
    """Within the block the patch is in training mode (dropout); the base stays in eval mode."""
    attached.train()
    try:
        yield
    finally:
        attached.eval()


def attention(host: Host, longest: int) -> AbstractContextManager[object]:
    """The kernels for steps whose clips have at most so many tokens with their questions (those that keep the base add
    some): plain products where torch's flash attention is slower. In bfloat16 on a CPU (torch 2.13, AMX) its forward
    and backward pass of 8 rows of 88 tokens take 37 ms, plain products 12 ms; of 256 tokens 65 and 94 ms."""
    slow = host.device.type == "cpu" and host.dtype == torch.bfloat16 and longest <= SHORT
    return sdpa_kernel(SDPBackend.MATH) if slow else nullcontext()


def checkpoint_activations(model: PatchedModel, enable: bool = True) -> None:
    """Recompute the language model's layers in the backward pass instead of storing activations. Hugging Face does so
    in train mode only, so the decoder is put into that mode."""
    base: Any = model.base
    kind = "activation" if hasattr(base, "activation_checkpointing_enable") else "gradient"  # the name before 5.23
    if enable:
        options = {"use_reentrant": False, "context_fn": recompute_context}
        getattr(base, f"{kind}_checkpointing_enable")(options)
    else:
        getattr(base, f"{kind}_checkpointing_disable")()
    model.host.language_model.train(enable)
