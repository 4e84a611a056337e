"""The `pave-train` command.

    pave-train RECIPE [key.sub=value ...] [--resume] [--dry-run | --smoke]

In: a recipe (a file, its folder, or a catalogue name) and overrides. Out: the folder `train.output` with
`patch.safetensors` and `metrics.json`; progress on stderr.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pave.cli.terminal import PLAIN, lines_of, quiet, remark, run_command, say
from pave.errors import RecipeError
from pave.files.locks import scratch
from pave.hub import catalogue
from pave.recipe import Recipe
from pave.text.progress import Shown
from pave.text.shown import counted

if TYPE_CHECKING:
    from pave.data import Example
    from pave.training.run import Result
    from pave.training.setup import Setup

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
        typer.Option("--dry-run", help="Look at all data and try a step; exit code 1 if it cannot be trained."),
    ] = False,
    decode: Annotated[bool, typer.Option("--decode", help="With --dry-run: read all clips to their end.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at broken records and unreadable clips: data.strict=true.")
    ] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Train two steps on a few clips, save, load, compare; write nothing.")
    ] = False,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(metavar="ENGINE", help="'local', or 'ray' for a cluster.")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Processes on Ray. Default: one for each of its GPUs.")
    ] = None,
) -> None:
    """Train a patch on a frozen video LLM.

    Under torchrun or accelerate launch, each process has its share of the clips of a step.
    """
    quiet()
    if [resume, dry_run, smoke].count(True) > 1:
        raise RecipeError("--resume, --dry-run and --smoke exclude each other; use one of them")
    if decode and not dry_run:
        raise RecipeError("--decode is for --dry-run, since a training reads all clips to their end; leave it out")
    if workers and engine != "ray":
        raise RecipeError(f"--workers {workers} is for --engine ray; start local processes with torchrun")
    overrides = [*(overrides or []), *(["data.strict=true"] if strict else [])]
    chosen = catalogue.recipe(recipe, overrides)
    if (dry_run or smoke) and not first():
        return  # the first of several processes shows it
    if dry_run:
        raise typer.Exit(0 if _dry_run(chosen, decode) else 1)
    elif smoke:
        _smoke(recipe, overrides)
    elif engine == "ray":
        from pave.training.cluster import train_on_ray

        say(*summary(train_on_ray(train_here, chosen, resume, workers, remark)))
    else:
        with told_elsewhere():
            result = train_here(chosen, resume)
        if result:
            say(*summary(result))


def summary(result: Result) -> list[str]:
    """The results of a run, as lines."""
    lines: list[str] = []
    held_out: Any = result.metrics.get("held_out", {})
    if held_out:
        columns = list(held_out["all"])
        lines.append(" ".join([f"{'held-out questions':20}", *(f"{name:>8}" for name in columns)]))
        for key, each in held_out.items():
            lines.append(" ".join([f"{key:20}", *(f"{each[name]:8.3f}" for name in columns)]))
        last: Any = result.metrics["history"]
        if (gain := last[-1].get("shuffled loss", math.inf) - last[-1]["held-out loss"]) <= 0:
            lines.append(
                f"with the signals of other clips (shuffled) the loss is no higher, but {-gain:.3f} lower: the patch "
                "does not use its sense; train longer, or check that the answers depend on it"
            )
    if told := _by_heart(result.metrics.get("by_heart")):
        lines.append(told)
    kept: Any = result.metrics["retention"]
    lines.append(f"the base keeps {kept['tokens']:.1%} of what it says where no sense is needed (KL {kept['kl']:.3f})")
    gate: Any = result.metrics.get("gate", {})
    if gate.get("held_out_opens", 1) < 1:
        lines.append(
            f"its gate leaves {1 - gate['held_out_opens']:.1%} of the held-out questions to the base, as not about the "
            "clip; add questions like them to the training data, or train with train.gate=false"
        )
    flaws: list[Any] = [result.metrics["broken"], result.metrics["unreadable"]]
    if any(flaws):
        names = zip(flaws, ("broken record", "unreadable clip"), strict=True)
        counts = " and ".join(counted(len(each), name) for each, name in names if each)
        listed = result.patch.parent / "features" / "quarantine.jsonl"
        lines.append(f"left out: {counts}; see {listed} for the reasons")
    seconds: Any = result.metrics["seconds"]
    lines.append(f"features {seconds['features']:.0f} s, steps {seconds['steps']:.0f} s")
    lines.append(f"{result.patch} ({result.patch.stat().st_size:,} bytes)")
    return lines


def _by_heart(found: Any) -> str:
    """What to say where training clips are answered with the signals of others, and held-out ones are not."""
    if not found:
        return ""
    (seen, asked), (new, control) = ((found[key]["right"], found[key]["questions"]) for key in ("training", "held_out"))
    share = (seen * asked + new * control) / (asked + control)
    error = math.sqrt(share * (1 - share) * (1 / asked + 1 / control))
    if seen - new < max(0.1, 3 * error):
        return ""
    return (
        f"with the signals of other clips, {seen:.1%} of the training questions are answered right, but {new:.1%} of "
        "the held-out ones: the patch knows its clips by heart; use more clips or fewer steps, or train with each "
        "signal beside the pictures of any clip (train.modalities.unpaired)"
    )


def first() -> bool:
    """Whether this process is the first of those that torchrun or Ray has started together."""
    return os.environ.get("RANK", "0") == "0"


def train_here(recipe: Recipe, resume: bool) -> Result | None:
    """Train in this process; of several that were started together, only the first one prints, and has a result."""
    if first():
        count = int(os.environ.get("WORLD_SIZE", "1"))
        among = f", {count} processes" if count > 1 else ""
        remark(f"{recipe.name}: base {recipe.base}, {recipe.train.length}{among}")
    from pave.training.run import train  # which takes seconds

    try:
        result = train(recipe, resume=resume)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    return result if first() else None


@contextmanager
def told_elsewhere() -> Iterator[None]:
    """An error that the first of several processes tells ends the others without a word."""
    from pave.training.ranks import Elsewhere

    try:
        yield
    except Elsewhere:
        raise SystemExit(2) from None


def _smoke(recipe: str, overrides: list[str]) -> None:
    """A short run of everything: features, two steps, checkpoint, patch file; logits must be equal after loading it."""
    with scratch() as folder:
        small = ["data.playroom.clips=8"] if catalogue.recipe(recipe, overrides).data.playroom else []
        resolved = catalogue.recipe(recipe, [*overrides, *SMOKE, *small, f"train.output={folder}"])
        remark(f"{resolved.name}: base {resolved.base}, two steps on a few clips; nothing is kept")
        import torch  # which takes seconds

        from pave.patch.file import Patch
        from pave.training.dataset import batch
        from pave.training.loss import scores
        from pave.training.run import Run

        with Shown() as shown:
            run = Run.begin(resolved, shown, clips=8)
            with shown.stage("steps", resolved.train.steps):
                run.fit(lambda step, steps, figures: say(f"step {step}: loss {figures['loss']:.3f}"))
            result = run.finish()
            size = result.patch.stat().st_size
            model, few, names = run.setup.model, run.dataset.train[:2], run.setup.names
            with shown.stage("loading the patch"), torch.no_grad():
                before, _ = scores(model, *batch(model, few, names))
                model.remove_patch(resolved.name)
                model.apply_patch(Patch.load(result.patch))
                after, _ = scores(model, *batch(model, few, names))
    same = torch.equal(before, after)
    say(f"patch of {size:,} bytes, saved and loaded: logits {'equal' if same else 'DIFFER'}")
    if not same:
        raise SystemExit(1)


def resolved(recipe: Recipe) -> list[str]:
    """A recipe with all defaults, as lines."""
    import yaml

    return [*lines_of(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True).strip())]


def _dry_run(recipe: Recipe, decode: bool) -> bool:
    """Print the resolved recipe and what is found of its data; whether it can be trained. Nothing is written."""
    remark(f"{recipe.name}: base {recipe.base}; nothing is written")
    from pave.training.scan import scan  # which takes seconds
    from pave.training.setup import Setup

    say(*resolved(recipe), "")
    with Shown() as shown:
        with shown.stage(f"loading {recipe.base}"):
            setup = Setup.of(recipe)
        if recipe.data.train is None:
            say("ready: the clips of this recipe are generated when training starts")
            return True
        found = scan(setup, decode, shown)
    say(*found.lines(), "")
    say(*_sample(setup, found.parts[0][0].examples[0]))
    say("", found.verdict)
    return not found.obstacle


def _sample(setup: Setup, first: Example) -> list[str]:
    """One question as the loss sees it, as lines."""
    host = setup.model.host
    before, behind = host.prompt(first.question, "", first.history)
    learned = [*host.encode_text(first.answer), host.end]
    rows = len(host.visual_ids(range(0, host.frames, host.pair), setup.recipe.newline or host.newlines[0]))
    text = host.tokenizer.decode
    return [
        f"{first.place} as the loss sees it ({len(before) + rows + len(behind) + len(learned)} tokens):",
        f"  not learned: {text(before)!r} + {rows} visual tokens + {text(behind)!r}",
        f"  learned:     {text(learned)!r}",
    ]


def main() -> None:
    """Run the command; errors are one line and exit code 2, as for `pave`."""
    run_command(app, "pave-train")


if __name__ == "__main__":
    main()
