"""The mask of packed rows without its entries: equal outputs, losses and gradients, and little memory."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, make_base
from packaging.version import Version
from patched import config_for
from small import awaken, make_clip
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers import __version__ as transformers_version

from pave.errors import UsageError
from pave.model.patched import PatchedModel
from pave.packing import mask as packing
from pave.packing.mask import PADDING, PREFIX, PackedMask, added, dense, mask_of, windowed
from pave.packing.rows import IGNORE, Turn, collate, pack
from pave.training.dataset import packed
from pave.training.loss import cross_entropy, scores
from pave.training.trainee import checkpoint_activations, training

ASKED = (("What do you hear?", "a horn"), ("How often?", "three times or four"), ("Is there a bell?", "no"))


def owners(*rows: tuple[int, int, Sequence[int]]) -> Tensor:
    """Rows of so many tokens of padding, of the prefix, and of each dialogue."""
    return torch.tensor(
        [
            [PADDING] * start + [PREFIX] * prefix + [i + 1 for i, length in enumerate(lengths) for _ in range(length)]
            for start, prefix, lengths in rows
        ]
    )


RAGGED = owners((0, 30, (5, 4, 6)), (3, 36, (6,)), (7, 30, (2, 6)), (5, 40, ()))


def drawn(b: int, length: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(b, 4, length, 8, dtype=dtype, requires_grad=True) for _ in range(3)]


def test_a_token_reads_the_prefix_and_its_own_dialogue() -> None:
    mask = dense(owners((1, 2, (2, 1))))[0, 0].int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 1, 0],
        [0, 1, 1, 0, 0, 1],
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_attention_and_its_gradients_are_those_of_the_dense_mask(dtype: torch.dtype) -> None:
    inputs = drawn(4, RAGGED.shape[1], dtype)
    real = (RAGGED != PADDING)[:, None, :, None]
    weight = torch.randn(inputs[0].shape, dtype=dtype) * real
    found, want = (
        F.scaled_dot_product_attention(*inputs, attn_mask=mask, scale=0.3)  # type: ignore[call-overload]
        for mask in (PackedMask(RAGGED), dense(RAGGED))
    )
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    close: dict[str, Any] = {"atol": tolerance, "rtol": tolerance}
    torch.testing.assert_close(found * real, want * real, **close)
    assert not (found * ~real).any()
    for own, other in zip(*(torch.autograd.grad((x * weight).sum(), inputs) for x in (found, want)), strict=True):
        torch.testing.assert_close(own, other, **close)


def test_any_other_function_sees_all_entries() -> None:
    mask, whole = PackedMask(RAGGED), dense(RAGGED)
    assert isinstance(mask, Tensor) and mask.shape == whole.shape and mask.dtype == whole.dtype and mask.dim() == 4
    assert torch.equal(mask & whole, whole) and torch.equal(~mask, ~whole) and torch.equal(mask[1:, 0], whole[1:, 0])
    assert torch.equal(torch.where(mask, 1, 0), torch.where(whole, 1, 0)) and mask.sum() == whole.sum()
    positions = torch.arange(RAGGED.shape[1]).expand(len(RAGGED), -1)
    assert torch.equal(windowed(mask, positions, 4), windowed(whole, positions, 4))
    assert not torch.equal(windowed(mask, positions, 4), whole)
    assert torch.equal(added(mask, torch.float32), added(whole, torch.float32))
    q, k, _ = drawn(4, RAGGED.shape[1])
    longer = F.pad(k, (0, 0, 0, 1))  # keys of a cache with room: no mask of this shape fits
    with pytest.raises(RuntimeError):
        F.scaled_dot_product_attention(q, longer, longer, attn_mask=mask)


def test_it_is_copied_pickled_and_moved_by_what_its_rows_are() -> None:
    mask = PackedMask(RAGGED)
    inputs = drawn(4, RAGGED.shape[1])
    want = F.scaled_dot_product_attention(*inputs, attn_mask=mask)
    for other in (copy.deepcopy(mask), pickle.loads(pickle.dumps(mask)), mask.to("cpu"), mask.to(torch.device("cpu"))):
        assert isinstance(other, PackedMask)
        assert torch.equal(F.scaled_dot_product_attention(*inputs, attn_mask=other), want)
    assert repr(mask).startswith("PackedMask(owners=tensor(")


def test_long_rows_alone_are_packed_so_small_trainings_keep_their_bits() -> None:
    short, long = owners((0, packing.DENSE - 9, (4, 5))), owners((0, packing.DENSE - 8, (4, 5)))
    assert not isinstance(mask_of(short), PackedMask) and isinstance(mask_of(long), PackedMask)
    rows = [pack(range(packing.DENSE), [([1, 2], [3]), ([1], [2])]), pack([5], [([1], [2])])]
    mask = collate(rows, 0)["attention_mask"]
    assert isinstance(mask, PackedMask) and mask.owners[1].tolist() == [PADDING] * (packing.DENSE + 2) + [PREFIX, 1, 1]


def test_what_it_holds_grows_with_the_tokens_of_a_row_not_with_their_square() -> None:
    def entries(prefix: int) -> int:
        parts = PackedMask(owners((0, prefix, (30,) * 10))).parts(torch.device("cpu"), torch.bfloat16)
        return sum(0 if mask is None else mask.numel() for _, _, mask in parts)

    assert entries(25_000) == 270 * 25_300 and entries(12_000) == 270 * 12_300
    (alone,) = PackedMask(owners((0, 25_000, (30,)))).parts(torch.device("cpu"), torch.bfloat16)
    assert alone.mask is None  # one question: plain causal attention


def test_a_mask_is_made_once_for_all_layers() -> None:
    mask = PackedMask(RAGGED)
    device = torch.device("cpu")
    assert mask.parts(device, torch.float32) is mask.parts(device, torch.float32)
    assert mask.parts(device, torch.bfloat16)[0].mask.dtype == torch.bfloat16  # type: ignore[union-attr]


# In models


def asking(model: PatchedModel) -> tuple[Any, Any]:
    """Two ragged clips with three questions and one."""
    host = model.host
    turns = [Turn(host.prompt(each)[1], [*host.encode_text(answer), host.end]) for each, answer in ASKED]
    return model.encode([make_clip(0), make_clip(1, 2)]), [turns, turns[1:2]]


def learned(model: PatchedModel) -> tuple[type, Tensor, dict[str, Tensor]]:
    """The kind of the mask, the loss of two clips, and the gradients of the patch."""
    features, turns = asking(model)
    (attached,) = model.attached()
    attached.zero_grad()
    with training(attached):
        inputs, labels = packed(model, features, turns, ["ears"])
        loss = cross_entropy(*scores(model, inputs, labels)).mean()
        loss.backward()
    gradients = {name: each.grad.clone() for name, each in attached.named_parameters() if each.grad is not None}
    return type(inputs.attention_mask), loss.detach(), gradients


def hearing(base: Any) -> PatchedModel:
    model = PatchedModel(base)
    torch.manual_seed(1)
    model.attach("ears", config_for(base), trainable=True)
    awaken(model, "ears")
    return model


@pytest.mark.parametrize("recomputes", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_of_every_family_are_those_of_the_dense_mask(
    family: str, recomputes: bool, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    if family == "smolvlm" and Version(transformers_version) < Version("5.20"):
        pytest.skip("it counts the rows of a whole batch as those of one image")
    model = hearing(make_base(tokenizer, family=family))
    checkpoint_activations(model, recomputes)
    kind, loss, gradients = learned(model)
    monkeypatch.setattr(packing, "DENSE", 0)
    packed_kind, packed_loss, packed_gradients = learned(model)
    assert kind is Tensor and packed_kind is PackedMask
    torch.testing.assert_close(packed_loss, loss, atol=0, rtol=1e-6)
    largest = max(each.abs().max().item() for each in gradients.values())
    assert gradients.keys() == packed_gradients.keys() and largest > 0.1
    for name, gradient in gradients.items():
        torch.testing.assert_close(packed_gradients[name], gradient, atol=1e-5 * max(1, largest), rtol=0)


@torch.no_grad()
def test_a_compiled_base_reads_the_same(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    model = hearing(make_base(tokenizer))
    features, turns = asking(model)
    want = scores(model, *packed(model, features, turns, ["ears"]))[0]
    monkeypatch.setattr(packing, "DENSE", 0)
    decoder: Any = model.host.language_model
    torch._dynamo.reset()
    decoder.compile(backend="eager")
    torch.testing.assert_close(scores(model, *packed(model, features, turns, ["ears"]))[0], want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("limit", [0, packing.DENSE], ids=["packed", "dense"])
def test_a_kernel_that_adds_masks_gets_numbers_and_one_that_takes_none_is_refused(
    limit: int, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = hearing(make_base(tokenizer))
    _, loss, _ = learned(model)
    monkeypatch.setattr(packing, "DENSE", limit)
    decoder: Any = model.host.language_model
    decoder.set_attn_implementation("eager")
    torch.testing.assert_close(learned(model)[1], loss, atol=1e-5, rtol=0)
    decoder.set_attn_implementation("flex_attention")
    with pytest.raises(UsageError, match=r"which flex_attention does not take; call .*\(\"sdpa\"\)"):
        learned(model)


@pytest.mark.parametrize("limit", [0, packing.DENSE], ids=["packed", "dense"])
@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_vl"])
def test_layers_with_a_sliding_window_read_no_further_in_packed_rows(
    family: str, limit: int, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer has the logits of a row of its own, for which the model makes its masks itself."""
    base = make_base(tokenizer, family=family)
    text = base.model.config.get_text_config()
    kinds = ["full_attention", "sliding_attention"]
    text.sliding_window, text.layer_types = 12, kinds
    decoder: Any = base.language_model
    decoder.has_sliding_layers = True
    for layer, kind in zip(decoder.layers, kinds, strict=True):
        layer.self_attn.layer_type = layer.attention_type = kind
        layer.self_attn.sliding_window = 12 if kind == "sliding_attention" else None
    model = hearing(base)
    monkeypatch.setattr(packing, "DENSE", limit)
    features, turns = asking(model)
    with torch.no_grad():
        inputs, labels = packed(model, features, turns, ["ears"])
        found = model.forward(inputs).logits[0][labels[0].roll(-1) != IGNORE]
        rows = [packed(model, features[:1], [[turn]], ["ears"]) for turn in turns[0]]
        want = []
        for one, own in rows:
            plain = model.lay_out(features[:1], ["ears"]).inputs(one.input_ids, torch.ones_like(one.input_ids))
            want.append(model.forward(plain).logits[0][own[0].roll(-1) != IGNORE])
    torch.testing.assert_close(found, torch.cat(want), atol=2e-5, rtol=2e-5)
