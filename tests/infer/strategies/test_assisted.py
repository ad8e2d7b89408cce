"""Assisted decoding: the model's own tokens, or distribution, in fewer of its passes, whoever guesses."""

import copy
import json
from collections import Counter
from itertools import product

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationMixin

from seodang.data.errors import UserError
from seodang.infer.engine.core import Engine
from seodang.infer.engine.generate import generate, prepare, run, stream
from seodang.infer.engine.params import SamplingParams
from seodang.infer.engine.prefix_cache import PrefixCache
from seodang.infer.requests.events import Committed, Observed, Provisional
from seodang.infer.requests.generation import Generation
from seodang.infer.requests.request import Request
from seodang.infer.requests.stop import AnswerText
from seodang.infer.requests.trace import DraftTrace
from seodang.infer.runners.open import open_runner
from seodang.infer.strategies.registry import choose
from seodang.infer.text.detokenise import detokeniser
from seodang.infer.text.spans import Span

PROMPTS = [[5, 6, 7, 8, 5, 6], [9], [20, 21, 22], [5, 6, 5, 6, 5, 6, 5]]
NEW = 30


def noisy(model, by: float = 0.05):
    """A draft that agrees with the model often, but not always: its weights with some noise."""
    draft, noise = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for parameter in draft.parameters():
        parameter.data += by * torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype)
    return draft


@pytest.fixture(scope="module")
def model(tiny):
    return copy.deepcopy(tiny("llama")).double()


@pytest.fixture(scope="module")
def draft(model):
    return noisy(model)


@pytest.fixture(scope="module")
def helpers(draft):
    return {
        "draft model": {"assistant_model": draft},
        "draft of constant length": {
            "assistant_model": draft, "num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0
        },
        "early exit": {"assistant_early_exit": 1},
        "lookup": {"prompt_lookup_num_tokens": 6},
        "lookup at every step": {"prompt_lookup_num_tokens": 6, "num_assistant_tokens_schedule": "constant", "max_matching_ngram_size": 1},
    }  # fmt: skip


HELPERS = ["draft model", "draft of constant length", "early exit", "lookup", "lookup at every step"]


def answered(model, tokenizer, prompts=PROMPTS, **settings):
    """Ids of all answers, and the passes of the model; all rows of all runners must have been given back."""
    params = SamplingParams(**{"max_new_tokens": NEW, **settings})
    engine, requests = prepare(model, tokenizer, prompts, params, False, None, 64)
    list(iterate(engine, requests))
    assert all(runner.live == 0 for runner in engine._runners.values())
    return [request.results[choice].ids for request in requests for choice in sorted(request.results)], engine.runner.passes


def iterate(engine, requests):
    for request in requests:
        engine.submit(request)
    while engine.step():
        yield


@pytest.fixture
def no_generate(monkeypatch):
    """Nothing of transformers' own generation is used."""

    def refuse(*args, **kwargs):
        raise AssertionError("GenerationMixin.generate was called")

    monkeypatch.setattr(GenerationMixin, "generate", refuse)


SETTINGS = [
    {},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 12, "bad_words_ids": [[5, 6], [7]]},
    {"guidance_scale": 2.0},
    {"dry_multiplier": 1.0, "presence_penalty": 0.3, "suppress_tokens": [5, 9]},
    {"prefix_allowed_tokens_fn": lambda ids: range(3 + len(ids) % 2, 128, 2)},
]


@pytest.mark.parametrize("helper", HELPERS)
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: next(iter(settings), "plain"))
def test_greedy_tokens_are_those_without_assistance(model, tokenizer, helpers, helper, settings, no_generate):
    alone, passes = answered(model, tokenizer, **settings)
    assisted, fewer = answered(model, tokenizer, **settings, **helpers[helper])
    assert assisted == alone
    assert fewer <= passes


