"""Make the virtual environment with a torch that fits the machine. Used by the Makefile; standard library only.

    python3 scripts/setup_venv.py .venv "torch==2.13.0"

- A torch that the calling Python already has with ROCm or CUDA in it is respected: the environment sees it.
- An NVIDIA card without such a torch: the registry's build, which carries CUDA.
- An AMD card without such a torch: never a forced ROCm wheel, because which one is right depends on the driver.
  The CPU build is installed with a word on how to bring your own.
- No card: the CPU build (the registry's default for Linux would be gigabytes of CUDA).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

GPU_TORCH = "import torch; print(torch.version.hip or torch.version.cuda or '')"


def main(folder: Path, requirement: str) -> None:
    theirs = gpu_torch(sys.executable)
    if not (folder / "bin" / "python").exists():
        see_system = ["--system-site-packages"] if theirs else []
        run(sys.executable, "-m", "venv", *see_system, str(folder))
        if theirs and sys.prefix != sys.base_prefix:
            see_environment(folder)
    python = str(folder / "bin" / "python")
    if installed_torch(python):
        print(f"torch is there already: {installed_torch(python)}")
        return
    if has_nvidia():
        print("an NVIDIA card: installing the CUDA build of torch")
        run(python, "-m", "pip", "install", "--quiet", requirement)
        return
    if has_amd():
        print(
            "an AMD card, and no ROCm build of torch: installing the CPU build. To train on the card, install the\n"
            "ROCm wheel for your driver into this environment (docs/hardware.md says which) and run make again."
        )
    install_cpu_build(python, requirement)


def see_environment(folder: Path) -> None:
    """The calling Python is one of a virtual environment: `--system-site-packages` shows what lies beneath that one,
    and not what is in it."""
    for kind in ("purelib", "platlib"):
        theirs = sysconfig.get_path(kind)
        ours = Path(sysconfig.get_path(kind, vars={"base": str(folder), "platbase": str(folder)}))
        (ours / "beneath.pth").write_text(f"{theirs}\n")


def install_cpu_build(python: str, requirement: str) -> None:
    """pip where it would take a CPU build anyway (a mirror, a Mac), else uv, which knows where CPU builds lie."""
    if pip_would_take_cpu(python, requirement):
        run(python, "-m", "pip", "install", "--quiet", requirement)
        return
    run(python, "-m", "pip", "install", "--quiet", "uv")
    uv = [python, "-m", "uv", "pip", "install", "--quiet", "--python", python]
    if subprocess.run([*uv, "--torch-backend", "cpu", requirement], check=False).returncode != 0:
        print("no CPU build of torch could be had; installing the registry's default build")
        run(python, "-m", "pip", "install", "--quiet", requirement)


def pip_would_take_cpu(python: str, requirement: str) -> bool:
    command = [python, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", "--report", "-", requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        url = json.loads(done.stdout)["install"][0]["download_info"]["url"]
    except (ValueError, KeyError, IndexError):
        return False
    return "cpu" in url.rsplit("/", 1)[-1] or "macosx" in url


def installed_torch(python: str) -> str:
    return output(python, "-c", "import torch; print(torch.__version__)")


def gpu_torch(python: str) -> str:
    return output(python, "-c", GPU_TORCH)


def has_nvidia() -> bool:
    return shutil.which("nvidia-smi") is not None and bool(output("nvidia-smi", "-L"))


def has_amd() -> bool:
    vendors = Path("/sys/class/drm").glob("card*/device/vendor") if Path("/sys/class/drm").exists() else []
    return Path("/dev/kfd").exists() and any(path.read_text().strip() == "0x1002" for path in vendors)


def output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def run(*command: str) -> None:
    done = subprocess.run(command, check=False)
    if done.returncode != 0:
        sys.exit(f"failed: {' '.join(command)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
