"""Seeds: instruction, input and output, from records of any shape that has one question and one answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from ..formats import Dialogue, Family, as_text, decoded, messages, prompt_completion, sharegpt

FIELDS = ("instruction", "input", "output")


@dataclass
class Seed:
    """A task with its answer; `where` says where it stands, in a file or among what was made."""

    instruction: str
    input: str
    output: str
    where: str = ""
    taken: str = field(default="", repr=False, compare=False)  # which columns of the file were taken as what, in words

    def told(self, fields: tuple[str, ...] = FIELDS) -> dict[str, str]:
        """Some of its texts by their names."""
        return {name: getattr(self, name) for name in fields}

    @property
    def question(self) -> str:
        """Instruction and input as training puts them (`formats.triplet`)."""
        return f"{self.instruction}\n\n{self.input}" if self.input else self.instruction


def triplet(record: Mapping[str, Any]) -> Seed:
    """{instruction, input, output}, where `input` may be missing.

    Raises UserError for a missing key, and for `system` and `history`, which a seed has no place for.
    """
    for name in ("system", "history"):
        if record.get(name):
            raise UserError(f"{name}: a seed is one question and its answer, take this column out or put it into the instruction")
    return Seed(as_text(record, "instruction"), as_text(record, "input") if record.get("input") else "", as_text(record, "output"))


def self_instruct(record: Mapping[str, Any]) -> list[Seed]:
    """{instruction, instances: [{input, output}]} of Self-Instruct's seed tasks: a seed an instance.

    >>> [seed.output for seed in self_instruct({"instruction": "Add.", "instances": [{"input": "1 1", "output": "2"}, {"output": "0"}]})]
    ['2', '0']
    """
    instances = decoded(record, "instances")
    if not isinstance(instances, list) or not instances or not all(isinstance(each, Mapping) for each in instances):
        raise UserError(f"instances must be a list of {{input, output}}, got {instances!r:.80}")
    return [triplet({"instruction": record["instruction"], **each}) for each in instances]


def _dialogue(read: Callable[[Mapping[str, Any]], Dialogue]) -> Callable[[Mapping[str, Any]], Seed]:
    def seed(record: Mapping[str, Any]) -> Seed:
        turns = read(record).messages
        roles = [turn["role"] for turn in turns]
        if roles != ["user", "assistant"]:
            raise UserError(f"a seed is one question and its answer, got the turns {', '.join(map(str, roles)) or 'none'}")
        texts = [turn.get("content") for turn in turns]
        if not all(isinstance(text, str) for text in texts):
            raise UserError(f"a seed's question and answer must be texts, got {texts!r:.80}")
        return Seed(texts[0], "", texts[1])

    return seed


SHAPES = Family({
    "messages": (("messages",), _dialogue(messages)),
    "sharegpt": (("conversations",), _dialogue(sharegpt)),
    "self_instruct": (("instruction", "instances"), self_instruct),
    "triplet": (("instruction",), triplet),
    "prompt_completion": (("prompt",), _dialogue(prompt_completion)),
})  # fmt: skip
