"""For all tests: one thread each, because two test processes share the cores, and threads that sleep when they wait.

No example of a property test has a deadline: what it measures is how busy the machine is.
"""

import os

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
settings.register_profile("without-a-deadline", deadline=None)
settings.load_profile("without-a-deadline")
