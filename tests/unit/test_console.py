import io
import re

import pytest
from rich.console import Console

from medtransfer import console
from medtransfer.console import Reporter, duration


@pytest.fixture
def screen(monkeypatch):
    """Return a function that puts a screen in the place of stderr and gives what is on it."""

    def put(terminal):
        text = io.StringIO()
        monkeypatch.setattr(
            console, "err", Console(file=text, force_terminal=terminal, width=100, height=20)
        )
        return text

    return put


@pytest.fixture
def clock(monkeypatch):
    """Return a function that sets the time in seconds."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, 100.0 + seconds)


def test_a_single_trial_is_told_in_lines_where_there_is_no_terminal(screen, clock):
    text = screen(terminal=False)
    with Reporter(1) as reporter:
        reporter.start("arm [a] seed=0")
        reporter.finish("finished")
    assert text.getvalue() == "arm [a] seed=0: started\narm [a] seed=0: finished\n"


def test_a_line_about_the_epochs_comes_now_and_then(screen, clock):
    text = screen(terminal=False)
    with Reporter(1) as reporter:
        reporter.start("x", unit="steps")
        for second in range(1, 26):
            clock(second)
            reporter.advance(second, 30, {"val/auroc": 0.5})
    assert text.getvalue().splitlines() == [
        "x: started",
        "x: 10/30 steps  val/auroc 0.500",
        "x: 20/30 steps  val/auroc 0.500",
    ]


def test_a_sweep_is_counted_and_the_rest_of_the_time_estimated(screen, clock):
    text = screen(terminal=False)
    with Reporter(3) as reporter:
        for number in (1, 2, 3):
            reporter.start("x", number)
            clock(60 * number)
            reporter.finish("finished")
    assert text.getvalue().splitlines() == [
        "[1/3] x: started",
        "[1/3] x: finished; 1 min 00 s gone, about 2 min 00 s left",
        "[2/3] x: started",
        "[2/3] x: finished; 2 min 00 s gone, about 1 min 00 s left",
        "[3/3] x: started",
        "[3/3] x: finished",
    ]


def test_a_sweep_of_unknown_length_is_counted_without_an_end(screen, clock):
    text = screen(terminal=False)
    with Reporter(0) as reporter:
        reporter.start("x", 4)
        reporter.finish("finished")
    assert text.getvalue().splitlines() == ["[4] x: started", "[4] x: finished"]


@pytest.mark.parametrize("trials", [0, 1, 2])
def test_a_terminal_shows_bars_and_keeps_what_failed(screen, trials):
    text = screen(terminal=True)
    with Reporter(trials) as reporter:
        for number in range(1, max(trials, 1) + 1):
            reporter.start("arm [a]", number)
            reporter.advance(1, 2, {"val/auroc": 0.5})
            reporter.finish("failed: [disk] full")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())
    assert "arm [a]" in shown
    assert shown.count("failed: [disk] full") == max(trials, 1)


def test_one_reporter_is_active_until_it_is_done(screen):
    screen(terminal=False)
    with Reporter(1) as reporter:
        assert Reporter.active is reporter
    assert Reporter.active is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (3725, "1 h 02 min")],
)
def test_times_are_as_people_say_them(seconds, words):
    assert duration(seconds) == words


def test_a_line_with_a_path_is_not_broken(capsys):
    path = "/a/very/long/path" * 20
    console.say(f"weights: {path} [x]")
    assert capsys.readouterr().out == f"weights: {path} [x]\n"
