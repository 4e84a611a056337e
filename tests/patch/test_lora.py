"""Claims about LoRA as hooks: outputs of PEFT, selected per row, and complete removal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_base
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from pave.base import Host
from pave.config import LoraConfig
from pave.errors import RecipeError
from pave.patch.lora import Call, Lora, Loras, running, targets
from pave.patch.peft import save_peft

CONFIG = LoraConfig(r=4, lora_alpha=6)


@pytest.fixture
def lora(base: Host) -> Lora:
    built = Lora(CONFIG, targets(CONFIG, base.language_model)).eval()
    draw = torch.Generator().manual_seed(0)
    for pair in built.pairs.values():
        pair.B.data.copy_(0.3 * torch.randn(pair.B.shape, generator=draw))
    return built


def ids(rows: int = 2) -> Tensor:
    return torch.randint(10, 200, (rows, 7), generator=torch.Generator().manual_seed(3))


def logits(model: Any, gates: dict[Lora, Tensor] | None = None, rows: int = 2) -> Tensor:
    with torch.no_grad(), running(Call(gates or {})):
        return model(input_ids=ids(rows)).logits


def all_rows(rows: int = 2) -> Tensor:
    return torch.ones(rows)


@pytest.mark.parametrize("rslora", [False, True])
def test_logits_are_those_of_peft(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, rslora: bool) -> None:
    config = LoraConfig(r=4, lora_alpha=6, use_rslora=rslora)
    base = make_base(tokenizer)
    lora = Lora(config, targets(config, base.language_model)).eval()
    for pair in lora.pairs.values():
        nn.init.normal_(pair.B, std=0.3)
    before = logits(base.model)
    Loras(base.language_model).add(lora)
    hooked = logits(base.model, {lora: all_rows()})
    save_peft(tmp_path, config, lora.state_dict(), "model.language_model")
    expected = logits(PeftModel.from_pretrained(make_base(tokenizer).model, str(tmp_path)).eval())
    torch.testing.assert_close(hooked, expected, atol=1e-5, rtol=1e-5)
    assert (hooked - before).abs().max() > 1e-2


def test_peft_finds_the_same_layers_and_none_in_the_vision_tower(base: Host, lora: Lora, tmp_path: Path) -> None:
    save_peft(tmp_path, CONFIG, lora.state_dict(), "model.language_model")
    peft_model = PeftModel.from_pretrained(base.model, str(tmp_path))
    found = {name.partition(".lora_A")[0] for name, _ in peft_model.named_parameters() if ".lora_A" in name}
    assert found == {f"base_model.model.model.language_model.{path}" for path in lora.pairs}
    assert len(found) == 2 * 7


def test_rows_of_weight_zero_keep_their_exact_logits(base: Host, lora: Lora) -> None:
    before = logits(base.model)
    Loras(base.language_model).add(lora)
    unmixed = logits(base.model, {lora: all_rows()})
    mixed = logits(base.model, {lora: torch.tensor([0.0, 1.0])})
    assert torch.equal(mixed[0], before[0])
    for pair in list(lora.pairs.values())[:1]:
        pair.B.data.fill_(float("inf"))
    assert torch.equal(logits(base.model, {lora: torch.tensor([0.0, 1.0])})[0], before[0])
    assert torch.equal(mixed[1], unmixed[1])
    assert not torch.allclose(unmixed[0], before[0], atol=1e-3)


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("size", [(512, 512, 64), (512, 1536, 64), (96, 40, 4), (768, 768, 1)])
def test_a_row_has_the_same_bits_whichever_loras_the_others_have(size: tuple[int, int, int], tokens: int) -> None:
    """Wide layers and single tokens, for which products of another layout in memory have other bits."""
    inputs, outputs, rank = size
    torch.manual_seed(0)
    model, config = nn.Sequential(nn.Linear(inputs, outputs)), LoraConfig(r=rank, lora_alpha=rank)
    inside = [Lora(config, (("0", inputs, outputs),)).eval().requires_grad_(False) for _ in range(16)]
    loras, x = Loras(model), torch.randn(16, tokens, inputs)
    for each in inside:
        nn.init.normal_(each.pairs["0"].B)
        loras.add(each)

    def out(owners: list[int | None]) -> Tensor:
        gates = {each: torch.tensor([float(owner == i) for owner in owners]) for i, each in enumerate(inside)}
        with running(Call({each: weights for each, weights in gates.items() if weights.any()})):
            return model(x)

    alone = [out([number] * 16) for number in range(16)]
    patterns: list[list[int | None]] = [
        [*range(16)],
        [*range(15, -1, -1)],
        [0, 1] * 8,
        [None, 3] * 8,
        [None, *range(15)],
        [*range(8), *[None] * 8],
        [0, 0, 0, 0, 1, 1, 1, None, 2, 2, 2, 2, 2, 2, 2, 2],
        [*[None] * 15, 5],
        [None, 7, *[2] * 14],
    ]
    for owners in patterns:
        wanted = [model(x)[row] if owner is None else alone[owner][row] for row, owner in enumerate(owners)]
        assert torch.equal(out(owners), torch.stack(wanted)), owners


def test_beams_get_the_loras_of_their_rows(base: Host, lora: Lora) -> None:
    Loras(base.language_model).add(lora)
    wide = ids(2).repeat_interleave(3, 0)
    with torch.no_grad(), running(Call({lora: torch.tensor([1.0, 0.0])})):
        beams = base.model(input_ids=wide).logits
    narrow = logits(base.model, {lora: torch.tensor([1.0, 0.0])})
    torch.testing.assert_close(beams, narrow.repeat_interleave(3, 0), atol=1e-4, rtol=1e-4)


def test_two_loras_add_up_in_any_order(tokenizer: PreTrainedTokenizerFast) -> None:
    results = []
    for order in ((0, 1), (1, 0)):
        base = make_base(tokenizer)
        torch.manual_seed(5)
        pair = [Lora(CONFIG, targets(CONFIG, base.language_model)).eval() for _ in range(2)]
        for lora in pair:
            for one in lora.pairs.values():
                nn.init.normal_(one.B, std=0.2)
        inside = Loras(base.language_model)
        for place in order:
            inside.add(pair[place])
        both = logits(base.model, {lora: all_rows() for lora in pair})
        single = logits(base.model, {pair[0]: all_rows()})
        assert not torch.allclose(both, single, atol=1e-3)
        results.append(both)
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


def test_hooks_without_a_call_do_nothing_and_leave_nothing(base: Host, lora: Lora) -> None:
    before = logits(base.model)
    inside = Loras(base.language_model)
    inside.add(lora)
    assert torch.equal(logits(base.model), before)
    assert sum(len(module._forward_hooks) for module in base.language_model.modules()) == 14
    inside.remove(lora)
    assert sum(len(module._forward_hooks) for module in base.model.modules()) == 0


def test_names_follow_the_language_model(base: Host, lora: Lora) -> None:
    shapes = {name: tuple(value.shape) for name, value in lora.state_dict().items()}
    assert shapes["layers.1.mlp.down_proj.A"] == (4, 128)
    assert shapes["layers.0.self_attn.k_proj.B"] == (32, 4)


def test_targets_may_be_full_paths(base: Host) -> None:
    config = LoraConfig(target_modules=("layers.1.self_attn.q_proj",))
    assert [path for path, _, _ in targets(config, base.language_model)] == ["layers.1.self_attn.q_proj"]


def test_a_target_that_matches_nothing_is_refused(base: Host) -> None:
    with pytest.raises(RecipeError, match=r"qqq.*down_proj"):
        targets(LoraConfig(target_modules=("q_proj", "qqq")), base.language_model)


def test_dropout_acts_in_training_only(base: Host) -> None:
    config = LoraConfig(r=4, lora_dropout=0.5)
    lora = Lora(config, targets(config, base.language_model))
    for pair in lora.pairs.values():
        nn.init.normal_(pair.B, std=0.3)
    Loras(base.language_model).add(lora)
    gates = {lora: all_rows()}
    assert not torch.equal(logits(base.model, gates), logits(base.model, gates))
    lora.eval()
    assert torch.equal(logits(base.model, gates), logits(base.model, gates))
