"""A sound that is heard as it comes, beside the whole of it."""

from __future__ import annotations

import torch
from torch import Tensor

from pave.encoder import Encoder
from pave.media import Clip
from pave.progressive import Chunk
from pave.sidechannel import SideTokens
from pave.watch import Ear


def hear_in_pieces(encoder: Encoder, sound: Tensor, rate: int, start: float = 0.4) -> int:
    """Assert that an encoder hears a sound (c n) of several pieces as it hears the whole; returns how many of its
    tokens were finished before the end."""
    whole = encoder.encode(Clip(audio=sound, rate=rate, audio_start=start))
    ear, parts, known = Ear(encoder, "ears"), [], start
    for some in sound.split(round(1.3 * rate), dim=-1):
        for tokens, until in ear.feed(Chunk(None, None, some, rate, start)):
            assert tokens is not None and known <= tokens.times.min() and tokens.times.max() < until
            parts.append(tokens)
            known = until
    finished, rest = sum(len(part.times) for part in parts), ear.rest()
    heard = SideTokens.cat([*parts, *([] if rest is None else [rest])])
    assert whole is not None and len(parts) > 1 and heard.x.shape == whole.x.shape
    assert torch.allclose(heard.times, whole.times, rtol=0, atol=1e-9)
    assert torch.allclose(heard.spans, whole.spans, rtol=0, atol=1e-9)
    assert (heard.x - whole.x).abs().max() <= 1e-5 * whole.x.abs().max()
    return finished
