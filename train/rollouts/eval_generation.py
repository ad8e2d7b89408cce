"""Let the model answer held-out prompts while it trains, and count the right answers."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...data.chat import prompt_ids
from ...data.formats import Dialogue, Message
from ...infer import SamplingParams, generate
from ...infer.runners.architecture import context_limit

MAX_NEW_TOKENS = 48


@dataclass
class HeldOut:
    """A prompt that is not trained on, and the answer it should get."""

    prompt: list[Message]
    answer: str
    tools: list | None = None


@dataclass
class AnswerSampler:
    """Answer held-out prompts, greedily or as `params` say; call it with a model to get exact match and containment, in [0, 1].

    `exact` compares whole answers after white space is folded, `contains` looks for the expected answer within. The last
    answers stay in `answers`; `show`, if given, is called with each of the first `shown` prompts and its answer.
    """

    tokenizer: PreTrainedTokenizerBase
    questions: Sequence[HeldOut]
    max_new_tokens: int = MAX_NEW_TOKENS
    show: Callable[[HeldOut, str], None] | None = None
    shown: int = 3
    params: SamplingParams | None = None
    answers: list[str] = field(default_factory=list)

    def __call__(self, model: PreTrainedModel) -> dict[str, float]:
        params = SamplingParams(max_new_tokens=self.max_new_tokens) if self.params is None else self.params
        results = generate(model, self.tokenizer, [q.prompt for q in self.questions], params, on_error="raise")
        self.answers = [result.text for result in results]
        for question, answer in list(zip(self.questions, self.answers, strict=True))[: self.shown if self.show else 0]:
            self.show(question, answer)
        return agreement(self.answers, [q.answer for q in self.questions])


def answerable(
    questions: Iterable[HeldOut], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, max_new_tokens: int = MAX_NEW_TOKENS
) -> Iterator[HeldOut]:
    """Those whose prompt leaves room for an answer in the model's context: the engine refuses the others, at the first evaluation."""
    limit = context_limit(model)
    for question in questions:
        if limit is None or len(prompt_ids(tokenizer, question.prompt, question.tools)) + max_new_tokens <= limit:
            yield question


def agreement(answers: Sequence[str], expected: Sequence[str]) -> dict[str, float]:
    """The shares of answers that equal, and that contain, what was expected; white space is folded.

    agreement(["Seoul.", "in Busan"], ["Seoul.", "Busan"]) == {"exact": 0.5, "contains": 1.0}
    """
    pairs = [(" ".join(a.split()), " ".join(e.split())) for a, e in zip(answers, expected, strict=True)]
    count = max(len(pairs), 1)
    return {"exact": sum(a == e for a, e in pairs) / count, "contains": sum(e in a for a, e in pairs) / count}


def held_out_questions(dialogues: Sequence[Dialogue]) -> list[HeldOut]:
    """The first exchange of each dialogue that has one, as a question with its answer."""
    found = []
    for dialogue in dialogues:
        turns = [i for i, message in enumerate(dialogue.messages) if message["role"] == "assistant"]
        if turns and isinstance(dialogue.messages[turns[0]].get("content"), str):
            found.append(HeldOut(dialogue.messages[: turns[0]], dialogue.messages[turns[0]]["content"], dialogue.tools))
    return found
