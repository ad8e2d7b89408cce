"""What is known of every command's options before the libraries that declare some of them are imported: short help, and mistakes told at once.

`known.json` is written by `python -m seodang.recipes.options.known` from what the commands' own parsers say (`--help json`); a test says when.
"""

import argparse
import contextlib
import difflib
import importlib
import io
import json
import os
import re
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from seodang.data.errors import UserError
from seodang.data.files.sources import check_source
from seodang.data.hub import check_hub_name
from seodang.data.text.documents import check_text_source
from seodang.infer.checkpoint.default_encoder import NAME as DEFAULT_ENCODER
from seodang.recipes.options.outputs import OUTPUTS, READ, check_outputs

FILE = Path(__file__).with_name("known.json")
LIBRARIES = ("transformers", "trl")  # whose versions decide which options there are
MODELS = ("model", "adapter", "reference", "reward_model", "value_model", "classifier")  # the options that name a model's folder, or one on the hub
SOURCES = ("data", "eval_data")  # those that name what is read

DATA = "data columns eval_data eval_fraction"
FILES = f"{DATA} encoding"
TEXT = "data documents columns encoding"
TOKENIZER = "kind vocab_size"
MODEL = "model lora_r device dtype"
LEARNING = "learning_rate num_train_epochs per_device_train_batch_size"
RUN = "output_dir config resume dry_run"
SPEAKER = "model adapter device dtype"
CHOICE = "temperature top_p top_k min_p repetition_penalty num_beams json_schema regex"
DEMO = {"model": "model device dtype", "run": "output_dir minutes heldout seed"}

FOLDERS = {"setup": "starting", "completion": "starting", "demo": "demos", "diffusion-lm": "diffusion_lm", "init": "starting", "synthesise": "synthesis", "tag": "tagging"}
PASSED_ON = {"lm-eval": "evaluation.harness"}  # verbs whose options another program reads, in modules that are not called what that is

