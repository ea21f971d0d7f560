"""What a command shows while it works: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Table

from medtransfer.secrets import printable, redact


class _Harmless(RenderHook):
    """Lets no name from outside act on the terminal, and no secret reach it."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """See rich's `RenderHook`."""
        return [_Cleaned(each) for each in renderables]


class _Cleaned:
    def __init__(self, content: ConsoleRenderable) -> None:
        self.content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
        for segment in console.render(self.content, options):
            if segment.control:
                yield segment
            else:
                yield Segment(printable(redact(segment.text)), segment.style)


def open_console(**settings: Any) -> Console:
    """Return a screen for texts that may hold names from outside.

    Args:
        **settings: Of rich's `Console`.
    """
    console = Console(**settings)
    console.push_render_hook(_Harmless())
    return console


out = open_console()
err = open_console(stderr=True)

LINE_EVERY = 10.0  # seconds between two plain lines about one trial


class Reporter:
    """Shows what is done and what is left, of a sweep and of the trial that runs.

    One reporter is active in a process; trials that a launcher starts in other processes find none
    and make their own.

    Args:
        trials: How many trials there will be; 0 when nobody knows yet.
    """

    active: Reporter | None = None

    def __init__(self, trials: int) -> None:
        self.trials = trials
        self.unit = ""
        self.done = 0
        self.started = time.monotonic()
        self.line_at = 0.0
        self.label = ""
        self.certified: list[Mapping[str, Any]] = []
        self.bars: Progress | None = None
        self.sweep_bar: TaskID | None = None
        self.trial_bar: TaskID | None = None

    def __enter__(self) -> Reporter:
        Reporter.active = self
        if err.is_terminal:
            self.bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("[dim]{task.fields[note]}"),
                console=err,
                transient=True,
            )
            self.bars.start()
            if self.trials != 1:
                self.sweep_bar = self.bars.add_task("trials", total=self.trials or None, note="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bars is not None:
            self.bars.stop()
        Reporter.active = None

    def start(self, label: str, number: int = 1, unit: str = "epochs") -> None:
        """Say that a trial starts, the how-manieth it is, and what it counts as it goes."""
        self.unit = unit
        label = " ".join(label.split())  # a name with a line end could pass for a line of ours
        of = f"/{self.trials}" if self.trials else ""
        self.label = label if self.trials == 1 else f"[{number}{of}] {label}"
        self.line_at = time.monotonic()
        shown = escape(printable(redact(label)))  # bars are drawn after all hooks
        if self.bars is None:
            self._line("started")
        elif self.trial_bar is None:
            self.trial_bar = self.bars.add_task(shown, total=None, note="")
        else:
            self.bars.reset(self.trial_bar, description=shown, total=None, note="")

    def advance(self, done: int, total: int, values: Mapping[str, float]) -> None:
        """Say how far the trial is, with its latest metrics."""
        note = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
        if self.bars is not None:
            if self.trial_bar is not None:
                self.bars.update(self.trial_bar, completed=done, total=total, note=note)
        elif time.monotonic() - self.line_at >= LINE_EVERY:
            self.line_at = time.monotonic()
            self._line(f"{done}/{total} {self.unit}  {note}")

    def finish(self, word: str) -> None:
        """Say how the trial ended."""
        self.done += 1
        if self.bars is not None:
            # failures stay on the screen; what went well is in the table at the end
            if word.startswith("failed"):
                self.bars.console.print(f"[red]{escape(self.label)}: {escape(word)}")
            if self.sweep_bar is not None:
                self.bars.update(self.sweep_bar, completed=self.done)
            return
        if self.trials > 1 and self.done < self.trials:
            elapsed = time.monotonic() - self.started
            left = elapsed / self.done * (self.trials - self.done)
            word += f"; {duration(elapsed)} gone, about {duration(left)} left"
        self._line(word)

    def certify(self, told: Mapping[str, Any]) -> None:
        """Show what learns and what rests, once for each way of doing it in a sweep.

        Args:
            told: A certificate in plain values.
        """
        told = {key: told[key] for key in ("strategy", "batchnorm", "parts", "features")}
        if told in self.certified:
            return
        self.certified.append(told)
        (self.bars.console if self.bars else err).print(_certificate_table(told))

    def _line(self, text: str) -> None:
        err.print(f"{self.label}: {text}", markup=False, highlight=False, soft_wrap=True)


def _certificate_table(told: Mapping[str, Any]) -> Table:
    features = told["features"]
    how = f"features {features['mode']}"
    how += f" ({features['why']})" if "why" in features else ""
    how += f", {features['views']} views of each image" if features.get("views", 1) > 1 else ""
    table = Table(
        title=escape(f"{told['strategy']}: what learns; {how}"),
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("part")
    for column in ("parameters", "learn", "from"):
        table.add_column(column, justify="right")
    table.add_column("normalisation")
    for part in told["parts"]:
        begin = "" if part["begin"] is None else f"{part['begin']:.0%} of steps"
        begin = "start" if part["begin"] == 0 else begin
        learn = f"{part['learn']:,}" if part["learn"] else "frozen"
        row = (part["name"], f"{part['parameters']:,}", learn, begin, part["normalisation"])
        table.add_row(*row)
    return table


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def program() -> str:
    """Return how this program can be called again from the same shell."""
    found = shutil.which("medtransfer")
    called = Path(sys.argv[0])
    if called.name != "medtransfer" or (found and Path(found).samefile(called)):
        return "medtransfer"
    return str(called)


def say(text: str) -> None:
    """Print one plain line, unwrapped, so that paths in it can be copied."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)
