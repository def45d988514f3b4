"""What both trainers add to transformers' loop so that a run can be trusted, as a base class.

A run takes no step beyond its last, keeps no checkpoint whose weights aren't finite, ends where loss
or gradient stay so, and ends with a checkpoint when it is told to stop. What it decides, it decides
on all ranks alike: they meet at the end of every step. It leans on methods that transformers'
`Trainer` calls for every epoch, microbatch, step and checkpoint.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import random
import time
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.distributed
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from realsr_r1.core.errors import Diverged, UserError
from realsr_r1.training.checkpoints import complete_checkpoints
from realsr_r1.training.signals import StopNow, StopSignals
from realsr_r1.training.watchdog import Watchdog

CALMER = "give a smaller --learning_rate or --max_grad_norm"
TIDY_STEPS = 200  # steps after which memory that is free goes back to the system
NON_FINITE_STEPS = 3  # so many in a row end a run


class SteadyTrainer:
    """Comes before transformers' or TRL's trainer among a class's bases.

    `signals`: what the process was told (`signals.StopSignals`). `stopped_by`: the signal that ended
    the training, the same on all ranks; 0 where none did.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.signals, self.stopped_by = StopSignals(), 0
        self._watchdog = Watchdog(self.args.output_dir, self.args.process_index, self.args.world_size,
                                  self.args.rank_timeout, self._goes_on)
        self._is_finite, self._bad_steps = True, 0
        # Until a step and a save have been seen, a step takes for ever and a save no time.
        self._step_began, self._step_seconds, self._save_seconds = time.monotonic(), math.inf, 0.0
        self.add_callback(_Meetings(self))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the trainer does, watched (`watchdog`)."""
        with self._watchdog.running():
            try:
                return super().train(*args, **kwargs)
            except StopNow:
                self._save_as_at_step_end()
            except Diverged as error:
                raise UserError(f"{error}; {self._goes_on()}") from error

    def is_late(self) -> bool:
        """Whether this rank was told to stop, and the step's end would come after `--grace_seconds`."""
        if not self.signals.received or self.args.grace_seconds is None:
            return False
        now = time.monotonic()
        left = self.args.grace_seconds - (now - self.signals.since) - self._save_seconds
        return self._step_seconds - (now - self._step_began) > left

    def stop_in_time(self) -> None:
        """Raise `StopNow` on all ranks where one is late. All ranks must call it, within a step."""
        if self.args.grace_seconds is not None and self._any_rank(self.is_late()):
            raise StopNow

    def _save_as_at_step_end(self) -> None:
        """Save what the last step left, in the middle of the next one.

        Weights and optimizer have not changed since, and random numbers are put back.
        """
        self.heed_signals()
        step = self.state.global_step
        if step and step not in complete_checkpoints(Path(self.args.output_dir)):
            self._random_state.restore()
            self._save_checkpoint(self.model, None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self.args.grace_seconds is not None:
            self._random_state = RandomState()
        self._step_began = time.monotonic()

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Do what the trainer does for a batch of an evaluation."""
        with self._phase("evaluation"):
            return super().prediction_step(*args, **kwargs)

    def _phase(self, name: str) -> AbstractContextManager:
        """Inside, the watchdog sees this rank in the phase `name`."""
        return self._watchdog.phase(name)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train an epoch; nothing, where the run is at its end when it begins.

        transformers trains at least one step when it resumes, even from the checkpoint of the last
        one, or of one that a callback ends the run at.
        """
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Load a checkpoint's weights, unless the policy has them (`--reset_optimizer`)."""
        if not self.args.reset_optimizer:
            super()._load_from_checkpoint(*args, **kwargs)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any,
                              resume_from_checkpoint: str | None) -> Any:
        """Prepare as the trainer does; with `--reset_optimizer` only the schedule goes on."""
        if not self.args.reset_optimizer:
            prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
            if resume_from_checkpoint is not None:
                self._follow_schedule()
            return prepared
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step")  # no optimizer's step came first
            for _ in range(self.state.global_step):
                self.lr_scheduler.step()
        return prepared

    def _follow_schedule(self) -> None:
        """Take the learning rate of the next step from this run's schedule.

        The checkpoint's optimizer and scheduler hold that of the schedule they were made with. Where
        more steps are asked than then, it is the old schedule's end: often 0, for a whole step.
        """
        scheduler = self.lr_scheduler
        rules = getattr(scheduler, "lr_lambdas", None)
        if rules is None:  # it follows no rule of the step alone
            return
        rates = [rate * rule(scheduler.last_epoch)
                 for rate, rule in zip(scheduler.base_lrs, rules, strict=True)]
        for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Do what the trainer does for a microbatch, and see whether its loss is finite."""
        self.stop_in_time()
        with self._phase("loss"):
            loss = super().training_step(*args, **kwargs)
        self._is_finite = self._is_finite and bool(loss.isfinite().all())
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        self._is_finite = self._is_finite and (norm is None or math.isfinite(norm))
        return norm

    def end_step(self) -> None:
        """Meet the other ranks at a step's end.

        Raises `UserError` on all ranks where the run can't go on: after some steps in a row whose
        loss or gradient was not finite, and after one that left weights which aren't.
        """
        self._step_seconds = time.monotonic() - self._step_began
        is_bad = self._any_rank(not self._is_finite)
        self._is_finite, self._bad_steps = True, self._bad_steps + 1 if is_bad else 0
        if is_bad and (self._bad_steps >= NON_FINITE_STEPS or not self.has_finite_weights()):
            lasted = f", for {self._bad_steps} steps" if self._bad_steps > 1 else ""
            raise UserError(f"step {self.state.global_step}: loss or gradient is not finite{lasted}, so the "
                            f"run in {self.args.output_dir} ends; {self._goes_on()} ({CALMER})")
        self.heed_signals()

    def heed_signals(self) -> bool:
        """Whether any rank was told to stop; the training then ends after this step."""
        told = torch.tensor([self.signals.received], device=self.args.device)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
        self.stopped_by = self.stopped_by or int(told)
        if self.stopped_by:
            self.control.should_training_stop = True
        return bool(self.stopped_by)

    def has_finite_weights(self) -> bool:
        """Whether all ranks' weights are finite. All ranks must call it."""
        return not self._any_rank(not all(map(_is_finite_here, self.model.parameters())))

    def require_finite_weights(self) -> None:
        """Raise `UserError` on all ranks where the policy can't be used."""
        if not self.has_finite_weights():
            raise UserError(f"the weights at the end of the run in {self.args.output_dir} are not finite, so "
                            f"no model folder is written; {self._goes_on()} ({CALMER})")

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Save a checkpoint, unless the last step or its weights were not finite."""
        if self._bad_steps or not self.has_finite_weights():
            if self.is_world_process_zero():
                print(f"checkpoint-{self.state.global_step} is not saved, for its loss, gradient or weights "
                      f"are not finite; {self._goes_on()}", flush=True)
            return
        weights_only = self.args.save_only_model
        self.args.save_only_model = weights_only and not self.stopped_by  # or it couldn't go on
        try:
            began = time.monotonic()
            with self._phase("saving"):
                super()._save_checkpoint(*args, **kwargs)
            self._save_seconds = time.monotonic() - began
        finally:
            self.args.save_only_model = weights_only

    def _any_rank(self, flag: bool) -> bool:
        """Whether the flag is set on any rank. All ranks must call it."""
        flags = torch.tensor([float(flag)], device=self.args.device)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        return bool(flags)

    def _goes_on(self) -> str:
        """Say from where the same command goes on."""
        complete = complete_checkpoints(Path(self.args.output_dir))
        if not complete:
            return "no checkpoint was complete, so the same command begins again"
        return f"the same command goes on from the last good checkpoint, {complete[max(complete)]}"


class RandomState:
    """The state of all random numbers, when it was made."""

    def __init__(self) -> None:
        self.python, self.numpy = random.getstate(), numpy.random.get_state()
        self.torch = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None

    def restore(self) -> None:
        """Put it back."""
        random.setstate(self.python)
        numpy.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        if self.cuda is not None:
            torch.cuda.set_rng_state_all(self.cuda)


class _Meetings(TrainerCallback):
    """Where all ranks meet: at a step's end, and after what may take long."""

    def __init__(self, trainer: SteadyTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                    **kwargs: Any) -> None:
        self.trainer.end_step()
        # A step later than what is done every so many steps (checkpoints, samples), and leaves holes.
        if args.device.type == "cpu" and state.global_step % TIDY_STEPS == 1:
            _give_memory_back()
        control.should_save = control.should_save or bool(self.trainer.stopped_by)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                    **kwargs: Any) -> None:
        if state.global_step and self.trainer.heed_signals():
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                **kwargs: Any) -> None:
        self.trainer.heed_signals()  # one that came while it was saved needs no other step

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                     **kwargs: Any) -> None:
        # With --save_strategy best, an evaluation may have taken the save back.
        if self.trainer.stopped_by and args.save_strategy == SaveStrategy.BEST:
            control.should_save = not (Path(args.output_dir) / f"checkpoint-{state.global_step}").is_dir()


def _give_memory_back() -> None:
    """Give what this process has freed back to the system, which glibc is told not to (`core.cpu`)."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _is_finite_here(parameter: nn.Parameter) -> bool:
    """Whether what this rank has of a parameter is finite; under ZeRO-3 that is a part."""
    parts = [parameter.data, getattr(parameter, "ds_tensor", None)]
    return all(bool(part.isfinite().all()) for part in parts
               if part is not None and part.is_floating_point())
