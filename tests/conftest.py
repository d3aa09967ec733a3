"""For all tests: one thread each, because two test processes share the cores, and threads that sleep when they wait."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
