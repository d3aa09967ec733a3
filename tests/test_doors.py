"""What runs text as code, or reads what runs when it is read, is in no file of the package but those that say why."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

AGENT = Path(__file__).parent.parent / "agent"
FORBIDDEN = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve",
    "torch.load", "torch.save", "numpy.load", "np.load", "torch.hub.load", "pandas.read_pickle",
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.Loader", "yaml.UnsafeLoader",
    "yaml.FullLoader", "yaml.safe_load", "eval", "exec", "__import__", "os.system", "os.popen",
    "subprocess.getoutput", "subprocess.getstatusoutput", "builtins.eval", "builtins.exec", "runpy.run_path",
    "runpy.run_module", "importlib.import_module", "spec.loader.exec_module", "code.interact",
}  # fmt: skip
ALLOWED = {
    ("raft/let_in.py", "torch.load"): "it is replaced by a function that refuses",
    ("raft/standby.py", "importlib.import_module"): "names of modules that stand in that file",
    ("raft/quantized.py", "importlib.import_module"): "bitsandbytes, where it is installed",
    ("hardware/nvidia.py", "importlib.import_module"): "pynvml, where it is installed",
    ("run/mend.py", "importlib.import_module"): "a module of the standard library that its list of safe ones has",
    ("tasks/scorer_child.py", "spec.loader.exec_module"): "the user's own verifier, in a process of its own",
}
STARTS = {"run", "Popen", "call", "check_call", "check_output"}
SANDBOX = "tasks/box/"
"""What runs behind the walls of the sandbox, with tests of its own."""


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def found_in(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
            yield node.lineno, node.module or ""
        elif isinstance(node, ast.Name | ast.Attribute):
            yield node.lineno, dotted(node)
        elif isinstance(node, ast.Call):
            if dotted(node.func) == "compile":  # elsewhere the word is a key of the recipe
                yield node.lineno, "compile()"
            for keyword in node.keywords:
                value = keyword.value
                starts = dotted(node.func).rpartition(".")[2] in STARTS
                if starts and keyword.arg == "shell" and not (isinstance(value, ast.Constant) and value.value is False):
                    yield node.lineno, "shell=True"
                if keyword.arg in ("allow_pickle", "trust_remote_code") and (
                    isinstance(value, ast.Constant) and value.value is True
                ):
                    yield node.lineno, f"{keyword.arg}=True"


def refused(path: Path) -> list[tuple[int, str]]:
    tree = ast.parse(path.read_text())
    more = {"compile()", "shell=True", "allow_pickle=True", "trust_remote_code=True"}
    return [(line, name) for line, name in found_in(tree) if name in FORBIDDEN | more]


FILES = sorted(AGENT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(AGENT)))
def test_nothing_runs_text_as_code(path: Path) -> None:
    name = str(path.relative_to(AGENT))
    if name.startswith(SANDBOX):
        return
    wrong = [(line, what) for line, what in refused(path) if (name, what) not in ALLOWED]
    assert not wrong, f"{name} has {wrong}; if it must, add it to ALLOWED with the reason"


def test_every_exception_is_still_one() -> None:
    for name, what in ALLOWED:
        assert what in {found for _, found in refused(AGENT / name)}, f"{name} no longer has {what}: take it out"


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from pickle import loads", "torch.load(x)", "import yaml\nyaml.load(x, Loader=yaml.Loader)",
        "eval('1')", "exec(x)", "subprocess.run('x', shell=True)", "subprocess.run('x', shell=flag)", "os.system('x')",
        "np.load(x, allow_pickle=True)", "f.from_pretrained(x, trust_remote_code=True)", "load = torch.load",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.py").write_text(text)
    assert refused(tmp_path / "x.py")


def test_every_model_is_loaded_by_the_words_of_its_source() -> None:
    """`from_pretrained` asks on the terminal about a model's code, and takes a pickle, unless it is told not to."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                name = dotted(node.func)
                if node.func.attr == "from_pretrained" and "Peft" not in name:
                    words = ast.unparse(node)
                    assert "source.how" in words or "trust_remote_code=False" in words, f"{path}:{node.lineno}"
                    is_model = "ForCausalLM" in name and "gguf_file" not in words
                    assert not is_model or "source.how_weights" in words, f"{path}:{node.lineno}"
