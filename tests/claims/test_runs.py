from __future__ import annotations

import json
import os

import pytest
from click.testing import CliRunner

from cvlib.claims import aggregate, confirm, missing, record, runs, stale
from cvlib.claims.store import results_root, write_json
from cvlib.cli import commands
from cvlib.errors import BookError

VALUES = {"error": 0.5, "psnr": 21.0}


@pytest.fixture(autouse=True)
def written(write, rules):
    return write(rules)


def test_a_run_keeps_everything(arguments):
    path = record("demo", "full", 3, {**VALUES, "more": 1}, **arguments(extra={"note": "x"}))
    assert path == results_root() / "runs" / "demo" / "full-s3.json"
    run = json.loads(path.read_text())
    assert run["values"] == {"error": 0.5, "psnr": 21.0, "more": 1.0}
    assert len(run["losses"]) == 20 and run["losses"][1] == 0.5
    assert run["energy_wh"] == pytest.approx(65 * 90 / 3600) and run["watts"] == 65
    assert run["command"] == "make report CHAPTER=demo" and run["scale"] == "report"
    assert len(run["commit"].rstrip("+")) == 40 or run["commit"] == "unknown"
    assert runs("demo") == [run]
    assert record("demo", "full", 2, VALUES, **arguments(device="cuda: H200", seconds=3600)).exists()
    assert runs("demo")[0]["energy_wh"] == 700


def test_what_another_process_is_writing_is_no_run_yet(arguments):
    path = record("demo", "full", 3, VALUES, **arguments())
    path.with_name(".full-s4.json.1234.json").write_text('{"half')
    assert [run["seed"] for run in runs("demo")] == [3]


def test_missing_runs_go_round_the_arms(arguments):
    assert missing("demo")[:4] == [("full", 0), ("plain", 0), ("full", 1), ("plain", 1)]
    record("demo", "full", 0, VALUES, **arguments())
    assert missing("demo")[0] == ("plain", 0) and len(missing("demo")) == 9


@pytest.mark.parametrize(
    ("arm", "seed", "values", "changes", "message"),
    [
        ("fool", 0, VALUES, {}, "a run of 'fool' with seed 0"),
        ("full", 7, VALUES, {}, "with seed 7"),
        ("full", 0, {"error": 1.0}, {}, "values has no 'psnr'"),
        ("full", 0, {"error": float("nan"), "psnr": 1.0}, {}, "values: error is 'nan'"),
        ("full", 0, VALUES, {"losses": []}, "one loss at least"),
        ("full", 0, VALUES, {"losses": [float("inf")]}, "finite numbers"),
        ("full", 0, VALUES, {"curve": [[0, float("nan")]]}, "finite numbers"),
        ("full", 0, VALUES, {"seconds": float("inf")}, "seconds is 'inf'"),
    ],
)
def test_a_wrong_run_is_refused_and_leaves_nothing(arm, seed, values, changes, message, arguments):
    with pytest.raises(BookError, match=message):
        record("demo", arm, seed, values, **arguments(**changes))
    assert not list(results_root().glob("runs/**/*.json"))


def test_a_run_is_not_replaced_in_silence(arguments):
    path = record("demo", "full", 0, VALUES, **arguments())
    before = path.read_bytes()
    with pytest.raises(BookError, match="there already"):
        record("demo", "full", 0, {**VALUES, "error": 0.1}, **arguments())
    assert path.read_bytes() == before
    record("demo", "full", 0, {**VALUES, "error": 0.1}, **arguments(), replace=True)
    assert runs("demo")[0]["values"]["error"] == 0.1


def test_an_interrupted_write_leaves_the_old_file(arguments, monkeypatch):
    path = record("demo", "full", 0, VALUES, **arguments())
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        record("demo", "full", 0, {**VALUES, "error": 0.1}, **arguments(), replace=True)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["full-s0.json"]


