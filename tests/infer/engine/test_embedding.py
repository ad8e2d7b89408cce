"""Vectors of prompts: transformers' own hidden states averaged, alone, by parts and beside others' answers; cancelled, failed and refused."""

import threading

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from seodang.data.errors import UserError
from seodang.infer import Finished, LiveEngine, SamplingParams, embed, generate
from seodang.infer.engine.core import Engine
from seodang.infer.engine.embedding import embedding_size
from seodang.infer.engine.loop import EngineClosed
from seodang.infer.engine.pace import Pace
from seodang.infer.runners.open import open_runner

TIMEOUT = 20  # seconds: of a wait that ends at once where all is well
PROMPTS = [[5, 6, 7, 5, 6], [20], list(range(3, 60)), [9, 8, 7, 6, 5, 4, 3]]
LONG = SamplingParams(max_new_tokens=60, ignore_eos=True)


def averaged(model, ids: list[int], mask: list[int] | None = None) -> torch.Tensor:
    """What transformers' own pass says, of the positions that the mask leaves."""
    mask = torch.tensor([mask or [1] * len(ids)])
    with torch.no_grad():
        states = model(torch.tensor([ids]), attention_mask=mask, output_hidden_states=True).hidden_states[-1]
    return states[mask.bool()].mean(dim=0)


def close(found, model, prompts=PROMPTS, atol: float = 1e-12, masks=(None,) * len(PROMPTS)) -> None:
    wanted = torch.stack([averaged(model, ids, mask) for ids, mask in zip(prompts, masks)])
    assert found.shape == wanted.shape == (len(prompts), embedding_size(model)) and found.dtype == wanted.dtype
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "mistral", "cohere"])
def test_a_vector_is_the_mean_of_the_last_layer_after_its_norm(double, tiny_tokenizer, kind):
    model = double(kind)
    atol = 1e-6 if kind == "gemma2" else 1e-12  # its norms compute in float32 whatever the weights are in
    close(embed(model, tiny_tokenizer, PROMPTS), model, atol=atol)
    text = "abc"
    close(embed(model, tiny_tokenizer, [text]), model, [tiny_tokenizer(text)["input_ids"]], atol)


def test_a_model_in_half_precision_is_averaged_in_float32(fresh_tiny, tiny_tokenizer):
    model = fresh_tiny().bfloat16()
    found = embed(model, tiny_tokenizer, PROMPTS)
    wanted = torch.stack([averaged(model.float(), ids) for ids in PROMPTS])
    assert found.dtype == torch.float32 and torch.nn.functional.cosine_similarity(found, wanted).min() > 0.999


