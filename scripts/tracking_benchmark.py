"""What tracking costs for each trial, on SQLite, on PostgreSQL, and on an MLflow server before it.

Trials that train nothing tell a store what a usual trial tells it: 115 parameters, 11 metrics over
20 epochs, 28 final ones, two tables of 300 cases, six documents, a page of pictures. Then a study
of tiny trials is run once and again, when all of it is there. docs/scale.md reckons with this.

    python scripts/tracking_benchmark.py [--trials 40] [--workers 8] [--only SQLite|...|again]

It needs Debian's `postgresql`, psycopg2 and pytest; the servers are its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
PARAMS, TAGS, EPOCHS, EACH, FINALS, DOCUMENTS = 115, 25, 20, 11, 28, 6
ROWS, PICTURE = 300, 380_000  # bytes of a page of pictures
STUDY = """# @package _global_
defaults: [none@study, {override /hydra/sweeper: study}]
study: {name: again, arms: {one: [optimizer.lr=0.001], two: [optimizer.lr=0.01]}}
"""


@dataclass(frozen=True)
class Place:
    """A store that is measured.

    Attributes:
        uri: MLflow's.
        servers: The first processes of its servers.
        size: Returns the bytes that it takes on the disk, without artifacts.
        database: Of PostgreSQL, whose connections are counted.
        log: Of the MLflow server, a line a request.
    """

    uri: str
    servers: Mapping[str, int]
    size: Callable[[], int]
    database: str | None = None
    log: Path | None = None


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--workers", type=int, default=8)
    stores = {"SQLite": sqlite, "PostgreSQL": postgres, "server": server}
    parser.add_argument("--only", choices=[*stores, "again"])
    told = parser.parse_args()
    for name, opened in stores.items():
        if told.only in {None, name}:
            with tempfile.TemporaryDirectory() as scratch, opened(Path(scratch)) as place:
                measure(name, place, Path(scratch), told.trials, told.workers)
    if told.only in {None, "again"}:
        with tempfile.TemporaryDirectory() as scratch:
            measure_again(Path(scratch), (8, 24))


@contextmanager
def sqlite(folder: Path) -> Iterator[Place]:
    """Give a SQLite file."""
    path = folder / "mlflow.db"
    yield Place(f"sqlite:///{path}", {}, lambda: path.stat().st_size)


@contextmanager
def postgres(folder: Path) -> Iterator[Place]:  # noqa: ARG001
    """Give a PostgreSQL cluster."""
    import servers

    with servers.postgres() as cluster:
        yield Place(
            cluster.uri,
            {"PostgreSQL": cluster.pid},
            lambda: ask(cluster.uri, "SELECT pg_database_size(current_database())"),
            cluster.uri,
        )


@contextmanager
def server(folder: Path) -> Iterator[Place]:
    """Give an MLflow server of one worker before a PostgreSQL cluster."""
    import servers

    with (
        postgres(folder) as behind,
        servers.tracking_server(folder / "server", behind.uri) as tracking,
    ):
        assert tracking.process is not None
        processes = {**behind.servers, "MLflow": tracking.process.pid}
        log = folder / "server" / "server.log"
        yield Place(tracking.uri, processes, behind.size, behind.uri, log)


def measure(name: str, place: Place, folder: Path, trials: int, workers: int) -> None:
    """Print what trials cost, told by one worker and by several at once."""
    from medtransfer.tracking import records
    from medtransfer.tracking.ledger import Ledger
    from medtransfer.tracking.runs import open_run

    def say(text: str) -> None:
        print(f"{name:10}  {text}", flush=True)

    artifacts = None if place.uri.startswith("http") else str(folder / "artifacts")
    started = time.perf_counter()
    store = open_store(place.uri, artifacts, folder)
    say(f"created in {time.perf_counter() - started:.1f} s")
    with open_run(store, "study", {"phase": "study"}) as parent:
        run_id = parent.run_id
    size, load, asked = place.size(), cpu(place), requests(place)

    found = work(place.uri, artifacts, folder, run_id, trials)
    spent = {key: value - load[key] for key, value in cpu(place).items()}
    say(f"one worker: {found['seconds'] / trials * 1e3:.0f} ms a trial until all is delivered")
    say(f"  the trial itself spends {found['blocked'] / trials * 1e3:.1f} ms on telling")
    say(f"  CPU of the worker {found['cpu'] / trials * 1e3:.0f} ms a trial")
    for key, value in spent.items():
        say(f"  CPU of {key} {value / trials * 1e3:.0f} ms a trial")
    if place.log:
        say(f"  {(requests(place) - asked) / trials:.0f} requests a trial")
    say(f"  {(place.size() - size) / trials / 1e3:.0f} kB a trial in the store")
    say(f"  {bytes_below(folder, 'artifacts') / trials / 1e3:.0f} kB a trial of artifacts")

    load, calls = cpu(place), 200
    started = time.perf_counter()
    for step in range(calls):
        store.client.log_batch(run_id, metrics=epoch_of(step))
    say(f"metrics of one epoch: {(time.perf_counter() - started) / calls * 1e3:.1f} ms a call")
    for key, value in cpu(place).items():
        say(f"  CPU of {key} {(value - load[key]) / calls * 1e3:.1f} ms a call")

    load, counting = cpu(place), place.database and Counting(place.database)
    seconds = crowd((place.uri, artifacts, folder, run_id, trials // workers), workers)
    spent = {key: value - load[key] for key, value in cpu(place).items()}
    count = trials // workers * workers
    say(f"{workers} workers: {count / seconds:.1f} trials a second together")
    for key, value in spent.items():
        say(f"  CPU of {key} {value / count * 1e3:.0f} ms a trial")
    if counting:
        say(f"  at most {counting.stop()} connections to PostgreSQL")

    started = time.perf_counter()
    runs = records.children(store.client, [run_id])
    say(f"search: {(time.perf_counter() - started) / len(runs) * 1e3:.1f} ms a trial")
    ledger = Ledger(folder / "ledger")
    started = time.perf_counter()
    for run in runs:
        ledger.append(records.row(run), {"test": cases(0), "val": cases(0)})
    say(f"ledger: {(time.perf_counter() - started) / len(runs) * 1e3:.1f} ms to append a trial")
    started = time.perf_counter()
    ledger.consolidate()
    say(f"  {(time.perf_counter() - started) / len(runs) * 1e3:.1f} ms a trial to consolidate")
    say(f"  {bytes_below(folder, 'ledger') / len(runs) / 1e3:.1f} kB a trial")


def work(uri: str, artifacts: str | None, folder: Path, parent: str, trials: int) -> dict[str, Any]:
    """Tell a store of trials as a study does, in the background, and wait at the end."""
    from medtransfer.tracking.runs import open_run

    store = open_store(uri, artifacts, folder)
    started, used, told = time.perf_counter(), time.process_time(), []
    blocked = 0.0
    for number in range(trials):
        tags = {"phase": "final", **{f"tag{i}": "a value" for i in range(TAGS)}}
        at = time.perf_counter()
        with open_run(store, f"trial {number}", tags, parent=parent, wait=False) as run:
            tell(run)
        blocked += time.perf_counter() - at
        told.append(run)
    for run in told:
        run.settle()
    seconds, used = time.perf_counter() - started, time.process_time() - used
    return {"seconds": seconds, "blocked": blocked, "cpu": used}


def tell(run: Any) -> None:
    """Tell what a usual trial tells."""
    run.params({f"group.key_{i}": f"a value of some length, {i}" for i in range(PARAMS)})
    for i in range(DOCUMENTS):
        run.json({f"key {k}": "a value of some length" for k in range(30)}, f"document{i}.json")
    for epoch in range(EPOCHS):
        run.metrics({f"val/metric_{i}": epoch / (1 + i) for i in range(EACH)}, epoch)
    run.frames({"val": cases(0), "test": cases(1)}, "predictions")
    with run.folder("pictures") as folder:
        (folder / "test.png").write_bytes(os.urandom(PICTURE))
    run.metrics({f"test/metric_{i}": 1 / (1 + i) for i in range(FINALS)})


def epoch_of(step: int) -> list[Any]:
    """Return what a trial tells after an epoch."""
    from mlflow.entities import Metric

    now = int(time.time() * 1e3)
    return [Metric(f"val/metric_{i}", step / (1 + i), now, step) for i in range(EACH)]


def cases(seed: int) -> pd.DataFrame:
    """Return predictions of two classes."""
    scores = np.random.default_rng(seed).random((ROWS, 2))
    ids = [f"patient-{i:05}/{i:08x}" for i in range(ROWS)]
    return pd.DataFrame({"sample_id": ids, "group_id": ids, "split": "test", "target": 1}).assign(
        score_negative=scores[:, 0], score_positive=scores[:, 1]
    )


def crowd(told: tuple[Any, ...], workers: int) -> float:
    """Return the seconds in which several processes tell of their trials together."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, arrive, (context.Barrier(workers),)) as pool:
        shares = [pool.submit(work, *told) for _ in range(workers)]
        return max(share.result()["seconds"] for share in shares)


