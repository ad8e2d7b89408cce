"""The page of a traced answer: whole, loading nothing, and in a browser it shows every event."""

import json
import re
from html import unescape
from html.parser import HTMLParser
from math import exp

import pytest
import torch

from seodang.data.html_template import content_hash, embedded
from seodang.infer import SamplingParams, generate
from seodang.infer.explain.attention_map import attention_maps
from seodang.infer.explain.beam_tree import beam_tree
from seodang.infer.explain.diffusion_steps import moments, stretches
from seodang.infer.explain.generation_trace import generation_trace
from seodang.infer.explain.page import LOOK_INSIDE, Picture, shades, to_html
from seodang.infer.explain.terminal import chance, leaving, title_of
from seodang.infer.explain.trace_events import step_told, text_of
from seodang.infer.requests.trace import CANDIDATES, DiffusionStep
from seodang.infer.runners.paradigm import Diffusion, declare
from seodang.infer.text.token_labels import TokenLabels

PROMPT = [40, 41, 42, 40, 41, 42, 40, 41]
# of two tokens alone, so that guesses from the prompt come true
LOOPING = {"prompt_lookup_num_tokens": 4, "max_new_tokens": 16, "suppress_tokens": [id for id in range(128) if id not in (40, 41)]}
OPTIONS = {
    "greedy": {},
    "sampled": {"temperature": 0.8, "top_k": 5, "repetition_penalty": 1.2, "seed": 1, "num_return_sequences": 2},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "assisted": LOOPING,
    "dola": {"dola_layers": [0, 1]},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 3},
    "chosen": {"best_of": 3, "temperature": 1.0, "seed": 1},
    "diffusion": {"steps": 3, "temperature": 1.0, "top_k": 9, "seed": 1, "num_return_sequences": 2},
}
HOSTILE = "<script>alert(1)</script> & {{ title }}"


@pytest.fixture
def answered(tiny_llama, fresh_tiny, tiny_tokenizer):
    """`answered(**options)`: the traced answers to a prompt, of a diffusion model where they are by steps."""

    def answer(**options):
        model = tiny_llama
        if "steps" in options:
            model = fresh_tiny("llama")
            declare(model.config, Diffusion(127))
        return generate(model, tiny_tokenizer, [PROMPT], SamplingParams(**{"max_new_tokens": 8, "ignore_eos": True, **options}), trace=True)

    return answer


@pytest.fixture
def shown(browse, tiny_tokenizer, tmp_path):
    """`shown(results, picture)`: the page of answers in a browser."""

    def show(results, picture=None):
        path = tmp_path / "page.html"
        path.write_text(to_html(results, tiny_tokenizer, PROMPT, HOSTILE, picture), encoding="utf-8")
        return browse(path.as_uri())

    return show


