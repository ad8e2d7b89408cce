"""Records of what people prefer: ranked answers, judged answers, and prompts that have none yet."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import UserError
from .formats import Message, Shapes, as_messages, as_system, as_text, as_tools, decoded, missing, systems, text_or_messages
from .json_text import parsed
from .preference_sides import answer_messages, flaw_of, prompt_messages, refuse_answered, shared_opening, side_messages, single_answer


@dataclass
class RankedPreference:
    """A prompt and its answers; ranks are numbers of which the lowest is best, and equal ones are ties."""

    prompt: list[Message]
    answers: list[Message]
    ranks: list[float]
    margin: float | None = None  # by how much the better one should lead, where the record says so
    tools: list | None = None
    where: str = ""
    flaw: str = ""  # why there is nothing to learn from it, where reading it shows that
    taken: str = field(default="", repr=False, compare=False)  # which columns of the file were taken as what, in words


@dataclass
class UnpairedPreference:
    """A prompt and one answer, which is good (True) or bad."""

    prompt: list[Message]
    answer: Message
    label: bool
    tools: list | None = None
    where: str = ""
    taken: str = field(default="", repr=False, compare=False)  # which columns of the file were taken as what, in words


@dataclass
class PromptExample:
    """A prompt alone; the record's other columns go to reward functions."""

    prompt: list[Message]
    columns: dict[str, Any] = field(default_factory=dict)
    tools: list | None = None
    where: str = ""
    taken: str = field(default="", repr=False, compare=False)  # which columns of the file were taken as what, in words


def paired_preference(record: Mapping[str, Any]) -> RankedPreference:
    """{prompt, chosen, rejected}: texts or message lists; the sides may hold the prompt too, and without `prompt` they share it.

    Texts may be transcripts of "\\n\\nHuman: " and "\\n\\nAssistant: ". `margin` is kept; scores are not, as their scale is not known. Sides
    that differ before their last answers have no prompt in common: they are a tie with a flaw.
    Raises UserError for a missing side, or sides without a common prompt.

    >>> paired_preference({"prompt": "1+1?", "chosen": "2", "rejected": "3"}).answers
    [{'role': 'assistant', 'content': '2'}, {'role': 'assistant', 'content': '3'}]
    """
    prompt, has_prompt = as_system(record), record.get("prompt") is not None
    prompt += prompt_messages(text_or_messages(record, "prompt")) if has_prompt else []
    sides = []
    for name in ("chosen", "rejected"):
        if record.get(name) is None:
            raise UserError(f"the {name} side is missing: a preference needs a chosen and a rejected answer")
        sides.append(side_messages(text_or_messages(record, name), name, has_prompt))
    if has_prompt:
        opening = [side[: systems(side)] for side in sides]
        if opening[0] == opening[1] and not systems(prompt):
            prompt = opening[0] + prompt
        sides = [answer_messages(prompt, side, name) for side, name in zip(sides, ("chosen", "rejected"), strict=True)]
    shared = shared_opening(*sides)
    prompt, sides = prompt + shared, [side[len(shared) :] for side in sides]
    flaw = next(filter(None, map(flaw_of, sides)), "")
    if not flaw and not has_prompt and prompt and prompt[-1]["role"] == "assistant":
        flaw = "the answers follow another answer"  # some transcripts have two turns of the assistant in a row
    if not prompt and not flaw:
        raise UserError("chosen and rejected share no prompt: give it as prompt, or begin both with the same messages")
    if not flaw:
        refuse_answered(prompt)
    return RankedPreference(prompt, [side[-1] for side in sides], [0.0, 0.0 if flaw else 1.0], _margin(record), as_tools(record), flaw=flaw)


