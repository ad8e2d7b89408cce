"""LLaDA's loop: what its own code gave for made-up logits (golden/llada.json, made by golden/make_llada.py), bit for bit."""

import json
from pathlib import Path

import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer.diffusion.compat import bind, diffusion_generate
from seodang.infer.diffusion.llada import LladaSettings, _ends
from seodang.infer.runners.paradigm import Diffusion, declare

from .made_up import MASK, MadeUp, written

CASES = json.loads(Path(__file__).parents[1].joinpath("golden", "llada.json").read_text(encoding="utf-8"))
ENDS = {"eos_id": 61, "eot_id": 62}


def made_up(**changes):
    return MadeUp(**{"shift": 0, **changes})


def generate(model, prompt, **settings):
    told = {"compat": "llada", "output_history": True, "return_dict_in_generate": True, **settings}
    return diffusion_generate(model, torch.tensor(prompt), **told)


def test_every_golden_run_comes_out_bit_for_bit():
    assert len(CASES) == 72
    for case in CASES:
        model, seen = made_up(), case["attention_mask"]
        torch.manual_seed(case["seed"])
        result = generate(model, case["prompt"], attention_mask=None if seen is None else torch.tensor(seen), **case["settings"], **ENDS)
        begin = 0 if any(MASK in row for row in case["prompt"]) else len(case["prompt"][0])
        assert written(result.sequences) == case["sequences"], case
        assert [" ".join(written(canvas[:, begin:])) for canvas in result.history] == case["history"], case
        assert model.passes == len(case["history"])


def test_the_golden_runs_have_a_bit_of_everything():
    """So that none of it can go unnoticed."""
    asked = [case["settings"] for case in CASES]
    for name, values in {
        "temperature": {0.0, 0.7, 1.0}, "remasking": {"low_confidence", "random"}, "cfg_scale": {0.0, 1.5}, "block_length": {2, 3, 4, 5, 8},
        "logits_eos_inf": {True}, "confidence_eos_eot_inf": {True},
    }.items():  # fmt: skip
        assert values <= {each.get(name) for each in asked}, name
    assert sum(case["attention_mask"] is not None for case in CASES) > 20
    assert any(each.get("steps", 128) > each.get("gen_length", 128) for each in asked)


def test_guidance_leads_away_from_what_is_said_without_the_prompt():
    """One greedy step by hand; without a mask, with which the published loop fails, and with one of ones."""
    canvas, blank = torch.tensor([[4, 8, MASK, MASK]]), torch.full((1, 4), MASK)
    given, unprompted = (made_up()(each, use_cache=False).logits[0] for each in (canvas, blank))
    expected = (unprompted + 3 * (given - unprompted)).argmax(dim=-1)[2:].tolist()
    asked = {"gen_length": 2, "block_length": 2, "steps": 1, "cfg_scale": 2}
    assert generate(made_up(), [[4, 8]], **asked).sequences[0, 2:].tolist() == expected != given.argmax(dim=-1)[2:].tolist()
    assert generate(made_up(), [[4, 8]], **asked, attention_mask=torch.ones(1, 2)).sequences[0, 2:].tolist() == expected


def test_the_shift_is_the_models_own():
    canvas = torch.tensor([[4, 8, 15, MASK, MASK, MASK]])
    logits = made_up()(canvas, use_cache=False).logits[0]
    asked = {"gen_length": 3, "block_length": 3, "steps": 1}
    assert generate(made_up(), [[4, 8, 15]], **asked).sequences[0, 3:].tolist() == logits[3:].argmax(dim=-1).tolist()
    assert generate(made_up(shift=1), [[4, 8, 15]], **asked).sequences[0, 3:].tolist() == logits[2:5].argmax(dim=-1).tolist()


