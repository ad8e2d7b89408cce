"""Attention maps: hand computations on tiny models, the shape of probabilities, and what is refused."""

import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer.explain.attention_map import attention_map, attention_maps, check_attention, cross_attention_maps, parse_attention
from seodang.infer.runners.end_to_end import END_TO_END, can_run_end_to_end

IDS = [5, 9, 17, 30, 9, 64, 101]


def by_hand(model, ids, head):
    """softmax(q k / sqrt(d)) of the first layer, from its weights: embedding, norm, projections, rotation."""
    config, layer = model.config, model.model.layers[0]
    x = model.model.embed_tokens.weight[ids].double()
    x = x / (x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * layer.input_layernorm.weight.double()
    d, groups = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    q = (x @ layer.self_attn.q_proj.weight.double().T)[:, head * d : (head + 1) * d]
    k = (x @ layer.self_attn.k_proj.weight.double().T)[:, head // groups * d : (head // groups + 1) * d]
    angles = torch.arange(len(ids))[:, None] / config.rope_parameters["rope_theta"] ** (torch.arange(0, d, 2).double() / d)

    def rotated(v):
        a, b = v[:, : d // 2], v[:, d // 2 :]
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1)

    scores = rotated(q) @ rotated(k).T / d**0.5
    return scores.masked_fill(torch.ones(len(ids), len(ids)).triu(1).bool(), -torch.inf).softmax(-1)


@pytest.mark.parametrize("head", range(4))
@torch.no_grad()
def test_a_map_is_the_softmax_of_queries_and_keys(tiny_llama, head):
    torch.testing.assert_close(attention_map(tiny_llama, IDS, 0, head).double(), by_hand(tiny_llama, IDS, head), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gemma2", "cohere", "gpt2"])
def test_rows_sum_to_one_and_look_at_nothing_ahead(tiny, kind):
    maps = attention_maps(tiny(kind), IDS, 1)
    assert maps.shape == (4, 7, 7)
    torch.testing.assert_close(maps.sum(-1), torch.ones(4, 7))
    assert maps.triu(1).abs().max() == 0
    torch.testing.assert_close(attention_map(tiny(kind), IDS, 1), maps.mean(0))


def test_the_model_attends_in_its_own_way_afterwards(fresh_tiny):
    model = fresh_tiny("llama")
    before = model.config._attn_implementation
    model.train()
    attention_map(model, IDS, 0)
    assert before == model.config._attn_implementation == "sdpa" and model.training


@pytest.mark.parametrize(
    "text, parsed", [("3", (3, None)), ("3.1", (3, 1)), ("0.0", (0, 0)), ("12.10", (12, 10))]
)
def test_a_layer_and_a_head_are_read(text, parsed):
    assert parse_attention(text) == parsed


@pytest.mark.parametrize("text", ["", "a", "1.", ".1", "1.2.3", "-1", "1,2"])
def test_anything_else_is_refused(text):
    with pytest.raises(UserError, match="LAYER or LAYER.HEAD"):
        parse_attention(text)


def test_what_the_model_does_not_have_is_named(tiny, tiny_llama):
    with pytest.raises(UserError, match="layer 2 does not exist: the model has layers 0 to 1"):
        attention_map(tiny_llama, IDS, 2)
    with pytest.raises(UserError, match="head 4 does not exist: the model has heads 0 to 3"):
        attention_map(tiny_llama, IDS, 0, 4)
    with pytest.raises(UserError, match="head 4 does not exist"):
        check_attention(tiny_llama, 0, 4)
    with pytest.raises(UserError, match="bart is an encoder-decoder"):
        check_attention(tiny("bart"), 0)
    with pytest.raises(UserError, match="has the id 128, but the model's ids are those from 0 to 127"):
        attention_map(tiny_llama, [5, 128], 0)
    with pytest.raises(UserError, match="257 tokens"):
        attention_map(tiny_llama, [5] * 257, 0)


def test_a_model_that_tells_no_weights_is_refused_by_name(tiny_llama, monkeypatch):
    forward = type(tiny_llama).forward

    def silent(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        out.attentions = None
        return out

    monkeypatch.setattr(type(tiny_llama), "forward", silent)
    with pytest.raises(UserError, match="llama does not tell the attention of layer 0"):
        attention_map(tiny_llama, IDS, 0)


SOURCE, ANSWER = [5, 6, 7, 8, 2], [40, 41, 42, 2]


@torch.no_grad()
def test_what_an_lstm_looks_at_is_the_softmax_of_its_states_products_token_by_token(own):
    model = own("lstm", attention="dot")
    read = model.model.encoder(torch.tensor([SOURCE]))
    states, past = [], (read.final_hidden, read.final_cell)  # [1, layers, d] each
    for id in (0, *ANSWER[:-1]):
        step = model.model.decoder.embed_tokens(torch.tensor([[id]]))
        for i, layer in enumerate(model.model.decoder.layers):
            step, (hidden, cell) = layer(step, tuple(part[:, i][None].contiguous() for part in past))
            past = tuple(torch.cat([part[:, :i], new[0][:, None], part[:, i + 1 :]], dim=1) for part, new in zip(past, (hidden, cell), strict=True))
        states.append(step[0, 0])
    by_hand = torch.stack([(read.last_hidden_state[0] @ state).softmax(dim=0) for state in states])
    [maps] = cross_attention_maps(model, SOURCE, ANSWER)
    assert maps.shape == (1, len(ANSWER), len(SOURCE)) and by_hand.max() > 0.3
    torch.testing.assert_close(maps[0], by_hand.float())


@torch.no_grad()
def test_what_a_transformer_looks_at_is_the_softmax_of_its_queries_and_keys_however_it_was_trained(fresh_own):
    model, seen = fresh_own("transformer"), {}
    assert can_run_end_to_end(model)
    model.train()
    hooks = [
        getattr(layer.cross_attention, name).register_forward_hook(lambda module, given, out, place=(i, name): seen.update({place: out[0]}))
        for i, layer in enumerate(model.model.decoder.layers) for name in ("q_proj", "k_proj")
    ]  # fmt: skip
    maps = cross_attention_maps(model, SOURCE, ANSWER)
    for hook in hooks:
        hook.remove()
    for i, found in enumerate(maps):
        query, key = (seen[i, name].unflatten(-1, (4, 8)).transpose(0, 1) for name in ("q_proj", "k_proj"))  # [heads, tokens, d]
        torch.testing.assert_close(found, (query @ key.transpose(1, 2) / 8**0.5).softmax(dim=-1).float())
    assert len(maps) == 2 and model.training and model.config._attn_implementation == END_TO_END


def test_models_and_texts_without_cross_attention_are_refused(tiny, own):
    refused = [
        (tiny("llama"), SOURCE, ANSWER, "llama has no encoder"), (own("lstm"), SOURCE, ANSWER, "no attention that could be told"),
        (own("transformer"), [], ANSWER, "the source has 0 tokens"), (own("transformer"), SOURCE, [2] * 513, "the answer has 513 tokens: .* 1 to 512"),
        (own("transformer"), SOURCE, [128], "the answer has the id 128"), (own("transformer"), torch.tensor([SOURCE]), ANSWER, "the source must be the ids of one text"),
    ]  # fmt: skip
    for model, source, answer, told in refused:
        with pytest.raises(UserError, match=told):
            cross_attention_maps(model, source, answer)