def ranked_preference(record: Mapping[str, Any]) -> RankedPreference:
    """{prompt, responses, ranks}, the lowest rank best, or `scores`, the highest best; UltraFeedback's {instruction, completions} as well.

    Raises UserError where there is not one number for each of two or more answers.

    >>> ranked_preference({"prompt": "1+1?", "responses": ["3", "2", "4"], "scores": [0.1, 9, 0.1]}).ranks
    [1.0, 0.0, 1.0]
    """
    if record.get("completions") is not None:
        return _ultrafeedback(record)
    responses = _list(record, "responses")
    if len(responses) < 2:
        raise UserError(f"responses must be a list of two answers or more, got {responses!r:.80}")
    by = "ranks" if record.get("ranks") is not None else "scores"
    numbers = _list(record, by)
    if len(numbers) != len(responses) or not all(map(_is_number, numbers)):
        raise UserError(f"{by} must be one number for each of the {len(responses)} responses, got {numbers!r:.80}")
    if record.get("prompt") is None:
        raise missing("prompt", record)
    prompt = [*as_system(record), *prompt_messages(text_or_messages(record, "prompt"))]
    refuse_answered(prompt)
    answers = [single_answer(prompt, response, f"responses[{i}]") for i, response in enumerate(responses)]
    return RankedPreference(prompt, answers, _ranks_of(numbers if by == "ranks" else [-number for number in numbers]), tools=as_tools(record))


def message_tree(record: Mapping[str, Any]) -> list[RankedPreference]:
    """An Open-Assistant message tree: every prompt with two or more ranked replies, behind the dialogue that led to it.

    Deleted messages are left out, with all that hangs on them. A tree without such a prompt is one example with a flaw.
    Raises UserError for a root that is no message.
    """
    root = record.get("prompt")
    if isinstance(root, str):
        try:
            root = parsed(root)  # a CSV's column
        except json.JSONDecodeError:
            pass
    if not isinstance(root, Mapping):
        raise UserError(f"the tree's prompt must be a message with replies, got {root!r:.80}")
    if found := list(_of_node(root, [])):
        return found
    return [RankedPreference([] if root.get("deleted") else [_message_of(root)], [], [], flaw="no prompt in the tree has two ranked replies")]


def unpaired_preference(record: Mapping[str, Any]) -> UnpairedPreference:
    """{prompt, completion, label}: label true (or 1) for an answer that is good, false (or 0) for one that is not.

    Raises UserError for a missing key, or a label that is neither.
    """
    for key in ("prompt", "completion", "label"):
        if record.get(key) is None:
            raise missing(key, record)
    label = str(record["label"]).lower()
    if label not in ("true", "false", "1", "0", "1.0", "0.0"):
        raise UserError(f"label must be true or false, got {record['label']!r}")
    prompt = [*as_system(record), *prompt_messages(text_or_messages(record, "prompt"))]
    refuse_answered(prompt)
    answer = single_answer(prompt, text_or_messages(record, "completion"), "completion")
    return UnpairedPreference(prompt, answer, label in ("true", "1", "1.0"), as_tools(record))


def prompt_example(record: Mapping[str, Any]) -> PromptExample:
    """A prompt under `prompt`, `question`, `instruction` (and `input`) or `messages`; the other keys become columns.

    The right answer, where there is one, is the column `answer`: an assistant's turn that ends the messages, or an instruction's `output`.
    Raises UserError where no key holds a prompt.

    >>> prompt_example({"question": "1+1?", "answer": "#### 2"})
    PromptExample(prompt=[{'role': 'user', 'content': '1+1?'}], columns={'answer': '#### 2'}, tools=None, where='')
    """
    rest = {key: value for key, value in record.items() if key not in ("system", "tools") and value is not None}
    key = next((key for key in ("prompt", "question", "instruction", "messages") if key in rest), None)
    if key is None:
        raise missing("prompt", record)
    answer = None
    if key == "messages":
        prompt = as_messages(decoded(rest, key), key)
        if prompt and prompt[-1]["role"] == "assistant":
            answer, prompt = prompt[-1].get("content"), prompt[:-1]
    elif key == "instruction":
        context = rest.pop("input", None)
        prompt = [{"role": "user", "content": as_text(rest, key) + (f"\n\n{context}" if context else "")}]
        answer = rest.pop("output", None) if "answer" not in rest else None
    else:
        prompt = prompt_messages(text_or_messages(rest, key))
    del rest[key]
    refuse_answered(prompt)
    return PromptExample([*as_system(record), *prompt], rest if answer is None else {"answer": answer, **rest}, as_tools(record))