def test_no_copy_is_made_beyond_the_answers_end(model, tokenizer):
    alone, _ = answered(model, tokenizer, prompts=[[5, 6] * 4], max_new_tokens=6)
    assert answered(model, tokenizer, prompts=[[5, 6] * 4], max_new_tokens=6, prompt_lookup_num_tokens=1 << 62)[0] == alone


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "gemma2", "cohere"])
def test_greedy_tokens_are_those_of_transformers_in_fewer_passes(tiny, tokenizer, kind):
    model = copy.deepcopy(tiny(kind)).double()
    told = [model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=NEW, pad_token_id=0)[0].tolist() for prompt in PROMPTS]
    alone = [ids[len(prompt) :] for ids, prompt in zip(told, PROMPTS)]
    for helper in ({"assistant_model": noisy(model, 0.01)}, {"assistant_early_exit": 1}, {"prompt_lookup_num_tokens": 5}):
        assert answered(model, tokenizer, **helper)[0] == alone
    passes = answered(model, tokenizer, assistant_model=noisy(model, 0.001), assistant_confidence_threshold=0.0)[1]
    assert passes < max(map(len, alone)) / 2


def test_a_draft_that_is_always_right_costs_as_few_passes_as_its_length_allows(model, tokenizer):
    settings = {"assistant_model": copy.deepcopy(model), "num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0}
    [ids], passes = answered(model, tokenizer, [[9]], ignore_eos=True, num_assistant_tokens=4, **settings)
    assert len(ids) == NEW and passes == NEW / 5  # four guesses and one more token a pass
    [ids], passes = answered(model, tokenizer, [[9]], ignore_eos=True, **{**settings, "num_assistant_tokens_schedule": "heuristic"})
    assert passes == 4  # 5 + 1, 7 + 1, 9 + 1 and what is left


def test_an_unsure_draft_stops_early(model, draft, tokenizer):
    params = SamplingParams(max_new_tokens=NEW, assistant_model=draft, assistant_confidence_threshold=1.0)
    [result] = generate(model, tokenizer, [[9]], params, trace=True)
    drafted = [event.what for event in result.trace if isinstance(event, Observed) and isinstance(event.what, DraftTrace)]
    assert {len(each.ids) for each in drafted} == {1}  # the unsure token itself is kept


@pytest.mark.parametrize("helper", ["lookup", "lookup at every step"])
@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0.7}, {"mirostat_tau": 2.0}, {"temperature": 0.6, "top_p": 0.8, "xtc_probability": 0.5, "repetition_penalty": 1.1}],
    ids=["temperature", "mirostat", "xtc"],
)
def test_sampling_with_lookup_draws_the_tokens_that_it_draws_without(model, tokenizer, helpers, helper, settings, no_generate):
    settings = {**settings, "seed": 5, "num_return_sequences": 3}
    assert answered(model, tokenizer, **settings, **helpers[helper])[0] == answered(model, tokenizer, **settings)[0]


@pytest.mark.parametrize("helper", ["draft model", "early exit"])
def test_a_sampled_answer_does_not_depend_on_its_batch(model, tokenizer, helpers, helper):
    settings = {"temperature": 0.8, "seed": 5, "num_return_sequences": 2, **helpers[helper]}
    together, _ = answered(model, tokenizer, **settings)
    assert together == [ids for prompt in PROMPTS for ids in answered(model, tokenizer, [prompt], **settings)[0]]
    assert len({tuple(ids) for ids in together}) == 8


def small(seed: int):
    """A model of six tokens."""
    config = AutoConfig.for_model(
        "llama", vocab_size=6, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).double().eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.4)
    return model