def test_files_edited_by_hand_are_caught(arguments):
    path = record("demo", "full", 0, VALUES, **arguments())
    run = json.loads(path.read_text())
    path.write_text(json.dumps({**run, "seed": 1}))
    with pytest.raises(BookError, match=r"runs/demo/full-s0.json: holds demo full seed 1"):
        runs("demo")
    path.write_text(json.dumps({key: value for key, value in run.items() if key != "data_hash"}))
    with pytest.raises(BookError, match=r"full-s0.json: key 'data_hash' is missing"):
        runs("demo")
    path.write_text(json.dumps(run)[:-5])
    with pytest.raises(BookError, match=r"full-s0.json.*wanted JSON"):
        runs("demo")


def test_a_change_of_code_makes_runs_stale_until_replayed(arguments, repo):
    record("demo", "full", 0, VALUES, **arguments())
    file = repo / "cvlib" / "a.py"
    file.write_text('"""Now with words."""\n' + file.read_text() + "# and a comment\n")
    assert stale("demo") == []
    file.write_text(file.read_text().replace("x + 1", "x + 2"))
    assert stale("demo") == [("full", 0)]
    losses = arguments()["losses"][:20]
    assert not confirm("demo", "full", 0, [loss + 2e-4 for loss in losses])
    assert not confirm("demo", "full", 0, losses[:19])
    assert stale("demo") == [("full", 0)]
    assert confirm("demo", "full", 0, [loss + 5e-5 for loss in losses])
    assert stale("demo") == [] and runs("demo")[0]["losses"] == losses


def test_what_is_edited_while_a_page_trains_is_not_what_it_runs(arguments, repo, monkeypatch):
    monkeypatch.setattr("cvlib.train.provenance.git_commit", lambda: "a" * 40)
    assert missing("demo")
    (repo / "cvlib" / "a.py").write_text("y = 3\n")
    monkeypatch.setattr("cvlib.train.provenance.git_commit", lambda: "b" * 40)
    record("demo", "full", 0, VALUES, **arguments())
    assert runs("demo")[0]["commit"] == "a" * 40 and stale("demo") == [("full", 0)]


def test_json_is_compact_and_exact(tmp_path):
    data = {
        "a": [1, 2.5, -3e-9],
        "b": "[ 1,\n 2 ]",
        "c": [[0, 1.0], [1, 0.5]],
        "d": [],
        "e": {"f": ["x  y", None]},
    }
    path = write_json(tmp_path / "x.json", data)
    assert json.loads(path.read_text()) == data
    del data["b"]
    del data["e"]
    assert write_json(path, data).read_text().count("\n") < 12
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, {"a": float("nan")})


def test_verify_replays_what_a_chapter_asked_again(arguments, repo, rules, write, monkeypatch):
    """The page is run once for both ledgers; here it is a stand-in that replays with the losses given."""
    write(rules)
    write({**rules, "chapter": "demo_b", "follows": "demo"}, "demo_b")
    record("demo_b", "full", 0, VALUES, **arguments())
    aggregate("demo_b")
    pages, losses = [], arguments()["losses"][:20]

    def replay(page, out, parameters):
        pages.append((page, parameters))
        confirm("demo_b", "full", 0, losses)

    monkeypatch.setattr("cvlib.pages.running.run_page", replay)
    verify = [commands, ["verify", "demo"]]
    assert CliRunner().invoke(*verify).exit_code == 0 and not pages  # nothing has changed
    (repo / "cvlib" / "a.py").write_text("y = 3\n")
    done = CliRunner().invoke(*verify)
    assert done.exit_code == 0 and pages == [("demo_claims", {"replay": True})]
    assert "demo_b: 1 runs rest on the code as it is, 0 do not" in done.output
    (repo / "cvlib" / "a.py").write_text("y = 4\n")
    losses[0] += 1
    done = CliRunner().invoke(*verify)
    assert done.exit_code == 1 and "stale: full, seed 0" in done.output
