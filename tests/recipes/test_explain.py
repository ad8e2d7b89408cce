"""seodang explain: what it prints, the page that it writes, and what it refuses."""

import json
import re

import pytest
import torch

from seodang.data.chat import prompt_ids
from seodang.infer import SamplingParams, generate
from seodang.infer.explain.attention_map import attention_maps
from seodang.infer.runners.paradigm import Diffusion, declare
from seodang.infer.runners.ragged import RaggedRunner
from seodang.infer.text.token_labels import TokenLabels
from seodang.recipes.explain import main
from seodang.recipes.options.decoding import SpeakingModel


@pytest.fixture
def model(monkeypatch, tiny_llama, tiny_tokenizer):
    monkeypatch.setattr(SpeakingModel, "open", lambda self: (tiny_llama, tiny_tokenizer))
    return tiny_llama


PROMPT = "abcabcab"
NUMBER = r"(-?\d+\.\d+)"


def chances(model, ids: list[int]) -> torch.Tensor:
    """What the model gives each token to come behind these."""
    return model(torch.tensor([ids])).logits[0, -1].softmax(-1)


def likeliest(p: torch.Tensor, count: int, name) -> tuple[list[str], list[float]]:
    values, ids = p.topk(count)
    return [name(id) for id in ids.tolist()], values.tolist()


# what must be told of an answer, as patterns and the numbers in them: from the model's own chances at each place
def greedy_told(model, prompt, result, places, name):
    for place, p in enumerate(places):
        chosen = rf"^ +{place}  {name(result.ids[place])} .* p {NUMBER}  entropy {NUMBER} "
        yield chosen, [p.max(), -(p * p.log()).sum()]
        names, values = likeliest(p, 5, name)
        yield "^ +" + " +".join(f"{each} {NUMBER}" for each in names), values


def filters_told(model, prompt, result, places, name):
    for place, p in enumerate(places):
        cooled = p.log().div(0.8).softmax(-1)
        kept = cooled.topk(4).values.sum()
        yield rf"^ +{place}  {name(result.ids[place])} .* p {NUMBER} ", [cooled[result.ids[place]] / kept]
        [first], _ = likeliest(p, 1, name)
        yield f"^ +{NUMBER} {first} +{NUMBER} {first} +{NUMBER} {first}", [p.max(), cooled.max(), cooled.max() / kept]


def beams_told(model, prompt, result, places, name):
    logprobs = [p[id].log() for p, id in zip(places, result.ids)]
    yield rf"{name(result.ids[-1])} = answer 1 score {NUMBER}$", [sum(logprobs) / len(logprobs)]
    names, values = likeliest(places[0].log(), 3, name)
    yield r"^ +0 +" + " +".join(rf"0→ {NUMBER} {each}" for each in names), values


def drafts_told(model, prompt, result, places, name):
    assert name(result.ids[0]) == "c" and name(result.ids[1]) != "a"  # "ca" followed "ab" before: the model agrees with its first token alone
    yield r"^ +0 +c a +1 of 2$", []
    yield r"1 of 2 drafted tokens accepted \(50%\); 3 tokens in 2 passes", []


def layers_told(model, prompt, result, places, name):
    for place, late in enumerate(places):
        hidden = model(torch.tensor([prompt + result.ids[:place]]), output_hidden_states=True).hidden_states[1][0, -1]
        early = model.lm_head(hidden).softmax(-1)
        mean = (late + early) / 2
        divergence = sum((mean * (mean / p).log()).sum() for p in (late, early)) / 2
        yield rf"^ +{place}  {name(result.ids[place])} .*\n +contrasted with layer 1; divergences +1:\s{NUMBER} *$", [divergence]


def contrast_told(model, prompt, result, places, name):
    for id, p in zip(*(each.tolist() for each in reversed(places[0].topk(3)))):
        *before, last = model(torch.tensor([[*prompt, id]]), output_hidden_states=True).hidden_states[-1][0]
        likeness = torch.cosine_similarity(torch.stack(before), last).max()
        yield rf"^ +{name(id)} +{NUMBER} +{NUMBER} +{NUMBER} *$", [p, likeness, 0.4 * p - 0.6 * likeness]


def choice_told(model, prompt, result, places, name):
    yield f"3 tokens, ended by length, seed {result.seed}, score {NUMBER} ", [sum(p[id].log() for p, id in zip(places, result.ids)) / 3]


