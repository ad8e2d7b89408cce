"""Who is evaluated, by a word of the command line: a checkpoint, a model of a server, or a file of answers."""

import copy
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seodang.data.errors import UserError
from seodang.data.hub import check_hub_name
from seodang.infer.engine.checkpoint_settings import known_config
from seodang.infer.runners.paradigm import refuse_encoder
from seodang.recipes.options.backend import BackendOptions
from seodang.recipes.options.decoding import Decoding, SpeakingModel
from seodang.recipes.prompts.prompt_files import Prompts
from seodang.recipes.run.backends import backend_for

CHECKPOINT, SERVER, FILE = "checkpoint", "server", "file of answers"
FORMS = "a folder or hub name, http://HOST:PORT/v1#MODEL of a server, or a .jsonl file of answers; before any of them a name, as after=runs/sft"
_NAMED = re.compile(r"([\w.-]+)=(.+)", re.DOTALL)


@dataclass(frozen=True)
class Contender:
    """Whose answers are measured: by which `name` they stand in tables, of what kind, and where it is to be had."""

    name: str
    kind: str
    what: str

    def backend(self, loading: Mapping[str, Any], asking: Mapping[str, Any], decoding: Decoding, options: Any, asked: Prompts) -> Any:
        """Who answers the prompts, not opened yet: loaded by the options of `SpeakingModel`, a server asked by those of `BackendOptions`.

        Raises UserError for settings that it cannot honour.
        """
        own = copy.copy(decoding)  # it takes over the settings of one checkpoint
        if self.kind == SERVER:
            url, _, model = self.what.partition("#")
            return backend_for(BackendOptions(backend="openai", base_url=url, **asking), SpeakingModel(model or "default"), own, options, asked)
        return backend_for(BackendOptions(), SpeakingModel(self.what, **loading), own, options, asked)


def contenders_of(words: Sequence[str]) -> list[Contender]:
    """Who the words name. Raises UserError, before anything is loaded, for a model that cannot be had or does not speak, and for two of one name."""
    found = [_contender(word) for word in words]
    name, times = max(Counter(each.name for each in found).items(), key=lambda pair: pair[1], default=("", 0))
    if times > 1:
        raise UserError(f"{times} models are called {name}: give them names, as before={next(each.what for each in found if each.name == name)}")
    return found


def _contender(word: str) -> Contender:
    named = None if os.path.exists(word) else _NAMED.fullmatch(word)
    name, what = named.groups() if named else (None, word)
    if what.startswith(("http://", "https://")):
        url, _, model = what.partition("#")
        return Contender(name or model.rpartition("/")[2] or url.partition("//")[2].partition("/")[0], SERVER, what)
    if what.endswith(".jsonl"):
        if not os.path.isfile(what):
            raise UserError(f"there is no file of answers {what}: give {FORMS}")
        return Contender(name or Path(what).stem, FILE, what)
    if what != "default" and not os.path.exists(what):
        check_hub_name(what)
    if (config := known_config(what)) is not None:
        refuse_encoder(config)
    return Contender(name or Path(what).name or what, CHECKPOINT, what)
