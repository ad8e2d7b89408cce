"""The tree computes what the plain rows compute: logits, log-probabilities, entropies and gradients."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from seodang.train.attention.packed_attention import PACKED
from seodang.train.attention.tree import attend_tree, collate_branches, collate_padded_branches, offsets, sum_by_branch
from seodang.train.maths.logprobs import LinearLogprobs, head_logprobs
from seodang.train.models.branch_logprobs import choose_branch_collator, patch_branch_logprobs

KINDS = ["llama", "gpt2", "qwen3", "mistral", "gemma", "gemma2", "granite", "cohere"]


def branch_rows(shapes=((9, (4, 4)), (3, (1, 7, 2)), (12, (5,)), (1, (6, 6, 6))), seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = lambda n: torch.randint(3, 128, (n,), generator=generator).tolist()
    return [{"prompt_ids": ids(prompt), "branches": [ids(n) for n in branches]} for prompt, branches in shapes]


def plainly(model, rows, temperature=1.0):
    """Log-probabilities and entropies of every answer token, each answer alone behind its prompt, the model's own logits."""
    logprobs, entropies = [], []
    for row in rows:
        for branch in row["branches"]:
            ids = torch.tensor([row["prompt_ids"] + branch])
            every = (model(ids).logits[0, len(row["prompt_ids"]) - 1 : -1] / temperature).log_softmax(-1)
            logprobs.append(every.gather(1, torch.tensor(branch)[:, None]).squeeze(1))
            entropies.append(torch.distributions.Categorical(logits=every).entropy())
    return torch.cat(logprobs), torch.cat(entropies)


def test_a_batch_lies_end_to_end_and_says_what_predicts_what():
    batch = collate_branches([{"prompt_ids": [5, 6], "branches": [[7, 8, 9], [10]]}, {"prompt_ids": [11], "branches": [[12, 13]]}])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 11, 12]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1]]
    assert batch["tree"] == ((2, (2, 0)), (1, (1,)))
    assert batch["predictors"].tolist() == [1, 2, 3, 1, 4, 5]  # the prompt's last token predicts the first of both its answers
    assert batch["targets"].tolist() == [7, 8, 9, 10, 12, 13]
    assert batch["branch_lengths"] == (3, 1, 2) and offsets(batch["branch_lengths"]) == [0, 3, 4]
    assert sum_by_branch(torch.tensor([1.0, 2, 3, 10, 5, 6]), batch["branch_lengths"]).tolist() == [6, 10, 11]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_and_entropies_equal_those_of_each_answer_alone(fresh_tiny, kind, temperature):
    model, rows = fresh_tiny(kind).double(), branch_rows()
    expected = plainly(model, rows, temperature)
    patch_branch_logprobs(model)
    collate = choose_branch_collator(model, 0)
    assert model.config._attn_implementation == PACKED
    out = model(**collate(rows), temperature=temperature, wants_entropies=True)
    assert torch.allclose(out.logprobs, expected[0], atol=1e-9) and torch.allclose(out.entropies, expected[1], atol=1e-9)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "mistral"])
def test_gradients_equal_those_of_the_plain_computation(fresh_tiny, kind):
    """Of a loss that weighs every token's log-probability and entropy otherwise; norms and rotations round to float32 even in float64 models."""
    plain, tree, rows = fresh_tiny(kind).double(), fresh_tiny(kind).double(), branch_rows()
    logprobs, entropies = plainly(plain, rows)
    weights = torch.linspace(-1, 2, 2 * len(logprobs), dtype=torch.float64)
    loss = lambda logprobs, entropies: (torch.cat([logprobs, entropies]) * weights).sum()
    loss(logprobs, entropies).backward()
    patch_branch_logprobs(tree)
    out = tree(**choose_branch_collator(tree, 0)(rows), wants_entropies=True)
    loss(out.logprobs, out.entropies).backward()
    for (name, p), q in zip(tree.named_parameters(), plain.parameters(), strict=True):
        assert (p.grad - q.grad).abs().max() <= 1e-6 * q.grad.abs().max().clamp_min(1e-9), name


def test_an_architecture_without_replaceable_attention_is_padded_and_scores_the_same():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("bloom", vocab_size=128, hidden_size=32, n_layer=2, n_head=4)).double().eval()
    rows = branch_rows()
    expected, _ = plainly(model, rows)
    patch_branch_logprobs(model)
    batch = choose_branch_collator(model, 0)(rows)
    assert "tree" not in batch
    assert torch.allclose(model(**batch).logprobs, expected, atol=1e-9)


def test_padded_and_end_to_end_batches_name_the_same_last_tokens():
    rows = branch_rows()
    flat, padded = collate_branches(rows, keep_last=True), collate_padded_branches(rows, 0)
    last = [branch[-1] for row in rows for branch in row["branches"]]
    assert flat["input_ids"][0][flat["ends"]].tolist() == padded["input_ids"].flatten()[padded["ends"]].tolist() == last


def test_a_branch_does_not_feel_its_neighbours(tiny):
    """Longer or shorter sisters, padded or not, change nothing."""
    model = tiny("llama", seed=3)
    patch_branch_logprobs(model)
    model.set_attn_implementation(PACKED)
    prompt, mine = list(range(3, 20)), [40, 41, 42, 43]
    alone = model(**collate_branches([{"prompt_ids": prompt, "branches": [mine]}])).logprobs
    for sisters in ([[50, 51, 52, 53]], [[50] * 40], [[60]], [[50] * 5, [60] * 4]):
        out = model(**collate_branches([{"prompt_ids": prompt, "branches": [mine, *sisters]}])).logprobs
        assert torch.allclose(out[:4], alone, atol=1e-5)


def test_tree_attention_equals_attention_under_the_whole_mask():
    tree = ((5, (3, 3)), (2, (1, 6, 2)))
    q, k, v = (torch.randn(1, heads, 22, 8, dtype=torch.float64) for heads in (4, 2, 2))
    mask, start = torch.zeros(22, 22, dtype=torch.bool), 0
    for prompt, branches in tree:
        inside = torch.arange(start, start + prompt)
        mask[inside[:, None], inside] = torch.ones(prompt, prompt).tril().bool()
        at = start + prompt
        for n in branches:
            mask[at : at + n, start : start + prompt] = True
            mask[at : at + n, at : at + n] = torch.ones(n, n).tril().bool()
            at += n
        start = at
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    assert torch.allclose(attend_tree(q, k, v, tree), expected, atol=1e-12)


@pytest.mark.parametrize("kept", [0, 2**30])
def test_linear_log_probabilities_pass_a_numerical_check_of_their_gradients(monkeypatch, kept):
    monkeypatch.setattr("seodang.train.maths.logprobs.KEPT_BYTES", kept)
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 3), (7, 3), (7,)))
    targets = torch.tensor([0, 6, 3, 3, 1])
    assert torch.autograd.gradcheck(lambda h, w, b: LinearLogprobs.apply(h, w, b, targets, 0.7, True, 2), (hidden, weight, bias))
    out = LinearLogprobs.apply(hidden, weight, bias, targets, 0.7, True, 2)
    other = head_logprobs(lambda h: torch.nn.functional.linear(h, weight, bias), hidden, targets, 0.7, 2)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(out, other, strict=True))


def test_training_leaves_the_engine_its_direct_way_to_the_weights(fresh_tiny):
    from seodang.infer.runners.direct import DirectRunner
    from seodang.infer.runners.open import open_runner

    model = fresh_tiny("llama")
    patch_branch_logprobs(model)
    choose_branch_collator(model, 0)
    assert isinstance(open_runner(model), DirectRunner)
