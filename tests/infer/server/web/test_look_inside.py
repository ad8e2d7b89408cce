"""A look inside in a browser: a served answer's tokens, candidates, tree and drafts are those that the engine traced."""

import json

import pytest

from seodang.infer import SamplingParams, generate
from seodang.infer.explain.beam_tree import beam_tree
from seodang.infer.explain.generation_trace import generation_trace
from seodang.infer.explain.terminal import chance
from seodang.infer.text.token_labels import TokenLabels

ASKED = [{"role": "user", "content": "abc abc abc"}]


@pytest.fixture
def looked(chat, say):
    """`looked(**settings)`: a page with a look inside of an answer by these settings."""

    def look(**settings):
        page = chat()
        page.evaluate("settings => localStorage.setItem('seodang.settings', settings)", json.dumps({"look": True, "sides": [{"values": settings}]}))
        page.reload()
        page.wait_for_selector("body.ready")
        say(page, ASKED[0]["content"])
        return page

    return look


@pytest.fixture
def traced(tiny_llama, tiny_tokenizer):
    """`traced(**settings)`: the same answer, traced offline."""
    return lambda **settings: generate(tiny_llama, tiny_tokenizer, [ASKED], SamplingParams(**settings), trace=True)


def test_tokens_are_coloured_and_explained(looked, traced, server, tiny_tokenizer):
    settings = {"temperature": 0.8, "top_k": 5, "seed": 3, "max_new_tokens": 12}
    page, results, names = looked(**settings), traced(**settings), TokenLabels(tiny_tokenizer)
    [(_, steps)] = generation_trace(results).answers
    assert server[1].bodies[-1]["trace"] is True
    tokens = page.locator("article.assistant .token")
    assert tokens.all_inner_texts() == [step.text.replace("\n", "⏎\n") or names(step.id) for step in steps]
    shades = tokens.evaluate_all("all => all.map(each => Number(each.style.getPropertyValue('--p')))")
    assert shades == [pytest.approx(step.filtered.probability, abs=6e-4) for step in steps]
    tokens.nth(3).hover()
    story = page.locator("article.assistant .story")
    assert [each.split("\n")[0] for each in story.locator(".stage").all_inner_texts()] == ["model", "temperature", "top_k"]
    for place, (_, candidates) in enumerate(steps[3].filtered.stages):
        rows = story.locator(".stage").nth(place).locator("tr").evaluate_all("rows => rows.map(row => [row.children[0].textContent, row.children[2].textContent])")
        assert rows == [[names(id), chance(p).replace("e-0", "e-")] for id, p in candidates]
    points = page.locator(".entropy .point title").evaluate_all("all => all.map(each => each.textContent.split(': ').at(-1))")
    assert points == [f"{step.filtered.entropy:.2f} nats" for step in steps]
    page.click("#look")
    assert page.locator("article.assistant .token").count() == 0 and page.locator("article.assistant .body p").count()
    page.click("#look")
    assert tokens.count() == len(steps)


def test_the_tree_of_beams_is_the_engines(looked, traced, tiny_tokenizer):
    settings = {"strategy": "beam", "num_beams": 3, "max_new_tokens": 10}
    page, results, names = looked(**settings), traced(**settings), TokenLabels(tiny_tokenizer)
    root = beam_tree(generation_trace(results).beams, results)
    titles = page.locator(".beams g title").evaluate_all("all => all.map(each => each.textContent.split(';')[0])")
    sums = [each.rsplit(" ", 1) for each in titles]
    assert [name for name, _ in sums] == [f"{'prompt' if node.id is None else names(node.id)}, sum" for node in root.walk()]
    assert [float(total) for _, total in sums] == pytest.approx([node.total for node in root.walk()], abs=2e-3)  # what was read in parts
    assert page.locator(".beams .returned").count() == sum(node.returned for node in root.walk())


def test_the_tree_grows_while_nothing_is_told_yet(chat, script):
    page = chat()
    page.click("#look")
    beams = [[[0, 7, -0.5], [0, 8, -0.75]], [[0, 9, -1.0], [1, 9, -1.25]], [[1, 5, -1.5], [0, 6, -2.0]]]
    event = lambda position, live: {"type": "beams", "prompt": 0, "choice": 0, "position": position, "live": live, "finished": [], "texts": {"7": "a", "8": "b"}}  # noqa: E731
    held = script(*({"trace": [event(place, live)]} for place, live in enumerate(beams)), held=2)
    page.fill("#message", "?")
    page.press("#message", "Enter")
    page.locator(".beams svg[aria-label='2 beams over 2 steps']").wait_for()
    assert page.locator(".beams .node").count() == 5 and page.locator(".beams .way").count() == 0
    held.go.set()
    page.locator(".beams svg[aria-label='2 beams over 3 steps']").wait_for()
    assert page.locator(".beams .name").all_text_contents() == ["prompt", "a", "<9>", "<6>", "b", "<9>", "<5>"]


def test_drafts_and_several_answers_are_told(looked, traced, tiny_tokenizer):
    settings = {"strategy": "assisted", "prompt_lookup_num_tokens": 4, "temperature": 0, "max_new_tokens": 16}
    page, results, names = looked(**settings), traced(**settings), TokenLabels(tiny_tokenizer)
    found = generation_trace(results)
    assert found.drafts
    rows = page.locator(".drafts tbody tr").evaluate_all("rows => rows.map(row => [row.children[1].textContent, ...[...row.querySelectorAll('.token')].map(each => each.textContent)])")
    assert rows == [[f"{draft.accepted} of {len(draft.ids)}", *map(names, draft.ids)] for *_, draft in found.drafts]


def test_each_of_several_answers_is_a_version_with_its_own_tokens(looked, traced):
    settings = {"num_return_sequences": 2, "temperature": 1.0, "seed": 5, "max_new_tokens": 8}
    page, results = looked(**settings), traced(**settings)
    assert page.locator(".versions").inner_text() == "1/2"
    for result in results:
        tokens = page.locator("article.assistant .token")
        assert tokens.count() == len(result.ids)
        if result.choice == 0:
            page.get_by_label("Next version").click()
