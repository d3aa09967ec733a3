"""Models of the hub. One that is on this machine is used as it is: what is measured must not change with what others
push meanwhile. The hub is asked for what is not here whole, and from then on the model is that of one commit: which
files belong to it is written down in our cache once all are here. Where that was not done yet (another program has
downloaded it) and the hub cannot be asked, what is here is used if it has weights, tokenizer and configuration.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from agent.errors import Unavailable
from agent.files import write_atomic
from agent.raft.let_in import (
    ADAPTER_CONFIG,
    CONFIG,
    PICKLES,
    WEIGHTS,
    WEIGHTS_INDEX,
    Source,
    adapters_instead,
    check_config,
    json_of,
    no_safetensors,
    reading,
    refuse_parts,
)

BESIDE_WEIGHTS = re.compile(
    r"[^/]*config\.json|[^/]+\.safetensors\.index\.json|special_tokens_map\.json|added_tokens\.json|tekken\.json"
    r"|merges\.txt|tokenizer[^/]*|vocab[^/]*|[^/]+\.(?:model|tiktoken|bpe|vocab|spm)"
    r"|chat_template[^/]*|additional_chat_templates/[^/]+\.jinja"
)
"""Files of a repository that transformers may read besides weights: configurations, vocabularies, chat templates."""
VOCABULARIES = re.compile(
    r"(tokenizer|tekken)\.json|vocab\.txt|[^/]+\.(model|tiktoken|vocab|spm)|tokenizer\.model[^/]*"
)
"""Any one of them makes a tokenizer; `vocab.json` needs `merges.txt` beside it."""
HUB_CLIENTS = ("huggingface_hub", "httpx", "httpx2")


def from_hub(source: Source, *, cache: Path) -> Source:
    """Its configuration is looked at before anything that it asks for is done."""
    with reading(source):
        if source.trusted:
            with _hub_errors():
                return _with_code(source)
        folder = _found(source, cache)
        _refuse_config_of(folder, source)
    return replace(source, revision=folder.name, snapshot=folder)


def _found(source: Source, cache: Path) -> Path:
    begun = _snapshot(source)
    if begun is not None and _is_here(source.name, begun, cache):
        return begun
    try:
        with _hub_errors():
            folder, names = _downloaded(source, begun)
    except OSError as error:
        if begun is None or not _is_whole(begun):
            raise
        why = str(error).splitlines()[0]
        print(f"{source.name} is used as it is on this machine; the hub was not reached: {why}", file=sys.stderr)
        return begun
    with contextlib.suppress(OSError):  # a cache that cannot be written to costs a question at each start
        _list_of(source.name, folder, cache).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(_list_of(source.name, folder, cache), json.dumps(names) + "\n")
    return folder


def _list_of(name: str, folder: Path, cache: Path) -> Path:
    """Where the names of all files of a commit are written down."""
    return cache / "hub" / f"{name.replace('/', '--')}-{folder.name}.json"


def _is_here(name: str, folder: Path, cache: Path) -> bool:
    """Whether all files that belong to this commit are on this machine."""
    try:
        names = json.loads(_list_of(name, folder, cache).read_text())
        return bool(names) and all((folder / one).is_file() for one in names)
    except (OSError, ValueError, TypeError):
        return False


def _with_code(source: Source) -> Source:
    """Of one commit already, because its code was confirmed. Which Python files are needed, transformers knows."""
    from transformers import AutoConfig, PretrainedConfig
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    said, _ = PretrainedConfig.get_config_dict(source.name, revision=source.revision)
    check_config(said, where=source.name)
    check_config(get_tokenizer_config(source.name, revision=source.revision), where=source.name)
    AutoConfig.from_pretrained(source.name, **source.how)
    return source


def _refuse_config_of(folder: Path, source: Source) -> None:
    from transformers import AutoConfig

    check_config(json_of(folder / CONFIG), where=source.name)
    if (folder / ADAPTER_CONFIG).exists():
        raise adapters_instead(source.name)
    AutoConfig.from_pretrained(folder, trust_remote_code=False)


def _snapshot(source: Source) -> Path | None:
    """The folder of the commit that this machine knows the revision by; None where nothing is here."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(source.name, CONFIG, revision=source.revision)
    return Path(config).parent if isinstance(config, str) else None


def _is_whole(folder: Path) -> bool:
    """Whether a snapshot that another program has downloaded has its configuration, a tokenizer and all weights."""
    names = {path.name for path in folder.iterdir() if path.is_file()}
    tokenizer = any(map(VOCABULARIES.fullmatch, names)) or names >= {"vocab.json", "merges.txt"}
    weights = _weights_of(folder, names)
    return CONFIG in names and tokenizer and bool(weights) and names.issuperset(weights)


def _weights_of(folder: Path, names: Collection[str]) -> list[str]:
    """Of the files of a repository, those with the weights that transformers would take; what tells of them is in
    `folder`."""
    named = json_of(folder / CONFIG).get("transformers_weights")
    choice = [str(named)] if named is not None else [WEIGHTS, WEIGHTS_INDEX]
    found = next((name for name in choice if name in names), None)
    if found is None or not found.endswith(".index.json"):
        return [] if found is None else [found]
    parts = json_of(folder / found).get("weight_map")
    wanted = sorted({str(part) for part in parts.values()}) if isinstance(parts, Mapping) else []
    refuse_parts(wanted, where=f"{folder.name}/{found}")
    return wanted


def _downloaded(source: Source, begun: Path | None) -> tuple[Path, list[str]]:
    """The snapshot and the files of it that belong to the model. What was begun is completed, unless the hub no longer
    has that commit."""
    from huggingface_hub.errors import RevisionNotFoundError

    if begun is not None:
        try:
            return _completed(source.name, begun.name)
        except RevisionNotFoundError as error:
            if _is_whole(begun):
                raise OSError(f"it has no commit {begun.name[:12]} any more") from error
    return _completed(source.name, source.revision)


def _completed(name: str, revision: str | None) -> tuple[Path, list[str]]:
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
    if ADAPTER_CONFIG in names:
        raise adapters_instead(name)
    beside = [one for one in names if BESIDE_WEIGHTS.fullmatch(one)]
    cached_files(name, beside, revision=folder.name)
    weights = _weights_of(folder, names)
    if not weights:
        raise no_safetensors(name, [one for one in names if one.endswith(PICKLES)])
    cached_files(name, weights, revision=folder.name)
    return folder, [*beside, *weights]


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
