from __future__ import annotations

import errno
import multiprocessing

import numpy as np
import pytest

from cvlib.data import store
from cvlib.data.store import open_store
from cvlib.errors import BookError


def fill(aside):
    (aside / "pixels.u8").write_bytes(bytes(range(256)) * 10_000)
    return {"n": 10_000}


def broken(_):
    raise AssertionError("built again without need")


def test_a_store_is_built_once_and_read_back(tmp_path):
    for build in (fill, broken):
        pixels, meta = open_store(tmp_path / "s", build)
        assert meta == {"n": 10_000} and pixels.dtype == np.uint8 and len(pixels) == 2_560_000
        assert pixels[511] == 255 and not pixels.flags.writeable
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "index", "meta", "missing"])
def test_a_damaged_store_is_built_again(tmp_path, damage, capsys):
    open_store(tmp_path / "s", fill)
    file = tmp_path / "s" / ("index.json" if damage in ("index", "meta") else "pixels.u8")
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[2_000_000] ^= 1
    elif damage == "meta":
        data = data.replace(b"10000}", b"10001}")
    file.write_bytes(data[: {"truncate": -1, "empty": 0, "index": -3}.get(damage)])
    if damage == "missing":
        file.unlink()
    pixels, meta = open_store(tmp_path / "s", fill)
    assert meta == {"n": 10_000} and bytes(pixels[:256]) == bytes(range(256)) and len(pixels) == 2_560_000
    assert "damaged" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_sample_of_a_very_large_store_is_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_CHECKED", 2)
    open_store(tmp_path / "s", fill)
    assert open_store(tmp_path / "s", broken)[1] == {"n": 10_000}
    (tmp_path / "s" / "pixels.u8").write_bytes(b"x" * 2_560_000)
    with pytest.raises(AssertionError):
        open_store(tmp_path / "s", broken)


def test_nothing_is_left_when_building_fails(tmp_path):
    def full(aside):
        (aside / "pixels.u8").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(BookError, match="no space left to write"):
        open_store(tmp_path / "s", full)
    assert not list(tmp_path.iterdir())


def _race(folder, barrier, queue):
    def build(aside):
        meta = fill(aside)
        barrier.wait(30)  # both are building now
        return meta

    pixels, _ = open_store(folder, build)
    queue.put(int(pixels[-1]))


def test_two_processes_may_build_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(2), context.Queue()
    both = [context.Process(target=_race, args=(tmp_path / "s", barrier, queue)) for _ in range(2)]
    for process in both:
        process.start()
    assert [queue.get(timeout=60), queue.get(timeout=60)] == [255, 255]
    for process in both:
        process.join(60)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
