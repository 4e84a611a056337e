"""The benchmark of large trainings reads the features that it made, and its killed runs are compared."""

import json
import sys
from pathlib import Path

import pytest
from places import ROOT

from pave.features.shards import Shards

sys.path.append(str(ROOT / "benchmarks"))
import scale


def test_a_training_reads_the_synthetic_features_and_encodes_no_clip(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scale.made(tmp_path, 100)
    features = tmp_path / "out" / "features"
    before = {file.name: file.read_bytes() for file in features.iterdir()}
    scale.run(tmp_path, resume=False)
    *told, end = map(json.loads, capsys.readouterr().out.splitlines())
    assert [line["step"] for line in told] == [1, 2] and end["memory"] > 0
    assert all(line["maps of features"] == 0 for line in told)
    assert len(Shards.of(features).entries) == 100
    assert {file.name: file.read_bytes() for file in features.iterdir()} == before | {"quarantine.jsonl": b""}


@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked and killed")
def test_a_run_killed_at_a_random_instant_ends_in_the_patch_of_another_cache() -> None:
    found = scale.killed("none", 1)
    assert found["equal"] == 1 and found["BAD: different"] == 0
