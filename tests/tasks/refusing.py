"""Run as a program: a system that refuses what it is told to, and what the sandbox says and does there.

    python refusing.py 'unshare,landlock_create_ruleset,seccomp' SCRIPT

The refusal is real: a seccomp filter on this process, which all that it starts inherits.
"""

from __future__ import annotations

import platform
import struct
import sys

from agent.tasks.box import kernel

NUMBERS = {
    "unshare": (272, 97),
    "mount": (165, 40),
    "landlock_create_ruleset": (444, 444),
    "seccomp": (317, 277),
}


def refuse(names: list[str]) -> None:
    """EPERM for these system calls, from here on."""
    column = {"x86_64": 0, "aarch64": 1}[platform.machine()]
    program = struct.pack("=HBBI", 0x20, 0, 0, 0)
    for name in names:
        program += struct.pack("=HBBI", 0x15, 0, 1, NUMBERS[name][column]) + struct.pack(
            "=HBBI", 0x06, 0, 0, 0x00050001
        )
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.seccomp_filter(program + struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000))


if __name__ == "__main__":
    refuse([name for name in sys.argv[1].split(",") if name])
    exec(compile(sys.argv[2], "<script>", "exec"), {"__name__": "script"})
