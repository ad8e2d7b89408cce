"""The LSTM encoder-decoder: its steps against a loop written out, its padding, and what transformers asks of a model."""

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM
from transformers.modeling_outputs import BaseModelOutput

from seodang.data.errors import UserError
from seodang.infer.architectures.lstm import LSTMConfig, LSTMForConditionalGeneration, LSTMModel

KINDS = [{"attention": "none"}, {"attention": "dot"}, {"attention": "dot", "bidirectional": True, "num_layers": 3}]
SOURCE, TARGET = [5, 9, 77, 31, 8, 2], [0, 40, 41, 6, 99]


def close(got, want, atol=1e-12):
    torch.testing.assert_close(got, want, rtol=0, atol=atol)


def cell_by_cell(layer, inputs, hidden, cell, direction=""):
    """An LSTM layer as its equations: the states at each step, and what it remembers at the end."""
    weight_in, weight_back = layer.get_parameter(f"weight_ih_l0{direction}"), layer.get_parameter(f"weight_hh_l0{direction}")
    bias = layer.get_parameter(f"bias_ih_l0{direction}") + layer.get_parameter(f"bias_hh_l0{direction}")
    states = []
    for x in inputs:
        let_in, forget, new, let_out = (weight_in @ x + weight_back @ hidden + bias).chunk(4)
        cell = forget.sigmoid() * cell + let_in.sigmoid() * new.tanh()
        hidden = let_out.sigmoid() * cell.tanh()
        states.append(hidden)
    return states, hidden, cell


def written_out(model, source, target):
    """Logits, [n, vocab], and the weights of attention, [n, m], of one row, a token at a time."""
    config, zeros = model.config, lambda size: torch.zeros(size, dtype=torch.float64)
    size = config.d_model // (2 if config.bidirectional else 1)
    states, memory = [model.model.encoder.embed_tokens.weight[id] for id in source], []
    for layer in model.model.encoder.layers:
        onward, hidden, cell = cell_by_cell(layer, states, zeros(size), zeros(size))
        if config.bidirectional:
            back, hidden_back, cell_back = cell_by_cell(layer, states[::-1], zeros(size), zeros(size), "_reverse")
            onward = [torch.cat(both) for both in zip(onward, back[::-1])]
            hidden, cell = torch.cat([hidden, hidden_back]), torch.cat([cell, cell_back])
        states = onward
        memory.append((hidden, cell))
    read, states = states, [model.model.decoder.embed_tokens.weight[id] for id in target]
    for layer, (hidden, cell) in zip(model.model.decoder.layers, memory):
        states, _, _ = cell_by_cell(layer, states, hidden, cell)
    all_weights = []
    if config.attention == "dot":
        attended = []
        for state in states:
            scores = [sum(a * b for a, b in zip(state, seen)) for seen in read]  # score
            total = sum(score.exp() for score in scores)
            weights = [score.exp() / total for score in scores]  # distribution
            context = sum(weight * seen for weight, seen in zip(weights, read))  # weighted sum
            together = torch.cat([context, state])  # concatenation
            attended.append((model.model.decoder.attention.combine.weight @ together).tanh())
            all_weights.append(torch.stack(weights))
        states = attended
    return torch.stack(states) @ model.lm_head.weight.T, all_weights and torch.stack(all_weights)


@pytest.mark.parametrize("changes", KINDS, ids=["context alone", "attention", "both sides"])
@torch.no_grad()
def test_each_step_is_that_of_the_loop_written_out(own, changes):
    model = own("lstm", **changes)
    logits, weights = written_out(model, SOURCE, TARGET)
    tell = changes["attention"] == "dot"
    out = model(input_ids=torch.tensor([SOURCE]), decoder_input_ids=torch.tensor([TARGET]), output_attentions=tell, output_hidden_states=True)
    close(out.logits[0], logits, 1e-11)
    if tell:
        assert [each.shape for each in out.cross_attentions] == [(1, 1, 5, 6)]
        close(out.cross_attentions[0][0, 0], weights, 1e-11)
    assert len(out.decoder_hidden_states) == 1 + model.config.num_layers
    close(out.decoder_hidden_states[-1][0] @ model.lm_head.weight.T, logits, 1e-11)  # what the head reads