class Balance(HTMLParser):
    """Checks that every element is closed, in order."""

    VOID = {"meta", "br"}

    def __init__(self, page):
        super().__init__()
        self.open, self.wrong = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_page_is_whole_loads_nothing_and_escapes_everything(answered, tiny_llama, tiny_tokenizer, name):
    results = answered(**OPTIONS[name])
    ids = PROMPT + results[0].ids
    tokens = [f"</script>{TokenLabels(tiny_tokenizer)(id)}" for id in ids]
    picture = Picture(1, 2, attention_maps(tiny_llama, ids, 1), tokens, len(PROMPT))
    page = to_html(results, tiny_tokenizer, PROMPT, HOSTILE, picture)
    checked = Balance(page)
    assert not checked.open and not checked.wrong
    data, script = re.findall(r"<script[^>]*>(.*?)</script>", page, re.S)
    assert page.count("<script") == 2 and "<script>alert" not in page and "{{ title }}" in page
    assert not re.search(r"src=|@import|url\(|<link", page.replace(script, "")) and not re.search(r"fetch|XMLHttp|import\(|innerHTML", script)
    assert set(re.findall(r"https?://[^\s\"']*", page)) == {"http://www.w3.org/2000/svg"}  # a name of a vocabulary
    policy = re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', page)[1]
    assert unescape(policy).startswith(f"default-src 'none'; script-src {content_hash(script)}; style-src 'sha256-")
    assert '<html lang="en">' in page and '<meta charset="utf-8">' in page and page.count('<section class="answer"') == len(results)
    told = json.loads(data)
    assert told["picture"]["weights"][-1] == [round(1000 * each) for each in picture.weights[-1].tolist()] and told["picture"]["tokens"] == tokens
    for result in results:
        committed = [event["id"] for event in told["events"] if event["type"] == "committed" and event["choice"] == result.choice]
        assert committed == result.ids and f'<p class="text">{result.text}</p>' in unescape(page)


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in ("sampled", "beams", "diffusion") else pytest.mark.full) for name in OPTIONS])
def test_a_browser_shows_each_token_with_all_that_was_observed(answered, shown, tiny_tokenizer, name):
    results = answered(**OPTIONS[name])
    found, names, page = generation_trace(results), TokenLabels(tiny_tokenizer), shown(results)
    for result, steps in found.answers:
        tokens = page.locator(f'section.answer[data-choice="{result.choice}"] .token')
        assert tokens.all_inner_texts() == [step.text.replace("\n", "⏎\n") or names(step.id) for step in steps]
        for step, (title, facts, stages) in zip(steps, tokens.evaluate_all(STORIES), strict=True):
            assert title == title_of(step, names)
            probability = step.filtered.probability if step.filtered else torch.tensor(step.logprob).exp().item()
            assert f"p {script_chance(probability)}" in facts
            if step.filtered:
                assert f"entropy {abs(step.filtered.entropy):.2f} nats" in facts
                expected = list(stages_told(step, names))
                assert stages[-len(expected) :] == expected
    for result in results:
        if name == "diffusion":
            shows_the_steps(page.locator(f'.canvas-steps[data-choice="{result.choice}"]'), found.steps_of(result), names)
    assert page.locator(".part:not([hidden]) h3").count() == page.locator(".part:not([hidden])").count()
    for part, there in (("steps", name == "diffusion"), ("beams", found.beams), ("drafts", found.drafts), ("layers", name == "dola"), ("entropy", name != "beams"), ("time", True)):
        assert page.locator(f".part.{part}").is_visible() == bool(there), part


def shows_the_steps(drawn, steps, names):
    """That a page shows each step's canvas, when each position became certain, and how likely it was then."""
    rows = drawn.locator(".canvas").evaluate_all("all => all.map(each => [...each.children].map(part => [part.className, part.textContent]))")
    assert rows == [[list(part) for part in stretches(step, names)] for step in steps] and rows
    told = drawn.locator(".moment").evaluate_all("all => all.map(each => [each.firstChild.textContent, each.lastChild.textContent, each.title])")
    chances = {position: exp(logprob) for step in steps for (position, *_), logprob in zip(step.committed, step.logprobs)}
    for position, (moment, (name, number, title)) in enumerate(zip(moments(steps), told, strict=True)):
        assert (name, number) == (("░", "–") if moment is None else (names(moment.id), str(moment.step)))
        assert moment is None or (title.startswith(f"step {number}, probability ") and float(title.split()[-1][:-1]) == pytest.approx(100 * chances[position], abs=0.51))
    labels = drawn.locator("svg .name").all_text_contents()
    assert labels == [each[0] if len(each[0]) <= 14 else each[0][:13] + "…" for each in told]


STORIES = """tokens => tokens.map((token) => {
    token.focus();
    const story = token.closest("section").querySelector(".story");
    const stages = [...story.querySelectorAll(".stage")].map(stage => [stage.querySelector("h4").textContent,
        [...stage.querySelectorAll("tr")].map(row => [row.querySelector("th").textContent, row.querySelector(".number").textContent, row.className])]);
    return [story.querySelector("b").textContent, story.querySelector("small").textContent, stages];
})"""


def stages_told(step, names):
    """Each stage's name and its candidates: how they are called, their probability, and what became of them."""
    stages = step.filtered.stages
    for place, (name, candidates) in enumerate(stages):
        told = list(candidates)
        if place + 1 == len(stages) and step.filtered.id not in dict(candidates):
            told = [*told[: CANDIDATES - 1], (step.filtered.id, step.filtered.probability)]
        yield [name, [[names(id), script_chance(p), "chosen" if id == step.filtered.id else leaving(id, stages, place) or ""] for id, p in told]]


