"""What lies beside an exported model for whoever runs it: a model card with the lines of each engine, and Ollama's Modelfile."""

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ...data.chat import all_end_ids
from ...data.files.cache_folder import cache_folder
from ...data.seq2seq.languages import begins_targets, language_ids, target_language, writes_languages
from ...infer.checkpoint.default_model import NAME
from ...infer.encoders.tagging import labels_all_subwords
from ...infer.runners.paradigm import TAGS, diffusion_of

QUESTION = "Name three colours."
ROUNDED = "It keeps keys and values in float16 and rounds in flash attention, but not with `--cache-type-k f32 --cache-type-v f32 --flash-attn off`."
FEW_BITS = "In q4_0 weights have 4 bits, those of the embedding and the head 8, and what they are multiplied with 8: often another token is the likeliest."
EIGHT_BITS = "In q8_0 weights, and what they are multiplied with, have 8 bits: now and then another token is the likeliest."
TO_OLLAMA = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repeat_penalty"}


@dataclass
class Exported:
    """An exported model: its name, what it was made of and how; `gguf` is the file's name, `weights` "int8" or "int4", `notes` what differs in llama.cpp."""

    name: str
    base: str
    step: int | None
    dtype: torch.dtype | None
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    gguf: str | None = None
    weights: str | None = None
    parameters: int = 0
    notes: list[str] = field(default_factory=list)
    adapter: bool = False

    @property
    def ends(self) -> list[str]:
        """The texts of the tokens that end one."""
        generation = getattr(self.model, "generation_config", None)  # a reward model has none
        ids = all_end_ids(generation.eos_token_id, self.tokenizer) if generation else []
        return [self.tokenizer.decode([id], clean_up_tokenization_spaces=False) for id in ids]

    @property
    def draws(self) -> bool:
        """Whether the checkpoint has tokens drawn, where a request says nothing."""
        return bool(self.model.generation_config.do_sample)

    @property
    def target(self) -> str | None:
        """The language that examples ask for: the tokenizer's own, else another than the source's; None where there are none."""
        known, own = language_ids(self.tokenizer), getattr(self.tokenizer, "src_lang", None)
        return target_language(self.tokenizer, None) or next((code for code in known if code != own), None)

    @property
    def source(self) -> str:
        """What examples ask, in a source that names its language where the checkpoint wants that (Marian)."""
        return f">>{self.target}<< {QUESTION}" if self.target and not writes_languages(self.tokenizer) else QUESTION

    @property
    def ollama(self) -> str:
        """The name in letters that Ollama takes."""
        return re.sub(r"[^a-z0-9._-]+", "-", self.name.lower()).strip("-._") or "model"


def model_card(about: Exported) -> str:
    """Return the README.md of an exported folder; its lines run in that folder."""
    config = about.model.config
    generates = hasattr(about.model, "generation_config")
    default = about.base == "default" or Path(about.base) == cache_folder() / NAME
    hub = f"HuggingFaceTB/{NAME}" if default else about.base
    local = not default and Path(about.base).is_dir()
    tags = type(about.model).__name__.endswith(TAGS)
    task = task_of(config, about.tokenizer) if generates else "token-classification" if tags else "text-classification"
    header = ["library_name: transformers", f"pipeline_tag: {task}"]
    header += [] if local else [f"base_model: {hub}"]
    held = about.weights or str(about.dtype).removeprefix("torch.")
    facts = [f"{config.model_type}, {about.parameters:,} parameters in {held}"]
    facts += [f"exported by Seodang from {Path(hub).resolve().name if local else hub}" + (f", after {about.step} steps of training" if about.step else "")]
    if length := getattr(config, "max_position_embeddings", None):
        facts.append(f"context of {length:,} tokens")
    text = ["---", *header, "---", "", f"# {about.name}", "", "; ".join(facts) + "."]
    if about.ends:
        text.append(f"A text ends with {' or '.join(f'`{end}`' for end in about.ends)} (generation_config.json has their ids).")
    text += ["", "The lines below run in this folder.", ""]
    return "\n".join([*text, *lines_to_run(about)])


