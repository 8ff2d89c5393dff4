"""Linear algebra on one thread: what a searcher computes must not depend on the machine's number of cores.

Libraries of linear algebra share out large products among the cores, so sums, and with them proposals, come out
otherwise where there are more of them: a run could not be resumed on another machine. Matrices of searchers are small,
and waiting threads would take the workers' cores: beside busy ones, the eigenvectors of 200 genes take one thread 3 ms
of processor time, two threads 30 ms.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import scipy.linalg  # noqa: F401 - brings a library of its own, which has to be there to be limited
from threadpoolctl import threadpool_limits


@contextmanager
def one_thread() -> Iterator[None]:
    """Have numpy and scipy compute on one thread inside the block."""
    with threadpool_limits(limits=1, user_api="blas"):
        yield
