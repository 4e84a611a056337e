"""Check the six files that the PAVE paper's authors released, step by step. For somebody with a network.

    python examples/released.py                   # downloads about 2 GB; without a network it says so and ends
    python examples/released.py audio-avsd        # one of them
    python examples/released.py --forward         # also loads each base and asks one question: needs its memory
    python examples/released.py --small           # the same steps on small stand-ins with random values, offline

In: nothing. Out: a line for each step: pass, fail, or what could not be done and why. Exit code 1 if a step failed.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url

import pave
from pave.errors import PatchError, PaveError
from pave.evaluation.cost import cost_of
from pave.hub import catalogue
from pave.hub.client import commit_of, download, hub_errors
from pave.loading.base import outline
from pave.model.patched import PatchedModel
from pave.patch.file import Patch
from pave.patch.official import as_authors, convert

ROOT = Path(__file__).parents[1]
BASES = {dim: f"llava-hf/llava-onevision-qwen2-{size}-ov-hf" for dim, size in ((896, "0.5b"), (3584, "7b"))}
# By channels of the base and layers of the fusion: fusion parameters without the unused v_linear, and tensors of LoRA.
# From the shapes of dragonlzm/PAVE at commit ef6a93f; the paper counts 41.4 and 170.5 million with LoRA and v_linear.
FUSION = {(896, 2): 5_710_464, (3584, 2): 8_471_040, (3584, 3): 10_045_952}
LORA = {896: (35_192_832, 336), 3584: (161_480_704, 392)}
LAYERS = {"audio-music-avqa": 3}  # 2 in all others


class Undone(Exception):
    """A step that cannot be done here; the reason."""


@dataclass
class Run:
    """The steps of one released file, and what the earlier ones found."""

    recipe: Any
    found: Any  # the entry of the recipe: channels of the base, repository, file
    forward: bool
    path: Path = Path()
    patch: Any = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.found.dim, LAYERS.get(self.recipe.name, 2)

    def steps(self) -> Iterator[tuple[str, Callable[[], str]]]:
        yield "download", self.download
        yield "sha256", self.sha256
        yield "convert", self.convert
        yield "tensors", self.tensors
        yield "parameters", self.parameters
        yield "apply", self.apply
        yield "forward", self.ask

    def download(self) -> str:
        try:
            commit, remark = commit_of(self.found.repo, self.found.revision, [self.found.file])
            self.path = Path(download(self.found.repo, self.found.file, commit))
        except PatchError as error:
            if "offline" in str(error) or "cannot be reached" in str(error) or "the connection" in str(error):
                raise Undone(str(error)) from None
            raise
        return f"{self.path.stat().st_size:,} bytes of commit {commit[:12]} {remark}"

    def sha256(self) -> str:
        with self.path.open("rb") as file:
            digest = hashlib.sha256()
            while piece := file.read(1 << 20):
                digest.update(piece)
        commit = self.path.parent.name
        with hub_errors(self.found.repo, commit):
            known = get_hf_file_metadata(hf_hub_url(self.found.repo, self.found.file, revision=commit)).etag
        if known != digest.hexdigest():
            raise AssertionError(f"{digest.hexdigest()}, the Hub says {known}")
        return digest.hexdigest()

    def convert(self) -> str:
        ((sense, config),) = self.recipe.senses.items()
        options = as_authors(config.encoder, config.options)
        self.patch = convert(self.path, sense, config.encoder, name=self.recipe.name, **options)
        return f"{sense}={config.encoder} {options or ''}"

    def tensors(self) -> str:
        """`Patch.check` compares every name and shape with the fusion's own; here: the counts, and LoRA's names."""
        self.patch.check()
        lora = [name for name in self.patch.tensors if name.startswith("lora.")]
        fusion = len(self.patch.tensors) - len(lora)
        layers, wanted = self.shape[1], self.lora[1]
        same("tensors of the fusion", fusion, 10 + 8 * layers)
        same("tensors of LoRA", len(lora), wanted)
        same("layers", self.patch.config.fusion.layers, layers)
        kinds = {name.removesuffix(".A").removesuffix(".B").rpartition(".")[2] for name in lora}
        same("kinds of layers", " ".join(sorted(kinds)), "down_proj gate_proj k_proj o_proj q_proj up_proj v_proj")
        dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in self.patch.tensors.values()})
        return f"{fusion} of the fusion, {len(lora)} of LoRA, {self.patch.nbytes:,} bytes, {', '.join(dtypes)}"

    def parameters(self) -> str:
        counts = {True: 0, False: 0}
        for name, tensor in self.patch.tensors.items():
            counts[name.startswith("lora.")] += tensor.numel()
        same("parameters of the fusion", counts[False], self.fusion)
        same("parameters of LoRA", counts[True], self.lora[0])
        same("rank", self.patch.config.lora.r, self.rank)
        return f"{counts[False]:,} of the fusion, {counts[True]:,} of LoRA"

    rank = 64

    @property
    def fusion(self) -> int:
        return FUSION[self.shape]

    @property
    def lora(self) -> tuple[int, int]:
        return LORA[self.found.dim]

    def apply(self) -> str:
        """On the base's outline: every tensor finds its layer; no weights of the base are loaded."""
        base = BASES[self.found.dim]
        cost = cost_of(outline(base), self.patch, side_steps=[32])
        same("parameters on the base", cost.params, self.fusion + self.lora[0])
        return f"on the outline of {base}"

    def ask(self) -> str:
        ((_, config),) = self.recipe.senses.items()
        encoder = pave.load_encoder(config.encoder, **config.options)
        if lacking := encoder.lacking():
            raise Undone("; ".join(lacking))
        if not self.forward:
            raise Undone("pass --forward to load the base and ask it")
        if encoder.spec.sense == "depth":
            raise Undone("needs a scan: model.ask(video, question, depth=...)")
        return asked(pave.load(BASES[self.found.dim]), self.patch)