def script_chance(p: float) -> str:
    """A probability as the page writes it: 1e-5, not 1e-05."""
    return re.sub(r"e-0", "e-", chance(p))


def test_a_browser_draws_the_tree_of_the_beams(answered, shown, tiny_tokenizer):
    results = answered(**OPTIONS["beams"])
    found, names = generation_trace(results), TokenLabels(tiny_tokenizer)
    root = beam_tree(found.beams, results)
    page = shown(results)
    titles = page.locator(".beams g title").evaluate_all("titles => titles.map(each => each.textContent)")
    ends = lambda node: "".join(f"; answer {each.choice + 1} ends" for each in node.endings)  # noqa: E731
    assert titles == [f"{'prompt' if node.id is None else names(node.id)}, sum {node.total:.4f}{ends(node)}" for node in root.walk()]
    assert page.locator(".beams .returned").count() == sum(node.returned for node in root.walk())
    assert page.locator(".beams path").count() == len(titles) - 1
    assert page.locator(".beams .way").count() == sum(child.returned for node in root.walk() if node.returned for child in node.children)
    for score in found.beams[-1][1].finished:
        assert f"{score:.4f}" in page.locator(".finished tr").last.inner_text()


def test_a_browser_tells_accepted_drafts_from_rejected_ones(answered, shown, tiny_tokenizer):
    results = answered(**LOOPING)
    found, names = generation_trace(results), TokenLabels(tiny_tokenizer)
    page = shown(results)
    rows = page.locator(".drafts tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.querySelectorAll('ins')].map(each => each.textContent).concat(['|'], [...row.querySelectorAll('del')].map(each => each.textContent)))"
    )
    split = lambda draft: [*map(names, draft.ids[: draft.accepted]), "|", *map(names, draft.ids[draft.accepted :])]  # noqa: E731
    assert rows == [split(draft) for *_, draft in found.drafts]
    kept, said = sum(draft.accepted for *_, draft in found.drafts), sum(len(draft.ids) for *_, draft in found.drafts)
    assert f"{kept} of {said} drafted tokens accepted ({round(100 * kept / said)}%); 16 tokens took {len(found.passes)} passes" in page.locator(".drafts h3").inner_text()
    assert page.locator(".time rect").count() == len(found.passes) and page.locator(".time rect.prefill").count() == 1


def test_a_browser_shows_layers_contrast_and_attention(answered, shown, tiny_llama, tiny_tokenizer):
    results = answered(**OPTIONS["dola"])
    [(_, steps)] = generation_trace(results).answers
    ids = PROMPT + results[0].ids
    names, heads = TokenLabels(tiny_tokenizer), attention_maps(tiny_llama, ids, 1)
    page = shown(results, Picture(1, None, heads, [names(id) for id in ids], len(PROMPT)))
    shaded = page.locator(".layers tbody tr").evaluate_all("rows => rows.map(row => [...row.querySelectorAll('td')].map(each => each.title))")
    assert shaded == [[f"{each:.4f}" for _, each in step.layer.divergences] for step in steps]
    assert page.locator("#attention h2").inner_text() == "Attention of layer 1, the mean of 4 heads" and page.locator(".thumbnail").count() == 4
    box = page.locator("#attention .wide .ground").bounding_box()
    cell = box["width"] / len(ids)
    page.locator("#attention .wide svg").scroll_into_view_if_needed()
    box = page.locator("#attention .wide .ground").bounding_box()
    page.mouse.move(box["x"] + 2.5 * cell, box["y"] + 9.5 * cell)
    weight = round(1000 * heads.mean(0)[9, 2].item()) / 1000
    assert page.locator(".told").inner_text() == f"{names(ids[9])} (position 9) attends to {names(ids[2])} (position 2) by {weight:.3f}"
    results = answered(**OPTIONS["contrastive"])
    [(_, [step, *_])] = generation_trace(results).answers
    page = shown(results)
    page.locator(".token").first.focus()
    rows = page.locator(".terms tbody tr").evaluate_all("rows => rows.map(row => [...row.children].map(each => each.textContent))")
    assert rows == [[names(id), chance(p), f"{likeness:.3f}", f"{score:.3f}"] for id, p, likeness, score in step.contrast.candidates]


