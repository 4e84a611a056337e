"""The causal Q-Former: equal to its authors' block; what sees what; and what its diversity loss measures."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from pave.config import PRESETS, ResamplerConfig
from pave.errors import SignalError
from pave.qformer import QFormer, Queries, Resampler, States, alikeness, build_resampler, seen_by
from pave.sidechannel import SideBatch, SideTokens, align

GOLDEN = Path(__file__).parent / "golden" / "favor_causal_qformer_tiny.safetensors"
NAMES = {  # the authors' -> ours
    r"embeddings\.LayerNorm": "norm",
    r"encoder\.layer": "layers",
    r"encoder_causal_attention\.self": "causal",
    r"encoder_causal_attention\.output": "causal",
    r"crossattention\.self": "cross",
    r"crossattention\.output": "cross",
    r"attention\.self": "among",
    r"attention\.output": "among",
    r"intermediate_query\.dense": "ffn.0",
    r"output_query\.dense": "ffn.2",
    r"output_query\.LayerNorm": "norm",
    r"LayerNorm": "norm",
    r"dense": "out",
}
