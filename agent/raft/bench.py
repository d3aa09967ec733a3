"""`python -m agent.raft.bench KIND`: measures this machine, the engine, the learner, or whole cycles.

KIND is machine, rollout, train, cycle, or several with a comma. One JSON object comes on standard output: of one kind
its result, of several an object by kind; what goes on is told on standard error. Each part that computes runs in a
child process with the environment of the trainer, so that thread settings are the trainer's and each peak of memory
is its own. This process imports no torch.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from agent.errors import INTERRUPTED_EXIT_CODE, AgentError, error_named
from agent.package import of_ours
from agent.raft.bench_report import report_training
from agent.raft.bench_settings import BenchSettings, config_of, known_shape, recipe_of
from agent.raft.environment import apply_environment, trainer_environment
from agent.raft.sources import default_cache
from agent.recipe.shapes import shape_of

KINDS = ("machine", "rollout", "train", "cycle")
PROGRESS = "bench: "
"""Begins a line on standard error that is meant for people; all others are what libraries say."""
TAIL_LINES = 30
TIDY_SECONDS = 5.0
"""After the end of whoever asked: for ending the child and removing the scratch folder."""
UNEXPECTED_EXIT_CODE = 1


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    result_stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not come between the result and who reads it
    signal.signal(signal.SIGTERM, _interrupted)
    end_with_parent()
    code, result = _guarded(options)
    result_stream.write(json.dumps(result) + "\n")
    result_stream.close()
    return code


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m agent.raft.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kinds", nargs="?", default="machine,rollout", help=", ".join(KINDS))
    parser.add_argument("--settings", default="{}", metavar="JSON", help="fields of agent.raft.bench_settings")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder for models")
    parser.add_argument("--part", choices=sorted(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.kinds = options.kinds.split(",")
    if unknown := sorted(set(options.kinds) - set(KINDS)):
        parser.error(f"no such benchmark: {', '.join(unknown)}")
    return options


def _guarded(options: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    """(exit code, result or `{"error": ...}`)."""
    try:
        options.settings = BenchSettings.from_json(options.settings)
        if options.part:
            return 0, {"result": run_part(options)}
        return 0, run_kinds(options)
    except AgentError as error:
        told = {"exception": type(error).__name__, "message": error.message, "where": error.where, "hint": error.hint}
        return error.exit_code, {"error": told}
    except KeyboardInterrupt:
        return INTERRUPTED_EXIT_CODE, {"error": {"exception": "KeyboardInterrupt", "message": "stopped"}}
    except Exception as error:
        traceback.print_exc()
        return UNEXPECTED_EXIT_CODE, {"error": {"exception": type(error).__name__, "message": str(error)}}


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def end_with_parent() -> None:
    """A measurement that nobody waits for any more must not keep the machine busy, nor its files the disk."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(TIDY_SECONDS)
        os._exit(INTERRUPTED_EXIT_CODE)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()


def say(text: str) -> None:
    print(PROGRESS + text, file=sys.stderr, flush=True)


# The benchmarks --------------------------------------------------------------------------------------------------


def run_kinds(options: argparse.Namespace) -> dict[str, Any]:
    """Of one kind its result, of several the results by kind."""
    with tempfile.TemporaryDirectory(prefix="raft-bench-") as folder:
        bench = Bench(options.settings, cache=options.cache, scratch=Path(folder))
        results = {kind: {"bench": kind, **bench.run(kind)} for kind in options.kinds}
    return results[options.kinds[0]] if len(results) == 1 else results


