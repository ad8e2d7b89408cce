"""Prompts far beyond the model's positions are refused before the whole is encoded, in the words that a prompt a little too long is refused in."""

import pytest

from seodang.data.errors import UserError
from seodang.infer import embed, generate
from seodang.infer.engine.params import SamplingParams

MESSAGE = {"role": "user", "content": "a"}
BEYOND = ", which with max_new_tokens=5 is more than the 256 positions of the model: shorten the prompt or lower max_new_tokens"


@pytest.fixture
def encoded(tiny_tokenizer, monkeypatch):
    """How many characters each call of the tokenizer has encoded."""
    lengths, call = [], type(tiny_tokenizer).__call__
    monkeypatch.setattr(type(tiny_tokenizer), "__call__", lambda self, text, **how: (lengths.append(len(text)), call(self, text, **how))[1])
    return lengths


@pytest.mark.parametrize(
    "prompt, has",
    [
        ("a" * 1_000_000, "more than 256 tokens"), ([{**MESSAGE, "content": "a" * 1_000_000}], "more than 256 tokens"), ([5] * 100_000, "100000 tokens"),
        ([MESSAGE] * 300, "300 messages of at least a token each"), ("a" * 252, "252 tokens"),
    ],
    ids=["text", "message", "ids", "messages", "a little"],
)  # fmt: skip
def test_what_the_model_has_no_positions_for_is_refused_before_it_is_encoded(tiny_llama, tiny_tokenizer, encoded, prompt, has):
    with pytest.raises(UserError) as refused:
        generate(tiny_llama, tiny_tokenizer, [prompt], SamplingParams(max_new_tokens=5))
    assert str(refused.value) == f"prompt 1 has {has}{BEYOND}"
    assert sum(encoded) < 8_000


def test_a_prompt_that_just_fits_is_answered(tiny_llama, tiny_tokenizer):
    for prompt in ("a" * 251, [5] * 251):
        [result] = generate(tiny_llama, tiny_tokenizer, [prompt], SamplingParams(max_new_tokens=5, ignore_eos=True))
        assert len(result.ids) == 5


def test_texts_to_embed_negative_prompts_and_an_encoders_input_are_refused_so(tiny, tiny_llama, tiny_tokenizer, encoded):
    long = "a" * 1_000_000
    with pytest.raises(UserError, match="^prompt 2 has more than 256 tokens, more than the 256 positions of the model: shorten it$"):
        embed(tiny_llama, tiny_tokenizer, ["a", long])
    with pytest.raises(UserError, match=f"^the negative prompt of prompt 1 has more than 256 tokens{BEYOND}$"):
        generate(tiny_llama, tiny_tokenizer, ["a"], SamplingParams(max_new_tokens=5, guidance_scale=2.0, negative_prompt=long))
    with pytest.raises(UserError, match="^prompt 1 has more than [0-9]+ tokens, more than the [0-9]+ positions of the encoder: shorten it$"):
        generate(tiny("bart"), tiny_tokenizer, [long], SamplingParams(max_new_tokens=5))
    assert sum(encoded) < 30_000
