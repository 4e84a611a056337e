"""Claims about certification: what a deaf patch may read stays in a control, and a patch that listens is certified."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from small import make_clip

import pave
from pave.data import Example, Source
from pave.encoder import load_encoder
from pave.errors import DataError, UsageError
from pave.evaluation.capacity import unlike, untaught
from pave.evaluation.certify import Ears, Trial, certify
from pave.evaluation.controls import Envelope, Loudness, carrier, carriers_of, deranged, exchanged, loudness, stratum
from pave.hub.catalogue import folder
from pave.media.clip import Clip
from pave.model.inputs import ClipFeatures
from pave.model.patched import PatchedModel
from pave.patch.certificate import PlayroomSet, standing
from pave.patch.file import Patch
from pave.sidechannel import SideTokens
from pave.training.run import train

# Exchanges of signals


def most(clips: str, answers: str) -> int:
    """By trying all ways: of how many questions signals can be exchanged within any part of them."""
    places, best = range(len(clips)), 0
    for order in permutations(places):
        fits = [clips[i] != clips[j] and answers[i] != answers[j] for i, j in zip(places, order, strict=True)]
        # A question that gives its signal to one that is counted must be counted, too.
        if all(fits[i] or order[i] == i for i in places):
            best = max(best, sum(fits))
    return best


@pytest.mark.parametrize(
    ("clips", "answers"),
    [("abcdef", "xxyyzz"), ("abcdef", "xxxxyz"), ("abcd", "xxxx"), ("a", "x"), ("abab", "xyyx"), ("abcabc", "xyzzyx")],
)
def test_as_many_signals_are_exchanged_as_can_be(clips: str, answers: str) -> None:
    for seed in range(5):
        donors = deranged(clips, answers, Random(seed))
        pairs = [(i, donor) for i, donor in enumerate(donors) if donor is not None]
        assert all(clips[i] != clips[j] and answers[i] != answers[j] for i, j in pairs)
        assert len({j for _, j in pairs}) == len(pairs) == most(clips, answers), "no signal is used twice"


def test_every_answer_stays_as_frequent_among_exchanged_signals() -> None:
    random = Random(0)
    answers = [random.choice("aaaabbc") for _ in range(200)]
    donors = deranged(range(200), answers, random)
    given = Counter(answers[j] for j in donors if j is not None)
    assert given == Counter(answer for answer, j in zip(answers, donors, strict=True) if j is not None)
    assert given["a"] == 200 - Counter(answers)["a"], "of the most frequent answer, as many as there are others"


def features_of(seconds: float, level: float | None = None) -> ClipFeatures:
    side = SideTokens.regular(torch.arange(round(seconds * 4)).float()[:, None], rate=4)
    loud = None if level is None else SideTokens.regular(torch.tensor([[float(level)]]), rate=1)
    empty = torch.zeros(1, 1, 0)
    return ClipFeatures(empty, empty, torch.zeros(1), {"ears": side, "loud": loud})


def test_signals_are_exchanged_only_between_clips_that_sound_alike_from_afar() -> None:
    here = stratum(features_of(4, -20), ["ears"], "loud")
    assert here == stratum(features_of(4, -19), ["ears"], "loud")
    for other in (features_of(6, -20), features_of(4, -40), replace(features_of(4, -20), sides={"ears": None})):
        assert stratum(other, ["ears"], "loud") != here


def test_another_signal_comes_at_the_times_of_the_own_one() -> None:
    clips = {"short": features_of(2), "long": features_of(3)}
    found = exchanged(clips, [("short", "long"), ("long", "short")], ["ears"])
    for (name, donor), clip in found.items():
        own, other, mine = clip.sides["ears"], clips[donor].sides["ears"], clips[name].sides["ears"]
        assert own and other and mine
        assert torch.equal(own.times, mine.times) and torch.equal(own.spans, mine.spans)
        assert torch.equal(own.x, other.x[torch.arange(len(mine.x)) % len(other.x)])


# Sounds of other clips, as loud as the own


def sounding(seed: int) -> Clip:
    """A tone that swells, stops and comes again."""
    clip = make_clip(seed)
    assert clip.audio is not None
    swell = torch.linspace(0, 1, clip.audio.shape[-1]).square()
    swell[: len(swell) // 4] = 0.01
    swell[len(swell) // 2 : len(swell) // 2 + 8000] = 0
    return replace(clip, audio=clip.audio * swell)


def test_an_envelope_keeps_what_is_loud_when_and_nothing_else() -> None:
    class Heard(Loudness):
        def encode(self, clip: Clip) -> SideTokens | None:
            assert clip.audio is not None
            return SideTokens.regular(clip.audio.T, rate=16_000)

    own, other = sounding(0), sounding(1)
    assert own.audio is not None
    plain = Heard(load_encoder("logmel"))
    side = Envelope(plain, carriers_of([other])).encode(own)
    assert side is not None and side.x.shape[0] == own.audio.shape[-1]
    before, after = (loudness(sound, 16_000) for sound in (own.audio[0], side.x.flatten()))
    apart = (20 * (after.clamp(min=1e-4) / before.clamp(min=1e-4)).log10()).abs()
    assert float(apart.quantile(0.95)) < 1.5, "dB; more where a sound stops at once"
    alike = torch.corrcoef(torch.stack([own.audio[0], side.x.flatten()]))[0, 1]
    assert abs(float(alike)) < 0.1, "another tone is heard"


def test_pauses_are_no_sound_and_silence_is_no_carrier() -> None:
    clip = sounding(0)
    assert clip.audio is not None
    even = carrier(clip.audio[0], 16_000)
    assert even is not None and len(even) < 0.7 * clip.audio.shape[-1]
    assert float(even.square().mean().sqrt()) == pytest.approx(1, abs=0.1)
    assert carrier(torch.zeros(16_000), 16_000) is None
    silent = replace(clip, audio=torch.zeros_like(clip.audio))
    assert len(carriers_of([silent, clip, Clip()])) == 1


def test_loudness_is_in_decibels() -> None:
    encoder = Loudness(load_encoder("logmel"))
    tone = 0.1 * torch.ones(1, 16_000)
    for sound, level in ((tone, -20), (tone / 10, -40), (0 * tone, -80)):
        side = encoder.encode(Clip(audio=sound, rate=16_000))
        assert side is not None and float(side.x) == pytest.approx(level, abs=1e-3)
    assert encoder.encode(Clip()) is None


# The whole


CLIPS = 28


def test_a_patch_that_listens_is_certified_and_its_lora_alone_is_not(
    tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ("--channel", "audio", "--clips", CLIPS, "--to", "listens", "--any-time")
    code, out, err = command("patch", "certify", "audio-playroom", *asked)
    assert code == 2 and "is not a file of yours" in err
    code, out, err = command("patch", "certify", "audio-playroom", *asked, "--out", "ears.safetensors")
    assert code == 0 and out.startswith("certified\n") and "written to ears.safetensors" in err, err
    found = standing(Patch.load("ears.safetensors"))
    given = found.certificate
    assert (
        found.kind == "certified"
        and given is not None
        and given.data.playroom == PlayroomSet(clips=CLIPS, channels=("audio",))
    )
    assert set(given.gains) == {"shuffled", "silent", "envelope", "shifted"} and given.not_run.keys() == {"capacity"}
    assert {each.name for each in given.types} == {"is-there", "what", "times"}
    what = next(each for each in given.types if each.name == "what")
    assert what.gains["shifted"].value < 0.3 < what.gains["shuffled"].value, "it does not matter when"
    assert Patch.load("ears.safetensors").sha256 == Patch.load(folder() / "audio-playroom").sha256
    # Measured again, on the same set.
    for again in ("runs/check-audio-playroom", "deaf"):
        (tmp_path / again).mkdir(parents=True)
        for part in ("clips", "features"):
            (tmp_path / again / part).symlink_to(tmp_path / "listens" / part)
    code, out, _ = command("patch", "certify", "ears.safetensors", "--check")
    assert code == 0 and out.endswith("its certificate holds\n")
    patch = Patch.load("ears.safetensors")
    outputs = [name for name in patch.tensors if name.startswith("fusion.") and "out" in name]
    assert outputs
    deaf = replace(patch, tensors={**patch.tensors, **{name: 0 * patch.tensors[name] for name in outputs}})
    deaf.save("deaf.safetensors")
    code, _, err = command("patch", "certify", "deaf.safetensors", "--check", "--to", "deaf")
    assert code == 2 and "its certificate is of the patch" in err
    code, out, err = command("patch", "certify", "deaf.safetensors", *asked[:4], "--to", "deaf")
    assert code == 1 and out.startswith("not certified: no gain over shuffled, silent, envelope, shifted\n"), out
    assert standing(Patch.load("deaf.safetensors")).kind == "refused"


@pytest.fixture(scope="module")
def heard(model: PatchedModel) -> tuple[Ears, dict[Source, ClipFeatures], list[Example]]:
    clips = [make_clip(seed) for seed in range(6)]
    ears = Ears.of(model.encoders(), clips)
    encoded = model.encode(clips, ears.all)
    features = {Source(Path(f"{i}.mp4")): encoded[i % 6] for i in range(24)}
    examples = [Example(source, "What?", "xy"[i % 2], i, {"kind": "a"}) for i, source in enumerate(features)]
    return ears, features, examples


def trial(model: PatchedModel, heard: Any, **changes: Any) -> Trial:
    ears, features, examples = heard
    return replace(Trial(model, "ears", (), None, ears, examples, features), **changes)


def run(trial: Trial, folder: Path | None = None) -> Any:
    return trial.run(folder, {"batch": 24, "max_new_tokens": 1}, None, {})


def test_what_cannot_say_anything_is_refused_with_numbers(model, heard) -> None:
    examples = heard[2]
    with pytest.raises(DataError, match="19 clips of 19 have the sense of ears; a certificate needs 20 or more"):
        run(trial(model, heard, examples=examples[:19]))
    same = [replace(example, answer="x") for example in examples]
    with pytest.raises(DataError, match=r"exchanged for 0 questions of 24, about 0 clips: .* another answer"):
        run(trial(model, heard, examples=same))
    with pytest.raises(UsageError, match="metric='spice'"):
        run(trial(model, heard, metric="spice"))
    with pytest.raises(UsageError, match="by='knd'"):
        run(trial(model, heard, by="knd"))


def test_clips_without_the_sense_and_lonely_questions_are_left_out_and_counted(model, heard) -> None:
    _, features, examples = heard
    mute = Source(Path("mute.mp4"))
    first = next(iter(features.values()))
    silent = replace(first, sides=dict.fromkeys(first.sides))
    lonely = replace(examples[0], facts={"kind": "b"})
    more = [*examples, lonely, Example(mute, "What?", "x", 99, {"kind": "a"})]
    found = run(trial(model, heard, examples=more, features={**features, mute: silent}))
    assert found.data.questions == 25 and sum(found.left_out.values()) == 2
    assert found.gains["shuffled"].questions == 24 and found.gains["silent"].questions == 25
    assert [each.name for each in found.types] == ["a", "b"]


def test_a_certification_goes_on_after_a_stop_and_ends_the_same(model, heard, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stop

    part = trial(model, heard)
    with pytest.raises(Stop):
        part.run(tmp_path, {"batch": 8, "max_new_tokens": 1}, stop, {})
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    assert len(lines) == 8
    asked: list[int] = []
    whole = part.run(tmp_path, {"batch": 8, "max_new_tokens": 1}, lambda done, total: asked.append(done), {})
    assert whole == part.run(None, {"batch": 8, "max_new_tokens": 1}, None, {}) and asked == [8, 16, 24]


def test_only_a_patch_at_full_weight_is_certified_and_only_against_one_of_its_shape(model, heard) -> None:
    examples = heard[2]
    with pytest.raises(UsageError, match="patch='ear' is not applied; did you mean 'ears'"):
        certify(model, examples, patch="ear")
    with pytest.raises(UsageError, match="capacity='nose' is not applied"):
        certify(model, examples, capacity="nose")
    model.set_weight("ears", 0.5)
    try:
        with pytest.raises(UsageError, match=r"ears has weight 0\.5"):
            certify(model, examples)
    finally:
        model.set_weight("ears", 1.0)
    copy = model.apply_patch(model.export("ears"), name="copy").name
    try:
        with pytest.raises(UsageError, match="it is the same patch"):
            certify(model, examples, patch="ears", capacity=copy)
    finally:
        model.remove_patch("copy")
    assert pave.certify is certify


def test_a_patch_that_had_no_signal_to_learn_from_is_a_control(model, heard) -> None:
    patch = model.export("ears")
    other = replace(patch, tensors={name: tensor.flip(0) for name, tensor in patch.tensors.items()})
    model.apply_patch(other, name="noise")
    try:
        found = run(trial(model, heard, capacity="noise"))
    finally:
        model.remove_patch("noise")
    assert found.capacity == other.sha256 and "capacity" in found.gains and "capacity" not in found.not_run


def test_the_control_patch_of_a_recipe_learns_from_the_signals_of_other_clips(recipe, tmp_path: Path) -> None:
    trained = train(recipe("train.steps=2"), progress=False).patch
    control = untaught(recipe("train.steps=2", output="other"), tmp_path / "control")
    own = Patch.load(trained)
    assert unlike(own, control) == "" != unlike(own, own)
    assert {name for name in own.tensors if not torch.equal(own.tensors[name], control.tensors[name])}
    assert untaught(recipe("train.steps=9"), tmp_path / "control").sha256 == control.sha256, "it is there already"
    wider = untaught(recipe("train.steps=1", "lora.r=2", output="wide"), tmp_path / "wide")
    assert "parameters in" in unlike(own, wider)
