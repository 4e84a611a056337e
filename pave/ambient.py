"""State that other code in the process sets for everybody: torch's default dtype and device, autocast, inference mode,
numpy's error state.

In: nothing. Out: a block in which none of it changes a result. It is entered where a call enters PAVE, and the state is
as before when the call returns. Only this thread is affected: torch.set_default_dtype() would change the results of
other threads, so the default dtype is replaced where tensors are created. Knows nothing of the rest of PAVE.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

PLAIN = torch.float32  # torch's own default dtype
# Functions whose result has the default dtype, unless they are passed another one.
FLOATING = frozenset(
    (
        *(torch.empty, torch.empty_permuted, torch.empty_strided, torch.zeros, torch.ones, torch.eye),
        *(torch.rand, torch.randn, torch.linspace, torch.logspace, torch.fft.fftfreq, torch.fft.rfftfreq),
        *(torch.bartlett_window, torch.blackman_window, torch.hamming_window, torch.hann_window, torch.kaiser_window),
    )
)
# Functions whose result has the default dtype if they are passed Python's floats.
INFERRING = frozenset((torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor, torch.full, torch.arange))


class _PlainDtype(TorchFunctionMode):
    """New tensors are float32 where they would have the default dtype."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        given = options.get("dtype") is not None or options.get("out") is not None
        if func in FLOATING and not given:
            return func(*args, **options | {"dtype": PLAIN})
        made = func(*args, **options)
        if func in INFERRING and not given and made.dtype == torch.get_default_dtype() and _of_numbers(args, options):
            return func(*args, **options | {"dtype": PLAIN})
        return made


def _of_numbers(args: tuple, options: Mapping[str, Any]) -> bool:
    """Whether a tensor is created from Python's numbers, not from values that have a dtype."""
    values = [*args, *options.values()]
    while values and isinstance(values[0], list | tuple):
        values = list(values[0]) or [0.0]
    return not isinstance(values[0], Tensor | np.ndarray) and not hasattr(values[0], "__array_interface__")


@contextmanager
def neutral() -> Iterator[None]:
    """Within the block, in this thread only: new tensors are float32 and on the CPU unless told otherwise, autocast and
    inference mode are off (the latter leaves gradients off), numpy warns as by default. Also a decorator."""
    with ExitStack() as stack:
        if torch.get_default_dtype() != PLAIN:
            stack.enter_context(_PlainDtype())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda", "mps", "xpu"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))  # would allow gradients
            stack.enter_context(torch.no_grad())
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        yield