class Bench:
    """Runs the parts of each kind, one child process after the other."""

    def __init__(self, settings: BenchSettings, *, cache: Path, scratch: Path):
        self.settings = settings
        self.cache = cache
        self.scratch = scratch
        self.named = settings.random_weights
        if self.named is not None:
            config_of(known_shape(self.named))  # refused before a process is started
            self.part("weights")
            self.settings = settings.on(scratch / WEIGHTS)

    def run(self, kind: str) -> dict[str, Any]:
        say(kind)
        result = self._train() if kind == "train" else self.part(kind)
        if self.named is not None:
            result["model"] = f"{self.named}, random weights"
        versions = {name: version(name) for name in ("torch", "transformers")}
        return {**result, "versions": versions, "measured_at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}

    def _train(self) -> dict[str, Any]:
        self.part("samples")
        ours = self.part("train-ours")
        theirs = self.part("train-theirs") if self.settings.compares else None
        samples = json.loads((self.scratch / SAMPLES).read_text(encoding="utf-8"))
        shape = shape_of(recipe_of(self.settings).model, cache=self.cache, base=Path.cwd()).shape
        return report_training(self.settings, samples, ours, theirs, shape)

    def part(self, name: str) -> dict[str, Any]:
        """The result of a part, run in a process of its own. Raises what it raised."""
        command = [sys.executable, "-m", "agent.raft.bench", "--part", name]
        command += ["--settings", self.settings.to_json(), "--cache", str(self.cache), "--scratch", str(self.scratch)]
        of_trainer = trainer_environment(recipe_of(self.settings).backend, cache=self.cache)
        code, output, said = _run(command, of_ours({**os.environ, **of_trainer}))
        answer: dict[str, Any] = json.loads(output) if output.strip() else {}
        if code == 0 and "result" in answer:
            result: dict[str, Any] = answer["result"]
            return result
        raise _failure(name, code, answer.get("error"), said)


def _run(command: list[str], environment: Mapping[str, str]) -> tuple[int, str, list[str]]:
    """(exit code, standard output, last lines of what libraries said). Progress is passed on."""
    child = subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said: list[str] = []
    reader = threading.Thread(target=_pass_on, args=(child.stderr, said), daemon=True)
    reader.start()
    try:
        assert child.stdout is not None
        output = child.stdout.read()
        child.wait()
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    reader.join(timeout=5.0)
    return child.returncode, output, said


def _pass_on(stream: IO[str], said: list[str]) -> None:
    for line in stream:
        if line.startswith(PROGRESS):
            print(line, end="", file=sys.stderr, flush=True)
        else:
            said.append(line.rstrip())
            del said[:-TAIL_LINES]


def _failure(name: str, code: int, told: Mapping[str, Any] | None, said: list[str]) -> AgentError | KeyboardInterrupt:
    """The error that a part ended with, as it raised it where it is one of ours."""
    if told and told["exception"] == "KeyboardInterrupt":
        return KeyboardInterrupt()
    if told:
        ours = error_named(told["exception"], told["message"], where=told.get("where"), hint=told.get("hint"))
        if ours is not None:
            return ours
    how = f"signal {-code} (9 is often a lack of memory)" if code < 0 else f"exit code {code}"
    why = f"{told['exception']}: {told['message']}" if told else how
    return AgentError(f"the part {name} of the benchmark ended with {why}", hint="\n  ".join(said[-12:]) or None)


# The parts, each in a process of its own ---------------------------------------------------------------------------

WEIGHTS, SAMPLES = "model", "samples.json"


def run_part(options: argparse.Namespace) -> dict[str, Any]:
    settings: BenchSettings = options.settings
    environment = apply_environment(recipe_of(settings).backend, cache=options.cache)
    os.environ.setdefault("TQDM_DISABLE", "1")
    return PARTS[options.part](settings, options.cache, options.scratch, environment)


def _weights(settings: BenchSettings, cache: Path, scratch: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """A model folder with random weights of a known shape and the tokenizer of the built-in model."""
    assert settings.random_weights is not None
    shape = known_shape(settings.random_weights)
    say(f"random weights of the shape of {settings.random_weights}")
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from agent.raft.tiny import CharTokenizer

    end = CharTokenizer.eos_token_id
    config = AutoConfig.for_model(
        shape.architecture, **config_of(shape), bos_token_id=end, eos_token_id=end, pad_token_id=end
    )
    torch.manual_seed(settings.seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(scratch / WEIGHTS)
    CharTokenizer().save_pretrained(str(scratch / WEIGHTS))
    return {}


def _machine(settings: BenchSettings, cache: Path, scratch: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    from agent.raft.bench_machine import measure_machine

    return measure_machine(settings, cache=cache, environment=environment, say=say)


def _rollout(settings: BenchSettings, cache: Path, scratch: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    from agent.raft.bench_rollout import measure_rollout

    return measure_rollout(settings, cache=cache, environment=environment, say=say)


def _cycle(settings: BenchSettings, cache: Path, scratch: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    from agent.raft.bench_cycle import measure_cycles

    return measure_cycles(settings, cache=cache, scratch=scratch, environment=environment, say=say)


def _samples(settings: BenchSettings, cache: Path, scratch: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    from agent.raft.bench_train import draw_samples

    samples = draw_samples(settings, cache=cache, say=say)
    (scratch / SAMPLES).write_text(json.dumps(samples), encoding="utf-8")
    return {"samples": len(samples)}


def _train_ours(settings: BenchSettings, cache: Path, scratch: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    from agent.raft.bench_train import read_samples, train_ours

    return train_ours(settings, read_samples(scratch / SAMPLES), cache=cache, say=say)


def _train_theirs(
    settings: BenchSettings, cache: Path, scratch: Path, environment: Mapping[str, str]
) -> dict[str, Any]:
    from agent.raft.bench_train import read_samples, train_theirs

    samples = read_samples(scratch / SAMPLES)
    return train_theirs(settings, samples, cache=cache, scratch=scratch / "trainer", say=say)


Part = Callable[[BenchSettings, Path, Path, Mapping[str, str]], dict[str, Any]]
PARTS: dict[str, Part] = {
    "weights": _weights,
    "machine": _machine,
    "rollout": _rollout,
    "cycle": _cycle,
    "samples": _samples,
    "train-ours": _train_ours,
    "train-theirs": _train_theirs,
}


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)