def test_positions_turned_by_the_length_of_the_whole_are_read_at_once(double, tiny_tokenizer):
    """Under longrope a prompt beyond the first training turns all its positions otherwise than its beginning alone would."""
    factors = {"rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 8.0}
    model = double("llama", rope_parameters={**factors, "original_max_position_embeddings": 32})
    assert (averaged(model, PROMPTS[2]) - averaged(model, PROMPTS[2][:32])).abs().max() > 0.01
    with LiveEngine(model, tiny_tokenizer, pace=Pace(part=4, stall=None)) as engine:
        close(torch.stack([engine.embed(ids).embedding(TIMEOUT) for ids in PROMPTS]), model)


def test_hidden_positions_are_neither_seen_nor_counted(double, tiny_tokenizer):
    model = double()
    masks = [[1, 0, 1, 0, 1], None, [1] * 20 + [0] * 30 + [1] * 7, [0, 0, 0, 1, 1, 1, 1]]
    close(embed(model, tiny_tokenizer, PROMPTS, masks), model, masks=masks)
    with LiveEngine(model, tiny_tokenizer, pace=Pace(part=4, stall=None)) as engine:
        found = [engine.embed(ids, attention_mask=mask) for ids, mask in zip(PROMPTS, masks)]
        close(torch.stack([ticket.embedding(TIMEOUT) for ticket in found]), model, masks=masks)


def test_beside_answers_and_by_parts_nobody_changes_anybody(double, tiny_tokenizer):
    model = double()
    hows = [{}, {"temperature": 1.0, "seed": 3, "num_return_sequences": 2}, {"num_beams": 3}, {"penalty_alpha": 0.6, "top_k": 3}]
    asked = [([3 + i, 9, 40 + i], SamplingParams(max_new_tokens=30, ignore_eos=True, **how)) for i, how in enumerate(hows)]
    with LiveEngine(model, tiny_tokenizer, pace=Pace(part=5, stall=None)) as engine:
        answers = [engine.submit(*each) for each in asked]
        vectors = [engine.embed(ids) for ids in PROMPTS]
        close(torch.stack([ticket.embedding(TIMEOUT) for ticket in vectors]), model)
        found = [[result.ids for result in ticket.results(TIMEOUT)] for ticket in answers]
        assert [list(ticket.events()) for ticket in vectors] == [[Finished(len(asked) + i, "stop")] for i in range(len(PROMPTS))]
    assert found == [[result.ids for result in generate(model, tiny_tokenizer, [prompt], params)] for prompt, params in asked]


def test_a_long_prompt_is_read_in_passes_of_bounded_size(double, tiny_tokenizer):
    with LiveEngine(double(), tiny_tokenizer, pace=Pace(part=5, stall=None)) as engine:
        engine.embed(PROMPTS[2]).embedding(TIMEOUT)
        runner = engine._loop.engine.runner
        assert (runner.passes, runner.positions) == (12, 57)  # 11 of five, one of two


def test_the_prefix_cache_is_neither_read_nor_written(double, tiny_tokenizer):
    model, prompt = double(), list(range(3, 100))
    with LiveEngine(model, tiny_tokenizer) as engine:
        engine.embed(prompt).embedding(TIMEOUT)
        assert engine._loop.engine.runner.live == 0 and engine.prefix_cache.bytes == 0
        [result] = engine.submit(prompt, SamplingParams(max_new_tokens=2)).results(TIMEOUT)
        kept = engine.prefix_cache.bytes
        assert result.cached_tokens == 0 and kept > 0
        close(engine.embed(prompt).embedding(TIMEOUT)[None], model, [prompt])
        assert engine.prefix_cache.bytes == kept


def test_one_that_is_cancelled_frees_its_slot_and_the_others_go_on(double, tiny_tokenizer, monkeypatch):
    model = double()
    step, handed_in, tickets = Engine.step, threading.Event(), []
    with LiveEngine(model, tiny_tokenizer, pace=Pace(part=2, stall=None), reuse_prefixes=False) as engine:
        runner = engine._loop.engine.runner

        def cancelling(self) -> bool:
            if runner.live == 2:  # some of it has been read
                assert handed_in.wait(TIMEOUT)
                tickets[0].cancel()
            return step(self)

        monkeypatch.setattr(Engine, "step", cancelling)
        other = engine.submit([20, 21], LONG)
        tickets.append(engine.embed(list(range(3, 100))))
        handed_in.set()
        assert tickets[0].results(TIMEOUT)[0].finish_reason == "cancelled"
        with pytest.raises(EngineClosed, match="cancelled before it was there"):
            tickets[0].embedding(TIMEOUT)
        assert len(other.results(TIMEOUT)[0].ids) == 60 and runner.live == 0 and runner.positions < 20 + 61
        close(engine.embed(PROMPTS[0]).embedding(TIMEOUT)[None], model, PROMPTS[:1])
        assert runner.live == 0 and engine.health().bytes_reserved == 0


def test_a_defect_is_raised_where_the_vector_is_waited_for(double, tiny_tokenizer, monkeypatch, caplog):
    with LiveEngine(double(), tiny_tokenizer) as engine:
        with monkeypatch.context() as patch:
            patch.setattr("seodang.infer.engine.embedding.wide", lambda states: 1 / 0)
            with pytest.raises(UserError, match="internal error: ZeroDivisionError"):
                engine.embed([5, 6]).embedding(TIMEOUT)
        assert engine.embed([5, 6]).embedding(TIMEOUT).shape == (32,) and engine._loop.engine.runner.live == 0


def test_what_cannot_be_embedded_is_refused_by_name(tiny, tiny_tokenizer):
    model, longest = tiny("llama"), [5] * 256
    with LiveEngine(model, tiny_tokenizer, cache_bytes=open_runner(model).bytes_for(100)) as engine:
        with pytest.raises(UserError, match=r"\(200 \+ 1\) positions .*: shorten the prompt, or raise the budget"):
            engine.embed([5] * 200)
    assert embed(model, tiny_tokenizer, [longest]).shape == (1, 32) and embed(model, tiny_tokenizer, []).shape == (0, 32)
    for prompts, message in (
        ([longest + [5]], "prompt 1 has 257 tokens, more than the 256 positions"), (["ab", ""], "prompt 2 is empty"), ("ab", "put the one prompt in a list"),
        ([[999]], "prompt 1 has the id 999"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            embed(model, tiny_tokenizer, prompts)
    with pytest.raises(UserError, match="1 attention masks for 2 prompts"):
        embed(model, tiny_tokenizer, ["a", "b"], [[1]])
    with pytest.raises(UserError, match="t5 is an encoder-decoder model"):
        embed(tiny("t5"), tiny_tokenizer, ["ab"])
    sizes = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    stateful = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **sizes)).eval()
    with LiveEngine(stateful, tiny_tokenizer) as engine:
        with pytest.raises(UserError, match="embeddings need hidden states, which the runner of mamba does not give"):
            engine.embed("ab")
