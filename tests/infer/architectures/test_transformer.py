"""The Transformer of the paper: its arithmetic by hand, its layers beside torch's own, and what transformers asks of a model."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModel,
    AutoModelForSeq2SeqLM,
    DynamicCache,
    EncoderDecoderCache,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from seodang.data.errors import UserError
from seodang.infer.architectures.seq2seq_model import shifted_right
from seodang.infer.architectures.transformer import (
    TransformerConfig,
    TransformerForConditionalGeneration,
    TransformerModel,
    causal_mask,
    padding_mask,
    scaled_dot_product_attention,
    sinusoidal_encoding,
)

KINDS = [{"norm_position": "post"}, {"norm_position": "pre"}]
SOURCE, TARGET = [5, 9, 77, 31, 8, 2], [0, 40, 41, 6, 99]


def close(got, want, atol=1e-12):
    torch.testing.assert_close(got, want, rtol=0, atol=atol)


def test_attention_is_the_softmax_of_scaled_scores_times_the_values():
    # two queries, three keys of size 4: the scores are (2, 0, 4) / sqrt(4) = (1, 0, 2) and (0, 0, 0)
    query = torch.tensor([[2.0, 0, 0, 0], [0, 0, 0, 3]])
    key = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [2, 0, 0, 0]])
    value = torch.tensor([[1.0, 10], [2, 20], [3, 30]])
    out, weights = scaled_dot_product_attention(query, key, value)
    e = math.e
    total = e + 1 + e * e
    close(weights, torch.tensor([[e / total, 1 / total, e * e / total], [1 / 3] * 3]), 1e-6)
    mean = (e * 1 + 2 + e * e * 3) / total
    close(out, torch.tensor([[mean, 10 * mean], [2.0, 20.0]]), 1e-5)
    masked, weights = scaled_dot_product_attention(query, key, value, torch.tensor([[True, True, False], [False, True, False]]))
    close(weights, torch.tensor([[e / (e + 1), 1 / (e + 1), 0], [0, 1, 0]]), 1e-6)
    close(masked, torch.tensor([[(e + 2) / (e + 1), 10 * (e + 2) / (e + 1)], [2.0, 20.0]]), 1e-5)


def test_masks_let_nobody_see_what_follows_or_padding():
    one, no = True, False
    assert causal_mask(3, 3, None, torch.device("cpu")).tolist() == [[one, no, no], [one, one, no], [one, one, one]]
    assert causal_mask(2, 4, None, torch.device("cpu")).tolist() == [[one, one, one, no], [one, one, one, one]]  # behind a past of two
    assert padding_mask(torch.tensor([[1, 1, 0]])).tolist() == [[[[one, one, no]]]]
    # padding on the left: a padded position sees itself alone, the others all but it
    assert causal_mask(3, 3, torch.tensor([[0, 1, 1]]), torch.device("cpu")).tolist() == [[[[one, no, no], [no, one, no], [no, one, one]]]]


def test_positions_are_sines_and_cosines_of_geometric_wavelengths():
    # d_model 4: the angles are pos and pos / 10000^(2/4) = pos / 100
    got = sinusoidal_encoding(torch.tensor([0, 3, 20_000]), 4)
    want = [[math.sin(pos), math.cos(pos), math.sin(pos / 100), math.cos(pos / 100)] for pos in (0, 3, 20_000)]
    close(got, torch.tensor(want, dtype=torch.float64))


def test_what_the_first_layer_reads_is_words_times_the_root_of_the_size_plus_positions(own):
    model = own("transformer")
    read = model.model.encoder(torch.tensor([SOURCE]), output_hidden_states=True).hidden_states[0][0]
    words = model.model.encoder.embed_tokens.weight[SOURCE]
    close(read, words * math.sqrt(32) + sinusoidal_encoding(torch.arange(6), 32))


def copied(attention: nn.MultiheadAttention, own) -> None:
    attention.in_proj_weight.copy_(torch.cat([own.q_proj.weight, own.k_proj.weight, own.v_proj.weight]))
    attention.out_proj.weight.copy_(own.out_proj.weight)
    attention.in_proj_bias.zero_()  # the paper's projections have none
    attention.out_proj.bias.zero_()


def torchs_own(model) -> tuple[nn.TransformerEncoder, nn.TransformerDecoder]:
    """torch's own stacks with the model's weights."""
    config = model.config
    settings = {
        "d_model": config.d_model, "nhead": config.num_heads, "dim_feedforward": config.d_ff, "dropout": 0.0,
        "batch_first": True, "norm_first": config.norm_position == "pre", "dtype": torch.float64,
    }  # fmt: skip
    last = [None, None] if config.norm_position == "post" else [model.model.encoder.final_norm, model.model.decoder.final_norm]
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(**settings), config.encoder_layers, norm=last[0], enable_nested_tensor=False)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**settings), config.decoder_layers, norm=last[1])
    with torch.no_grad():
        for stack, ours in ((encoder, model.model.encoder), (decoder, model.model.decoder)):
            for layer, mine in zip(stack.layers, ours.layers):
                copied(layer.self_attn, mine.self_attention)
                norms = [mine.self_attention_norm, mine.feed_forward_norm]
                if stack is decoder:
                    copied(layer.multihead_attn, mine.cross_attention)
                    norms.insert(1, mine.cross_attention_norm)
                pairs = [(layer.linear1, mine.feed_forward[0]), (layer.linear2, mine.feed_forward[2])]
                for theirs, own in [*pairs, *((getattr(layer, f"norm{i}"), norm) for i, norm in enumerate(norms, 1))]:
                    theirs.weight.copy_(own.weight)
                    theirs.bias.copy_(own.bias)
    return encoder.eval(), decoder.eval()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("changes", KINDS, ids=lambda changes: changes["norm_position"])
@torch.no_grad()
def test_equals_torchs_own_encoder_and_decoder_with_the_same_weights(fresh_own, changes, attention):
    model = fresh_own("transformer", decoder_layers=3, **changes)
    model.set_attn_implementation(attention)
    encoder, decoder = torchs_own(model)
    source, target = torch.tensor([SOURCE, [*SOURCE[:4], 0, 0]]), torch.tensor([TARGET, TARGET[::-1]])
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    embed = lambda stack, ids: stack.embed_tokens(ids) * math.sqrt(32) + sinusoidal_encoding(torch.arange(ids.shape[1]), 32)
    padding = mask == 0
    read = encoder(embed(model.model.encoder, source), src_key_padding_mask=padding)
    future = torch.ones(5, 5, dtype=torch.bool).triu(1)
    states = decoder(embed(model.model.decoder, target), read, tgt_mask=future, memory_key_padding_mask=padding)
    out = model(input_ids=source, attention_mask=mask, decoder_input_ids=target, output_hidden_states=True)
    close(out.encoder_last_hidden_state[mask.bool()], read[mask.bool()])
    close(out.decoder_hidden_states[-1], states)
    close(out.logits, states @ model.model.encoder.embed_tokens.weight.T, 1e-11)  # the head is the embeddings
    assert len(out.encoder_hidden_states) == 3 and len(out.decoder_hidden_states) == 4


@torch.no_grad()
def test_padding_changes_nothing_on_either_side_of_source_or_target(own):
    model = own("transformer")
    alone = model(input_ids=torch.tensor([SOURCE]), decoder_input_ids=torch.tensor([TARGET])).logits[0]
    source, mask = torch.tensor([[*SOURCE, 3, 3]]), torch.tensor([[1] * 6 + [0] * 2])
    behind = model(input_ids=source, attention_mask=mask, decoder_input_ids=torch.tensor([[*TARGET, 7]])).logits[0, :5]
    close(behind, alone)
    left = model(
        input_ids=source, attention_mask=mask, decoder_input_ids=torch.tensor([[0, 0, *TARGET]]), decoder_attention_mask=torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    ).logits[0]  # fmt: skip
    other = model(
        input_ids=source, attention_mask=mask, decoder_input_ids=torch.tensor([[9, 8, *TARGET]]), decoder_attention_mask=torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    ).logits[0]  # fmt: skip
    close(left[2:], other[2:])  # what is masked out is not seen
    assert left.isfinite().all()


@pytest.mark.parametrize("changes", KINDS, ids=lambda changes: changes["norm_position"])
@torch.no_grad()
def test_a_cache_gives_the_logits_of_the_whole(own, changes):
    model = own("transformer", **changes)
    source, whole = torch.tensor([SOURCE]), torch.tensor([TARGET])
    want = model(input_ids=source, decoder_input_ids=whole, use_cache=False)
    assert want.past_key_values is None
    read = model.get_encoder()(source)
    cache, parts = EncoderDecoderCache(DynamicCache(), DynamicCache()), []
    for part in whole.split([2, 1, 2], dim=1):
        parts.append(model(encoder_outputs=read, decoder_input_ids=part, past_key_values=cache).logits)
    close(torch.cat(parts, dim=1), want.logits, 1e-11)
    assert cache.cross_attention_cache.get_seq_length() == 6 and cache.get_seq_length() == 5


@torch.no_grad()
def test_weights_that_are_told_are_those_of_the_forward_pass(own):
    model = own("transformer")  # by sdpa, which tells none
    source, target = torch.tensor([SOURCE]), torch.tensor([TARGET])
    plain = model(input_ids=source, decoder_input_ids=target, output_hidden_states=True)
    told = model(input_ids=source, decoder_input_ids=target, output_attentions=True)
    close(told.logits, plain.logits, 1e-11)
    shapes = [[tuple(each.shape) for each in weights] for weights in (told.encoder_attentions, told.decoder_attentions, told.cross_attentions)]
    assert shapes == [[(1, 4, 6, 6)] * 2, [(1, 4, 5, 5)] * 2, [(1, 4, 5, 6)] * 2]
    assert (told.decoder_attentions[0].triu(1) == 0).all()
    # of the last layer by hand: the norm of a post-norm layer's cross-attention, from what goes in
    layer, states = model.model.decoder.layers[1], plain.decoder_hidden_states[1][0]
    value = lambda attention, seen, head: seen @ attention.v_proj.weight[8 * head : 8 * head + 8].T
    together = lambda attention, weights, seen: torch.cat([weights[0, head] @ value(attention, seen, head) for head in range(4)], dim=-1)
    looked = together(layer.self_attention, told.decoder_attentions[1], states) @ layer.self_attention.out_proj.weight.T
    states = layer.self_attention_norm(states + looked)
    looked = together(layer.cross_attention, told.cross_attentions[1], plain.encoder_last_hidden_state[0]) @ layer.cross_attention.out_proj.weight.T
    states = layer.cross_attention_norm(states + looked)
    close(layer.feed_forward_norm(states + layer.feed_forward(states)), plain.decoder_hidden_states[2][0], 1e-11)


def test_labels_are_shifted_and_padding_teaches_nothing(own):
    model = own("transformer")
    source, labels = torch.tensor([SOURCE, SOURCE]), torch.tensor([[40, 41, 2], [9, 2, -100]])
    assert shifted_right(labels, 0, 0).tolist() == [[0, 40, 41], [0, 9, 2]]
    assert shifted_right(torch.tensor([[9, -100, -100]]), 1, 0).tolist() == [[1, 9, 0]]
    out = model(input_ids=source, labels=labels)
    logprobs = out.logits.log_softmax(dim=-1)
    want = -sum(logprobs[row, i, id] for row, ids in enumerate(([40, 41, 2], [9, 2])) for i, id in enumerate(ids)) / 5
    close(out.loss, want)
    close(model(input_ids=source, labels=labels, num_items_in_batch=10).loss, want / 2)
    shown = model(input_ids=source, decoder_input_ids=torch.tensor([[0, 40, 41], [0, 9, 2]])).logits
    close(out.logits, shown)


def test_saved_and_loaded_by_transformers_names(fresh_own, tmp_path):
    model = fresh_own("transformer", norm_position="pre", positions="learned", max_encoder_position_embeddings=9, max_decoder_position_embeddings=7)
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is TransformerConfig and config.to_diff_dict() == model.config.to_diff_dict()
    loaded, report = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is TransformerForConditionalGeneration and not any(report.values())
    assert loaded.lm_head.weight is loaded.model.encoder.embed_tokens.weight is loaded.model.decoder.embed_tokens.weight
    inputs = {"input_ids": torch.tensor([SOURCE]), "decoder_input_ids": torch.tensor([TARGET])}
    close(loaded(**inputs).logits, model(**inputs).logits)
    trunk = AutoModel.from_pretrained(tmp_path)
    assert type(trunk) is TransformerModel
    close(trunk(**inputs).last_hidden_state, model(**inputs, output_hidden_states=True).decoder_hidden_states[-1])


def test_untied_words_stay_apart_and_are_not_resized(fresh_own, tmp_path):
    model = fresh_own("transformer", tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    for name in ("model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"):
        assert torch.equal(loaded.get_parameter(f"{name}.weight"), model.get_parameter(f"{name}.weight"))
    assert not torch.equal(loaded.lm_head.weight, loaded.model.encoder.embed_tokens.weight)
    with pytest.raises(UserError, match="three matrices of words"):
        loaded.resize_token_embeddings(130)


def test_tied_words_grow_together(fresh_own):
    model = fresh_own("transformer")
    model.resize_token_embeddings(130)
    assert model.lm_head.weight is model.model.encoder.embed_tokens.weight is model.model.decoder.embed_tokens.weight
    assert model(input_ids=torch.tensor([[129]]), decoder_input_ids=torch.tensor([[0, 128]])).logits.shape == (1, 2, 130)


def test_sinusoids_extend_and_learned_positions_end(own):
    sizes = {"positions": "learned", "max_encoder_position_embeddings": 6, "max_decoder_position_embeddings": 5}
    learned = own("transformer", **sizes)
    learned(input_ids=torch.tensor([SOURCE]), decoder_input_ids=torch.tensor([TARGET]))
    with pytest.raises(UserError, match="7 tokens are more than the 6 learned positions.*sinusoidal"):
        learned.model.encoder(torch.tensor([[*SOURCE, 3]]))
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    learned(input_ids=torch.tensor([SOURCE]), decoder_input_ids=torch.tensor([TARGET]), past_key_values=cache)
    with pytest.raises(UserError, match="6 tokens are more than the 5"):
        learned(input_ids=torch.tensor([SOURCE]), decoder_input_ids=torch.tensor([[3]]), past_key_values=cache)
    assert own("transformer")(input_ids=torch.tensor([SOURCE * 50]), decoder_input_ids=torch.tensor([[0]])).logits.isfinite().all()


def test_dropout_falls_on_words_and_sublayers_in_training_alone(fresh_own):
    model = fresh_own("transformer", dropout=0.5)
    inputs = {"input_ids": torch.tensor([SOURCE]), "decoder_input_ids": torch.tensor([TARGET])}
    assert torch.equal(model(**inputs).logits, model(**inputs).logits)
    model.train()
    torch.manual_seed(0)
    read = model.model.encoder(torch.tensor([SOURCE]), output_hidden_states=True).hidden_states[0]
    torch.manual_seed(0)
    undropped = model.model.encoder.embed_tokens(torch.tensor([SOURCE])) * math.sqrt(32) + sinusoidal_encoding(torch.arange(6), 32)
    close(read, F.dropout(undropped, 0.5))
    assert not torch.equal(model(**inputs).logits, model(**inputs).logits)


def test_gradients_computed_piece_by_piece_are_the_same(fresh_own):
    inputs = {"input_ids": torch.tensor([SOURCE]), "labels": torch.tensor([TARGET])}
    plain, pieces = (fresh_own("transformer", dropout=0.0).train() for _ in range(2))
    pieces.activation_checkpointing_enable()
    for model in (plain, pieces):
        model(**inputs, use_cache=True).loss.backward()
    assert all(layer.gradient_checkpointing for layer in [*pieces.model.encoder.layers, *pieces.model.decoder.layers])
    for mine, theirs in zip(plain.parameters(), pieces.parameters()):
        close(mine.grad, theirs.grad)


def test_new_weights_make_words_as_large_as_positions():
    torch.manual_seed(0)
    model = TransformerForConditionalGeneration(TransformerConfig(vocab_size=2000, d_model=64, encoder_layers=1, num_heads=4, d_ff=96))
    words = model.model.encoder.embed_tokens.weight * math.sqrt(64)
    assert abs(words.std() - 1) < 0.01 and abs(words.mean()) < 0.01
    wide = model.model.encoder.layers[0].feed_forward[0].weight  # Glorot: evenly within sqrt(6 / (64 + 96))
    assert 0.98 * math.sqrt(6 / 160) < wide.max() <= math.sqrt(6 / 160)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"d_model": 30, "num_heads": 4}, "d_model 30 cannot be shared out among 4 heads"),
        ({"d_model": 33, "num_heads": 3}, "d_model 33 is odd"),
        ({"norm_position": "middle"}, "norm_position must be 'post' or 'pre', got 'middle'"),
        ({"positions": "rotary"}, "positions must be 'sinusoidal' or 'learned', got 'rotary'"),
        ({"positions": "learned", "max_encoder_position_embeddings": 8}, "say where by max_decoder_position_embeddings"),
        ({"max_encoder_position_embeddings": 8}, "sinusoidal positions have no end"),
        ({"decoder_layers": 0}, "decoder_layers must be a whole number of at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ],
)  # fmt: skip
def test_refuses_sizes_that_do_not_go_together(wrong, message):
    with pytest.raises(UserError, match=message):
        TransformerConfig(**wrong)


@torch.no_grad()
def test_runs_by_any_attention_that_transformers_knows_and_tells_no_weights_then(fresh_own):
    inputs = {
        "input_ids": torch.tensor([SOURCE, [*SOURCE[:4], 0, 0]]), "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]),
        "decoder_input_ids": torch.tensor([TARGET, TARGET[::-1]]),
    }  # fmt: skip
    called = []

    def attention(module, query, key, value, attention_mask, **kwargs):
        called.append((module.is_decoder, module.is_causal, kwargs.get("word")))
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register("noted", attention)
    AttentionMaskInterface.register("noted", sdpa_mask)
    model = fresh_own("transformer")
    want = model(**inputs).logits
    model.set_attn_implementation("noted")
    close(model(**inputs, word="of the caller").logits, want, 1e-11)
    assert called == [(*kind, "of the caller") for kind in [(False, False)] * 2 + [(True, True), (True, False)] * 2]
    with pytest.raises(UserError, match="noted attention does not tell its weights"):
        model(**inputs, output_attentions=True)


def test_refuses_a_call_without_source_or_target(own):
    model = own("transformer")
    with pytest.raises(UserError, match="decoder has nothing to read"):
        model(input_ids=torch.tensor([SOURCE]))
    with pytest.raises(UserError, match="there is no source"):
        model(decoder_input_ids=torch.tensor([TARGET]))
