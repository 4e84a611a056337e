"""The parts of a run before any clip is read: the base, frozen patches, encoders, and the patch to start from.

In: a recipe. Out: a `Setup`, or an error if this recipe cannot be trained here; what can be checked without the base is
checked first, since the base may be large.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pave.base import Host
from pave.config import PatchConfig
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

# Recorded elsewhere in the patch, or without effect on its weights.
UNRECORDED = {
    "output",
    "keep_lora_when_absent",
    "gate",
    "eval_every",
    "checkpoint_every",
    "gradient_checkpointing",
    "on_top_of",
    "start_from",
    "trackers",
}
# A recipe and the patch in its train.start_from must be equal in these.
SHAPE = ("senses", "resampler", "fusion", "lora", "newline", "prompt")


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

    @classmethod
    def of(cls, recipe: Recipe) -> Setup:
        """Load what a recipe names."""
        refuse_a_file(recipe.output)
        refuse_missing(recipe.train.trackers)
        for problem in filter(None, (missing(each.encoder) for each in recipe.senses.values())):
            raise EncoderError(problem)
        for data in (recipe.data.train, recipe.data.val):
            refuse_no_data(data)
        model = load(recipe.base, dtype=recipe.train.dtype, frames=recipe.frames)
        below = tuple(model.apply_patch(each) for each in recipe.train.on_top_of)
        senses = {sense: model.encoder(config) for sense, config in recipe.senses.items()}
        folder, data = recipe.output / "features", recipe.data
        store = FeatureCache(
            model, _encoders(model, senses), folder, data.features, data.timeout, data.cache, data.budget
        )
        start, kept = _start(recipe, model, senses), recipe.data.keep
        general = read_questions(kept, model.host) if kept else built_in("kept") if recipe.train.keep else ()
        setup = cls(recipe, model, below, senses, store, start, general)
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

    def config(self, clips: int = 0, questions: int = 0) -> PatchConfig:
        """The config of the patch file, trained on so many clips and questions."""
        config = patch_config(self.recipe, self.model.host, self.senses)
        training = {
            "clips": clips,
            "questions": questions,
            **config.training,
            **({"on_top_of": {each.name: each.sha256 for each in self.below}} if self.below else {}),
            **({"start_from": {self.start.config.name: self.start.sha256}} if self.start else {}),
        }
        weights = {sense: {"weights": self.store.weights(encoder)} for sense, encoder in self.senses.items()}
        senses = {sense: facts.model_copy(update=weights[sense]) for sense, facts in config.senses.items()}
        return config.model_copy(update={"training": training, "senses": senses})


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
        training=recipe.train.model_dump(mode="json", exclude=UNRECORDED),
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