def lines_to_run(about: Exported) -> list[str]:
    """The lines of each engine that runs a model, under headings; they run in its folder."""
    config = about.model.config
    if type(about.model).__name__.endswith(TAGS):
        return _tagger_lines(about)
    if getattr(about.model, "generation_config", None) is None:
        return [*_reward_lines(), "A reward model's head has no place in a GGUF file: llama.cpp and Ollama have none of it.", ""]
    text = []
    if diffusion_of(config) is not None:
        text += ["It fills in masks as Seodang lets it; other engines know nothing of that, and have it speak left to right.", ""]
        if not diffusion_of(config).autoregressive:
            return [*text, *_seodang_lines()]
    if about.weights is not None:
        return [*text, f"The linear layers are in {about.weights}, as Seodang's kernels read them: other engines do not.", "", *_seodang_lines()]
    if type(about.model).__module__.startswith("seodang."):
        return [*text, "The architecture is Seodang's own, which other engines do not know.", "", *_seodang_lines()]
    if config.is_encoder_decoder:
        return [*text, *_source_lines(about), "", *_transformers_lines(about, "AutoModelForSeq2SeqLM"), *_seodang_lines(about.target)]
    if about.adapter:
        merged = ["`seodang export . FOLDER` merges it into a whole model, for engines that take no adapters.", ""]
        return [*text, *_transformers_lines(about), *_seodang_lines(), *merged]
    return [*text, *_transformers_lines(about), *_vllm_lines(about), *_llama_cpp_lines(about), *_seodang_lines()]


