"""The templates that trl carries, and those of tool forms that it has none of, on SmolLM2's tokenizer."""

import copy
import re
from pathlib import Path

import pytest
import trl

FILES = {path.stem: path for path in sorted(Path(trl.__file__).parent.glob("chat_templates/*.jinja"))}
SPECIAL = re.compile(r"<\|[\w ]+\|>|<｜[^<>｜]+｜>|<(?:start|end)_of_(?:turn|utterance)>|<\|\w+>|<\w+\|>|</s>|\[/?INST\]|\[[A-Z_]{4,}\]")


@pytest.fixture(scope="session")
def templated(_tokenizer):
    """`templated(name_or_source)`: the tokenizer with a template of trl's by name, or one by its text; the special tokens of all are added."""
    tokenizer = copy.deepcopy(_tokenizer)
    found = {token for path in FILES.values() for token in SPECIAL.findall(path.read_text(encoding="utf-8"))}
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(found)})

    def use(name: str):
        source = FILES[name].read_text(encoding="utf-8") if name in FILES else name
        if name not in FILES and (more := set(SPECIAL.findall(source)) - set(tokenizer.get_added_vocab())):
            tokenizer.add_special_tokens({"additional_special_tokens": sorted(more)}, replace_extra_special_tokens=False)
        tokenizer.chat_template = source
        return tokenizer

    return use
