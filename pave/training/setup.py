"""The parts of a run before any clip is read: the base, frozen patches, encoders, and the patch to start from.

In: a recipe. Out: a `Setup`, or an error if this recipe cannot be trained here; what can be checked without the base is
checked first, since the base may be large.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pave.base import Host
from pave.config import LoraConfig, PatchConfig
from pave.encoder import Encoder, missing
from pave.errors import EncoderError, RecipeError
from pave.features.cache import FeatureCache
from pave.fusion.clock import refuse_overflow
from pave.model.layout import refuse_apart
from pave.model.patched import PatchedModel, load
from pave.patch.attached import Attached
from pave.patch.base_match import base_match
from pave.patch.file import Patch
from pave.patch.report import PatchReport
from pave.readers.questions import refuse_no_data
from pave.recipe import Recipe
from pave.training.checkpoint import refuse_a_file
from pave.training.general import built_in, read_questions
from pave.training.log import refuse_missing
from pave.training.ranks import ALONE, Ranks
from pave.training.sharding import sharded

# Recorded elsewhere in the patch, or without effect on its weights.
UNRECORDED = {
    "output",
    "keep_lora_when_absent",
    "gate",
    "eval_every",
    "checkpoint_every",
    "accumulate",
    "micro_batch",
    "gradient_checkpointing",
    "on_top_of",
    "start_from",
    "shard",
    "trackers",
}
# Set by `accelerate launch`.
FOREIGN = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}
# A recipe and the patch in its train.start_from must be equal in these; a LoRA of another shape begins anew.
SHAPE = ("senses", "resampler", "fusion", "newline", "prompt")


@dataclass(frozen=True)
class Setup:
    """A recipe with its models loaded."""

    recipe: Recipe
    model: PatchedModel
    below: tuple[PatchReport, ...]  # frozen patches that the new one is trained on top of
    senses: Mapping[str, Encoder]
    store: FeatureCache
    start: Patch | None  # the patch of train.start_from
    general: tuple[str, ...]  # questions that need no sense, for train.keep
    ranks: Ranks = ALONE
    sharded: bool = False  # whether each of the processes has only a part of the base

    @classmethod
    def of(cls, recipe: Recipe, ranks: Ranks = ALONE) -> Setup:
        """Load what a recipe names, in each of the processes that train together."""
        with ranks.together():
            return cls._of(recipe, ranks)

    @classmethod
    def _of(cls, recipe: Recipe, ranks: Ranks) -> Setup:
        refuse_a_file(recipe.output)
        refuse_missing(recipe.train.trackers)
        least = min(part.batch for part in recipe.train.parts)
        if least < ranks.count:
            cause = f"train.batch={least}: fewer clips in a step than processes, of which there are"
            raise RecipeError(f"{cause} {ranks.count}; raise it, or start fewer")
        for problem in filter(None, (missing(each.encoder) for each in recipe.senses.values())):
            raise EncoderError(problem)
        for data in (recipe.data.train, recipe.data.val):
            refuse_no_data(data)
        options, divides = recipe.train, _sharded(recipe, ranks)

        def loaded() -> PatchedModel:
            device = "cpu" if divides else "auto"  # a GPU may not hold the whole base
            return load(
                recipe.base, dtype=options.dtype, device=device, quantize=options.quantize, frames=recipe.frames
            )

        model = sharded(loaded, ranks) if divides else loaded()
        recipe = recipe.model_copy(update={"train": recipe.train.on(model.host.dim)})
        for match in recipe.train.matches:
            for name in ("question", "same", "other"):
                model.host.refuse_text(getattr(match, name), f"train.modalities.match.{name}")
        # All questions of a clip share a row, so that these act on all of them: their gates stay open.
        below = tuple(model.apply_patch(each, gate=False) for each in recipe.train.on_top_of)
        senses = {sense: model.encoder(config) for sense, config in recipe.senses.items()}
        folder, data = recipe.output / "features", recipe.data
        store = FeatureCache(
            model, _encoders(model, senses), folder, data.features, data.timeout, data.cache, data.budget
        )
        store.hears_alone = recipe.train.sound_alone
        start, kept = _start(recipe, model, senses), recipe.data.keep
        general = read_questions(kept, model.host) if kept else built_in("kept") if recipe.train.keep else ()
        setup = cls(recipe, model, below, senses, store, start, general, ranks, divides)
        with torch.device("meta"):  # build the patch without memory, so that errors come before any clip is read
            refuse_apart(model.host, [*model.attached(), Attached(setup.config(), model.host)])
        return setup

    @property
    def names(self) -> list[str]:
        """All patches of a step, the trained one last."""
        return [*(report.name for report in self.below), self.recipe.name]

    @property
    def encoders(self) -> list[Encoder]:
        """Those of all patches, each once."""
        return _encoders(self.model, self.senses)

    @property
    def streams(self) -> set[str]:
        """The signals that encoders read."""
        return {each.spec.sense for each in (*self.model.encoders(), *self.senses.values())}

    def remarks(self) -> list[str]:
        """What of the patch in train.start_from is not taken."""
        theirs, ours = self.start and self.start.config.lora, self.recipe.lora
        if self.start is None or same_lora(theirs, ours):
            return []
        has, begins = (f"r={each.r}, lora_alpha={each.lora_alpha:g}" if each else "none" for each in (theirs, ours))
        then = f"; the recipe's ({begins}) begins anew" if ours else ", and the recipe has none"
        return [f"train.start_from={self.recipe.train.start_from}: its LoRA ({has}) is not taken{then}"]

    def config(self, clips: int = 0, questions: int = 0, steps: int | None = None) -> PatchConfig:
        """The config of the patch file, trained on so many clips and questions in so many steps."""
        config = patch_config(self.recipe, self.model.host, self.senses)
        training = {
            "clips": clips,
            "questions": questions,
            **config.training,
            **({"steps": steps} if steps else {}),
            **({"on_top_of": {each.name: each.sha256 for each in self.below}} if self.below else {}),
            **({"start_from": {self.start.config.name: self.start.sha256}} if self.start else {}),
        }
        weights = {sense: {"weights": self.store.weights(encoder)} for sense, encoder in self.senses.items()}
        senses = {sense: facts.model_copy(update=weights[sense]) for sense, facts in config.senses.items()}
        return config.model_copy(update={"training": training, "senses": senses})


def _sharded(recipe: Recipe, ranks: Ranks) -> bool:
    """Whether to divide the base, as the recipe or `accelerate launch` says. RecipeError where accelerate was asked for
    what a recipe decides."""
    options, given = recipe.train, os.environ
    for key, what in FOREIGN.items():
        if given.get(key) == "true":
            raise RecipeError(f"accelerate launch: {what} is not supported; use --use_fsdp, or train.shard=true")
    precision = given.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", {"bfloat16": "bf16"}.get(options.dtype)):
        cause = f"accelerate launch: mixed_precision is {precision}, but train.dtype is {options.dtype}, which decides"
        raise RecipeError(f"{cause}; make them equal (bf16 is bfloat16), or leave mixed_precision out")
    fsdp = given.get("ACCELERATE_USE_FSDP") == "true"
    if fsdp and options.quantize:
        cause = f"accelerate launch: FSDP divides the base, but quantised weights (train.quantize={options.quantize})"
        raise RecipeError(f"{cause} are not divided; leave one of them out")
    return ranks.count > 1 and (options.shard or fsdp)


def same_lora(one: LoraConfig | None, other: LoraConfig | None) -> bool:
    """Whether the weights of one LoRA mean the same in the other; dropout does not matter."""
    facts = [each and each.model_dump(exclude={"lora_dropout"}) for each in (one, other)]
    return facts[0] == facts[1]


def _encoders(model: PatchedModel, senses: Mapping[str, Encoder]) -> list[Encoder]:
    return list({each.spec.preprocessing: each for each in (*model.encoders(), *senses.values())}.values())


def patch_config(recipe: Recipe, host: Host, encoders: Mapping[str, Encoder]) -> PatchConfig:
    """The config of a patch file of this recipe before training; no paths, no time stamps."""
    for sense, encoder in encoders.items():
        if recipe.resampler:
            refuse_overflow(sense, encoder.spec.rate, encoder.spec.grid, recipe.resampler)
    return PatchConfig(
        name=recipe.name,
        description=recipe.description,
        base=host.facts(),
        newline=recipe.newline or host.newlines[0],
        prompt=host.template,
        senses={sense: encoders[sense].spec.facts(config.align) for sense, config in recipe.senses.items()},
        resampler=recipe.resampler,
        fusion=recipe.fusion,
        lora=recipe.lora,
        # Recorded only if the recipe says it: a default would be a choice that nobody made.
        licence=recipe.licence if "licence" in recipe.model_fields_set else "",
        keep_lora_when_absent=recipe.train.keep_lora_when_absent,
        gate=recipe.train.gate,
        sound_alone=recipe.train.sound_alone,
        training=recipe.train.facts(UNRECORDED - ({"eval_every"} if recipe.train.best else set())),
    )


def _start(recipe: Recipe, model: PatchedModel, senses: Mapping[str, Encoder]) -> Patch | None:
    """The patch of train.start_from. RecipeError if its shape differs from the recipe's."""
    source = recipe.train.start_from
    if source is None:
        return None
    patch, _ = model.find_patch(source)
    base_match(patch.config, model.host, source, strict=False)
    theirs, ours = (
        config.model_dump(mode="json", include=set(SHAPE), exclude={"senses": {"__all__": {"weights"}}})
        for config in (patch.config, patch_config(recipe, model.host, senses))
    )
    for key in SHAPE:
        if theirs[key] != ours[key]:
            raise RecipeError(
                f"train.start_from={source}: its {key} is {theirs[key]}, the recipe's {ours[key]}; make them equal"
            )
    return patch