# The options that matter most, under their headings; the others are listed by --help all.
FIRST: dict[str, dict[str, str]] = {
    "setup": {"fetched": "encoder examples"},
    "completion": {"for": "shell"},
    "prepare": {"rows": "data model max_length packing row_cache num_proc", "records": "tasks_from triplets_from output columns encoding"},
    "preview": {
        "data": "data columns encoding shape tasks task_format weights split rows html", "model": "model chat_template", "labels": "max_length train_on empty_answers unusable",
    },
    "init": {"recipe": "output_dir task model", "data": "data columns encoding text_column label_column sample", "questions": "yes"},
    "tokenizer": {"data": TEXT, "tokenizer": f"{TOKENIZER} cased limit_alphabet min_frequency add_prefix_space bpe_dropout", "run": "output_dir config"},
    "pretrain": {
        "data": "data documents eval_fraction max_length", "tokenizer": f"tokenizer {TOKENIZER}",
        "model": "architecture hidden_size layers heads model", "learning": LEARNING, "run": RUN,
    },
    "sft": {"data": f"{FILES} tasks task_format max_length packing", "model": MODEL, "learning": f"{LEARNING} max_steps", "run": RUN},
    "seq2seq": {
        "data": "data columns eval_fraction tasks source_prefix source_lang target_lang max_source_length max_target_length", "model": "model lora_r scratch",
        "learning": LEARNING, "measured": "eval_samples eval_new_tokens", "run": RUN,
    },
    "diffusion": {
        "data": f"{DATA} max_length", "model": f"{MODEL} mask_token attention block_length shift",
        "learning": f"canvas weighting co_loss {LEARNING}", "run": RUN,
    },
    "mlm": {
        "data": f"{FILES} documents max_length", "model": "model scratch device dtype",
        "learning": f"mlm_probability whole_words {LEARNING} max_steps", "run": RUN,
    },
    "diffusion-lm": {
        "data": f"{FILES} min_count length too_long", "model": "embedding_size hidden_size layers heads diffusion_steps device", "learning": LEARNING, "run": RUN,
    },
    "diffusion-lm-control": {"data": f"{FILES} too_long", "model": "model hidden_size layers device", "learning": LEARNING, "run": RUN},
    "diffusion-lm-sample": {
        "texts": "templates samples words word_at output seed show_steps", "model": "model device", "steps": "steps eta clamp_from",
        "control": "classifier label updates rate fluency",
    },
    "reward": {"data": f"{FILES} max_length pair_weights", "model": MODEL, "learning": LEARNING, "run": RUN},
    "dpo": {"data": f"{FILES} max_length", "model": f"{MODEL} reference", "learning": f"loss beta draws {LEARNING}", "run": RUN},
    "kto": {"data": f"{FILES} max_length", "model": MODEL, "learning": f"beta {LEARNING}", "run": RUN},
    "ppo": {
        "data": "data eval_data eval_fraction max_prompt_length", "reward": "reward reward_model", "model": MODEL,
        "learning": "iterations rollouts max_new_tokens kl_coefficient learning_rate per_device_train_batch_size", "run": RUN,
    },
    **{
        verb: {
            "data": f"{DATA} max_prompt_length", "reward": "reward reward_model", "model": MODEL,
            "learning": f"num_generations max_completion_length beta {LEARNING}", "run": RUN,
        }
        for verb in ("grpo", "rloo")
    },
    "rlhf": {
        "data": "data columns encoding ranker ranked_prompts heldout_prompts samples", "model": MODEL, "rounds": "rounds reward_from policy_prompts",
        "run": "output_dir config seed dry_run",
    },
    "generate": {
        "prompts": "prompts output resume raw references tasks batch_size", "model": f"{SPEAKER} backend base_url", "answer": "max_new_tokens stop seed num_return_sequences logprobs",
        "choice of tokens": CHOICE,
    },
    "synthesise": {
        "made": "data style count token_budget output resume", "model": "model backend base_url", "styles": "shots personas source_lang target_lang",
        "answer": "temperature max_new_tokens", "filters": "near_duplicates max_overlap eval_data reward_model min_reward round_trip",
    },
    "eval": {
        "models": "models device dtype", "data": "data columns by train_data", "figures": "metrics reward reward_model judge against",
        "answers": "raw max_new_tokens seed num_return_sequences", "written": "output resume html",
    },
    "lm-eval": {
        "model": "model model_args", "tasks": "tasks include_path num_fewshot limit", "prompts": "apply_chat_template system_instruction gen_kwargs",
        "written": "output_path log_samples use_cache",
    },
    "chat": {"talk": "system", "model": SPEAKER, "answer": "max_new_tokens stop seed", "choice of tokens": CHOICE},
    "serve": {
        "where": "host port served_model_name", "model": f"{SPEAKER} weights", "how much": "max_rows max_waiting cache_gib reuse_prefixes",
    },
    "explain": {"prompt": "prompt html png attention raw", "model": SPEAKER, "answer": "max_new_tokens stop seed", "choice of tokens": CHOICE},
    "classify": {
        "data": "data eval_fraction text_column pair_column label_column", "labels": "multi_label regression class_weights",
        "model": "model lora_r", "learning": "learning_rate num_train_epochs", "predictions": "predict output", "run": "output_dir dry_run",
    },
    "tag": {
        "data": "data eval_data eval_fraction text_column label_column scheme label_all_subwords",
        "model": "model lora_r", "learning": LEARNING, "predictions": "predict output", "run": RUN,
    },
    "contrastive": {
        "data": f"{DATA} max_length min_score", "model": "model pooling device dtype", "learning": f"temperature symmetric {LEARNING}", "run": RUN,
    },
    "embed": {
        "texts": "data column search top_k output resume", "model": "model pooling normalise prompt max_length too_long device dtype",
    },
    "score": {
        "data": "data columns encoding shape max_length empty_answers unusable output raw tokens", "model": f"{SPEAKER} chat_template", "of their kind": "draws pll_metric",
    },
    "fill-mask": {"texts": "texts data columns encoding output json", "model": SPEAKER, "fillings": "top_k how targets"},
    "export": {"checkpoint": "model output_dir dtype gguf weights"},
    "demo": DEMO | {"learning": "tokens learning_rate"},
    "demo-diffusion": {
        "model": "model device dtype", "diffusion": "attention block_length shift weighting schedule co_loss complementary canvas alg passes",
        "run": "output_dir max_steps heldout twin seed",
    },
    "demo-pretrain": {
        "model": "architecture hidden_size layers heads vocab_size device dtype", "run": "output_dir max_steps minutes learning_rate seed",
    },
    "demo-rlhf": DEMO,
    "demo-encoder": {
        "model": "model device dtype", "data": "archive train heldout", "learning": "regression num_train_epochs learning_rate", "run": "output_dir seed",
    },
    "demo-seq2seq": {
        "model": "norm_position d_model layers num_heads dropout vocab_size device dtype", "data": "rows heldout",
        "run": "output_dir max_steps minutes learning_rate seed",
    },
    "demo-attention": {
        "models": "models d_model layers heads lstm_learning_rate transformer_learning_rate", "data": "rows digits batch heldout",
        "run": "output_dir max_steps minutes timed_tokens seed",
    },
}  # fmt: skip


