"""How likely a model finds given answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ...data.conversation import Conversation
from ...data.errors import UserError
from ...data.formats import Dialogue
from ...data.literal import continuing
from ...data.seq2seq.encoding import beginning_ids, split_target, target_ids
from ...data.surrogates import refuse_surrogates
from ..diffusion.likelihood import Bound, likelihood_bounds
from ..diffusion.masking import Draws
from ..runners.architecture import transformers_model
from ..runners.contract import Runner
from ..runners.encoder_decoder import EncoderDecoderRunner, decoder_start
from ..runners.open import open_runner
from ..runners.paradigm import diffusion_of, refuse_diffusion, refuse_mask
from ..text.vocabulary import check_ids
from .id_scoring import MAX_POSITIONS, score_ids
from .prompts import Prompt, encode, encode_source, is_dialogue, whole_numbers
from .sources import start_ids

Completion = str | dict | list[int]  # a text, an assistant's message, or ids


def score(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    *,
    beginnings: Sequence[str | list[int] | None] | None = None,
    source_lang: str | None = None,
    target_lang: str | None = None,
) -> list[Tensor]:
    """Return the log-probability (natural, in float32 at least, on the CPU) of each answer's tokens behind its prompt: one [n] tensor a pair.

    Behind messages the answer is an assistant's turn, its end-of-turn token included, with exactly the ids that training
    would teach; behind a text it is that text's continuation. Prompts cost no logits, and no answer is padded. The probabilities are the
    model's own over its whole vocabulary, as transformers has them: what it gives to padding beyond the tokenizer, which an answer never
    says, is counted.

    An encoder-decoder model reads the prompt and is scored on the answer as training encodes a target (`tokenizer(text_target=...)`,
    with the end token that it puts there; what looks like a control token in it is text); ids are scored as they are given. Of `beginnings`, one a pair or
    None, a text or ids that the answer begins with are given and not scored: [n] is then of the tokens behind them. The languages are those of
    `SamplingParams`. Raises UserError, before anything is computed, for an empty
    prompt or answer, one that is too long for the model, ids that it does not have, and an answer that does not begin as it should.
    """
    if len(prompts) != len(completions):
        raise UserError(f"{len(prompts)} prompts and {len(completions)} completions: give one for each")
    runner = scoring_runner(model)
    if isinstance(runner, EncoderDecoderRunner):
        each = [None] * len(prompts) if beginnings is None else beginnings
        if len(each) != len(prompts):
            raise UserError(f"{len(prompts)} prompts and {len(each)} beginnings: give one for each, or None")
        encoder = TargetEncoder(runner, tokenizer, source_lang, target_lang)
        return score_targets(runner, [encoder.encoded(*pair, f"prompt {n}", f"answer {n}") for n, pair in enumerate(zip(prompts, completions, each), 1)])
    for name, value in (("beginnings", beginnings), ("source_lang", source_lang), ("target_lang", target_lang)):
        if value is not None:
            raise UserError(f"{name} is for encoder-decoders, but {runner.config.model_type} is a decoder: leave it out, and put what is given into the prompt")
    each, vocab = enumerate(zip(prompts, completions), 1), runner.config.vocab_size
    return score_ids(runner, [pair_ids(tokenizer, *pair, runner.limit, f"prompt {n} with its answer", vocab) for n, pair in each])


def score_bound(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], completions: Sequence[Completion], draws: Draws | None = None
) -> list[Bound]:
    """Return a bound on the log-probability of each answer behind its prompt by a diffusion model, whose own is not to be had: one `Bound` a pair.

    Prompts and answers are as in `score`; `draws` says how many masks of an answer are drawn, and from which seed. A pair of the same place has the
    same bound, whatever stands beside it. Raises UserError as `score` does, for a model that speaks from left to right, and for an answer that says
    the mask token.
    """
    if len(prompts) != len(completions):
        raise UserError(f"{len(prompts)} prompts and {len(completions)} completions: give one for each")
    runner = bound_runner(model)
    each, vocab = enumerate(zip(prompts, completions), 1), runner.config.vocab_size
    pairs = [pair_ids(tokenizer, *pair, runner.limit, f"prompt {n} with its answer", vocab) for n, pair in each]
    for n, (_, answer) in enumerate(pairs, 1):
        refuse_mask(diffusion_of(runner.model.config), answer, tokenizer, f"answer {n}")
    return likelihood_bounds(runner, pairs, draws or Draws(), range(len(pairs)))


def bound_runner(model: nn.Module) -> Runner:
    """Return the runner of a diffusion model that can bound how likely an answer is; raises UserError for one that cannot, or that is none."""
    config = transformers_model(model).config
    if diffusion_of(config) is None:
        raise UserError(f"a bound by masks is of masked diffusion, but this {config.model_type} speaks from left to right: use score, which is exact")
    runner = open_runner(model)
    trial = runner.allocate()
    try:
        runner.attend_both_ways(trial, True)  # raises where it cannot
    finally:
        runner.release([trial])
    return runner


def scoring_runner(model: nn.Module) -> Runner:
    """Return the runner of a model that can say how likely an answer is; raises UserError for one that has none, and for a diffusion model."""
    refuse_diffusion(transformers_model(model).config, "score", "use another model, or ask for the bound on its likelihood, score_bound")
    return open_runner(model)


def pair_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, completion: Completion, limit: int | None, name: str, vocab_size: int | None = None
) -> tuple[list[int], list[int]]:
    """Return the ids of a prompt and of the answer behind it.

    Raises UserError for an empty answer, one too long, and one that has ids beyond the model's vocabulary.
    """
    if not completion or (isinstance(completion, dict) and not completion.get("content") and not completion.get("tool_calls")):
        raise UserError(f"{name}: the answer is empty, there is nothing to score")
    refuse_surrogates(completion, f"{name}: the answer")
    ids, answer = _pair_ids(tokenizer, prompt, completion, name, vocab_size)
    if vocab_size is not None:
        check_ids(ids + answer, vocab_size, name)
    if limit is not None and len(ids) + len(answer) > limit:
        raise UserError(f"{name} has {len(ids) + len(answer)} tokens, more than the {limit} positions of the model: shorten it")
    return ids, answer


def _pair_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, completion: Completion, name: str, vocab_size: int | None
) -> tuple[list[int], list[int]]:
    if is_dialogue(prompt) and not isinstance(completion, list):
        messages, tools = (prompt.messages, prompt.tools) if isinstance(prompt, Dialogue) else (prompt, None)
        message = {"role": "assistant", "content": completion} if isinstance(completion, str) else completion
        talk = Conversation(tokenizer, [*messages, message], tools)
        turn = talk.turn(talk.messages[:-1], talk.messages[-1])
        return turn.prompt_ids, turn.answer_ids
    if isinstance(completion, dict):
        raise UserError(f"{name}: a message can be scored behind messages alone: give the answer as a text")
    text = isinstance(completion, str)
    answer = continuing(plain_ids(tokenizer), completion) if text else whole_numbers(completion, f"{name}: an answer must be a text or a list of ids")
    return encode(tokenizer, prompt, name, vocab_size), answer


def plain_ids(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], list[int]]:
    """Return what encodes a text without the tokens that stand around a whole one."""
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


class Target(NamedTuple):
    """What an encoder-decoder is scored on: the ids of its source, what its decoder is shown, and the answer's ids behind that."""

    source: list[int]
    shown: list[int]
    answer: list[int]


