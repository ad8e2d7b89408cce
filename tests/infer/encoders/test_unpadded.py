import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from seodang.infer.encoders.unpadded import UNPADDED, Texts, is_unpadded, unpad, unpadding

SIZES = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
    "num_labels": 3, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
KINDS = {
    "bert": {},
    "roberta": {"pad_token_id": 1},  # whose positions begin behind the padding's
    "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4},
    "modernbert": {"local_attention": 4, "global_attn_every_n_layers": 2, "cls_token_id": 2, "sep_token_id": 3, "classifier_pooling": "mean"},
    "albert": {"embedding_size": 16},  # whose pooler is a layer without its activation
    "llama": {"num_key_value_heads": 2},
    "deberta-v2": {},  # whose attention cannot be replaced
}
LENGTHS = {"alike": (9, 7, 8, 9), "apart": (20, 3, 20, 1, 9)}  # those that share a call of the kernel, and those that do not


def classifier(kind: str):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **{**SIZES, **KINDS[kind]})).double().eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return model


def batch(model, lengths):
    ids, mask = torch.full((len(lengths), max(lengths)), model.config.pad_token_id), torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    draw = torch.Generator().manual_seed(1)
    for row, length in enumerate(lengths):
        ids[row, :length], mask[row, :length] = torch.randint(5, 120, (length,), generator=draw), 1
    return {"input_ids": ids, "attention_mask": mask}


def test_the_tokens_of_a_batch_lie_end_to_end_and_back():
    texts = Texts.of(torch.tensor([[1, 1, 0], [1, 1, 1]]))
    assert texts.lengths == (2, 3) and texts.positions().tolist() == [[0, 1, 0, 1, 2]]
    padded = torch.tensor([[[1.0], [2.0], [9.0]], [[3.0], [4.0], [5.0]]])
    assert texts.flat(padded).tolist() == [[[1], [2], [3], [4], [5]]]
    assert texts.padded(texts.flat(padded))[0].tolist() == [[1], [2], [0]]
    assert texts.visible().view(2, 3).tolist() == [[True, True, False], [True, True, True]]


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "deberta-v2"])
def test_logits_loss_and_gradients_are_those_of_each_text_alone(kind, lengths):
    """In float64, a text alone being a row without padding through the plain model."""
    plain, model = classifier(kind), classifier(kind)
    rows = batch(plain, lengths)
    labels = torch.arange(len(lengths)) % 3
    alone = torch.cat([plain(input_ids=rows["input_ids"][i : i + 1, :n], attention_mask=rows["attention_mask"][i : i + 1, :n]).logits for i, n in enumerate(lengths)])
    assert unpad(model) and model.config._attn_implementation == UNPADDED
    together = model(**rows).logits
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)
    for logits in (alone, together):
        torch.nn.functional.cross_entropy(logits, labels).backward()
    for (name, wanted), got in zip(plain.named_parameters(), model.parameters(), strict=True):
        if wanted.grad is not None:
            torch.testing.assert_close(got.grad, wanted.grad, rtol=1e-8, atol=1e-10, msg=name)
    torch.testing.assert_close(together, plain(**rows).logits, rtol=1e-10, atol=1e-10)  # and of the padded batch


def test_the_second_texts_of_pairs_keep_their_types():
    plain, model = classifier("bert"), classifier("bert")
    rows = batch(plain, LENGTHS["apart"])
    types = {"token_type_ids": (torch.arange(rows["input_ids"].shape[1]) > 4).long().expand_as(rows["input_ids"])}
    unpad(model)
    torch.testing.assert_close(model(**rows, **types).logits, plain(**rows, **types).logits, rtol=1e-10, atol=1e-10)
    assert (plain(**rows, **types).logits - plain(**rows).logits).abs().max() > 1e-3


def test_within_the_context_alone():
    model = classifier("bert")
    rows, before = batch(model, LENGTHS["apart"]), model.config._attn_implementation
    want, seen = model(**rows).logits, []
    model.bert.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[:2]))
    with unpadding(model):
        got = model(**rows).logits
    assert seen[-1] == (1, sum(LENGTHS["apart"]))  # no padding was computed; before it came the trial
    assert model.config._attn_implementation == before and not is_unpadded(model) and not model.bert._forward_hooks
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_an_attention_that_cannot_be_replaced_stays_padded():
    model = classifier("deberta-v2")
    rows = batch(model, LENGTHS["apart"])
    want = model(**rows).logits
    assert not unpad(model) and not is_unpadded(model)
    with unpadding(model):
        assert torch.equal(model(**rows).logits, want)


def test_a_model_that_computes_something_else_without_padding_stays_padded():
    """Its head looks at how long the rows are: the trial tells."""
    model = classifier("bert")
    model.bert.embeddings.register_forward_hook(lambda module, args, kwargs, output: output * kwargs["input_ids"].shape[1], with_kwargs=True)
    assert not unpad(model) and model.config._attn_implementation != UNPADDED
