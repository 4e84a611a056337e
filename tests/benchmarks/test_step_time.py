"""The benchmark of a step's parts counts what is in the model, and only that."""

import sys
import time

from places import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import step_time

from pave.recipe import TrainConfig


def work(seconds: float) -> None:
    begin = time.process_time()
    while time.process_time() - begin < seconds:
        pass


def test_only_seconds_inside_the_named_functions_are_counted() -> None:
    class Model:
        def forward(self) -> None:
            work(0.05)

    original = Model.forward
    with step_time.inside((Model, "forward")) as spent:
        work(0.05)
        Model().forward()
        Model().forward()
    assert len(spent) == 2 and all(0.05 <= each < 0.1 for each in spent)
    assert Model.forward is original


def test_padding_is_the_share_of_places_without_a_token() -> None:
    assert step_time.padding([[10, 5], [4, 4]], TrainConfig()) == 1 - 23 / 28
    assert step_time.padding([[10, 5]], TrainConfig(micro_batch=10)) == 0
    figures = step_time.ragged(2)
    assert figures["padding with micro_batch, %"] < 5 < figures["padding, %"]
