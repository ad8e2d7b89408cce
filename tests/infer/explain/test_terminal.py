"""The story of a trace, and how the terminal and the page show it."""

import json
import re
from html import unescape
from html.parser import HTMLParser

import pytest
import torch
from rich.console import Console

from seodang.infer import SamplingParams, generate
from seodang.infer.explain.attention_map import attention_maps
from seodang.infer.explain.beam_tree import beam_tree, chains
from seodang.infer.explain.drawings import heat_squares, short
from seodang.infer.explain.generation_trace import GenerationTrace, generation_trace
from seodang.infer.explain.page import Picture, to_html
from seodang.infer.explain.terminal import explain, heat_map, leaving, nearest, tree_of_beams
from seodang.infer.requests.events import Result
from seodang.infer.requests.trace import BeamTrace
from seodang.infer.text.token_labels import TokenLabels

PROMPT = [40, 41, 42, 40, 41, 42, 40, 41]
# of two tokens alone, so that guesses from the prompt come true
LOOPING = {"prompt_lookup_num_tokens": 4, "max_new_tokens": 16, "suppress_tokens": [id for id in range(128) if id not in (40, 41)]}


@pytest.fixture
def told(tiny_llama, tiny_tokenizer):
    """`told(**options)`: the story of one prompt."""

    def tell(prompt=PROMPT, **options):
        options = {"max_new_tokens": 8, "ignore_eos": True} | options
        return generation_trace(generate(tiny_llama, tiny_tokenizer, [prompt], SamplingParams(**options), trace=True))

    return tell


def printed(renderable, width=100):
    console = Console(width=width, record=True, file=open("/dev/null", "w"), color_system=None)
    console.print(renderable)
    return console.export_text()


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0, "seed": 3, "num_return_sequences": 3},
        {"temperature": 1.0, "seed": 3, "best_of": 4, "num_return_sequences": 2},
        {"temperature": 1.0, "seed": 5, "best_of": 4, "strategy": "minimum_bayes_risk", "utility": lambda a, b: float(len(a) - len(b))},
    ],
)
def test_every_token_has_what_was_observed_where_it_was_chosen(told, options):
    for result, steps in told(**options).answers:
        assert [step.id for step in steps] == result.ids
        assert [step.filtered.id for step in steps] == result.ids  # also where an answer was renumbered when it was chosen


def test_passes_belong_to_the_token_that_they_brought(told):
    found = told(**LOOPING)
    [(_, steps)] = found.answers
    assert sum(len(step.passes) for step in steps) == len(found.passes) < len(steps)
    assert [each.prefill for each in steps[0].passes] == [True] == [True for _ in found.prefill]
    assert found.drafts and sum(draft.accepted for *_, draft in found.drafts) == len(steps) - len(found.passes)


def test_the_terminal_shows_stages_with_their_chances(told, tiny_tokenizer):
    found = told(temperature=0.7, top_k=3, seed=2)
    [(result, steps)] = found.answers
    text = printed(explain(found, TokenLabels(tiny_tokenizer), steps=2))
    assert "model" in text and "temperature" in text and "top_k" in text and "6 more tokens: --steps 8" in text
    filtered = steps[0].filtered
    assert f"p {filtered.probability:.3f}  entropy {filtered.entropy:.2f}" in text
    for id, p in filtered.stages[-1][1]:
        assert f"{p:.3f} {TokenLabels(tiny_tokenizer)(id)}" in text
    assert f"prefill  {1000 * found.passes[0].seconds:.1f} ms for 8 positions" in text and "15 positions at the last pass" in text


def test_a_candidate_is_dropped_where_it_is_gone_though_there_is_room():
    full = tuple((id, 0.1) for id in range(10))
    stages = [("model", full), ("top_k", full[:3]), ("min_p", full[:2])]
    assert [leaving(id, stages, 0) for id in (0, 3)] == [None, "drops"]
    assert [leaving(id, stages, 1) for id in (1, 2)] == [None, "drops"] and leaving(0, stages, 2) is None
    other = tuple((id, 0.1) for id in range(1, 11))
    assert leaving(0, [("model", full), ("bias", other)], 0) == "behind"  # it may be there, below the tenth


def test_the_chosen_token_is_among_those_shown():
    candidates = tuple((id, (10 - id) / 55) for id in range(10))
    assert [id for id, _ in nearest(candidates, 8)] == [0, 1, 2, 3, 8]
    assert [id for id, _ in nearest(candidates, 2)] == [0, 1, 2, 3, 4]
    assert [id for id, _ in nearest(candidates, 77)] == [0, 1, 2, 3, 4]
    assert nearest(candidates, 77, 0.01)[-1] == (77, 0.01)


