"""The engine: strategies of any kind share every pass, and each finds what it finds alone."""

from dataclasses import FrozenInstanceError

import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer.engine.core import Engine
from seodang.infer.engine.generate import generate, prepare, run
from seodang.infer.engine.pace import Pace
from seodang.infer.engine.params import SamplingParams
from seodang.infer.requests.generation import Generation
from seodang.infer.requests.request import Request
from seodang.infer.requests.sequence import TokenSequence, release
from seodang.infer.requests.stop import AnswerText
from seodang.infer.requests.strategy import Forward
from seodang.infer.runners.open import open_runner
from seodang.infer.strategies.registry import choose
from seodang.infer.text.detokenise import detokeniser

NEW = 24


def greedy_ids(model, prompt: list[int], new: int = NEW) -> list[int]:
    mask = torch.ones(1, len(prompt), dtype=torch.long)
    out = model.generate(torch.tensor([prompt]), attention_mask=mask, do_sample=False, max_new_tokens=new, pad_token_id=0)
    return out[0, len(prompt) :].tolist()


def request(tokenizer, prompt: list[int], **settings) -> Generation:
    params = SamplingParams(**{"max_new_tokens": NEW, **settings})
    text = lambda: AnswerText(detokeniser(tokenizer), params.stop)
    return Generation(Request(0, prompt, params, params.seed or 0, frozenset({2}), text, choose(params)))


def prompt_lookup(row: TokenSequence, ngram: int = 1, draft: int = 6):
    """Guess that what followed the last tokens before follows them again: several tokens a pass, those of greedy search."""
    while not row.finished:
        last = row.ids[-ngram:]
        found = [i for i in range(len(row.ids) - ngram) if row.ids[i : i + ngram] == last]
        guess = row.ids[found[-1] + ngram :][:draft] if found else []
        logits = yield Forward([row], [row.unseen + guess], [len(guess) + 1])
        picks = logits.argmax(dim=-1).tolist()
        agreed = next((i for i, id in enumerate(guess) if id != picks[i]), len(guess))
        row.rollback(len(guess) - agreed)
        for id in picks[: agreed + 1]:
            if not row.finished:
                row.commit(id, 0.0)
    row.publish()
    release([row])


def two_beginnings(row: TokenSequence, found: list[TokenSequence]):
    """Go on from the two likeliest first tokens, greedily: a row and its fork."""
    logits = yield Forward([row], [row.unseen], [1])
    pair = [row, row.fork()]
    for each, id in zip(pair, logits[0].topk(2).indices.tolist()):
        each.commit(id, 0.0)
    while live := [each for each in pair if not each.finished]:
        logits = yield Forward(live, [each.unseen for each in live], [1] * len(live))
        for each, id in zip(live, logits.argmax(dim=-1).tolist()):
            each.commit(id, 0.0)
    found += pair
    release(pair)


def test_strategies_of_all_kinds_share_passes_and_find_what_they_find_alone(tiny, tokenizer):
    model = tiny("llama")
    prompts = [[5, 6, 7, 8, 5, 6], [9], [20, 21, 22], [5, 6, 5, 6, 5, 6, 5]]
    runner = open_runner(model)
    engine = Engine(runner)
    greedy, drawn = request(tokenizer, prompts[1]), request(tokenizer, prompts[2], temperature=1.5, seed=4)
    copied, beginnings = TokenSequence.open(request(tokenizer, prompts[0]), runner), []
    engine.submit(greedy)
    engine.submit(drawn)
    engine.start(prompt_lookup(copied))
    engine.start(two_beginnings(TokenSequence.open(request(tokenizer, prompts[3]), runner), beginnings))
    while engine.step():
        pass
    assert runner.passes == NEW  # together they took as many as the slowest alone
    assert runner.live == 0
    assert copied.new_ids == greedy_ids(model, prompts[0])
    assert greedy.result.ids == greedy_ids(model, prompts[1])
    alone = request(tokenizer, prompts[2], temperature=1.5, seed=4)
    list(run(Engine(open_runner(model)), [alone]))
    assert drawn.result.ids == alone.result.ids
    for row in beginnings:
        first = row.new_ids[0]
        assert row.new_ids == [first, *greedy_ids(model, [*prompts[3], first], NEW - 1)]
    assert beginnings[0].new_ids != beginnings[1].new_ids


