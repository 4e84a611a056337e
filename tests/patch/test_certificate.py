"""Claims about certificates in files: bound to one patch, data and never trusted, and without effect on the patch."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from certified import gain, make_certificate, proven
from families import make_base
from pydantic import ValidationError
from small import awaken, make_config
from transformers import PreTrainedTokenizerFast

from pave.hub.card import card
from pave.model.patched import PatchedModel
from pave.patch.certificate import KEY, rebound, standing
from pave.patch.file import Patch, read_facts


@pytest.fixture(scope="module")
def patch(tokenizer: PreTrainedTokenizerFast) -> Patch:
    one = PatchedModel(make_base(tokenizer))
    one.attach("ears", make_config(one.host), trainable=False)
    awaken(one, "ears")
    return replace(one.export("ears"), certificate={"retention": {"tokens": 0.9}})


def test_a_certificate_is_kept_by_the_file_and_changes_nothing_else(patch: Patch, tmp_path: Path) -> None:
    before = patch.save(tmp_path / "bare.safetensors")
    file = proven(patch).save(tmp_path / "ears.safetensors")
    whole, header = Patch.load(file), read_facts(file)
    assert whole.sha256 == header.content == patch.sha256 and whole.retention == {"tokens": 0.9}
    assert standing(whole).kind == standing(header).kind == "certified"
    assert standing(header).certificate == make_certificate(patch)
    bare = replace(whole, certificate={"retention": {"tokens": 0.9}}).save(tmp_path / "again.safetensors")
    assert bare.read_bytes() == before.read_bytes(), "tensors and config are the same bytes"
    assert standing(read_facts(before)).kind == "none"


def test_another_weight_voids_it(patch: Patch, tmp_path: Path, command: Any) -> None:
    name = next(name for name in patch.tensors if name.startswith("fusion."))
    moved = patch.tensors[name].clone()
    moved.view(-1)[0] += 1e-3
    other = replace(proven(patch), tensors={**patch.tensors, name: moved})
    file = other.save(tmp_path / "ears.safetensors")
    assert standing(Patch.load(file)).kind == standing(read_facts(file)).kind == "void"
    code, out, _ = command("patch", "info", file)
    assert code == 0 and f"certificate void: its certificate is of the patch {patch.sha256[:16]}" in out
    file = proven(patch).save(tmp_path / "ears.safetensors")
    assert "  certified\n" in command("patch", "info", file)[1]


def test_a_config_that_computes_the_same_keeps_it_and_no_other_does(patch: Patch) -> None:
    licensed = patch.config.model_copy(update={"licence": "mit"})
    assert standing(rebound(proven(patch), licensed)).kind == "certified"
    assert standing(replace(proven(patch), config=licensed)).kind == "void"
    stale = replace(proven(patch), config=patch.config.model_copy(update={"description": "another"}))
    assert standing(rebound(stale, licensed)).kind == "void", "what is void is not renewed"
    assert proven(patch).shrink().certificate is None


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "certified"),
        ({"shuffled": gain(low=0.0)}, "refused"),
        ({"envelope": gain(low=-0.1)}, "refused"),
        ({"shifted": gain(low=-0.1)}, "refused"),
        ({"silent": gain(clips=19)}, "refused"),
        ({"silent": gain(low=0.5, high=None).model_copy(update={"low": None})}, "refused"),
    ],
)
def test_it_passes_only_with_a_gain_over_every_control(patch: Patch, changes: dict[str, Any], kind: str) -> None:
    gains = {**make_certificate(patch).gains, **changes}
    assert standing(proven(patch, gains=gains)).kind == kind


def test_a_set_that_does_not_ask_when_needs_no_gain_over_shifted_signals(patch: Patch) -> None:
    gains = {**make_certificate(patch).gains, "shifted": gain(low=-0.1)}
    found = proven(patch, gains=gains, any_time=True)
    assert standing(found).kind == "certified" and "no question asks when" in card(found, "me/ears")
    assert "do not ask when" in str(standing(found).certificate)


def test_no_certificate_lacks_a_control_that_it_needs(patch: Patch) -> None:
    gains = make_certificate(patch).gains
    for name in ("shuffled", "silent", "envelope"):
        with pytest.raises(ValidationError, match=f"gains has no {name}"):
            make_certificate(patch, gains={key: each for key, each in gains.items() if key != name})
    deaf = {key: each for key, each in gains.items() if key != "envelope"}
    assert make_certificate(patch, gains=deaf, hears=False).passes
    with pytest.raises(ValidationError, match="capacity"):
        make_certificate(patch, capacity="ab" * 32)


def hostile(certificate: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**certificate, **changes}


WRONG: dict[str, Any] = {
    "a text": "yes",
    "a list": [1],
    "empty": {},
    "a key too many": {"passes": True},
    "a text for a number": {"own": "high"},
    "too large a number": {"own": 1e300},
    "true for a number": {"own": True},
    "another version": {"version": 2},
    "a long name": {"metric": "x" * 500},
    "many types": {"types": [{"name": "a", "questions": 1, "own": 1, "gains": {}}] * 65},
    "an unknown control": {"gains": {"luck": {"questions": 1, "clips": 40, "value": 1, "low": 1, "high": 1}}},
    "no gains": {"gains": {}},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_certificate_is_void_and_does_not_harm_the_patch(
    patch: Patch, tmp_path: Path, wrong: str, command: Any
) -> None:
    given = WRONG[wrong]
    sound = make_certificate(patch).model_dump(mode="json")
    given = hostile(sound, **given) if isinstance(given, dict) and given else given
    file = replace(patch, certificate={KEY: given}).save(tmp_path / "ears.safetensors")
    loaded = Patch.load(file)
    assert standing(loaded).kind == "void" and loaded.sha256 == patch.sha256
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in patch.tensors.items())
    code, out, _ = command("patch", "info", file)
    assert code == 0 and "certificate void: " in out and len(out) < 4000


def test_hostile_texts_in_it_are_escaped_wherever_it_is_shown(patch: Patch, tmp_path: Path, command: Any) -> None:
    nasty = "x`\n| a | <b> [l](u) \x1b[31m\u202e"
    words = {"metric": nasty, "not_run": {"capacity": nasty}, "left_out": {nasty: 1}}
    kinds = (
        {"name": nasty, "questions": 1, "own": 1, "gains": {}},
        {"name": "b", "questions": 1, "own": 1, "gains": {}},
    )
    data = make_certificate(patch).data.model_copy(update={"name": nasty})
    found = proven(patch, **words, types=kinds, data=data)
    file = found.save(tmp_path / "ears.safetensors")
    _, out, _ = command("patch", "info", file)
    text = card(Patch.load(file), "me/ears")
    for shown in (out, text, str(standing(found).certificate)):
        assert "\x1b" not in shown and "\u202e" not in shown and "\n| a |" not in shown
    section = text.split("## Does it use its sense?")[1].split("\n## ")[0]
    assert section.count("|---|---|") == 1 and "<b>" not in re.sub("`[^`\n]*`", "", section).replace("\\<b\\>", "")


def test_a_certificate_measured_again_is_compared_with_it(patch: Patch) -> None:
    recorded = make_certificate(patch)
    near = make_certificate(patch, gains={**recorded.gains, "silent": gain(low=0.15)})
    far = make_certificate(patch, gains={**recorded.gains, "silent": gain(low=0.35)})
    assert recorded.apart(recorded) == near.apart(recorded) == []
    assert [line.split(" ")[0] for line in far.apart(recorded)] == ["silent"]
    lost = {name: each for name, each in recorded.gains.items() if name != "shifted"}
    other = make_certificate(patch, metric="exact", gains=lost, data=recorded.data.model_copy(update={"sha256": "cd"}))
    assert len(other.apart(recorded)) == 3
    failing = make_certificate(patch, gains={**recorded.gains, "silent": gain(low=-0.01, value=0.3)})
    assert failing.apart(recorded) == ["it fails, recorded as passing"]


def test_the_json_of_a_certificate_is_small(patch: Patch) -> None:
    assert len(json.dumps(make_certificate(patch).model_dump(mode="json"))) < 2_000
