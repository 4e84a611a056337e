"""InstructBLIP's eyes (Dai et al. 2023, arXiv 2305.06500), which FAVOR looks with: 32 tokens of a picture, whatever its
size, made by a Q-Former that has been told what to look for.

In: a clip of a file, which is read again for `rate` pictures per second; or frames and times handed over as `fast`.
Out: 32 tokens of 768 channels for each. FAVOR tells the Q-Former the first words of a user; tokens that are kept for
all questions about a clip can know one `instruction` only. Weights are fetched when the first clip is read; they hold
a billion numbers.

τ pictures, n queries, c channels, l tokens of the instruction
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, cast

import torch
from einops import rearrange, repeat
from pydantic import Field, InstanceOf
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers.models.instructblip.configuration_instructblip import (
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
)
from transformers.models.instructblip.modeling_instructblip import InstructBlipQFormerModel, InstructBlipVisionModel
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from pave.base import PASS
from pave.encoder import Encoder, EncoderOptions, EncoderSpec, Groups, Pass, Text, Weights, builder
from pave.errors import EncoderError
from pave.media import Clip, preprocess
from pave.senses import pictures
from pave.senses.weights import Release, opened
from pave.sidechannel import SideTokens

VISION = InstructBlipVisionConfig()  # its defaults are the sizes of the releases: EVA-CLIP's ViT-g, 224 pixels
QFORMER = InstructBlipQFormerConfig(vocab_size=30_523)  # BERT's words, and the authors' [DEC]
QUERIES = 32
WORDS = "qformer_tokenizer/tokenizer.json"  # in the folder of a release
PLACE = "PAVE_INSTRUCTBLIP"  # environment: a folder with the release
AGAIN = "give Salesforce/instructblip-vicuna-13b or another InstructBLIP of transformers, with its safetensors"


class Options(EncoderOptions):
    """What a recipe may say. Release and rate are FAVOR's."""

    release: Text = "Salesforce/instructblip-vicuna-13b"  # a repo of the Hub; its language model is left there
    revision: Text = "main"  # of the repo; a commit makes it exact
    rate: pictures.Rate = 2.0  # pictures per second
    # What the Q-Former is told; "": nothing.
    instruction: Annotated[InstanceOf[str], Field(description="needs a text for {key}")] = "Describe the picture."
    # A folder or file that holds the release on this machine; without it, what PAVE_INSTRUCTBLIP says; without that,
    # the Hub.
    weights: Weights = ""


class Eyes(nn.Module):
    """What a release has in front of its language model, under its names."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_model = InstructBlipVisionModel(VISION)
        self.qformer = InstructBlipQFormerModel(QFORMER)
        self.query_tokens = nn.Parameter(torch.empty(1, QUERIES, QFORMER.hidden_size))
        # No weight, and so in no release: it would stay on the meta device, where a network without weights is built.
        words: Any = self.qformer.embeddings
        words.position_ids = torch.arange(QFORMER.max_position_embeddings, device="cpu")[None]

    def forward(self, pixels: Tensor, words: Tensor) -> Tensor:
        """Pixels (τ 3 224 224) and an instruction (l,) to tokens (τ n c)."""
        told = repeat(words, "l -> τ l", τ=len(pixels)) if len(words) else None
        seen = self.vision_model(pixel_values=pixels).last_hidden_state
        queries = repeat(self.query_tokens, "1 n c -> τ n c", τ=len(pixels))
        return self.qformer(told, query_embeds=queries, encoder_hidden_states=seen).last_hidden_state[:, :QUERIES]


class InstructBlipVideo(Encoder):
    """Frozen. Pictures are looked at one by one; where the weights lie is no part of what it is."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.spec = EncoderSpec(
            name="instructblip-video",
            sense="fast",
            dim=QFORMER.hidden_size,
            rate=options.rate,
            grid=(1, QUERIES),
            revision=options.revision,
            licence="other",  # as their cards have it: for research, by the language model that is left there
            options=options.resolved,
        )

    @property
    def release(self) -> Release:
        return Release(
            given=self.options.weights,
            place=PLACE,
            repo=self.options.release,
            revision=self.options.revision,
            # Releases of 2023 may hold the places of words as if they were weights.
            others=r"language_(model|projection)\.|qformer\.embeddings\.position_ids$",
            again=AGAIN,
        )

    def outline(self) -> Pass:
        """Of a picture, without an instruction."""
        side = cast(int, VISION.image_size)
        with torch.device("meta"):
            return Pass(Eyes(), (torch.empty(1, 3, side, side), torch.empty(0, dtype=torch.long)), 1)

    @cached_property
    def network(self) -> Eyes:
        """The weights, on the GPU where there is one."""
        return opened(self.outline().run, self.release)

    @cached_property
    def words(self) -> Tensor:
        """The instruction as ids of the Q-Former's own words (l,)."""
        if not self.options.instruction:
            return torch.zeros(0, dtype=torch.long)
        path = replace(self.release, again=AGAIN + ", or take instruction=''").beside(WORDS)
        try:
            known = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises no other class
            raise EncoderError(f"{path}: is no tokenizer ({error}); fetch it again") from None
        return torch.tensor(known.encode(self.options.instruction).ids)

    @property
    def groups(self) -> Groups:
        return Groups(self.options.rate, PASS)

    def encode(self, clip: Clip) -> SideTokens | None:
        """Tokens (τ 1 n c) at the instants of `pictures.instants`; None for a clip without pictures."""
        seen = pictures.fast(clip)
        if seen is None:
            return None
        times = pictures.instants(seen, self.options.rate)
        x = torch.cat([self.tokens(frames) for frames in pictures.groups(seen, times, PASS)])
        return SideTokens(x, times, repeat(times, "τ -> τ 2"), torch.ones(x.shape[:3], dtype=torch.bool))

    @torch.no_grad()
    def tokens(self, frames: Tensor) -> Tensor:
        """Frames uint8 (τ 3 y x) to tokens (τ 1 n c)."""
        queries, side = self.network.query_tokens, cast(int, VISION.image_size)
        pixels = preprocess(frames, (side, side), OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
        return rearrange(self.network(pixels.to(queries), self.words.to(queries.device)), "τ n c -> τ 1 n c").cpu()


build = builder(Options, InstructBlipVideo)
