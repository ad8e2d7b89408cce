"""Ctrl-C and SIGTERM in training: the step in hand is finished and saved before training ends; a second signal leaves at once."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import torch
from transformers.trainer_utils import IntervalStrategy
from typing_extensions import override

from ...data.versions import versions_named
from ...infer.checkpoint.manifest import MANIFEST
from .randomness import random_state, restore_random_state

SIGNALS = (signal.SIGINT, signal.SIGTERM)
OF_WORKERS = getattr(signal, "SIGCHLD", None)  # torch raises where a worker that loads data was killed; Windows has no such signal
T = TypeVar("T")


class StopTraining(BaseException):
    """All processes have agreed to stop, or this one leaves what need not be finished; it never comes out of `train`."""


def leaving(number: int, *words: str) -> BaseException:
    """What is raised for a signal once there is nothing left to do: KeyboardInterrupt for SIGINT, else SystemExit with the exit code of a shell."""
    return KeyboardInterrupt(*words) if number == signal.SIGINT else SystemExit(128 + number)


class Signals:
    """The first signal that this process was sent since it began to watch (`asked`, 0 for none); the second one raises on the spot."""

    def __init__(self) -> None:
        self.asked, self.watching, self.tells = 0, False, True
        self._process, self._at_once = 0, False
        self._former: dict[int, Any] = {}  # handlers to be put back

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch for signals, where this is the main thread, and put the former handlers back; one that is ignored stays so."""
        former = {number: signal.getsignal(number) for number in SIGNALS if threading.current_thread() is threading.main_thread()}
        former = {number: handler for number, handler in former.items() if handler not in (None, signal.SIG_IGN)}
        self._former = former
        self.asked, self.watching, self._process = 0, True, os.getpid()
        try:
            for number in list(former):
                signal.signal(number, self._handle)
            yield
        finally:
            self.watching = False
            for number, handler in former.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def abandon_if_asked(self, work: Callable[[], T]) -> T | None:
        """What `work` gives, None where a signal came before it was done: it is left at once."""
        try:
            self._at_once = True
            if self.asked:
                return None
            return work()
        except StopTraining:
            return None
        finally:
            self._at_once = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a worker that loads data ends with the process that it works for
        if self.asked:
            raise leaving(number)
        self.asked = number
        if OF_WORKERS is not None:  # a signal for all processes ends the workers, and the step in hand needs them no more
            self._former[OF_WORKERS] = signal.signal(OF_WORKERS, lambda number, frame: None)
        if self.tells:
            with suppress(OSError):  # sys.stderr may be in the middle of a line of its own
                os.write(2, f"\n{signal.Signals(number).name}: stopping as soon as what was learned is saved; once more leaves at once\n".encode())
        if self._at_once:
            raise StopTraining


