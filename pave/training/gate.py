"""Fit the gate of a patch: which questions are about a clip, and which the base answers alone.

In: questions of both kinds, and what the base makes of a question. Out: the classifier of `pave.patch.gate`: logistic
regression on the mean of the base's last hidden states. Of questions that training has never seen, it is the base that
knows what they mean. Knows nothing of clips.

n questions, d channels
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pave.encoder import Encoder
from pave.model.perception import Perception
from pave.patch.gate import Gate
from pave.training.general import built_in, without

OWN = 500  # questions of the data, at most
DECAY = 0.01  # of the squared weights of standardised channels
# In doubt the patch acts: added to the log odds. A question that it should not have answered costs what `train.keep`
# has not prevented; one that it was not asked costs the answer.
DOUBT = 0.75
CLEAR = 1.0  # log odds that the data's own questions have at least
STEPS = 200


def fit(
    gate: Gate,
    perception: Perception,
    encoders: Iterable[Encoder],
    own: Sequence[str],
    kept: Sequence[str],
    held_out: Sequence[str] = (),
) -> dict[str, float]:
    """Fit the gate of a patch with these encoders to the questions of its data; `kept`: those for the base, if not the
    built-in ones. Returns the shares of the kept questions that it leaves to the base, and of the held-out ones (if
    there are any) for which it opens."""
    hears = all(encoder.hears for encoder in encoders)
    tensors, shares = fitted(perception.reads_many, own, kept or built_in("kept"), hears)
    gate.load_state_dict(tensors)
    opens = [gate.opens(each) for each in perception.reads_many([*dict.fromkeys(held_out)])] if held_out else []
    return {**shares, **({"held_out_opens": round(sum(opens) / len(opens), 4)} if opens else {})}


def sorted_out(own: Sequence[str], kept: Sequence[str], hears: bool) -> tuple[list[str], list[str]]:
    """Questions for the patch and for the base: those of the data (at most OWN, evenly over all) and the built-in ones
    about clips; and the kept ones and the built-in ones that need no clip. Questions about a picture are for the base
    if all that the patch does is hear, and otherwise for the patch."""
    distinct = list(dict.fromkeys(own))
    chosen = [distinct[place * len(distinct) // OWN] for place in range(OWN)] if len(distinct) > OWN else distinct
    about = without(built_in("about"), kept) if hears else built_in("about")
    opens = dict.fromkeys([*about, *(() if hears else built_in("seen"))])
    closes = dict.fromkeys([*kept, *built_in("alone"), *(built_in("seen") if hears else ())])
    return [*chosen, *opens], [*without([*closes], [*distinct, *opens])]


def balanced(kept: Sequence[str]) -> tuple[str, ...]:
    """The kept questions, of which every second is about a clip: with a gate, only these reach the patch."""
    about = {*built_in("about")}
    seen, others = ([each for each in kept if (each in about) == wanted] for wanted in (True, False))
    return (*others, *seen * max(1, len(others) // len(seen))) if seen else tuple(kept)


def fitted(
    read: Callable[[Sequence[str]], Tensor], own: Sequence[str], kept: Sequence[str], hears: bool
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The gate's tensors, and the share of the kept questions that it leaves to the base. `read`: questions as
    the base reads them (n d); `hears`: whether all senses are sound."""
    opens, closes = sorted_out(own, kept, hears)
    ours = min(len({*own}), OWN)
    x = read([*opens, *closes]).double()
    wanted = torch.tensor([1.0] * len(opens) + [0.0] * len(closes), dtype=torch.float64)
    share = torch.cat(
        [torch.full((len(part),), 1 / len(part)) for part in (opens[:ours], opens[ours:], closes) if part]
    )
    mean, spread = x.mean(0), x.std(0).clamp(min=1e-6)
    weight, bias = _logistic((x - mean) / spread, wanted, (share / share.sum()).double())
    weight, bias = weight / spread, bias - (weight / spread) @ mean + DOUBT
    odds = x @ weight + bias
    if ours:
        lift = (CLEAR - odds[:ours].min()).clamp(min=0)
        bias, odds = bias + lift, odds + lift
    left = (odds[len(opens) :] <= 0).double().mean().item() if closes else 0.0
    return {"weight": weight.float(), "bias": bias.float()[None]}, {"left_to_base": round(left, 4)}


def _logistic(x: Tensor, wanted: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (d,) and bias of ridge logistic regression on x (n d), each question with its share (n,)."""
    weight = torch.zeros(x.shape[1], dtype=x.dtype, requires_grad=True)
    bias = torch.zeros((), dtype=x.dtype, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        each = F.binary_cross_entropy_with_logits(x @ weight + bias, wanted, reduction="none")
        value = (share * each).sum() + DECAY / 2 * weight.pow(2).sum()
        value.backward()
        return value

    optimiser.step(loss)  # pyright: ignore[reportArgumentType]
    return weight.detach(), bias.detach()