@pytest.mark.parametrize("penalty", [0.0, 0.7], ids=["judged at once", "judged in turn"])
@pytest.mark.parametrize("helper", ["bad draft", pytest.param("good draft", marks=pytest.mark.full), pytest.param("early exit", marks=pytest.mark.full), "lookup"])
def test_the_first_three_tokens_are_distributed_as_the_models(tokenizer, helper, penalty):
    model, prompt, drawn = small(0), [3, 4, 5, 3, 4], 1200
    options = {
        "bad draft": {"assistant_model": small(7)},
        "good draft": {"assistant_model": noisy(model, 0.1)},
        "early exit": {"assistant_early_exit": 1},
        "lookup": {"prompt_lookup_num_tokens": 4},
    }[helper]
    settings = {"temperature": 1.3, "max_new_tokens": 3, "ignore_eos": True, "seed": 1, "num_return_sequences": drawn}
    settings |= {"presence_penalty": penalty} if penalty else {"top_k": 5}
    counts = Counter(map(tuple, answered(model, tokenizer, [prompt], **settings, **options)[0]))
    cells = torch.tensor(list(product(range(6), repeat=3)))
    with torch.no_grad():
        logits = model(torch.cat([torch.tensor(prompt).expand(len(cells), -1), cells], dim=1)).logits[:, len(prompt) - 1 : -1]
    for place in (1, 2):
        for before in range(place):
            said = cells[:, before : before + 1]
            new = torch.ones(len(cells), 1, dtype=torch.bool) if before == 0 else said != cells[:, :1]  # twice counts once
            logits[:, place].scatter_add_(1, said, -penalty * new.double())
    least = logits.topk(6 if penalty else 5, dim=-1).values[..., -1:]
    probs = (logits / 1.3).masked_fill(logits < least, -torch.inf).softmax(dim=-1)
    expected = probs.gather(-1, cells[..., None]).squeeze(-1).prod(dim=-1) * drawn
    observed = torch.tensor([counts[tuple(cell)] for cell in cells.tolist()], dtype=torch.float64)
    assert observed[expected == 0].sum() == 0
    rare = expected < 5
    terms = [((o - e) ** 2 / e) for o, e in zip(observed[~rare], expected[~rare])]
    if expected[rare].sum() >= 5:
        terms.append((observed[rare].sum() - expected[rare].sum()) ** 2 / expected[rare].sum())
    freedom = len(terms) - 1
    assert freedom > 30
    assert float(sum(terms)) < freedom + 3.5 * (2 * freedom) ** 0.5


def test_no_token_comes_after_a_stop_within_an_accepted_draft(model, tokenizer):
    [ids], _ = answered(model, tokenizer, [[9]], ignore_eos=True)
    stop = tokenizer.decode(ids[6:8])
    settings = SamplingParams(max_new_tokens=NEW, ignore_eos=True, stop=stop)
    [alone] = generate(model, tokenizer, [[9]], settings)
    helped = SamplingParams(max_new_tokens=NEW, ignore_eos=True, stop=stop, assistant_model=copy.deepcopy(model), num_assistant_tokens=12)
    events = list(stream(model, tokenizer, [9], helped))
    tokens = [event for event in events if isinstance(event, Committed)]
    assert [event.id for event in tokens] == alone.ids and "".join(event.text for event in tokens) == alone.text
    assert alone.finish_reason == events[-1].reason == "stop"


def test_a_pass_that_accepts_a_draft_tells_of_all_its_tokens(model, tokenizer):
    params = SamplingParams(max_new_tokens=12, ignore_eos=True, assistant_model=copy.deepcopy(model), assistant_confidence_threshold=0.0)
    engine, [request] = prepare(model, tokenizer, [[9]], params, False, None, 64)
    heard = []
    request.on_event = heard.append
    engine.submit(request)
    told = []
    while engine.step():
        told.append(len(heard))
    assert sorted(set(told)) == [0, 6]  # nothing while it drafts, then five guesses and one more


def test_a_trace_holds_what_was_drafted_and_how_much_of_it_came(model, draft, tokenizer):
    params = SamplingParams(max_new_tokens=NEW, assistant_model=draft, assistant_confidence_threshold=0.0)
    [result] = generate(model, tokenizer, [[9]], params, trace=True)
    plain = generate(model, tokenizer, [[9]], SamplingParams(max_new_tokens=NEW))[0]
    assert result.ids == plain.ids
    drafts = [event for event in result.trace if isinstance(event, Observed) and isinstance(event.what, DraftTrace)]
    assert any(each.what.accepted < len(each.what.ids) for each in drafts) and any(each.what.accepted for each in drafts)
    for event in drafts:
        guessed, came = event.what.ids, result.ids[event.position :]
        agreed = next((i for i, (a, b) in enumerate(zip(guessed, came)) if a != b), min(len(guessed), len(came)))
        assert agreed == event.what.accepted
        shown = [each.id for each in result.trace if isinstance(each, Provisional)]
        assert len(shown) == sum(len(each.what.ids) for each in drafts)


def test_steered_text_is_the_same_with_every_assistant(fresh_tiny, tokenizer):
    model = fresh_tiny("llama", vocab_size=len(tokenizer), hidden_size=8).double()
    helpers = [{"assistant_model": noisy(model, 0.01)}, {"assistant_early_exit": 1}, {"prompt_lookup_num_tokens": 3}]
    for settings in ({"regex": "[ab]{3,8} [0-9]{2}"}, {"prefix": "Once"}, {"forced_text": {5: " therefore"}}, {"hide": [Span(0, 1)]}):
        settings = {**settings, "max_new_tokens": 12}
        alone, _ = answered(model, tokenizer, [[500, 600]], **settings)
        assert all(answered(model, tokenizer, [[500, 600]], **settings, **helper)[0] == alone for helper in helpers)


