"""What runs along with a training: a JSON Lines log, its loss curve as a picture and in the terminal, and a limit of time."""

import json
from contextlib import nullcontext
from pathlib import Path
from time import monotonic
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

LOG = "log.jsonl"
CURVE = "loss.png"


class RunLog(TrainerCallback):
    """Append every logged value to log.jsonl and draw loss.png when training ends.

    A resumed run drops the lines after its checkpoint's step first, so each step is logged once.
    """

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Begin the log, or keep of it what the checkpoint has seen."""
        if state.is_world_process_zero:
            path = Path(args.output_dir) / LOG
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = [e for e in read_log(path) if e["step"] <= state.global_step] if state.global_step else []
            partial = path.with_suffix(".partial")
            partial.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
            partial.replace(path)  # a kill while it is written must not cost the lines that were there

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **kwargs) -> None:
        """Append an entry."""
        if state.is_world_process_zero and logs:
            path = Path(args.output_dir) / LOG
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Draw the curve."""
        if state.is_world_process_zero:
            draw_curve(Path(args.output_dir))


class TimeLimit(TrainerCallback):
    """End training at the first step that is a multiple of `every` after `seconds` have passed, and log it; at least one such step is made."""

    def __init__(self, seconds: float, every: int = 1):
        self.seconds, self.every = seconds, every
        self.started = monotonic()

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Start the clock."""
        self.started = monotonic()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Stop where the time is up."""
        if state.global_step % self.every == 0 and monotonic() - self.started >= self.seconds:
            control.should_training_stop = control.should_log = True


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a log, oldest first; a last line cut short by a kill is left out."""
    entries = []
    with path.open(encoding="utf-8") if path.is_file() else nullcontext(()) as lines:
        for line in lines:
            try:
                entries.append(json.loads(line))
            except ValueError:
                continue
    return entries


def curves(run: Path) -> dict[str, tuple[list[int], list[float]]]:
    """The steps and values of each loss in a run's log: "train", and "held out" where it was evaluated."""
    entries = read_log(run / LOG)
    found = {}
    for name, key in (("train", "loss"), ("held out", "eval_loss")):
        points = [(entry["step"], entry[key]) for entry in entries if key in entry]
        if points:
            found[name] = tuple(map(list, zip(*points, strict=True)))
    return found


def draw_curve(run: Path) -> Path | None:
    """Draw the run's losses over its steps as loss.png; return its path, None where nothing was logged."""
    lines = curves(run)
    if not lines:
        (run / CURVE).unlink(missing_ok=True)  # an earlier run's
        return None
    from matplotlib.figure import Figure  # the figure alone: no window, no global state

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (name, (steps, losses)), style in zip(lines.items(), ("-", "o--"), strict=False):
        axes.plot(steps, losses, style, label=name, markersize=4)
    axes.set(xlabel="step", ylabel="loss (nats per trained token)", title=run.name)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(run / CURVE, dpi=120)
    return run / CURVE


def terminal_curve(run: Path, width: int = 72, height: int = 14) -> str:
    """The run's losses as text for the terminal; empty where nothing was logged."""
    lines = curves(run)
    if not lines:
        return ""
    import plotext

    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(width, height)
    for (name, (steps, losses)), marker in zip(lines.items(), ("braille", "o"), strict=False):
        plotext.plot(steps, losses, label=name, marker=marker)
    plotext.xlabel("step")
    plotext.title("loss")
    return plotext.uncolorize(plotext.build())
