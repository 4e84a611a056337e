"""Claims about extraction: each readable clip is encoded once, each other one is listed with the reason, always."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from clips import click, counting_frames, write_clip
from places import ROOT
from small import write_line

from pave.cli import main
from pave.encoder import CONSENT, PLACE, load_encoder
from pave.errors import DataError, EncoderError
from pave.features import extract
from pave.features.extract import listed
from pave.features.files import FeatureFolder, files, identity, read_header
from pave.features.worker import Job
from pave.files.locks import held
from pave.loading.base import load_base
from pave.media.clip import Clip
from pave.sidechannel import PARTS

JOB = Job("logmel", {"bands": 16, "rate": 5})
WORDS = ("--option", "bands=16", "--option", "rate=5", "--shard", "2", "--workers", "2")


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips with sound in two folders, one without; two broken media files, and one text file."""
    folder = tmp_path_factory.mktemp("media")
    (folder / "deep").mkdir()
    for i in range(6):
        name = f"{i}.mp4" if i % 2 else f"deep/{i}.MP4"
        write_clip(folder / name, counting_frames(8), fps=8, audio=click(1.0 + i / 5, 0.1 * (i + 1)))
    write_clip(folder / "mute.mp4", counting_frames(8), fps=8)
    (folder / "cut.mp4").write_bytes((folder / "1.mp4").read_bytes()[:400])
    (folder / "words.wav").write_text("not a sound")
    (folder / "notes.txt").write_text("not media")
    return folder