def test_a_tree_joins_tokens_without_a_fork_between_them():
    steps = [
        (0, BeamTrace(((0, 7, -1.0), (0, 8, -2.0)), ())),
        (1, BeamTrace(((0, 5, -1.5), (0, 6, -1.7)), ())),
        (2, BeamTrace(((1, 9, -2.0), (0, 4, -2.5)), (-0.5,))),
    ]
    root = beam_tree(steps, [])
    assert [(child.id, len(child.children)) for child in root.children] == [(7, 2), (8, 0)]
    ways = [[node.id for node in chains(child)[0]] for child in root.children[0].children]
    assert ways == [[5, 4], [6, 9]]


def test_answers_of_beams_are_marked_in_their_tree(told, tiny_tokenizer):
    found = told(num_beams=3, num_return_sequences=2)
    root = beam_tree(found.beams, [result for result, _ in found.answers])
    for result, _ in found.answers:
        [end] = [node for node in root.walk() if result in node.endings]
        assert end.step == len(result.ids) - 2 and end.id == result.ids[-2] and end.returned
    text = printed(explain(found, TokenLabels(tiny_tokenizer)))
    assert "= answer 1 score" in text and "= answer 2 score" in text and f"score {found.answers[0][0].score:.4f}" in text


def test_drafts_are_shown_with_what_stayed(told, tiny_tokenizer):
    found = told(**LOOPING)
    text = printed(explain(found, TokenLabels(tiny_tokenizer)))
    accepted, said = sum(each.accepted for *_, each in found.drafts), sum(len(each.ids) for *_, each in found.drafts)
    assert f"{accepted} of {said} drafted tokens accepted" in text and f"16 tokens in {len(found.passes)} passes" in text


def test_layers_and_contrast_are_shown(told, tiny_tokenizer):
    names = TokenLabels(tiny_tokenizer)
    found = told(dola_layers=[0, 1], max_new_tokens=2)
    assert f"contrasted with layer {found.answers[0][1][0].layer.chosen}" in printed(explain(found, names))
    found = told(penalty_alpha=0.6, top_k=3, max_new_tokens=2)
    id, p, likeness, score = found.answers[0][1][0].contrast.candidates[0]
    assert re.search(rf"{re.escape(names(id))} +{p:.3f} +{likeness:.3f} +{score:.3f}", printed(explain(found, names)))


def test_a_heat_map_in_the_terminal_shades_by_the_square_root():
    text = heat_map(torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.4, 0.0], [0.05, 0.15, 0.8]]), ["a", "␣b", "수"], width=40).plain
    assert text.splitlines()[1:] == [" a  ██", "␣b  ▓▓▓▓", "수  ░░▒▒██"]
    assert "neighbours share a cell" in heat_map(torch.eye(60), ["t"] * 60, width=40).plain


class Balance(HTMLParser):
    """Checks that every element is closed, in order."""

    VOID = {"meta", "br"}

    def __init__(self, page):
        super().__init__()
        self.open, self.wrong, self.ids, self.links = [], [], set(), []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get("id"))
        self.links += [attrs["href"]] if "href" in attrs else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.ids.add(dict(attrs).get("id"))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


OPTIONS = {
    "greedy": {},
    "sampled": {"temperature": 0.8, "top_k": 5, "repetition_penalty": 1.2, "seed": 1, "num_return_sequences": 2},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "assisted": LOOPING,
    "dola": {"dola_layers": [0, 1]},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 3},
    "chosen": {"best_of": 3, "temperature": 1.0, "seed": 1},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_page_is_whole_loads_nothing_and_escapes_everything(told, tiny_llama, tiny_tokenizer, name):
    found = told(**OPTIONS[name])
    names = TokenLabels(tiny_tokenizer)
    ids = PROMPT + found.answers[0][0].ids
    hostile = "<script>alert(1)</script> & {{ title }}"
    picture = Picture(1, 2, attention_maps(tiny_llama, ids, 1), [f"</script>{names(id)}" for id in ids], len(PROMPT))
    page = to_html(found, names, PROMPT, hostile, picture)
    checked = Balance(page)
    assert not checked.open and not checked.wrong
    assert page.count("<script") == 2 and "alert(1)</script>" not in page.replace("&lt;", "<").split("<body>")[0].split("<title>")[0]
    assert "<script>alert" not in page and not re.search(r"src=|@import|url\(|https?:|<link", page)
    assert all(link.startswith("#") and link[1:] in checked.ids for link in checked.links)
    assert "prefers-color-scheme: dark" in page and '<html lang="en">' in page and '<meta charset="utf-8">' in page
    weights = json.loads(re.search(r'<script type="application/json" id="weights">(.*?)</script>', page, re.S)[1])
    assert weights["weights"][-1] == [round(1000 * each) for each in picture.weights[-1].tolist()] and len(weights["tokens"]) == len(ids)
    for result, steps in found.answers:
        strip = re.search(rf'data-answer="a{result.choice}">(.*?)</p>', page, re.S)[1]
        assert unescape(re.sub("<br>|<[^>]+>", "", strip)) == "".join(names(id) for id in result.ids)
    for heading, there in (("Beams", found.beams), ("Drafts", found.drafts), ("Layers", name == "dola")):
        assert (f"<h2>{heading}</h2>" in page) == bool(there)


