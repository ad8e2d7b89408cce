"""A model of ours as lm-eval asks one: `--model seodang`, with the ids and the texts that its own `hf` has, on our engine."""

import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, normalize_gen_kwargs, postprocess_generated_text, resolve_max_length
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from seodang.data.errors import UserError
from seodang.infer.checkpoint.load import load
from seodang.infer.engine.checkpoint_settings import fields_known, from_generation_config, own_config
from seodang.infer.engine.generate import answers
from seodang.infer.engine.id_scoring import Scored, judge_ids
from seodang.infer.engine.params import SamplingParams
from seodang.infer.engine.prefix_cache import PrefixCache
from seodang.infer.engine.scoring import scoring_runner

logger = logging.getLogger(__name__)

LOADING = tuple(name for name, each in inspect.signature(load).parameters.items() if each.kind is each.KEYWORD_ONLY and name != "model_class")
UNASKED = "cuda:0"  # the device that lm-eval names where nobody has named one, also on a machine without
Ids = list[int]


class SeodangLM(TemplateLM):
    """Answers lm-eval's requests: how likely texts are behind contexts that are read once, and what the model says.

    `pretrained` is what `load` takes, with `loading` its arguments (dtype, weights, adapter, ...), or a loaded model with its `tokenizer`. The
    others are `hf`'s. There is no batch: a pass takes what fits in it. Raises UserError for a model that is none of a text from left to right.
    """

    def __init__(
        self,
        pretrained: str | os.PathLike | nn.Module = "default",
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        think_end_token: str | int | None = None,
        enable_thinking: bool | None = None,
        chat_template_args: Mapping[str, Any] | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **loading: Any,
    ):
        super().__init__()
        self._refuse_unknown(loading)
        if isinstance(pretrained, nn.Module):
            if tokenizer is None or loading:
                raise UserError("a model that is loaded already needs its tokenizer, and nothing of how it is loaded")
            self.model, self.tokenizer = pretrained, tokenizer
        elif tokenizer is not None:
            raise UserError(f"tokenizer={tokenizer} goes with a model that is loaded already: {pretrained} has its own")
        else:
            self.model, self.tokenizer = load(pretrained, device="auto" if device in (None, UNASKED) else device, **loading)
            if add_bos_token is not None:
                self.tokenizer.add_bos_token = add_bos_token
        if str(batch_size or 1) != "1":
            logger.warning("batch_size=%s is passed over: the engine fills its passes itself", batch_size)
        if self.model.config.is_encoder_decoder:
            raise UserError(f"lm-eval's contexts and continuations are one text, but {self.model.config.model_type} is an encoder-decoder: use seodang eval")
        self.runner = scoring_runner(self.model)
        longest = resolve_max_length(self.model.config, self.tokenizer)
        self.max_length = int(max_length or min(longest, self.runner.limit or longest))
        if enable_thinking and think_end_token is None:
            raise UserError("enable_thinking needs think_end_token, the text or id that ends the thinking, behind which the answer stands")
        self.think_end_token = int(think_end_token) if str(think_end_token).isdigit() else think_end_token
        self.chat_template_args = {**(chat_template_args or {}), **({} if enable_thinking is None else {"enable_thinking": enable_thinking})}
        self._add_bos_token, self._prefix_token_id = add_bos_token, prefix_token_id
        if self.prefix_token_id is None:
            raise UserError("the tokenizer has no token that a text begins or ends with, which lm-eval puts before texts without a context: give prefix_token_id")

    @staticmethod
    def _refuse_unknown(loading: Mapping[str, Any]) -> None:
        for name in loading:
            if name not in LOADING:
                raise UserError(f"model_args has {name}={loading[name]!r}, which is unknown: Seodang takes pretrained, {', '.join(LOADING)}")

    @property
    def eot_token_id(self) -> int | None:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int | None:
        """What stands before a text that nothing stands before: `hf`'s choice."""
        of_tokenizer = self.tokenizer.eos_token_id if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id
        return of_tokenizer if self._prefix_token_id is None else self._prefix_token_id

    @property
    def max_gen_toks(self) -> int:
        return 256

    @property
    def device(self):
        return self.model.device

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> Ids:
        """The ids of a text, with the tokens before it that the tokenizer puts there, unless it has the first of them already."""
        if add_special_tokens is None:
            begun = has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id))
            add_special_tokens = False if begun else self._add_bos_token
        return self.tokenizer.encode(string, **({} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The messages as the chat template writes them; where it knows no system's message, without that."""
        how = {"tokenize": False, "add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        try:
            return self.tokenizer.apply_chat_template(chat_history, **how, **self.chat_template_args)
        except jinja2.exceptions.TemplateError:
            logger.warning("the chat template refuses the messages: tried without the system's")
            without = [message for message in chat_history if message["role"] != "system"]
            return self.tokenizer.apply_chat_template(without, **how, **self.chat_template_args)

    def get_model_info(self) -> dict[str, Any]:
        return {"model_num_parameters": self.model.num_parameters(), "model_dtype": self.model.dtype}

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, Ids, Ids]], disable_tqdm: bool = False, **kwargs: Any) -> list[tuple[float, bool]]:
        found = []
        for (asked, _, _), judged in zip(requests, self._judged([pair for _, *pair in requests], disable_tqdm), strict=True):
            found.append((float(judged.logprobs.sum()), bool(judged.likeliest.all())))
            self.cache_hook.add_partial("loglikelihood", asked, found[-1])
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """How likely each whole text is, read in windows of the model's length that do not overlap in what they predict."""
        windows, counts = [], []
        for (text,) in (request.args for request in requests):
            own = utils.get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1)
            own = [utils.make_disjoint_window(window) for window in own]
            windows += own
            counts.append(len(own))
        shares = iter(self._judged(windows, disable_tqdm))
        found = []
        for request, count in zip(requests, counts, strict=True):
            found.append(sum(float(next(shares).logprobs.sum()) for _ in range(count)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
        return found

    def _judged(self, pairs: Sequence[Sequence[Ids]], disable_tqdm: bool) -> list[Scored]:
        """Judge continuations behind contexts, which are cut on the left where both are too long: the last id is never read."""
        cut = []
        for context, continuation in pairs:
            if not continuation or len(continuation) > self.max_length:
                text = self.tokenizer.decode([*context, *continuation])
                raise UserError(f"a continuation has {len(continuation)} tokens, but 1 to {self.max_length} can be scored: {text[:200]!r}")
            cut.append((context[-(self.max_length + 1 - len(continuation)) :], continuation))
        if lost := sum(len(before[0]) > len(after[0]) for before, after in zip(pairs, cut)):
            logger.warning("%d of %d contexts are cut on the left, for with their continuations they exceed the %d positions", lost, len(cut), self.max_length)
        with tqdm(total=len(cut), desc="Running loglikelihood requests", disable=disable_tqdm) as bar:
            return judge_ids(self.runner, cut, progress=bar.update)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model says behind each context, up to the first of its `until`; all requests together, what they begin with alike read once."""
        asked = [self._asked(*request.args, place) for place, request in enumerate(requests)]
        can = self.runner.capabilities
        cache = PrefixCache(self.model) if can.fork and can.truncate else None
        found: list[str] = [""] * len(requests)
        prompts, params, stops = zip(*asked) if asked else ((), (), ())
        results = answers(self.model, self.tokenizer, prompts, params, prefix_cache=cache, on_error="raise")
        for result in tqdm(results, total=len(requests), desc="Running generate_until requests", disable=disable_tqdm):
            place = result.prompt_index
            found[place] = self._text_of(result.ids, stops[place])
            self.cache_hook.add_partial("generate_until", requests[place].args, found[place])
        return found

    def _asked(self, context: str, gen_kwargs: dict[str, Any], place: int) -> tuple[Ids, SamplingParams, list[str]]:
        """The ids of a context, our settings for lm-eval's, beside the checkpoint's own as transformers has them, and where the answer ends."""
        kwargs: dict[str, Any] = dict(normalize_gen_kwargs(gen_kwargs, self.max_gen_toks))
        end = None if self.eot_token_id is None else self.tokenizer.decode(self.eot_token_id, skip_special_tokens=False)
        stops = [stop for stop in handle_stop_sequences(kwargs.pop("until"), end) if stop]
        most = kwargs.pop("max_gen_toks")
        room = self.max_length - most
        if room < 1:
            raise UserError(f"max_gen_toks={most} leaves no room for a context among the {self.max_length} positions: lower it (--gen_kwargs max_gen_toks=...)")
        begun = has_bos_prefix(context, self.tokenizer.bos_token)
        special = False if begun else self._add_bos_token
        ids = self.tokenizer(context, **({} if special is None else {"add_special_tokens": special}))["input_ids"]
        if len(ids) > room:
            logger.warning("a context of %d tokens is cut on the left to the %d that leave room for %d more", len(ids), room, most)
        if kwargs["do_sample"]:
            kwargs.setdefault("seed", place)  # a request that is repeated is drawn anew
        own = own_config(self.model)
        settings = {**({} if own is None else fields_known(own.to_dict())), **kwargs}
        changes = {"seed": settings.pop("seed")} if "seed" in settings else {}
        return ids[-room:], from_generation_config(settings, **changes, max_new_tokens=most, stop=stops), stops

    def _text_of(self, ids: Ids, stops: list[str]) -> str:
        """The text of an answer's ids, without its thinking, up to the first of its ends."""
        if by_id := isinstance(self.think_end_token, int) and self.think_end_token in ids:
            ids = ids[len(ids) - ids[::-1].index(self.think_end_token) :]
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        ends_thinking = self.think_end_token if isinstance(self.think_end_token, str) else None
        return postprocess_generated_text(text.lstrip() if by_id else text, stops, ends_thinking)