def modelfile(about: Exported) -> str:
    """Return the Modelfile by which Ollama makes a model of the GGUF file, which brings its chat template itself."""
    lines = [f"FROM ./{about.gguf}", *(f"PARAMETER stop {_quoted(end)}" for end in about.ends)]
    generation = about.model.generation_config
    if not about.draws:
        lines.append("PARAMETER temperature 0")  # Ollama would draw
    else:
        asked = {theirs: getattr(generation, own) for own, theirs in TO_OLLAMA.items() if getattr(generation, own) is not None}
        lines += [f"PARAMETER {name} {value}" for name, value in asked.items()]
        lines += ["PARAMETER repeat_last_n -1"] if "repeat_penalty" in asked else []  # the whole text, as elsewhere
    if not about.tokenizer.chat_template:
        lines.append('TEMPLATE "{{ .Prompt }}"')
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A text as a Modelfile has it, where a backslash is one and three quotes may hold others."""
    return f'"""{text}"""' if '"' in text else f'"{text}"'


def _section(title: str, lines: list[str]) -> list[str]:
    return [f"## {title}", "", *lines, ""]


def _code(language: str, *lines: str) -> list[str]:
    return [f"```{language}", *lines, "```"]


def _served(serve: str, ask: str) -> list[str]:
    return [*_code("sh", serve), "", "and from another terminal:", "", *_code("sh", ask)]


def _transformers_lines(about: Exported, auto: str = "AutoModelForCausalLM") -> list[str]:
    begin = [
        f"from transformers import {auto}, AutoTokenizer", "",
        'tokenizer = AutoTokenizer.from_pretrained(".")', f'model = {auto}.from_pretrained(".", dtype="auto")',
    ]  # fmt: skip
    if about.tokenizer.chat_template:
        asked = [
            f"messages = {_messages()}",
            'inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)',
        ]
    else:
        asked = [f'inputs = tokenizer({json.dumps(about.source)}, return_tensors="pt")']
    behind = "" if about.model.config.is_encoder_decoder else ', inputs["input_ids"].shape[1] :'
    says = f"answer = model.generate(**inputs, {_forced(about)}max_new_tokens=64)[0{behind}]"
    code = _code("python", *begin, *asked, says, "print(tokenizer.decode(answer, skip_special_tokens=True))")
    return _section("transformers", ["transformers 5 or newer:", "", *code])


def _source_lines(about: Exported) -> list[str]:
    """What an encoder-decoder is asked with."""
    reads = "messages through its chat template" if about.tokenizer.chat_template else "a text as it stands, of messages a single user's"
    told = [f"An encoder reads {reads}; the answer begins anew, and is not a continuation of the text."]
    known = language_ids(about.tokenizer)
    if known and writes_languages(about.tokenizer):
        told.append(f"The tokenizer has {len(known)} languages: the source's is `tokenizer.src_lang` (here {about.tokenizer.src_lang}), the answer begins with its own's token.")
    elif known:
        told.append(f"A source begins with the language of its answer, of {len(known)}: `>>{next(iter(known))}<<`.")
    return told


def _forced(about: Exported) -> str:
    """The argument by which transformers begins an answer with its language, where nothing in the folder says it."""
    if not about.model.config.is_encoder_decoder or about.target is None or about.model.generation_config.forced_bos_token_id is not None:
        return ""
    id = language_ids(about.tokenizer)[about.target]
    return f"forced_bos_token_id={id}, " if begins_targets(about.tokenizer) else f"decoder_start_token_id={id}, " if writes_languages(about.tokenizer) else ""


def _vllm_lines(about: Exported) -> list[str]:
    return _section("vLLM", _served(f"vllm serve . --served-model-name {shlex.quote(about.name)} --port 8000", _ask(about, 8000)))


def _llama_cpp_lines(about: Exported) -> list[str]:
    if about.gguf is None:
        told = ["`seodang export . FOLDER --gguf f16` writes a GGUF file for these, where they know the family and the tokenizer."]
        return _section("llama.cpp and Ollama", told)
    here = _served(f"llama-server --model {shlex.quote(about.gguf)} --port 8080", _ask(about, 8080))
    here += ["", " ".join([ROUNDED, *(told for end, told in (("-Q8_0.gguf", EIGHT_BITS), ("-Q4_0.gguf", FEW_BITS)) if about.gguf.endswith(end))])]
    if about.notes:
        here += ["", "What differs there:", "", *(f"- {note}" for note in about.notes)]
    template = [
        "Ollama reads the chat template in the GGUF file. Older versions know it only if it is like one of their own, and else put the words bare:",
        f"`ollama show {about.ollama} --template` says what such a version took.",
    ]  # fmt: skip
    ollama = _code("sh", f"ollama create {about.ollama} --file Modelfile", f"ollama run {about.ollama} {shlex.quote(QUESTION)}")
    return [*_section("llama.cpp", here), *_section("Ollama", [*ollama, *(["", *template] if about.tokenizer.chat_template else [])])]


def _seodang_lines(target: str | None = None) -> list[str]:
    language = f" --target_lang {target}" if target else ""
    return _section("Seodang", _code("sh", f"seodang generate . {shlex.quote(QUESTION)}{language}", "seodang serve . --port 8000"))


def task_of(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """What the hub calls what a model does."""
    if not config.is_encoder_decoder:
        return "text-generation"
    return "translation" if config.model_type == "marian" or language_ids(tokenizer) else "text2text-generation"


def _reward_lines() -> list[str]:
    lines = [
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer", "",
        'tokenizer = AutoTokenizer.from_pretrained(".")', 'model = AutoModelForSequenceClassification.from_pretrained(".", dtype="auto")',
        f'messages = [*{_messages()}, {{"role": "assistant", "content": "Red, green, blue."}}]',
        'inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)', "print(model(**inputs).logits)",
    ]  # fmt: skip
    return _section("transformers", _code("python", *lines))


def _tagger_lines(about: Exported) -> list[str]:
    how = "simple" if labels_all_subwords(about.model.config) else "first"
    lines = [
        "from transformers import pipeline", "",
        f'tagger = pipeline("token-classification", model=".", aggregation_strategy="{how}")', 'print(tagger("Anna lives in New York."))',
    ]  # fmt: skip
    return [*_section("transformers", _code("python", *lines)), *_section("Seodang", _code("sh", "seodang tag --model . --data texts.txt --predict"))]


def _messages() -> str:
    return json.dumps([{"role": "user", "content": QUESTION}])


def _ask(about: Exported, port: int) -> str:
    chat = bool(about.tokenizer.chat_template)
    asked: dict[str, Any] = {"messages": json.loads(_messages())} if chat else {"prompt": QUESTION}
    likeliest = {} if about.draws else {"temperature": 0}  # as transformers answers; servers draw
    body = json.dumps({"model": about.name, **asked, "max_tokens": 64, **likeliest}, ensure_ascii=False)
    path = "chat/completions" if chat else "completions"
    return f"curl http://127.0.0.1:{port}/v1/{path} -H 'Content-Type: application/json' -d {shlex.quote(body)}"