@pytest.mark.parametrize(
    "options, told, kind",
    [
        ({}, greedy_told, "choice"),
        ({"temperature": 0.8, "top_k": 4, "seed": 1}, filters_told, "choice"),
        ({"num_beams": 3}, beams_told, "beams"),
        ({"prompt_lookup_num_tokens": 4}, drafts_told, "draft"),
        ({"dola_layers": "high"}, layers_told, "layer"),
        ({"penalty_alpha": 0.6, "top_k": 3}, contrast_told, "contrast"),
        ({"best_of": 3, "temperature": 1.0, "seed": 1}, choice_told, "choice"),
    ],
)
@torch.no_grad()
def test_every_strategy_is_explained_with_its_own_numbers(model, tiny_tokenizer, tmp_path, capsys, monkeypatch, options, told, kind):
    monkeypatch.setenv("COLUMNS", "150")
    page, asked = tmp_path / "page.html", [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert main(["default", PROMPT, "--raw", "--max_new_tokens", "3", "--html", str(page), "--attention", "1.2", *asked]) == 0
    out, drawn = capsys.readouterr().out, page.read_text(encoding="utf-8")
    [result] = generate(model, tiny_tokenizer, [PROMPT], SamplingParams(max_new_tokens=3, **options))
    prompt, names = tiny_tokenizer(PROMPT)["input_ids"], TokenLabels(tiny_tokenizer)
    places = [chances(model, prompt + result.ids[:place]) for place in range(3)]
    for pattern, numbers in told(model, prompt, result, places, lambda id: re.escape(names(id))):
        found = re.search(pattern, out, re.MULTILINE)
        assert found, f"{pattern} is not in\n{out}"
        for said, number in zip(found.groups(), numbers, strict=True):
            assert float(said) == pytest.approx(float(number), abs=0.6 * 10.0 ** -len(said.split(".")[1])), pattern  # to the last digit shown
    assert result.text in out and "prefill" in out and "attention of layer 1, head 2" in out
    events = json.loads(re.search(r'id="trace">(.*?)</script>', drawn, re.S)[1])["events"]
    assert [event["id"] for event in events if event["type"] == "committed"] == result.ids and kind in {event["type"] for event in events}
    assert "<h2>Attention of layer 1, head 2</h2>" in drawn


def test_the_prompt_goes_through_the_template_unless_raw(model, tiny_tokenizer, capsys):
    read = len(prompt_ids(tiny_tokenizer, [{"role": "user", "content": "hi"}]))
    assert main(["default", "hi", "--max_new_tokens", "2"]) == 0
    assert read > 2 and f"for {read} positions" in capsys.readouterr().out
    assert main(["default", "hi", "--max_new_tokens", "2", "--raw"]) == 0
    assert "for 2 positions" in capsys.readouterr().out


def test_steps_bound_what_is_shown(model, capsys):
    assert main(["default", "hi", "--max_new_tokens", "5", "--raw", "--shown", "2", "--attention", "0"]) == 0
    out = capsys.readouterr().out
    assert "more tokens: --shown" in out and "the mean of 4 heads" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["default"], "no prompt"),
        (["default", "hi", "--attention", "x"], "attention must be LAYER or LAYER.HEAD"),
        (["default", "hi", "--attention", "7"], "layer 7 does not exist: the model has layers 0 to 1"),
        (["default", "hi", "--attention", "1.9"], "head 9 does not exist: the model has heads 0 to 3"),
        (["default", "hi", "--html", "/nowhere/at/all.html"], "there is no folder /nowhere/at"),
        (["default", "hi", "--png", "/nowhere/at/all.png"], "there is no folder /nowhere/at"),
        (["default", "hi", "--png", "steps.png"], "png asks for the steps of diffusion, but the strategy 'sampling' writes from left to right: leave it out"),
        (["default", "hi", "--shown", "-1"], "shown must not be below zero, got -1"),
        (["default", "hi", "--top_p", "7"], "top_p must be in (0, 1], got 7.0"),
        (["default", "hi", "--atention", "1"], "did you mean attention?"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2_before_any_compute(model, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(RaggedRunner, "forward", lambda *args: pytest.fail("computed something"))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_steps_of_diffusion_are_shown_and_drawn(monkeypatch, fresh_tiny, tiny_tokenizer, tmp_path, capsys):
    model = fresh_tiny("llama")
    declare(model.config, Diffusion(127))
    monkeypatch.setattr(SpeakingModel, "open", lambda self: (model, tiny_tokenizer))
    assert main(["default", PROMPT, "--raw", "--max_new_tokens", "4", "--ignore_eos", "--png", str(tmp_path / "steps.png"), "--shown", "1"]) == 0
    out = capsys.readouterr().out
    assert "Step 1: " in out and "... 3 more steps" in out and "when each token became certain: step 1 " in out
    assert f"picture  {tmp_path / 'steps.png'}" in out.replace("\n", "") and (tmp_path / "steps.png").exists()


def test_the_attention_of_a_healed_prompt_counts_no_token_twice(monkeypatch, real_model, tokenizer, tmp_path, capsys):
    monkeypatch.setattr(SpeakingModel, "open", lambda self: (real_model, tokenizer))
    shown = []
    monkeypatch.setattr("seodang.infer.explain.attention_map.attention_maps", lambda model, ids, layer: shown.append(ids) or attention_maps(model, ids, layer))
    prompt = "The capital of Fran"
    assert main(["default", prompt, "--raw", "--token_healing", "--max_new_tokens", "1", "--attention", "0.0"]) == 0
    [result] = generate(real_model, tokenizer, [prompt], SamplingParams(token_healing=True, max_new_tokens=1))
    assert shown == [tokenizer(prompt)["input_ids"][: result.prompt_length] + result.ids]
    assert result.prompt_length < len(tokenizer(prompt)["input_ids"])
