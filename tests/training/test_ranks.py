"""Claims about training in several processes: the run of one, whatever each of them has; one writes; no one hangs."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import forked
import pytest
import ranks_train
import torch
from patched import RESAMPLER
from places import PARTS, ROOT
from runs import KEEPING
from small import awaken
from torch import Tensor

from pave.errors import RecipeError, TrainingError
from pave.features.stored import Ahead
from pave.files.tensorfile import read_metadata
from pave.patch.file import Patch
from pave.recipe import Recipe, read_recipe
from pave.training.checkpoint import NAME
from pave.training.ranks import Ranks, joined
from pave.training.run import Run, train
from pave.training.setup import Setup
from pave.training.trainee import training

Make = Callable[..., Recipe]
LOSS, WEIGHTS = 1e-5, 1e-4  # what several processes may differ in from one
FAVOR = json.dumps({**RESAMPLER, "diversity": 0.5})
# Two clips of a step are one for each process, and two of the eight have no sound.
FEW = ("train.batch=2", "train.steps=6")
PLAIN = (*FEW, *KEEPING)
RUNS = {
    "plain": PLAIN,
    "parts": (*PLAIN, "train.shard=true"),
    "stopped": PLAIN,
    "long": PLAIN,
    "long, in parts": (*PLAIN, "train.shard=true"),
    "recomputed": (*FEW, "train.shard=true", "train.gradient_checkpointing=true", "train.dtype=bfloat16"),
    "favor": (*FEW, "train.shard=true", f"resampler={FAVOR}", "train.mean_over=tokens"),
}


def words(workshop: Path, output: Path, *more: str) -> list[str]:
    return [f"train.output={output}", f"data.train={workshop / 'mixed.jsonl'}", *more]


def environment(**more: object) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(PARTS)])
    settings = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    return {**os.environ, **settings, **{name: str(value) for name, value in more.items()}}


def begin(*line: object, **more: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, line)], env=environment(**more), stdout=-1, stderr=-1, text=True, cwd=ROOT
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def two(folder: Path, work: Callable[[], object]) -> list[forked.Forked]:
    """Two processes with the environment that torchrun gives them."""
    same = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [forked.begin(folder / f"rank-{i}", work, **same, RANK=i, LOCAL_RANK=i) for i in range(2)]


def losses(folder: Path) -> Tensor:
    """The losses of a run, in full."""
    return torch.tensor(json.loads(read_metadata(folder / NAME)["losses"]), dtype=torch.float64)


def off(one: Path, other: Path) -> tuple[float, float]:
    """The greatest differences of the losses and of the weights of two runs."""
    first, second = (Patch.load(folder / "patch.safetensors").tensors for folder in (one, other))
    assert first.keys() == second.keys()
    weights = max(float((first[name] - second[name]).abs().max()) for name in first)
    return float((losses(one) - losses(other)).abs().max()), weights


@pytest.fixture(scope="module")
def alone(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run of one process."""
    folder, done = tmp_path_factory.mktemp("alone"), set[str]()

    def run(name: str) -> Path:
        if name not in done:
            train(read_recipe(workshop, words(workshop, folder / name, *RUNS[name])))
            done.add(name)
        return folder / name

    return run


