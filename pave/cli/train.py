"""The `pave-train` command.

    pave-train RECIPE [key.sub=value ...] [--resume] [--dry-run | --smoke]

In: a recipe (a file, its folder, or a catalogue name) and overrides. Out: the folder `train.output` with
`patch.safetensors` and `metrics.json`; progress on stderr.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pave.cli.terminal import PLAIN, lines_of, quiet, remark, run_command, say
from pave.errors import RecipeError
from pave.files.locks import scratch
from pave.hub import catalogue
from pave.recipe import Recipe
from pave.text.shown import counted

if TYPE_CHECKING:
    from pave.training.run import Progress, Result

app = typer.Typer(**PLAIN)
SMOKE = ("train.epochs=null", "train.stages=[]", "train.steps=2", "train.batch=4", "train.accumulate=1")
SMOKE += ("train.eval_every=1", "train.checkpoint_every=1")


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A patch.yaml, its folder, or a catalogue name.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY.SUB=VALUE", help="For example train.steps=100.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the last checkpoint in train.output.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show the resolved recipe and one sample as the loss sees it; write nothing."),
    ] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Train two steps on a few clips, save, load, compare; write nothing.")
    ] = False,
) -> None:
    """Train a patch on a frozen video LLM."""
    quiet()
    if [resume, dry_run, smoke].count(True) > 1:
        raise RecipeError("--resume, --dry-run and --smoke exclude each other; use one of them")
    resolved = catalogue.recipe(recipe, overrides or [])
    if dry_run:
        _show(resolved)
    elif smoke:
        _smoke(recipe, overrides or [])
    else:
        result = _train(resolved, resume)
        say(*summary(result))


def summary(result: Result) -> list[str]:
    """The results of a run, as lines."""
    lines: list[str] = []
    held_out: Any = result.metrics.get("held_out", {})
    if held_out:
        lines.append(f"{'held-out questions':20} {'base':>6} {'patched':>8}")
        lines += [f"{key:20} {each['base']:6.3f} {each['patched']:8.3f}" for key, each in held_out.items()]
    kept: Any = result.metrics["retention"]
    lines.append(f"the base keeps {kept['tokens']:.1%} of what it says where no sense is needed (KL {kept['kl']:.3f})")
    gate: Any = result.metrics.get("gate", {})
    if gate.get("held_out_opens", 1) < 1:
        lines.append(
            f"its gate leaves {1 - gate['held_out_opens']:.1%} of the held-out questions to the base, as not about the "
            "clip; add questions like them to the training data, or train with train.gate=false"
        )
    unreadable: Any = result.metrics["unreadable"]
    if unreadable:
        listed = result.patch.parent / "features" / "quarantine.jsonl"
        lines.append(f"{len(unreadable)} unreadable clips were left out; see {listed} for the reasons")
    seconds: Any = result.metrics["seconds"]
    lines.append(f"features {seconds['features']:.0f} s, steps {seconds['steps']:.0f} s")
    lines.append(f"{result.patch} ({result.patch.stat().st_size:,} bytes)")
    return lines


def _train(recipe: Recipe, resume: bool) -> Result:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from pave.training.checkpoint import owned
    from pave.training.dataset import read_dataset
    from pave.training.run import Run
    from pave.training.setup import Setup

    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    ]
    with (
        owned(recipe.output, resume),
        Bar(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar,
    ):
        remark(f"{recipe.name}: base {recipe.base}, {recipe.train.length}")
        remark("encoding clips (features of earlier runs are cached)")
        clips = bar.add_task("clips", total=None, note="")
        steps = bar.add_task("training", total=None, note="", start=False)

        def seeing(done: int, total: int) -> None:
            bar.update(clips, completed=done, total=total)

        def show(step: int, total: int, figures: dict[str, float]) -> None:
            loss = f"loss {figures['loss']:.3f}"
            bar.start_task(steps)
            bar.update(steps, completed=step, total=total, note=loss)
            looked = [f"{name} {figures[name]:.3f}" for name in ("held-out", "retention") if name in figures]
            if looked:
                remark("  ".join([f"step {step}/{total}", loss, *looked]))
            elif not sys.stderr.isatty() and (step % 50 == 0 or step == total):
                remark(f"step {step}/{total}  {loss}")

        progress: Progress = show
        run = None
        try:
            setup = Setup.of(recipe)
            dataset = read_dataset(setup, on_clip=seeing, tell=remark)
            remark(*dataset.remarks())
            run = Run.of(setup, dataset)
            return run.complete(resume, progress, remark)
        except KeyboardInterrupt:
            remark("", f"stopped; {run.left() if run else 'no checkpoint has been written yet'}")
            raise SystemExit(130) from None


def _smoke(recipe: str, overrides: list[str]) -> None:
    """A short run of everything: features, two steps, checkpoint, patch file; logits must be equal after loading it."""
    import torch

    from pave.patch.file import Patch
    from pave.training.dataset import batch, read_dataset
    from pave.training.loss import scores
    from pave.training.run import Run
    from pave.training.setup import Setup

    with scratch() as folder:
        small = ["data.playroom.clips=8"] if catalogue.recipe(recipe, overrides).data.playroom else []
        resolved = catalogue.recipe(recipe, [*overrides, *SMOKE, *small, f"train.output={folder}"])
        setup = Setup.of(resolved)
        dataset = read_dataset(setup, clips=8)
        run = Run.of(setup, dataset)
        run.fit(lambda step, steps, figures: say(f"step {step}: loss {figures['loss']:.3f}"))
        result = run.finish()
        size = result.patch.stat().st_size
        model, few, names = setup.model, dataset.train[:2], setup.names
        with torch.no_grad():
            before, _ = scores(model, *batch(model, few, names))
            model.remove_patch(resolved.name)
            model.apply_patch(Patch.load(result.patch))
            after, _ = scores(model, *batch(model, few, names))
    same = torch.equal(before, after)
    say(f"patch of {size:,} bytes, saved and loaded: logits {'equal' if same else 'DIFFER'}")
    if not same:
        raise SystemExit(1)


def _show(recipe: Recipe) -> None:
    """Print the resolved recipe and a summary of the data files; nothing is written."""
    import yaml

    from pave.readers.questions import names_of, read_data
    from pave.training.dataset import unread
    from pave.training.setup import Setup

    say(*lines_of(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True).strip()))
    setup = Setup.of(recipe)
    host = setup.model.host
    if recipe.data.train is None:
        say("", "the clips of this recipe are generated when training starts")
        return
    packed: set[Path] = set()
    examples = read_data(recipe.data.train, packed=packed)
    held_out = read_data(recipe.data.val, packed=packed) if recipe.data.val else []
    sources = {example.source for example in examples}
    files = {file for source in sources for file in source.files} - packed
    missing = sorted(str(file) for file in files if not os.path.exists(file))
    asked = f"{counted(len(examples), 'question')} about {counted(len(sources), 'clip')}"
    say("", f"{names_of(recipe.data.train)}: {asked}, {counted(len(missing), 'file')} missing")
    say(*(f"  missing: {file}" for file in missing[:5]))
    say(*(f"  {line}" for line in unread([*examples, *held_out], setup.streams)))
    say(*(f"  {line}" for line in setup.store.plan(list(dict.fromkeys(e.source for e in [*examples, *held_out])))))
    first = examples[0]
    before, behind = host.prompt(first.question)
    learned = [*host.encode_text(first.answer), host.end]
    rows = len(host.visual_ids(range(0, host.frames, host.pair), recipe.newline or host.newlines[0]))
    say("", f"{first.place} as the loss sees it ({len(before) + rows + len(behind) + len(learned)} tokens):")
    say(f"  not learned: {host.tokenizer.decode(before)!r} + {rows} visual tokens + {host.tokenizer.decode(behind)!r}")
    say(f"  learned:     {host.tokenizer.decode(learned)!r}")


def main() -> None:
    """Run the command; errors are one line and exit code 2, as for `pave`."""
    run_command(app, "pave-train")


if __name__ == "__main__":
    main()
