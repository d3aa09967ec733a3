from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import NumericError
from agent.raft.learner import Trainer
from agent.raft.loss import Targets, loss_of_hidden, loss_of_logits, objective
from agent.raft.microbatch import TrainingSample, choose_shape, collate, plan_steps
from agent.raft.optimizers import AdamW, build_optimizer
from agent.raft.policy import Policy
from agent.raft.pulse import EndTraining
from agent.recipe.schema import Learner


def sample(policy: Policy, question: str, answer: str, *, sign: int = 1) -> TrainingSample:
    """A completion that ends with the stop token, with the model's own log-probabilities as the sampler's."""
    prompt = policy.tokenizer.encode(question)
    completion = [*policy.tokenizer.encode(answer), policy.tokenizer.eos_token_id]
    return TrainingSample(prompt, completion, token_logprobs(policy, prompt, completion), sign)


@torch.no_grad()
def token_logprobs(policy: Policy, prompt: list[int], completion: list[int]) -> list[float]:
    """By hand: softmax of the logits at each position but the last, for the token that follows."""
    ids = torch.tensor([prompt + completion])
    logits = policy.model(ids).logits[0].double()
    values = []
    for place in range(len(prompt), ids.shape[1]):
        row = logits[place - 1]
        values.append(float(row[ids[0, place]] - torch.log(torch.exp(row - row.max()).sum()) - row.max()))
    return values


def learner(**over: Any) -> Learner:
    return Learner(**{"learning_rate": 1e-3, **over})


def constant(_: float) -> float:
    return 1e-3


def test_loss_is_that_of_completion_tokens_only(policy: Policy) -> None:
    samples = [sample(policy, "12+34=", "46"), sample(policy, "77+55=", "132"), sample(policy, "1+1=", "2")]
    by_hand = -sum(math.fsum(s.logprobs) for s in samples) / (3 + 4 + 2)
    report = Trainer(policy, learner()).train(samples, learning_rate=constant, seed=0)
    assert report.row()["loss"] == pytest.approx(by_hand, abs=1e-5)
    assert report.tokens == 9
    assert report.row()["logprob_gap"] == pytest.approx(0.0, abs=1e-5)


def test_padding_share_counts_what_the_forward_pass_ran_over(policy: Policy) -> None:
    samples = [sample(policy, "12+34=", "46"), sample(policy, "77+55=", "132"), sample(policy, "1+1=", "2")]
    report = Trainer(policy, learner(packing=False)).train(samples, learning_rate=constant, seed=0)
    assert report.row()["padding_share"] == pytest.approx(1 - (9 + 10 + 6) / 30)
    packed = Trainer(policy, learner()).train(samples, learning_rate=constant, seed=0)
    assert packed.row()["padding_share"] == 0


def test_the_gradient_does_not_depend_on_microbatches_or_packing(policy: Policy) -> None:
    sums = [(12, 34, 46), (12, 34, 36), (77, 55, 132), (10, 10, 20), (99, 1, 100), (77, 55, 1), (5, 6, 11)]
    samples = [sample(policy, f"{a}+{b}=", str(answer)) for a, b, answer in sums]
    start = policy.snapshot()
    losses, weights = [], []
    for over in (
        {"microbatch_tokens": 4096, "packing": False},
        {"microbatch_tokens": 20, "packing": False, "gradient_accumulation": 100},
        {"microbatch_tokens": 4096, "packing": True},
        {"microbatch_tokens": 24, "packing": True, "gradient_accumulation": 100},
    ):
        policy.restore(start)
        report = Trainer(policy, learner(optimizer="sgd", max_grad_norm=1e6, **over)).train(
            samples, learning_rate=lambda _: 1.0, seed=0
        )
        assert report.steps == 1
        losses.append(report.loss_sum / report.tokens)
        weights.append(policy.snapshot())
    assert losses == pytest.approx([losses[0]] * 4, abs=1e-6)
    for other in weights[1:]:
        for name, weight in weights[0].items():
            torch.testing.assert_close(other[name], weight, atol=2e-6, rtol=2e-5)
    assert any((weights[0][name] != start[name]).any() for name in start)