@pytest.fixture(scope="module")
def together(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """All runs in two processes, started as torchrun does: their folders, and what each process has printed."""
    folder = tmp_path_factory.mktemp("together")
    runs = {name: words(workshop, folder / name, *more) for name, more in RUNS.items()}
    runs["broken"] = words(workshop, folder / "broken", *FEW, "train.start_from=nowhere")
    ranks = two(folder, partial(ranks_train.main, str(workshop), runs))
    told = [rank.communicate() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], told
    return folder, [json.loads(out)["runs"] for out, _ in told]


@pytest.fixture
def ranked(recipe: Make, workshop: Path) -> Callable[..., Run]:
    """A run that has all clips, seen by one of several processes."""
    runs: dict[tuple[str, ...], Run] = {}

    def of(rank: int, count: int, *words: str, sharded: bool = False) -> Run:
        if words not in runs:
            five = recipe(
                *KEEPING, f"data.train={workshop / 'mixed.jsonl'}", "train.batch=5", *words, output=str(len(runs))
            )
            runs[words] = Run.begin(five)
            awaken(runs[words].setup.model, "ears")
        return replace(runs[words], setup=replace(runs[words].setup, ranks=Ranks(rank, count), sharded=sharded))

    return of


# In one process, without messages


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("words", [(), ("train.micro_batch=160", "train.mean_over=tokens"), ("train.accumulate=2",)])
def test_the_parts_of_processes_add_up_to_the_step_of_one(
    ranked: Callable[..., Run], words: tuple[str, ...], sharded: bool
) -> None:
    def parts(run: Run, step: int) -> tuple[int, Tensor, Tensor]:
        """The number of passes through the base, the sums of losses, and the gradients."""
        run.trainee.optimiser.zero_grad()
        sums, passes = torch.zeros(2), 0
        with training(run.trainee.attached):
            for loss, kept, *_ in run.losses_of(step):
                sums, passes = sums + torch.stack([loss.detach(), torch.as_tensor(kept).detach()]), passes + 1
                if loss.requires_grad:
                    (loss + kept).backward()
        grads = [torch.zeros_like(each) if each.grad is None else each.grad for each in run.trainee.all]
        return passes, sums, torch.cat([each.flatten() for each in grads])

    for step in range(2):
        _, *whole = parts(ranked(0, 1, *words), step)
        passes, *three = zip(*(parts(ranked(rank, 3, *words, sharded=sharded), step) for rank in range(3)), strict=True)
        assert whole[0][1] > 0 and len({float(each[0]) for each in three[0]}) == 3
        assert len({*passes}) == 1 or not sharded
        for one, others in zip(whole, three, strict=True):
            assert (one - torch.stack(others).sum(0)).abs().max() <= 1e-5 * one.abs().max()


def test_a_process_reads_its_own_clips_of_a_step_and_the_next(ranked: Callable[..., Run]) -> None:
    run = ranked(1, 2)
    read: list[int] = []

    def noting(number: int, fetch: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: (read.append(number), fetch())[1]

    every = [
        replace(clip, stored=replace(clip.stored, fetch=noting(number, clip.stored.fetch)))
        for number, clip in enumerate(run.dataset.train)
    ]
    numbers = {id(clip): number for number, clip in enumerate(every)}
    run = replace(run, dataset=replace(run.dataset, train=every), setup=replace(run.setup, general=()), ahead=Ahead())
    list(run.losses_of(0))
    run.ahead._pool.shutdown()
    own = [numbers[id(clip)] for step in (0, 1) for clip in run.clips_of(step)[1::2]]
    assert sorted(read) == sorted(own) and len(own) == 4


def test_fewer_clips_than_processes_are_refused(recipe: Make) -> None:
    with pytest.raises(RecipeError, match=r"train\.batch=3: fewer clips in a step than processes, .* are 4; raise it"):
        Setup._of(recipe(), Ranks(0, 4))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported; use --use_fsdp"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, r"mixed_precision is bf16, but train\.dtype is float32"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, r"mixed_precision is fp16"),
    ],
)
def test_what_accelerate_is_asked_for_is_not_dropped_in_silence(
    recipe: Make, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], message: str
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match=message):
        Setup.of(recipe())


def test_a_process_that_cannot_find_the_others_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(
        TrainingError, match=r"WORLD_SIZE=2 .*MASTER_ADDR, MASTER_PORT is not set; start them with torch"
    ):
        next(iter(_entered(joined())))


def _entered(manager: Any) -> Iterator[Any]:
    with manager as found:
        yield found


# Real processes


@pytest.mark.parametrize("name", ["plain", "parts", "favor"])
def test_two_processes_train_the_patch_of_one(
    alone: Callable[[str], Path], together: tuple[Path, list[dict[str, Any]]], name: str
) -> None:
    """A step has one clip for each; where that has no sound, the process has nothing to learn from."""
    loss, weights = off(alone(name), together[0] / name)
    assert loss <= LOSS and weights <= WEIGHTS
    assert len(losses(alone(name)).unique()) == 6


@pytest.mark.parametrize("name", ["long", "long, in parts"])
def test_with_the_masks_of_long_rows_they_train_the_same_patch(
    alone: Callable[[str], Path], together: tuple[Path, list[dict[str, Any]]], name: str
) -> None:
    """Attention then runs in parts, and no mask is stored; the single process has stored masks."""
    loss, weights = off(alone("plain"), together[0] / name)
    assert 0 < loss <= LOSS and 0 < weights <= WEIGHTS


def test_with_recomputed_layers_in_bfloat16_two_processes_do_the_same(
    alone: Callable[[str], Path], together: tuple[Path, list[dict[str, Any]]]
) -> None:
    """Within the rounding of bfloat16, which has 8 bits."""
    loss, _ = off(alone("recomputed"), together[0] / "recomputed")
    assert loss < 0.05 < float(losses(alone("recomputed")).max())


