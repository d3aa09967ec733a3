"""For all tests: one thread each, because two test processes share the cores, and threads that sleep when they wait.

No example of a property test has a deadline: what it measures is how busy the machine is.
"""

import gc
import os

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
settings.register_profile("without-a-deadline", deadline=None)
settings.load_profile("without-a-deadline")


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported and collected stays, and is half a million objects: looking through them again and again was a
    tenth of the suite's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
