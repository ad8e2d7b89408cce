"""A model's vocabulary beyond its tokenizer's: padding, which is never said."""

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from seodang.data.errors import UserError
from seodang.infer.engine.generate import generate
from seodang.infer.engine.params import SamplingParams
from seodang.infer.engine.scoring import score
from seodang.infer.text.vocabulary import known_ids

KNOWN = 124  # of the model's 128
PROMPTS = [[5, 6, 7, 8, 5, 6], [9, 20]]


@pytest.fixture
def tiny_tokenizer(byte_tokenizer):
    return byte_tokenizer(KNOWN)


@pytest.fixture
def padded(fresh_tiny):
    """A model that finds one of its padding rows the likeliest token wherever it is asked, even without its last layer."""
    model = fresh_tiny("llama", seed=31, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight[KNOWN:] = 4 * model.lm_head.weight[40] * torch.tensor([[1.0], [-1.0], [2.0], [-2.0]])
    return model


def revived(logits, history):
    """A filter of the caller's that sets everything to the same score."""
    return torch.zeros_like(logits)


STRATEGIES = {
    "greedy": {},
    "sampling": {"temperature": 1.2, "top_k": 5},
    "mirostat": {"mirostat_tau": 3.0},
    "the caller's filter": {"filters": [revived], "do_sample": True},
    "beam": {"num_beams": 3},
    "beam_sampling": {"num_beams": 3, "do_sample": True},
    "diverse_beam": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
    "constrained_beam": {"num_beams": 3, "force_words_ids": [[30, 31]]},
    "contrastive": {"penalty_alpha": 0.5, "top_k": 3},
    "dola": {"dola_layers": [1]},
    "lookup": {"prompt_lookup_num_tokens": 4},
    "early exit": {"assistant_early_exit": 1, "temperature": 1.0},
    "best_of_n": {"best_of": 3, "temperature": 1.0},
    "guidance": {"guidance_scale": 1.5, "negative_prompt": [11]},
}


def test_padding_is_what_the_model_would_say(padded):
    with torch.no_grad():
        likeliest = padded(torch.tensor([PROMPTS[0]])).logits[0].argmax(dim=-1)
    assert (likeliest >= KNOWN).sum() >= 4


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_strategy_says_padding_and_every_answer_can_be_read_again(padded, tiny_tokenizer, name):
    params = SamplingParams(**STRATEGIES[name], seed=1, max_new_tokens=8)
    results = generate(padded, tiny_tokenizer, PROMPTS, params)
    assert all(0 <= id < KNOWN for each in results for id in each.ids)
    again = generate(padded, tiny_tokenizer, [prompt + each.ids for prompt, each in zip(PROMPTS, results)], params)
    assert len(again) == 2


def test_drafts_of_a_padded_model_are_what_the_model_says_too(padded, tiny, tiny_tokenizer):
    plain = generate(tiny("llama"), tiny_tokenizer, PROMPTS, SamplingParams(max_new_tokens=8))
    for more in ({}, {"assistant_tokenizer": tiny_tokenizer}):
        drafted = generate(tiny("llama"), tiny_tokenizer, PROMPTS, SamplingParams(assistant_model=padded, max_new_tokens=8, **more))
        assert [each.ids for each in drafted] == [each.ids for each in plain]


def test_padding_is_not_forced_either(padded, tiny_tokenizer):
    for settings in ({"forced_bos_token_id": KNOWN}, {"forced_eos_token_id": [2, KNOWN]}, {"force_words_ids": [[KNOWN]], "num_beams": 2}):
        with pytest.raises(UserError, match=f"has the id {KNOWN}"):
            generate(padded, tiny_tokenizer, PROMPTS, SamplingParams(max_new_tokens=4, **settings))


def test_scores_are_the_models_own_with_padding_counted(padded, tiny_tokenizer):
    [found] = score(padded, tiny_tokenizer, [PROMPTS[0]], [[40, 41]])
    with torch.no_grad():
        logprobs = padded(torch.tensor([[*PROMPTS[0], 40]])).logits[0, -2:].log_softmax(dim=-1)
    torch.testing.assert_close(found, logprobs[[0, 1], [40, 41]])


def test_ids_behind_a_gap_are_known(tiny_tokenizer):
    gapped = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0, "b": 5}, [])))
    assert [known_ids(gapped, size) for size in (8, 4, 2)] == [6, 4, 2]
    assert known_ids(tiny_tokenizer, 128) == KNOWN
