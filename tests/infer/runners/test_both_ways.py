"""Slots whose new positions see one another: the logits of the model's own forward pass under the mask that says so."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from seodang.data.errors import UserError
from seodang.infer.runners.direct import DirectRunner
from seodang.infer.runners.open import open_runner
from seodang.infer.runners.paradigm import Diffusion, declare
from seodang.infer.runners.ragged import RaggedRunner

LONGROPE = {
    "max_position_embeddings": 64, "original_max_position_embeddings": 16, "sliding_window": None,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [1.5, 2.0, 3.0, 4.0],
        "original_max_position_embeddings": 16,
    },
}  # fmt: skip
SIZES = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture(params=["llama", "ragged", "gpt2", "phi3"])
def runner(request, double):
    """Of a layer-by-layer family, the same through the model's modules, learnt positions, and positions that turn by the length of the whole."""
    if request.param == "ragged":
        return RaggedRunner(double("llama"))
    if request.param != "phi3":
        return open_runner(double(request.param))
    torch.manual_seed(0)
    return open_runner(AutoModelForCausalLM.from_config(AutoConfig.for_model("phi3", **SIZES, **LONGROPE)).double().eval())


def ids(n: int, seed: int) -> list[int]:
    return torch.randint(3, 128, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def own(model, row: list[int], wholes: list[tuple[int, int]]) -> torch.Tensor:
    """The model's logits of a row, [n, vocab], where the positions of each of these stretches see one another."""
    seen = torch.ones(len(row), len(row), dtype=torch.bool).tril()
    for begin, end in wholes:
        seen[begin:end, begin:end] = True
    mask = torch.zeros(1, 1, len(row), len(row), dtype=torch.double).masked_fill(~seen, -torch.inf)
    return model(input_ids=torch.tensor([row]), attention_mask=mask, use_cache=False).logits[0]


@torch.no_grad()
def passed(model, brought: list[int], positions: range, past: DynamicCache):
    """The model's output for some ids, which see one another and all of the past."""
    seen = torch.zeros(1, 1, len(brought), past.get_seq_length() + len(brought), dtype=torch.double)
    return model(input_ids=torch.tensor([brought]), position_ids=torch.tensor([positions]), attention_mask=seen, past_key_values=past, use_cache=True)


def in_place(model, layers: list[tuple], at: int, brought: list[int]) -> tuple[torch.Tensor, list[tuple]]:
    """Logits of ids that take the place of as many from `at` on, [n, vocab], and the keys and values, in the order of their positions, with theirs."""
    others = [place for place in range(layers[0][0].shape[2]) if not at <= place < at + len(brought)]
    places, past = range(at, at + len(brought)), DynamicCache()
    for number, parts in enumerate(layers):
        past.update(*(part[:, :, others] for part in parts), number)
    out = passed(model, brought, places, past)
    order = torch.tensor([*others, *places]).argsort()
    return out.logits[0], [(layer.keys[:, :, order], layer.values[:, :, order]) for layer in out.past_key_values.layers]


def near(got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_new_positions_see_one_another_and_all_that_stands_before_beside_slots_that_look_back(runner):
    model, (prompt, canvas, other) = runner.model, (ids(6, 1), ids(14, 2), ids(9, 3))
    slots = [runner.allocate() for _ in range(3)]
    runner.forward(slots[:2], [prompt, other[:8]], [0, 1])
    runner.attend_both_ways(slots[0], True)
    runner.attend_both_ways(slots[2], True)
    got = runner.forward([slots[2], slots[1], slots[0]], [other, other[8:], canvas], [9, 1, 14])  # a whole, a step and a canvas
    near(got[:9], own(model, other, [(0, 9)]))
    near(got[9:10], own(model, other, [])[8:])
    near(got[10:], own(model, prompt + canvas, [(6, 20)])[6:])


def test_the_first_ids_of_a_pass_may_look_back_where_those_behind_them_see_one_another(runner):
    model, (prompt, canvas, other) = runner.model, (ids(6, 1), ids(14, 2), ids(9, 3))
    slots = [runner.allocate() for _ in range(3)]
    if not runner.capabilities.parts:
        with pytest.raises(UserError, match="phi3 turns its positions by the length of the whole: read the first 6 ids of slot 0 by themselves"):
            runner.attend_both_ways(slots[0], True, 6)
        return
    runner.forward(slots[1:2], [other[:8]], [0])
    runner.attend_both_ways(slots[0], True, 6)
    runner.attend_both_ways(slots[2], True, 1)
    got = runner.forward([slots[2], slots[1], slots[0]], [other, other[8:], prompt + canvas], [9, 1, 20])
    near(got[:9], own(model, other, [(1, 9)]))
    near(got[9:10], own(model, other, [])[8:])
    near(got[10:], own(model, prompt + canvas, [(6, 20)]))
    runner.truncate(slots[0], 6)
    near(runner.forward([slots[0]], [other], [9]), own(model, prompt + other, [(6, 15)])[6:])  # of later passes none does


def test_a_canvas_that_is_cut_off_leaves_the_prompt_as_it_was_and_one_that_stays_is_seen_by_the_next(runner):
    model, (prompt, wrong, first, second) = runner.model, (ids(6, 1), ids(14, 4), ids(5, 5), ids(8, 6))
    slot = runner.allocate()
    runner.forward([slot], [prompt], [1])
    runner.attend_both_ways(slot, True)
    runner.forward([slot], [wrong], [0])
    runner.truncate(slot, 6)
    near(runner.forward([slot], [first], [5]), own(model, prompt + first, [(6, 11)])[6:])
    near(runner.forward([slot], [second], [8]), own(model, prompt + first + second, [(6, 11), (11, 19)])[11:])
    runner.attend_both_ways(slot, False)
    runner.truncate(slot, 11)
    near(runner.forward([slot], [second], [1]), own(model, prompt + first + second, [(6, 11)])[18:])


def test_forks_and_copies_are_as_their_source_and_one_new_position_sees_what_it_always_does(runner):
    model, (prompt, canvas) = runner.model, (ids(4, 1), ids(5, 2))
    slot, target = runner.allocate(), runner.allocate()
    runner.forward([slot], [prompt], [1])
    runner.attend_both_ways(slot, True)
    [fork] = runner.fork([slot])
    runner.copy(slot, target)
    want = own(model, prompt + canvas, [(4, 9)])[4:]
    near(runner.forward([fork, target], [canvas, canvas], [5, 5]), torch.cat([want, want]))
    near(runner.forward([slot], [canvas[:1]], [1]), own(model, prompt + canvas[:1], [])[4:])
    runner.release([slot])
    near(runner.forward([runner.allocate()], [prompt], [4]), own(model, prompt, []))  # a new slot looks back


def test_ids_that_take_the_place_of_others_see_what_stands_before_and_behind_them_as_it_was(runner):
    """Beside a step of another slot and a whole one."""
    model, (row, new, one, other) = runner.model, (ids(12, 1), ids(4, 2), ids(1, 3), ids(9, 4))
    slot, step, whole = (runner.allocate() for _ in range(3))
    for each in (slot, whole):
        runner.attend_both_ways(each, True)
    runner.forward([slot, step], [row, other[:8]], [0, 0])
    if not runner.capabilities.rewrites:
        with pytest.raises(UserError, match="phi3 turns its positions by the length of the whole"):
            runner.rewrite(slot, 5)
        return

    layers = [(layer.keys, layer.values) for layer in passed(model, row, range(12), DynamicCache()).past_key_values.layers]
    want, layers = in_place(model, layers, 5, new)
    then, _ = in_place(model, layers, 3, one)
    runner.rewrite(slot, 5)
    got = runner.forward([slot, step, whole], [new, other[8:], other], [4, 1, 9])
    near(got[:4], want)
    near(got[4:5], own(model, other, [])[8:])
    near(got[5:], own(model, other, [(0, 9)]))
    assert runner.length(slot) == 12
    runner.rewrite(slot, 3)
    near(runner.forward([slot], [one], [1]), then)  # a single one, too
    with pytest.raises(UserError, match="slot .* has 2 positions from 10 on, whose place 4 new ids are to take"):
        runner.rewrite(slot, 10)
        runner.forward([slot], [new], [1])
    runner.truncate(slot, 0)
    near(runner.forward([slot], [row], [12]), own(model, row, [(0, 12)]))
    with pytest.raises(UserError, match="looks back, so what stands behind position 2 hangs on it"):
        runner.rewrite(step, 2)
    with pytest.raises(UserError, match="cannot be cut to 13"):
        runner.rewrite(slot, 13)


def test_a_bidirectional_checkpoint_is_proved_against_its_own_forward_pass(double):
    model = double("llama")
    assert isinstance(open_runner(model), DirectRunner)
    declare(model.config, Diffusion(127))
    runner = open_runner(model)
    slot = runner.allocate()
    runner.attend_both_ways(slot, True)
    with torch.no_grad():
        near(runner.forward([slot], [ids(7, 1)], [7]), model(input_ids=torch.tensor([ids(7, 1)])).logits[0])
    declare(model.config, Diffusion(127, attention="prompt_causal"))
    with torch.no_grad():
        near(read(model, ids(7, 1)), model(input_ids=torch.tensor([ids(7, 1)])).logits[0])


def read(model, row: list[int]) -> torch.Tensor:
    runner = open_runner(model)
    return runner.forward([runner.allocate()], [row], [len(row)])


def test_where_positions_cannot_see_what_follows_them_they_are_refused_by_name(tiny, fresh_tiny):
    with pytest.raises(UserError, match="mistral attends in a sliding window of 6"):
        runner = open_runner(tiny("mistral"))
        runner.attend_both_ways(runner.allocate(), True)
    model = fresh_tiny("gemma2")
    declare(model.config, Diffusion(127))
    with pytest.raises(UserError, match="^gemma2 attends in a sliding window of 6"):
        open_runner(model)
    bloom = AutoModelForCausalLM.from_config(AutoConfig.for_model("bloom", vocab_size=128, hidden_size=32, n_layer=2, n_head=4)).eval()
    runner = open_runner(bloom)
    slot = runner.allocate()
    runner.attend_both_ways(slot, False)  # as it is
    with pytest.raises(UserError, match="bloom lets no position see those that follow"):
        runner.attend_both_ways(slot, True)
    assert not runner.capabilities.both_ways
    declare(bloom.config, Diffusion(127))
    with pytest.raises(UserError, match="bloom does not fit any runner"):
        open_runner(bloom)