def arrive(barrier: Any) -> None:
    """Begin a process, whose imports are not counted."""
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    import medtransfer.tracking.runs  # noqa: F401

    barrier.wait()


def open_store(uri: str, artifacts: str | None, folder: Path) -> Any:
    """Open the store as the program does."""
    from medtransfer.tracking.store import open_store

    return open_store(uri, "scale", artifacts, folder)


def measure_again(folder: Path, counts: tuple[int, int]) -> None:
    """Print what it takes to go through a study again, all of whose trials are there."""
    (folder / "conf" / "study").mkdir(parents=True)
    (folder / "conf" / "study" / "own.yaml").write_text(STUDY, encoding="utf-8")
    seconds = []
    for count in counts:
        run_study(folder, count)
        started = time.perf_counter()
        run_study(folder, count)
        seconds.append(time.perf_counter() - started)
    more = (seconds[1] - seconds[0]) / (counts[1] - counts[0])
    print(f"a study of {counts[0]} finished trials, again: {seconds[0]:.1f} s")
    print(f"  and {more * 1e3:.0f} ms for each further one")


def run_study(folder: Path, count: int) -> None:
    """Run a study of so many trials of two arms, of one step each, to its report."""
    command = [
        *(sys.executable, "-m", "medtransfer", "train", "-m", "--config-dir", folder / "conf"),
        *("study=own", f"study.name=of-{count}", f"study.seeds={count // 2}", "test=true"),
        *("backbone=timm", "backbone.name=test_resnet", "weights=random", "dataset.patients=36"),
        *("dataset.size=32", "dataset.image_size=32", "trainer.workers=0", "trainer.threads=1"),
        *("trainer.max_epochs=1", "trainer.max_steps=1", "trainer.checkpoint=none"),
    ]
    home = os.environ | {"MEDTRANSFER_HOME": str(folder / "home")}
    subprocess.run(list(map(str, command)), check=True, capture_output=True, env=home)


