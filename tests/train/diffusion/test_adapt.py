import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from seodang.data.errors import UserError
from seodang.infer.runners.paradigm import Diffusion, diffusion_of
from seodang.train.diffusion.adapt import adapt, unused_tokens


def others_mean(weight, id, known=128):
    return weight[[i for i in range(known) if i != id]].mean(dim=0)


def test_a_new_mask_token_gets_an_embedding_the_mean_of_all(fresh_tiny, tiny_tokenizer):
    model = fresh_tiny("llama")
    before = model.get_input_embeddings().weight.clone()
    says = adapt(model, tiny_tokenizer, mask_token="<|mask|>")
    assert says == Diffusion(128, shift=1) == diffusion_of(model.config) and model.config.is_causal is False
    assert (tiny_tokenizer.mask_token, tiny_tokenizer.mask_token_id, len(tiny_tokenizer)) == ("<|mask|>", 128, 129)
    weight = model.get_input_embeddings().weight
    assert weight.shape[0] == model.config.vocab_size == 129
    assert torch.equal(weight[:128], before) and torch.allclose(weight[128], before.mean(dim=0), atol=1e-6)
    head = model.get_output_embeddings().weight
    assert torch.allclose(head[128], head[:128].mean(dim=0), atol=1e-6)


def test_a_named_token_forgets_what_it_meant(fresh_tiny, tiny_tokenizer):
    model = fresh_tiny("llama", tie_word_embeddings=True)
    before = model.get_input_embeddings().weight.clone()
    tiny_tokenizer.chat_template = "{{ messages[0]['content'] }}"
    says = adapt(model, tiny_tokenizer, mask_token="<|im_start|>", attention="prompt_causal", shift=0, autoregressive=True)
    assert says == Diffusion(3, 0, "prompt_causal", autoregressive=True) and model.config.is_causal is True
    weight = model.get_input_embeddings().weight
    assert torch.allclose(weight[3], others_mean(before, 3), atol=1e-6)
    assert torch.equal(weight[[0, 1, 2, *range(4, 128)]], before[[0, 1, 2, *range(4, 128)]]) and len(tiny_tokenizer) == 128


def test_the_tokenizers_own_mask_token_is_taken(fresh_tiny, tiny_tokenizer):
    tiny_tokenizer.mask_token = "<|im_start|>"
    tiny_tokenizer.chat_template = "{{ messages[0]['content'] }}"
    assert adapt(fresh_tiny("llama"), tiny_tokenizer, trained=False) == Diffusion(3, shift=0)


def test_a_diffusion_model_stays_what_it_is_and_keeps_its_embedding(fresh_tiny, tiny_tokenizer):
    model = fresh_tiny("llama")
    adapt(model, tiny_tokenizer, mask_token="<|mask|>", shift=0, autoregressive=True)
    with torch.no_grad():
        model.get_input_embeddings().weight[128] = 7.0
    assert adapt(model, tiny_tokenizer) == Diffusion(128, shift=0)  # and from left to right no more, as it is not trained so
    assert (model.get_input_embeddings().weight[128] == 7).all()
    for asked, told in (({"shift": 1}, "shift 1"), ({"attention": "prompt_causal"}, "attention prompt_causal"), ({"mask_token": "<pad>"}, "mask_token <pad>")):
        with pytest.raises(UserError, match=f"{told} does not go with this checkpoint"):
            adapt(model, tiny_tokenizer, **asked)


def test_without_a_mask_token_the_special_tokens_that_are_not_used_are_offered(fresh_tiny, tokenizer, tiny_tokenizer):
    assert unused_tokens(tokenizer)[-1] == "<empty_output>" and not {"<|im_start|>", "<|im_end|>"} & set(unused_tokens(tokenizer))
    with pytest.raises(UserError, match=r"no mask token: name one, --mask_token '<\|mask\|>' to add it, or a special .*<jupyter_script>, <empty_output>\)"):
        adapt(fresh_tiny("llama"), tokenizer)
    with pytest.raises(UserError, match="to add it$"):
        adapt(fresh_tiny("llama"), tiny_tokenizer)


@pytest.mark.parametrize("token", ["<|im_end|>", "a", "<pad>", "<|im_start|>"])
def test_a_token_that_texts_need_is_no_mask(fresh_tiny, tiny_tokenizer, token):
    with pytest.raises(UserError, match="is a token that texts need"):
        adapt(fresh_tiny("llama"), tiny_tokenizer, mask_token=token)


def test_a_model_of_blocks_says_how_long_they_are_and_keeps_them(fresh_tiny, tiny_tokenizer):
    model = fresh_tiny("llama")
    for asked, told in (
        ({"attention": "block_causal"}, "attention block_causal goes by blocks: say of how many tokens, --block_length 4 say"),
        ({"block_length": 4}, "block_length 4 is for attention block_causal, and bidirectional knows no blocks: leave it out, or ask for that attention"),
        ({"attention": "prompt_causal", "block_length": 4}, "and prompt_causal knows no blocks"),
        ({"attention": "block_causal", "block_length": 0}, "block_length must be at least 1, got 0"),
        ({"attention": "causal"}, "there is no attention 'causal': choose bidirectional, prompt_causal or block_causal"),
    ):
        with pytest.raises(UserError, match=told):
            adapt(model, tiny_tokenizer, mask_token="<|mask|>", **asked)
    assert diffusion_of(model.config) is None and tiny_tokenizer.mask_token is None
    says = adapt(model, tiny_tokenizer, mask_token="<|mask|>", attention="block_causal", block_length=4)
    assert says == Diffusion(128, 1, "block_causal", 4) == diffusion_of(model.config) and model.config.is_causal is True
    assert adapt(model, tiny_tokenizer) == adapt(model, tiny_tokenizer, attention="block_causal", block_length=4) == says
    with pytest.raises(UserError, match="block_length 8 does not go with this checkpoint, which was trained by diffusion with block_length 4: leave it out"):
        adapt(model, tiny_tokenizer, block_length=8)


def test_what_an_attention_of_its_own_cannot_do_is_refused(fresh_tiny, tiny_tokenizer):
    bloom = AutoModelForCausalLM.from_config(AutoConfig.for_model("bloom", vocab_size=128, hidden_size=32, n_layer=1, n_head=4))
    for options, told in (
        ({"attention": "prompt_causal"}, "attention prompt_causal"), ({"attention": "block_causal", "block_length": 2}, "attention block_causal"),
        ({"autoregressive": True}, "a co-loss"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"bloom has an attention of its own, which cannot do {told}"):
            adapt(bloom, tiny_tokenizer, mask_token="<|mask|>", **options)
    assert diffusion_of(bloom.config) is None


def test_architectures_that_look_one_way_are_refused(fresh_tiny, tiny_tokenizer):
    t5 = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", vocab_size=128, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4))
    lfm2 = AutoConfig.for_model(
        "lfm2", vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        layer_types=["conv", "full_attention"],
    )  # fmt: skip
    for model, told in (
        (fresh_tiny("mistral"), "mistral attends in a sliding window"), (fresh_tiny("gemma2"), "gemma2 attends in a sliding window"),
        (AutoModelForCausalLM.from_config(lfm2), "lfm2 remembers by a state"), (t5, "t5 is an encoder-decoder model"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=told):
            adapt(model, tiny_tokenizer, mask_token="<|mask|>")
    assert tiny_tokenizer.mask_token is None
