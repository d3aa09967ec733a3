"""For all tests: one thread each, because two test processes share the cores, and threads that sleep when they wait.

No example of a property test has a deadline: what it measures is how busy the machine is.
"""

import gc
import os
import signal
from collections import Counter

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell starts what it puts into the background so, and the processes of the tests would be deaf to Ctrl-C too
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("without-a-deadline", deadline=None)
settings.load_profile("without-a-deadline")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`one_in(n)`: of a test's many cases the first and each n-th after it run by default, the others with the slow
    tests."""
    seen: Counter[str] = Counter()
    for item in items:
        marker = item.get_closest_marker("one_in")
        if marker is None:
            continue
        name = item.nodeid.partition("[")[0]
        if seen[name] % marker.args[0]:
            item.add_marker(pytest.mark.slow)
        seen[name] += 1


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported and collected stays, and is half a million objects: looking through them again and again was a
    tenth of the suite's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
