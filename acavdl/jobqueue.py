"""dask-jobqueue, imported so that Ctrl-C keeps its meaning.

Version 0.9.0 sets a handler for SIGINT when it is imported, which ends the process with status 0
and fails in any thread but the main one: meanwhile there is none to be set.
"""

from __future__ import annotations

from unittest import mock

with mock.patch("signal.signal"):
    from dask_jobqueue import SLURMCluster
    from dask_jobqueue.core import Job, JobQueueCluster
    from dask_jobqueue.slurm import SLURMJob

__all__ = ["Job", "JobQueueCluster", "SLURMCluster", "SLURMJob"]