def test_a_sample_in_a_packed_row_does_not_see_the_one_before_it(policy: Policy) -> None:
    first, second = sample(policy, "12+34=", "46"), sample(policy, "77+55=", "132")
    packed = collate([first, second], shape="tree", policy=policy)
    assert packed.positions.tolist() == [[*range(6), *range(6), 6, 7, 6, 7, 8]]
    assert packed.layout is not None
    with torch.no_grad():
        arguments = policy.laid_out(packed.ids, packed.positions, packed.layout)
        logits = policy.model(**arguments).logits[0, packed.predicting][3:]
        alone = policy.model(torch.tensor([second.prompt + second.completion])).logits[0, 5:-1]
    torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-4)


def test_what_samples_share_is_computed_once(policy: Policy) -> None:
    """Four samples of two prompts that share ten tokens: 10 + 2 * 4 + the completions without their last tokens."""
    samples = [sample(policy, f"1+2+3+4+5+{q}=", a) for q in ("12", "99") for a in ("27", "114")]
    batch = collate(samples, shape="tree", policy=policy)
    assert batch.forward_tokens == 10 + 2 * 3 + 2 * (2 + 3)
    assert batch.real_tokens == 4 * 13 + 2 * (3 + 4)
    report = Trainer(policy, learner(optimizer="sgd")).train(samples, learning_rate=lambda _: 0.0, seed=0)
    assert report.loss_sum == pytest.approx(-math.fsum(p for s in samples for p in s.logprobs), abs=1e-4)


def test_targets_are_the_sampled_ids_and_the_stop_token_is_one_of_them(policy: Policy) -> None:
    """Here the pad token is the stop token, the case in which masking pads forgets to teach stopping."""
    assert policy.pad_id == policy.tokenizer.eos_token_id
    one, two = sample(policy, "12+34=", "46"), sample(policy, "77+55=", "132")
    batch = collate([one, two], shape="padded", policy=policy)
    assert batch.targets.token.tolist() == one.completion + two.completion
    assert batch.targets.token.tolist().count(policy.pad_id) == 2
    assert batch.ids.flatten()[batch.predicting + 1].tolist() == batch.targets.token.tolist()
    tree = collate([one, two], shape="tree", policy=policy)
    assert tree.targets.token.tolist() == batch.targets.token.tolist()


def test_stopping_is_learned_where_pad_equals_eos(policy: Policy) -> None:
    question = policy.tokenizer.encode("12+34=")
    ended = TrainingSample(question, [*policy.tokenizer.encode("46"), 0], [0.0] * 3)
    before = token_logprobs(policy, question, ended.completion)[-1]
    trainer = Trainer(policy, learner())
    for cycle in range(10):
        trainer.train([ended], learning_rate=constant, seed=cycle)
    assert token_logprobs(policy, question, ended.completion)[-1] > max(before, -0.5)


def test_raftpp_and_reinforce_rej_on_a_hand_example() -> None:
    """Ratios 1.5, 0.5, 1.1 on two positives and, the same again, on negatives; clip range 0.2.

    A = +1: min(1.5, 1.2) = 1.2 clipped; min(0.5, 0.8) = 0.5 free; min(1.1, 1.1) = 1.1 free.
    A = -1: min(-1.5, -1.2) = -1.5 free; min(-0.5, -0.8) = -0.8 clipped; min(-1.1, -1.1) = -1.1 free.
    """
    sampled = torch.full((6,), -2.0)
    ratio = torch.tensor([1.5, 0.5, 1.1, 1.5, 0.5, 1.1])
    logprob = sampled + ratio.log()
    sign = torch.tensor([1.0, 1, 1, -1, -1, -1])
    for algorithm in ("raft++", "reinforce_rej"):
        value, clipped = objective(logprob, targets(sampled, sign), learner(algorithm=algorithm, clip_range=0.2))
        assert value.tolist() == pytest.approx([-1.2, -0.5, -1.1, 1.5, 0.8, 1.1])
        assert clipped.tolist() == [True, False, False, False, True, False]
    plain, _ = objective(logprob, targets(sampled, sign.abs()), learner(algorithm="raft"))
    assert plain.tolist() == pytest.approx((-logprob).tolist())


