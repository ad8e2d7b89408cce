import copy

import pytest
import torch
import torch.nn.functional as F

from seodang.data.errors import UserError
from seodang.infer.runners.architecture import text_limit
from seodang.train.models.masked_loss import patch_masked_loss
from seodang.train.pretraining.layout import refuse_other_models, set_layout

LENGTHS = [[9, 4], [6], [12, 3, 1, 5]]  # of the pieces of three rows


def rows(seed=0):
    """Rows of pieces that begin and end with special tokens, with labels at some positions."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for lengths in LENGTHS:
        ids = torch.randint(4, 128, (sum(lengths),), generator=generator)
        labels = torch.where(torch.rand(sum(lengths), generator=generator) < 0.4, torch.randint(4, 128, (sum(lengths),), generator=generator), -100)
        made.append({"input_ids": ids.tolist(), "labels": labels.tolist(), "lengths": lengths})
    return made


def alone(model, made):
    """The loss of a plain transformers model, each piece in a pass of its own: a mean over all labels; its gradients are added up."""
    total = sum(label != -100 for row in made for label in row["labels"])
    whole = 0.0
    for row in made:
        start = 0
        for length in row["lengths"]:
            ids, labels = (torch.tensor([row[name][start : start + length]]) for name in ("input_ids", "labels"))
            start += length
            if (labels != -100).any():
                loss = F.cross_entropy(model(input_ids=ids).logits[0], labels[0], reduction="sum") / total
                loss.backward()
                whole += loss.item()
    return whole


@pytest.mark.parametrize(("kind", "end_to_end"), [("bert", True), ("roberta", True), ("distilbert", True), ("modernbert", True), ("electra", True), ("deberta-v2", False)])
def test_loss_and_gradients_of_packed_rows_equal_those_of_each_piece_alone(fresh_encoder, text_tokenizer, kind, end_to_end):
    plain = fresh_encoder(kind).double().train()
    ours = copy.deepcopy(plain)
    layout = set_layout(ours, text_tokenizer("wordpiece"))
    assert layout.end_to_end is end_to_end
    patch_masked_loss(ours)
    batch = layout.batch(rows())
    assert batch["input_ids"].shape == ((1, 40) if end_to_end else (7, 12))  # no padding where the architecture allows it
    expected = alone(plain, rows())
    loss = ours(**batch).loss
    loss.backward()
    assert abs(loss.item() - expected) < 1e-11
    found = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    for name, p in plain.named_parameters():
        if p.grad is not None and p.grad.abs().max() > 0:
            assert torch.allclose(found[name], p.grad, atol=1e-11), name


def test_positions_begin_where_the_architecture_begins_and_a_piece_has_so_much_less_room(fresh_encoder, text_tokenizer):
    tokenizer = text_tokenizer("wordpiece")
    roberta, bert = fresh_encoder("roberta"), fresh_encoder("bert")
    assert (set_layout(roberta, tokenizer).first_position, text_limit(roberta)) == (2, 62)
    assert (set_layout(bert, tokenizer).first_position, text_limit(bert)) == (0, 64)
    batch = set_layout(fresh_encoder("roberta"), tokenizer).batch(rows())
    assert batch["position_ids"][0, :14].tolist() == [*range(2, 11), *range(2, 6), 2]


def test_a_model_in_low_precision_is_tried_in_float32_and_stays_as_it_is(fresh_encoder, text_tokenizer):
    model = fresh_encoder("bert").bfloat16()
    assert set_layout(model, text_tokenizer("wordpiece")).end_to_end
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16} and model.config._attn_implementation == "seodang_packed"


def test_an_encoder_whose_pieces_would_come_out_otherwise_is_padded_and_keeps_its_attention(fresh_encoder, text_tokenizer):
    model = fresh_encoder("bert")
    embeddings = model.bert.embeddings
    forward = embeddings.forward
    embeddings.forward = lambda *args, **kwargs: forward(*args, **kwargs | {"position_ids": None})  # it numbers a whole row
    before = model.config._attn_implementation
    assert not set_layout(model, text_tokenizer("wordpiece")).end_to_end and model.config._attn_implementation == before


def test_an_encoder_of_broken_weights_is_refused_and_not_padded(fresh_encoder, text_tokenizer):
    model = fresh_encoder("bert")
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="BertForMaskedLM gives nan or infinity for a text: its weights are damaged"):
        set_layout(model, text_tokenizer("wordpiece"))


def test_plain_calls_of_a_model_whose_attention_was_set_still_see_both_ways(fresh_encoder, text_tokenizer):
    model = fresh_encoder("bert")
    ids = torch.randint(4, 128, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        set_layout(model, text_tokenizer("wordpiece"))
        assert torch.allclose(model(input_ids=ids).logits, expected, atol=1e-5)


def test_what_fills_in_no_masks_is_refused_by_name(tiny_llama, fresh_tiny, fresh_encoder):
    with pytest.raises(UserError, match="this llama is a decoder, .* `seodang pretrain` or `seodang sft`"):
        refuse_other_models(tiny_llama.config)
    for kind in ("t5", "bart"):
        with pytest.raises(UserError, match=f"{kind} has a decoder beside its encoder"):
            refuse_other_models(fresh_tiny(kind).config)
    decoder = fresh_encoder("bert", is_decoder=True)
    with pytest.raises(UserError, match="this bert is a decoder"):
        refuse_other_models(decoder.config, type(decoder).__name__)
    refuse_other_models(fresh_encoder("bert").config, "BertForMaskedLM")
    with pytest.raises(UserError, match="this bert is a decoder"):
        refuse_other_models(fresh_encoder("bert").config, "BertLMHeadModel")
