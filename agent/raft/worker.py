"""`python -m agent.raft.worker`: one training, or one evaluation, as the process of `agent.contract`.

It never raises to its caller: it ends with exit code 0 and a summary, or with another code and, where it knows the
reason, `failure.json`. An unexpected exception leaves its traceback on standard error too; what it means (out of
memory, a broken backend) is for the agent's triage to say.

What a training delivers is evaluated by a copy of this process from before the training (`agent.raft.apart`), from the
files alone. What is measured on the way (`select`, and `search` for `--rung`) is measured here: it chooses the cycle
that is delivered and ends trainings early, and nothing is kept for it.

SIGTERM (or Ctrl-C) sets a flag that the next step sees. A step that takes too long for that is abandoned by a timer,
which writes the best weights so far and the summary itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.contract import (
    CHECKPOINT,
    CYCLES,
    EVAL,
    FAILURE,
    RUNG,
    SAMPLES,
    SELECT,
    STOP_GRACE_SECONDS,
    SUMMARY,
    EvalRow,
    Failure,
    SampleText,
    Summary,
)
from agent.errors import AgentError
from agent.files import sync_files, write_atomic
from agent.raft.apart import Apart, Failed, Stopped, can_copy_itself, opened_accelerators, serve_on
from agent.raft.failure import failure_of, report
from agent.raft.prepare import SPLITS, Preparation
from agent.raft.pulse import EndTraining, Pulse
from agent.recipe.files import load_recipe
from agent.text import keep_secret

if TYPE_CHECKING:
    from agent.raft.engine import Training
    from agent.raft.evaluate import Examiner

EMERGENCY_SECONDS = STOP_GRACE_SECONDS - 6.0
UNEXPECTED_EXIT_CODE = 1
ROOM_BESIDE = 2.0
"""Times the model's own size that must be free for its copy to be evaluated beside it: weights, and what sampling from
them takes (their copy in the arithmetic's type, keys and values)."""
SPARE_BYTES = 2**30
SCRATCH = ".scratch"
"""Temporary files of an evaluation, in the run's folder."""
LONG_EVALUATION_SECONDS = 60.0
"""A shorter evaluation is not worth saving the finished training for: a kill repeats the last cycles instead."""


def main(arguments: list[str] | None = None, *, pristine: bool = False) -> int:
    """`pristine`: nothing has been computed in this process, so that a copy of it can be made for the evaluation."""
    options = parse(arguments)
    if options.serve is not None:
        Worker(options, Pulse(None)).serve(*options.serve)  # heartbeat and failure.json are the training's
        return 0
    pulse = Pulse(options.out)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / FAILURE).unlink(missing_ok=True)
        if finished(options.out):
            print("this run is finished: its summary.json is there", flush=True)
            return 0
        Worker(options, pulse, pristine=pristine).run()
    except Failed as error:
        report(options.out, error.failure)
        return error.exit_code
    except AgentError as error:
        report(options.out, failure_of(error, pulse))
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        report(options.out, failure_of(error, pulse))
        return UNEXPECTED_EXIT_CODE
    return 0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m agent.raft.worker", description="Run one RAFT training.")
    parser.add_argument("--recipe", type=Path, required=True, help="resolved recipe")
    parser.add_argument("--out", type=Path, required=True, help="folder of this run")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--split", action="append", choices=[*SPLITS, "none"], help="evaluate it at the end")
    parser.add_argument("--evaluate", metavar="CHECKPOINT", help="do not train: a checkpoint, or `untrained`")
    parser.add_argument("--rung", type=float, metavar="SHARE", help="measure `search` once this much is spent")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="for the whole process")
    parser.add_argument("--commit", metavar="COMMIT", help="of a model of the hub, whatever its revision is now")
    parser.add_argument("--cache", type=Path, help="folder for models")
    parser.add_argument("--allow-untrusted-code", action="store_true")
    parser.add_argument("--trust-remote-code", metavar="DIGEST", help="of the model's own code, as it was confirmed")
    parser.add_argument(
        "--save-seconds",
        type=float,
        default=30.0,
        help="least time between two saved states (default %(default)s)",
    )
    parser.add_argument("--serve", nargs=2, type=int, metavar="FD", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.arguments = sys.argv[1:] if arguments is None else list(arguments)
    named = options.split or ["search"]
    options.splits = [] if "none" in named else list(dict.fromkeys(named))
    return options


def finished(out: Path) -> bool:
    """A summary of a run that was not stopped is final; a stopped one is gone on with."""
    try:
        return not json.loads((out / SUMMARY).read_text())["stopped"]
    except (OSError, ValueError, KeyError):
        return False


class Worker(Preparation):
    """Prepares a training, runs it, measures what came out and writes it down."""

    def __init__(self, options: argparse.Namespace, pulse: Pulse, *, pristine: bool = False):
        super().__init__(options, pulse)
        self.pristine = pristine
        self.finishing = threading.Lock()
        """Held while results are written: by the main thread, or by the timer after a SIGTERM."""
        self.apart: Apart | None = None
        """Waits to evaluate what the training delivers."""
        self.confined = "not confined: in the training's process"
        self.examined: dict[str, Any] = {}
        """What the evaluation tells of itself."""
        self.delivered = False
        self.training: Training | None = None
        self.evaluate_seconds = 0.0

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._terminate)
        options = self.options
        self.pulse.beat("start")
        self._read_recipe()
        for name in (SUMMARY, EVAL, SAMPLES):
            (options.out / name).unlink(missing_ok=True)
        try:
            self._settle()
            if self.pristine and options.evaluate is not None:
                self.confined = self._confine()
            elif self.pristine and options.splits:
                self.apart = self._set_apart()
            with self._open_task() as verifier:
                examiner = self._prepare(verifier)
                if options.evaluate is None:
                    self._train(examiner)
                else:
                    self._finish(examiner, ended_by="evaluated")
        except EndTraining as end:
            # SIGTERM before there was anything to train or deliver.
            self._write_summary({}, stopped=True, ended_by=end.reason, evaluate_seconds=None, checkpoint=False)
        finally:
            if self.apart is not None:
                self.apart.close()

    def _read_recipe(self) -> None:
        self.recipe = load_recipe(self.options.recipe, edited=False)
        keep_secret(self.recipe.task.verifier.environment)

    # Training and measuring -----------------------------------------------------------------------------------

    def _train(self, examiner: Examiner) -> None:
        from agent.raft.engine import Training, final_sample_count

        assert self.policy is not None
        assert self.splits is not None
        options = self.options
        training = self.training = Training(
            self.recipe,
            policy=self.policy,
            examiner=examiner,
            splits=self.splits,
            seed=options.seed,
            out=options.out,
            pulse=self.pulse,
            save_seconds=options.save_seconds,
        )
        training.final_samples = final_sample_count(self.recipe, self.splits, options.splits)
        training.rung = options.rung
        training.reload_seconds = self.reload_seconds if self.apart is not None else 0.0
        if options.time_limit is not None:
            training.limit_at = self.started + options.time_limit
            self.pulse.deadline = training.limit_at - training.final_seconds()
        if self.apart is not None:
            try:
                self.apart.wait_until_ready()
            except Stopped:
                raise EndTraining("sigterm") from None
        ended_by = training.run()
        self._finish(examiner, ended_by=ended_by)

    def _finish(self, examiner: Examiner, *, ended_by: str) -> None:
        """Deliver the best weights, measure them, write the summary."""
        self.pulse.deadline = None
        training = self.training
        to_save = training is not None and training.finished
        if training is not None:
            with self.finishing:
                if to_save and training.final_seconds() > LONG_EVALUATION_SECONDS:
                    training.save()
                    to_save = False
                self._deliver(training)
        metrics: dict[str, float] = {}
        stopped = ended_by == "sigterm"
        if not stopped:
            try:
                metrics = self._measure(examiner)
            except EndTraining:
                stopped, ended_by = True, "sigterm"
                # The present weights are the best ones by now, and a finished training needs no others.
                if training is not None and to_save and not training.released and training.saves_quickly():
                    training.save()
        with self.finishing:
            self._sync()
            self._write_summary(
                metrics,
                stopped=stopped,
                ended_by=ended_by,
                evaluate_seconds=self.evaluate_seconds if metrics else None,
                checkpoint=training is not None,
            )
            if training is not None and not stopped:
                training.state.remove()

    def _measure(self, examiner: Examiner) -> dict[str, float]:
        """Metric by split. Raises EndTraining."""
        from agent.raft.used import both, stamps_of, used_by

        assert self.splits is not None
        used = used_by(self.recipe, self.splits, examiner.verifier, base=Path.cwd())
        if self.apart is None:
            metrics = self._evaluate(examiner)
            self.examined = self._told(examiner, metrics)
            return metrics
        self._make_room()
        self.pulse.check()
        checkpoint = self.options.out / CHECKPOINT
        pulse = self.pulse
        told = pulse.cycle, pulse.budget_spent, pulse.budget_before, pulse.select_metric
        try:
            self.examined = self.apart.ask(
                {
                    "checkpoint": str(checkpoint),
                    "files": {**self.model_files, str(checkpoint): stamps_of(checkpoint)},
                    "told": told,
                    "commit": self.commit,
                }
            )
        except Stopped:
            raise EndTraining("sigterm") from None
        self.evaluate_seconds = self.examined.pop("evaluate_s")
        self.examined["used"] = both(used, self.examined["used"])
        return dict(self.examined.pop("metrics"))

    def _make_room(self) -> None:
        """Let go of the model where there is no memory for a second one beside it."""
        assert self.training is not None
        assert self.policy is not None
        size = sum(p.numel() * p.element_size() for p in self.policy.model.parameters())
        self.policy.trim()
        if self.policy.free_memory() < ROOM_BESIDE * size + SPARE_BYTES:
            self.training.release()
            self.policy.release()

    # The copy that evaluates ------------------------------------------------------------------------------------

    def _set_apart(self) -> Apart:
        if can_copy_itself():
            return Apart.forked(self._serve, explain=self._explain)
        why = ", ".join(opened_accelerators()) or sys.platform
        print(f"the evaluation gets a process of its own, not a copy of this one: {why}", file=sys.stderr, flush=True)
        return Apart.started([sys.executable, "-m", "agent.raft.worker", *self.options.arguments, "--serve"])

    def serve(self, orders: int, answers: int) -> None:
        """As that process: what a copy has at its beginning, then what it does."""
        serve_on(orders, answers, self._serve, explain=self._explain, prepare=self._settle_for_serving)

    def _explain(self, error: Exception) -> Failure:
        return failure_of(error, self.pulse)

    def _settle_for_serving(self) -> None:
        self._read_recipe()
        self._settle()

    def _serve(self, order: dict[str, Any]) -> dict[str, Any]:
        """In the copy of this process: evaluate the checkpoint that the training has delivered."""
        options = argparse.Namespace(**vars(self.options) | {"evaluate": order["checkpoint"]})
        pulse = self.pulse = Pulse(options.out)
        pulse.cycle, pulse.budget_spent, pulse.budget_before, pulse.select_metric = order["told"]
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(pulse, "terminated", True))
        try:
            pulse.beat("load")
            worker = Worker(options, pulse)
            worker.commit = order["commit"]
            return worker.examine(order["files"])
        except EndTraining:
            raise Stopped from None

    def examine(self, files: dict[str, Any]) -> dict[str, Any]:
        """Everything anew from the files. `files`: stamps of those that are not to have changed, by folder."""
        from agent.raft.measure import peak_memory_gb

        self._read_recipe()
        self.confined = self._confine()
        with self._open_task() as verifier:
            examiner = self._load(verifier, as_before=files)
            metrics = self._evaluate(examiner)
            told = {"metrics": metrics, "evaluate_s": self.evaluate_seconds, "peak_memory_gb": peak_memory_gb()}
            return {**self._told(examiner, metrics), **told}

    def _confine(self) -> str:
        """Take away the right to write anywhere but in the run's folder and in caches."""
        from agent.raft.confine import caches_of_libraries, confine_writes

        if self.options.allow_untrusted_code or self.recipe.task.verifier.runs_untrusted_code:
            # Landlock forbids mounts: training and evaluation would be judged behind different walls.
            return "not confined: programs that the model writes run in sandboxes, which could not be set up then"
        scratch = self.options.out / SCRATCH
        scratch.mkdir(parents=True, exist_ok=True)
        os.environ["TMPDIR"] = tempfile.tempdir = str(scratch.absolute())
        return confine_writes([self.options.out, self.cache, *caches_of_libraries()])

    def _told(self, examiner: Examiner, metrics: dict[str, float]) -> dict[str, Any]:
        """What was used, for whoever has to trust the numbers."""
        from agent.raft.used import used_by
        from agent.recipe.yardstick import digest_of_file

        assert self.splits is not None
        shutil.rmtree(self.options.out / SCRATCH, ignore_errors=True)
        evaluated = self.checkpoint
        return {
            "used": used_by(self.recipe, self.splits, examiner.verifier, base=Path.cwd()),
            "recipe_signature": self.recipe.signature(),
            "rows": digest_of_file(self.options.out / EVAL) if metrics else None,
            "writes": self.confined,
            "checkpoint": {path.name: digest_of_file(path) for path in sorted(evaluated.iterdir()) if path.is_file()}
            if evaluated
            else None,
        }

    def _deliver(self, training: Training) -> None:
        """Put the best weights into `checkpoint/`, which appears whole."""
        if self.delivered:
            return
        assert self.policy is not None
        with training.trainer.updating:
            if training.best.weights is not None:
                self.policy.restore(training.best.weights)
            target = self.options.out / CHECKPOINT
            scratch = self.options.out / f".{CHECKPOINT}"
            shutil.rmtree(scratch, ignore_errors=True)
            self.pulse.phase = "save"
            self.policy.save(scratch)
            shutil.rmtree(target, ignore_errors=True)
            scratch.replace(target)
            self.delivered = True

    def _sync(self) -> None:
        """A summary says that all else is whole, also after a power cut. By now most of it has reached the disk."""
        out = self.options.out
        checkpoint = out / CHECKPOINT
        rows = [out / name for name in (CYCLES, SELECT, RUNG)]
        sync_files([*rows, *(path for path in checkpoint.glob("*") if path.is_file()), checkpoint, out])

    def _evaluate(self, examiner: Examiner) -> dict[str, float]:
        """Metric by split; the rows go to `eval.jsonl`, some texts to `samples.jsonl`."""
        from agent.raft.samples import texts_of, write_samples
        from agent.raft.state import append_eval, write_eval

        assert self.splits is not None
        metrics: dict[str, float] = {}
        rows: list[EvalRow] = []
        texts: list[SampleText] = []
        for name in self.options.splits:
            examples = getattr(self.splits, name)
            if name == "train":
                examples = examples[: self.recipe.evaluation.search_prompts]
            measured = examiner.measure(
                examples,
                split=name,
                samples=self.recipe.evaluation.samples_per_prompt,
                on_step=lambda: self.pulse.beat("evaluate"),
                on_prompt=lambda rows: append_eval(self.options.out, rows),
            )
            metrics[name] = measured.metric
            self.evaluate_seconds += measured.seconds
            rows += measured.rows
            write_eval(self.options.out, rows)
            texts += texts_of(examiner, examples, measured)
            if texts:
                write_samples(self.options.out, texts)
        return metrics

    def _write_summary(
        self,
        metrics: dict[str, float],
        *,
        stopped: bool,
        ended_by: str,
        evaluate_seconds: float | None,
        checkpoint: bool,
    ) -> None:
        """`summary.json`, last and atomically."""
        from agent.raft.measure import peak_memory_gb

        training = self.training
        totals = vars(training.totals) if training else {}
        train_seconds = training.spending.seconds if training else 0.0
        tokens = sum(totals.get(name, 0) for name in ("generated_tokens", "trained_tokens"))
        peak = training.peak_memory_gb() if training else peak_memory_gb()
        summary = Summary(
            stopped=stopped,
            seed=self.options.seed,
            recipe_signature=self.recipe.signature(),
            cycles=training.spending.cycles if training else 0,
            starts=training.starts if training else 1,
            **totals,
            delivered_cycle=training.best.cycle if training else 0,
            metric=self.recipe.evaluation.metric,
            metrics=metrics,
            select_metric=training.best.metric if training else None,
            load_s=self.load_seconds,
            train_s=train_seconds,
            select_s=training.select_seconds if training else None,
            evaluate_s=evaluate_seconds,
            rung_s=training.rung_seconds if training else None,
            elapsed_s=time.monotonic() - self.started,
            tokens_per_s=tokens / train_seconds if train_seconds > 0 and tokens else None,
            peak_memory_gb=max(peak, self.examined.pop("peak_memory_gb", 0.0)),
            device=str(self.policy.device) if self.policy else None,
            checkpoint=CHECKPOINT if checkpoint else None,
            provenance=self._provenance(),
            ended_by=ended_by,
        )
        write_atomic(self.options.out / SUMMARY, summary.model_dump_json(indent=1) + "\n")

    def _provenance(self) -> dict[str, Any]:
        from importlib.metadata import version

        import torch

        model = self.recipe.model
        named = {"source": model.source, "revision": model.revision, "commit": self.commit}
        return {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "device": self.policy.device_why if self.policy else None,
            "threads": torch.get_num_threads(),
            "products": self.training.trainer.products if self.training else None,
            "data": self.splits.digest if self.splits else None,
            "model": {**named, "folders": self.model_files},
            "evaluation": self.examined or None,
        }

    # SIGTERM --------------------------------------------------------------------------------------------------

    def _terminate(self, *_: object) -> None:
        if self.pulse.terminated:
            return
        self.pulse.terminated = True
        if self.apart is not None:
            self.apart.terminate()
        timer = threading.Timer(EMERGENCY_SECONDS, self._leave_now)
        timer.daemon = True
        timer.start()

    def _leave_now(self) -> None:
        """The running step did not end in time: write what there is, and go."""
        if not self.finishing.acquire(blocking=False):
            return
        training = self.training
        if self.apart is not None:
            self.apart.terminate(at_once=True)
        if training is not None:
            training.state.close()
            self._deliver(training)
        self._write_summary(
            {}, stopped=True, ended_by="sigterm", evaluate_seconds=None, checkpoint=training is not None
        )
        os._exit(0)


if __name__ == "__main__":
    code = main(pristine=True)
    sys.stdout.flush()
    sys.stderr.flush()
    # Every file is closed and on disk; tearing torch down would take another half second.
    os._exit(code)