def test_a_clipped_token_has_no_gradient() -> None:
    logprob = torch.tensor([-1.0, -3.0], requires_grad=True)
    value, _ = objective(logprob, targets(torch.tensor([-2.0, -2.9]), torch.ones(2)), learner(algorithm="raft++"))
    value.sum().backward()
    assert logprob.grad is not None
    assert logprob.grad[0] == 0
    assert float(logprob.grad[1]) == pytest.approx(-math.exp(-0.1), rel=1e-6)


def targets(sampled: torch.Tensor, sign: torch.Tensor) -> Targets:
    return Targets(torch.zeros(len(sign), dtype=torch.long), sampled, sign)


@pytest.mark.parametrize("algorithm", ["raft", "raft++", "reinforce_rej"])
@pytest.mark.parametrize("bias", [False, True])
def test_the_chunked_head_has_the_loss_and_gradients_of_plain_autograd(
    algorithm: str, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """600 tokens in three chunks of some pieces each, with ratios on both sides of the clip."""
    monkeypatch.setattr("agent.recipe.memory.LOSS_LOGITS", 256 * 50)
    monkeypatch.setattr("agent.raft.loss.CACHED_BYTES", 100 * 50 * 4)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    token = torch.randint(50, (600,), generator=generator)
    leaves = [draw(600, 16), draw(50, 16), draw(50)]
    sampled = torch.log_softmax(leaves[0] @ leaves[1].t(), -1).gather(1, token[:, None])[:, 0] + 0.3 * draw(600)
    wanted = Targets(token, sampled, draw(600).sign())
    results = []
    for chunked in (False, True):
        hidden, weight, offset = (leaf.clone().requires_grad_() for leaf in leaves)
        used = offset if bias else None
        if chunked:
            result = loss_of_hidden(hidden, weight, used, wanted, learner(algorithm=algorithm))
        else:
            logits = torch.nn.functional.linear(hidden, weight, used)
            result = loss_of_logits(logits, wanted, learner(algorithm=algorithm))
        (result.objective / 7).backward()
        gradients = [leaf.grad for leaf in (hidden, weight, *([offset] if bias else []))]
        results.append((result.objective.detach(), result.logprob, result.clipped, *gradients))
    assert algorithm == "raft" or 0 < results[0][2].float().mean() < 1
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def test_the_chunked_head_is_as_exact_in_bfloat16_as_its_products() -> None:
    """Against float32: log-probabilities to the rounding of the logits, gradients to that of the factors."""
    generator = torch.Generator().manual_seed(0)
    token = torch.randint(500, (300,), generator=generator)
    leaves = [torch.randn(300, 64, generator=generator), 0.2 * torch.randn(500, 64, generator=generator)]
    wanted = Targets(token, torch.zeros(300), torch.ones(300))
    found = []
    for narrow in (False, True):
        hidden, weight = (leaf.clone().requires_grad_() for leaf in leaves)
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            result = loss_of_hidden(hidden, weight, None, wanted, learner())
        result.objective.backward()
        assert hidden.grad is not None
        assert weight.grad is not None
        found.append((result.logprob, hidden.grad, weight.grad))
    for exact, rounded in zip(*found, strict=True):
        assert rounded.dtype == torch.float32
        assert float((rounded - exact).norm() / exact.norm()) < 0.01


def test_the_shape_of_microbatches_follows_the_model_and_says_why(policy: Policy) -> None:
    assert choose_shape(policy, learner(), compile_step=False)[0] == "tree"
    assert choose_shape(policy, learner(packing=False), compile_step=False) == ("padded", "learner.packing is false")
    assert choose_shape(policy, learner(), compile_step=True)[0] == "padded"
    policy.layout_why_not = "a reason"
    assert choose_shape(policy, learner(), compile_step=False) == ("padded", "a reason")


def test_the_first_raftpp_step_has_the_gradient_of_raft(policy: Policy) -> None:
    samples = [sample(policy, "12+34=", "46"), sample(policy, "77+55=", "132")]
    start = policy.snapshot()
    after = []
    for algorithm in ("raft", "raft++"):
        policy.restore(start)
        Trainer(policy, learner(algorithm=algorithm, optimizer="sgd")).train(
            samples, learning_rate=lambda _: 1.0, seed=0
        )
        after.append(policy.snapshot())
    for name in start:
        torch.testing.assert_close(after[0][name], after[1][name], atol=1e-5, rtol=1e-4)


def test_a_negative_lowers_the_probability_of_its_tokens(policy: Policy) -> None:
    bad = sample(policy, "12+34=", "99", sign=-1)
    before = math.fsum(bad.logprobs)
    trainer = Trainer(policy, learner(algorithm="reinforce_rej"))
    trainer.train([bad], learning_rate=constant, seed=0)
    assert math.fsum(token_logprobs(policy, bad.prompt, bad.completion)) < before


def test_optimizer_moments_live_across_cycles(policy: Policy) -> None:
    samples = [sample(policy, "12+34=", "46")]
    trainer = Trainer(policy, learner())
    assert isinstance(trainer.optimizer, AdamW)
    trainer.train(samples, learning_rate=constant, seed=0)
    first = [m.clone() for m in trainer.optimizer.first]
    assert any(m.abs().sum() > 0 for m in first)
    trainer.train(samples, learning_rate=lambda _: 0.0, seed=1)
    assert trainer.optimizer.steps == trainer.updates == 2
    # The second cycle's first moment is 0.9 of the first cycle's plus a tenth of the new gradient, which (clipped
    # to norm 1) is no larger than 1: without memory it would be that tenth alone.
    kept = math.sqrt(
        sum(float((m - 0.9 * f).pow(2).sum()) for m, f in zip(trainer.optimizer.first, first, strict=True))
    )
    assert kept <= 0.1 + 1e-6


@pytest.mark.parametrize("fused", [False, True])
def test_adamw_is_torchs_adamw(fused: bool) -> None:
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(5, 3)), torch.nn.Parameter(torch.randn(3))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    mine = build_optimizer(learner(weight_decay=0.1, beta2=0.98), ours, fused=fused)
    reference = torch.optim.AdamW(theirs, lr=1.0, betas=(0.9, 0.98), weight_decay=0.1)
    for step in range(5):
        lr = 0.01 / (step + 1)
        reference.param_groups[0]["lr"] = lr
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        mine.step(lr)
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["adamw", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sgd", "adafactor"))]
)
def test_a_restored_optimizer_goes_on_as_if_nothing_had_happened(policy: Policy, name: str) -> None:
    samples = [sample(policy, "12+34=", "46"), sample(policy, "77+55=", "132")]
    trainer = Trainer(policy, learner(optimizer=name))
    trainer.train(samples, learning_rate=constant, seed=0)
    middle, state = policy.snapshot(), trainer.state_dict()
    state = torch.load(_written(state), weights_only=True)
    trainer.train(samples, learning_rate=constant, seed=1)
    straight = policy.snapshot()
    policy.restore(middle)
    again = Trainer(policy, learner(optimizer=name))
    again.load_state_dict(state)
    again.train(samples, learning_rate=constant, seed=1)
    assert again.updates == 2
    assert all(torch.equal(weight, straight[key]) for key, weight in policy.snapshot().items())


