"""The page "invariances_photos" with the paper's photographs and networks, small and hand-made."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import jupytext
import nbformat
import pytest
import torch
import yaml
from torch import nn

from cvlib.data import load
from cvlib.errors import BookError
from cvlib.nn.backbones import BatchNorm, ResNet, alexnet_layers, resnet101_layers
from cvlib.pages import definitions
from cvlib.pages.parameters import check_parameters, notebook_parameters
from cvlib.pages.running import run_page
from tests import layouts_photographs as layouts
from tests import tiny_study

ROOT = Path(__file__).resolve().parents[2]
SIDE = 16


@pytest.fixture(scope="module")
def page():
    return definitions(ROOT / "notebooks" / "invariances_photos.py")


@pytest.fixture(scope="module")
def experts():
    return definitions(ROOT / "notebooks" / "experts_photos.py")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder for data, and a cache of its own beside it."""
    monkeypatch.setenv("CVLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "data"


def images(n=2, side=32):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


# photographs


def synsets_of(part):
    return [part.label_names["class"][k].split()[0] for k in part.labels["class"]]


def test_crops_of_imagenet_are_the_middles_of_its_canvases(experts, root):
    rows = layouts.imagenet(root)
    parts = experts.load_parts("imagenet", str(root), "", SIDE)
    assert list(parts) == ["train", "validation", "test"] and len(parts["train"]) == 59
    assert synsets_of(parts["test"]) == [row.synset for row in rows if row.half == "validation"]
    canvases = load("imagenet", "test", 24, root=str(root)).images(torch.arange(10))
    assert torch.equal(parts["test"].images(torch.arange(10)), canvases[:, :, 4:20, 4:20])
    batch = next(parts["train"].batches(8, seed=0))
    assert torch.equal(batch["class"], parts["train"].labels["class"][batch["index"]])


def test_faces_of_ten_animals_are_chosen_by_a_parameter(experts, root):
    found = layouts.animal_faces(root, root.parent / "imagenet")
    # of its own ten photographs none would be left for validation
    (root / "restricted_animalfaces_train.txt").write_bytes(
        (root / "shared_animalfaces_train.txt").read_bytes()
    )
    for subset, of in (("", "shared"), ("restricted", "restricted")):
        test = experts.load_parts("animal_faces", str(root), subset, SIDE)["test"]
        assert synsets_of(test) == [row.synset for row in found[of, "test"]]


def folder(root, names):
    for k, name in enumerate(names):
        layouts.picture(root / name, k, size=(40, 30))
    return str(root)


def test_a_folder_of_ones_own_has_its_subfolders_for_classes(experts, root):
    names = [f"{split}/{kind}/{k}.png" for split in ("train", "val", "test") for kind in "ab" for k in "12"]
    parts = experts.load_parts("image_folder", folder(root, names), "", SIDE)
    assert parts["test"].labels["class"].tolist() == [0, 0, 1, 1]
    assert not any(part.source.flip for part in parts.values())  # a mirror is a factor, and told


ERRORS = {
    "root": ("imagenet", "", "no folder for imagenet; wanted the folder of the data; pass data_root"),
    "data": ("cifar10", "", "data 'cifar10'; wanted one of photos, imagenet, animal_faces, image_folder"),
    "option": ("photos", "animals", "option subset of photos"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_loaded_is_told(experts, root, case):
    data, subset, words = ERRORS[case]
    with pytest.raises(BookError, match=words) as told:
        experts.load_parts(data, "", subset, SIDE)
    assert "\n" not in str(told.value)


def test_classes_must_be_there_and_the_same_in_all_splits(experts, root):
    layouts.animal_faces(root, root.parent / "imagenet")
    with pytest.raises(BookError, match="subset 'disjoint': splits of different classes; wanted the same"):
        experts.load_parts("animal_faces", str(root), "disjoint", SIDE)
    flat = folder(
        root.parent / "flat", [f"{split}/{k}.png" for split in ("train", "val", "test") for k in "12"]
    )
    with pytest.raises(BookError, match="lie in no folder of a class; wanted each in a subfolder"):
        experts.load_parts("image_folder", flat, "", SIDE)


# networks


class Shallow(ResNet):
    """A stand-in for ResNet-101, one block a group, to be quick."""

    name, blocks, layer_size = "shallow", (1, 1, 1, 1), 64


@pytest.fixture(scope="module")
def shallow(page):
    torch.manual_seed(0)
    net = type("Enlarging", (page.Enlarging, Shallow), {"side": 64})(10)
    for module in net.modules():
        if isinstance(module, BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.2)
    return net.eval()


@pytest.fixture(scope="module")
def alex(page):
    torch.manual_seed(0)
    return page.build_network("alexnet", 227, 7).eval()


def test_layers_have_the_names_of_each_network(page):
    assert page.LAYERS["resnet101"][4:] == ("layer3", "layer4", "avgpool", "fc", "softmax")
    assert page.LAYERS["alexnet"] == ("conv5", "fc6", "fc7", "fc8", "softmax")


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet101", "alexnet"])
def test_representations_are_those_of_the_papers_splits(page, shallow, alex, name):
    """The network cut by its own ``encode``, which enlarges by itself; and Psi makes the answer of each."""
    net = shallow if name == "resnet101" else alex
    cuts, x = page.CUTS[name](net.layers[-2].out_features), images()
    found = page.at_cuts(net, x, cuts)
    assert list(found) == [*[*cuts][:-1], "logits"]
    for layer, cut in cuts.items():
        if layer != "softmax":
            wanted = net.encode(x, cut.split)
            torch.testing.assert_close(found[layer], wanted if cut.depth == 0 else wanted[:, :, 0, 0])
            assert found[layer].shape[1] == cut.shape[0]
            answer = net.decode(wanted, cut.split)
            torch.testing.assert_close(found["logits"].softmax(1), answer)
    torch.testing.assert_close(net.logits(x), found["logits"])  # which an attack goes through
    read = page.reader(name, net.layers[-2].out_features)
    assert torch.equal(read(net, x)["logits"], found["logits"])


def test_a_file_of_weights_is_what_the_network_was_taught(page, shallow, tmp_path):
    state = {f"model.{name}": value for name, value in shallow.state_dict().items()}
    torch.save({"model": state}, tmp_path / "w.pth")
    net = page.taught(type(shallow)(10), str(tmp_path / "w.pth"))
    with torch.no_grad():
        assert torch.equal(net.logits(images()), shallow.logits(images()))
    assert not net.training and not any(p.requires_grad for p in net.parameters())


CASES = [
    (("vgg", "", 1000, []), "backbone 'vgg'; wanted one of efficientnet-lite0, resnet101, alexnet"),
    (("resnet101", "", 149, ["pooled"]), "layers pooled of resnet101; wanted some of input, maxpool, layer1"),
    (("alexnet", "", 1000, ["fc7", "layer4"]), "layers layer4 of alexnet; wanted some of conv5, fc6"),
    (("efficientnet-lite0", "", 1000, ["fc"]), "layers fc of efficientnet-lite0; wanted some of block 4"),
    (("resnet101", "", 149, ["fc"]), "no file of weights for resnet101 .*pass backbone_file"),
    (("alexnet", "none.pth", 1000, []), "no file of weights for alexnet .'none.pth'."),
    (("efficientnet-lite0", "w.pth", 1000, []), "backbone_file 'w.pth' and n_classes 1000 for eff.* neither"),
    (("efficientnet-lite0", "", 149, []), "n_classes 149 for efficientnet-lite0"),
]


@pytest.mark.parametrize(("given", "words"), CASES)
def test_a_network_that_is_not_there_or_lacks_a_layer_is_told(page, given, words):
    with pytest.raises(BookError, match=words) as told:
        page.check_network(*given, needs_file=True)
    assert "\n" not in str(told.value)


def test_networks_that_are_there_pass(page, tmp_path):
    (tmp_path / "w.pth").touch()
    page.check_network("resnet101", str(tmp_path / "w.pth"), 149, ["layer3", "softmax"], needs_file=True)
    page.check_network("alexnet", "", 1000, ["fc6"], needs_file=False)
    page.check_network("efficientnet-lite0", "", 1000, ["block 4"], needs_file=True)


# their flows


@pytest.mark.parametrize("cuts", [resnet101_layers(), alexnet_layers()])
def test_h_is_the_papers_at_its_sizes(page, cuts):
    with torch.device("meta"):
        for cut in cuts.values():
            shape = cut.shape[:1] if cut.depth else cut.shape
            flow = page.with_paper_h(cut)(128, shape, 1, 16, 1)
            own, wanted = (
                {k: v.shape for k, v in n.state_dict().items()} for n in (flow.embedder, cut.embedder())
            )
            assert own == wanted


def test_h_halves_smaller_maps_as_often_as_it_can(page):
    cut = resnet101_layers()["layer1"]
    for side in (1, 2, 3, 8, 16, 56):
        flow = page.with_paper_h(cut)(8, (256, side, side), 1, 16, 1)
        assert flow.embedder(torch.randn(2, 256, side, side)).shape == (2, 8)


def test_a_study_reads_other_networks_and_as_few_rows_as_it_is_told(tmp_path):
    story = tiny_study.page()
    study = tiny_study.open_study(story, tiny_study.experts(), tmp_path)
    assert study.fitted.tolist() == list(range(40))
    few = replace(study, at_most=4, read=lambda net, x: {"logits": x.mean((2, 3))})
    assert few.fitted.tolist() == [0, 13, 26, 39]
    x = tiny_study.images(3)
    torch.testing.assert_close(few.encode("softmax", x), x.mean((2, 3)))


# the pages themselves, on networks that learned nothing


PAGES = ("experts_photos", "invariances_photos", "invariances_photos_measured")


def test_the_three_pages_take_the_same_parameters_so_that_runs_are_found():
    defaults = [
        notebook_parameters(jupytext.read(ROOT / "notebooks" / f"{name}.py", fmt="py:percent"))[0]
        for name in PAGES
    ]
    assert defaults[0] == defaults[1] == defaults[2]
    files = [ROOT / "notebooks" / "params" / f"{name}.report.yaml" for name in PAGES]
    reports = [yaml.safe_load(file.read_text("utf-8")) for file in files]
    assert reports[1] == reports[2] and reports[0].pop("record") and reports[0].items() <= reports[1].items()
    for file in (ROOT / "notebooks" / "params").glob("invariances_photos.*.yaml"):
        check_parameters(yaml.safe_load(file.read_text("utf-8")), defaults[0], file.stem)


def test_a_setting_is_what_the_parameters_ask_for(experts):
    values = notebook_parameters(jupytext.read(ROOT / "notebooks" / "experts_photos.py", fmt="py:percent"))[0]
    setting = experts.setting_of(values, smoke=False)
    assert all(getattr(setting, name) == value for name, value in values.items() if hasattr(setting, name))
    assert {name for name in values if not hasattr(setting, name)} == {"device", "precision"}
    assert setting.photo_steps == round(0.4 * setting.steps) and not setting.is_trained
    assert experts.setting_of(values | {"autoencoder_steps": 7}, False).photo_steps == 7
    small = experts.setting_of(values, smoke=True)
    assert small.steps <= 3 and small.width < setting.width and small.seed == setting.seed
    with pytest.raises(BookError, match="record with data 'imagenet'; wanted photos"):
        experts.setting_of(values | {"record": True, "data": "imagenet"}, smoke=False)


def words_of(path):
    """All text that the cells of an executed page show."""
    cells = nbformat.read(path, as_version=4).cells
    outputs = [one for cell in cells if cell.cell_type == "code" for one in cell.outputs]
    said = [one.get("data", {}).get("text/plain", one.get("text", "")) for one in outputs]
    said += [one.get("data", {}).get("text/markdown", "") for one in outputs]
    return "\n".join(said)


RUNS = {
    "imagenet": {"backbone": "alexnet", "layers": ["fc8", "softmax"], "n_views": 0, "n_classes": 1000},
    "animal_faces": {"backbone": "resnet101", "layers": ["layer4", "fc"], "n_views": 1, "n_classes": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize("data", RUNS)
def test_the_page_runs_and_speaks_of_classes(root, monkeypatch, data):
    monkeypatch.setenv("CVLIB_SMOKE", "1")
    monkeypatch.setenv("CVLIB_STATIC", "1")
    if data == "imagenet":
        rows = layouts.imagenet(root)
        halves = [[row for row in rows if row.half == half] for half in ("train", "validation")]
    else:
        found = layouts.animal_faces(root, root.parent / "imagenet")
        halves = [found["shared", half] for half in ("train", "test")]
    learned, asked = (len({row.synset for row in half}) for half in halves)
    values = {**RUNS[data], "data": data, "data_root": str(root), "control": []}
    values["run_dir"] = str(root.parent / "runs")
    words = ""
    for page in ("experts_photos", "invariances_photos", "invariances_photos_measured"):
        target = root.parent / f"{page}.ipynb"
        run_page(str(ROOT / "notebooks" / f"{page}.ipynb"), str(target), values)
        words += words_of(target)
    assert f"{learned} classes; " in words and f"Over {asked} classes the difference" in words
    assert "What cannot be said from" not in words and "Made from" not in words
    assert words.count("done: 3 steps") == 2, "a page trained again what another had trained"
    assert re.search(
        rf"{RUNS[data]['backbone']}, which tells apart {RUNS[data]['n_classes']:,} classes", words
    )
