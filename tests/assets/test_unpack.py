"""Only what the table names comes out of an archive, and nothing gets out of the folder."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from cvlib.assets.clients import check_archive
from cvlib.assets.unpack import unpack
from cvlib.errors import BookError

KINDS = ("wheel", "npm", "debian")
CONTENT = {"a.txt": b"first member\n", "deep/b.bin": bytes(range(256)) * 40}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_named_members_and_no_others(make, tmp_path, kind):
    asset, archive = make(kind=kind, front=(("package/other.py", b"import os", tarfile.REGTYPE),))
    unpack(asset, archive, tmp_path / "out")
    assert files(tmp_path / "out") == CONTENT


def test_member_gets_the_tables_name(make, tmp_path):
    asset, archive = make()
    unpack(
        replace(asset, members=(replace(asset.members[0], name="renamed.txt"),)), archive, tmp_path / "out"
    )
    assert files(tmp_path / "out") == {"renamed.txt": CONTENT["a.txt"]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", ["../evil", "package/../../evil", "/tmp/evil"])
def test_escaping_member_is_refused(make, tmp_path, kind, path):
    asset, archive = make(kind=kind, front=((path, b"evil", tarfile.REGTYPE),))
    with pytest.raises(BookError, match=r"evil.*leads out of the folder.*nothing was unpacked"):
        unpack(asset, archive, tmp_path / "out")
    assert not (tmp_path / "evil").exists() and files(tmp_path).keys() == {f"archives/{archive.name}"}


@pytest.mark.parametrize(
    ("kind", "link"),
    [
        ("wheel", tarfile.SYMTYPE),
        ("npm", tarfile.SYMTYPE),
        ("npm", tarfile.LNKTYPE),
        ("npm", tarfile.CHRTYPE),
        ("debian", tarfile.SYMTYPE),
    ],
)
def test_link_in_a_members_place_is_refused(make, tmp_path, kind, link):
    asset, archive = make(kind=kind, front=(("package/a.txt", None, link),))
    with pytest.raises(BookError, match=r"a\.txt.*link or a special file"):
        unpack(asset, archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_link_as_folder_of_a_member_has_no_effect(make, tmp_path):
    """The classic two-step: a link "package/deep" to elsewhere, then a file below it."""
    asset, archive = make(front=(("package/deep", None, tarfile.SYMTYPE),))
    unpack(asset, archive, tmp_path / "out")
    assert files(tmp_path / "out") == CONTENT and not (tmp_path / "out/deep").is_symlink()


@pytest.mark.parametrize("kind", KINDS)
def test_bomb_is_refused(make, tmp_path, kind):
    asset, archive = make(kind=kind, front=(("package/zeros", bytes(8 << 20), tarfile.REGTYPE),))
    assert asset.size < 30_000  # that is 8 MiB out of a few kB
    with pytest.raises(BookError, match="more than 100 times its size"):
        unpack(asset, archive, tmp_path / "out")


@pytest.mark.parametrize("kind", KINDS)
def test_member_larger_than_the_table_is_cut_short(make, tmp_path, kind):
    asset, archive = make(kind=kind, front=(("package/a.txt", b"x" * 5000, tarfile.REGTYPE),))
    with pytest.raises(BookError, match="larger than the 13 bytes"):
        unpack(asset, archive, tmp_path / "out")
    assert all(len(data) <= 13 for data in files(tmp_path / "out").values())


def test_wrong_and_missing_members_are_named(make, tmp_path):
    asset, archive = make()
    wrong = replace(asset.members[0], sha256="0" * 64)
    with pytest.raises(BookError, match=r"package/a\.txt has SHA-256 .*wanted 000"):
        unpack(replace(asset, members=(wrong,)), archive, tmp_path / "out")
    absent = replace(asset.members[0], path="package/none.txt")
    with pytest.raises(BookError, match=r"lacks package/none\.txt"):
        unpack(replace(asset, members=(absent,)), archive, tmp_path / "out2")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [0, 3, 8, 60, 100, 150, 200, 300])
def test_truncated_archive_gives_one_line(make, tmp_path, kind, keep):
    asset, archive = make(kind=kind)
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(BookError, match=r"cannot be read|lacks"):
        unpack(asset, archive, tmp_path / "out")


def test_check_archive_sees_one_flipped_bit_and_one_missing_byte(make):
    asset, archive = make()
    check_archive(asset, archive)
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    with pytest.raises(BookError, match=f"SHA-256.*wanted SHA-256 {asset.sha256}"):
        check_archive(asset, archive)
    archive.write_bytes(data[:-1])
    with pytest.raises(BookError, match=f"wanted {asset.size} bytes"):
        check_archive(asset, archive)
