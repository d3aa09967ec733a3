"""Edit a recipe's text by dotted key without losing a byte: comments, order and layout stay.

What this does not do: follow anchors (a text with aliases is refused, because one edit could change two keys), or look
whether the recipe that comes out is valid (`agent.recipe.files`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from agent.errors import RecipeError
from agent.recipe.reading import Yaml12Loader, read_yaml, yaml_error
from agent.recipe.schema import Recipe, Section


class Removed:
    """Stands for a value that is to be taken out of the file."""

    def __repr__(self) -> str:
        return "(removed)"


REMOVE = Removed()


def set_in(content: dict[str, Any], key: str, value: Any) -> None:
    """Set (or with REMOVE take out) a dotted key in nested dicts, in place."""
    *path, name = key.split(".")
    target = content
    for part in path:
        if not isinstance(target.get(part), dict):
            target[part] = {}
        target = target[part]
    if value is REMOVE:
        target.pop(name, None)
    else:
        target[name] = value


def edit_text(text: str, changes: Mapping[str, Any], *, where: str = "recipe") -> str:
    """Set dotted keys in YAML text; `REMOVE` takes a key out. Comments, order and every other byte stay.

    A key that the text lacks is added at the end of its section (it may so override one inherited by
    `extends`). Raises RecipeError for text with anchors or several documents.
    """
    given, expected = text, _content(text, where=where)
    edited: dict[str, Any] | None
    try:
        for key, value in changes.items():
            text = _remove(text, key) if value is REMOVE else _set(text, key, value)
            set_in(expected, key, value)
        edited = _content(text, where=where)
    except (RecipeError, yaml.YAMLError):  # an edit has made it no YAML
        edited = None
    if edited is None or _without_empty(edited) != _without_empty(expected):
        raise RecipeError(
            "this layout cannot be edited safely",
            where=where,
            hint="write sections in block style from the first column on, without tags and document marks"
            + ("" if given.endswith("\n") else ", and end the file with a newline"),
        )
    return text


def refuse_uneditable(text: str, *, where: str) -> None:
    """RecipeError where an idea could not be written into this recipe, whichever section it changes: better said before
    a campaign has measured its baseline."""
    sections = [
        name
        for name, field in Recipe.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    ]
    edit_text(text, {f"{name}.probe": 0 for name in sections}, where=where)


def _content(text: str, *, where: str) -> dict[str, Any]:
    try:
        for token in yaml.scan(text, Loader=Yaml12Loader):
            if isinstance(token, yaml.AliasToken | yaml.AnchorToken):
                raise RecipeError(
                    "anchors and aliases cannot be edited",
                    where=f"{where}:{token.start_mark.line + 1}",
                    hint="write the values out",
                )
    except yaml.YAMLError as error:
        raise yaml_error(error, where=where, text=text) from None
    content = read_yaml(text, where=where)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise RecipeError("a recipe is a mapping of keys", where=where)
    return content


def _without_empty(value: Any) -> Any:
    """Sections that removal has emptied count as absent when texts are compared."""
    if isinstance(value, dict):
        cleaned = {key: _without_empty(inner) for key, inner in value.items()}
        return {key: inner for key, inner in cleaned.items() if inner != {}}
    return value


def _locate(
    text: str, parts: list[str]
) -> tuple[list[tuple[yaml.MappingNode, yaml.Node, yaml.Node]], yaml.Node | None]:
    """The chain of (mapping, key node, value node) along `parts` as far as it exists, and the root node."""
    root = yaml.compose(text, Loader=Yaml12Loader)
    chain: list[tuple[yaml.MappingNode, yaml.Node, yaml.Node]] = []
    node: yaml.Node | None = root
    for part in parts:
        if not isinstance(node, yaml.MappingNode):
            break
        match = next(((key, value) for key, value in node.value if key.value == part), None)
        if match is None:
            break
        chain.append((node, *match))
        node = match[1]
    return chain, root


def _set(text: str, key: str, value: Any) -> str:
    parts = key.split(".")
    chain, root = _locate(text, parts)
    if len(chain) == len(parts):
        return _replace_value(text, chain[-1][2], chain[-1][1], _inline(value))
    container = chain[-1][2] if chain else root
    rest = parts[len(chain) :]
    if container is None:
        return _joined(text, _block_lines(rest, value, indent=0, newline=_newline(text)), _newline(text))
    if not isinstance(container, yaml.MappingNode):
        nested: Any = value
        for part in reversed(rest):
            nested = {part: nested}
        return _replace_value(text, container, chain[-1][1], _inline(nested))
    if container.flow_style:
        return _insert_in_flow(text, container, rest, value)
    if not chain:
        return _joined(text, _block_lines(rest, value, indent=0, newline=_newline(text)), _newline(text))
    return _insert_in_block(text, container, rest, value)


def _replace_value(text: str, node: yaml.Node, key_node: yaml.Node, rendered: str) -> str:
    start, end = node.start_mark.index, _end(text, node)
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        return text[:start] + rendered + text[end:]
    if node.start_mark.line != key_node.end_mark.line:
        start = text.index(":", key_node.end_mark.index) + 1  # a block collection: back to its key's line
        beside = text[start : text.index("\n", start)].rstrip("\r")
        rendered = f" {rendered}{beside if beside.lstrip().startswith('#') else ''}"
    elif start == end and not text[:start].endswith(" "):
        rendered = " " + rendered  # `key:` with nothing after it
    return text[:start] + rendered + text[end:]


def _end(text: str, node: yaml.Node) -> int:
    """Index just past the node's own last character (PyYAML's end of a block runs on to the next token)."""
    if isinstance(node, yaml.ScalarNode):
        end = int(node.end_mark.index)
        if node.style in ("|", ">"):
            return len(text[:end].rstrip("\r\n")) if text[:end].strip() else end
        return end
    if getattr(node, "flow_style", False) or not node.value:
        return int(node.end_mark.index)
    last: Any = node.value[-1]
    if not isinstance(last, tuple):
        return _end(text, last)
    key_node, value_node = last
    return max(_end(text, value_node), int(key_node.end_mark.index) + 1)


def _insert_in_block(text: str, mapping: yaml.MappingNode, rest: list[str], value: Any) -> str:
    newline = _newline(text)
    at = _end(text, mapping)
    line_end = text.find("\n", at)
    lines = _block_lines(rest, value, indent=mapping.start_mark.column, newline=newline)
    if line_end < 0:
        return text + newline + lines
    return text[: line_end + 1] + lines + text[line_end + 1 :]


def _insert_in_flow(text: str, mapping: yaml.MappingNode, rest: list[str], value: Any) -> str:
    nested: Any = value
    for part in reversed(rest[1:]):
        nested = {part: nested}
    entry = f"{rest[0]}: {_inline(nested)}"
    if mapping.value:
        at = _end(text, mapping.value[-1][1])
        return text[:at] + f", {entry}" + text[at:]
    at = mapping.start_mark.index + 1
    return text[:at] + entry + text[at:]


def _remove(text: str, key: str) -> str:
    parts = key.split(".")
    chain, _ = _locate(text, parts)
    if len(chain) < len(parts):
        return text
    mapping, key_node, value_node = chain[-1]
    if len(mapping.value) == 1 and len(parts) > 1:
        return _remove(text, ".".join(parts[:-1]))  # an empty section would read as null
    start, end = key_node.start_mark.index, _end(text, value_node)
    if mapping.flow_style:
        after = re.match(r"\s*,\s*", text[end:])
        if after:
            return text[:start] + text[end + after.end() :]
        before = re.search(r"\s*,\s*$", text[:start])
        return text[: before.start() if before else start] + text[end:]
    line_start = text.rfind("\n", 0, start) + 1
    line_end = text.find("\n", max(end, key_node.end_mark.index))
    return text[:line_start] + (text[line_end + 1 :] if line_end >= 0 else "")


def _block_lines(parts: list[str], value: Any, *, indent: int, newline: str) -> str:
    lines = [f"{' ' * (indent + 2 * depth)}{part}:" for depth, part in enumerate(parts)]
    lines[-1] += " " + _inline(value)
    return newline.join(lines) + newline


def _joined(text: str, lines: str, newline: str) -> str:
    return text + ("" if not text or text.endswith("\n") else newline) + lines


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _inline(value: Any) -> str:
    """One line of YAML that any 1.1 or 1.2 reader takes for this value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_string(str(k))}: {_inline(v)}" for k, v in value.items()) + "}"
    return "[" + ", ".join(_inline(item) for item in value) + "]"


def _float(value: float) -> str:
    text = repr(value)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")  # YAML 1.1 readers want the point
    return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(text, text)


def _string(value: str) -> str:
    plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", value)
    if plain and value.lower() not in {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}:
        return value
    return '"' + "".join(_escaped(character) for character in value) + '"'


def _escaped(character: str) -> str:
    """A character as YAML's double quotes take it; JSON's surrogate pairs would not be read as one."""
    if character in '"\\':
        return "\\" + character
    if character == "\n":
        return "\\n"
    if character == " " or (character.isprintable() and character not in "\ufeff\ufffe\uffff"):
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
