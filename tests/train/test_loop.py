"""The loop: interrupted and not interrupted are the same, and nothing it does besides changes the numbers."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from cvlib.errors import BookError
from cvlib.train import ended_after, fit, load_weights
from cvlib.train.folder import locked


class Stop(Exception):
    """A crash in the middle of a step."""


def crash_at(step):
    def before(t):
        if t == step:
            raise Stop

    return before


def broken_run(experiment, folder, at, **options):
    """A run that crashes in step ``at``."""
    run = experiment()
    run.before_step = crash_at(at)
    with pytest.raises(Stop):
        run.run(folder, **options)
    return run


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("at", [5, 8, 11])
def test_resumed_equals_uninterrupted_bit_for_bit(experiment, tmp_path, precision, at):
    whole = experiment(precision)
    wanted = whole.run(tmp_path / "whole")
    first = experiment(precision)
    first.before_step = crash_at(at)
    with pytest.raises(Stop):
        first.run(tmp_path / "broken")
    again = experiment(precision)
    torch.rand(7)  # what the page drew before must not matter
    result = again.run(tmp_path / "broken")
    assert result.resumed_from == at // 4 * 4 and again.seen == list(range(at // 4 * 4, 12))
    again.assert_same(whole)
    assert again.rows(result) == whole.rows(wanted)
    assert result.result["first_losses"] == wanted.result["first_losses"]
    logged = [json.loads(line) for line in (tmp_path / "broken/log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged] == [3, 6, 9, 12]  # no line twice


def test_a_forgotten_random_state_would_be_noticed(experiment, tmp_path, monkeypatch):
    """The test above is only worth something if dropout and noise do change the weights."""
    whole = experiment()
    whole.run(tmp_path / "whole")
    broken_run(experiment, tmp_path / "broken", 9)
    monkeypatch.setattr("cvlib.train.state.restore_rng", lambda state: None)
    again = experiment()
    again.run(tmp_path / "broken")
    with pytest.raises(AssertionError, match="model"):
        again.assert_same(whole)


def test_a_run_that_is_ended_early_begins_as_the_whole_one(experiment, tmp_path):
    wanted = experiment().run(tmp_path / "whole").result["first_losses"]
    short = experiment()
    with ended_after(5):
        result = short.run(tmp_path / "short")
    assert short.seen == list(range(5)) and result.history[-1]["step"] == 5
    assert result.result["first_losses"] == {name: losses[:5] for name, losses in wanted.items()}
    assert len(wanted["rec"]) == 12  # outside, runs are whole
    with ended_after(None):
        assert experiment().run(tmp_path / "other").result["first_losses"] == wanted


def test_crash_before_the_first_checkpoint_starts_again(experiment, tmp_path):
    whole = experiment()
    wanted = whole.run(tmp_path / "whole")
    broken_run(experiment, tmp_path / "broken", 3)  # after the first log line
    again = experiment()
    result = again.run(tmp_path / "broken")
    assert result.resumed_from is None
    again.assert_same(whole)
    assert again.rows(result) == whole.rows(wanted)


def test_history_is_the_mean_of_the_interval(experiment, tmp_path):
    result = experiment().run(tmp_path / "run", steps=6, log_every=3)
    first = result.result["first_losses"]["rec"]
    steps, values = result.curve("rec")
    assert steps == [3, 6]
    assert values == pytest.approx([sum(first[:3]) / 3, sum(first[3:]) / 3], rel=1e-12)


def test_finished_run_is_not_repeated(experiment, tmp_path, capsys):
    first = experiment()
    done = first.run(tmp_path / "run")
    again = experiment()
    result = again.run(tmp_path / "run", quiet=False)
    assert again.seen == []
    assert "finished before" in capsys.readouterr().out
    assert (result.history, result.result) == (done.history, done.result)
    again.assert_same(first)
    assert not any(part.training for m in again.modules.values() for part in m.modules())


def test_random_numbers_outside_do_not_depend_on_training(experiment, tmp_path):
    """A page that goes on to draw samples gets the same ones whether it trained now or before."""
    drawn = []
    for _ in range(2):
        experiment().run(tmp_path / "run")
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


def test_changed_configuration_is_refused_with_the_difference(experiment, tmp_path):
    experiment().run(tmp_path / "run")
    with pytest.raises(BookError, match=r"dropout: run has 0.2, you asked 0.5; choose another run_dir") as e:
        experiment(dropout=0.5).run(tmp_path / "run")
    assert "config.json" in str(e.value) and "\n" not in str(e.value)
    with pytest.raises(BookError, match="steps of this stage: run has 12, you asked 13"):
        experiment().run(tmp_path / "run", steps=13)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_stops_and_keeps_the_last_good_checkpoint(experiment, tmp_path, value):
    run = experiment()

    def poison(t):
        if t == 6:
            run.model[0].bias.data[0] = value

    run.before_step = poison
    with pytest.raises(BookError, match=r"loss part 'loss' is (nan|inf|-inf) at step 7") as e:
        run.run(tmp_path / "run")
    assert str(tmp_path / "run/checkpoint-00000004") in str(e.value)
    kept = experiment()
    assert load_weights(tmp_path / "run", kept.modules) == 4
    assert all(torch.isfinite(p).all() for p in kept.model.parameters())


def test_nan_weight_behind_a_finite_loss_is_never_saved(experiment, tmp_path):
    run = experiment()

    def step(batch, t):
        parts = run.__class__.step(run, batch, t)
        if t == 7:
            run.critic[0].weight.data[0, 0, 0, 0] = torch.nan  # the loss shows it one step later
        return parts

    run.step = step
    with pytest.raises(BookError, match=r"weight critic.0.weight is not finite after step 8"):
        run.run(tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-00000004"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_first(experiment, tmp_path, number, capsys):
    """Ctrl-C in the middle of step 6 (t = 5): the step is finished, all is saved, the rest follows later."""
    whole = experiment()
    whole.run(tmp_path / "whole")
    obeyed = []
    outer = signal.signal(signal.SIGTERM, lambda *_: obeyed.append("SIGTERM"))
    try:
        first = experiment()
        first.before_step = lambda t: os.kill(os.getpid(), number) if t == 5 else None
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            first.run(tmp_path / "run")
        assert obeyed == (["SIGTERM"] if number == signal.SIGTERM else [])
    finally:
        signal.signal(signal.SIGTERM, outer)
    line = capsys.readouterr().out
    assert "stopped at step 6 of 12" in line and "the same call goes on" in line
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = experiment()
    assert again.run(tmp_path / "run").resumed_from == 6
    again.assert_same(whole)


def test_a_signal_in_the_last_step_ends_the_page_too(experiment, tmp_path, capsys):
    """All is trained and saved, and still nothing that follows on the page may run."""
    whole = experiment()
    whole.run(tmp_path / "whole")
    first = experiment()
    first.before_step = lambda t: os.kill(os.getpid(), signal.SIGINT) if t == 11 else None
    with pytest.raises(KeyboardInterrupt, match="stopped after step 12, the last"):
        first.run(tmp_path / "run")
    again = experiment()
    assert again.run(tmp_path / "run", quiet=False).result["steps"] == 12
    assert "finished before" in capsys.readouterr().out and again.seen == []
    again.assert_same(whole)


def test_outside_the_main_thread_it_still_trains(experiment, tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(experiment().run(tmp_path / "run")))
    thread.start()
    thread.join()
    assert results[0].history[-1]["step"] == 12


def test_evaluation_changes_nothing(experiment, tmp_path):
    plain = experiment()
    plain.run(tmp_path / "plain")
    seen = []
    run = experiment()

    def evaluate(step):
        seen.append((step, torch.rand(()).item(), run.model.training, torch.is_grad_enabled()))
        mean = next(iter(run.ema.mean.values()))  # applied: the module holds the mean, and vice versa
        assert not torch.equal(mean, run.model[0].weight)
        return {"l1": run.model(torch.zeros(2, 3, 8, 8)).abs().mean()}

    result = run.run(tmp_path / "evaluated", evaluate=evaluate, eval_every=5)
    run.assert_same(plain)
    assert [s[0] for s in seen] == [5, 10, 12]
    assert len({s[1] for s in seen}) == 1  # the same noise at each evaluation: comparable values
    assert not any(s[2] or s[3] for s in seen)
    assert result.curve("eval/l1")[0] == [5, 10, 12]


def test_evaluation_sees_the_mean_weights_and_a_pinned_part_keeps_its_mode(experiment, tmp_path):
    run = experiment()
    modes, found = [], {}
    run.before_step = lambda t: modes.append(run.model[1].training) if t else run.model[1].eval()

    def evaluate(step):
        found[step] = run.model.state_dict()["0.weight"].clone()
        return {}

    run.run(tmp_path / "run", steps=6, evaluate=evaluate, eval_every=2)
    assert torch.equal(found[6], run.ema.mean["0.weight"])
    assert modes == [False] * 5  # frozen at t = 0 by the page, never thawed by an evaluation


def test_best_keeps_the_lowest(experiment, tmp_path):
    values = {4: 0.5, 8: 0.2, 12: 0.9}
    run = experiment()
    kept = {}

    def evaluate(step):
        kept[step] = run.model[0].weight.clone()
        return {"score": values[step]}

    result = run.run(tmp_path / "run", evaluate=evaluate, eval_every=4, best="score")
    assert result.result["best"] == {"metric": "score", "step": 8, "value": 0.2}
    other = experiment()
    assert load_weights(tmp_path / "run", {"model": other.model}, which="best") == 8
    assert torch.equal(other.model[0].weight, kept[8])
    assert load_weights(tmp_path / "run", {"model": other.model}) == 12
    with pytest.raises(BookError, match=r"best is 'l1'; wanted one of \['score'\]"):
        run.run(tmp_path / "other", evaluate=evaluate, eval_every=4, best="l1")


def test_best_is_never_what_is_not_finite(experiment, tmp_path):
    values = iter([float("nan"), 0.5, 0.2, float("-inf")])
    result = experiment().run(
        tmp_path / "run", evaluate=lambda _: {"score": next(values)}, eval_every=3, best="score"
    )
    assert result.result["best"] == {"metric": "score", "step": 9, "value": 0.2}


def test_a_long_interval_shows_signs_of_life_that_are_no_rows(experiment, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("cvlib.train.journal._SILENCE", -1.0)  # every step is late
    result = experiment().run(tmp_path / "run", log_every=6, quiet=False)
    lines = [line for line in capsys.readouterr().out.splitlines() if "/12 " in line]
    assert [int(line.split("/12")[0].split()[-1]) for line in lines] == [
        1,
        2,
        3,
        4,
        5,
        6,
        6,
        *range(7, 13),
        12,
    ]
    monkeypatch.undo()
    plain = experiment().run(tmp_path / "plain", log_every=6)
    for one, other in zip(result.history, plain.history, strict=True):
        assert all(one[key] == other[key] for key in one if key not in ("rate", "seconds"))


def test_progress_lines(experiment, tmp_path, capsys):
    experiment().run(tmp_path / "short", steps=40, log_every=None, save_every=None, quiet=False)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12  # one at the start, ten, one at the end
    for part in ("short", "4/40", "loss ", "rec ", "images/s", " left"):
        assert part in lines[1]
    experiment().run(tmp_path / "quiet", steps=40)
    assert capsys.readouterr().out == ""


def test_checkpoints_by_the_clock(experiment, tmp_path):
    broken_run(experiment, tmp_path / "run", 7, save_every=100, save_minutes=0.0)
    names = sorted(p.name for p in (tmp_path / "run").glob("checkpoint-*"))
    assert names == ["checkpoint-00000006", "checkpoint-00000007"]  # the last two only


def test_leftovers_of_a_crash_are_removed(experiment, tmp_path):
    (tmp_path / "run/.checkpoint-00000004-x1").mkdir(parents=True)
    (tmp_path / "run/.checkpoint-00000004-x1/weights.safetensors").write_bytes(b"half")
    (tmp_path / "run/.result-x2.json").write_text("{")
    experiment().run(tmp_path / "run")
    hidden = [p.name for p in (tmp_path / "run").iterdir() if p.name.startswith(".")]
    assert hidden == [".lock"]


def test_two_runs_in_one_folder_are_refused(experiment, tmp_path):
    with locked(tmp_path / "run"), pytest.raises(BookError, match="another process trains in"):
        experiment().run(tmp_path / "run")


def small_run(folder, batches):
    net = nn.Linear(1, 1)
    sgd = torch.optim.SGD(net.parameters(), 0.1)

    def step(batch, t):
        sgd.zero_grad()
        loss = net(batch).square().mean()
        loss.backward()
        sgd.step()
        return {"loss": loss, "mean": batch.mean()}

    options = {"modules": {"net": net}, "optimizers": {"sgd": sgd}, "quiet": True}
    return fit(folder, config={}, batches=batches, step=step, steps=4, **options)


def test_batches_may_be_a_function_of_t(tmp_path):
    result = small_run(tmp_path / "run", lambda t: torch.full((2, 1), float(t)))
    assert result.result["first_losses"]["mean"] == [0.0, 1.0, 2.0, 3.0]


def test_batches_that_end_or_cannot_be_resumed_are_refused(experiment, tmp_path):
    run = experiment()
    numbers = type(run.batches)

    class Short(numbers):
        def __next__(self):
            if self.position == 5:
                raise StopIteration
            return super().__next__()

    run.batches = Short()
    with pytest.raises(BookError, match="the data ended before step 6"):
        run.run(tmp_path / "short")
    with pytest.raises(TypeError, match="without state_dict"):
        small_run(tmp_path / "list", iter([torch.ones(1, 1)] * 9))


def test_result_says_what_it_rests_on(experiment, tmp_path, monkeypatch):
    monkeypatch.setenv("CVLIB_COMMAND", "cvlib run taming")
    broken_run(experiment, tmp_path / "run", 9)
    state = json.loads((tmp_path / "run/checkpoint-00000008/state.json").read_text())
    before = dict(map(tuple, state["journal"]["dict"]))["seconds"]
    result = experiment().run(tmp_path / "run").result
    assert result == json.loads((tmp_path / "run/result.json").read_text())
    assert result["seconds"] > before > 0  # accumulates over sessions
    assert result["command"] == "cvlib run taming" and result["peak_mb"] > 50
    assert result["device"].startswith("cpu") and result["precision"] == "fp32"
    assert len(result["first_losses"]["loss"]) == 12


def test_no_pickle_anywhere(experiment, tmp_path):
    experiment().run(tmp_path / "run")
    files = [p for p in Path(tmp_path / "run").rglob("*") if p.is_file() and p.name != ".lock"]
    assert {p.suffix for p in files} == {".json", ".jsonl", ".safetensors"}
