from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from cvlib.data import load
from cvlib.data.pickles import read_pickle
from cvlib.errors import BookError

N = 20  # images a batch; the real files have 10,000


def batch(k: int) -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng(k)
    return rng.integers(0, 256, (N, 3072), dtype=np.uint8), rng.integers(0, 10, N).tolist()


def python2_pickle(images: np.ndarray, labels: list[int]) -> bytes:
    """Protocol 2 as Python 2's cPickle wrote the distributed files: byte strings, numpy.core, int items."""

    def text(data: bytes) -> bytes:
        short = len(data) < 256
        return (b"U" + bytes([len(data)]) if short else b"T" + len(data).to_bytes(4, "little")) + data

    def number(n: int) -> bytes:
        return b"K" + bytes([n]) if n < 256 else b"M" + n.to_bytes(2, "little")

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03(K\x01"
    )
    array += number(len(images)) + number(3072) + b"\x86cnumpy\ndtype\nq\x04U\x02u1K\x00K\x01\x87Rq\x05"
    array += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + text(images.tobytes()) + b"tb"
    items = b"".join(map(number, labels))
    body = (
        text(b"data")
        + array
        + text(b"labels")
        + b"]q\x06("
        + items
        + b"e"
        + text(b"batch_label")
        + text(b"b")
    )
    return b"\x80\x02}q\x00(" + body + b"u."


def write(root: Path, kind: str) -> Path:
    folder = root / {"python": "cifar-10-batches-py", "binary": "cifar-10-batches-bin"}.get(kind, "")
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        images, labels = batch(k)
        if kind == "binary":
            (folder / f"{name}.bin").write_bytes(
                np.column_stack([np.array(labels, np.uint8), images]).tobytes()
            )
        elif kind == "python":
            (folder / name).write_bytes(python2_pickle(images, labels))
        else:
            fields = {b"data": images, b"labels": labels, "filenames": ["x.png"] * N}
            (folder / name).write_bytes(pickle.dumps(fields, protocol=int(kind)))
    return root


@pytest.mark.parametrize("kind", ["python", "binary", "2", "3", "4"])
def test_every_version_gives_the_same_images(tmp_path, kind):
    root = str(write(tmp_path, kind))
    parts = {split: load("cifar10", split, 32, root=root) for split in ("train", "validation", "test")}
    assert [len(part) for part in parts.values()] == [90, 10, 20]
    images, labels = batch(1)
    got = ((parts["train"].images(range(18, 36)) + 1) * 127.5).round().byte()
    assert np.array_equal(got.numpy().reshape(18, -1), images[:18])
    assert parts["train"].labels["class"][18:36].tolist() == labels[:18]
    assert np.array_equal(((parts["validation"].images([2]) + 1) * 127.5).round().numpy().ravel(), images[18])
    assert parts["test"].label_names["class"][:2] == ["airplane", "automobile"]
    assert parts["train"].hash == load("cifar10", "train", 32, root=str(write(tmp_path / "b", "binary"))).hash


def test_python2_fixture_is_what_pickle_itself_reads():
    images, labels = batch(0)
    read = pickle.loads(python2_pickle(images, labels), encoding="latin1")
    assert np.array_equal(read["data"], images) and read["labels"] == labels


def test_padding_mirrors_the_rim_and_other_sizes_are_resized(tmp_path):
    root = str(write(tmp_path, "binary"))
    plain, padded = (
        load("cifar10", "test", 32, root=root),
        load("cifar10", "test", 32, root=root, pad=2, flip=False),
    )
    assert torch.equal(plain.images([3]), padded.images([3]))
    wide = torch.nn.functional.pad(plain.images([3]), (2, 2, 2, 2), mode="reflect")[0]
    draws = padded.draw(torch.full((50,), 3), torch.Generator().manual_seed(0), True)
    crops = padded.render(torch.full((50,), 3), draws)["image"]
    for k in range(50):
        y, x = int(draws.top[k]), int(draws.left[k])
        assert torch.equal(crops[k], wide[:, y : y + 32, x : x + 32])
    half = load("cifar10", "test", 16, root=root).images([3])
    area = torch.nn.functional.avg_pool2d(plain.images([3]), 2)
    assert half.shape == (1, 3, 16, 16) and (half - area).abs().mean() < 0.15


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, protocol):
    root = write(tmp_path, "python")
    target = tmp_path / "run"
    data = pickle.dumps({b"data": Evil(target), b"labels": [0]}, protocol=protocol)
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(data)
    with pytest.raises(BookError, match=r"test_batch holds a call of 'posix mkdir'|test_batch holds"):
        load("cifar10", "test", 32, root=str(root))
    assert not target.exists()
    pickle.loads(data)
    assert target.exists()  # run as a pickle it would have done it


@pytest.mark.parametrize("protocol", range(5))
def test_plain_data_reads_like_pickle(protocol):
    value = {
        "a": [1, -2, 70_000, 2**40, 1.5],
        "b": ("x", (), ("y",), ("y", "z"), (1, 2, 3, 4)),
        "c": [None, True, False],
    }
    value["again"] = value["a"]
    found = read_pickle(pickle.dumps(value, protocol=protocol))
    assert found == value and found["again"] is found["a"]


@pytest.mark.parametrize(
    "data", [b"", b"\x80\x02}", b"\x80\x02(", b"\x80\x02.", b"\x80\x02h\x05.", b"\x80\x02K\x01a.", b"junk"]
)
def test_malformed_pickles_raise_value_errors(data):
    with pytest.raises(ValueError):
        read_pickle(data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "data_batch_3.bin").unlink(), "no data_batch_3 or data_batch_3.bin in"),
        (lambda f: (f / "data_batch_3.bin").write_bytes(b"x" * 3000), "data_batch_3.bin has 3000 bytes"),
        (lambda f: (f / "data_batch_3.bin").write_bytes(b""), "data_batch_3.bin has 0 bytes"),
        (lambda f: (f / "data_batch_3.bin").write_bytes(b"\x0a" + bytes(3072)), "labels outside 0 to 9"),
    ],
)
def test_bad_files_are_told(tmp_path, change, words):
    root = write(tmp_path, "binary")
    change(root / "cifar-10-batches-bin")
    with pytest.raises(BookError, match=words):
        load("cifar10", "train", 32, root=str(root))


def test_truncated_or_foreign_pickles_are_told(tmp_path):
    root = write(tmp_path, "python")
    path = root / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(BookError, match="test_batch holds"):
        load("cifar10", "test", 32, root=str(root))
    path.write_bytes(pickle.dumps({b"data": np.zeros((2, 5), np.uint8), b"labels": [0, 1]}, protocol=2))
    with pytest.raises(BookError, match="test_batch holds other data"):
        load("cifar10", "test", 32, root=str(root))
    with pytest.raises(BookError, match="no folder for cifar10"):
        load("cifar10", "test", 32)
