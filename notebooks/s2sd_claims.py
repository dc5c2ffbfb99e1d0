# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # S2SD: the evidence
#
# {doc}`s2sd` tells the story; this page has the evidence. The rules were written down and committed before the first recorded
# run. Each run left one file in `book/results/runs/s2sd` (at 128 pixels: `s2sd_128px`), with its seed, device, time and commit, and all results below come from these files.
# {doc}`../notation` says how a verdict is reached.
#
# **Claim C1**, the one that must show (★): *at a fixed small dimension, S2SD retrieves unseen classes better than the same objective
# alone*, for multisimilarity and for the margin loss. The other claims take the method apart: which part brings a gain, for which
# dimension, through which layers. Two things could make a gain hollow, and there is an arm for each. Heads with objectives of their own
# may help without teaching (`ms-32-heads`). And a step with heads takes longer, so one arm trains the plain objective for
# **more steps** (`ms-32-longer`): 1.35 times as many, which took equally long in trials. In the ledger below this arm still takes less time a
# seed than `ms-32-msdf`, so it does not settle what the plain objective makes of the same time. All of these are trained on pictures of 64 pixels; near the end one question is
# asked once more at 128.
#
# | scale | command | what it needs |
# |---|---|---|
# | quick | `papermill notebooks/s2sd_claims.ipynb out.ipynb` | seconds: reads the committed results |
# | report | `make report CHAPTER=s2sd` | the ledger below says how long |
#
# Reading time: 10 minutes. Code of more than a dozen lines is folded in the book; [the verdict](#the-verdict) comes after it.

# %% tags=["hide-input"]
from functools import cache
from tempfile import TemporaryDirectory
from types import ModuleType

import numpy as np

from cvlib import claims
from cvlib.data import Dataset
from cvlib.data.views import Views
from cvlib.metrics import cluster_scores, retrieval_scores
from cvlib.pages import begin
from cvlib.show import figure, look, say, show, table
from cvlib.train import Runtime, seed_everything

# %% tags=["parameters"]
steps = 800  # of each run. Paper: 7,800 on CUB-200-2011
seed = 0  # the arms use the rule file's seeds
batch_size = 112  # paper: 112
image_size = 64  # paper: 224
data = "emoji"
data_root = ""
device = "auto"
precision = "auto"
run_dir = "runs/s2sd_claims"
pretrained = True  # False: random weights, which is another question
record = False  # True runs what is missing and writes book/results
only = []  # with record: these arms alone
tune = False  # True repeats the trials that the rules list
replay = False  # True replays the first 20 steps of runs whose code has changed since

# %%
page = begin("s2sd_claims", globals(), data="emoji", data_root="")
story = page.definitions("s2sd")
if page.smoke:
    batch_size = 16
runtime = Runtime(device=device, precision=precision)
if precision == "auto" and runtime.device.type == "cpu":
    runtime = Runtime(device=device, precision="fp32")  # depthwise convolutions take twice as long in bf16
seed_everything(seed)
print(runtime.describe())

# %% [markdown]
# ## The ledger
#
# An arm's name says objective, dimension and what stands beside the embedding: `heads` do not teach, `dsd` is one head that teaches, `msd` are four, `msdf` four and the pooled
# features, `msdfa` the same from maximum and average pooling; the ledger says the rest. All arms share data, batches, backbone and
# steps; only `ms-32-longer` has more of them. Plain arms learn at a rate of 3e-4, the best of three; arms with heads at 5e-4, the rate at
# which γ, the weight of the teaching, was chosen. In the two `frozen` arms the backbone does not learn, only what stands behind it: the map to the embedding and, in one of them, the heads. They show
# whether the gain needs the backbone.

# %%
claims.ledger("s2sd")

# %% [markdown]
# ## The arms
#
# An arm is a change of the story's method, and nothing else.