def help_asked(verb: str, argv: Sequence[str]) -> str | None:
    """The short help of a verb where the arguments ask for it, else None."""
    asked = next((place for place, word in enumerate(_before_dashes(argv)) if word in ("-h", "--help")), None)
    if asked is None or list(argv[asked + 1 : asked + 2]) in (["all"], ["json"]) or verb not in known():
        return None
    return short_help(verb, shutil.get_terminal_size().columns)


def short_help(verb: str, width: int) -> str:
    """The options that matter most under their headings, as wide as a terminal of so many columns."""
    width = min(max(width, 60), 140)
    told = known()[verb]
    places = "".join(f" {name.upper()}" for name in told["positional"])
    lines = [f"usage: seodang {verb}{places} [options]", "", *told["description"].strip().splitlines()]
    for heading, options in told["first"].items():
        lines += ["", heading]
        for name, what in options.items():
            lines += _entry(name, what, width)
    count = len(told["names"].split())
    return "\n".join([*lines, "", f"--help all lists all {count} options."])


def _entry(name: str, what: str, width: int, column: int = 26) -> list[str]:
    begun, text = f"  --{name}", textwrap.wrap(what, width - column)
    first = [f"{begun:<{column}}{text[0]}"] if len(begun) < column else [begun, " " * column + text[0]]
    return first + [" " * column + line for line in text[1:]]


def module_of(verb: str) -> str:
    """Return the module of a verb: those that begin alike may have a folder of their own."""
    if verb in PASSED_ON:
        return f"seodang.recipes.{PASSED_ON[verb]}"
    folder = next((f"{folder}." for begin, folder in FOLDERS.items() if verb.startswith(begin)), "")
    return f"seodang.recipes.{folder}{verb.replace('-', '_')}"


def refuse(verb: str, argv: Sequence[str]) -> None:
    """Raise UserError for an option that the verb does not have, an output that cannot be written, and a model or data that cannot be had.

    What cannot be told so early is left to the verb's parser: other versions of the libraries may have other options.
    """
    told = known().get(verb)
    if told is None or verb in PASSED_ON:
        return
    given = _given(verb, argv)
    values = _configured(given.get("config")) | {name: words for name, words in given.items() if words}
    texts = {name: _texts(values.get(name)) for name in (*OUTPUTS, *READ, *MODELS) if name in told["names"].split()}
    read = {name: texts[name] for name in READ if name in texts}
    check_outputs(told["outputs"] | {name: texts[name][0] for name in told["outputs"] if texts[name]} | read)
    elsewhere = "base_url" in values or ["openai"] == _texts(values.get("backend"))[:1]  # the model is called what its server calls it
    for model in (texts[name][0] for name in MODELS if texts.get(name) and not elsewhere):
        if model not in ("", "default", DEFAULT_ENCODER) and not os.path.exists(model):
            check_hub_name(model)
    encoding = next(iter(_texts(values.get("encoding"))), None) if "encoding" in told["names"].split() else None
    check = check_text_source if {"documents", "search", "label_all_subwords"} & {*told["names"].split()} else check_source
    for source in (source for name in SOURCES for source in texts.get(name, ())):
        check(source, encoding)


