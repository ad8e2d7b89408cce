"""A diffusion checkpoint on the page: its canvas is drawn as it is filled in, its steps within, and the form has its settings."""

import copy
import re

import pytest

from seodang.infer import SamplingParams, generate
from seodang.infer.explain.diffusion_steps import moments, stretches
from seodang.infer.explain.generation_trace import generation_trace
from seodang.infer.runners.paradigm import Diffusion, declare
from seodang.infer.text.token_labels import TokenLabels

from .conftest import scripted_server

ASKED = "Where is Suwon?"
CELLS = "all => all.map(each => [each.classList[1], each.textContent, each.classList.contains('fresh')])"


@pytest.fixture(scope="module")
def denoiser(tiny_llama):
    model = copy.deepcopy(tiny_llama)
    declare(model.config, Diffusion(127, 1, autoregressive=True))
    return model


@pytest.fixture(scope="module")
def _server(denoiser, byte_tokenizer):
    with scripted_server(denoiser, byte_tokenizer(128)) as server:
        yield server


def token(position: int, text: str, **more) -> dict:
    return {"position": position, "id": 5, "token": text, "logprob": -0.1, **more}


def step(number: int, certain=(), guesses=(), remasked=(), **more) -> dict:
    told = {"index": 0, "step": number, "forwards": number, "length": 5, "certain": [token(*each, sure=0.9) for each in certain]}
    return {"step": {**told, "guesses": [token(*each) for each in guesses], "remasked": [*remasked], **more}}


def test_the_form_starts_from_diffusion_and_what_is_set_is_answered_by_it(chat, server, say, denoiser, tiny_tokenizer):
    page = chat()
    page.click("#open-settings")
    assert page.input_value("#strategy") == "" and page.locator("#strategy option").first.inner_text() == "as the settings say (diffusion)"
    own = page.locator(".strategy [data-setting]").evaluate_all("all => all.map(each => each.dataset.setting)")
    assert {"strategy", "steps", "alg", "alg_temp"} <= set(own) and "num_beams" not in own
    for name, value in {"steps": "6", "temperature": "0", "max_new_tokens": "12"}.items():
        page.locator(f"details:has(#set-{name})").evaluate_all("all => all.forEach(each => { each.open = true; })")
        page.fill(f"#set-{name}", value)
    say(page, ASKED)
    body = server[1].bodies[-1]
    assert "strategy" not in body and body["steps"] == 6 and body["stream_options"] == {"include_usage": True, "include_steps": True}
    [result] = generate(denoiser, tiny_tokenizer, [[{"role": "user", "content": ASKED}]], SamplingParams(max_new_tokens=12, steps=6))
    kept = page.evaluate("Object.keys(localStorage).filter(each => each.includes('conversation.')).map(each => JSON.parse(localStorage[each]))[0].nodes")
    assert [node["content"] for node in kept.values()] == [ASKED, result.text]
    assert f"{result.forwards} passes, {len(result.ids) / result.forwards:.2f} tokens each" in page.locator(".stats").inner_text()
    page.select_option("#strategy", "sampling")
    assert page.locator("#set-steps").count() == 0
    say(page, "And?")
    assert server[1].bodies[-1]["stream_options"] == {"include_usage": True}
    page.select_option("#strategy", "diffusion")
    assert page.input_value("#set-steps") == "4"  # the least that means it
    page.select_option("#strategy", "")
    assert page.input_value("#set-steps") == ""


def test_masks_guesses_and_what_is_certain_are_drawn_as_they_come(chat, script):
    page = chat()
    held = [
        script(step(1, [(2, " is")], [(0, "Se"), (3, ".")]), "", held=1),
        script(step(1, [(2, " is")]), step(2, [(0, "Su"), (4, "<|im_end|>")], [(1, "won")]), "Su", "", held=3),
        script(step(1, [(0, "Su"), (2, " was")]), step(2, [], [(2, " is")], [2]), "Su", "", held=3),
    ]  # fmt: skip
    wanted = [
        [["guess", "Se", False], ["open", "░", False], ["certain", " is", True], ["guess", ".", False], ["open", "░", False]],
        [["certain", "Su", True], ["guess", "won", False], ["certain", " is", False], ["open", "░", False], ["certain", "<|im_end|>", True]],
        [["certain", "Su", False], ["open", "░", False], ["guess", " is", False], ["open", "░", False], ["open", "░", False]],
    ]
    for each, want in zip(held, wanted):
        page.fill("#message", ASKED)
        page.press("#message", "Enter")
        cells = page.locator("article.assistant[aria-busy=true] .cell")
        page.locator(".canvas-now").filter(has_text=want[0][1]).wait_for()
        page.wait_for_function("texts => [...document.querySelectorAll('.cell')].map(each => each.textContent).join() === texts", arg=",".join(text for _, text, _ in want))
        assert cells.evaluate_all(CELLS) == want
        colours = dict(cells.evaluate_all("all => all.map(each => [each.classList[1], getComputedStyle(each).color])"))
        assert len(set(colours.values())) == len(colours)
        assert re.fullmatch(r"Step \d: \d of 5 positions are certain", page.locator(".canvas-now").get_attribute("aria-label"))
        each.go.set()
        page.wait_for_selector("#send:not([hidden])")
        assert page.locator(".canvas-now").count() == 0


def test_a_look_inside_has_the_steps_of_the_engine(chat, server, say, denoiser, tiny_tokenizer):
    page = chat()
    page.evaluate("localStorage.setItem('seodang.settings', JSON.stringify({look: true, sides: [{values: {temperature: 0, max_new_tokens: 10, steps: 5, ignore_eos: true}}]}))")
    page.reload()
    page.wait_for_selector("body.ready")
    say(page, ASKED)
    assert server[1].bodies[-1]["trace"] is True and "include_steps" not in server[1].bodies[-1]["stream_options"]
    params = SamplingParams(max_new_tokens=10, steps=5, ignore_eos=True)
    results = generate(denoiser, tiny_tokenizer, [[{"role": "user", "content": ASKED}]], params, trace=True)
    steps, names = generation_trace(results).steps_of(results[0]), TokenLabels(tiny_tokenizer)
    rows = page.locator(".steps .canvas").evaluate_all("all => all.map(each => [...each.children].map(part => [part.className, part.textContent]))")
    assert rows == [[list(part) for part in stretches(step, names)] for step in steps]
    told = page.locator(".moment").evaluate_all("all => all.map(each => [each.firstChild.textContent, each.lastChild.textContent])")
    assert told == [[names(each.id), str(each.step)] for each in moments(steps)]
    assert page.locator("article.assistant .token").count() == len(results[0].ids)
    page.locator("article.assistant .token").first.hover()
    assert page.locator(".story .stage").first.locator("tr").count() == 10  # candidates
