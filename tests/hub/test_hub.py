"""Claims about the Hub: correct bytes of one commit or a clear error, and no private data is uploaded.

The real client of `huggingface_hub` against a real server on the loopback.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from certified import gain, make_certificate, proven
from damage import DAMAGE
from families import make_base
from hub_server import HubServer
from huggingface_hub import HfApi, constants
from small import awaken, make_config
from transformers import PreTrainedTokenizerFast

from pave.config import BaseFacts
from pave.errors import PatchDamaged, PatchError, PatchNotFound, RecipeError
from pave.evaluation.cost import _untrained
from pave.hub import catalogue
from pave.hub.aliases import aliases, set_alias
from pave.hub.card import card
from pave.hub.locate import info, locate, pull, search
from pave.hub.push import push
from pave.model.patched import PatchedModel, load
from pave.patch.certificate import standing
from pave.patch.file import Patch
from pave.patch.filenames import WEIGHTS
from pave.patch.peft import export_peft
from pave.playroom.replay import replay
from pave.playroom.writer import write_clips
from pave.recipe import read_recipe
from pave.training.run import train
from pave.training.setup import Setup

EARS = "tester/ears"


@pytest.fixture(scope="module")
def one(tokenizer: PreTrainedTokenizerFast) -> PatchedModel:
    return PatchedModel(make_base(tokenizer))


@pytest.fixture(scope="module")
def patches(one: PatchedModel) -> list[Patch]:
    """Two versions of one patch."""
    found = []
    for seed in (0, 1):
        one.attach("ears", make_config(one.host), trainable=False)
        awaken(one, "ears", seed=seed)
        found.append(proven(one.export("ears")))
        one.remove_patch("ears")
    return found


@pytest.fixture(scope="module")
def data(patches: list[Patch], tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("data")
    return [patch.save(folder / f"{i}.safetensors").read_bytes() for i, patch in enumerate(patches)]


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as running:
        yield running


@pytest.fixture
def api(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HfApi]:
    monkeypatch.setenv("PAVE_HOME", str(tmp_path / "pave"))
    with server.client(tmp_path / "cache") as client:
        yield client


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


# Names


def test_a_hub_patch_is_applied_by_name_and_reports_its_commit(
    server: HubServer, api: HfApi, one: PatchedModel, patches: list[Patch], data: list[bytes]
) -> None:
    repo = server.create(EARS, {WEIGHTS: data[0]})
    first = repo.branches["main"]
    repo.tags["v1"] = first
    second = repo.commit({WEIGHTS: data[1]})
    for name, revision, version, commit in (
        (EARS, None, 1, second),
        (f"{EARS}@v1", None, 0, first),
        (EARS, "v1", 0, first),
        (f"hf://{EARS}@{first}", None, 0, first),
    ):
        report = one.apply_patch(name, revision=revision)
        assert (report.sha256, report.source) == (patches[version].sha256, f"{EARS}@{commit[:12]}")
        assert report.base_match == "exact" and report.remarks == ()
        one.remove_patch("ears")
    server.log.clear()
    assert locate(f"{EARS}@{first}").load().sha256 == patches[0].sha256
    assert not server.log, "a cached commit needs no request"


def test_the_order_of_names_is_catalogue_alias_path_hub(
    server: HubServer, api: HfApi, data: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.create(EARS, {WEIGHTS: data[0]})
    monkeypatch.chdir(tmp_path)
    set_alias("mine", EARS)
    assert locate("mine").repo == EARS
    (tmp_path / EARS).mkdir(parents=True)
    (tmp_path / EARS / WEIGHTS).write_bytes(data[1])
    assert locate(EARS).path == Path(EARS) / WEIGHTS and locate(f"hf://{EARS}").repo == EARS
    assert locate("audio-playroom").path == catalogue.file_of("audio-playroom")
    with pytest.raises(PatchNotFound, match="has no revision 'v1'"):
        locate("audio-playroom", "v1")
    with pytest.raises(PatchNotFound, match="did you mean 'mine'"):
        locate("mime")
    with pytest.raises(PatchError, match="cannot be an alias"):
        set_alias("audio-playroom", EARS)
    set_alias("mine", None)
    assert aliases() == {}
    with pytest.raises(PatchNotFound, match="is not an alias"):
        set_alias("mine", None)
    (tmp_path / "audio-playroom").mkdir()
    ours = catalogue.folder() / "audio-playroom"
    assert locate("audio-playroom").path == ours / WEIGHTS and not _untrained("audio-playroom")
    assert catalogue.recipe("audio-playroom") == read_recipe(ours)
    for path in ("./audio-playroom", Path("audio-playroom")):
        assert locate(path).path == Path("audio-playroom") / WEIGHTS
        with pytest.raises(RecipeError, match="recipe not found"):
            catalogue.recipe(path)
    (tmp_path / "audio-avsd").mkdir()
    theirs = (catalogue.folder() / "audio-avsd" / "patch.yaml").read_text()
    (tmp_path / "audio-avsd" / "patch.yaml").write_text(theirs.replace("zhuomingliu/PAVE", "mallory/evil"))
    server.log.clear()
    with pytest.raises(PatchNotFound, match="not a repo on the Hub"):
        locate("audio-avsd")
    assert not server.asked("GET", "*mallory*") and server.asked("GET", "*zhuomingliu*")


def test_an_alias_can_name_any_patch(
    api: HfApi, data: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "audio-playroom").mkdir()
    (tmp_path / "mine.safetensors").write_bytes(data[0])
    set_alias("ears", "audio-playroom")
    set_alias("same", "ears")
    set_alias("mine", "mine.safetensors")
    assert aliases()["same"] == "audio-playroom"
    for name in ("ears", "same"):
        assert locate(name) == locate("audio-playroom")
        with pytest.raises(PatchNotFound, match="audio-playroom: is part of PAVE and has no revision 'v1'"):
            locate(name, "v1")
    assert locate("mine").path == tmp_path / "mine.safetensors"
    kept = aliases()
    for nonsense in ("such nonsense", "audio-playrom", "lonely", "", "tester/a--b"):
        with pytest.raises(PatchNotFound):
            set_alias("lonely", nonsense)
    assert aliases() == kept


def test_only_the_hub_has_revisions(one: PatchedModel, patches: list[Patch], data: list[bytes], tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes(data[0])
    for source in (tmp_path, str(tmp_path / WEIGHTS), patches[0], "audio-playroom"):
        with pytest.raises(PatchNotFound, match="and has no revision 'v1'; omit revision="):
            one.apply_patch(source, revision="v1")
    assert not one.patches


def test_a_lora_of_peft_on_the_hub_is_a_patch(
    server: HubServer, api: HfApi, one: PatchedModel, patches: list[Patch], tmp_path: Path
) -> None:
    export_peft(patches[0], one.host, tmp_path / "lora")
    server.create("tester/lora", {file.name: file.read_bytes() for file in (tmp_path / "lora").iterdir()})
    report = one.apply_patch("tester/lora")
    assert report.fusion_params == 0 and report.lora_params > 0 and report.source.startswith("tester/lora@")
    one.remove_patch(report.name)


# What is read


def test_info_reads_the_header_only(server: HubServer, api: HfApi, patches: list[Patch], data: list[bytes]) -> None:
    server.create(
        EARS, {WEIGHTS: data[0] + bytes(3_000_000)}
    )  # tensors are not downloaded, so their size is not checked
    header, place = info(EARS)
    assert header.config == patches[0].config and place.commit == server.repos[EARS].branches["main"]
    assert sum(request.sent for request in server.asked("GET", f"*{WEIGHTS}")) < 200_000
    assert not list(Path(constants.HF_HUB_CACHE).rglob(WEIGHTS)), "nothing is cached"


def test_search_finds_patches_by_sense_and_base(server: HubServer, api: HfApi, patches: list[Patch]) -> None:
    def readme(*tags: str) -> bytes:
        return f"---\n{yaml.safe_dump({'tags': list(tags)})}---\n".encode()

    server.create("tester/ears", {"README.md": readme("pave", "audio")})
    server.create("tester/eyes", {"README.md": readme("pave", "depth")})
    server.create("tester/else", {"README.md": readme("audio")})
    assert {each["id"] for each in search()} == {"tester/ears", "tester/eyes"}
    assert [each["id"] for each in search(sense="audio")] == ["tester/ears"]
    assert [each["id"] for each in search("eyes")] == ["tester/eyes"]


# Upload


def test_a_pushed_patch_is_pulled_unchanged_and_has_a_card(
    server: HubServer, api: HfApi, one: PatchedModel, patches: list[Patch]
) -> None:
    pushed = push(patches[0], EARS, private=True)
    repo = server.repos[EARS]
    assert repo.private and pushed.commit == repo.branches["main"] and len(repo.commits) == 2
    assert pull(EARS).load().sha256 == patches[0].sha256
    front = yaml.safe_load(repo.files()["README.md"].decode().split("---")[1])
    assert front["library_name"] == "pave" and front["license"] == "apache-2.0"
    assert {"pave", "video-patch", "audio"} == set(front["tags"])
    again = push(patches[1], EARS)
    assert again.commit == repo.branches["main"] != pushed.commit and not again.kept_card
    assert pull(EARS).load().sha256 == patches[1].sha256
    assert pull(EARS, pushed.commit).load().sha256 == patches[0].sha256


HOSTILE = "x\n---\nlicense: mit\n---\n```\n| a | b |\n<script> [l](http://x) \x1b[31m\u202e"


def test_a_hostile_text_cannot_break_the_card(patches: list[Patch]) -> None:
    config = patches[0].config
    base = config.base.model_copy(update={"repo": f'x")\n{HOSTILE}'})
    changes = {"description": HOSTILE, "licence": HOSTILE, "training": {HOSTILE: HOSTILE}, "base": base}
    example = {"seed": 1, "split": "test", "video": "a.mp4", "question": "what?", "patched": HOSTILE, "base": HOSTILE}
    text = card(Patch(config.model_copy(update=changes), patches[0].tensors), EARS, example)
    empty, front, body = text.split("---\n", 2)
    facts = yaml.safe_load(front)
    assert not empty and facts["license"] == "other" and facts["pave_example"]["seed"] == 1
    assert body.startswith("<!-- ") and body.count("\n```") == 4 and "\n---" not in body
    assert "\x1b" not in text and "\u202e" not in text
    assert not [
        line for line in body.split("\n") if "<script>" in line and not line.startswith(("model = ", "The patched "))
    ]
    table = [line for line in body.split("\n") if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in table)


def test_a_damaged_file_of_aliases_is_an_error_and_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PAVE_HOME", str(tmp_path))
    for text in ("{", '{"a": 1}', "[" * 9999, '{"a": "b", "a": "c"}'):
        (tmp_path / "aliases.json").write_text(text)
        with pytest.raises(PatchError, match=r"aliases\.json: .*; fix or delete it"):
            set_alias("mine", "audio-playroom")
        assert (tmp_path / "aliases.json").read_text() == text


def test_a_dry_run_shows_everything_and_sends_nothing(server: HubServer, api: HfApi, patches: list[Patch]) -> None:
    shown = push(patches[0], EARS, dry_run=True)
    assert not server.log and shown.commit == "" and set(shown.files) == {"README.md", WEIGHTS}
    assert f'model.apply_patch("{EARS}")' in shown.card and patches[0].sha256[:16] in shown.card


def test_a_card_written_by_a_user_is_kept(server: HubServer, api: HfApi, patches: list[Patch]) -> None:
    repo = server.create(EARS, {"README.md": b"# My own words\n"})
    assert push(patches[0], EARS).kept_card
    assert repo.files()["README.md"] == b"# My own words\n" and WEIGHTS in repo.files()


SECRETS = ("/home/anna/clips", "/root/x", "C:\\Users\\anna", "hf_" + "aB3" * 9, "sk-" + "x1" * 12, "AKIA" + "Q7" * 8)


@pytest.mark.parametrize("secret", SECRETS)
def test_private_data_is_not_uploaded(server: HubServer, api: HfApi, patches: list[Patch], secret: str) -> None:
    config = patches[0].config.model_copy(update={"description": f"trained on {secret} at night"})
    with pytest.raises(PatchError, match="contains private data"):
        push(Patch(config, patches[0].tensors), EARS, uncertified=True)
    assert not server.log
    base = BaseFacts(**{**config.base.model_dump(), "repo": secret})
    with pytest.raises(PatchError, match="contains private data"):
        push(
            Patch(config.model_copy(update={"base": base, "description": ""}), patches[0].tensors),
            EARS,
            uncertified=True,
        )


def changed(patch: Patch, **words: Any) -> Patch:
    return Patch(patch.config.model_copy(update=words), patch.tensors, patch.certificate)


@pytest.mark.parametrize("licence", ["", "  "])
def test_a_licence_is_asked_for_and_never_assumed(
    server: HubServer, api: HfApi, patches: list[Patch], licence: str, tmp_path: Path, command: Any
) -> None:
    bare = proven(changed(patches[0], licence=licence))
    with pytest.raises(PatchError, match=r"ears: says no licence.*; pass --license ID; common: apache-2.0, mit, "):
        push(bare, EARS)
    for wrong, remedy in (("apache2", r"did you mean apache-2\.0"), ("My own terms", "or `other`"), ("none", "other")):
        with pytest.raises(PatchError, match=remedy) as refused:
            push(bare, EARS, licence=wrong)
        assert len(str(refused.value)) < 250, "not all seventy-five"
    file = bare.save(tmp_path / "bare.safetensors")
    assert command("patch", "push", file, EARS)[0] == 2 and not server.log
    code, out, err = command("patch", "push", file, EARS, "--license", "MIT", "--dry-run")
    assert code == 0 and yaml.safe_load(out.split("---")[1])["license"] == "mit" and "| licence | mit |" in out
    assert "warning: This patch was made on a base that is not on the Hub" in err
    pushed = push(bare, EARS, licence="MIT")
    back = pull(EARS).load()
    assert back.config.licence == "mit" and back.tensors.keys() == bare.tensors.keys() and pushed.commit


def test_a_licence_chosen_while_pushing_keeps_the_certificate(
    server: HubServer, api: HfApi, patches: list[Patch]
) -> None:
    pushed = push(proven(changed(patches[0], licence="")), EARS, licence="MIT")
    back = pull(EARS).load()
    assert back.config.licence == "mit" and standing(back).kind == "certified" and pushed.commit


def test_a_patch_that_is_not_shown_to_use_its_sense_is_pushed_only_if_that_is_said(
    server: HubServer, api: HfApi, patches: list[Patch], tmp_path: Path, command: Any
) -> None:
    bare = replace(patches[0], certificate=None)
    gains = {**make_certificate(bare).gains, "envelope": gain(low=-0.01)}
    for patch, why in (
        (bare, "it has no certificate"),
        (replace(bare, certificate=patches[1].certificate), "its certificate is of the patch"),
        (proven(bare, gains=gains), r"no gain was found \(envelope \+0.090 \[-0.010"),
    ):
        with pytest.raises(PatchError, match=f"nothing shows that it uses its sense: .*{why}.* --uncertified"):
            push(patch, EARS)
        assert not server.log
        assert "Not certified" in push(patch, EARS, dry_run=True, uncertified=True).card
    file = bare.save(tmp_path / "bare.safetensors")
    assert command("patch", "push", file, EARS)[0] == 2 and not server.log
    code, out, _ = command("patch", "push", file, EARS, "--uncertified", "--dry-run")
    assert code == 0 and "## Does it use its sense?\n\nNot certified: it has no certificate." in out
    assert push(bare, EARS, uncertified=True).commit and pull(EARS).load().sha256 == bare.sha256
    text = push(patches[0], EARS, dry_run=True).card
    assert "\nCertified: `match` is 0.750" in text and "| silent: digital silence; zeros of a sensor | +0.300 " in text
    lora = changed(patches[0], senses={})
    assert "use its sense" not in card(lora, EARS), "LoRA alone has no sense to use"


def test_a_recipe_without_a_licence_records_none(recipe: Any) -> None:
    for words, licence in (([], ""), (["licence=apache-2.0"], "apache-2.0"), (["licence=mit"], "mit")):
        assert Setup.of(recipe(*words)).config().licence == licence


def test_a_licence_that_allows_more_than_the_weights_behind_a_sense_is_a_warning(patches: list[Patch]) -> None:
    config = patches[0].config
    senses = {"audio": config.senses["audio"].model_copy(update={"licence": "CC-BY-NC-SA-4.0"})}
    (_, warning) = push(changed(patches[0], senses=senses), EARS, dry_run=True, uncertified=True).warnings
    assert "apache-2.0 allows commercial use, but the weights of logmel" in warning and "CC-BY-NC-SA-4.0" in warning
    alike = changed(patches[0], senses=senses, licence="cc-by-nc-4.0")
    assert len(push(alike, EARS, dry_run=True, uncertified=True).warnings) == 1


def test_the_card_of_a_patch_for_a_local_base_says_what_the_base_must_be(patches: list[Patch]) -> None:
    base = patches[0].config.base
    assert base.repo == ""
    text = card(patches[0], EARS)
    assert 'pave.load("path/of/the/base")' in text and f"fingerprint `{base.fingerprint}`" in text
    for fact in (
        base.model_type,
        f"of {base.dim} channels",
        f"({base.vision_dim} before",
        f"{base.tokens_per_frame} v",
    ):
        assert fact in text.split("## The base")[1].split("| |")[0]
    known = changed(patches[0], base=base.model_copy(update={"repo": "them/base"}))
    assert 'pave.load("them/base")' in card(known, EARS) and "## The base" not in card(known, EARS)
    assert not push(proven(known), EARS, dry_run=True).warnings
    assert not push("audio-playroom", EARS, dry_run=True).warnings, "the embedded base is everyone's"


def test_the_card_has_the_held_out_figures_of_training_and_its_description(recipe: Any, workshop: Path) -> None:
    clips = f"data.val={workshop / 'train.jsonl'}"
    patch = train(recipe(clips, "train.steps=1", "licence=mit", "description=Hears bells.", "train.batch=1")).patch
    loaded = Patch.load(patch)
    assert loaded.certificate and "all" in loaded.certificate["held_out"]
    before, after = (loaded.certificate["held_out"]["all"][side] for side in ("base", "patched"))
    text = card(loaded, EARS)
    assert f"| all | {before:.3f} | {after:.3f} |" in text and "\nHears bells.\n" in text
    assert "Held-out" not in card(Patch(loaded.config, loaded.tensors), EARS)
    odd = {"held_out": {"x": {"base": 2, "patched": 0.5}, "y": 3, "a|b\n": {"base": 0, "patched": 1}}}
    text = card(Patch(loaded.config, loaded.tensors, odd), EARS)
    assert "| a\\|b\\\\n | 0.000 | 1.000 |" in text and "| y" not in text


ODD = 'x"); import os  # \n---\nlicense: mit\n| a | b |'


def test_texts_of_a_patch_cannot_leave_their_place_in_the_card(patches: list[Patch]) -> None:
    config = patches[0].config
    base = config.base.model_copy(update={"repo": ODD, "model_type": ODD, "fingerprint": ODD})
    changes: dict[str, Any] = {"name": ODD, "base": base, "licence": ODD, "training": {ODD: ODD}}
    text = card(
        changed(patches[0], **changes),
        EARS,
        {"seed": 0, "split": "test", "video": "v", "question": "a'b; c"} | {"base": "red", "patched": "blue"},
    )
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "other" and "base_model" not in front and front["pave_example"]["question"] == "a'b; c"
    assert 'load("path/of/the/base")' in text and "\nlicense: mit" not in text.split("---\n", 2)[2]
    code = text.split("```python\n")[1].split("```")[0]
    assert len(compile(code, "card", "exec").co_names) and "os" not in code
    assert shlex.split(text.split("```sh\n")[1].splitlines()[1])[3] == "a'b; c"


def test_a_lost_response_to_a_successful_commit_is_not_an_error(
    server: HubServer, api: HfApi, patches: list[Patch]
) -> None:
    server.create(EARS)
    server.fail("cut", "*/commit/*", method="POST")
    pushed = push(patches[0], EARS)
    assert pushed.commit == server.repos[EARS].branches["main"] and WEIGHTS in server.repos[EARS].files()


def test_an_example_can_be_replayed(server: HubServer, api: HfApi, tmp_path: Path) -> None:
    patch = locate("audio-playroom").load()
    example = replay(patch)
    text = card(patch, EARS, example)
    assert example["base"] != example["patched"] and f"`{example['patched']}`" in text
    shown = yaml.safe_load(text.split("---")[1])["pave_example"]
    assert shown == example
    write_clips(tmp_path / "clips", 1, shown["seed"], shown["split"])
    model = load("playroom")
    model.apply_patch(patch)
    assert model.ask(tmp_path / "clips" / shown["video"], shown["question"]) == shown["patched"]
    assert model.ask(tmp_path / "clips" / shown["video"], shown["question"], patches=[]) == shown["base"]


# Failures


@pytest.mark.parametrize("kind", ["flip", "short", "long", "html", "lfs_pointer", "cut", "lie_length", "reset", "slow"])
@pytest.mark.parametrize("times", [1, 99])
def test_a_broken_download_gives_the_right_bytes_or_a_clear_error(
    server: HubServer, api: HfApi, patches: list[Patch], data: list[bytes], kind: str, times: int
) -> None:
    server.create(EARS, {WEIGHTS: data[0]})
    server.fail(kind, f"*{WEIGHTS}", times=times, at=1000, seconds=0.2)
    try:
        assert pull(EARS).load().sha256 == patches[0].sha256
    except PatchError as error:
        assert EARS in str(error) and error.cause and error.remedy and times == 99
    else:
        assert times == 1 or kind == "slow"
    server.faults.clear()
    assert pull(EARS).load().sha256 == patches[0].sha256, "the next attempt must succeed"


@pytest.mark.parametrize(
    ("code", "cause"), [(500, "status 500"), (503, "status 503"), (429, "status 429"), (401, "status 401")]
)
def test_an_error_names_the_status_code(
    server: HubServer, api: HfApi, data: list[bytes], code: int, cause: str
) -> None:
    server.create(EARS, {WEIGHTS: data[0]})
    pull(EARS)
    for path in Path(constants.HF_HUB_CACHE).rglob("*"):
        if path.is_file() or path.is_symlink():
            path.unlink()
    server.fail("status", f"*{WEIGHTS}", times=99, code=code, retry_after=0)
    with pytest.raises(PatchError, match=cause):
        pull(EARS)


def test_gated_private_and_missing_repos_have_different_errors(
    server: HubServer, api: HfApi, data: list[bytes]
) -> None:
    server.create("other/gated", {WEIGHTS: data[0]}, gated=True)
    server.create("other/secret", {WEIGHTS: data[0]}, private=True)
    server.create("tester/empty", {"README.md": b"# Nothing"})
    for name, cause in (
        ("other/gated", "is gated; accept its terms"),
        ("other/secret", "or a private one"),
        ("tester/nowhere", "not a repo on the Hub"),
        ("tester/empty", "has no such file"),
        ("tester/empty@v9", "has no revision 'v9'"),
    ):
        with pytest.raises(PatchError, match=cause):
            locate(name)


def test_a_branch_that_moves_during_a_download_gives_one_commit(
    server: HubServer, api: HfApi, patches: list[Patch], data: list[bytes]
) -> None:
    repo = server.create(EARS, {WEIGHTS: data[0]})
    first = repo.branches["main"]
    server.fail("moved", f"/api/models/{EARS}*", move=lambda: repo.commit({WEIGHTS: data[1]}))
    place = pull(EARS)
    assert place.commit == first != repo.branches["main"] and place.load().sha256 == patches[0].sha256


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_patch_that_is_damaged_on_the_hub_is_refused_by_name(
    server: HubServer, api: HfApi, data: list[bytes], kind: str
) -> None:
    expected, damage = DAMAGE[kind]
    server.create(EARS, {WEIGHTS: damage(data[0])})
    with suppress(PatchError):  # only its header is read, which may be valid
        info(EARS)
    with pytest.raises(expected) as refused:
        locate(EARS).load()
    assert EARS in refused.value.file and refused.value.cause and refused.value.remedy


def test_a_damaged_copy_in_the_cache_is_downloaded_again(
    server: HubServer, api: HfApi, patches: list[Patch], data: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.create(EARS, {WEIGHTS: data[0]})
    blob = pull(EARS).path.resolve()
    damaged = bytearray(data[0])
    damaged[-1] ^= 1
    blob.write_bytes(damaged)
    assert pull(EARS).load().sha256 == patches[0].sha256
    blob.write_bytes(damaged)
    offline(monkeypatch)
    with pytest.raises(PatchDamaged, match="its content has sha256"):
        pull(EARS).load()


def test_offline_mode_uses_a_complete_copy_with_a_remark(
    server: HubServer, api: HfApi, patches: list[Patch], data: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = server.create(EARS, {WEIGHTS: data[0], "README.md": b"# one"})
    first = pull(EARS).commit
    repo.commit({WEIGHTS: data[1], "README.md": b"# two"})
    api.hf_hub_download(EARS, "README.md")  # now main is a commit of which only the card is cached
    offline(monkeypatch)
    place = pull(EARS)
    assert place.commit == first and place.load().sha256 == patches[0].sha256 and "offline" in place.remark
    with pytest.raises(PatchNotFound, match=r"v9: is not in the cache \(offline\)"):
        pull(EARS, "v9")
    with pytest.raises(PatchNotFound, match="is not in the cache"):
        pull("tester/other")
    with pytest.raises(PatchError, match=r"^search: needs the Hub, but offline mode is on; unset HF_HUB_OFFLINE$"):
        search()


def test_an_unreachable_hub_falls_back_to_the_cache_with_a_remark(
    server: HubServer, api: HfApi, one: PatchedModel, data: list[bytes]
) -> None:
    server.create(EARS, {WEIGHTS: data[0]})
    commit = pull(EARS).commit
    server.close()
    report = one.apply_patch(EARS)
    assert "cannot be reached" in report.remarks[0] and commit[:12] in str(report)
    one.remove_patch("ears")
    with pytest.raises(PatchNotFound, match="cannot be reached"):
        pull("tester/other")


def test_processes_that_share_an_empty_cache_all_get_the_patch(
    server: HubServer, patches: list[Patch], data: list[bytes], tmp_path: Path
) -> None:
    server.create(EARS, {WEIGHTS: data[0]})
    code = f"""
        import json
        from pave.hub.locate import locate
        print(json.dumps(locate("{EARS}").load().sha256))
        """
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: server.run(tmp_path / "cache", code), range(2)))
    assert found == [patches[0].sha256] * 2


def test_a_deleted_repo_is_not_served_from_the_cache(server: HubServer, api: HfApi, data: list[bytes]) -> None:
    server.create(EARS, {WEIGHTS: data[0]})
    pull(EARS)
    del server.repos[EARS]
    with pytest.raises(PatchNotFound, match="not a repo on the Hub"):
        pull(EARS)


def test_the_command_line_pulls_and_shows_patches(
    server: HubServer, patches: list[Patch], data: list[bytes], tmp_path: Path
) -> None:
    """In a separate process, where HF_ENDPOINT alone selects a mirror."""
    server.create(EARS, {WEIGHTS: data[0]})
    found: Any = server.run(
        tmp_path,
        f"""
        import contextlib, io, json, sys
        from pave.cli import main as cli
        outputs = []
        pulling = ["pull", "{EARS}", "--out", "{tmp_path}/out"]
        for arguments in (["info", "{EARS}"], pulling, ["verify", "{EARS}"], ["alias", "mine", "{EARS}"], ["list"]):
            sys.argv = ["pave", "patch", *arguments]
            with contextlib.redirect_stdout(io.StringIO()) as out:
                try:
                    cli.main()
                except SystemExit as stop:
                    assert not stop.code, stop.code
            outputs.append(out.getvalue())
        print(json.dumps(outputs))
        """,
        PAVE_HOME=str(tmp_path / "pave"),
    )
    commit = server.repos[EARS].branches["main"]
    assert "sense    audio: logmel" in found[0] and patches[0].sha256 in found[1] and "ok, " in found[2]
    assert Patch.load(tmp_path / "out").sha256 == patches[0].sha256
    assert json.dumps(found).count(commit) == 1
    alias, pulled = (line.split() for line in found[-1].splitlines()[-2:])
    assert alias == ["mine", "alias", "of", EARS]
    assert pulled == [f"{EARS}@{commit[:12]}", f"{len(data[0]):,}", "downloaded"]


def test_info_shows_held_out_figures(patches: list[Patch], tmp_path: Path, command: Any) -> None:
    measured = {"held_out": {"sound": {"base": 0.25, "patched": 0.875}}}
    file = replace(patches[0], certificate=measured).save(tmp_path / "ears.safetensors")
    code, out, _ = command("patch", "info", file)
    assert code == 0 and "  held out sound: 0.875 right with the patch, 0.250 without" in out