# %% tags=["hide-input"]
WIDTHS = (256, 512, 768, 1024)
TAUGHT = {"widths": WIDTHS, "gamma": 10.0, "gamma_features": 10.0}
PLAIN = {"learning_rate": 3e-4}
MARGIN_TAUGHT = {"objective": "margin", "gamma": 1.0, "gamma_features": 1.0}
ARMS = {
    "ms-32": PLAIN,
    "ms-32-longer": PLAIN,
    "ms-32-heads": {"widths": WIDTHS},
    "ms-32-dsd": {"widths": (1024,), "gamma": 10.0},
    "ms-32-msd": {"widths": WIDTHS, "gamma": 10.0},
    "ms-32-msdf": TAUGHT,
    "ms-32-msdfa": {**TAUGHT, "pool_aggr": True},
    "ms-32-pulled": {**TAUGHT, "detach": False},
    "ms-32-msdf-narrow": {**TAUGHT, "widths": (32, 64, 96, 128)},
    "ms-32-msdf-wide": {**TAUGHT, "widths": (512, 1024, 1536, 2048)},
    "ms-16": {**PLAIN, "dim": 16},
    "ms-16-msdf": {**TAUGHT, "dim": 16},
    "ms-64": {**PLAIN, "dim": 64},
    "ms-64-msdf": {**TAUGHT, "dim": 64},
    "ms-128": {**PLAIN, "dim": 128},
    "ms-128-msdf": {**TAUGHT, "dim": 128},
    "ms-1024": {**PLAIN, "dim": 1024},
    "margin-32": {**PLAIN, "objective": "margin"},
    "margin-32-msdf": {**TAUGHT, **MARGIN_TAUGHT},
    "frozen-32": {},
    "frozen-32-msdf": TAUGHT,
}
STRETCH = {"ms-32-longer": 1.35}  # steps of this arm over those of the others: meant as equal time, by trials
N_VIEWS = 4
STAGE = 6  # the first that learns
N_CHECKS = 4  # looks at validation in a run; the best is kept


def sources_of(
    story: ModuleType, name: str, splits: dict[str, Dataset], label: str, pretrained: bool, runtime: Runtime
) -> dict[str, Views]:
    """Return the inputs of an arm for each split; a frozen arm gets the network's last map."""
    net = story.load_backbone("efficientnet_lite0", "", pretrained)
    stage = len(net.stages) if name.startswith("frozen") else STAGE
    return {
        split: story.views_of(part, label, net, stage, N_VIEWS if split == "train" else 1, runtime.device)
        for split, part in splits.items()
    }


def train_arm(
    story: ModuleType,
    name: str,
    seed: int,
    steps: int,
    batch_size: int,
    sources: dict[str, Views],
    splits: dict[str, Dataset],
    label: str,
    pretrained: bool,
    runtime: Runtime,
    root: str,
    stop: int | None = None,
    **changes,
):
    """Train an arm with one seed; return its network and the result of ``fit``. ``changes`` replace parts of the method."""
    method = story.Method(**{**ARMS[name], **changes})
    network, _, result = story.train_method(
        method,
        story.load_backbone("efficientnet_lite0", "", pretrained),
        sources["train"],
        seed,
        round(STRETCH.get(name, 1) * steps),
        batch_size,
        2,
        runtime,
        root,
        validate=story.validator(sources["validation"], splits["validation"], label, runtime),
        n_checks=N_CHECKS,
        stop=stop,
    )
    return network, result


# %% [markdown]
# ## The judge
#
# **Recall@1** is, in all rules, that of the *hard* protocol: the right answer must come from another hand, with all the wrong
# drawings of the query's own hand in the gallery. The two other protocols, mAP@R and NMI are recorded beside it. The test split
# (4,584 drawings of 653 concepts) is looked at once for each run, with the checkpoint that validation chose.


