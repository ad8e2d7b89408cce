"""Dream's loop: what its own code gave for made-up logits (golden/dream.json, made by golden/make_dream.py), bit for bit."""

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from seodang.data.errors import UserError
from seodang.infer.diffusion.compat import bind, diffusion_generate
from seodang.infer.diffusion.dream import DreamSettings, _drawn
from seodang.infer.runners.paradigm import Diffusion, declare

from .made_up import MASK, VOCABULARY, MadeUp, written

CASES = json.loads(Path(__file__).parents[1].joinpath("golden", "dream.json").read_text(encoding="utf-8"))


def generate(model, prompt, **settings):
    return diffusion_generate(model, torch.tensor(prompt), **settings, output_history=True, return_dict_in_generate=True)


def test_every_golden_run_comes_out_bit_for_bit():
    assert len(CASES) == 73 and {case["settings"].get("alg") for case in CASES} == {None, "origin", "maskgit_plus", "topk_margin", "entropy"}
    for case in CASES:
        model = MadeUp()
        torch.manual_seed(case["seed"])
        result = generate(model, case["prompt"], **case["settings"])
        begin = 0 if any(MASK in row for row in case["prompt"]) else len(case["prompt"][0])
        assert written(result.sequences) == case["sequences"], case
        assert [" ".join(written(canvas[:, begin:])) for canvas in result.history] == case["history"], case
        assert model.passes == case["forwards"] == len(case["history"])


@pytest.mark.parametrize("alg, idle", [("entropy", 9), ("maskgit_plus", 9), ("topk_margin", 9)])
def test_passes_that_commit_nothing_are_run_as_there(alg, idle):
    model = MadeUp()
    result = generate(model, [[1, 2, 3]], max_new_tokens=8, steps=16, temperature=0, top_p=1, alg=alg, alg_temp=0.0)
    masks = [8, *((canvas == MASK).sum().item() for canvas in result.history)]
    assert [before - after for before, after in zip(masks, masks[1:])].count(0) == idle and model.passes == 16  # 8 * (1 - s / t), rounded down


def test_the_shift_is_the_models_own():
    """Without the shift a token's logits are those of its own place: one greedy step is their argmax."""
    prompt = [[4, 8, 15]]
    canvas = torch.tensor([[4, 8, 15, MASK, MASK, MASK]])
    logits = MadeUp()(canvas, use_cache=False).logits[0]
    asked = {"max_new_tokens": 3, "steps": 1, "temperature": 0, "alg": "entropy"}
    assert generate(MadeUp(shift=0), prompt, **asked).sequences[0, 3:].tolist() == logits[3:].argmax(dim=-1).tolist()
    assert generate(MadeUp(), prompt, **asked).sequences[0, 3:].tolist() == logits[2:5].argmax(dim=-1).tolist()


def test_hooks_see_every_step_and_what_they_return_is_gone_on_with():
    seen = []

    def tokens(step, canvas, logits):
        seen.append((step, None if logits is None else list(logits.shape)))
        canvas[:, -1] = 7  # the last token is pinned
        return canvas

    def scores(step, canvas, logits):
        return logits.index_fill(-1, torch.tensor([9]), 100.0)

    result = generate(
        MadeUp(), [[1, 2]], max_new_tokens=4, steps=3, temperature=0, generation_tokens_hook_func=tokens, generation_logits_hook_func=scores
    )  # fmt: skip
    assert result.sequences.tolist() == [[1, 2, 9, 9, 9, 7]]
    assert seen == [(None, None), *((step, [1, 6, VOCABULARY]) for step in range(3))]


