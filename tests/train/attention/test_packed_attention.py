import pytest
import torch

from seodang.data.packing import collate
from seodang.train.attention.packed_attention import PACKED
from seodang.train.models.completion_loss import patch_completion_loss

KINDS = ["llama", "gpt2", "qwen3", "mistral", "gemma", "gemma2", "granite", "cohere"]


def records(lengths=(9, 5, 5, 17, 1, 12)):
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in lengths:
        ids = torch.randint(3, 128, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * (length // 2 + 1) + ids[length // 2 + 1 :]})
    return rows


def lengths_of(batch):
    return tuple(batch["cu_seq_lens_q"].diff().tolist())


@pytest.mark.parametrize("kind", [*KINDS, "qwen2_moe"])
def test_packed_logits_equal_those_of_each_record_alone(fresh_tiny, kind):
    model, rows = fresh_tiny(kind), records()
    model.set_attn_implementation("eager")
    alone = torch.cat([model(torch.tensor([row["input_ids"]])).logits[0] for row in rows])
    model.set_attn_implementation(PACKED)
    batch = collate(rows)
    together = model(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], record_lengths=lengths_of(batch), use_cache=False
    ).logits[0]
    assert torch.allclose(together, alone, atol=2e-5)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "mistral"])
def test_packed_loss_and_gradients_equal_the_unpacked_mean(fresh_tiny, kind):
    plain, packed, rows = fresh_tiny(kind), fresh_tiny(kind), records()
    plain.set_attn_implementation("eager")
    count = sum(label != -100 for row in rows for label in row["labels"])
    for row in rows:
        if any(label != -100 for label in row["labels"]):
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
            plain(input_ids=ids, labels=labels, num_items_in_batch=count).loss.backward()
    packed.set_attn_implementation(PACKED)
    patch_completion_loss(packed)
    out = packed(**collate(rows))
    out.loss.backward()
    assert out.tokens == count
    for (name, p), q in zip(packed.named_parameters(), plain.parameters(), strict=True):
        assert (p.grad - q.grad).abs().max() <= 1e-5 * q.grad.abs().max().clamp_min(1e-9), name


def test_a_record_does_not_feel_its_neighbours(tiny_llama):
    """The same record among other neighbours gives the same logits, bit for bit."""
    one, other, third = records((7, 7, 7))
    implementation = tiny_llama.config._attn_implementation
    tiny_llama.set_attn_implementation(PACKED)
    try:
        logits = []
        for neighbour in (other, third):
            batch = collate([neighbour, one])
            out = tiny_llama(input_ids=batch["input_ids"], position_ids=batch["position_ids"], record_lengths=(7, 7), use_cache=False)
            logits.append(out.logits[0, 7:])
        assert torch.equal(*logits)
    finally:
        tiny_llama.set_attn_implementation(implementation)


def test_unhonoured_attention_arguments_are_refused_by_name(tiny_llama):
    q = torch.zeros(1, 4, 3, 8)
    from seodang.data.errors import UserError
    from seodang.train.attention.packed_attention import packed_attention

    with pytest.raises(UserError, match="position_bias"):
        packed_attention(tiny_llama.model.layers[0].self_attn, q, q, q, None, position_bias=torch.zeros(3, 3))