# %% tags=["hide-input"]
def judge(
    story: ModuleType, network, source: Views, data: Dataset, label: str, runtime: Runtime
) -> dict[str, float]:
    """Return the measures of the rules, and more, of a trained network on ``data``."""
    z, phi = story.embed(network, source, runtime)
    labels = data.labels[label]
    recalls, features = (story.recall_at_1(v, data, label) for v in (z, phi))
    values = {f"Recall@1, {name}": value for name, value in recalls.items()}
    hard = retrieval_scores(z, labels, (1,), map_1000=False, **story.protocols(data)["hard"])
    return {
        "Recall@1": recalls["hard"],
        **values,
        "Recall@1 of features": features["hard"],
        "mAP@R": 100 * hard.map_r,
        "NMI": 100 * cluster_scores(z, labels).nmi,
        **story.structure(z, labels),
    }


# %% [markdown]
# ## Running what is missing
#
# With `record=True` the page trains every run that the rules ask for and no file holds, judges it once on test and writes it down as soon as it
# ends. Interrupted, it goes on where it stopped. When the code that a run rests on has changed,
# `make verify-results CHAPTER=s2sd` replays its first 20 steps: equal losses keep the run.

# %% tags=["hide-input"]
CHAPTER = "s2sd"
AGAIN = "s2sd_128px"  # the rules that ask C1 once more
AGAIN_SIZE = 128
sizes = {CHAPTER: image_size, AGAIN: 32 if page.smoke else AGAIN_SIZE}  # smoke: any second size


@cache
def load_at(size: int) -> tuple[dict[str, Dataset], str]:
    """Return the three splits at ``size`` pixels, and the name of the label that is the class."""
    parts = {
        s: story.load_split(data, s, size, data_root, page.smoke) for s in ("train", "validation", "test")
    }
    return {split: part for split, (part, _) in parts.items()}, parts["train"][1]


def train_at(rules: str, name: str, seed: int, n_steps: int, root: str, **options):
    """Train an arm at the size of its rule file; return its sources, its network and the result of ``fit``."""
    splits, label = load_at(sizes[rules])
    sources = sources_of(story, name, splits, label, pretrained, runtime)
    network, result = train_arm(
        story, name, seed, n_steps, batch_size, sources, splits, label, pretrained, runtime, root, **options
    )
    return sources, network, result


@cache
def frozen_recall(rules: str) -> float:
    """Return Recall@1 (%) of the hard protocol on test before any training, of the pooled features: the floor."""
    splits, label = load_at(sizes[rules])
    net = runtime.prepare(story.load_backbone("efficientnet_lite0", "", pretrained))
    source = sources_of(story, "ms-32", splits, label, pretrained, runtime)["test"]
    return story.recall_at_1(story.pooled(net, source, runtime), splits["test"], label)["hard"]


def run_and_record(rules: str, name: str, seed: int) -> None:
    """Train one arm with one seed, judge it on test and write book/results/runs/<rules>/<arm>-s<seed>.json."""
    sources, network, result = train_at(rules, name, seed, steps, run_dir)
    splits, label = load_at(sizes[rules])
    values = judge(story, network, sources["test"], splits["test"], label, runtime)
    claims.record(
        rules,
        name,
        seed,
        {**values, "Recall@1 of frozen features": frozen_recall(rules)},
        config={
            "steps": steps,
            "batch_size": batch_size,
            "image_size": sizes[rules],
            "arm": ARMS[name],
            "views": N_VIEWS,
            "stage": STAGE,
        },
        data_hash=sources["train"].hash,
        losses=result.result["first_losses"]["loss"],
        curve=[[row["step"], row["eval/recall"]] for row in result.history if "eval/recall" in row],
        seconds=result.seconds,
        peak_mb=result.result["peak_mb"],
        device=runtime.describe(),
        command=f"make report CHAPTER={CHAPTER}",
    )


RATES, GAMMAS, TRIAL_STEPS = (3e-4, 5e-4, 8e-4), (3.0, 10.0, 30.0), 400
if tune:
    rows = []
    for name, key, values in (
        ("ms-32", "learning_rate", RATES),
        ("ms-32-msdf", "gamma", GAMMAS),
        ("margin-32", "learning_rate", RATES),
        ("margin-32-msdf", "gamma", (1.0, 3.0, 10.0)),
    ):
        found = []
        for value in values:
            changes = {key: value} | ({"gamma_features": value} if key == "gamma" else {})
            with TemporaryDirectory() as aside:
                *_, result = train_at(CHAPTER, name, 0, TRIAL_STEPS, aside, **changes)
            found.append(max(result.curve("eval/recall")[1]))
        rows.append([name, key, *(f"{v:g}: {r:.2f}" for v, r in zip(values, found, strict=True))])
    table(rows, header=["arm", "tuned", "first", "second", "third"])