@dataclass(frozen=True)
class TargetEncoder:
    """Sources and answers in ids, as an encoder-decoder is scored on them, in these languages or the tokenizer's own."""

    runner: EncoderDecoderRunner
    tokenizer: PreTrainedTokenizerBase
    source_lang: str | None = None
    target_lang: str | None = None

    def encoded(self, prompt: Prompt, completion: Completion, beginning: str | Sequence[int] | None, source_name: str, name: str) -> Target:
        """A prompt and its answer; raises UserError, by their names, for a message, what is empty, unknown ids, and an answer that begins otherwise."""
        runner, languages = self.runner, (self.source_lang, self.target_lang)
        target, given = self._answer(completion, beginning, name)
        source = encode_source(self.tokenizer, prompt, source_name, runner.source_vocab, None, None, *languages)
        shown = first_ids(runner.model, target)
        for what, ids, limit in ((source_name, source, runner.source_limit), (name, target, runner.limit)):
            if limit is not None and len(ids) > limit:
                raise UserError(f"{what} has {len(ids)} tokens, more than the {limit} positions of the model: shorten it")
        return Target(source, [*shown, *target[:given]], target[given:])

    def _answer(self, completion: Completion, beginning: str | Sequence[int] | None, name: str) -> tuple[list[int], int]:
        """The answer's ids, and how many of them are given."""
        if isinstance(completion, dict):
            raise UserError(f"{name} is a message, which an encoder-decoder model does not answer with: give it as a text")
        if not completion:
            raise UserError(f"{name} is empty, there is nothing to score")
        try:
            if isinstance(completion, str) and beginning:
                given, rest = split_target(self.tokenizer, self._without_start(beginning), completion, target_lang=self.target_lang)
            elif isinstance(completion, str):
                given, rest = [], target_ids(self.tokenizer, completion, target_lang=self.target_lang)
            else:
                ids = whole_numbers(completion, f"{name} must be a text or a list of ids")
                given, rest = self._split(ids, beginning or [], name)
        except UserError as error:
            raise error if str(error).startswith(name) else UserError(f"{name}: {error}") from None
        check_ids(given + rest, self.runner.target_vocab, name)
        return given + rest, len(given)

    def _split(self, ids: list[int], beginning: str | Sequence[int], name: str) -> tuple[list[int], list[int]]:
        """An answer in ids, after its beginning; raises UserError where it begins otherwise, or ends there."""
        text = isinstance(beginning, str)
        given = beginning_ids(self.tokenizer, beginning, self.target_lang) if text and beginning else self._without_start(beginning)
        if ids[: len(given)] != given or len(ids) == len(given):
            raise UserError(f"{name} must begin with the ids {given} and go on, got {ids}")
        return given, ids[len(given) :]

    def _without_start(self, beginning: str | Sequence[int]) -> str | list[int]:
        """A beginning in ids without the decoder's start, which it may have as `decoder_input_ids` may."""
        if isinstance(beginning, str):
            return beginning
        start, ids = start_ids(self.runner.model, self.tokenizer, self.target_lang), whole_numbers(beginning, "a beginning must be a text or a list of ids")
        return ids[len(start) :] if ids[: len(start)] == start else ids


def score_targets(runner: EncoderDecoderRunner, targets: Sequence[Target]) -> list[Tensor]:
    """Return the log-probabilities, [n] each, of each answer's ids where the encoder has read its source, behind what the decoder is shown."""
    scores: list[Tensor] = []
    while len(scores) < len(targets):
        begin = end = len(scores)
        positions = 0
        while end < len(targets) and (end == begin or positions + len(targets[end].source) <= MAX_POSITIONS):
            positions, end = positions + len(targets[end].source), end + 1
        some = targets[begin:end]
        scores += score_ids(runner, [(target.shown, target.answer) for target in some], [target.source for target in some])
    return scores


def first_ids(model: nn.Module, target: list[int]) -> list[int]:
    """Return what the decoder is shown before the target when it is trained: its start, or, for mBART and PLBart, the target's last id."""
    return target[-1:] if model.config.model_type in ("mbart", "plbart") else decoder_start(model)