@pytest.mark.parametrize("changes", KINDS, ids=["context alone", "attention", "both sides"])
@torch.no_grad()
def test_padding_behind_a_source_changes_nothing(own, changes):
    model = own("lstm", **changes)
    sources = [SOURCE, SOURCE[2:4], SOURCE[1:5]]
    ids = torch.tensor([source + [3] * (6 - len(source)) for source in sources])  # no zeros, which might pass for nothing
    mask = torch.tensor([[1] * len(source) + [0] * (6 - len(source)) for source in sources])
    together = model(input_ids=ids, attention_mask=mask, decoder_input_ids=torch.tensor([TARGET] * 3), output_hidden_states=True)
    for row, source in enumerate(sources):
        alone = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([TARGET]), output_hidden_states=True)
        close(together.logits[row], alone.logits[0], 1e-11)
        for mine, theirs in zip(together.encoder_hidden_states[1:], alone.encoder_hidden_states[1:]):
            close(mine[row, : len(source)], theirs[0])
            assert (mine[row, len(source) :] == 0).all()


@pytest.mark.parametrize("changes", KINDS, ids=["context alone", "attention", "both sides"])
@torch.no_grad()
def test_the_state_gives_the_logits_of_the_whole(own, changes):
    model = own("lstm", **changes)
    want = model(input_ids=torch.tensor([SOURCE]), decoder_input_ids=torch.tensor([TARGET])).logits
    read, past, parts = model.get_encoder()(torch.tensor([SOURCE])), None, []
    for part in torch.tensor([TARGET]).split([2, 1, 2], dim=1):
        out = model(encoder_outputs=read, decoder_input_ids=part, past_key_values=past)
        parts, past = [*parts, out.logits], out.past_key_values
    close(torch.cat(parts, dim=1), want, 1e-11)


def test_without_attention_the_state_is_all_that_the_decoder_knows(own):
    model = own("lstm", attention="none")
    read = model.get_encoder()(torch.tensor([SOURCE]))
    other = type(read)(last_hidden_state=torch.zeros_like(read.last_hidden_state), final_hidden=read.final_hidden, final_cell=read.final_cell)
    say = lambda read: model(encoder_outputs=read, decoder_input_ids=torch.tensor([TARGET])).logits
    close(say(other), say(read))
    with_attention = own("lstm", attention="dot")
    read = with_attention.get_encoder()(torch.tensor([SOURCE]))
    other = type(read)(last_hidden_state=torch.zeros_like(read.last_hidden_state), final_hidden=read.final_hidden, final_cell=read.final_cell)
    logits = [with_attention(encoder_outputs=each, decoder_input_ids=torch.tensor([TARGET])).logits for each in (read, other)]
    assert not torch.allclose(*logits, atol=0.1)


@pytest.mark.parametrize("changes", KINDS, ids=["context alone", "attention", "both sides"])
def test_learns_with_labels_in_a_padded_batch_as_row_by_row(fresh_own, changes):
    rows = [(SOURCE, [40, 41, 2]), (SOURCE[:3], [9, 2])]
    one, batch = (fresh_own("lstm", dropout=0.0, **changes).train() for _ in range(2))
    for source, labels in rows:
        one(input_ids=torch.tensor([source]), labels=torch.tensor([labels]), num_items_in_batch=5).loss.backward()
    batch(
        input_ids=torch.tensor([SOURCE, [*SOURCE[:3], 0, 0, 0]]), attention_mask=torch.tensor([[1] * 6, [1] * 3 + [0] * 3]),
        labels=torch.tensor([[40, 41, 2], [9, 2, -100]]),
    ).loss.backward()  # fmt: skip
    for (name, mine), theirs in zip(one.named_parameters(), batch.parameters()):
        assert mine.grad.abs().max() > 0, name
        close(mine.grad, theirs.grad, 1e-10)