elif page.record:
    for rules in sizes:
        for name, number in claims.missing(rules):
            if not only or name in only:
                print(f"{rules}: {name}, seed {number}")
                run_and_record(rules, name, number)
                claims.aggregate(rules)  # after each run: a ledger that ends early is whole
elif replay:
    for rules in sizes:
        for name, number in claims.stale(rules):
            with TemporaryDirectory() as aside:
                *_, result = train_at(rules, name, number, steps, aside, stop=20)
            same = claims.confirm(rules, name, number, result.result["first_losses"]["loss"])
            print(f"{rules}: {name}, seed {number}: {'as recorded' if same else 'STALE: other losses'}")
elif page.smoke:  # prove that every kind of arm trains and is judged, at both sizes; nothing is recorded
    kinds = ("ms-32", "ms-32-msdfa", "margin-32-msdf", "frozen-32-msdf")
    for rules, name in [*((CHAPTER, kind) for kind in kinds), (AGAIN, "ms-32-msdf")]:
        with TemporaryDirectory() as aside:
            sources, network, result = train_at(rules, name, 0, 2, aside, head_learning_rate=1e-4)
        assert 0 <= result.history[-1]["eval/recall"] <= 100, name
    splits, label = load_at(sizes[AGAIN])
    judged = judge(story, network, sources["test"], splits["test"], label, runtime)
    assert all(0 <= value <= 100 for value in (judged["Recall@1"], frozen_recall(AGAIN)))

# %% [markdown]
# ## The verdict

# %%
claims.claims_table(CHAPTER)

# %%
evidence = claims.Evidence(CHAPTER, "Recall@1")
evidence.plots()


# %% [markdown]
# ## Dimension by dimension
#
# All recorded dimensions beside each other, with and without teachers.


# %% tags=["hide-input"]
dims = [
    d for d in (16, 32, 64, 128) if evidence.over_seeds(f"ms-{d}") and evidence.over_seeds(f"ms-{d}-msdf")
]
if len(dims) > 1:
    fig, ax = figure(width="half")
    for suffix, role, text in (("", "baseline", "alone"), ("-msdf", "ours", "S2SD (MSDF)")):
        means = [np.mean(evidence.over_seeds(f"ms-{d}{suffix}")) for d in dims]
        errors = [np.std(evidence.over_seeds(f"ms-{d}{suffix}"), ddof=1) for d in dims]
        ax.errorbar(dims, means, yerr=errors, capsize=3, **look(role, marker=True), label=text)
    ax.set_xscale("log", base=2)
    ax.set_xticks(dims, [str(d) for d in dims])
    ax.set(xlabel="dimension d", ylabel="Recall@1 (%), hard")
    ax.legend()
    show(
        fig,
        alt="Recall at 1 of the plain objective and of S2SD over the dimension of the embedding.",
        caption="Test Recall@1 by dimension; mean and standard deviation over seeds. Gallery: 4,584 drawings of 653 concepts.",
    )

# %% tags=["hide-input"]
if evidence.runs:
    measures = [
        "Recall@1, all sets",
        "Recall@1, cross-set",
        "Recall@1, hard",
        "mAP@R",
        "NMI",
        "Recall@1 of features",
    ]
    arms = [arm for arm in ARMS if evidence.over_seeds(arm)]
    table(
        [
            [
                f"`{arm}`",
                len(evidence.over_seeds(arm)),
                *(float(np.mean(evidence.over_seeds(arm, m))) for m in measures),
            ]
            for arm in arms
        ],
        header=["arm", "seeds", *measures],
        caption="Means over the recorded seeds, in %. Gallery: 4,584 test drawings of 653 concepts.",
    )