def _given(verb: str, argv: Sequence[str]) -> dict[str, list[str]]:
    """The words behind each option, of which the first is its value where it takes one; raises UserError for an option that there is not."""
    told, words = known()[verb], _before_dashes(argv)
    names = told["names"].split()
    given = {name: [word] for name, word in zip(told["positional"], takewhile(lambda word: not word.startswith("-"), words))}
    behind: list[str] = []
    for word in words:
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if not word.startswith("--") or " " in word and name not in names:  # a text, as argparse sees it
            behind.append(word)
            continue
        if name not in names and "." not in name and _versions() == known()["versions"]:  # with a dot it is a section's
            raise UserError(unknown_option(word, names, f"seodang {verb}"))
        given[name] = behind = [value] if equals else []
    return given


def _texts(value: Any) -> list[str]:
    """A value of the command line or of a file as the texts that it consists of; nothing where it is something else."""
    values = value if isinstance(value, list) else [value]
    return values if all(isinstance(each, str) for each in values) else []


def _before_dashes(argv: Sequence[str]) -> list[str]:
    """The words that may be options: behind a lone -- none is."""
    return list(argv[: argv.index("--")]) if "--" in argv else list(argv)


def _configured(paths: list[str] | None) -> dict[str, Any]:
    """What a YAML file sets; nothing where it cannot be read, of which the parser will speak."""
    if not paths:
        return {}
    if not os.path.isfile(paths[0]):
        raise UserError(f"--config {paths[0]}: there is no such file")
    import yaml

    try:
        values = yaml.safe_load(Path(paths[0]).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        values = None
    return {str(name).replace("-", "_"): value for name, value in values.items()} if isinstance(values, dict) else {}


def unknown_option(word: str, names: Iterable[str], prog: str) -> str:
    """What to say of a word that is no option of a command, with the nearest that is."""
    name = word.partition("=")[0].lstrip("-").replace("-", "_")
    if not name:
        return f"{word!r} stands where an option would: join a value that begins with - to its option, as --NAME={word}"
    near = difflib.get_close_matches(name, names, n=1)
    return f"unknown option {name!r}" + (f": did you mean {near[0]}?" if near else f" (see {prog} --help)")


@cache
def known() -> dict[str, Any]:
    """What `known.json` holds."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in LIBRARIES}


# What is written of the parsers


def described(parser: argparse.ArgumentParser, positional: Sequence[str]) -> dict[str, Any]:
    """A command's parser in a form that can be kept: for each option what is said of it, with its default."""
    options = {}
    for action in parser._actions:
        for name in action.option_strings:
            if name.startswith("--") and "-" not in name[2:]:
                options[name[2:]] = _told(action, parser)
    return {"description": parser.description or "", "positional": list(positional), "options": options}


def _told(action: argparse.Action, parser: argparse.ArgumentParser) -> dict[str, Any]:
    text = " ".join((action.help or "").split()) % {"default": action.default, "prog": parser.prog}
    plain = action.default is None or isinstance(action.default, bool | int | float | str | list | dict)
    return {"help": text, "default": action.default if plain else str(action.default)}


def written() -> dict[str, Any]:
    """What `known.json` should hold: of the options that come first what is said of them, of the others their names."""
    return {"versions": _versions(), **{verb: _of_verb(verb, first) for verb, first in FIRST.items()}}


def _of_verb(verb: str, first: dict[str, str]) -> dict[str, Any]:
    module, printed = importlib.import_module(module_of(verb)), io.StringIO()
    with contextlib.redirect_stdout(printed):
        module.main(["--help", "json"])
    told = json.loads(printed.getvalue())
    options = told.pop("options")
    shown = {heading: {name: _line(options[name]) for name in names.split()} for heading, names in first.items()}
    outputs = {name: options[name]["default"] for name in OUTPUTS if name in options}
    return {**told, "first": shown, "outputs": outputs, "names": " ".join(options)}


def _line(option: dict[str, Any], most: int = 90) -> str:
    """What is said of an option, as many sentences as fit into so many characters, with its default where that says something."""
    first, *further = re.split(r"(?<=[.;]) (?=[A-Z])", option["help"])
    for sentence in further:
        if len(f"{first} {sentence}") > most:
            break
        first += f" {sentence}"
    default = option["default"]
    if default in (None, [], "") or default is False or isinstance(default, dict):
        return first
    return f"{first} [{' '.join(map(str, default)) if isinstance(default, list) else default}]"


if __name__ == "__main__":
    FILE.write_text(json.dumps(written(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