@pytest.fixture(scope="module")
def done(media: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an uninterrupted run."""
    out = tmp_path_factory.mktemp("done")
    extract.encode(JOB, listed(media), out, size=2)
    return out


def same(one: Path, other: Path) -> bool:
    """Equal files, down to the last bit, without temporary files of a killed save and the list of the command."""
    files = [[file for file in folder.glob("[!.]*") if file.name != "left-out.jsonl"] for folder in (one, other)]
    contents = [{file.name: file.read_bytes() for file in each} for each in files]
    return contents[0] == contents[1]


def run(*words: object) -> str:
    """Run `python -m WORDS` to the end, successfully: its stdout."""
    # By default Ray runs at low priority, which is slow beside other tests, and sends usage statistics.
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-m", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=settings, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_readable_clip_is_stored_once_and_equals_fresh_features(media: Path, done: Path) -> None:
    features, encoder = FeatureFolder(done), load_encoder("logmel", **JOB.options)
    entries = [entry for path in files(done) for entry in read_header(path).clips]
    assert [entry.path for entry in entries] == [
        "1.mp4", "3.mp4", "5.mp4", "cut.mp4", "deep/0.MP4", "deep/2.MP4", "deep/4.MP4", "mute.mp4", "words.wav",
    ]  # fmt: skip
    for name, source in listed(media):
        if name not in ("cut.mp4", "words.wav", "mute.mp4"):
            found, _ = features.find(*identity(source, "audio"))
            fresh = encoder.encode(Clip.read(source.video, frames=4))
            assert found and fresh and all(torch.equal(getattr(found, part), getattr(fresh, part)) for part in PARTS)
    mute = identity(dict(listed(media))["mute.mp4"], "audio")
    side, entry = features.find(*mute)
    assert side is None and entry.absent == "absent: no audio track"


def test_unreadable_clips_are_listed_with_the_reason(media: Path, done: Path) -> None:
    lines = [json.loads(line) for line in (done / "quarantine.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == ["cut.mp4", "words.wav"]
    assert all(line["why"].startswith(f"{line['file']}: ") and str(media) not in line["why"] for line in lines)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_tokens_are_rounded_to_the_given_dtype(media: Path, done: Path, tmp_path: Path, dtype: str) -> None:
    extract.encode(Job("logmel", JOB.options, dtype), listed(media)[:1], tmp_path)
    clip = identity(listed(media)[0][1], "audio")
    (exact, _), (rounded, _) = FeatureFolder(done).find(*clip), FeatureFolder(tmp_path).find(*clip)
    assert exact and rounded and torch.equal(rounded.x, exact.x.to(getattr(torch, dtype)).float())
    assert not torch.equal(rounded.x, exact.x)


def test_a_killed_and_restarted_run_gives_the_same_files(media: Path, done: Path, tmp_path: Path) -> None:
    for least in (1, 3):
        with forked.begin(tmp_path / ".log", ["pave", "encode", "logmel", media, tmp_path, *WORDS]) as process:
            while len(files(tmp_path)) < least and process.poll() is None:
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
    (tmp_path / "quarantine.jsonl").unlink(missing_ok=True)  # on a busy machine the signal may come after the end
    for path in files(tmp_path)[4:]:
        path.unlink()
    begun = {path: path.stat().st_mtime_ns for path in files(tmp_path)}
    assert len(begun) >= 3
    tally = extract.encode(JOB, listed(media), tmp_path, size=2)
    assert same(tmp_path, done) and (tally.clips, tally.absent, len(tally.refused)) == (9, 1, 2)
    assert all(path.stat().st_mtime_ns == then for path, then in begun.items()), "finished files have stayed"


def test_two_processes_fill_one_folder_with_the_same_files(media: Path, done: Path, tmp_path: Path) -> None:
    words = ["pave", "encode", "logmel", media, tmp_path / "out", *WORDS[:-1], 1]
    with forked.begin(tmp_path / "one", words) as one, forked.begin(tmp_path / "two", words) as two:
        results = [process.communicate() for process in (one, two)]
    assert (one.returncode, two.returncode) == (0, 0), results
    assert same(tmp_path / "out", done) and not list((tmp_path / "out").glob(".*"))


def test_a_folder_that_another_work_is_filling_is_refused(media: Path, tmp_path: Path) -> None:
    with held(tmp_path, "pave encode", "other clips"):
        with pytest.raises(DataError, match=r"is in use by pave encode \(this process, since .*; wait for it"):
            extract.encode(JOB, listed(media), tmp_path, size=2)
        assert [file.name for file in tmp_path.iterdir()] == [".pave.lock"]


def test_a_repaired_clip_is_encoded_again_and_others_are_not(media: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "media", tmp_path / "out"
    folder.mkdir()
    for name in ("1.mp4", "3.mp4"):
        (folder / name).write_bytes((media / name).read_bytes())
    (folder / "2.mp4").write_text("not yet a film")
    assert list(extract.encode(JOB, listed(folder), out, size=1).refused) == ["2.mp4"]
    for retry, content in ((True, b"not yet a film"), (False, (media / "5.mp4").read_bytes())):
        before = [path.stat().st_mtime_ns for path in files(out)]
        (folder / "2.mp4").write_bytes(content)
        extract.encode(JOB, listed(folder), out, size=1, retry=retry)
        changed = [path.stat().st_mtime_ns > then for path, then in zip(files(out), before, strict=True)]
        assert changed == [False, True, False]
    assert (out / "quarantine.jsonl").read_text() == ""


def test_a_folder_of_other_features_is_refused_and_stays(media: Path, done: Path) -> None:
    before = [path.read_bytes() for path in files(done)]
    for job, clips, cause in (
        (Job("logmel", JOB.options, "float16"), listed(media), r"float32\), but you are encoding .* float16\)"),
        (JOB, listed(media / "deep"), r"is of other clips \(2\) than yours"),
    ):
        with pytest.raises(DataError, match=rf"00000.*{cause}.*give another folder"):
            extract.encode(job, clips, done, size=2)
    assert [path.read_bytes() for path in files(done)] == before


@pytest.fixture(scope="module")
def moody(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder of encoders, with one that behaves as the name of the clip says."""
    folder = tmp_path_factory.mktemp("moody")
    (folder / "moody.py").write_text(
        """
import os, signal, time
from pathlib import Path
import torch
from pave.encoder import Encoder, EncoderSpec
from pave.sidechannel import SideTokens

class Moody(Encoder):
    spec = EncoderSpec(name="moody", sense="audio", dim=1, rate=1.0)

    def encode(self, clip):
        path = Path(clip.report.source)
        tried = path.with_suffix(".tried").exists()
        path.with_suffix(".tried").touch()
        if path.stem == "crash" or path.stem == "once" and not tried:
            os.kill(os.getpid(), signal.SIGSEGV)
        elif path.stem == "hang":
            time.sleep(600)
        elif path.stem == "greedy":
            torch.zeros(3 << 28)
        elif path.stem == "bug":
            raise KeyError("a slip")
        return SideTokens.regular(torch.tensor([[3e38 if path.stem == "loud" else 1.0]]), rate=1.0)

def build():
    return Moody()
"""
    )
    return folder


def encoding(media: Path, moody: Path, *words: object) -> forked.Forked:
    """`pave encode moody`; what it prints and writes is beside the media."""

    def work() -> None:
        import_module("pave.encoders").__path__.append(str(moody))
        sys.argv = ["pave", "encode", "moody", *map(str, (media, media.with_name("out"), *words))]
        main.main()

    return forked.begin(media.parent, work, **{PLACE: moody})


def test_a_clip_that_crashes_its_worker_is_skipped_and_the_others_are_encoded(
    media: Path, moody: Path, tmp_path: Path
) -> None:
    names = ("bug", "calm", "crash", "greedy", "hang", "loud", "once", "zeal")
    (tmp_path / "media").mkdir()
    for name in names:
        (tmp_path / "media" / f"{name}.mp4").write_bytes((media / "1.mp4").read_bytes() + name.encode())
    limits = ("--timeout", "4", "--memory", "2", "--workers", "1", "--dtype", "float16", "--shard", "100")
    with encoding(tmp_path / "media", moody, *limits) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert "3 of 8 clips are encoded" in out and "5 clips quarantined" in out
    lines = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    why = {Path(line["file"]).stem: line["why"] for line in lines}
    assert why.keys() == {"bug", "crash", "greedy", "hang", "loud"}
    assert why["hang"] == "hang.mp4: took longer than 4 s and was stopped; raise --timeout"
    assert why["crash"] == "crash.mp4: crashes the process that encodes it (exit status -11)"
    assert why["greedy"] == "greedy.mp4: needs more than 2 GiB of memory; raise --memory"
    assert "bug.mp4: KeyError: 'a slip'; this is a bug" in why["bug"]
    assert why["loud"] == "loud.mp4: has tokens of 3e+38, too large for float16; use bfloat16"


def test_ranks_of_torchrun_share_the_work(media: Path, done: Path, tmp_path: Path) -> None:
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")
    run(*torchrun, "pave.cli.main", "encode", "logmel", media, tmp_path, *WORDS[:-1], 1)
    assert same(tmp_path, done)


def test_a_rank_takes_every_other_shard(media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    tally = extract.encode(JOB, listed(media), tmp_path, size=2)
    assert [path.name for path in files(tmp_path)] == ["00001.safetensors", "00003.safetensors"]
    assert tally.clips == 4 and not (tmp_path / "quarantine.jsonl").exists(), (
        "the list is written when all shards exist"
    )


def test_ray_does_the_same(media: Path, done: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason='pip install "pave[ray]"')
    out = run("pave.cli.main", "encode", "logmel", media, tmp_path, *WORDS, "--engine", "ray")
    assert same(tmp_path, done) and "6 of 9 clips are encoded" in out


def test_clips_of_a_data_file_are_encoded_with_their_signals(media: Path, tmp_path: Path) -> None:
    np.save(media / "imu.npy", np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32))
    lines = [write_line("1.mp4", "what?", "that", signals={"imu": name}) for name in ("imu.npy", "imu.npy", "gone.npy")]
    (media / "asked.jsonl").write_text("".join([*lines, write_line("3.mp4", "what?", "that")]))
    job = Job("array", {"signal": "imu", "dim": 3, "rate": 10})
    tally = extract.encode(job, listed(media / "asked.jsonl"), tmp_path)
    assert (tally.clips, tally.absent, list(tally.refused)) == (3, 1, ["1.mp4"])
    assert "gone.npy: cannot be read" in tally.refused["1.mp4"]
    first = listed(media / "asked.jsonl")[0][1]
    found, _ = FeatureFolder(tmp_path).find(*identity(first, "imu"))
    assert found and torch.equal(found.x.flatten(1), torch.from_numpy(np.load(media / "imu.npy")))


def test_the_vision_tower_of_a_base_is_part_of_the_key(media: Path, tmp_path: Path) -> None:
    extract.encode(Job("base-tower", base="playroom"), listed(media)[:1], tmp_path)
    features, tower = FeatureFolder(tmp_path), load_encoder("base-tower").on(load_base("playroom", dtype="float32"))
    assert features.key.weights == tower.fingerprint
    found, _ = features.find(*identity(listed(media)[0][1], "fast"))
    fresh = tower.encode(Clip.read(listed(media)[0][1].video, frames=8))
    assert found and fresh and torch.equal(found.times, fresh.times) and torch.allclose(found.x, fresh.x, atol=1e-5)


@pytest.mark.parametrize(
    ("job", "cause"),
    [
        (Job("logmel", {"band": 3}), "no option 'band'"),
        (Job("logmell"), "did you mean 'logmel'"),
        (Job("logmel", memory=0.01), "logmel: .*0.01 GiB"),
    ],
)
def test_an_error_that_no_clip_causes_stops_the_run(media: Path, tmp_path: Path, job: Job, cause: str) -> None:
    with pytest.raises(EncoderError, match=cause):
        extract.encode(job, listed(media), tmp_path)
    assert not list(tmp_path.iterdir())


def test_features_for_research_only_need_consent(media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CONSENT, raising=False)
    job = Job("imagebind-audio", published=str(tmp_path))
    with pytest.raises(EncoderError, match=rf"CC-BY-NC-SA-4\.0, for research only.*{CONSENT}=1"):
        extract.encode(job, listed(media), tmp_path)


def test_a_source_without_media_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"contains no media file \(it is empty\)"):
        listed(tmp_path)
    (tmp_path / "notes.txt").write_text("not media")
    with pytest.raises(DataError, match=r"contains no media file \(notes\.txt: not a media file"):
        listed(tmp_path)
    with pytest.raises(DataError, match="no such file; give a file of questions"):
        listed(tmp_path / "gone.jsonl")


