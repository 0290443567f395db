"""dask-jobqueue leaves this process's signals alone."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import signal, threading
before = signal.getsignal(signal.SIGINT)
thread = threading.Thread(target=__import__, args=("acavdl.jobqueue",))
thread.start()
thread.join()
import acavdl.jobqueue
assert acavdl.jobqueue.SLURMCluster.__name__ == "SLURMCluster"
assert signal.getsignal(signal.SIGINT) is before is signal.default_int_handler
assert "mock" not in repr(signal.signal)
"""


def test_ctrl_c_keeps_its_meaning_and_any_thread_may_import_it() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
