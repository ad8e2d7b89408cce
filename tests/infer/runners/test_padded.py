"""The runner for architectures with an attention of their own: the same calls, the same logits as the model's own."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from seodang.infer.runners.open import open_runner
from seodang.infer.runners.padded import PaddedRunner

BLOOM = {"n_layer": 2, "n_head": 4}
GPTJ = {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 128}
MPT = {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128}
FALCON = {"num_hidden_layers": 2, "num_attention_heads": 4}
PADDED = {"bloom": BLOOM, "gptj": GPTJ, "mpt": MPT, "falcon": FALCON}


def build(kind: str, settings: dict):
    sizes = {"vocab_size": 128, "hidden_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**sizes, **settings})).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def ids(n: int, seed: int) -> list[int]:
    return torch.randint(3, 128, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def whole(model, tokens: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]


@pytest.mark.parametrize("kind", PADDED)
def test_padded_logits_equal_the_models_own(kind):
    model = build(kind, PADDED[kind])
    runner = open_runner(model)
    assert isinstance(runner, PaddedRunner) or kind == "gptj"  # whose attention is replaceable since transformers 5.24
    a, b = ids(16, 1), ids(11, 2)
    rows = [runner.allocate(), runner.allocate()]
    parts = [runner.forward(rows, [a[:9], b[:4]], [1, 1])]
    parts += [runner.forward(rows, [a[9:10], b[4:5]], [1, 1])]  # the same rows: their cache grows
    parts += [runner.forward([rows[1]], [b[5:6]], [1])]  # one alone
    parts += [runner.forward(rows[::-1], [b[6:7], a[10:13]], [1, 3])]  # unlike numbers, another order
    runner.truncate(rows[0], 11)  # the last two were guesses
    [fork] = runner.fork([rows[0]])
    parts += [runner.forward([fork, rows[0], rows[1]], [a[11:12], [5], b[7:8]], [1, 1, 1])]
    want_a, want_b = whole(model, a), whole(model, b)
    expected = [
        torch.stack([want_a[8], want_b[3]]), torch.stack([want_a[9], want_b[4]]), want_b[5:6],
        torch.cat([want_b[6:7], want_a[10:13]]), torch.stack([want_a[11], whole(model, [*a[:11], 5])[-1], want_b[7]]),
    ]  # fmt: skip
    for got, want in zip(parts, expected):
        torch.testing.assert_close(got, want, rtol=0, atol=5e-5)
    runner.release([rows[0], rows[1], fork])
    assert runner.live == 0


def test_hidden_states_and_a_copied_past_equal_the_models_own():
    model = build("bloom", BLOOM)
    runner = open_runner(model)
    a, b = ids(9, 1), ids(5, 2)
    rows = [runner.allocate(), runner.allocate()]
    passed = runner.observe(rows, [a[:8], b], [1, 1], [0, 1, 2])
    for layer, got in passed.states.items():
        with torch.no_grad():
            want = [model(input_ids=torch.tensor([own]), output_hidden_states=True).hidden_states[layer][0] for own in (a[:8], b)]
        torch.testing.assert_close(got, torch.cat(want), rtol=0, atol=5e-5)
    torch.testing.assert_close(runner.head(passed.states[2][[7, 12]]), passed.logits, rtol=0, atol=5e-5)
    runner.copy(rows[0], rows[1], 0)
    got = runner.forward(rows, [[5], [6]], [1, 1])
    torch.testing.assert_close(got, torch.stack([whole(model, [*a[:8], new])[-1] for new in (5, 6)]), rtol=0, atol=5e-5)
    runner.refresh(keep=rows[1:])
    assert runner.live == 1 and runner.length(rows[1]) == 9


@torch.no_grad()
def test_a_slot_that_others_leave_behind_does_not_keep_their_memory():
    model = build("falcon", FALCON)
    runner = open_runner(model)
    tokens = [ids(20, seed) for seed in range(6)]
    slots = [runner.allocate() for _ in tokens]
    runner.forward(slots, [each[:12] for each in tokens], [1] * 6)
    of_one = runner.memory // 6
    runner.forward(slots[1:], [[each[12]] for each in tokens[1:]], [1] * 5)  # the first stays where all six were
    assert runner.memory == of_one + 5 * of_one // 12 * 13
    runner.release(slots[3:])  # and now two stay where there were five
    assert runner.memory == of_one + 2 * of_one // 12 * 13
    runner.release(slots[2:3])
    assert runner.memory == of_one + of_one // 12 * 13
    logits = runner.forward(slots[:2], [tokens[0][12:], tokens[1][13:]], [1, 1])
    torch.testing.assert_close(logits, torch.stack([whole(model, tokens[at])[-1] for at in (0, 1)]), rtol=0, atol=5e-5)