def test_arrow_keys_go_from_token_to_token_and_the_address_finds_one(answered, shown):
    page = shown(answered())
    page.keyboard.press("Tab")  # the ids that were read
    page.keyboard.press("Tab")
    for key, place in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 7), ("ArrowRight", 7), ("Home", 0)):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.dataset.position") == str(place)
        assert page.locator(".story .place").inner_text() == str(place)
        assert page.url.endswith(f"#a0t{place}")


def test_korean_stays_korean_on_the_page(tokenizer, tiny, browse, tmp_path):
    prompt = tokenizer("수원은 어디?")["input_ids"]
    results = generate(tiny("llama", vocab_size=49152), tokenizer, [prompt], SamplingParams(max_new_tokens=3), trace=True)
    page = to_html(results, tokenizer, prompt, "수원은 어디?")
    assert '<p class="prompt">수원은 어디?</p>' in page and "&lt;0x" in page
    assert "\ufffd" not in page.split('<section class="answer"')[0]  # what was read is all there
    assert "\ufffd" not in page[page.index('id="trace"') :]


def test_every_token_has_the_name_that_the_terminal_gives_it(tokenizer, browse):
    page = browse("about:blank")
    page.add_script_tag(content=embedded(*LOOK_INSIDE))
    ids = range(0, len(tokenizer), 3)
    names = TokenLabels(tokenizer)
    found = page.evaluate("texts => texts.map(named)", [text_of(tokenizer, id) for id in ids])
    differing = {names(id): theirs for id, theirs in zip(ids, found) if names(id) != theirs}
    assert not differing


def test_a_shade_grows_with_the_square_root_of_a_weight(browse):
    rows = shades(torch.tensor([[1.0, 0.0], [0.25, 0.75]]))
    assert rows == ["c", "6a"]
    page = browse("about:blank")
    page.add_script_tag(content=embedded(*LOOK_INSIDE))
    paths = page.evaluate("rows => Object.fromEntries(heatSquares(rows, 12).map(each => [each.getAttribute('opacity'), each.getAttribute('d')]))", rows)
    assert paths == {"1.00": "M0 0h1v1h-1z", "0.50": "M0 1h1v1h-1z", "0.83": "M1 1h1v1h-1z"}
    assert page.evaluate("['abcdef', 'abcdefg', '수원역에서'].map(each => short(each, 6))") == ["abcdef", "abcde…", "수원…"]


def test_characters_that_are_spread_over_positions_are_whole_as_soon_as_they_can_be(tokenizer, browse):
    ids, end = tokenizer("a 수원\n.", add_special_tokens=False)["input_ids"], tokenizer.convert_tokens_to_ids("<|im_end|>")
    final, names = [*ids, end, end, end], TokenLabels(tokenizer)
    order = [*range(0, len(final), 2), *range(1, len(final), 2)]
    order.append(order[1])  # which is taken back in between
    steps, canvas = [], [None] * len(final)
    for number, position in enumerate(order, 1):
        again = (order[1],) if number == 5 else ()
        canvas = [final[at] if at == position else None if at in again else id for at, id in enumerate(canvas)]
        guesses = tuple((at, final[at], -1.0) for at, id in enumerate(canvas) if id is None and number == 2)
        steps.append(DiffusionStep(number, ((position, final[position], 0.5),), tuple(canvas), number, (-0.5,), again, guesses))
    page = browse("about:blank")
    page.add_script_tag(content=embedded(*LOOK_INSIDE))
    rows = page.evaluate(
        "told => { const canvas = new Canvas(); return told.map(each => { canvas.take(each); return [stretchesOf(canvas.steps.at(-1)), drawnCanvas(canvas).textContent]; }); }",
        [step_told(tokenizer, step) for step in steps],
    )
    assert [row for row, _ in rows] == [[list(part) for part in stretches(step, names)] for step in steps]
    assert "".join(text for _, text in rows[-1][0]) == "a 수원⏎.<|im_end|>×3"
    assert rows[1][1] == "a 수원⏎\n.<|im_end|>×3"  # guesses are read like what is certain