def test_saved_and_loaded_by_transformers_names(fresh_own, tmp_path):
    model = fresh_own("lstm", **KINDS[2])
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is LSTMConfig
    loaded, report = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is LSTMForConditionalGeneration and not any(report.values())
    inputs = {"input_ids": torch.tensor([SOURCE]), "decoder_input_ids": torch.tensor([TARGET])}
    close(loaded(**inputs).logits, model(**inputs).logits)
    trunk = AutoModel.from_pretrained(tmp_path)
    assert type(trunk) is LSTMModel
    close(trunk(**inputs).last_hidden_state, model(**inputs, output_hidden_states=True).decoder_hidden_states[-1])


@pytest.mark.parametrize("tied", [False, True])
def test_new_weights_lie_evenly_within_the_root_of_the_size_and_words_are_normal_unless_the_head_has_them(tied):
    torch.manual_seed(0)
    model = LSTMForConditionalGeneration(LSTMConfig(vocab_size=500, d_model=64, attention="dot", tie_word_embeddings=tied))
    for name, parameter in model.named_parameters():
        if "embed_tokens" in name and not tied:
            assert abs(parameter.mean()) < 0.03 and abs(parameter.std() - 1) < 0.03, name
        else:
            assert 0.11 < parameter.max() <= 0.125 and -0.125 <= parameter.min() < -0.11, name


def test_dropout_falls_between_layers_in_training_alone(fresh_own):
    model = fresh_own("lstm", dropout=0.5, attention="dot")
    inputs = {
        "input_ids": torch.tensor([SOURCE, SOURCE]), "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]),
        "decoder_input_ids": torch.tensor([TARGET, TARGET]), "output_hidden_states": True,
    }  # fmt: skip
    assert torch.equal(model(**inputs).logits, model(**inputs).logits)
    model.train()
    out = model(**inputs)
    words = model.model.encoder.embed_tokens.weight[SOURCE]
    kept = out.encoder_hidden_states[0][0] != 0
    assert 0.3 < kept.double().mean() < 0.7
    close(out.encoder_hidden_states[0][0][kept], 2 * words[kept])
    assert not torch.equal(model(**inputs).logits, out.logits)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"attention": "general"}, "attention must be 'none' or 'dot', got 'general'"),
        ({"bidirectional": True, "d_model": 33}, "half of d_model from each side, and 33 is odd"),
        ({"num_layers": 0}, "num_layers must be a whole number of at least 1, got 0"),
    ],
)  # fmt: skip
def test_refuses_sizes_that_do_not_go_together(wrong, message):
    with pytest.raises(UserError, match=message):
        LSTMConfig(**wrong)


def test_refuses_padding_in_front_rows_without_a_token_and_what_it_cannot_tell(own):
    model = own("lstm", attention="none")
    source, target = torch.tensor([SOURCE, SOURCE]), torch.tensor([TARGET, TARGET])
    with pytest.raises(UserError, match="the source has padding before a token"):
        model(input_ids=source, attention_mask=torch.tensor([[1] * 6, [0] + [1] * 5]), decoder_input_ids=target)
    with pytest.raises(UserError, match="the source of row 2 is empty"):
        model(input_ids=source, attention_mask=torch.tensor([[1] * 6, [0] * 6]), decoder_input_ids=target)
    with pytest.raises(UserError, match="the target has padding before a token"):
        model(input_ids=source, decoder_input_ids=target, decoder_attention_mask=torch.tensor([[1] * 5, [0] + [1] * 4]))
    with pytest.raises(UserError, match='make it with attention="dot"'):
        model(input_ids=source, decoder_input_ids=target, output_attentions=True)
    read = BaseModelOutput(last_hidden_state=torch.zeros(2, 6, 32, dtype=torch.float64))
    with pytest.raises(UserError, match="what its encoder remembers at the end"):
        model(encoder_outputs=read, decoder_input_ids=target)