def test_each_process_stores_its_part_of_the_base(together: tuple[Path, list[dict[str, Any]]]) -> None:
    for each in together[1]:
        assert each["parts"]["stored"] == each["plain"]["stored"] // 2 > 0


def test_the_processes_of_a_machine_load_one_after_the_other(together: tuple[Path, list[dict[str, Any]]]) -> None:
    """As each has the whole base until it has divided it."""
    (_, first_end), (second_begin, _) = (each["turn"] for each in together[1])
    assert first_end <= second_begin
    assert Ranks().one_by_one(lambda: "alone") == "alone"


def test_a_run_that_is_stopped_and_resumed_has_the_same_bits(together: tuple[Path, list[dict[str, Any]]]) -> None:
    folder = together[0]
    files = [(folder / name / "patch.safetensors").read_bytes() for name in ("plain", "stopped")]
    assert files[0] == files[1]


def test_each_clip_is_encoded_by_one_process(together: tuple[Path, list[dict[str, Any]]]) -> None:
    features = together[0] / "plain" / "features"
    counts = [len(json.loads(read_metadata(file)["clips"])) for file in features.glob("*.safetensors")]
    assert counts == [4, 4]
    assert sorted(file.name for file in (together[0] / "plain").iterdir()) == [
        NAME,
        "curves.png",
        "features",
        "log.jsonl",
        "metrics.json",
        "patch.safetensors",
    ]


def test_an_error_is_told_by_the_first_process(together: tuple[Path, list[dict[str, Any]]]) -> None:
    first, second = (each["broken"]["error"] for each in together[1])
    assert first.startswith("PatchNotFound: nowhere") and second == f"Elsewhere: process 0 of 2: {first[15:]}"


def test_the_end_of_a_process_ends_the_others_and_any_number_of_them_goes_on(
    workshop: Path, tmp_path: Path, alone: Callable[[str], Path]
) -> None:
    runs = {"killed": words(workshop, tmp_path / "out", *PLAIN, "train.checkpoint_every=1")}
    ranks = two(tmp_path, partial(ranks_train.main, str(workshop), runs))
    (_, err), _ = (rank.communicate() for rank in ranks)
    assert ranks[1].returncode == -signal.SIGKILL and ranks[0].returncode == 1, err
    (error,) = re.findall("TrainingError: (process 0 of 2: another one has ended, or does not answer; what .*)", err)
    assert error.endswith("--resume goes on from it") and "the last good checkpoint, of step 3" in error
    train(read_recipe(workshop, words(workshop, tmp_path / "out", *PLAIN, "train.checkpoint_every=1")), resume=True)
    loss, weights = off(alone("plain"), tmp_path / "out")
    assert loss <= LOSS and weights <= WEIGHTS


def test_accelerate_trains_on_two_machines_and_says_everything_once(
    workshop: Path, tmp_path: Path, alone: Callable[[str], Path]
) -> None:
    pytest.importorskip("accelerate")
    launch = ("-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version=2", "--num_processes=2")
    net = ("--num_machines=2", "--main_process_ip=127.0.0.1", f"--main_process_port={free_port()}")
    line = ("-m", "pave.cli.train", workshop, *words(workshop, tmp_path / "out", *PLAIN))
    machines = [begin(*launch, *net, f"--machine_rank={rank}", *line) for rank in range(2)]
    (out, err), (other_out, other_err) = (machine.communicate() for machine in machines)
    assert [machine.returncode for machine in machines] == [0, 0], err + other_err
    assert "6 steps of 2 clips, 2 processes" in err and "patch.safetensors" in out
    assert "step" not in other_err and not other_out
    loss, weights = off(alone("plain"), tmp_path / "out")
    assert loss <= LOSS and weights <= WEIGHTS


def test_ray_trains_with_two_workers(workshop: Path, tmp_path: Path, alone: Callable[[str], Path]) -> None:
    pytest.importorskip("ray.train", reason='pip install "pave[ray]"')
    line = ("-m", "pave.cli.train", workshop, *words(workshop, tmp_path / "out", *PLAIN), "--engine=ray", "--workers=2")
    out, err = (process := begin(*line)).communicate()
    assert process.returncode == 0, err
    assert out.splitlines()[-1].startswith(str(tmp_path / "out" / "patch.safetensors")) and "2 processes" in err
    loss, weights = off(alone("plain"), tmp_path / "out")
    assert loss <= LOSS and weights <= WEIGHTS