def test_what_comes_back_and_where_settings_come_from():
    told = {"max_new_tokens": 4, "steps": 4, "temperature": 0, "alg": "entropy", "top_k": 3}
    tensor = diffusion_generate(MadeUp(), torch.tensor([[1, 2]]), **told)
    assert isinstance(tensor, torch.Tensor) and generate(MadeUp(), [[1, 2]], **told).sequences.equal(tensor)
    assert diffusion_generate(MadeUp(), torch.tensor([[1, 2]]), **told, return_dict_in_generate=True).history is None
    config = GenerationConfig(max_new_tokens=4, temperature=0.9, top_k=3)
    config.steps, config.alg = 4, "entropy"
    assert diffusion_generate(MadeUp(), torch.tensor([[1, 2]]), config, temperature=0).equal(tensor)  # by name before the config
    assert diffusion_generate(MadeUp(), torch.tensor([[1, 2]]), {"max_new_tokens": 4, "steps": 4, "alg": "entropy", "top_k": 3}).equal(tensor)  # greedy


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stepz": 4}, "knows no 'stepz': .*steps"),
        ({"steps": 0}, "steps must be a whole number above 0, got 0"),
        ({"steps": None}, "steps must be"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be"),
        ({"max_length": 3}, "prompt's 3 tokens leave no room in max_length=3"),
        ({"alg": "left_to_right"}, "alg must be origin or .*'left_to_right'"),
        ({"temperature": -1}, "temperature must be 0 or more, got -1"),
        ({"temperature": None}, "temperature must be"),
        ({"alg_temp": "hot"}, "alg_temp must be"),
        ({"top_p": 0}, r"top_p must be in \(0, 1\], got 0"),
        ({"eps": 1}, "eps must be"),
        ({"inputs": torch.tensor([1, 2, 3])}, r"tensor \[batch, length\] of whole numbers, got \[3\]"),
        ({"max_new_tokens": 254}, "the prompt's 3 tokens and an answer of 254 are more than the model's 256 positions"),
        ({"inputs": [[1, 2, 3]]}, "got list"),
        ({"attention_mask": torch.ones(1, 2)}, r"of the shape of the inputs, \[1, 3\], got \[1, 2\]"),
        ({"attention_mask": [[1, 1, 1]]}, "got list"),
        ({"mask_token_id": 200_000}, "one of the model's 151936 ids, got 200000"),
    ],
)
def test_mistakes_are_named_before_any_pass(settings, words):
    model = MadeUp()
    with pytest.raises(UserError, match=words):
        diffusion_generate(model, **{"inputs": torch.tensor([[1, 2, 3]]), **settings})
    assert model.passes == 0


def test_a_model_that_speaks_left_to_right_or_by_blocks_is_refused(tiny_llama):
    with pytest.raises(UserError, match="needs a diffusion checkpoint"):
        diffusion_generate(tiny_llama, torch.tensor([[1]]))
    with pytest.raises(UserError, match="block_causal"):
        diffusion_generate(MadeUp(attention="block_causal", block_length=4), torch.tensor([[1]]))


def test_a_padding_token_without_a_mask_is_told_and_none_is_no_error(caplog):
    generate(MadeUp(), [[0, 5]], max_new_tokens=1, steps=1, pad_token_id=None)
    assert not caplog.text
    generate(MadeUp(), [[0, 5]], max_new_tokens=1, steps=1, pad_token_id=0)
    assert "no attention_mask says that it is padding" in caplog.text


def test_padding_is_told_to_the_model_with_the_positions_of_the_published_code():
    model = MadeUp()
    generate(model, [[0, 0, 9], [3, 4, 5]], max_new_tokens=2, steps=1, attention_mask=torch.tensor([[0, 0, 1], [1, 1, 1]]), num_return_sequences=2)
    assert model.told["attention_mask"].tolist() == [[0, 0, 1, 1, 1]] * 2 + [[1] * 5] * 2
    assert model.told["position_ids"].tolist() == [[1, 1, 0, 1, 2]] * 2 + [[0, 1, 2, 3, 4]] * 2
    generate(model, [[3, 4, 5]], max_new_tokens=2, steps=1, attention_mask=torch.ones(1, 3))
    assert not model.told