# %% [markdown]
# ## Reading it

# %% tags=["hide-input"]
if evidence.comparisons("C1"):
    ms, margin = evidence.comparisons("C1")
    say(
        f"**C1: {evidence.decided['C1']['verdict']}.** With 32 dimensions multisimilarity finds the right concept in "
        f"{ms['against_mean']:.1f} % of the cases alone and in {ms['arm_mean']:.1f} % with S2SD ({ms['mean']:+.1f} "
        f"[{ms['low']:+.1f}, {ms['high']:+.1f}] points); the margin loss in {margin['against_mean']:.1f} % and "
        f"{margin['arm_mean']:.1f} % ({margin['mean']:+.1f} [{margin['low']:+.1f}, {margin['high']:+.1f}])."
    )
if evidence.comparisons("A1"):
    (longer,) = evidence.comparisons("A1")
    say(
        f"**A1: {evidence.decided['A1']['verdict']}.** Given 1.35 times the steps, the plain objective reaches "
        f"{longer['against_mean']:.1f} %: S2SD differs by {longer['mean']:+.1f} [{longer['low']:+.1f}, {longer['high']:+.1f}] points."
    )
if evidence.comparisons("C4"):
    (heads,) = evidence.comparisons("C4")
    say(
        f"**C4: {evidence.decided['C4']['verdict']}.** Heads that do not teach bring {heads['arm_mean']:+.1f} points; half of what "
        f"the whole method brings is {heads['against_mean']:+.1f}. "
        + (
            "The gain is knowledge that is handed over."
            if heads["holds"]
            else "Much of the gain is multi-task training: the heads improve the features under the embedding."
            if heads["low"] > 0
            else f"The difference, {heads['mean']:+.1f} [{heads['low']:+.1f}, {heads['high']:+.1f}], does not decide it."
        )
    )

# %% tags=["hide-input"]
if evidence.comparisons("C2"):
    dsd, msd, msdf = evidence.comparisons("C2")
    say(
        f"**C2: {evidence.decided['C2']['verdict']}.** Part by part: one teacher moves Recall@1 by {dsd['mean']:+.1f} "
        f"[{dsd['low']:+.1f}, {dsd['high']:+.1f}] points against none, four instead of one by {msd['mean']:+.1f} "
        f"[{msd['low']:+.1f}, {msd['high']:+.1f}], the pooled features as a fifth by {msdf['mean']:+.1f} "
        f"[{msdf['low']:+.1f}, {msdf['high']:+.1f}]."
    )
if evidence.comparisons("A2"):
    (frozen,) = evidence.comparisons("A2")
    say(
        f"**A2: {evidence.decided['A2']['verdict']}.** On frozen features the teachers move the embedding by {frozen['arm_mean']:+.1f} points, "
        f"where half of what they bring with a backbone that learns is {frozen['against_mean']:+.1f}. "
        + (
            "What S2SD brings, it brings through the backbone: a linear map of fixed features gains nothing from imitation."
            if frozen["holds"]
            else "Imitation alone helps a linear map of fixed features."
        )
    )
if evidence.comparisons("C1"):
    say(
        f"A word on C1's rule. Each interval above is of one comparison; a verdict also pays for asking "
        f"{sum(len(claim['comparisons']) for claim in evidence.decided.values())} questions at once (Holm), and with five seeds only large and "
        f"steady differences survive that. An interval above zero without a verdict means: likely, not shown."
    )

# %% tags=["hide-input"]
READINGS = {
    "C3": "By how much the gain at 16 dimensions is larger than at 32, and at 32 than at 128",
    "C5": "Narrower heads, 32 to 128 numbers, and heads twice as wide",
    "C6": "Teachers that are pulled by the student: the embedding, and the features",
    "C7": "How steep the spectrum is, and how far classes collapse",
    "C8": "What S2SD brings, beside half of what 1,024 dimensions have over 32",
    "A3": "Maximum + average pooling for the teachers at 32 dimensions; and MSDF at 64",
}
evidence.read(READINGS)

