"""Files that are no files: wherever PAVE opens one, it is refused at once and in words; headers that lie cost no
memory."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import counting_frames, write_clip
from families import make_base
from scans import room, write_scannet
from transformers import PreTrainedTokenizerFast

from pave.data import Source
from pave.encoder import load_encoder
from pave.errors import FileDamaged, FileError, PaveError, SignalError
from pave.features.cache import FeatureCache
from pave.features.files import FeatureFolder, identity
from pave.files import json_text, pickled, tensorfile
from pave.files.array_file import read_npy
from pave.files.atomic import opened, reading
from pave.loading.base import load_base
from pave.media.clip import Clip
from pave.media.rgbd import RGBD
from pave.model.patched import PatchedModel
from pave.patch.file import Patch
from pave.patch.official import convert
from pave.patch.peft import plain_config
from pave.readers.questions import read_data
from pave.recipe import read_recipe
from pave.training.checkpoint import NAME, read_checkpoint

ROWS = np.arange(40, dtype=np.float32).reshape(20, 2)


@pytest.fixture(autouse=True)
def hanging_fails() -> Iterator[None]:
    """A test that waits for a pipe fails instead of never ending."""

    def stop(number: int, frame: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def sensor(file: Path) -> Any:
    return load_encoder("array", signal="imu", dim=2, rate=10.0).encode(Clip().beside({"imu": str(file)}))


def own_encoder(file: Path) -> Any:
    return load_encoder("array", signal="imu", dim=2, rate=10.0).encode(Clip().beside({"imu": file}))


def scan_part(place: str) -> Callable[[Path], Any]:
    """Read a scan one of whose files is the odd one."""

    def read(file: Path) -> Any:
        folder = write_scannet(file.parent / "scan", room())
        part = next(folder.glob(place))
        part.unlink()
        part.symlink_to(file)
        return RGBD.read(folder)

    return read


def checkpoint(file: Path) -> Any:
    (file.parent / NAME).symlink_to(file)
    weight = torch.nn.Parameter(torch.zeros(1))
    return read_checkpoint(file.parent, {"fusion": {"w": weight}}, torch.optim.AdamW([weight]), {})


def base_part(file: Path) -> Any:
    (file.parent / "base").mkdir()
    (file.parent / "base" / "config.json").symlink_to(file)
    return load_base(file.parent / "base")


def features(file: Path) -> Any:
    (file.parent / "features").mkdir()
    (file.parent / "features" / "0.safetensors").symlink_to(file)
    return FeatureFolder(file.parent / "features")


READERS: dict[str, Callable[[Path], Any]] = {
    "the gate": lambda file: reading(file).__enter__(),
    "sensor": sensor,
    "sensor in Python": own_encoder,
    "sensor.safetensors": lambda file: sensor(file.rename(file.with_suffix(".safetensors"))),
    "hash of a signal": lambda file: identity(Source(file), "imu"),
    "video": lambda file: Clip.read(file, timeout=None),
    "depth": scan_part("depth/*.png"),
    "colour": scan_part("color/*"),
    "pose": scan_part("pose/*.txt"),
    "infos": lambda file: RGBD.read(f"{file}#scene"),
    "patch": Patch.load,
    "recipe": read_recipe,
    "JSONL": read_data,
    "config of PEFT": plain_config,
    "JSON": json_text.read_json,
    "pickle": pickled.read,
    "official zip": lambda file: convert(file, "audio", "logmel"),
    "base": base_part,
    "features": features,
}
ODD: dict[str, Callable[[Path], Any]] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str, odd: str):
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    ODD[odd](Path("x"))
    with pytest.raises(PaveError, match=r"pipe|device|socket|not a regular file|neither a file"):
        READERS[reader](tmp_path / "x")


@pytest.mark.parametrize("reader", ["the gate", "sensor", "JSONL", "recipe", "JSON"])
def test_links_to_nothing_folders_and_views_of_the_system_are_refused(tmp_path: Path, reader: str) -> None:
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    (tmp_path / "folder").mkdir()
    (tmp_path / "system").symlink_to("/proc/self/environ")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("gone", "folder", "system", "loop"):
        if name != "system" or Path("/proc/self/environ").exists():
            with pytest.raises(PaveError, match=name) as raised:
                READERS[reader](tmp_path / name)
            assert name != "system" or "/proc" in str(raised.value)


def test_a_file_that_becomes_a_pipe_between_two_looks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "stat", lambda path: os.lstat(tmp_path / "file"))
    with pytest.raises(OSError, match="named pipe"):
        opened(tmp_path / "pipe")


def test_no_descriptor_is_left_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(os, "stat", lambda path: os.lstat(__file__))
    before = len(os.listdir("/dev/fd"))
    for _ in range(3):
        with pytest.raises(OSError, match="named pipe"):
            opened(tmp_path / "pipe")
    assert len(os.listdir("/dev/fd")) == before


# Headers of arrays


def npy(header: str, data: bytes = b"", version: int = 1, length: int | None = None) -> bytes:
    text = header.encode()
    size = (len(text) if length is None else length).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + data


def told(descr: str = "'<f4'", shape: str = "(20, 2)", fortran: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n"


WHOLE = ROWS.tobytes()
LIARS: dict[str, tuple[bytes, str]] = {
    "terabytes": (npy(told(shape="(1099511627776, 2)")), "announces float32 .* 8,796,093,022,208 bytes, but 0 bytes"),
    "more than an address": (npy(told(shape="(9223372036854775807, 9223372036854775807)"), WHOLE), "announces"),
    "no bits left": (npy(told(shape="(99999999999999999999, 2)"), WHOLE), "broken header"),
    "cut": (npy(told(), WHOLE[:-1]), "announces float32 .*, 160 bytes, but 159 bytes follow"),
    "two arrays": (npy(told(), WHOLE + npy(told(), WHOLE)), "bytes follow"),
    "negative": (npy(told(shape="(-1, 2)"), WHOLE), "broken header"),
    "True as a count": (npy(told(shape="(True, 2)"), b"1" * 8), "broken header"),
    "list": (npy(told(shape="[20, 2]"), WHOLE), "broken header"),
    "many dimensions": (npy(told(shape=f"({'1,' * 99})"), b"1234"), "broken header"),
    "objects": (npy(told("'|O'"), b"\x80\x04"), "Python objects"),
    "records": (npy(told("[('x', '<f4'), ('y', '<f4')]", "(20,)"), WHOLE), "not plain numbers"),
    "times": (npy(told("'<M8[ns]'", "(20,)"), WHOLE), "not plain numbers"),
    "texts": (npy(told("'<U1'"), WHOLE), "not plain numbers"),
    "void": (npy(told("'|V4'"), WHOLE), "not plain numbers"),
    "nothing known": (npy(told("'nonsense'"), WHOLE), "not plain numbers"),
    "header of 10 MB": (npy(told() + " " * (10 << 20), WHOLE, 2), "header of 10,485,8.. bytes"),
    "header of 4 GB": (npy(told(), WHOLE, 2, 2**32 - 1), "header of 4,294,967,295 bytes"),
    "header beyond the end": (npy(told(), b"", 1, 9999), "announces|broken header"),
    "deep header": (npy("(" * 4000 + ")" * 4000), "broken header"),
    "signs": (npy("-" * 9000 + "1"), "broken header"),
    "digits": (npy(told(shape=f"({'9' * 9000}, 2)")), "broken header"),
    "code": (npy("__import__('os').system('touch hacked')"), "broken header"),
    "another key": (npy(told()[:-2] + "'more': 1}", WHOLE), "broken header"),
    "version 9": (b"\x93NUMPY\x09\x00" + WHOLE, "does not begin"),
    "only the name": (b"\x93NUMPY", "does not begin"),
    "npz": (b"PK\x03\x04rest", r"zip \(\.npz\)"),
    "pickle": (b"\x80\x04\x95rest", "pickle"),
    "CSV": (b"t,x,y\n0,1,2\n", "does not begin"),
}


@pytest.mark.parametrize("liar", LIARS)
def test_a_header_that_lies_is_our_error(tmp_path: Path, liar: str) -> None:
    content, cause = LIARS[liar]
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(SignalError, match=rf"a\.npy: .*{cause}"):
        sensor(tmp_path / "a.npy")
    assert not Path("hacked").exists()


def test_a_header_that_claims_gigabytes_costs_no_memory(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    with (tmp_path / "a.npy").open("wb") as file:
        file.write(npy(told(shape="(10000000000, 2)")))
        file.truncate(5 << 30)  # a sparse file: it takes no room
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FileDamaged, match="announces"):
        read_npy(tmp_path / "a.npy")
    (tmp_path / "b.npy").write_bytes(npy(told(shape=f"({5 << 30},)", descr="'|u1'")))
    with (tmp_path / "b.npy").open("r+b") as file:
        file.truncate((5 << 30) + (tmp_path / "b.npy").stat().st_size)
    with pytest.raises(FileDamaged, match="the most is 4,294,967,296"):
        read_npy(tmp_path / "b.npy")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8", ">i2", "|u1", "<u2", "<i8", "|b1"])
def test_honest_arrays_are_read_as_numpy_does(tmp_path: Path, dtype: str, order: Any) -> None:
    rows = np.asarray(ROWS > 7 if dtype == "|b1" else ROWS, dtype, order=order)
    for version in ((1, 0), (2, 0), (3, 0)):
        with (tmp_path / "a.npy").open("wb") as file:
            np.lib.format.write_array(file, rows, version=version)
        assert np.array_equal(read_npy(tmp_path / "a.npy"), np.load(tmp_path / "a.npy"))
        assert torch.equal(sensor(tmp_path / "a.npy").x[:, 0, 0], torch.from_numpy(rows.astype(np.float32)))


def test_an_empty_array_and_a_number_are_read(tmp_path: Path) -> None:
    for array in (np.zeros((0, 2), np.float32), np.float64(3)):
        np.save(tmp_path / "a.npy", array)
        assert np.array_equal(read_npy(tmp_path / "a.npy"), array)


# In a run


def test_a_clip_whose_sensor_lies_or_is_a_pipe_is_quarantined(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "liar.npy").write_bytes(LIARS["terabytes"][0])
    np.save(tmp_path / "good.npy", ROWS)
    film = write_clip(tmp_path / "film.mp4", counting_frames(4))
    sources = [Source(Path(film), (("imu", str(tmp_path / f"{name}.npy")),)) for name in ("good", "pipe", "liar")]
    encoder = load_encoder("array", signal="imu", dim=2, rate=10.0)
    store = FeatureCache(PatchedModel(make_base(tokenizer)), [encoder], tmp_path / "cache")
    assert list(store.read(sources)) == sources[:1]
    assert ["named pipe" in why or "announces" in why for why in store.refused.values()] == [True, True]


def test_the_command_refuses_a_pipe_as_a_signal(tmp_path: Path, command: Any) -> None:
    os.mkfifo(tmp_path / "pipe.npy")
    film = write_clip(tmp_path / "film.mp4", counting_frames(4))
    for name in ("imu", "audio"):
        code, _, err = command("ask", film, "?", "--patch", "imu-playroom", "--signal", f"{name}={tmp_path}/pipe.npy")
        assert code == 2 and "pipe" in err.splitlines()[-1], err


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells the size of a process there")
def test_mapping_more_than_the_system_allows_is_our_error(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    tensorfile.write(tmp_path / "a", {"x": torch.zeros(1 << 20)}, {})
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped = []
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), hard))
    try:
        with pytest.raises(FileError, match=r"cannot be mapped into memory .*; raise .*vm\.max_map_count"):
            for _ in range(1000):
                mapped.append(tensorfile.read(tmp_path / "a", mapped=True))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert len(mapped) > 3


def test_small_files_are_not_mapped(tmp_path: Path) -> None:
    tensorfile.write(tmp_path / "a", {"x": torch.zeros(100)}, {})
    tensors, _ = tensorfile.read(tmp_path / "a", mapped=True)
    os.truncate(tmp_path / "a", 0)
    assert tensors["x"].sum() == 0, "reading it would kill this process otherwise"


def test_an_npz_is_told_from_an_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", rows=ROWS)
    shutil.copy(tmp_path / "a.npz", tmp_path / "b.npy")
    assert zipfile.is_zipfile(tmp_path / "b.npy")
    for name in ("a.npz", "b.npy"):
        with pytest.raises(FileError, match=r"\.npz.*save the one array with np\.save"):
            read_npy(tmp_path / name)
