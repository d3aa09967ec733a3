"""Models of the hub. One that is on this machine is used as it is: what is measured must not change with what others
push meanwhile. The hub is asked for what is not here whole, and from then on the model is that of one commit. Not
seen: a small file (a chat template, say) that another program's interrupted download left out, where all weights are
here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from agent.errors import Unavailable
from agent.raft.let_in import (
    CONFIG,
    PICKLES,
    WEIGHTS,
    WEIGHTS_INDEX,
    Source,
    check_config,
    json_of,
    no_safetensors,
    reading,
    refuse_parts,
)

BESIDE_WEIGHTS = re.compile(
    r"[^/]+\.(json|jinja|txt|model|tiktoken|bpe|vocab|spm)|tokenizer\.model[^/]*|additional_chat_templates/[^/]+\.jinja"
)
"""Files of a repository that transformers may read besides weights: configurations, vocabularies, chat templates."""
VOCABULARIES = re.compile(
    r"(tokenizer|tekken)\.json|vocab\.txt|[^/]+\.(model|tiktoken|vocab|spm)|tokenizer\.model[^/]*"
)
"""Any one of them makes a tokenizer; `vocab.json` needs `merges.txt` beside it."""
HUB_CLIENTS = ("huggingface_hub", "httpx", "httpx2")


def from_hub(source: Source) -> Source:
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
    check_config(said, where=source.name)
    check_config(get_tokenizer_config(source.name, revision=source.revision), where=source.name)
    AutoConfig.from_pretrained(source.name, **source.how)
    return source


def _refuse_config_of(folder: Path, source: Source) -> None:
    from transformers import AutoConfig

    check_config(json_of(folder / CONFIG), where=source.name)
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
    named = json_of(folder / CONFIG).get("transformers_weights")
    choice = [str(named)] if named is not None else [WEIGHTS, WEIGHTS_INDEX]
    found = next((name for name in choice if name in names), None)
    if found is None or not found.endswith(".index.json"):
        return [] if found is None else [found]
    parts = json_of(folder / found).get("weight_map")
    wanted = sorted({str(part) for part in parts.values()}) if isinstance(parts, Mapping) else []
    refuse_parts(wanted, where=f"{folder.name}/{found}")
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
        raise no_safetensors(name, [one for one in names if one.endswith(PICKLES)])
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
