"""What does a further question of a chat cost, compared with a fresh `ask` with the same history?

    python benchmarks/chat.py            # writes benchmarks/results/chat.json
    python benchmarks/chat.py --small    # two rounds, writes nothing

Every round asks the same two questions in a new chat, and the second one also with `ask` and the history. Only ratios
within a round count, because other load on the machine slows both. `computed`: tokens of the prompt that went through
the language model for the second question; `question`: those of the end of a turn and of the question in its template.
`equal`: rounds in which both answers have the same text. Bases: the embedded one with `audio-playroom`; and a random
LLaVA-OneVision of 44 million parameters, with 16 key frames of 64 tokens and no patch.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from study import Study
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config, SiglipVisionConfig

from pave.bases.llava_onevision import BASE
from pave.model.patched import PatchedModel, load

CLIP = Path(__file__).parents[1] / "examples" / "room.mp4"
FIRST, SECOND = "is there a drum?", "what colour is the ball when you hear the bell?"
ANSWER = 8  # tokens, at most


def embedded() -> PatchedModel:
    """The embedded base, hearing."""
    model = load("playroom")
    model.apply_patch("audio-playroom")
    return model


def middle() -> PatchedModel:
    """A random base of middle size."""
    tokenizer = load("playroom").host.tokenizer
    ids = tokenizer.get_added_vocab()
    vision: dict[str, Any] = {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
    }
    text: dict[str, Any] = {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 10,
        "num_attention_heads": 8,
    }
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**vision, image_size=224, patch_size=14, vision_use_head=False),
        text_config=Qwen2Config(**text, num_key_value_heads=4, vocab_size=len(tokenizer), max_position_embeddings=4096),
        image_token_index=ids["<image>"],
        video_token_index=ids["<video>"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=[[224, 224]],
    )
    torch.manual_seed(0)
    return PatchedModel(BASE(LlavaOnevisionForConditionalGeneration(config), tokenizer, frames=16))


BASES: dict[str, Callable[[], PatchedModel]] = {"embedded, audio-playroom": embedded, "random, 16 x 64 tokens": middle}


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = call()
    return time.perf_counter() - begin, result


def compared(model: PatchedModel, rounds: int) -> dict[str, Any]:
    """A fresh question and a further one, in turn."""
    model.ask(CLIP, FIRST, max_new_tokens=ANSWER)  # loads what is loaded once
    further, fresh, equal, answer = [], [], 0, None
    for _ in range(rounds):
        with model.chat(CLIP) as chat:
            chat.ask(FIRST, max_new_tokens=ANSWER)
            history = list(chat.history)
            spent, answer = seconds(lambda chat=chat: chat.ask(SECOND, max_new_tokens=ANSWER))
            further.append(spent)
        spent, alone = seconds(lambda said=history: model.ask(CLIP, SECOND, history=said, max_new_tokens=ANSWER))
        fresh.append(spent)
        equal += answer == alone
    assert answer is not None
    return {
        "ratio": round(statistics.median(one / other for one, other in zip(further, fresh, strict=True)), 3),
        "further ms": round(1e3 * statistics.median(further), 1),
        "fresh ms": round(1e3 * statistics.median(fresh), 1),
        "prompt": answer.prompt_tokens,
        "computed": answer.prompt_tokens - answer.cached_tokens,
        "question": 1 + len(model.host.following(SECOND)),
        "parameters": sum(each.numel() for each in model.base.parameters()),
        "equal": f"{equal} of {rounds}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="two rounds; write nothing")
    small = parser.parse_args().small
    study = Study("chat")
    for name, build in BASES.items():
        figures = compared(build(), 2 if small else 5)
        print(name, figures)
        if not small:
            study.add(name, figures)


if __name__ == "__main__":
    main()
