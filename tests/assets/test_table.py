"""The pinned table is complete, consistent and names no registry."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import cvlib.assets
from cvlib.assets import ASSETS, GROUPS, asset_names, fetch, location, member, problem, table_markdown
from cvlib.assets.clients import shown_command
from cvlib.assets.unpack import escapes
from cvlib.errors import BookError

HEX = re.compile(r"[0-9a-f]{64}")
DESIGN = {
    *(f"emoji-{name}" for name in ("noto", "noto-v1", "twemoji", "openmoji", "fluent-emoji")),
    *(f"emoji-{name}" for name in ("fluent-emoji-flat", "emojione", "emojione-v1", "fxemoji")),
    *("photos-skimage", "photos-sklearn", "painting", "mocap", "vgg19-8bit", "vgg16-hed", "lpips-linear"),
    *("efficientnet-lite0", "minilm", "mathjax", "requirejs"),
}


def test_every_asset_of_the_design():
    assert set(ASSETS) == DESIGN
    assert len(GROUPS["emoji"]) == 9
    assert set(GROUPS["quick"]) == {
        *GROUPS["emoji"],
        *("photos-skimage", "photos-sklearn", "vgg19-8bit", "vgg16-hed", "lpips-linear", "mocap"),
        "efficientnet-lite0",
    }
    assert set(GROUPS["all"]) == DESIGN - {"painting"}


@pytest.mark.parametrize("asset", ASSETS.values(), ids=list(ASSETS))
def test_row_is_complete(asset):
    assert asset.kind in ("wheel", "npm", "debian")
    assert HEX.fullmatch(asset.sha256) and asset.size > 10_000 and asset.members
    assert all((asset.licence, asset.credit, asset.what, asset.package))
    assert asset.version in asset.file and "/" not in asset.file
    assert "|" not in asset.licence + asset.credit + asset.what  # the Markdown table would break
    if asset.kind == "wheel":  # what the client is told to ask for, whatever the host
        assert asset.file.endswith("none-any.whl") or re.search(
            "cp311-cp311-.*manylinux2014_x86_64", asset.file
        )
    for one in asset.members:
        assert HEX.fullmatch(one.sha256) and one.size > 0
        assert not escapes(one.name) and not escapes(one.path) and not one.name.startswith(".")
    names = [one.name.lower() for one in asset.members]  # case-insensitive file systems
    assert len(set(names)) == len(names) == len({one.path for one in asset.members})


def test_archives_are_distinct():
    for field in ("file", "sha256"):
        assert len({getattr(asset, field) for asset in ASSETS.values()}) == len(ASSETS)
    assert len({location(asset) for asset in ASSETS.values()}) == len(ASSETS)


def test_emoji_have_the_four_files_and_mocap_its_clips():
    for name in GROUPS["emoji"]:
        assert [m.name for m in ASSETS[name].members] == [
            "icons.json",
            "info.json",
            "metadata.json",
            "chars.json",
        ]
    assert len(ASSETS["mocap"].members) == 15


def test_table_cannot_be_changed_by_accident():
    with pytest.raises(TypeError):
        ASSETS["new"] = ASSETS["mocap"]  # type: ignore[index]
    with pytest.raises(AttributeError):
        ASSETS["mocap"].sha256 = "0" * 64  # type: ignore[misc]


def test_no_registry_host_in_the_code():
    folder = Path(cvlib.assets.__file__).parent
    text = "".join(path.read_text(encoding="utf-8") for path in folder.iterdir() if path.is_file())
    assert not re.search(r"https?:|\.org\b|\.com\b|\.io\b", text)


def test_unknown_name_lists_the_known():
    with pytest.raises(BookError, match=r"'emojis'.*wanted one of emoji, .*mocap"):
        asset_names(["mocap", "emojis"])


def test_markdown_has_a_row_for_each_asset_with_hash_licence_and_credit():
    rows = table_markdown().splitlines()
    assert len(rows) == 2 + len(ASSETS) and len({row.count("|") for row in rows}) == 1
    for asset, row in zip(ASSETS.values(), rows[2:], strict=True):
        assert all(f"{text}" in row for text in (asset.sha256, asset.licence, asset.credit, asset.file))


def test_shown_command_asks_for_one_platform():
    assert shown_command(ASSETS["lpips-linear"]) == (
        "pip download --no-deps --only-binary=:all: --python-version 3.11 --implementation cp --abi cp311 "
        "--platform manylinux2014_x86_64 -d . lpips==0.1.4"
    )
    assert shown_command(ASSETS["requirejs"]).startswith("npm pack ")
    assert shown_command(ASSETS["painting"]) == "apt-get download opencv-doc=4.6.0+dfsg-12"


@pytest.mark.parametrize("name", GROUPS["emoji"])
def test_emoji_licence_is_the_packages_own(name):
    if problem(ASSETS[name]) != "":
        pytest.skip("not in the cache")
    info = json.loads(member(name, "info.json").read_text(encoding="utf-8"))
    assert info["license"]["spdx"] == ASSETS[name].licence
    assert f"{info['total']:,} drawings" in ASSETS[name].what


@pytest.mark.network
def test_real_packages_by_pip_and_npm(monkeypatch, tmp_path):
    monkeypatch.setenv("CVLIB_CACHE", str(tmp_path))
    monkeypatch.delenv("CVLIB_ARCHIVES", raising=False)
    assert (fetch("requirejs") / "require.js").read_text(encoding="utf-8").count("define") > 10
    weights = torch.load(member("lpips-linear", "vgg.pth"), map_location="cpu", weights_only=True)
    assert [tuple(w.shape) for w in weights.values()] == [(1, c, 1, 1) for c in (64, 128, 256, 512, 512)]
    assert all((w >= 0).all() for w in weights.values())
