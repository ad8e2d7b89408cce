"""Let the model answer held-out prompts while it trains, and count the right answers."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...data.chat import prompt_ids
from ...data.formats import Dialogue
from ...infer import SamplingParams, generate
from ...infer.engine.prompts import Prompt
from ...infer.runners.architecture import context_limit
from ..maths.text_metrics import agreement

MAX_NEW_TOKENS = 48


@dataclass
class HeldOut:
    """A prompt that is not trained on, as the engine takes it, and the answer it should get, of which `prefix` is given."""

    prompt: Prompt
    answer: str
    tools: list | None = None
    prefix: str = ""


@dataclass
class AnswerSampler:
    """Answer held-out prompts, greedily or as `params` say; call it with a model to get what `measure` makes of the answers and the expected ones.

    That is exact match and containment, in [0, 1], unless another is given. The prompts go through the engine, so none costs another padding. The last
    answers stay in `answers`; `show`, if given, is called with each of the first `shown` prompts and its answer.
    """

    tokenizer: PreTrainedTokenizerBase
    questions: Sequence[HeldOut]
    max_new_tokens: int = MAX_NEW_TOKENS
    show: Callable[[HeldOut, str], None] | None = None
    shown: int = 3
    params: SamplingParams | None = None
    measure: Callable[[Sequence[str], Sequence[str]], dict[str, float]] = agreement
    answers: list[str] = field(default_factory=list)

    def __call__(self, model: PreTrainedModel) -> dict[str, float]:
        params = SamplingParams(max_new_tokens=self.max_new_tokens) if self.params is None else self.params
        each = [replace(params, prefix=q.prefix) if q.prefix else params for q in self.questions]
        results = generate(model, self.tokenizer, [q.prompt for q in self.questions], each, on_error="raise")
        self.answers = [result.text for result in results]
        for question, answer in list(zip(self.questions, self.answers, strict=True))[: self.shown if self.show else 0]:
            self.show(question, answer)
        return self.measure(self.answers, [q.answer for q in self.questions])


def answerable(
    questions: Iterable[HeldOut], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, max_new_tokens: int = MAX_NEW_TOKENS
) -> Iterator[HeldOut]:
    """Those whose prompt leaves room for an answer in the model's context: the engine refuses the others, at the first evaluation."""
    limit = context_limit(model)
    for question in questions:
        if limit is None or len(prompt_ids(tokenizer, question.prompt, question.tools)) + max_new_tokens <= limit:
            yield question


def held_out_questions(dialogues: Sequence[Dialogue]) -> list[HeldOut]:
    """The first exchange of each dialogue that has one, as a question with its answer."""
    found = []
    for dialogue in dialogues:
        turns = [i for i, message in enumerate(dialogue.messages) if message["role"] == "assistant"]
        if turns and isinstance(dialogue.messages[turns[0]].get("content"), str):
            found.append(HeldOut(dialogue.messages[: turns[0]], dialogue.messages[turns[0]]["content"], dialogue.tools))
    return found