def test_where_probabilities_are_too_coarse_to_be_drawn_from_the_likeliest_token_is_taken_as_there():
    """In bfloat16 these five probabilities sum to 0.9961, which torch's distribution refuses; the published loop then takes the likeliest."""
    logits = torch.tensor([[2.625, 3.375, 1.5, 0.375, 0.75]]).repeat(50, 1)
    asked = DreamSettings(temperature=1.0)
    torch.manual_seed(0)
    assert len(set(_drawn(logits, asked)[1].tolist())) == 5
    coarse = logits.bfloat16()
    assert (coarse.softmax(dim=-1).sum(dim=-1) - 1).abs().max() > 1e-6
    confidences, tokens = _drawn(coarse, asked)
    assert set(tokens.tolist()) == {1} and confidences.equal(coarse.softmax(dim=-1)[:, 1])


@pytest.fixture
def speaking(fresh_tiny):
    """`speaking(attention)`: a tiny float64 model of that attention and Dream's shift, with its diffusion_generate; 100 is its mask."""

    def build(attention):
        model = fresh_tiny("qwen2").double()
        declare(model.config, Diffusion(100, shift=1, attention=attention))
        bind(model)
        return model

    return build


ASKED = {"max_new_tokens": 4, "steps": 4, "temperature": 0, "alg": "entropy", "return_dict_in_generate": True, "output_history": True}


@pytest.mark.parametrize("attention", ["bidirectional", "prompt_causal"])
def test_left_padding_changes_nothing(speaking, attention):
    model = speaking(attention)
    alone = model.diffusion_generate(torch.tensor([[9, 8, 7]]), **ASKED)
    padded, seen = torch.tensor([[0, 0, 9, 8, 7], [3, 4, 5, 6, 7]]), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    both = model.diffusion_generate(padded, attention_mask=seen, **ASKED)
    assert [canvas[0, 2:].tolist() for canvas in both.history] == [canvas[0].tolist() for canvas in alone.history]
    unpadded = model.diffusion_generate(padded[1:], **ASKED)
    assert both.sequences[1].tolist() == unpadded.sequences[0].tolist()
    assert model.diffusion_generate(padded[:1], **ASKED).sequences[0, 5:].tolist() != alone.sequences[0, 3:].tolist()  # where nothing says it is padding


def read(model, prompt, **asked):
    """The logits that a first step has, from the hook's view."""
    seen = []
    model.diffusion_generate(prompt, **{**ASKED, "steps": 1}, **asked, generation_logits_hook_func=lambda step, canvas, logits: seen.append(logits) or logits)
    return seen[0]


def test_of_a_prompt_causal_model_the_prompt_is_read_as_it_would_be_alone_and_the_canvas_both_ways(speaking):
    model, prompt, canvas = speaking("prompt_causal"), torch.tensor([[9, 8, 7]]), torch.full((1, 4), 100)
    alone = model(prompt, use_cache=True)
    everything = torch.zeros(1, 1, 4, 7, dtype=torch.float64)  # nothing is kept from the canvas
    behind = model(canvas, past_key_values=alone.past_key_values, attention_mask=everything, position_ids=torch.arange(3, 7)[None])
    logits = torch.cat([alone.logits, behind.logits], dim=1)[0]
    assert torch.allclose(read(model, prompt)[0, 1:], logits[:-1], atol=1e-6)


def test_of_a_bidirectional_model_all_is_read_at_once_and_padding_by_nobody(speaking):
    model = speaking("bidirectional")
    whole = torch.tensor([[9, 8, 7, *[100] * 4]])
    expected = model(whole, attention_mask=torch.zeros(1, 1, 7, 7, dtype=torch.float64)).logits[0]
    assert torch.allclose(read(model, whole[:, :3])[0, 1:], expected[:-1], atol=1e-6)
    padded = read(model, torch.tensor([[0, 0, 9, 8, 7]]), attention_mask=torch.tensor([[0, 0, 1, 1, 1]]))
    assert torch.allclose(padded[0, 3:], expected[:-1], atol=1e-6)


def test_an_adapter_and_a_copy_speak_as_they_are(speaking):
    model = speaking("bidirectional")
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False))
    bind(adapted)
    ids = torch.tensor([[9, 8, 7]])
    copied = copy.deepcopy(adapted)
    assert copied.diffusion_generate.args == (copied,)
    before, after = (read(each, ids) for each in (model, adapted))
    assert not torch.allclose(before, after) and torch.equal(read(copied, ids), after)