def test_a_prompt_may_be_called_so_and_a_tensor_comes_back():
    asked = {"gen_length": 4, "block_length": 2, "steps": 4}
    prompt = torch.tensor([[1, 2]])
    tensor = diffusion_generate(made_up(), prompt=prompt, compat="llada", **asked)
    assert isinstance(tensor, torch.Tensor) and generate(made_up(), [[1, 2]], **asked).sequences.equal(tensor)
    assert generate(made_up(), [[1, 2]], **asked, output_history=False).history is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"compat": "fast"}, "compat must be dream or llada, got 'fast'"),
        ({"gen_length": 10, "block_length": 4}, "gen_length=10 must be a multiple of block_length=4.*seodang.infer.generate"),
        ({"gen_length": 8}, "gen_length=8 must be a multiple of block_length=128"),
        ({"gen_length": 12, "block_length": 4, "steps": 8}, "steps=8 must be a multiple of the 3 blocks.*seodang.infer.generate"),
        ({"steps": 0}, "steps must be a whole number above 0, got 0"),
        ({"block_length": 2.0}, "block_length must be"),
        ({"temperature": -1}, "temperature must be 0 or more, got -1"),
        ({"cfg_scale": float("nan")}, "cfg_scale must be 0 or more, got nan"),
        ({"remasking": "entropy"}, "remasking must be low_confidence or random, got 'entropy'"),
        ({"mask_id": 200_000}, "mask_id must be one of the model's 151936 ids, got 200000"),
        ({"logits_eos_inf": True}, "eos_id must be given: the mask is 63, not LLaDA's 126336"),
        ({"confidence_eos_eot_inf": True, "eos_id": 61}, "eot_id must be given"),
        ({"confidence_eos_eot_inf": True, "eos_id": 61, "eot_id": -1}, "eot_id must be one of the model's"),
        ({"alg": "entropy"}, "compat='llada' knows no 'alg', which is of compat='dream': it takes prompt, attention_mask, steps"),
        ({"max_new_tokens": 4}, "knows no 'max_new_tokens', which is of compat='dream'"),
        ({"generation_logits_hook_func": print}, "knows no 'generation_logits_hook_func', which is of compat='dream'"),
        ({"compat": "dream", "gen_length": 4}, "compat='dream' knows no 'gen_length', which is of compat='llada'"),
        ({"block_lenght": 4}, "knows no 'block_lenght': it takes"),
        ({"generation_config": {"steps": 4}}, "takes no generation_config, which is Dream's"),
        ({"prompt": torch.tensor([[1]])}, "prompt and inputs are both given"),
        ({"attention_mask": torch.ones(1, 2)}, r"of the shape of the inputs, \[1, 3\], got \[1, 2\]"),
        ({"inputs": torch.tensor([[MASK, 2, 3]]), "attention_mask": torch.tensor([[0, 1, 1]])}, "padded by the mask token 63"),
        ({"gen_length": 254, "block_length": 254, "steps": 254}, "the prompt's 3 tokens and an answer of 254 are more than the model's 256 positions"),
        ({"inputs": None}, "got NoneType"),
    ],
)  # fmt: skip
def test_mistakes_are_named_before_any_pass(settings, words):
    model = made_up()
    with pytest.raises(UserError, match=words):
        diffusion_generate(model, **{"inputs": torch.tensor([[1, 2, 3]]), "compat": "llada", **settings})
    assert model.passes == 0


def test_the_ends_of_lladas_own_vocabulary_are_known():
    model, asked = made_up(), {"logits_eos_inf": True, "confidence_eos_eot_inf": True}
    assert _ends(model, 126336, LladaSettings(**asked)) == (126081, 126348)
    assert _ends(model, 126336, LladaSettings(**asked, **ENDS)) == (61, 62)
    assert _ends(model, 126336, LladaSettings()) == (None, None)


@pytest.mark.parametrize("attention", ["bidirectional", "prompt_causal"])
@pytest.mark.parametrize("cfg_scale", [0.0, 1.0])
def test_left_padding_changes_nothing(fresh_tiny, attention, cfg_scale):
    model = fresh_tiny("llama").double()
    declare(model.config, Diffusion(100, attention=attention))
    bind(model)
    asked = {"compat": "llada", "gen_length": 6, "block_length": 3, "steps": 4, "cfg_scale": cfg_scale}
    rows, seen = torch.tensor([[0, 0, 9, 8, 7], [3, 4, 5, 6, 7]]), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    both = model.diffusion_generate(rows, attention_mask=seen, **asked)
    assert both[0, 2:].tolist() == model.diffusion_generate(rows[:1, 2:], **asked)[0].tolist()
    assert both[1].tolist() == model.diffusion_generate(rows[1:], **asked)[0].tolist()
    assert model.diffusion_generate(rows[:1], **asked)[0, 5:].tolist() != both[0, 5:].tolist()  # where nothing says it is padding