def test_the_page_has_every_stage_of_every_token(told, tiny_tokenizer):
    found = told(temperature=0.8, top_k=5, seed=1)
    [(_, steps)] = found.answers
    page = to_html(found, TokenLabels(tiny_tokenizer), PROMPT, "p")
    for step in steps:
        story_of_it = re.search(rf'<details class="[^"]*" id="a0t{step.position}">(.*?)</details>', page, re.S)[1]
        assert re.findall("<h3>(.*?)</h3>", story_of_it) == [name for name, _ in step.filtered.stages]
        assert story_of_it.count('<tr class="chosen">') == sum(step.id in dict(each) for _, each in step.filtered.stages)


def test_korean_stays_korean_on_the_page(tokenizer, tiny):
    model = tiny("llama", vocab_size=49152)
    prompt = tokenizer("수원은 어디?")["input_ids"]
    results = generate(model, tokenizer, [prompt], SamplingParams(max_new_tokens=3), trace=True)
    page = to_html(generation_trace(results), TokenLabels(tokenizer), prompt, "수원은 어디?")
    assert '<p class="prompt">수원은 어디?</p>' in page and "&lt;0x" in page
    assert "\ufffd" not in page.split('<section class="answer">')[0]  # what was read is all there


def test_shades_cover_exactly_the_cells_that_have_weight():
    weights = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    paths = dict(re.findall(r'opacity:([\d.]+)" d="([^"]*)"', heat_squares(weights)))
    assert paths == {"1.00": "M0 0h1v1h-1z", "0.50": "M0 1h1v1h-1z", "0.83": "M1 1h1v1h-1z"}


def test_long_names_are_cut_by_their_width():
    assert [short("abcdef", 6), short("abcdefg", 6), short("수원역에서", 6)] == ["abcdef", "abcde…", "수원…"]


def test_an_answer_of_beams_has_its_tokens_with_their_chances(told, tiny_tokenizer):
    found = told(num_beams=2)
    [(result, steps)] = found.answers
    line = "  ".join(f"{TokenLabels(tiny_tokenizer)(id)} {torch.tensor(logprob).exp():.3f}" for id, logprob in zip(result.ids, result.logprobs))
    assert line in printed(explain(found, TokenLabels(tiny_tokenizer)), width=200)


def test_a_line_of_beams_goes_on_at_its_depth_and_what_left_it_is_set_in(tiny_tokenizer):
    a, b, c, d, e = (tiny_tokenizer.convert_tokens_to_ids(each) for each in "abcde")
    steps = [(0, BeamTrace(((0, a, -1.0), (0, b, -2.0)), ())), (1, BeamTrace(((0, c, -1.5), (0, d, -1.7)), ())), (2, BeamTrace(((1, e, -2.0),), ()))]
    text = printed(tree_of_beams(GenerationTrace([], [], steps, []), TokenLabels(tiny_tokenizer)))
    assert [line.rstrip() for line in text.splitlines()] == ["prompt", "└── b  -2.000", "... a  -1.000", "└── c  -1.500", "... de  -2.000"]


def test_an_answer_of_groups_is_of_the_one_that_went_its_way_to_the_end(told):
    found = told(num_beams=4, num_beam_groups=2, diversity_penalty=0.3, num_return_sequences=3, max_new_tokens=12)
    root = beam_tree(found.beams, [result for result, _ in found.answers])
    for result, _ in found.answers:
        [end] = [node for node in root.walk() if result in node.endings]
        assert end.step == len(result.ids) - 2
    one = Result(0, "", [7, 5, 4, 2], [], "eos", 1, 0)
    steps = [
        (0, BeamTrace(((0, 7, -1.0), (0, 7, -1.0)), ())), (1, BeamTrace(((0, 6, -1.5), (1, 5, -1.7)), ())), (2, BeamTrace(((1, 4, -2.0),), ())),
    ]  # fmt: skip
    root = beam_tree(steps, [one])
    assert [node.lane for node in root.walk() if node.returned] == [0, 1, 1, 0]