def test_right_guesses_save_passes(tiny, tokenizer):
    model = tiny("llama")
    prompt = [5, 6, 7]
    repeated = prompt + greedy_ids(model, prompt, 30)  # greedy goes on from here as it did: in a loop or not
    runner = open_runner(model)
    engine = Engine(runner)
    row = TokenSequence.open(request(tokenizer, repeated, max_new_tokens=60), runner)
    engine.start(prompt_lookup(row))
    while engine.step():
        pass
    assert row.new_ids == greedy_ids(model, repeated, 60)
    assert runner.passes < 60
    assert runner.length is not None and runner.live == 0


def test_requests_wait_until_there_is_room(tiny, tokenizer):
    runner = open_runner(tiny("llama"))
    engine = Engine(runner, max_rows=2)
    requests = [request(tokenizer, [5 + i], max_new_tokens=3 + 4 * (i % 2)) for i in range(5)]
    most = 0
    for each in requests:
        engine.submit(each)
    while engine.step():
        most = max(most, runner.live)
    assert most == 2
    for i, each in enumerate(requests):
        assert each.result.ids == greedy_ids(tiny("llama"), [5 + i], 3 + 4 * (i % 2))


def test_prompts_that_are_too_much_for_one_pass_join_the_next_and_a_longer_one_goes_by_parts(tiny, tokenizer):
    runner = open_runner(tiny("llama"))
    engine = Engine(runner, pace=Pace(50, stall=None))
    prompts = [list(range(3, 43)), list(range(4, 44)), list(range(3, 100))]
    requests = [request(tokenizer, prompt, max_new_tokens=4) for prompt in prompts]
    for each in requests:
        engine.submit(each)
    before, sizes = 0, []
    while engine.step():
        sizes.append(runner.positions - before)
        before = runner.positions
    assert sizes[:4] == [40, 1 + 40 + 50, 1 + 1 + 46, 1 + 1 + 1]  # the third by parts, its last token with its strategy
    assert [each.result.ids for each in requests] == [greedy_ids(tiny("llama"), prompt, 4) for prompt in prompts]


def test_an_encoder_reads_no_more_sources_a_pass_than_prompts_have_positions(tiny, tiny_tokenizer):
    sources = [*([5 + i] * 25 for i in range(4)), [60] * 51, [61] * 51]
    engine, generations = prepare(tiny("t5"), tiny_tokenizer, sources, SamplingParams(max_new_tokens=9, ignore_eos=True), False, None, 64)
    engine.pace = Pace(50, stall=None)
    for each in generations:
        engine.submit(each)
    running = []
    for _ in range(4):
        engine.step()
        running.append(engine.scheduler.running)
    assert running == [4, 5, 6, 6]  # two are read, and two come in to the next pass; a source that is longer comes in by itself


def test_who_streams_is_spared_unless_as_many_wait(tiny, tokenizer):
    runner = open_runner(tiny("llama"))
    engine, before = Engine(runner, pace=Pace(512)), 0

    def positions() -> int:
        nonlocal before
        engine.step()
        before, ran = runner.positions, runner.positions - before
        return ran

    def come(count: int) -> None:
        for at in range(count):
            engine.submit(request(tokenizer, list(range(3 + at, 63 + at)), max_new_tokens=40))

    come(1)
    assert positions() == 60
    come(7)
    assert positions() == 1 + 7 * 60  # one that streams is not worth that seven wait
    come(3)
    assert positions() == 8 + 2 * 60  # eight are spared: 128 positions a pass, and not all three
    assert positions() == 10 + 60


