"""The results of `bench` as tables for people, each followed by what limits, in words."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from agent.report.terminal import console_for

PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
PHASES = {
    "prefill": "reading the prompts",
    "matrix_products": "matrix products of the decode steps",
    "attention": "attention",
    "sampling": "drawing tokens",
    "rest_of_the_model": "the rest of the model",
    "rest": "outside of the model",
}


def print_tables(results: Mapping[str, Mapping[str, Any]]) -> None:
    """`results` by kind of benchmark."""
    console = console_for(sys.stdout)
    tables = {"machine": machine_table, "rollout": rollout_table, "train": train_table, "cycle": cycle_table}
    for kind, result in results.items():
        console.print(tables[kind](result))
        for line in words(kind, result):
            console.print(Text(line))
        console.print()


def words(kind: str, result: Mapping[str, Any]) -> Iterator[str]:
    """What follows a table."""
    if kind != "machine":
        yield result["limits"]
        if kind == "rollout":
            yield from (
                f"{name.replace('_', ' ')} could not be measured: {why}" for name, why in result["failed"].items()
            )
        return
    if result["healthy"]:
        yield "Nothing looks wrong with this machine."
    for finding in result["findings"]:
        yield f"warning: {finding['what']}"
        yield f"  {finding['do']}"


def quantity(value: float | None, unit: str) -> str:
    """`188 GFLOP/s`, `9.74 GB/s`; nothing for what is not known."""
    if value is None:
        return ""
    size, prefix = next(((size, prefix) for size, prefix in PREFIXES if abs(value) >= size), (1.0, ""))
    return f"{value / size:.3g} {prefix}{unit}" if value / size < 999.5 else f"{value / size:.0f} {prefix}{unit}"


def number(value: float | None, unit: str = "", digits: int = 3) -> str:
    """Three figures, and no exponent below a million."""
    if value is None:
        return ""
    text = f"{value:.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"
    return f"{text} {unit}".rstrip()


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _range(found: Mapping[str, Any], unit: str, *, scaled: bool) -> str:
    words_of = quantity if scaled else number
    return f"{words_of(found['lowest'], unit)} to {words_of(found['highest'], unit)}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place == 0 else "right")
    return table


def machine_table(result: Mapping[str, Any]) -> Group:
    return Group(_products_table(result), _rest_of_the_machine(result))


def _products_table(result: Mapping[str, Any]) -> Table:
    """A column for each type of number."""
    square = result["square"]
    types = list(square["flops_per_s"])
    table = _table(f"{result['machine']}, torch {result['torch']}", "matrix products", *types)
    found = [square["flops_per_s"][dtype] for dtype in types]
    table.add_row(f"{square['size']} x {square['size']}", *(quantity(one["median"], "FLOP/s") for one in found))
    table.add_row("  range", *(_range(one, "FLOP/s", scaled=True) for one in found))
    onednn = square["onednn_flops_per_s"]
    if onednn:
        table.add_row("  by oneDNN", *(quantity(onednn[t]["median"], "FLOP/s") if t in onednn else "" for t in types))
    by_type = result["model_products"] or {}
    for rows in next(iter(by_type.values()), {}):
        table.add_row(
            f"layers of the model, {rows} row{'s' * (rows != '1')}",
            *(quantity(by_type[dtype][rows], "FLOP/s") for dtype in types),
        )
    return table


def _rest_of_the_machine(result: Mapping[str, Any]) -> Table:
    table = Table(show_header=False)
    for name, found in result["bytes_per_s"].items():
        spread = f"{quantity(found['median'], 'B/s')} ({_range(found, 'B/s', scaled=True)})"
        table.add_row(f"memory, {name}", spread)
    trainer = result["trainer"]
    table.add_row("threads", f"{result['threads']} on {result['cores']} cores")
    table.add_row("instruction sets", " ".join(result["flags"]))
    table.add_row("speed after two seconds", f"{share(result['steady']['late_over_early'])} of the first")
    table.add_section()
    table.add_row("the trainer's arithmetic", trainer["dtype"])
    table.add_row("its attention", trainer["attention"])
    table.add_row("its environment", f"{trainer['environment_preset']} ({trainer['environment_why']})")
    return table


def rollout_table(result: Mapping[str, Any]) -> Table:
    title = (
        f"rollout: {result['prompts']} prompts x {result['samples_per_prompt']} samples, at most "
        f"{result['max_new_tokens']} tokens, {result['model']} in {result['dtype']} on {result['device']}"
    )
    table = _table(title, "useful tokens/s", "median", "range", "ours is")
    ours = result["useful_tokens_per_s"]
    for name, contender in result["contenders"].items():
        found = contender["tokens_per_s"]
        ratio = "" if name == "ours" else f"{ours / found['median']:.2f} x"
        table.add_row(name.replace("_", " "), number(found["median"]), _range(found, "", scaled=False), ratio)
    table.add_section()
    for key, what in (
        ("bound_tokens_per_s", "bound by the matrix products alone"),
        ("plain_bound_tokens_per_s", "  by torch's own linear layers"),
        ("packed_bound_tokens_per_s", "  by oneDNN with weights laid out beforehand"),
        ("compute_bound_tokens_per_s", "bound by the peak of products"),
        ("bandwidth_bound_tokens_per_s", "bound by reading weights and keys"),
    ):
        if result[key] is not None:
            ranged = _range(result["bound_repeats"], "", scaled=False) if key == "bound_tokens_per_s" else ""
            table.add_row(what, number(result[key]), ranged, share(ours / result[key]))
    table.add_section()
    phases = result["phases_s"]
    for key, what in PHASES.items():
        table.add_row(what, number(phases[key], "s"), "", share(phases[key] / phases["whole"]))
    return table


def train_table(result: Mapping[str, Any]) -> Table:
    title = (
        f"one update: {result['samples']} samples of {result['prompts']} prompts, {result['useful_tokens']} tokens "
        f"({result['completion_tokens']} with loss), {result['model']} in {result['dtype']} on {result['device']}"
    )
    table = _table(title, "", "ours", "transformers' Trainer")
    theirs = result["transformers"]
    rows = [
        ("seconds", number(result["train_s"], "s"), number(result["transformers_train_s"], "s")),
        ("ours is faster by", f"{result['speedup']:.2f} x" if result["speedup"] else "", ""),
        ("range", *(_range(one["seconds"], "s", scaled=False) if one else "" for one in (result["ours"], theirs))),
        ("matrix-product peak in this run", quantity(result["peak_flops_per_s"], "FLOP/s"), ""),
        ("useful operations", quantity(result["useful_flops"], "FLOP"), ""),
        ("  share of the peak", share(result["share_of_peak"]), share(result["transformers_share_of_peak"])),
        ("operations done", quantity(result["computed_flops"], "FLOP"), ""),
        ("  share of the peak", share(result["computed_share_of_peak"]), ""),
        ("tokens that went through the layers", number(result["forward_tokens"]), ""),
        (
            "peak memory",
            number(result["peak_memory_gb"], "GB"),
            number(result["transformers_peak_memory_gb"], "GB"),
        ),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def cycle_table(result: Mapping[str, Any]) -> Table:
    title = (
        f"cycle: {result['prompts']} prompts x {result['samples_per_prompt']} samples, an update on {result['kept']}, "
        f"{result['model']} in {result['dtype']} on {result['device']}"
    )
    table = _table(title, "", "median", "range", "of a cycle")
    phases = (
        ("generate_s", "generate"),
        ("verify_s", "wait for the verifier"),
        ("update_s", "update"),
        ("rest_s", "rest"),
        ("cycle_s", "cycle"),
    )
    for key, what in phases:
        found = result["phases"][key]
        part = share(found["median"] / result["cycle_s"])
        table.add_row(what, number(found["median"], "s"), _range(found, "s", scaled=False), part)
    table.add_section()
    table.add_row("generated tokens/s", number(result["generated_tokens_per_s"]), "", "")
    table.add_row("samples that passed", share(result["pass_rate"]), "", "")
    table.add_row("peak memory", number(result["peak_memory_gb"], "GB"), "", "")
    return table
