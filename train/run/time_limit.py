"""Training for so long and no longer."""

from time import monotonic

from transformers import TrainerCallback


class TimeLimit(TrainerCallback):
    """End training at the first step that is a multiple of `every` after `seconds` have passed, and log it; at least one such step is made."""

    def __init__(self, seconds: float, every: int = 1):
        self.seconds, self.every = seconds, every
        self.started = monotonic()

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.started = monotonic()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step % self.every == 0 and monotonic() - self.started >= self.seconds:
            control.should_training_stop = control.should_log = True