@pytest.mark.parametrize("helper", HELPERS)
def test_a_kept_past_holds_nothing_of_rejected_guesses(model, tokenizer, helpers, helper):
    cache, settings = PrefixCache(model), SamplingParams(max_new_tokens=NEW, **helpers[helper])
    [first] = generate(model, tokenizer, [[5, 6, 7]], settings, prefix_cache=cache)
    further = [5, 6, 7, *first.ids, 11]
    [kept] = generate(model, tokenizer, [further], settings, prefix_cache=cache)
    assert kept.ids == generate(model, tokenizer, [further], SamplingParams(max_new_tokens=NEW))[0].ids
    assert cache.runner.live == len(cache.slots)


@pytest.mark.full
def test_copied_text_takes_far_fewer_passes(real_model, tokenizer):
    text = "The river Han rises in the mountains of Gangwon and flows through Seoul to the Yellow Sea."
    prompt = [{"role": "user", "content": f"Repeat the following text word for word, without any change.\n\n{text}"}]
    alone, passes = answered(real_model, tokenizer, [prompt])
    assisted, fewer = answered(real_model, tokenizer, [prompt], prompt_lookup_num_tokens=10)
    assert assisted == alone and passes == len(alone[0]) and fewer <= passes / 2.5


def test_requests_of_all_kinds_share_a_run(model, draft, tokenizer):
    each = [
        SamplingParams(max_new_tokens=NEW, assistant_model=draft),
        SamplingParams(max_new_tokens=NEW),
        SamplingParams(max_new_tokens=NEW, prompt_lookup_num_tokens=5),
        SamplingParams(max_new_tokens=NEW, temperature=0.9, seed=3, assistant_early_exit=1),
    ]
    together = generate(model, tokenizer, PROMPTS, each, max_rows=2)
    alone = [generate(model, tokenizer, [prompt], params)[0] for prompt, params in zip(PROMPTS, each)]
    assert [result.ids for result in together] == [result.ids for result in alone]


def test_drafting_ends_where_the_draft_has_no_positions_left(model, tokenizer, fresh_tiny):
    short = fresh_tiny("llama", max_position_embeddings=12).double()
    assert answered(model, tokenizer, assistant_model=short)[0] == answered(model, tokenizer)[0]


def test_vocabularies_may_differ_by_padding_alone(tokenizer, fresh_tiny):
    size = len(tokenizer)
    model = fresh_tiny("llama", vocab_size=size, hidden_size=8).double()
    for other in (size + 8, size):
        target, helper = (fresh_tiny("llama", vocab_size=n, hidden_size=8).double() for n in (size + (8 if other == size else 0), other))
        assert answered(target, tokenizer, assistant_model=helper, max_new_tokens=4)[0] == answered(target, tokenizer, max_new_tokens=4)[0]
    with pytest.raises(UserError, match=rf"vocabularies of 128 and {size}"):
        answered(model, tokenizer, assistant_model=fresh_tiny("llama").double())


def permuted(tokenizer):
    """The byte-level tokenizer with its letters in another order, and where each of its ids stood."""
    other, size = copy.deepcopy(tokenizer), len(tokenizer)
    state = tokenizer.backend_tokenizer.to_str()
    vocab = tokenizer.get_vocab()
    moved = {token: id if id < 4 else 4 + (id - 4 + 50) % (size - 4) for token, id in vocab.items()}
    content = json.loads(state)
    content["model"]["vocab"] = {token: id for token, id in sorted(moved.items(), key=lambda pair: pair[1])}
    other._tokenizer = Tokenizer.from_str(json.dumps(content))
    back = torch.empty(size, dtype=torch.long)
    for token, id in vocab.items():
        back[moved[token]] = id
    return other, back


