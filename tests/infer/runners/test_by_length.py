"""Positions that turn by the length of the whole: each row by its own, as the model's own forward pass of that row alone."""

import copy
import warnings

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from seodang.infer import PrefixCache, SamplingParams, generate
from seodang.infer.runners.open import open_runner

SIZES = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [1.5, 2.0, 3.0, 4.0],
    "original_max_position_embeddings": 16,
}  # fmt: skip
DYNAMIC = {"max_position_embeddings": 16, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}
# 64 positions, the first rotation for 16
KINDS = {
    "phi3": {"max_position_embeddings": 64, "original_max_position_embeddings": 16, "rope_parameters": LONGROPE},
    "llama": DYNAMIC,
    "falcon": {**DYNAMIC, "alibi": False},  # through the padded runner
}
A, B = ([int(id) for id in torch.randint(3, 128, (24,), generator=torch.Generator().manual_seed(seed))] for seed in (1, 2))


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(request.param, **SIZES, **KINDS[request.param])).double().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
def whole(model, ids: list[int]) -> torch.Tensor:
    """The model's own logits, [n, vocab], by a copy that has seen nothing before: under dynamic scaling the longest pass leaves its rotation."""
    return copy.deepcopy(model)(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def alone(model, ids: list[int]) -> torch.Tensor:
    """The logits behind each beginning of the ids, [n, vocab], as if nothing came after it."""
    return torch.stack([whole(model, ids[:n])[-1] for n in range(1, len(ids) + 1)])


def greedy(model, ids: list[int], count: int) -> list[int]:
    for _ in range(count):
        ids = [*ids, whole(model, ids)[-1].argmax().item()]
    return ids[-count:]


@pytest.mark.filterwarnings("ignore:.*each costs a pass over all")
def test_each_row_turns_by_its_own_length(model):
    runner = open_runner(model)
    assert runner.limit == 64
    want_a, want_b = alone(model, A), alone(model, B)
    assert not torch.allclose(want_a[4], whole(model, A)[4], atol=1e-3)  # else the test could not fail
    a, b = runner.allocate(), runner.allocate()
    got = [runner.forward([a, b], [A[:10], B[:3]], [10, 3])]
    got += [runner.forward([a, b], [A[10:19], B[3:4]], [9, 1])]  # across the first length, logits on both sides
    runner.truncate(a, 14)  # back before it
    [c] = runner.fork([a])
    got += [runner.forward([a, b, c], [A[14:15], B[4:5], A[14:20]], [1, 1, 2])]
    [d] = runner.fork([a])
    for i in range(15, 24):  # step by step across it
        got += [runner.forward([b, a], [B[i - 10 : i - 9], A[i : i + 1]], [1, 1])]
    runner.copy(c, d, 15)  # what the two have alike is turned otherwise by now
    runner.copy(a, b, 0)
    runner.truncate(b, 20)
    got += [runner.forward([c, b, d], [A[20:21]] * 3, [1, 1, 1])]
    want = [want_a[:10], want_b[:3], want_a[10:19], want_b[3:4], want_a[14:15], want_b[4:5], want_a[18:20]]
    want += [own[i : i + 1] for i in range(15, 24) for own, i in ((want_b, i - 10), (want_a, i))] + [want_a[20:21]] * 3
    torch.testing.assert_close(torch.cat(got), torch.cat(want), rtol=0, atol=1e-10)
    runner.release([a, b, c, d])
    assert runner.live == 0


@pytest.mark.filterwarnings("ignore:.*each costs a pass over all")
def test_what_is_drafted_kept_and_searched_across_the_first_length_is_what_the_model_says(model, tiny_tokenizer):
    prompts, want = [A[:12], B[:4]], [greedy(model, A[:12], 8), greedy(model, B[:4], 8)]
    params = SamplingParams(max_new_tokens=8, ignore_eos=True)
    drafted = [SamplingParams(max_new_tokens=8, ignore_eos=True, assistant_model=model)]  # every draft is right, and crosses
    if model.config.model_type != "falcon":
        drafted += [SamplingParams(max_new_tokens=8, ignore_eos=True, assistant_early_exit=1)]
    cache = PrefixCache(model)
    for _ in range(2):  # the second time over what was kept of the first
        assert [each.ids for each in generate(model, tiny_tokenizer, prompts, params, prefix_cache=cache)] == want
    before = cache.runner.positions
    generate(model, tiny_tokenizer, [B[:4]], params, prefix_cache=cache)
    assert cache.runner.positions - before == 8  # one of the prompt and seven of the answer: its pasts are short
    for each in drafted:
        assert [result.ids for result in generate(model, tiny_tokenizer, prompts, each)] == want
    together = generate(model, tiny_tokenizer, prompts, SamplingParams(max_new_tokens=8, num_beams=3))
    alone_each = [generate(model, tiny_tokenizer, [prompt], SamplingParams(max_new_tokens=8, num_beams=3))[0] for prompt in prompts]
    assert [each.ids for each in together] == [each.ids for each in alone_each]


def test_beams_across_the_first_length_are_those_of_transformers(tiny_tokenizer, model):
    if model.config.model_type != "phi3":
        pytest.skip("transformers turns the keys of its cache by the lengths that they were written at")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # under longrope nothing slow is to be said
        [ours] = generate(model, tiny_tokenizer, [A[:12]], SamplingParams(max_new_tokens=8, num_beams=3, ignore_eos=True))
    theirs = model.generate(torch.tensor([A[:12]]), num_beams=3, do_sample=False, max_new_tokens=8, min_new_tokens=8, eos_token_id=None, pad_token_id=0)
    assert ours.ids == theirs[0, 12:].tolist()