PREFERENCE_SHAPES: Shapes = {
    "trees": (("message_tree_id", "prompt"), message_tree),
    "preference": (("chosen",), paired_preference),
    "rejected_only": (("rejected",), paired_preference),  # which says what is missing
    "ranked": (("responses",), ranked_preference),
    "ultrafeedback": (("instruction", "completions"), ranked_preference),
}
UNPAIRED_SHAPES: Shapes = {"judged": (("prompt", "completion", "label"), unpaired_preference)}
PROMPT_SHAPES: Shapes = {
    "prompt": (("prompt",), prompt_example), "question": (("question",), prompt_example), "instruction": (("instruction",), prompt_example), "messages": (("messages",), prompt_example),
}  # fmt: skip


def _margin(record: Mapping[str, Any]) -> float | None:
    margin = record.get("margin")
    if isinstance(margin, str):  # a table's
        try:
            margin = float(margin) if margin.strip() else None
        except ValueError:
            pass
    if margin is not None and not _is_number(margin):
        raise UserError(f"margin must be a number, got {margin!r}")
    return None if margin is None else float(margin)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value and abs(value) != float("inf")


def _list(record: Mapping[str, Any], key: str) -> list:
    """The list under a key; a CSV's column holds it as JSON text."""
    value = record.get(key)
    if value is None:
        raise missing(key, record)
    try:
        value = parsed(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        pass
    if not isinstance(value, list):
        raise UserError(f"{key} must be a list, got {value!r:.80}")
    return value


def _ranks_of(numbers: list[float]) -> list[float]:
    """Ranks from 0, the lowest number first and equal ones together."""
    order = sorted(set(numbers))
    return [float(order.index(number)) for number in numbers]


def _ultrafeedback(record: Mapping[str, Any]) -> RankedPreference:
    completions = _list(record, "completions")
    if len(completions) < 2 or not all(isinstance(completion, Mapping) for completion in completions):
        raise UserError(f"completions must be two or more of {{response, overall_score}}, got {completions!r:.80}")
    scores = [completion.get("overall_score") for completion in completions]
    if not all(map(_is_number, scores)):
        raise UserError(f"every completion needs an overall_score that is a number, got {scores!r:.80}")
    answers = [{"role": "assistant", "content": as_text(completion, "response")} for completion in completions]
    prompt = [*as_system(record), {"role": "user", "content": as_text(record, "instruction")}]
    return RankedPreference(prompt, answers, _ranks_of([-score for score in scores]), tools=as_tools(record))


def _of_node(node: Mapping[str, Any], before: list[Message]) -> Iterator[RankedPreference]:
    """The ranked replies to a prompt, and those further down behind each reply."""
    if node.get("deleted"):
        return
    talk = [*before, _message_of(node)]
    below = node.get("replies") or []
    if not isinstance(below, list) or not all(isinstance(reply, Mapping) for reply in below):
        raise UserError(f"replies must be a list of messages, got {below!r:.80}")
    replies = [reply for reply in below if not reply.get("deleted")]
    answers = [reply for reply in replies if reply.get("role") == "assistant" and _is_number(reply.get("rank"))]
    if node.get("role") == "prompter" and len(answers) > 1:
        yield RankedPreference(talk, [_message_of(reply) for reply in answers], _ranks_of([reply["rank"] for reply in answers]))
    for reply in replies:
        yield from _of_node(reply, talk)


def _message_of(node: Mapping[str, Any]) -> Message:
    roles = {"prompter": "user", "assistant": "assistant"}
    if node.get("role") not in roles:
        raise UserError(f"a message's role must be prompter or assistant, got {node.get('role')!r}")
    return {"role": roles[node["role"]], "content": as_text(node, "text")}
