"""InstructBLIP's vision tower and Q-Former (Dai et al. 2023, arXiv 2305.06500), as used by FAVOR: 32 tokens per picture
of any size, conditioned on an instruction.

In: a clip of a file, which is read again at `rate` pictures per second; or frames and times passed as `fast`. Out: 32
tokens of 768 channels per picture. FAVOR conditions the Q-Former on the user's prompt; here, tokens are cached for all
questions about a clip, so the `instruction` is fixed. Weights (a billion parameters) are downloaded for the first clip.

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
QFORMER = InstructBlipQFormerConfig(vocab_size=30_523)  # BERT's vocabulary, and InstructBLIP's [DEC]
QUERIES = 32
TOKENIZER = "qformer_tokenizer/tokenizer.json"  # in the folder of a release
PLACE = "PAVE_INSTRUCTBLIP"  # environment variable: a folder with the release
REMEDY = "use Salesforce/instructblip-vicuna-13b or another InstructBLIP of transformers, with its safetensors"


class Options(EncoderOptions):
    """What a recipe may say. Release and rate are FAVOR's."""

    release: Text = "Salesforce/instructblip-vicuna-13b"  # a Hub repository; its language model is not loaded
    revision: Text = "main"  # of the repository; a commit hash makes it reproducible
    rate: pictures.Rate = 2.0  # pictures per second
    # Text input of the Q-Former; "": none.
    instruction: Annotated[InstanceOf[str], Field(max_length=512, description="needs a text for {key}")] = (
        "Describe the picture."
    )
    weights: Weights = ""  # a folder or file with the release; default: PAVE_INSTRUCTBLIP, else the Hub


class VisionTower(nn.Module):
    """The part of a release before its language model, with the release's names."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_model = InstructBlipVisionModel(VISION)
        self.qformer = InstructBlipQFormerModel(QFORMER)
        self.query_tokens = nn.Parameter(torch.empty(1, QUERIES, QFORMER.hidden_size))
        # A buffer that is in no release: built on the meta device, it would stay there.
        embeddings: Any = self.qformer.embeddings
        embeddings.position_ids = torch.arange(QFORMER.max_position_embeddings, device="cpu")[None]

    def forward(self, pixels: Tensor, instruction: Tensor) -> Tensor:
        """Pixels (τ 3 224 224) and an instruction (l,) to tokens (τ n c)."""
        ids = repeat(instruction, "l -> τ l", τ=len(pixels)) if len(instruction) else None
        image = self.vision_model(pixel_values=pixels).last_hidden_state
        queries = repeat(self.query_tokens, "1 n c -> τ n c", τ=len(pixels))
        return self.qformer(ids, query_embeds=queries, encoder_hidden_states=image).last_hidden_state[:, :QUERIES]


class InstructBlipVideo(Encoder):
    """Frozen. Pictures are encoded independently; the location of the weights is not part of its spec."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.spec = EncoderSpec(
            name="instructblip-video",
            sense="fast",
            dim=QFORMER.hidden_size,
            rate=options.rate,
            grid=(1, QUERIES),
            revision=options.revision,
            licence="other",  # from the model cards: for research only, because of the language model
            options=options.resolved,
        )

    @property
    def release(self) -> Release:
        return Release(
            given=self.options.weights,
            variable=PLACE,
            repo=self.options.release,
            revision=self.options.revision,
            # Releases of 2023 may contain position_ids, which is not a weight.
            others=r"language_(model|projection)\.|qformer\.embeddings\.position_ids$",
            remedy=REMEDY,
        )

    def outline(self) -> Pass:
        """One picture, without an instruction."""
        side = cast(int, VISION.image_size)
        with torch.device("meta"):
            return Pass(VisionTower(), (torch.empty(1, 3, side, side), torch.empty(0, dtype=torch.long)), 1)

    @cached_property
    def network(self) -> VisionTower:
        """The network with its weights, on the GPU if there is one."""
        return opened(self.outline().run, self.release)

    @cached_property
    def instruction(self) -> Tensor:
        """The instruction as token ids of the Q-Former (l,)."""
        if not self.options.instruction:
            return torch.zeros(0, dtype=torch.long)
        path = replace(self.release, remedy=REMEDY + ", or set instruction=''").beside(TOKENIZER)
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise EncoderError(f"{path}: not a tokenizer ({error}); download it again") from None
        return torch.tensor(tokenizer.encode(self.options.instruction).ids)

    @property
    def groups(self) -> Groups:
        return Groups(self.options.rate, PASS)

    def encode(self, clip: Clip) -> SideTokens | None:
        """Tokens (τ 1 n c) at the instants of `pictures.instants`; None for a clip without pictures."""
        dense = pictures.fast(clip)
        if dense is None:
            return None
        times = pictures.instants(dense, self.options.rate)
        x = torch.cat([self.tokens(frames) for frames in pictures.groups(dense, times, PASS)])
        return SideTokens(x, times, repeat(times, "τ -> τ 2"), torch.ones(x.shape[:3], dtype=torch.bool))

    @torch.no_grad()
    def tokens(self, frames: Tensor) -> Tensor:
        """Frames uint8 (τ 3 y x) to tokens (τ 1 n c)."""
        queries, side = self.network.query_tokens, cast(int, VISION.image_size)
        pixels = preprocess(frames, (side, side), OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
        x = self.network(pixels.to(queries), self.instruction.to(queries.device))
        return rearrange(x, "τ n c -> τ 1 n c").cpu()


build = builder(Options, InstructBlipVideo)
