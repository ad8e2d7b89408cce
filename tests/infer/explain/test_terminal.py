"""The story of a trace, and how the terminal shows it."""

import re

import pytest
import torch
from rich.console import Console

from seodang.infer import SamplingParams, generate
from seodang.infer.explain.beam_tree import beam_tree, chains
from seodang.infer.explain.diffusion_steps import stretches
from seodang.infer.explain.generation_trace import GenerationTrace, generation_trace
from seodang.infer.explain.terminal import explain, heat_map, leaving, nearest, tree_of_beams
from seodang.infer.requests.events import Result
from seodang.infer.requests.trace import BeamTrace
from seodang.infer.runners.paradigm import Diffusion, declare
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
    assert "model" in text and "temperature" in text and "top_k" in text and "6 more tokens: --shown 8" in text
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


def test_a_diffusion_answer_is_shown_by_its_steps_its_moments_and_its_candidates(fresh_tiny, tiny_tokenizer):
    model = fresh_tiny("llama")
    declare(model.config, Diffusion(127))
    params = SamplingParams(max_new_tokens=6, ignore_eos=True, steps=3, suppress_tokens=[*range(4), *range(98, 128)])
    results = generate(model, tiny_tokenizer, [PROMPT], params, trace=True)
    names, trace = TokenLabels(tiny_tokenizer), generation_trace(results)
    text = results[0].text
    shown = printed(explain(trace, names, 2, width=35)).splitlines()
    lines = [line for line in shown if line.startswith("Step ")]
    for (step, line), certain in zip(enumerate(lines, 1), (2, 4), strict=True):  # of three, for two are asked for
        assert line.startswith(f"Step {step}: ") and line.count("░") == 6 - certain
        canvas = line.removeprefix(f"Step {step}: ").ljust(6)
        assert all(known in ("░", own) for known, own in zip(canvas, text))
    assert "... 1 more steps: --shown 3 shows all of them" in shown
    assert "<|mask|>" in printed(explain(trace, names, 2))  # where there is room for it
    steps = {position: step.step for step in trace.steps_of(results[0]) for position, *_ in step.committed}
    heat = next(place for place, line in enumerate(shown) if line.startswith("when each token became certain"))
    assert [int(each) for each in shown[heat + 2].split()] == [steps[position] for position in range(6)]
    for step in trace.answers[0][1][:2]:
        [line] = [line for line in shown if re.match(rf" *{step.position}  {re.escape(names(step.id))} ", line)]
        assert f"p {step.filtered.probability:.3f} " in line and f"  step {steps[step.position]}  " in line
        id, p = step.filtered.stages[0][1][0]
        assert any(f"{p:.3f} {names(id)}" in line for line in shown)
    kinds = [{kind for kind, _ in stretches(step, names)} for step in trace.steps_of(results[0])]
    assert kinds == [{"open", "new"}, {"open", "new", "old"}, {"new", "old"}]
