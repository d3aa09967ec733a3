"""The inside of the sandbox (see `agent.tasks.sandbox`): what runs in processes of its own, on nothing but Python.

    start.py      entry: goes behind walls (`walls.py`), then serves programs (`host.py`) or scores (`scorer_child`)
    walls.py      namespaces and a root folder of its own; bubblewrap does the same where the kernel lets only it
    kernel.py     system calls that Python has no function for
    confine.py    what every program gets on top: rlimits, no capabilities, Landlock, seccomp
    host.py       the warm process: forks a tester and a candidate for each program, and ends them
    tester.py     runs the tests; what the candidate defines is a stand-in whose calls go to the candidate
    names.py      which names in the tests are the candidate's
    stand_ins.py  those stand-ins
    candidate.py  runs the code, and answers calls
    wire.py       values as plain data, and the frames they travel in

No file here imports anything but the standard library, because the Python that runs them is started without `site`.
"""
