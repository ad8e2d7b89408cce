"""Answers in the terminal: one as it grows, several in their order."""

import sys
from collections.abc import Iterable, Iterator

from seodang.recipes.prompts.prompt_files import Prompts


class Printer:
    """Prints answers, several to one prompt with their numbers (`choice`); errors to stderr."""

    def __init__(self, asked: Prompts, each: int, tokenizer):
        self.asked, self.each, self.tokenizer = asked, each, tokenizer
        self._last: int | None = None  # the prompt whose answers are being printed
        self._failed: set[int] = set()

    def __call__(self, answer) -> None:
        prompt = self.asked.prompts[answer.prompt_index]
        if len(self.asked.prompts) > 1 and answer.prompt_index != self._last:
            print(f"> {prompt if isinstance(prompt, str) else prompt[-1]['content']}")
        self._last = answer.prompt_index
        if answer.error is None:
            print(answer.text if self.each == 1 else f"[{answer.choice}] {answer.text}", flush=True)
            show_logprobs(answer.prompt_logprobs, answer.top_logprobs, self.tokenizer)
        elif answer.prompt_index not in self._failed:
            self._failed.add(answer.prompt_index)
            number = self.asked.numbers[answer.prompt_index]
            print(f"error: {self.asked.unit} {number}: {' '.join(answer.error.split())}", file=sys.stderr)


def speak(events: Iterable, tokenizer) -> None:
    """Print a single answer as it grows, each piece at once, whoever reads it; then what the model thought of it, where that is told."""
    from seodang.infer.requests.events import Committed, PromptRead

    shown, of_prompt, of_answer = False, [], []
    try:
        for event in events:
            if isinstance(event, PromptRead):
                of_prompt = event.logprobs
            elif isinstance(event, Committed) and event.top_logprobs is not None:
                of_answer.append(event.top_logprobs)
            if isinstance(event, Committed) and event.text:
                shown = True
                print(event.text, end="", flush=True)
    except BaseException:
        if shown:
            print(flush=True)
        raise
    print(flush=True)
    show_logprobs(of_prompt, of_answer, tokenizer)


def by_steps(events: Iterable, tokenizer) -> Iterator:
    """Print the canvas after each step of a diffusion answer, a line each; the answer's tokens come behind the last, so that no line is broken."""
    from rich.console import Console

    from seodang.infer.explain.diffusion_steps import history
    from seodang.infer.requests.events import Committed, Observed
    from seodang.infer.requests.trace import DiffusionStep
    from seodang.infer.text.token_labels import TokenLabels

    console, names, certain = Console(), TokenLabels(tokenizer), []
    for event in events:
        if isinstance(event, Observed) and isinstance(event.what, DiffusionStep):
            console.print(*history([event.what], names), soft_wrap=True)
        elif isinstance(event, Committed):
            certain.append(event)
        else:
            yield event
    yield from certain


def show_logprobs(of_prompt: list, of_answer: list, tokenizer) -> None:
    """Print what the model thought of a prompt's tokens and an answer's, a line each, where that was asked for."""
    from seodang.recipes.run.token_logprobs import lines

    for line in lines(of_prompt, of_answer, tokenizer):
        print(line, flush=True)