class Small(Run):
    """The same for a stand-in: a checkpoint of the released layout with small random tensors, on a small base."""

    rank = 4

    @property
    def fusion(self) -> int:
        return sum(each.numel() for each in self.weights.values())

    @property
    def lora(self) -> tuple[int, int]:
        return sum(each.numel() for each in self.pairs.values()), len(self.pairs)

    def download(self) -> str:
        import released as parts

        folder = Path(self.found.repo) / self.recipe.name
        self.pairs = parts.lora_tensors(parts.SIZES, parts.BLOCKS, 4)
        fusion = parts.fusion_tensors(**{**parts.TINY, "layers": self.shape[1]})
        self.weights = {name: each for name, each in fusion.items() if ".v_linear." not in name}
        parts.write_checkpoint(folder, fusion, self.pairs, blocks=parts.BLOCKS)
        self.path = parts.zipped(folder, f"./checkpoints/{self.recipe.name}")
        return f"{self.path.stat().st_size:,} bytes, made here"

    def sha256(self) -> str:
        raise Undone("nobody has published one of a stand-in")

    def convert(self) -> str:
        self.patch = convert(self.path, "audio", "logmel", name=self.recipe.name, bands=24)
        return "audio=logmel {'bands': 24}"

    def apply(self) -> str:
        from families import make_base
        from small import make_tokenizer

        self.model = PatchedModel(make_base(make_tokenizer(), side=378))
        report = self.model.apply_patch(self.patch)
        same("parameters on the base", report.params, self.fusion + self.lora[0])
        return "on a small base"

    def ask(self) -> str:
        self.model.remove_patch(self.patch.config.name)
        return asked(self.model, self.patch)


def asked(model: Any, patch: Patch) -> str:
    """One question about a clip, with and without the patch."""
    report = model.apply_patch(patch)
    answer = model.ask(ROOT / "examples" / "room.mp4", "What happens?", max_new_tokens=8)
    model.remove_patch(report.name)
    same("signals read", all(state.startswith("present") for state in answer.signals.values()), True)
    return repr(str(answer))


def same(what: str, got: object, want: object) -> None:
    if got != want:
        raise AssertionError(f"{what}: {got}, expected {want}")


def check(run: Run) -> tuple[int, bool]:
    """Print each step; the number of failed ones, and whether the file could be had."""
    print(f"{run.recipe.name} ({run.found.file}, for a base of {run.found.dim} channels)", flush=True)
    for name, step in run.steps():
        try:
            print(f"  pass  {name}: {step()}".rstrip(), flush=True)
        except Undone as reason:
            print(f"  -     {name}: not done: {reason}", flush=True)
            if name == "download":
                return 0, False
        except (PaveError, AssertionError, OSError) as error:
            print(f"  fail  {name}: {error}", flush=True)
            return 1, True
    return 0, True


def main(words: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser(description="Check the released files of the PAVE paper's authors.")
    parser.add_argument("names", nargs="*", help="names of the catalogue; default: all with a released file")
    parser.add_argument("--small", action="store_true", help="small stand-ins instead, offline")
    parser.add_argument("--forward", action="store_true", help="load each base and ask one question")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        runs = list(_runs(options, folder))
        failed = done = 0
        for run in runs:
            more, had = check(run)
            failed, done = failed + more, done + had
            if not had:
                break  # the next one has no network either
    print(f"\n{done} of {len(runs)} files were checked, {failed} failed")
    return 1 if failed else 0


def _runs(options: Any, folder: str) -> Iterator[Run]:
    names = options.names or [each.name for each in pave.list_patches() if each.recipe.released]
    if options.small:
        sys.path.insert(0, str(ROOT / "tests" / "parts"))
        names = options.names or ["audio-avsd", "audio-music-avqa"]  # 2 layers, 3 layers
    for name in names:
        recipe = catalogue.recipe(name)
        for found in recipe.released:
            kind, place = (Small, found.model_copy(update={"repo": folder})) if options.small else (Run, found)
            yield kind(recipe, place, options.forward)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    raise SystemExit(main(sys.argv[1:]))