def test_content_and_not_the_ending_makes_a_clip_and_other_files_are_listed(media: Path, tmp_path: Path) -> None:
    folder, film = tmp_path / "media", (media / "1.mp4").read_bytes()
    (folder / ".trash").mkdir(parents=True)
    for name in ("phone.3gp", "no ending", "CAMERA.MTS", ".hidden.mp4", ".trash/old.mp4"):
        (folder / name).write_bytes(film)
    write_clip(folder / "sound.WAVE", None, audio=click(1, 0.5), audio_codec="pcm_s16le", format="wav")
    (folder / "cut.3gp").write_bytes(film[:400])
    (folder / "notes.txt").write_text("not media")
    (folder / "asked.jsonl").write_text('{"video": "a.mp4"}\n')
    (folder / "words.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n")
    (folder / "empty").touch()
    np.save(folder / "imu.npy", np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32))
    os.mkfifo(folder / "pipe.mp4")
    clips, left_out = extract.found(folder)
    assert [name for name, _ in clips] == ["CAMERA.MTS", "no ending", "phone.3gp", "sound.WAVE"]
    assert list(left_out) == ["asked.jsonl", "cut.3gp", "empty", "imu.npy", "notes.txt", "pipe.mp4", "words.srt"]
    assert "whose index is missing" in left_out["cut.3gp"] and "0 bytes" in left_out["empty"]
    assert len(extract.some(left_out)) == 6 and extract.some(left_out)[-1] == "and 2 more"


