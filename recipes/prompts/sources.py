"""Prompts out of records as an encoder reads them: as in training, cut where they are too long, and counted."""

from dataclasses import dataclass, field, replace
from typing import Any

from seodang.data.errors import UserError
from seodang.data.seq2seq.encoding import source_ids
from seodang.data.seq2seq.records import behind
from seodang.data.seq2seq.rows import cut_source, told_languages
from seodang.infer import SamplingParams
from seodang.infer.engine.checkpoint_settings import known_config
from seodang.infer.runners.architecture import transformers_model
from seodang.recipes.prompts.prompt_files import Prompts


@dataclass
class Sources:
    """What makes of each prompt what the model is asked, and with which settings; sources that lose their end are counted."""

    asked: Prompts
    raw: bool = False
    literal: bool | None = None
    source_prefix: str = ""
    max_length: int | None = None
    truncated: dict[int, int] = field(default_factory=dict)  # by the prompt's index, of how many tokens it is

    def check(self, model: str) -> None:
        """Raise UserError for what is said of sources where the model, not loaded yet, is known to be a decoder."""
        config = known_config(model)
        if config is not None:
            self._refuse_decoder(config)

    def _refuse_decoder(self, config: Any) -> None:
        if config.is_encoder_decoder:
            return
        for name, value in (("max_source_length", self.max_length), ("source_prefix", self.source_prefix or None)):
            if value is not None:
                raise UserError(f"{name} is for encoder-decoders, and {config.model_type} is a decoder, which reads prompts: leave it out")

    def asks(self, model: Any, tokenizer: Any, index: int, params: SamplingParams) -> tuple[Any, SamplingParams]:
        """The prompt of an index as the engine takes it, and its settings. Raises UserError where the settings give the beginning that the record gives."""
        prompt, config = self.asked.prompts[index], transformers_model(model).config
        if (schema := self.asked.schemas.get(index)) is not None:
            params = replace(params, json_schema=schema)
        if prefix := self.asked.prefixes.get(index):
            if params.prefix:
                raise UserError(f"prefix={params.prefix!r}, but {self._name(index)} gives the beginning of its answer itself: drop one of them")
            params = replace(params, prefix=prefix)
        self._refuse_decoder(config)
        if not config.is_encoder_decoder:  # where languages name keys, and no more
            return prompt, replace(params, source_lang=None, target_lang=None) if self.asked.translated else params
        source_lang, target_lang = told_languages(tokenizer, params.source_lang, params.target_lang, self.asked.translated)
        params = replace(params, source_lang=source_lang, target_lang=target_lang)
        is_source = index in self.asked.sources and not self.raw
        if not is_source and self.max_length is None and not self.source_prefix:
            return prompt, params
        return self._encoded(tokenizer, prompt[0]["content"] if is_source else prompt, index, params)

    def _encoded(self, tokenizer: Any, prompt: Any, index: int, params: SamplingParams) -> tuple[Any, SamplingParams]:
        literal = not self.raw if self.literal is None else self.literal
        try:
            ids = source_ids(tokenizer, behind(prompt, self.source_prefix), literal, source_lang=params.source_lang, target_lang=params.target_lang)
        except UserError as error:
            raise UserError(f"{self._name(index)}: {error}") from None
        params = replace(params, source_lang=None)  # it is among the ids
        if self.max_length is None or len(ids) <= self.max_length:
            return ids, params
        if tokenizer.chat_template and not isinstance(prompt, str):
            raise UserError(f"{self._name(index)} has {len(ids)} tokens in the chat template, whose end would be cut at max_source_length {self.max_length}: shorten it")
        self.truncated[index] = len(ids)
        return cut_source(tokenizer, ids, self.max_length), params

    def _name(self, index: int) -> str:
        return f"{self.asked.unit} {self.asked.numbers[index]}"

    def lines(self) -> list[str]:
        """How many sources lost their end, where any did."""
        return truncated_lines(len(self.truncated), max(self.truncated.values(), default=0), len(self.asked.prompts), self.max_length)


def truncated_lines(count: int, longest: int, of: int, max_length: int | None) -> list[str]:
    """What is said of sources that lose their end, nothing where none does."""
    told = f"{count:,} of {of:,} sources are longer than {max_length} tokens"
    return [f"truncated       {told} (the longest has {longest:,}): of each the end is not read"] if count else []