def _written(state: dict[str, Any]) -> Any:
    import io

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_a_loss_that_is_not_finite_stops_before_the_step(policy: Policy) -> None:
    trainer = Trainer(policy, learner())
    good = sample(policy, "12+34=", "46")
    trainer.train([good], learning_rate=constant, seed=0)
    with torch.no_grad():
        policy.model.model.norm.weight[0] = float("nan")
    poisoned = policy.snapshot()
    with pytest.raises(NumericError, match="loss is nan at optimizer step 2"):
        trainer.train([good], learning_rate=constant, seed=1)
    assert trainer.updates == 1
    assert all(torch.equal(w, poisoned[name]) or name.endswith("norm.weight") for name, w in policy.snapshot().items())


def test_gradients_are_clipped_and_the_share_of_clipped_steps_is_told(policy: Policy) -> None:
    samples = [sample(policy, "12+34=", "46")]
    start = policy.snapshot()
    report = Trainer(policy, learner(optimizer="sgd", max_grad_norm=0.01)).train(
        samples, learning_rate=lambda _: 1.0, seed=0
    )
    moved = math.sqrt(sum(float((w - start[name]).pow(2).sum()) for name, w in policy.snapshot().items()))
    assert moved == pytest.approx(0.01, rel=1e-3)
    assert report.row()["clip_share"] == 1.0
    assert report.grad_norm is not None
    assert report.grad_norm > 0.01


