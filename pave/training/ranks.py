"""Several processes that train one patch together, each with a part of the clips of every step.

Each has the whole patch, and adds its part to the gradients: one message a step, in which every process has divided by
the questions of the whole step. So the sum is the gradient of one process that has all clips, whatever each has of
them, and a process whose clips lack the sense has nothing to add and nobody to wait for. PyTorch's
DistributedDataParallel is not used: it averages over processes as if their parts weighed the same, and expects a
gradient for every parameter from each of them. It hides its messages behind the backward pass, which matters for
gradients of a whole model; those of a patch have some 20 MB.

In: the environment that torchrun, `accelerate launch` or Ray gives a process, or torch.distributed as the caller has
initialised it. Out: `Ranks`. Knows nothing of recipes, models and files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pave.errors import PaveError, TrainingError

T = TypeVar("T")
STEP = timedelta(minutes=30)  # that a process may be late in a step
STAGE = timedelta(days=30)  # and in reading its clips, of which one may have far longer ones
NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")
# How torch's backends begin to say that a process is gone or does not answer.
LOST = re.compile(r"gloo|NCCL|connection (?:closed|reset|refused)|broken pipe|timed ?out|socket", re.IGNORECASE)


class Elsewhere(TrainingError):
    """Another process has failed; the first one of all raises its error."""


@dataclass(frozen=True)
class Ranks:
    """The place of this process among all."""

    rank: int = 0
    count: int = 1
    here: int = 1  # of them on this machine
    control: Any = None  # the group for all but gradients

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part."""
        return self.shares(items)[self.rank]

    def shares(self, items: Sequence[T]) -> list[list[T]]:
        """The parts of all processes."""
        return [list(items[rank :: self.count]) for rank in range(self.count)]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in their order; all have to call it."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value, group=self.control)
        return found

    def agree(self, value: object, what: str) -> None:
        """TrainingError unless the processes have the same value."""
        found = self.gather(value)
        if any(each != value for each in found):
            values = ", ".join(map(str, found))
            raise TrainingError(f"{what} is not the same for all processes ({values}); give a folder that they share")

    def add_up(self, parameters: Sequence[nn.Parameter], figures: Tensor) -> Tensor:
        """Replace the gradients by their sums over all processes; None stays where none has one. Returns the sums of
        some figures (k,)."""
        if self.count == 1:
            return figures
        device = figures.device
        known = torch.tensor([each.grad is not None for each in parameters], device=device)
        grads = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        message = torch.cat([figures.float(), known.float(), *(each.flatten().float() for each in grads)])
        dist.all_reduce(message)
        sizes = [len(figures), len(known), *(each.numel() for each in grads)]
        figures, known, *sums = message.split(sizes)
        for each, present, total in zip(parameters, known.tolist(), sums, strict=True):
            each.grad = total.view_as(each) if present else None
        return figures

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors with those of the first process."""
        for each in tensors if self.count > 1 else ():
            dist.broadcast(each.detach(), src=0, group=self.control)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Processes leave the block together. An error in one ends all: the first process raises it, and the others
        `Elsewhere`, so that it is told once."""
        mine = None
        try:
            yield
        except PaveError as error:
            if self.count == 1:
                raise
            mine = error
        failed = {rank: error for rank, error in enumerate(self.gather(mine)) if error is not None}
        if not failed:
            return
        rank, error = next(iter(failed.items()))
        if self.first:
            raise mine or error
        raise Elsewhere(f"process {rank} of {self.count}: {error}")

    def in_turn(self, work: Callable[[], T]) -> T:
        """The first process does its work before the others, which find the files that it has written."""
        done: list[T] = []
        for turn in (True, False)[: self.count]:
            with self.together():
                if self.first is turn:
                    done.append(work())
        return done[0]

    def one_by_one(self, work: Callable[[], T]) -> T:
        """The processes of a machine do their work one after the other, as what needs the memory of all of it."""
        done: list[T] = []
        for turn in range(max(self.gather(self.here))):  # machines may have more or fewer
            with self.together():
                if self.rank % self.here == turn:
                    done.append(work())
        return done[0]

    @contextmanager
    def reachable(self, left: Callable[[], str] = lambda: "start them again") -> Iterator[None]:
        """Within the block, the end of another process is a TrainingError. left: the remedy."""
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not LOST.search(str(error)):
                raise
            cause = f"process {self.rank} of {self.count}: another one has ended, or does not answer"
            raise TrainingError(f"{cause}; what it has printed tells why; {left()}") from error


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """Within the block, this process is one of those that were started together; ALONE if it is the only one.
    TrainingError if the others cannot be found, and when one of them ends before."""
    mine = not (dist.is_available() and dist.is_initialized())
    if mine and os.environ.get("WORLD_SIZE", "1") == "1":
        yield ALONE
        return
    if mine:
        _join()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    control = dist.new_group(backend="gloo", timeout=STAGE)
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), here, control)
    with ranks.reachable():
        yield ranks
        ranks.gather(None)  # the first process is the one that the others are connected through
    dist.destroy_process_group(None if mine else ranks.control)


def _join() -> None:
    """Initialise torch.distributed from the environment, on this process's GPU if there are any."""
    if absent := [name for name in NEEDED if name not in os.environ]:
        cause = f"WORLD_SIZE={os.environ['WORLD_SIZE']} announces several processes, but {', '.join(absent)} is not set"
        raise TrainingError(f"{cause}; start them with torchrun or accelerate launch, or unset WORLD_SIZE")
    gpus, place = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    if gpus:
        if place >= gpus:
            cause = f"{os.environ.get('LOCAL_WORLD_SIZE')} processes on a machine with {gpus} GPUs"
            raise TrainingError(f"{cause}; start one for each, as torchrun --nproc_per_node {gpus}")
        torch.cuda.set_device(place)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=STEP)
    except (ValueError, RuntimeError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        cause = f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} cannot reach the others at {where}"
        raise TrainingError(
            f"{cause} ({str(error).splitlines()[0]}); start all of them with the same address"
        ) from None
