"""The doctor's measurements: matrix products and attention, each in a process of its own with a time limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from agent.hardware.measured import UNSET, Comparison
from agent.hardware.presets import AOTRITON, MEASURED_HERE
from agent.hardware.probe import Kind, ask_child, probe_command

LIMIT_S = 60.0
"""A process takes some seconds to import torch, and with ROCm some more to load its first kernels."""
BLAS = tuple(setting.name for setting in MEASURED_HERE)
COMPARED = (*BLAS, AOTRITON)
Variables = Mapping[str, str | None]
Ask = Callable[[Sequence[str], Variables], tuple[dict[str, Any], str | None]]
"""(arguments of agent.raft.doctor_checks, variables) -> (answer, why there is none)"""


@dataclass(frozen=True)
class Attention:
    """One implementation, as `agent.raft.doctor_checks` answers; `problem` says why it gave no answer."""

    name: str
    """`sdpa`, `eager`; on ROCm also `sdpa with AOTriton`."""
    answer: Mapping[str, Any]
    problem: str | None

    @property
    def failure(self) -> str | None:
        """In words, why it is not to be used; None where its numbers are good."""
        if self.problem is not None:
            return self.problem
        if not self.answer["finite"]:
            return "output or gradients not finite"
        if self.answer["error"] > self.answer["allowed"]:
            return f"off by {self.answer['error']:.1e} of the value, {self.answer['allowed']:.0e} is rounding"
        return None

    @property
    def seconds(self) -> float | None:
        """With a mask of its own, as a training on packed rows has."""
        return None if self.problem is not None else float(self.answer["seconds"]["packed"])


@dataclass(frozen=True)
class Trials:
    product: Mapping[str, Any]
    """Of `products`: size, and seconds by arithmetic; empty where it gave no answer."""
    product_problem: str | None
    attention: tuple[Attention, ...]
    comparisons: tuple[Comparison, ...]
    """For `agent.hardware.measured`; none where no variable matters."""

    def flops(self, dtype: str) -> float | None:
        seconds = (self.product.get("seconds") or {}).get(dtype)
        return 2 * self.product["size"] ** 3 / seconds if seconds else None


def measure(
    kind: Kind,
    *,
    ask: Ask | None = None,
    say: Callable[[str], None] = lambda what: None,
    today: Callable[[], str] = lambda: date.today().isoformat(),
) -> Trials:
    """On ROCm 8 processes, elsewhere 3. The variables that are compared are taken out of the shell's first."""
    ask = ask or _ask
    none: dict[str, str | None] = dict.fromkeys(COMPARED)
    say("a matrix product")
    product, problem = ask(["product"], none)
    attention = [_attention("eager", ask, none, say), _attention("sdpa", ask, none, say)]
    comparisons = []
    if kind == "rocm":
        attention.append(_attention("sdpa with AOTriton", ask, {**none, AOTRITON: "1"}, say))
        comparisons = [_compared_product(name, product, problem, ask, none, say, today()) for name in BLAS]
        comparisons.append(_compared_attention(*attention[1:], at=today()))
    return Trials(product, problem, tuple(attention), tuple(comparisons))


def _ask(arguments: Sequence[str], variables: Variables) -> tuple[dict[str, Any], str | None]:
    command = [*probe_command()[:-1], "agent.raft.doctor_checks", *arguments]
    return ask_child(command, timeout_s=LIMIT_S, variables=variables)


def _attention(name: str, ask: Ask, variables: Variables, say: Callable[[str], None]) -> Attention:
    say(f"attention: {name}")
    answer, problem = ask(["attention", "--implementation", name.partition(" ")[0]], variables)
    return Attention(name, answer, problem)


def _compared_product(
    name: str,
    unset: Mapping[str, Any],
    problem: str | None,
    ask: Ask,
    none: Variables,
    say: Callable[[str], None],
    at: str,
) -> Comparison:
    answers: dict[str, tuple[Mapping[str, Any], str | None]] = {UNSET: (unset, problem)}
    for value in ("0", "1"):
        say(f"a matrix product with {name}={value}")
        answers[value] = ask(["product"], {**none, name: value})
    size = next((answer["size"] for answer, failed in answers.values() if failed is None), "?")
    return Comparison(
        name,
        f"bfloat16 product of {size} x {size}",
        {value: None if failed else answer["seconds"]["bfloat16"] for value, (answer, failed) in answers.items()},
        {value: failed for value, (_, failed) in answers.items() if failed},
        at,
    )


def _compared_attention(without: Attention, with_it: Attention, *, at: str) -> Comparison:
    by_value = {UNSET: without, "1": with_it}
    return Comparison(
        AOTRITON,
        "attention forward and backward",
        {value: None if one.failure else one.seconds for value, one in by_value.items()},
        {value: one.failure for value, one in by_value.items() if one.failure},
        at,
    )
