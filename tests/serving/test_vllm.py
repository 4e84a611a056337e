"""Claims about vLLM: an exported decoder and LoRA are the patched base, and a front gives the answers of `ask`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, make_base
from patched import config_for, favors, hears, logits
from safetensors.torch import load_file
from small import awaken, make_clip
from vllm_server import Decoder, Vllm, serving

from pave.config import FusionConfig, LoraConfig
from pave.errors import BaseModelError, FileError, PatchMismatch, ServerError, SignalError, UsageError
from pave.media.clip import Clip
from pave.model.patched import PatchedModel
from pave.model.rows import UNASKED
from pave.patch.gate import Gate
from pave.patch.vllm import RANKS, export_vllm
from pave.serving.vllm import Front

QUESTION = "What do you hear?"
SHORT: Any = {"max_new_tokens": 9}
ALONE = ("llava_onevision", "llava_next_video", "video_llava", "video_llama_3", "internvl", "smolvlm")
BY_LAYER = LoraConfig(
    r=4,
    lora_alpha=6,
    use_rslora=True,
    target_modules=("q_proj", "o_proj", "down_proj"),
    rank_pattern={"q_proj": 2, "layers.1.self_attn.q_proj": 9},
    alpha_pattern={"layers.0.mlp.down_proj": 1.5},
)


def export(model: PatchedModel, folder: Path, *names: str) -> str:
    """Export patches into one folder; the command that serves them."""
    return [export_vllm(model.export(name), model.host, folder) for name in names or ("ears",)][-1]


@pytest.mark.parametrize("family", ALONE)
def test_the_exported_decoder_and_lora_have_the_logits_of_the_patched_base(tokenizer, tmp_path: Path, family: str):
    model = PatchedModel(make_base(tokenizer, family=family))
    model.attach("ears", config_for(model.host, lora=BY_LAYER), trainable=False)
    awaken(model, "ears")
    before = {name: value.clone() for name, value in model.base.state_dict().items()}
    export(model, tmp_path)
    after = model.base.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    decoder = Decoder(tmp_path)
    for patches, name in ((("ears",), "ears"), ((), "base")):
        inputs = model.prepare([make_clip(0)], [QUESTION], patches=patches)
        with torch.no_grad():
            expected = model.forward(inputs).logits[0]
        [embeddings] = model.calls.embedded(inputs)
        torch.testing.assert_close(decoder.logits(embeddings, name), expected, atol=2e-4, rtol=1e-4)
    assert not torch.allclose(logits(model), logits(model, patches=()), atol=1e-2), "the patch must have an effect"


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - set(ALONE)))
def test_a_base_whose_language_model_cannot_run_alone_is_refused(tokenizer, tmp_path: Path, family: str):
    model = PatchedModel(make_base(tokenizer, family=family))
    model.attach("ears", config_for(model.host), trainable=False)
    with pytest.raises(BaseModelError, match="pave serve"):
        export(model, tmp_path)
    with pytest.raises(BaseModelError, match="pave serve"):
        Front(model)
    assert not list(tmp_path.iterdir())


def test_embeddings_of_a_batch_are_those_of_its_rows(one: PatchedModel):
    hears(one)
    clips, questions = [make_clip(0), make_clip(1, sound=False)], [QUESTION, "And?"]
    rows = one.calls.embedded(one.prepare(clips, questions))
    for row, clip, question in zip(rows, clips, questions, strict=True):
        [alone] = one.calls.embedded(one.prepare([clip], [question]))
        torch.testing.assert_close(row, alone, atol=1e-5, rtol=1e-5)


def test_patches_of_one_base_share_a_folder_and_a_command(one: PatchedModel, tmp_path: Path):
    hears(one)
    hears(one, "more", lora=LoraConfig(r=20, lora_alpha=5))
    export(one, tmp_path)
    written = (tmp_path / "decoder/model.safetensors").stat().st_mtime_ns
    words = shlex.split(export(one, tmp_path, "more").replace("\\\n", ""))
    assert (tmp_path / "decoder/model.safetensors").stat().st_mtime_ns == written
    modes = {file.stat().st_mode for file in (tmp_path / "decoder").iterdir()}
    assert len(modes) == 1, "a server of another user can read all or nothing"
    assert words[:3] == ["vllm", "serve", "decoder"] and "--enable-prompt-embeds" in words
    rank = int(words[words.index("--max-lora-rank") + 1])
    assert rank == 32 and rank in RANKS
    loras = words[words.index("--lora-modules") + 1 :]
    assert loras == ["ears=loras/ears", "more=loras/more"] and words[words.index("--max-loras") + 1] == "2"
    assert words[words.index("--dtype") + 1] == "float32", "by itself vLLM would run it in 16 bits"
    assert "--lora-modules ears=loras/ears more=loras/more" in (tmp_path / "README.md").read_text()


def test_every_layer_of_an_exported_lora_has_factor_one(one: PatchedModel, tmp_path: Path):
    """Earlier releases of vLLM read `r` and `lora_alpha`, and no pattern."""
    hears(one, lora=BY_LAYER)
    export(one, tmp_path)
    facts = json.loads((tmp_path / "loras/ears/adapter_config.json").read_text())
    assert facts["lora_alpha"] == facts["r"] and not facts["use_rslora"]
    assert facts["alpha_pattern"] == facts["rank_pattern"] and set(facts["rank_pattern"].values()) == {2, 9}
    names = load_file(tmp_path / "loras/ears/adapter_model.safetensors")
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in names
    assert len(names) == 2 * 3 * 2  # layers, modules, A and B


def test_a_folder_of_another_base_is_refused(one: PatchedModel, tokenizer, tmp_path: Path):
    hears(one)
    export(one, tmp_path)
    other = PatchedModel(make_base(tokenizer, seed=1))
    hears(other)
    with pytest.raises(FileError, match="another folder"):
        export(other, tmp_path)


def test_a_rank_beyond_vllms_is_refused(one: PatchedModel, tmp_path: Path):
    hears(one, lora=LoraConfig(r=600, lora_alpha=600))
    with pytest.raises(PatchMismatch, match=r"rank 600.*at most 512.*shrink"):
        export(one, tmp_path)


def test_a_quantised_decoder_is_refused(tokenizer, tmp_path: Path):
    from pave.loading.low_memory import quantiser

    model = PatchedModel(make_base(tokenizer))
    hears(model)
    quantiser("int8")(model.host.language_model)
    with pytest.raises(BaseModelError, match="quantised or offloaded"):
        export(model, tmp_path)


# The front


@pytest.fixture(scope="module")
def model(tokenizer) -> PatchedModel:
    model = PatchedModel(make_base(tokenizer))
    hears(model)
    hears(model, "more", lora=LoraConfig(r=2, lora_alpha=4))
    hears(model, "plain", lora=None)
    hears(model, "prefix", fusion=FusionConfig(width=32, heads=2, combine="prefix"))
    hears(model, "compact", fusion=FusionConfig(width=32, heads=2, combine="compact"))
    hears(model, "alone", sound_alone=True)
    favors(model)
    return model


@pytest.fixture(scope="module")
def server(model: PatchedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    folder = tmp_path_factory.mktemp("export")
    export(model, folder, *model.patches)
    with serving(folder, "tiny") as server:
        assert server.decoder.loras == sorted(model.patches.keys() - {"plain"})
        yield server


@pytest.fixture
def front(model: PatchedModel, server: Vllm) -> Iterator[Front]:
    server.asked.clear()
    yield Front(model, server.url, base="tiny", timeout=60)
    server.trouble = ""


def silent(seed: int) -> Clip:
    return make_clip(seed, sound=False)


# Patches of a question, its clip, and the model that the server is asked for.
CASES: dict[str, tuple[tuple[str, ...], Clip, str]] = {
    "patched": (("ears",), make_clip(0), "ears"),
    "another": (("more",), make_clip(0), "more"),
    "base": ((), make_clip(0), "tiny"),
    "no sound": (("ears",), silent(0), "tiny"),
    "no LoRA": (("plain",), make_clip(1), "tiny"),
    "two fusions, one LoRA": (("ears", "plain"), make_clip(1), "ears"),
    "inserted tokens": (("prefix",), make_clip(1), "prefix"),
    "replaced tokens": (("compact",), make_clip(1), "compact"),
    "sound alone": (("alone",), Clip.from_frames(audio=make_clip(0).audio, rate=16_000), "alone"),
    "resampler": (("favor",), make_clip(0), "favor"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_front_answers_as_ask_does(front: Front, server: Vllm, case: str):
    patches, clip, name = CASES[case]
    expected = front.model.ask(clip, QUESTION, patches=patches, **SHORT)
    reply = front.stream(clip, QUESTION, patches=patches, **SHORT)
    assert "".join(reply).strip() == reply.answer == expected
    assert server.asked[-1]["model"] == name
    for fact in ("patches", "signals", "finish_reason", "tokens", "prompt_tokens", "warnings"):
        assert getattr(reply.answer, fact) == getattr(expected, fact)


def test_a_front_keeps_the_history_the_gate_and_the_name_of_the_export(tokenizer, tmp_path: Path):
    model = PatchedModel(make_base(tokenizer))
    hears(model, gate=True)
    export(model, tmp_path)
    patch = model.export("ears")
    model.remove_patch("ears")
    model.apply_patch(patch, name="mine")
    gate: Any = model.applied.module("mine").gate
    assert isinstance(gate, Gate)
    with serving(tmp_path, "tiny") as server:
        front = Front(model, server.url, base="tiny")
        history = [("What is that?", "a bell")]
        assert front.ask(make_clip(0), QUESTION, history=history, **SHORT) == model.ask(
            make_clip(0), QUESTION, history=history, **SHORT
        )
        gate.bias.fill_(-1)
        answer = front.ask(make_clip(0), QUESTION, **SHORT)
        assert [each["model"] for each in server.asked] == ["ears", "tiny"]
        assert answer.signals == {"audio": UNASKED} and answer == model.ask(make_clip(0), QUESTION, patches=(), **SHORT)


def test_questions_may_be_asked_at_once(front: Front):
    clips = [make_clip(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda clip: front.ask(clip, QUESTION, patches=("ears",), **SHORT), clips))
    assert found == [front.model.ask(clip, QUESTION, patches=("ears",), **SHORT) for clip in clips]
    assert len(set(found)) > 1


def test_what_one_prompt_of_vllm_cannot_be_is_refused_before_it_is_sent(front: Front, server: Vllm):
    with pytest.raises(PatchMismatch, match=r"ears and more.*one per prompt"):
        front.ask(make_clip(0), QUESTION, patches=("ears", "more"))
    front.model.set_weight("ears", 0.5)
    try:
        with pytest.raises(UsageError, match=r"weight 0\.5"):
            front.ask(make_clip(0), QUESTION, patches=("ears",))
    finally:
        front.model.set_weight("ears", 1)
    wrong: list[dict[str, Any]] = [{"num_beams": 3}, {"no_repeat_ngram_size": 2}, {"max_time": 3.0}]
    for option in wrong:
        with pytest.raises(UsageError, match=rf"{min(option)}.*vLLM has no such option"):
            front.ask(make_clip(0), QUESTION, patches=("ears",), **option)
    with pytest.raises(SignalError, match=r"temperture.*temperature"):
        front.ask(make_clip(0), QUESTION, patches=("ears",), temperture=1)
    assert not server.asked


def test_options_of_an_answer_are_fields_of_vllms_request():
    from transformers import GenerationConfig

    from pave.model.options import answering
    from pave.serving.vllm import fields_of

    own = GenerationConfig(temperature=0.7, top_p=0.9, do_sample=True, repetition_penalty=1.05)
    assert fields_of(answering(5, {}), own) == {"max_tokens": 5, "temperature": 0.0, "repetition_penalty": 1.05}
    found = fields_of(answering(5, {"top_p": 0.5, "stop_strings": ["."], "min_new_tokens": 2}), own)
    assert found == {
        **{"max_tokens": 5, "min_tokens": 2, "stop": ["."], "temperature": 0.7, "top_k": 50, "top_p": 0.5},
        "repetition_penalty": 1.05,
    }
    assert fields_of(answering(5, {"do_sample": True}), None) == {"max_tokens": 5, "temperature": 1.0, "top_k": 50}


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        ("cut", "does not answer"),
        ("short", "before the end of the answer"),
        ("broken", "EngineCore died"),
        ("full", "longer than the maximum"),
    ],
)
def test_an_answer_that_the_server_does_not_finish_is_an_error(front: Front, server: Vllm, trouble: str, told: str):
    server.trouble = trouble
    with pytest.raises(ServerError, match=told):
        front.ask(make_clip(0), QUESTION, patches=("ears",), **SHORT)


def test_a_server_that_lacks_the_model_the_key_or_itself_is_an_error_with_the_remedy(
    front: Front, server: Vllm, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(ServerError, match=r"no model 'playroom'.*base="):
        Front(front.model, server.url, base="playroom").ask(make_clip(0), QUESTION, patches=())
    monkeypatch.setattr(server, "key", "secret")
    with pytest.raises(ServerError, match="VLLM_API_KEY"):
        front.ask(make_clip(0), QUESTION, patches=())
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert Front(front.model, server.url, base="tiny").ask(make_clip(0), QUESTION, patches=(), **SHORT)
    with pytest.raises(ServerError, match="does not answer"):
        Front(front.model, "http://127.0.0.1:9/v1", base="tiny").ask(make_clip(0), QUESTION, patches=())


def test_a_reply_has_no_answer_before_its_end(front: Front):
    reply = front.stream(make_clip(0), QUESTION, patches=("ears",), **SHORT)
    with pytest.raises(UsageError, match="not come to its end"):
        _ = reply.answer
    next(reply)
    reply.close()
    assert not list(reply)
