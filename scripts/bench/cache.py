"""What a study of feature extraction costs, against what it cannot do without.

On `busi` at 224 px with a resnet18, 5 seeds x 4 fractions x 3 heads, in one process:

1. the study through `medtransfer train -m`, its features computed once, against one bare forward
   pass of timm's over the same images plus the same heads fitted bare;
2. the same study with the frozen backbone run in each of 20 epochs, against 1. It would take hours,
   so one epoch of each fraction is timed and counted 20 x 5 x 3 times.

What MLflow, the pictures of test cases and the report take is told apart. The network's values are
drawn at random: no timing depends on them.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from measure import Figure, composed, prepared, run_here, write_weights

SEEDS, FRACTIONS, EPOCHS, THREADS = range(5), (0.05, 0.1, 0.25, 1.0), 20, 1
HEADS = (
    ("strategy=linear_probe",),
    ("strategy=classic_head", "strategy.kind=knn"),
    ("strategy=classic_head", "strategy.kind=random_forest"),
)


def run(quick: bool) -> Iterator[Figure]:
    """Measure both ratios, in a home of their own; it takes too long to be quick."""
    if not quick:
        with tempfile.TemporaryDirectory() as home:
            os.environ["MEDTRANSFER_HOME"] = home
            yield from measure(Path(home))


def measure(home: Path) -> Iterator[Figure]:
    """Time everything."""
    import torch

    torch.set_num_threads(THREADS)
    weights = write_weights(home)
    common = [
        *("dataset=busi", "dataset.image_size=224", "dataset.channels=3", "backbone=resnet18"),
        *("weights=file", f"weights.path={weights}", "transform=none", "trainer.precision=fp32"),
        *(f"trainer.threads={THREADS}", "trainer.workers=0", "trainer.checkpoint=none"),
        f"dataset.fraction={','.join(map(str, FRACTIONS))}",
    ]
    # decodes the images, imports what is needed and creates the store
    run_here(["train", *common[:-1], "trainer.max_epochs=1", "features.mode=online", "test=false"])

    forward, data = time_forward(common)
    fits = time_fits(common, data)
    tracking = clock_tracking()
    seeds = f"seed={','.join(map(str, SEEDS))}"
    started = time.perf_counter()
    for head in HEADS:
        run_here(["train", "-m", *common, *head, seeds])
    study = time.perf_counter() - started
    apart = sum(tracking.values())
    shown = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in tracking.items())
    trials = len(SEEDS) * len(FRACTIONS) * len(HEADS)
    yield Figure(
        name="cache.floor",
        value=(study - apart) / (forward + fits),
        unit="times",
        told=f"a study of {trials} trials, {study:.0f} s, without {shown} / one bare forward pass"
        f" over {len(data.decoded.records)} images, {forward:.0f} s, and bare fits, {fits:.0f} s",
        bar=1.3,
    )

    tracking.update(dict.fromkeys(tracking, 0.0))
    started = time.perf_counter()
    online = ["strategy=feature_extraction", "features.mode=online", "trainer.max_epochs=1"]
    run_here(["train", "-m", *common, *online, "test=false"])
    epoch = time.perf_counter() - started - sum(tracking.values())
    whole = epoch * EPOCHS * len(SEEDS) * len(HEADS)
    yield Figure(
        name="cache.online",
        value=whole / (study - apart),
        unit="times",
        told=f"the backbone run in each of {EPOCHS} epochs, {whole / 60:.0f} min / the same study",
        bar=20.0,
        sense="at least",
    )


def time_forward(common: list[str]) -> tuple[float, Any]:
    """Return the seconds of one pass of timm's over all images, and the data."""
    import timm
    import torch

    from medtransfer.data.loading import Data

    data = prepared(common[:-1]).data
    assert isinstance(data, Data)
    model = timm.create_model("resnet18", num_classes=0).eval()
    model.to(memory_format=torch.channels_last)
    mean, std = (
        torch.tensor(model.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std")
    )
    started = time.perf_counter()
    with torch.no_grad():
        for i in range(0, len(data.decoded.images), 32):
            images = torch.from_numpy(data.decoded.images[i : i + 32].copy()).float() / 255
            model(((images - mean) / std).to(memory_format=torch.channels_last))
    return time.perf_counter() - started, data


def time_fits(common: list[str], data: Any) -> float:
    """Return the seconds of all heads' fits by scikit-learn, chosen on validation as they are."""
    import torch
    from threadpoolctl import threadpool_limits

    from medtransfer.features import Extractor, open_features
    from medtransfer.run import check

    trial = prepared(common[:-1])
    extractor = Extractor(
        *(trial.model.backbone, "embedding", torch.device("cpu"), "fp32", "fp32", 32, 0)
    )
    tables = {
        split: open_features(data, split, extractor, transform=None, views=1, store=None)
        for split in ("train", "val")
    }
    inputs, targets = (x.numpy() for x in tables["val"].table(data.division.val))
    seconds = 0.0
    for fraction in FRACTIONS:
        for seed in SEEDS:
            config = composed([*common[:-1], f"dataset.fraction={fraction}", f"seed={seed}"])
            subset = type(data).open(check(config).dataset, cache=config.paths.cache, seed=seed)
            known = [x.numpy() for x in tables["train"].table(subset.train)]
            for head in HEADS:
                strategy = check(composed([*common[:-1], *head])).strategy
                started = time.perf_counter()
                with threadpool_limits(THREADS):  # with two, a fit takes many times as long
                    for fit in candidates(strategy, len(known[0])):
                        fit(*known).score(inputs, targets)
                seconds += time.perf_counter() - started
    return seconds


def candidates(strategy: Any, cases: int) -> Iterator[Callable[..., Any]]:
    """Yield a bare fit for each setting that a head is chosen from."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from medtransfer.strategies.linear_probe import MAX_ITERATIONS, TOLERANCE

    kind = getattr(strategy, "kind", "linear")
    if kind == "linear":
        for c in strategy.C:
            solver = LogisticRegression(C=c, max_iter=MAX_ITERATIONS, tol=TOLERANCE)
            yield make_pipeline(StandardScaler(), solver).fit
    elif kind == "knn":
        for k in (k for k in strategy.neighbours if k <= cases):
            knn = KNeighborsClassifier(k, weights="distance")
            yield make_pipeline(StandardScaler(), knn).fit
    else:
        for share in strategy.max_features:
            yield RandomForestClassifier(strategy.trees, max_features=share, random_state=0).fit


def clock_tracking() -> dict[str, float]:
    """Count the seconds spent in MLflow and on the report from here on, by name."""
    from mlflow import MlflowClient

    from medtransfer import pictures
    from medtransfer.commands import report

    spent = {"MLflow": 0.0, "pictures": 0.0, "report": 0.0}
    inside = []  # calls that others make count once

    def clock(owner: Any, name: str, where: str) -> None:
        inner = getattr(owner, name)

        def timed(*arguments: Any, **named: Any) -> Any:
            inside.append(where)
            started = time.perf_counter()
            try:
                return inner(*arguments, **named)
            finally:
                inside.pop()
                if not inside:
                    spent[where] += time.perf_counter() - started

        setattr(owner, name, timed)

    for name in vars(MlflowClient):
        if not name.startswith("_"):
            clock(MlflowClient, name, "MLflow")
    clock(pictures, "record", "pictures")
    clock(report, "answer", "report")
    return spent