# %% [markdown]
# ## The same question at 128 pixels
#
# C1 is the claim of the chapter, and at 64 pixels it was *not reproduced*, although both its intervals lie above zero: neither comparison survives the correction for
# all comparisons of the chapter. It may be that drawings of 64 pixels hold too little to learn from: stage 6, the first that learns, sees maps
# of 4 × 4. So the half of C1 that is about multisimilarity is asked **once more**: at 128 pixels, where these maps are 8 × 8, with five
# seeds that were never used, one comparison, so that there is nothing to correct for, and rules that were committed before the first of these runs.
#
# Nothing was tuned for this size. Learning rates, γ, steps, batches and what learns (the last five blocks and the last
# convolution) are those of `ms-32` and `ms-32-msdf` above. The inputs of stage 6 for four views of each picture are computed once
# and kept, so that a run takes ten to fifteen minutes of one core.

# %%
claims.ledger(AGAIN)

# %%
again_runs = claims.runs(AGAIN)
again = {}
if again_runs:
    claims.claims_table(AGAIN)
    (again,) = claims.load_results(AGAIN)["claims"]

# %% tags=["hide-input"]
if again.get("comparisons"):
    claims.claim_plot(AGAIN, again["id"])
if again_runs:
    measures = [
        "Recall@1, all sets",
        "Recall@1, cross-set",
        "Recall@1, hard",
        "mAP@R",
        "Recall@1 of features",
    ]
    rows = []
    for arm in claims.load_rules(AGAIN).arms:
        values = [run["values"] for run in again_runs if run["arm"] == arm]
        means = [float(np.mean([v[m] for v in values])) if values else None for m in measures]
        rows.append([f"`{arm}`", len(values), *means])
    floor = again_runs[0]["values"]["Recall@1 of frozen features"]
    table(
        rows,
        header=["arm at 128 px", "seeds", *measures],
        caption="Means over the recorded seeds, in %. Gallery: 4,584 test drawings of 653 concepts, 128 px. "
        f"Floor: the 1,280 frozen features of the same pictures, before any training, reach {floor:.1f} % (hard).",
    )

# %% tags=["hide-input"]
if again.get("comparisons") and evidence.comparisons("C1"):
    (large,), small = again["comparisons"], evidence.comparisons("C1")[0]
    say(
        f"**{again['id']}: {again['verdict']}.** At 128 pixels multisimilarity alone reaches {large['against_mean']:.1f} % and with S2SD "
        f"{large['arm_mean']:.1f} % ({large['mean']:+.1f} [{large['low']:+.1f}, {large['high']:+.1f}] points, p = {large['p_holm']:.2g}, the only "
        f"comparison of its rules). At 64 pixels it was {small['mean']:+.1f} [{small['low']:+.1f}, {small['high']:+.1f}], p = {small['p']:.2g} by "
        f"itself and {small['p_holm']:.2g} after Holm. "
        + (
            "With larger pictures and fresh seeds the gain is shown, for this objective and this dimension. That is a second "
            "look at one question, chosen because the first was promising: it confirms the direction of C1, whose verdict at 64 "
            "pixels stays as it is."
            if large["holds"]
            else "The interval lies above zero, but the test does not: likely, not shown, for a second time."
            if large["low"] > 0
            else "S2SD is worse here: what was seen at 64 pixels does not carry over to larger pictures."
            if large["high"] < 0
            else "The interval holds zero: what was promising at 64 pixels was not found again at 128."
        )
    )

# %% [markdown]
# **What the runs cannot say.** The regime is the paper's in kind, a pretrained backbone fine-tuned at a low rate with classes
# that test does not share, but it is short: about thirteen looks at each picture, on pictures of 64 pixels (C1 also on 128), with eleven of
# the sixteen blocks frozen. γ was chosen at 400 steps for the objective, not for every dimension. Each arm's three trials are
# in the ledger.

# %%
page.finish(runtime)