def test_clips_are_read_as_their_lines_say_and_warnings_are_kept(media: Path, tmp_path: Path) -> None:
    two, early, late = tmp_path / "two.mkv", click(1, 0.2), click(1, 0.7)
    write_clip(two, counting_frames(8), 8, early, more_audio=[late])
    whole = write_clip(tmp_path / "a.mp4", counting_frames(20), 8, late, container_options={"movflags": "faststart"})
    (tmp_path / "half.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 4])
    write_clip(tmp_path / "late.wav", None, audio=late, audio_codec="pcm_s16le")
    more: list[dict[str, object]] = [{}, {"audio_track": 0}, {"audio_track": 1}, {"signals": {"audio": "late.wav"}}]
    lines = [write_line("two.mkv", "what?", "that", **each) for each in (*more, {"signals": {"audio": None}})]
    (tmp_path / "asked.jsonl").write_text("".join([*lines, write_line("half.mp4", "what?", "that")]))
    clips = [clip for _, clip in listed(tmp_path / "asked.jsonl")]
    tally = extract.encode(JOB, listed(tmp_path / "asked.jsonl"), tmp_path / "out")
    assert (tally.clips, tally.absent, tally.refused) == (6, 1, {}) and list(tally.warnings) == ["two.mkv", "half.mp4"]
    _, line = (tmp_path / "out" / "warnings.jsonl").read_text().splitlines()
    assert json.loads(line)["file"] == "half.mp4" and "cut short" in json.loads(line)["warnings"][0]
    features = FeatureFolder(tmp_path / "out")
    sides = [features.find(*identity(clip, "audio")) for clip in clips]
    at = [side.times[side.x.mean((1, 2, 3)).argmax()].item() for side, _ in sides[:4] if side is not None]
    assert at == pytest.approx([0.3, 0.3, 0.7, 0.7], abs=0.2)
    assert sides[4][0] is None and sides[4][1].absent == "absent: left out by the caller"
    assert "cut short" in sides[5][1].warnings[0]


def test_a_stopped_run_prints_how_to_continue(media: Path, moody: Path, tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "hang.mp4").write_bytes((media / "1.mp4").read_bytes())
    with encoding(tmp_path / "media", moody) as process:
        while not (tmp_path / "media" / "hang.tried").exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130 and "the same command again to continue" in err
