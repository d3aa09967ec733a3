"""Matrix products: which ones a piece of work runs, and how long they, and nothing else, take on this machine.

`ProductRecorder` sees every product below autograd, autocast and whatever library calls it, so it needs to know
nothing about engine or learner. `timed_products` repeats recorded ones on weights of their own, as many as the model
has layers, so that caches are no warmer than in the model.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from agent.raft.bench_arithmetic import grid, interpolated, product_flops
from agent.raft.cpu_products import onednn_linear, packed_linear, works

MOST_ROW_COUNTS = 12
"""Row counts of one shape of weight that are timed; between them time is taken to be linear."""
WEIGHT_BYTES = 256e6
"""Of the weights of one shape that exist for the timing: more than a cache holds."""
PASSES = 3
BUFFER_BYTES, QUICK_BUFFER_BYTES = 512e6, 4e6
SDPA_PRODUCTS, SDPA_BACKWARD_PRODUCTS = 2, 5
"""Of the size queries x keys x head: scores and values; in the backward pass the scores once more, and four gradients
(arXiv 2205.14135, appendix B)."""


@dataclass(frozen=True)
class Product:
    """A (rows, inputs) by (inputs, outputs) product."""

    rows: int
    inputs: int
    outputs: int
    dtype: torch.dtype
    packed: bool = False
    """By a weight that oneDNN has laid out beforehand."""

    @property
    def weight(self) -> tuple[int, int, torch.dtype, bool]:
        return self.inputs, self.outputs, self.dtype, self.packed

    @property
    def weight_bytes(self) -> int:
        return self.inputs * self.outputs * self.dtype.itemsize


class ProductRecorder(TorchDispatchMode):
    """While it is active: every product of two matrices by size, and the operations of batched ones (attention)."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[Product] = Counter()
        self.attention_flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._count(str(func._schema.name), args, out)
        return out

    @property
    def flops(self) -> int:
        return self.product_flops + self.attention_flops

    @property
    def product_flops(self) -> int:
        counts: Counter[tuple[int, int, int]] = Counter()
        for product, times in self.products.items():
            counts[product.rows, product.inputs, product.outputs] += times
        return product_flops(counts)

    def _count(self, name: str, args: Any, out: Any) -> None:
        operation = name.split("::")[-1].rstrip("_")
        if operation in ("mm", "addmm"):
            left, right = args[-2:] if operation == "mm" else args[1:3]
            self.products[Product(left.shape[0], left.shape[1], right.shape[1], left.dtype)] += 1
        elif operation in ("bmm", "baddbmm"):
            left, right = args[-2:] if operation == "bmm" else args[1:3]
            self.attention_flops += 2 * left.numel() * right.shape[-1]
        elif "scaled_dot_product" in operation:
            backward = operation.endswith("backward")
            q, k = args[1:3] if backward else args[:2]
            size = q.numel() * k.shape[-2]
            self.attention_flops += 2 * size * (SDPA_BACKWARD_PRODUCTS if backward else SDPA_PRODUCTS)
        elif "linear" in operation and not operation.endswith("backward") and isinstance(out, Tensor):
            x, packed = args[0], operation != "linear"
            self.products[Product(x.numel() // x.shape[-1], x.shape[-1], out.shape[-1], x.dtype, packed)] += 1


# Time --------------------------------------------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time until the device has done it."""
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def best_seconds(work: Callable[[], object], device: torch.device, *, passes: int = PASSES) -> float:
    """The shortest of some repeats after one that is not counted: what the machine does when nothing disturbs it."""
    replay = _replayable(work, device)
    replay()
    return min(seconds_of(replay, device) for _ in range(passes))


def _replayable(work: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """On an NVIDIA card as a graph, because starting small kernels one by one takes longer than they do."""
    if device.type != "cuda" or torch.version.hip:
        return work
    work()  # libraries allocate their workspaces, which they must not do inside a graph
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


@torch.no_grad()
def timed_products(products: Collection[Product], *, layers: int, device: torch.device) -> dict[Product, float]:
    """Seconds of each product, by itself."""
    by_weight: dict[tuple[int, int, torch.dtype, bool], list[Product]] = defaultdict(list)
    for product in products:
        by_weight[product.weight].append(product)
    found: dict[Product, float] = {}
    for group in by_weight.values():
        copies = int(min(layers, max(1, WEIGHT_BYTES // group[0].weight_bytes)))
        known = {
            rows: _seconds(Product(rows, *group[0].weight), copies=copies, device=device)
            for rows in grid([product.rows for product in group], MOST_ROW_COUNTS)
        }
        found.update({product: interpolated(known, product.rows) for product in group})
    return found


def fastest_products(products: Collection[Product], *, layers: int, device: torch.device) -> dict[Product, float]:
    """Seconds of each product by the faster way: weights as they lie in memory or, on a CPU, as oneDNN has them."""
    plain = {replace(product, packed=False) for product in products}
    packed = {replace(product, packed=True) for product in products if device.type == "cpu" and works(product.dtype)}
    found = faster_ways(timed_products(plain | packed, layers=layers, device=device))
    return {product: found[replace(product, packed=False)] for product in products}


def faster_ways(seconds: Mapping[Product, float]) -> dict[Product, float]:
    """By product without regard to packing: the shorter of the times that are known."""
    found: dict[Product, float] = {}
    for product, time_taken in seconds.items():
        plain = replace(product, packed=False)
        found[plain] = min(time_taken, found.get(plain, time_taken))
    return found


def _seconds(product: Product, *, copies: int, device: torch.device) -> float:
    dtype = product.dtype
    x = torch.randn(product.rows, product.inputs, device=device).to(dtype)
    weights = [torch.randn(product.outputs, product.inputs, device=device).to(dtype) for _ in range(copies)]
    if product.packed:
        packed = [packed_linear(weight, None, rows=product.rows) for weight in weights]
        return best_seconds(lambda: [linear(x) for linear in packed], device) / copies
    return best_seconds(lambda: [torch.nn.functional.linear(x, w) for w in weights], device) / copies


def total_seconds(counts: Mapping[Product, int], seconds: Mapping[Product, float]) -> float:
    return sum(times * seconds[product] for product, times in counts.items())


# The machine's limits ----------------------------------------------------------------------------------------


def square_size(device: torch.device, *, quick: bool = False) -> int:
    """Rows and columns of the product that stands for the machine's peak."""
    if quick:
        return 256
    return 4096 if device.type == "cpu" else 8192


@torch.no_grad()
def square_flops(
    dtype: torch.dtype, device: torch.device, *, repeats: int, quick: bool = False
) -> dict[str, list[float]]:
    """Operations a second of one square product, by repeat: torch's own and, on a CPU, oneDNN's."""
    size = square_size(device, quick=quick)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    ways: dict[str, Callable[[], object]] = {"torch": lambda: torch.mm(left, right, out=out)}
    if device.type == "cpu" and works(dtype):
        ways["onednn"] = lambda: onednn_linear(left, right)
    found = {}
    for name, way in ways.items():
        way()
        found[name] = [2 * size**3 / seconds_of(way, device) for _ in range(repeats)]
    return found


def peak_flops(dtype: torch.dtype, device: torch.device, *, repeats: int, quick: bool = False) -> float:
    """Operations a second of the fastest repeat of either way."""
    return max(map(max, square_flops(dtype, device, repeats=repeats, quick=quick).values()))


@torch.no_grad()
def bandwidth(device: torch.device, *, repeats: int, quick: bool = False) -> dict[str, list[float]]:
    """Bytes a second, by repeat: read (a sum), copy (read and write), triad (read two, write one; STREAM's).

    The three buffers are larger than any cache, unless it has to be `quick`.
    """
    count = int((QUICK_BUFFER_BYTES if quick else BUFFER_BYTES) // 4)
    a, b, c = (torch.ones(count, device=device) for _ in range(3))
    work: dict[str, tuple[Callable[[], object], int]] = {
        "read": (lambda: a.sum(), 1),
        "copy": (lambda: b.copy_(a), 2),
        "triad": (lambda: torch.add(a, b, alpha=3.0, out=c), 3),
    }
    found = {}
    for name, (run, passes) in work.items():
        run()
        found[name] = [passes * 4 * count / seconds_of(run, device) for _ in range(repeats)]
    return found