class Interruptible:
    """The part of `CrashSafeCheckpoints` that ends training on a signal without losing a step.

    One process that is signalled stops all of them: they agree at the end of each step, and wherever work can be left half done.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self.signals = Signals()
        self._number = 0  # of the signal that all processes have agreed to stop for
        self._in_step = False  # whether a micro-batch of a step that is not finished was learned from
        self._step_kept: int | None = None  # the newest step that a checkpoint holds
        self._random_state: Any = None  # at the end of the last step
        self.goes_on = "resume from it to go on"  # how, as the line about what was saved says
        super().__init__(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the trainer beneath; on Ctrl-C or SIGTERM the step in hand is finished and a checkpoint published, whatever the save strategy.

        An evaluation or rollouts are left at once, and done anew by the run that goes on. Then KeyboardInterrupt is raised, for SIGTERM
        SystemExit with code 143; a second signal raises it on the spot. Signals are watched in the main thread, while this call lasts.
        """
        self._number, self._in_step, self._step_kept = 0, False, None
        self.signals.tells = self.is_world_process_zero()
        with self.signals.watched(), versions_named():
            try:
                result = super().train(*args, **kwargs)
                if not self.asked_to_stop():
                    return result
            except (StopTraining, RuntimeError) as error:
                if not isinstance(error, StopTraining) and not self._lost_workers(error):
                    raise
            words = self._keep_last_step()
        self._leave(words)

    def _leave(self, words: str) -> NoReturn:
        """Say what was saved, once however many processes there are, and raise what the signal asks for."""
        if self.is_world_process_zero():
            print(words, file=sys.stderr, flush=True)
        raise leaving(self._number, words)

    def _lost_workers(self, error: RuntimeError) -> bool:
        """Whether the next batch did not come for the signal that asks to stop has ended the workers that load it; several processes could not agree."""
        return self.args.world_size == 1 and not self._in_step and "DataLoader worker" in str(error) and self.asked_to_stop()

    def _keep_last_step(self) -> str:
        """Publish a checkpoint of the last whole step, where there is none; what there is to say of it."""
        step, folder = self.state.global_step, Path(super()._get_output_dir(None)) / f"checkpoint-{self.state.global_step}"
        over = not self.is_in_train  # all steps were done: the weights may be those of the best checkpoint by now, the bars are closed
        if self._step_kept not in (None, step) and not (over and self.args.load_best_model_at_end):
            restore_random_state(self._random_state, self.args.device)  # what was left half done may have drawn
            self._save_checkpoint(self.model, None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        if not over:
            self.callback_handler.on_train_end(self.args, self.state, self.control)  # closes bars and trackers
            self.is_in_train = False
        if (folder / MANIFEST).is_file():
            return f"step {step} is saved in {folder}: {self.goes_on}"
        since = f"the checkpoint of step {step} that it went on from" if step else "its beginning"
        return f"stopped before another step was done: there is nothing to save since {since}"

    # Where training stops

    def stop_if_asked(self) -> None:
        """Raise StopTraining where a signal has asked one of the processes to stop; all of them have to call this."""
        if self.asked_to_stop():
            raise StopTraining

    def asked_to_stop(self) -> bool:
        """Whether a signal has asked one of the processes to stop, while they train; all of them have to ask."""
        if self.signals.watching:
            asked = [self.signals.asked == number for number in SIGNALS]
            if self.args.world_size > 1:
                asked = self.sum_over_processes(torch.tensor(asked, dtype=torch.float64)).tolist()
            self._number = max((number for number, count in zip(SIGNALS, asked, strict=True) if count), default=0)
        return self.signals.watching and self._number > 0

    def abandonable(self, work: Callable[[], T], waits: bool = True) -> T:
        """What `work` gives, which on a signal is left at once and then stops training, unless part of a step is learned already.

        All processes have to call this; the work must change nothing that a checkpoint holds, and wait for no other process. Where it `waits`, by
        forward passes of the model in training, and weights are sharded, it is done to its end.
        """
        if self._in_step or not self.signals.watching:
            return work()
        result = work() if waits and self.is_sharded else self.signals.abandon_if_asked(work)
        self.stop_if_asked()
        return result

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """A batch of an evaluation by the trainer beneath."""
        self.stop_if_asked()
        return super().prediction_step(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """A micro-batch of a step."""
        loss = super().training_step(*args, **kwargs)
        self._in_step = True
        return loss

    @override
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self._step_kept = self.state.global_step

    @override
    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self._step_kept is None:  # the first epoch of this call
            self._step_kept = self.state.global_step
            self.stop_if_asked()
            if self._owes_evaluation():
                self._determine_best_metric(self._evaluate(None, None), None)
                if self.control.should_training_stop:
                    return
        super()._run_epoch(*args, **kwargs)

    def _owes_evaluation(self) -> bool:
        """Whether the checkpoint that is resumed was published in place of an evaluation."""
        control = self.state.stateful_callbacks.get(type(self.control).__name__, {})  # as it was when the checkpoint was written
        return self.args.eval_strategy != IntervalStrategy.NO and bool(self.state.global_step) and control.get("args", {}).get("should_evaluate", False)

    @override
    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        ends_step, self._in_step = self._in_step, False  # else it is called at the end of an epoch
        if ends_step:
            self._random_state = random_state(self.args.device)
        ends_epoch = ends_step and float(self.state.epoch or 0).is_integer()  # what is due then is known in the next call
        saves = self.control.should_save
        if not ends_epoch and self.asked_to_stop():
            owed, self.control.should_evaluate, self.control.should_save = self.control.should_evaluate, False, False
            self.control.should_log |= self.args.logging_strategy != IntervalStrategy.NO
            super()._maybe_log_save_evaluate(*args, **kwargs)
            self.control.should_evaluate = owed  # the checkpoint says so to the run that goes on
            raise StopTraining
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if saves and not ends_epoch:
            self.stop_if_asked()  # a signal came while it was saved