def test_a_draft_of_another_tokenizer_guesses_text(tiny, tiny_tokenizer):
    other, back = permuted(tiny_tokenizer)
    model = copy.deepcopy(tiny("llama", tie_word_embeddings=False)).double()
    head = model.get_output_embeddings().weight
    head.data[98:] = head.data[36] / 2  # bytes beyond ASCII are no text by themselves, and shall never be the likeliest
    draft = copy.deepcopy(model)
    for layer in (draft.get_input_embeddings(), draft.get_output_embeddings()):
        layer.weight.data = layer.weight.data[back]  # the same model in the other tokenizer's ids
    helper = {"assistant_model": draft, "assistant_tokenizer": other, "assistant_confidence_threshold": 0.0}
    prompts = ["Seodang", "teaches letters"]
    alone, _ = answered(model, tiny_tokenizer, prompts, ignore_eos=True)
    drafted, _ = answered(draft, other, prompts, ignore_eos=True)
    assert [tiny_tokenizer.decode(ids) for ids in alone] == [other.decode(ids) for ids in drafted] and alone != drafted
    assisted, passes = answered(model, tiny_tokenizer, prompts, ignore_eos=True, **helper)
    assert assisted == alone
    assert passes == 4  # 5 + 1, 7 + 1, 9 + 1 and what is left
    drawn = {"temperature": 0.8, "seed": 4, "num_return_sequences": 2}
    assert answered(model, tiny_tokenizer, prompts, **drawn, **helper)[0] == answered(model, tiny_tokenizer, prompts, **drawn)[0]


def seq2seq(seed: int):
    config = AutoConfig.for_model(
        "t5", vocab_size=128, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, dropout_rate=0.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForSeq2SeqLM.from_config(config).double().eval()
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=2.0 if "shared" in name else 0.3)
    return model


def test_an_encoder_decoder_is_helped_by_its_like_and_by_its_source(tokenizer):
    model = seq2seq(0)

    def ids(**settings):
        engine = Engine(open_runner(model))
        params = SamplingParams(max_new_tokens=16, ignore_eos=True, **settings)
        text = lambda: AnswerText(detokeniser(tokenizer))
        requests = [
            Generation(Request(i, [0], params, 0, frozenset(), text, choose(params), source_ids=source, tokenizer=tokenizer))
            for i, source in enumerate([[5, 6, 7, 8], [30, 31], [40, 5, 6, 90, 7]])
        ]
        list(run(engine, requests))
        assert all(runner.live == 0 for runner in engine._runners.values())
        return [request.result.ids for request in requests], engine.runner.positions

    alone, _ = ids()
    for helper in ({"assistant_model": noisy(model, 0.02)}, {"prompt_lookup_num_tokens": 4, "num_assistant_tokens_schedule": "constant"}):
        assert ids(**helper)[0] == alone


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"strategy": "assisted"}, "one of assistant_model"),
        ({"assistant_early_exit": 1, "prompt_lookup_num_tokens": 3}, "assistant_early_exit and prompt_lookup_num_tokens"),
        ({"assistant_early_exit": 2}, "the model has 2 layers"),
        ({"prompt_lookup_num_tokens": 3, "num_assistant_tokens": 7}, "num_assistant_tokens says nothing"),
        ({"assistant_early_exit": 1, "max_matching_ngram_size": 3}, "max_matching_ngram_size says nothing"),
        ({"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 17}, "in .1, 16., got 17"),
        ({"num_assistant_tokens": 7}, "num_assistant_tokens=7"),
        ({"prompt_lookup_num_tokens": 3, "num_return_sequences": 2}, "num_return_sequences=2 greedy answers"),
        ({"prompt_lookup_num_tokens": 3, "num_beams": 2}, "num_beams=2"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(model, tokenizer, settings, words):
    with pytest.raises(UserError, match=words):
        generate(model, tokenizer, [[5]], SamplingParams(max_new_tokens=8, **settings))


def test_assistants_that_do_not_fit_the_model_are_refused_by_name(model, tokenizer, tiny):
    for target, settings, words in (
        (seq2seq(0), {"assistant_early_exit": 1}, "cannot do in t5"),
        (seq2seq(0), {"assistant_model": model}, "both be encoder-decoders"),
        (model, {"assistant_model": seq2seq(0)}, "both be encoder-decoders"),
        (model, {"assistant_model": model, "assistant_tokenizer": tokenizer}, "more than the 128 of the assistant"),
    ):
        with pytest.raises(UserError, match=words):
            generate(target, tokenizer, [[5]], SamplingParams(max_new_tokens=8, **settings))
