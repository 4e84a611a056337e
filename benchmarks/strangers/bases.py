"""Folders of small bases of strangers: configs, tokenizers, weights, further files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from random import Random
from typing import Any

from families import make_base
from kind import QUESTION, Kind, no_file
from mutations import changed_tensors, extreme, harmed, join, json_text, mutated, mutated_bytes, split
from small import make_tokenizer
from watched import Case

from pave.loading.base import outline
from pave.model.patched import load


class Bases(Kind):
    """Folders of small bases."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.bases = []
        for family in ("llava_onevision", "qwen2_5_vl", "smolvlm"):
            base, path = make_base(make_tokenizer(), family=family), folder / family
            base.model.save_pretrained(path, max_shard_size="400KB" if family == "smolvlm" else "50GB")
            base.tokenizer.save_pretrained(path)
            (path / "pave.json").write_text(json.dumps({"frames": 4}))
            (path / "preprocessor_config.json").write_text(
                json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
            )
            self.bases.append(path)

    def make(self, rng: Random, place: Path) -> Case:
        path = place / "their-base"
        shutil.copytree(rng.choice(self.bases), path, copy_function=os.link)
        for _ in range(rng.choice((1, 1, 1, 2))):
            self.change(path, rng)

        def asking() -> None:
            model = load(path)
            model.ask(self.clip, QUESTION, max_new_tokens=1)

        return Case((lambda: outline(path), asking), (path.name, "this base takes at most"))

    def change(self, path: Path, rng: Random) -> None:
        names = {file.name: file for file in path.iterdir() if file.is_file()}
        texts = [name for name in names if name.endswith(".json") and name != "tokenizer.json"]
        way = rng.random()
        if way < 0.45:
            self.rewrite(
                names.get("config.json", path / "config.json"), rng, rng.choice(("text_config", "vision_config", ""))
            )
        elif way < 0.7 and texts:
            self.rewrite(names[rng.choice(texts)], rng)
        elif way < 0.8:
            self.rewrite(
                path / "tokenizer.json", rng, rng.choice(("model", "added_tokens", "pre_tokenizer", "decoder"))
            )
        elif way < 0.9:
            file = rng.choice(
                [file for file in names.values() if file.suffix == ".safetensors"] or list(names.values())
            )
            self.weights(file, rng)
        elif way < 0.95:
            self.extra(path, rng)
        else:
            file = rng.choice(list(names.values()))
            file.unlink()
            no_file(file, rng)

    @staticmethod
    def rewrite(file: Path, rng: Random, under: str = "") -> None:
        if not file.is_file():
            return
        text = file.read_text("utf-8", "surrogatepass")
        try:
            text = json_text(mutated(json.loads(text), rng, under), rng, 0.1)
        except (ValueError, RecursionError):
            text = harmed(text, rng)
        file.unlink()  # a hard link to the real one
        file.write_bytes(text.encode("utf-8", "surrogatepass"))

    @staticmethod
    def weights(file: Path, rng: Random) -> None:
        data = file.read_bytes()
        try:
            header, body = split(data)
        except (ValueError, RecursionError):
            return
        facts = {"__metadata__": header.pop("__metadata__", {})}
        if rng.random() < 0.5:
            header, body = changed_tensors(header, body, rng)
            data = join(json.dumps(facts | header), body)
        elif rng.random() < 0.6:
            table = mutated(facts | header, rng)
            data = join(json_text(table, rng), body)
        else:
            data = mutated_bytes(data, rng, len(data) - len(body))
        file.unlink()
        file.write_bytes(data)

    def extra(self, path: Path, rng: Random) -> None:
        """Files that a base need not have, and some that nobody should obey."""
        code = {"AutoTokenizer": ["own.Own", None], "AutoConfig": "own.Own", "AutoModelForImageTextToText": "own.Own"}
        config = json.loads((self.bases[0] / "config.json").read_text())
        extras: dict[str, Any] = {
            "tokenizer_config.json": {
                "auto_map": code,
                "tokenizer_class": rng.choice(("Own", "LlamaTokenizer", "PreTrainedTokenizerFast")),
            },
            "config.json": config
            | rng.choice(
                (
                    {"auto_map": code},
                    {"quantization_config": {"quant_method": rng.choice(("gptq", "bitsandbytes", "fp8", "x"))}},
                )
            ),
            "adapter_config.json": {
                "peft_type": "LORA",
                "base_model_name_or_path": "/",
                "r": 4,
                "target_modules": ["q_proj"],
            },
            "model.safetensors.index.json": {
                "weight_map": {"a": rng.choice(("../../x", "/etc/passwd", "model.safetensors"))}
            },
            "generation_config.json": {rng.choice(GENERATION): extreme(rng)},
            "chat_template.json": {
                "chat_template": rng.choice(("{{ x", "{% for i in range(10**9) %}{% endfor %}", "x" * 10**5))
            },
            "special_tokens_map.json": {"eos_token": extreme(rng), "pad_token": extreme(rng)},
            "added_tokens.json": {"<x>": extreme(rng)},
            "processor_config.json": {"auto_map": code},
            "video_preprocessor_config.json": {"size": extreme(rng)},
            "custom_generate": {},
        }
        name = rng.choice(list(extras))
        file = path / name
        if file.exists():
            file.unlink()
        if name == "custom_generate":
            file.mkdir()
            (file / "generate.py").write_text("raise SystemError('code of the folder was run')\n")
        else:
            file.write_bytes(
                json_text(mutated(extras[name], rng) if rng.random() < 0.3 else extras[name], rng, 0.05).encode(
                    "utf-8", "surrogatepass"
                )
            )
        (path / "own.py").write_text("raise SystemError('code of the folder was run')\n")


GENERATION = (
    *(
        "return_dict_in_generate",
        "output_scores",
        "num_beams",
        "max_new_tokens",
        "max_length",
        "do_sample",
        "use_cache",
        "cache_implementation",
    ),
    *(
        "temperature",
        "top_k",
        "top_p",
        "eos_token_id",
        "pad_token_id",
        "bos_token_id",
        "decoder_start_token_id",
        "num_return_sequences",
    ),
    *(
        "penalty_alpha",
        "constraints",
        "force_words_ids",
        "assistant_model",
        "guidance_scale",
        "watermarking_config",
        "prompt_lookup_num_tokens",
    ),
    *(
        "stop_strings",
        "forced_eos_token_id",
        "suppress_tokens",
        "bad_words_ids",
        "sequence_bias",
        "min_length",
        "compile_config",
        "trust_remote_code",
    ),
    *(
        "repetition_penalty",
        "no_repeat_ngram_size",
        "dola_layers",
        "num_beam_groups",
        "typical_p",
        "max_time",
        "cache_config",
        "output_attentions",
    ),
)
