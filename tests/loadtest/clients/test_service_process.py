"""A service that a load test started: the processor time that it uses."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from loadtest.clients.service_process import ServiceProcess

BURN = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"


def test_processor_time_has_that_of_children_running_and_ended() -> None:
    """The embedded Valkey is a child."""
    here = ServiceProcess("", os.getpid(), ())
    before = here.cpu_s
    with subprocess.Popen(
        [sys.executable, "-c", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        running, started = here.cpu_s - before, time.process_time()
        child.communicate(b"\n")
    assert running >= 0.25
    assert here.cpu_s - before >= running
    assert time.process_time() - started < 0.2  # it was not this process
