"""Whether a patch belongs to a base: dimensions, layers and weights.

In: a patch or its config, and a base. Out: in words how they compare, or a PatchMismatch with the remedy.
"""

from __future__ import annotations

from pave.base import Host
from pave.config import BaseFacts, PatchConfig
from pave.errors import PatchMismatch


def refuse_dimensions(made: BaseFacts, host: Host, source: str) -> None:
    """PatchMismatch where a base is of another family, or of other dimensions."""
    for key in ("model_type", "dim", "vision_dim", "tokens_per_frame"):
        if getattr(made, key) != getattr(host, key):
            cause = f"was made for {_known(made)} with {key}={getattr(made, key)}, this base has {getattr(host, key)}"
            raise PatchMismatch(source, cause, elsewhere(made))


def _known(facts: BaseFacts) -> str:
    return (facts.repo or facts.model_type) + (f" ({facts.fingerprint[:12]})" if facts.fingerprint else "")


def elsewhere(made: BaseFacts) -> str:
    """The remedy: which base to load."""
    return f"load {made.repo or 'its own base'} and apply it there"


def base_match(config: PatchConfig, host: Host, source: str, strict: bool) -> str:
    """In words, how the base of a patch compares with this one; a PatchMismatch when it cannot be used here. Its
    weights are hashed only when nothing else decides."""
    made = config.base
    refuse_dimensions(made, host, source)
    if not made.fingerprint:
        return "unknown: it does not record the weights it was made for"
    if made.fingerprint == host.fingerprint():
        return "exact"
    cause = f"was made for the weights of {_known(made)}, this base is {_known(host.facts())}, of the same dimensions"
    if strict:
        again = (
            "train it again, or update pave"
            if made.repo and made.repo == host.repo
            else f"load {made.repo or 'its own base'}"
        )
        remedy = f"{again}; or pass strict=False to use it here all the same"
        raise PatchMismatch(source, cause, remedy)
    return f"not its own base: {cause}"
