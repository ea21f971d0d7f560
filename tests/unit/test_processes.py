"""Whether the process of a run is still there."""

import os
import socket
import subprocess
import sys

import pytest

from medtransfer.tracking.processes import Process


def test_this_process_is_there_and_its_text_can_be_read():
    here = Process.this()
    assert (here.host, here.pid) == (socket.gethostname(), os.getpid())
    assert not here.gone
    read = Process.parse(str(here))
    assert (read.host, read.pid) == (here.host, here.pid)
    assert not read.gone


def test_a_process_that_ended_is_gone_and_so_is_one_whose_number_was_given_away():
    child = subprocess.Popen([sys.executable, "-c", ""])
    started = Process.this().started
    child.wait()
    assert Process(socket.gethostname(), child.pid, started).gone
    assert Process(socket.gethostname(), os.getpid(), started - 3600).gone


def test_of_another_machine_nobody_can_say():
    assert not Process("elsewhere", 1, 0.0).gone


@pytest.mark.parametrize("text", ["", "host", "host:1", "host:x:1.0", "host:1:y", ":1:1.0"])
def test_other_texts_are_no_process(text):
    assert Process.parse(text) is None