def ask(uri: str, query: str) -> int:
    """Return the one number that a database answers."""
    from sqlalchemy import NullPool, create_engine, text

    with create_engine(uri, poolclass=NullPool).connect() as connection:
        return int(connection.execute(text(query)).scalar_one())


def cpu(place: Place) -> dict[str, float]:
    """Return the seconds of CPU that servers have used, with all that they have started."""
    return {name: cpu_of(psutil.Process(pid)) for name, pid in place.servers.items()}


def cpu_of(process: psutil.Process) -> float:
    """Return the seconds of a process, of its children, and of those that are no more."""
    seconds = sum(process.cpu_times()[:4])
    for child in process.children():
        with suppress(psutil.NoSuchProcess):
            seconds += cpu_of(child)
    return float(seconds)


def requests(place: Place) -> int:
    """Return how many requests the MLflow server has answered."""
    return 0 if place.log is None else place.log.read_text(encoding="utf-8").count("HTTP/1.1")


def bytes_below(folder: Path, name: str) -> int:
    """Return the size of all files of which a folder on the way is so called."""
    found = (path for place in folder.rglob(name) for path in place.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in set(found))


class Counting:
    """Counts connections to PostgreSQL in the background, and keeps the most."""

    def __init__(self, database: str) -> None:
        self.database, self.most = database, 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._count)
        self.thread.start()

    def _count(self) -> None:
        query = "SELECT count(*) - 1 FROM pg_stat_activity WHERE backend_type = 'client backend'"
        while not self.over.wait(0.2):
            self.most = max(self.most, ask(self.database, query))

    def stop(self) -> int:
        """End, and return the most."""
        self.over.set()
        self.thread.join()
        return self.most


if __name__ == "__main__":
    main()