def test_close_drops_what_is_unfinished(tiny, tokenizer):
    runner = open_runner(tiny("llama"))
    engine = Engine(runner, max_rows=1)
    engine.submit(request(tokenizer, [5]))
    engine.submit(request(tokenizer, [6]))
    engine.step()
    engine.close()
    assert runner.live == 0 and not engine.step()


@pytest.mark.parametrize(
    "wide",
    [
        {"num_beams": 4}, {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, {"penalty_alpha": 0.6, "top_k": 4},
        {"temperature": 1.0, "seed": 1, "num_return_sequences": 4}, {"prompt_lookup_num_tokens": 2, "temperature": 1.0, "num_return_sequences": 4},
        {"guidance_scale": 1.5, "temperature": 1.0, "num_return_sequences": 2},  # each of the two has a sequence of guidance too
    ],
    ids=lambda options: next(iter(options)),
)  # fmt: skip
def test_room_is_kept_for_the_rows_that_a_request_opens_after_its_prompt(tiny, tokenizer, wide):
    engine, requests = prepare(tiny("llama"), tokenizer, [[5 + i] for i in range(6)], SamplingParams(max_new_tokens=4, **wide), False, None, 8)
    most = 0
    for each in requests:
        engine.submit(each)
    while engine.step():
        most = max(most, engine.runner.live)
    assert most == 8
    assert all(each.done for each in requests) and engine.runner.live == 0


def test_long_prompts_of_beams_do_not_share_a_pass_either(tiny, tokenizer):
    prompts = [list(range(3, 43)), list(range(4, 44))]
    engine, requests = prepare(tiny("llama"), tokenizer, prompts, SamplingParams(max_new_tokens=3, num_beams=2), False, None, 64)
    engine.pace = Pace(50, stall=None)
    for each in requests:
        engine.submit(each)
    engine.step()
    assert engine.runner.positions == 40
    engine.step()
    assert engine.runner.positions == 40 + 2 + 40


def test_a_request_without_a_strategy_is_not_taken(tiny, tokenizer):
    made = Request(3, [5], SamplingParams(), 0, frozenset({2}), lambda: AnswerText(detokeniser(tokenizer)))
    with pytest.raises(UserError, match="request 3 has no strategy"):
        Engine(open_runner(tiny("llama"))).submit(Generation(made))


def test_a_prompt_makes_a_request_that_names_its_strategy_and_never_changes(tiny, tiny_tokenizer):
    settings = [{"token_healing": True}, {"num_beams": 2, "prefix": "ab"}, {"best_of": 2, "temperature": 1.0}]
    params = [SamplingParams(max_new_tokens=8, **each) for each in settings]
    _, [healed, beams, best] = prepare(tiny("llama"), tiny_tokenizer, ["abc"] * 3, params, False, None, 4)
    assert [each.request.strategy.name for each in (healed, beams, best)] == ["sampling", "beam", "best_of_n"]
    assert beams.request.prefix_ids == [tiny_tokenizer.convert_tokens_to_ids(each) for each in "ab"]
    assert best.request.select is not None and beams.request.select is None
    with pytest.raises(FrozenInstanceError):
        healed.request.prompt_ids = [5]


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 2}, {"penalty_alpha": 0.6, "top_k": 2}, {"dola_layers": "low"}, {"prompt_lookup_num_tokens": 2}], ids=str
)
def test_when_time_is_up_at_once_there_is_an_answer_of_one_token_behind_its_prefix(tiny, tiny_tokenizer, options):
    [result] = generate(tiny("llama"), tiny_tokenizer, [[5, 6]], SamplingParams(prefix="ab", max_new_tokens=9, max_time=1e-9, **options))
    assert result.finish_reason == "time" and len(result.ids) == 3 and result.text.startswith("ab")