lengths = st.tuples(st.integers(0, 3), st.integers(1, 30), st.integers(1, 30))


@given(st.lists(lengths, max_size=40), st.integers(16, 200), st.integers(1, 4))
def test_steps_are_even_and_microbatches_obey_the_token_limit(
    sizes: list[tuple[int, int, int]], limit: int, accumulation: int
) -> None:
    samples = [TrainingSample([name] * p, [2] * c, [0.0] * c) for name, p, c in sizes]
    settings = learner(microbatch_tokens=limit, gradient_accumulation=accumulation)
    longest, tokens = max(map(len, samples), default=0), sum(map(len, samples))
    counts = set()
    for shape in ("padded", "tree", "row"):
        steps = plan_steps(samples, settings, shape=shape, seed="s")
        assert sorted(map(id, (s for step in steps for g in step for s in g))) == sorted(map(id, samples))
        sums = [sum(len(s) for g in step for s in g) for step in steps]
        counts.add(tuple(sums))
        # As few steps as the limit asks for; each at most one sample above an even share.
        assert len(steps) <= -(-tokens // (limit * accumulation))
        assert all(0 < used < tokens / len(steps) + longest for used in sums)
        for group in (g for step in steps for g in step):
            cost = max(map(len, group)) * len(group) if shape == "padded" else sum(map(len, group))
            assert len(group) == 1 or cost <= limit
    # How samples lie in microbatches does not decide what an optimizer step consists of.
    assert len(counts) == 1


def test_what_is_left_over_is_no_step_of_its_own() -> None:
    samples = [TrainingSample([n] * 6, [2] * 4, [0.0] * 4) for n in range(11)]

    def sizes(**settings: Any) -> list[list[int]]:
        steps = plan_steps(samples, learner(**settings), shape="tree", seed="s")
        return [[len(group) for group in step] for step in steps]

    assert sizes(microbatch_tokens=100) == [[6], [5]]
    assert sizes(microbatch_tokens=50, gradient_accumulation=2) == [[3, 3], [5]]
    assert sizes(microbatch_tokens=40, gradient_accumulation=4) == [[4, 4, 3]]


def test_samples_of_a_prompt_stay_together_and_epochs_differ_in_order() -> None:
    samples = [TrainingSample([prompt] * 5, [n] * 5, [0.0] * 5) for n in range(3) for prompt in range(8)]
    orders = []
    for seed in ("1", "2"):
        steps = plan_steps(samples, learner(microbatch_tokens=60), shape="tree", seed=seed)
        orders.append([s.prompt[0] for step in steps for g in step for s in g])
        assert all(order == sorted(order, key=order.index) for order in orders)
    assert orders[0] != orders[1]
    assert plan_steps([], learner(), shape="tree", seed="s") == []


def test_steps_follow_tokens_and_epochs(policy: Policy) -> None:
    samples = [sample(policy, "12+34=", "46") for _ in range(6)]
    report = Trainer(policy, learner(microbatch_tokens=18, gradient_accumulation=2, epochs_per_cycle=3)).train(
        samples, learning_rate=constant, seed=0
    )
    # 9 tokens a sample, 54 in an epoch, at most 36 a step: two steps of three samples, the second at the odd ages.
    assert report.steps == 6
    assert report.tokens == 3 * 6 * 3
    assert report.row()["trajectory_age"] == pytest.approx((0 + 2 + 4 + 1 + 3 + 5) / 6)


def test_an_update_that_is_ended_leaves_the_model_ready_for_an_evaluation(policy: Policy) -> None:
    def end() -> None:
        raise EndTraining("time_limit")

    samples = [sample(policy, "12+34=", "46") for _ in range(4)]
    trainer = Trainer(policy, learner(gradient_accumulation=4, microbatch_tokens=16))
    with pytest.raises(EndTraining):
        trainer.train(samples, learning_rate=constant, seed=0, on_step=end)
    assert not policy.model.training
    assert all(p.grad is None for p in policy.model.parameters())


def test_drift_is_how_far_the_policy_has_moved_from_the_sampler(policy: Policy) -> None:
    one = sample(policy, "12+34=", "46")
    start = policy.snapshot()
    Trainer(policy, learner()).train([one], learning_rate=constant, seed=0)
    after_one_step = token_logprobs(policy, one.prompt, one.completion)
    moved = math.fsum(abs(new - old) for new, old in zip(after_one_step, one.logprobs, strict=True)) / 3
    policy.restore(start)
    report = Trainer(policy, learner(epochs_per_cycle=2)).train([one], learning_rate=constant, seed=0)
    assert moved > 0.01
    assert report.row()["logprob_gap"] == pytest.approx(0.0, abs=1e-5)
    assert report.row()["logprob_drift"] == pytest.approx((0 + moved) / 2, rel=1e-3)


def test_gradient_checkpointing_changes_no_gradient(policy: Policy) -> None:
    samples = [sample(policy, "12+34=", "46")]
    start = policy.snapshot()
    Trainer(policy, learner(optimizer="sgd")).train(samples, learning_rate=lambda _: 1.0, seed=0)
    plain = policy.snapshot()
    policy.restore(start)
    policy.model.gradient_checkpointing_enable()
    Trainer(policy, learner(optimizer="sgd")).train(samples, learning_rate=lambda _: 1.0, seed=0)
    for name, weight in policy.snapshot().items():
        torch.testing.assert_close(weight, plain[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float16])
def test_narrow_arithmetic_leaves_float32_weights(policy: Policy, compute: torch.dtype) -> None:
    policy.compute = compute
    one = sample(policy, "12+34=", "46")
    trainer = Trainer(policy, learner())
    report = trainer.train([one], learning_rate=constant, seed=0)
    assert report.steps + report.skipped_steps == 1
    assert all(p.dtype == torch.float32 for p in policy.trainable().values())
    assert report.loss_sum == pytest.approx(-math.fsum(one.logprobs), rel=0.05)


def test_float16_that_overflows_skips_the_step_and_then_gives_up(policy: Policy) -> None:
    policy.compute = torch.float16
    one = sample(policy, "12+34=", "46")
    trainer = Trainer(policy, learner())
    for p in policy.trainable().values():
        p.register_hook(lambda grad: grad * float("inf"))
    start = policy.snapshot()
    report = trainer.train([one], learning_rate=constant, seed=0)
    assert (report.steps, report.skipped_steps) == (0, 1)
    assert all(torch.equal(w, start[name]) for name, w in policy.snapshot().items())

    def go_on() -> None:
        for seed in range(40):
            trainer.train([one], learning_rate=constant, seed=seed)

    with pytest.raises(NumericError, match="float16 gradients overflow"):
        go_on()
