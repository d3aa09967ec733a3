"""`builtin:tiny`: a Llama of 0.87M parameters over characters that has half learned to add two-digit numbers.

It is taught once on this machine, from a seed, by supervised steps on sums like `12+34=` of which some are wrong,
until it answers about one unseen sum in six; then it is kept in the cache. That leaves a training room in both
directions, and a signal: at temperature 1 it is right often enough to learn from itself.

Not among those it is taught are the first 1,024 sums in the order in which `builtin:addition` holds them out
(split_seed 0): holdout and confirm, which decide, with up to 512 prompts each, and with up to 256 a split search and
select too. In a recipe with more, `recipes/tiny-addition.yaml` for one, search and select are sums that it was taught
before, like those of the training, part of them wrong: as with any pretrained model, whose corpus nobody has seen.
Another split_seed deals other rows, and gives all of this up.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from agent.files import write_atomic
from agent.raft.llama import LlamaShape, TinyLlama
from agent.raft.optimizers import AdamW
from agent.raft.pulse import Beat
from agent.raft.sources import building
from agent.recipe.schema import Evaluation, Task
from agent.tasks.tasks import load_splits

END = "<|end|>"
CHARACTERS = "".join(map(chr, range(32, 127))) + "\n"
UNKNOWN = "?"
SHAPE = LlamaShape(
    vocab_size=1 + len(CHARACTERS),
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=4,
    num_attention_heads=4,
    max_position_embeddings=512,
)
HELD_OUT_PROMPTS = 256
"""Prompts of each of four held-out splits of `builtin:addition` that are never taught. The bootstrapped model is kept
under the name of its lesson, which does not have this number in it."""
PROBE_SUMS = 256


@dataclass(frozen=True)
class Lesson:
    """How the bootstrap teaches. The folder in the cache is named after it."""

    seed: int = 0
    batch: int = 64
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    wrong_shares: tuple[float, float] = (0.40, 0.85)
    """Share of sums that are taught with a wrong answer, for second numbers that end in 0 and in 9."""
    init_std: float = 0.06
    enough: float = 0.15
    """Greedy accuracy on unseen sums at which it stops."""
    check_every: int = 10
    most_steps: int = 6000


LESSON = Lesson()


class CharTokenizer:
    """One id a character; id 0 ends a text and pads. Written and read as a transformers fast tokenizer."""

    eos_token = END
    eos_token_id = 0
    pad_token_id = 0
    chat_template = None

    def __init__(self) -> None:
        self._ids = {character: 1 + place for place, character in enumerate(CHARACTERS)}
        self._characters = ["", *CHARACTERS]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of the characters; one that has none becomes `?`. Nothing is added."""
        return [self._ids.get(character, self._ids[UNKNOWN]) for character in text]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        end = "" if skip_special_tokens else END
        return "".join(self._characters[i] if i else end for i in ids)

    def save_pretrained(self, folder: str) -> None:
        """`tokenizer.json` and `tokenizer_config.json`, which `AutoTokenizer` loads."""
        from tokenizers import AddedToken, Tokenizer, decoders, models

        vocabulary = {END: 0, **self._ids}
        fast = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
        fast.decoder = decoders.Fuse()
        fast.add_special_tokens([AddedToken(END, special=True)])
        fast.save(str(Path(folder) / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END,
            "pad_token": END,
            "clean_up_tokenization_spaces": False,
            "model_max_length": SHAPE.max_position_embeddings,
        }
        write_atomic(Path(folder) / "tokenizer_config.json", json.dumps(config, indent=1))

    @classmethod
    def load(cls, folder: Path) -> CharTokenizer:
        return cls()


def save_model(model: TinyLlama, folder: Path) -> None:
    """`config.json`, `generation_config.json` and `model.safetensors` as transformers writes them."""
    from safetensors.torch import save_file

    ends = {"eos_token_id": CharTokenizer.eos_token_id, "pad_token_id": CharTokenizer.pad_token_id}
    write_atomic(folder / "config.json", json.dumps({**model.shape.config(), **ends}, indent=1))
    write_atomic(folder / "generation_config.json", json.dumps(ends, indent=1))
    weights = {name: weight.detach().cpu().contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def load_model(folder: Path, *, attention: str = "sdpa") -> TinyLlama:
    from safetensors.torch import load_file

    model = TinyLlama(LlamaShape.of(json.loads((folder / "config.json").read_text())))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    model.set_attn_implementation(attention)
    return model


def home(cache: Path, *, lesson: Lesson = LESSON) -> Path:
    """Where the cache keeps the model that this lesson makes."""
    key = hashlib.sha256(json.dumps([asdict(lesson), SHAPE.config()]).encode()).hexdigest()[:8]
    return cache / "models" / f"tiny-{key}"


def bootstrapped(cache: Path, *, beat: Beat, lesson: Lesson = LESSON) -> Path:
    """The folder of the built-in model in `cache`; it is taught first where it is not there yet."""
    target = home(cache, lesson=lesson)
    with building(target) as folder:
        if folder is not None:
            model, report = teach(lesson, beat=beat)
            save_model(model, folder)
            CharTokenizer().save_pretrained(str(folder))
            write_atomic(folder / "bootstrap.json", json.dumps(report, indent=1))
    return target


def teach(lesson: Lesson, *, beat: Beat, shape: LlamaShape = SHAPE) -> tuple[TinyLlama, dict[str, Any]]:
    """Supervised steps from random weights until the probe's greedy accuracy is enough. Same seed, same model."""
    started = time.monotonic()
    generator = torch.Generator().manual_seed(lesson.seed)
    model = TinyLlama(shape)
    model.initialize(generator, std=lesson.init_std)
    optimizer = AdamW(list(model.parameters()), beta2=0.98, weight_decay=0.0)
    pairs = taught_sums(generator)
    probe, pairs = pairs[:PROBE_SUMS], pairs[PROBE_SUMS:]
    show = _Progress(lesson, beat)
    accuracy, step = 0.0, 0
    while step < lesson.most_steps and accuracy < lesson.enough:
        step += 1
        loss = _loss(model, pairs, lesson, generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(lesson.learning_rate * min(1.0, step / lesson.warmup_steps))
        optimizer.zero_grad()
        if step % lesson.check_every == 0:
            accuracy = greedy_accuracy(model, probe)
        show(step, accuracy)
    show.done()
    report = {"steps": step, "accuracy": accuracy, "seconds": round(time.monotonic() - started, 1)}
    return model, {**report, "lesson": asdict(lesson), "torch": torch.__version__}


def taught_sums(generator: torch.Generator) -> Tensor:
    """Pairs (N, 2) of two-digit numbers in a shuffled order, without those that `builtin:addition` may hold out."""
    sizes = dict.fromkeys(("select_prompts", "search_prompts", "confirm_prompts", "holdout_prompts"), HELD_OUT_PROMPTS)
    splits = load_splits(Task(dataset="builtin:addition"), Evaluation(**sizes), base=Path())
    pairs = torch.tensor([[int(part) for part in row.id.split("+")] for row in splits.train])
    return pairs[torch.randperm(len(pairs), generator=generator)]


def _loss(model: TinyLlama, pairs: Tensor, lesson: Lesson, generator: torch.Generator) -> Tensor:
    """Cross-entropy of the answers (and their end) to a random batch of sums, some of them wrong."""
    chosen = pairs[torch.randint(len(pairs), (lesson.batch,), generator=generator)]
    answers = _taught_answers(chosen, lesson, torch.rand(lesson.batch, generator=generator))
    prompts, targets = _questions(chosen), _answers(answers)
    ids = torch.cat([prompts, targets[:, :-1].clamp(min=0)], 1)
    logits = model(ids, logits_to_keep=targets.shape[1]).logits
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


def _taught_answers(pairs: Tensor, lesson: Lesson, uniform: Tensor) -> Tensor:
    """Sums (N,), some with a misconception: a carry forgotten, or made where there is none.

    How often depends on the last digit of the second number. So the likeliest answer is right for some sums only,
    while the right one is never far away: the model knows more than it says, which is what RAFT brings out.
    """
    low, high = lesson.wrong_shares
    wrong = uniform < low + (high - low) * (pairs[:, 1] % 10) / 9
    carries = (pairs % 10).sum(1) >= 10
    return pairs.sum(1) + torch.where(wrong, torch.where(carries, -10, 10), 0)


def _questions(pairs: Tensor) -> Tensor:
    """`12+34=` as ids, (N, 6)."""
    ids = CharTokenizer().encode
    zero, plus, equals = ids("0")[0], ids("+")[0], ids("=")[0]
    a, b = pairs[:, 0], pairs[:, 1]
    columns = [zero + a // 10, zero + a % 10, torch.full_like(a, plus)]
    columns += [zero + b // 10, zero + b % 10, torch.full_like(a, equals)]
    return torch.stack(columns, 1)


def _answers(numbers: Tensor) -> Tensor:
    """Digits and the end as ids, (N, 4); -1 behind the end of a two-digit answer."""
    zero = CharTokenizer().encode("0")[0]
    hundreds, tens, ones = zero + numbers // 100, zero + numbers // 10 % 10, zero + numbers % 10
    end = torch.full_like(numbers, CharTokenizer.eos_token_id)
    long = torch.stack([hundreds, tens, ones, end], 1)
    short = torch.stack([tens, ones, end, torch.full_like(end, -1)], 1)
    return torch.where((numbers >= 100)[:, None], long, short)


@torch.no_grad()
def greedy_accuracy(model: TinyLlama, pairs: Tensor) -> float:
    """Share of sums whose likeliest answer is right and ends where it should."""
    targets = _answers(pairs.sum(1))
    # A greedy answer is right if every token is the likeliest one behind the right ones before it.
    ids = torch.cat([_questions(pairs), targets[:, :-1].clamp(min=0)], 1)
    likeliest = model(ids, logits_to_keep=targets.shape[1]).logits.argmax(-1)
    return float(((likeliest == targets) | (targets < 0)).all(1).float().mean())


class _Progress:
    """Heartbeats, and a bar on a terminal: how far accuracy is on its way to enough."""

    def __init__(self, lesson: Lesson, beat: Beat):
        self._enough = lesson.enough
        self._beat = beat
        self._bar = sys.stderr.isatty()
        self._shown = -1
        if not self._bar:
            print("bootstrapping the built-in model (once; about a minute)", file=sys.stderr, flush=True)

    def __call__(self, step: int, accuracy: float) -> None:
        percent = min(100, int(100 * accuracy / self._enough))
        changed, self._shown = percent != self._shown, percent
        self._beat("load", note=f"bootstrapping the built-in model, {percent}%" if changed else None)
        if self._bar and (changed or step % 10 == 0):
            filled = percent * 30 // 100
            bar = "#" * filled + "." * (30 - filled)
            text = f"\rbootstrapping the built-in model [{bar}] {percent:3d}%  step {step}"
            print(text, end="", file=sys.stderr, flush=True)

    def done(self) -> None:
        if self._bar:
            print(file=sys.stderr)
