"""Four bits chosen by a text: each matrix by the inputs that it has in the model as it will be, which is checked on the finished model."""

import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer import load, open_runner
from seodang.infer.checkpoint import calibrate
from seodang.infer.checkpoint.calibrate import CHANCE, DAMPING, calibrated, importances, units_of
from seodang.infer.checkpoint.calibration_text import LEAST, calibration_rows
from seodang.infer.checkpoint.quantise import quantise
from seodang.infer.checkpoint.sensitivity import kept_in_8_bits, sensitivities, weight_of
from seodang.infer.kernels.compensated_rounding import compensated
from seodang.infer.kernels.four_bits import Grid, four_bits, written_out
from seodang.infer.kernels.quantised_linear import Linear4, Linear8
from seodang.infer.runners.families.parts import parts_of
from seodang.infer.runners.native.grouped_linear import GroupedLinear4, GroupedLinear8
from seodang.infer.runners.native_runner import NativeRunner

GRID = Grid(0, torch.float16)
WIDE = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96}


@pytest.fixture
def rows():
    """A text of a few ids that come often and in runs, as words do."""
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(8, 24, generator=generator) ** 3 * 120 + 3).long()


def inputs_of(model, linear, rows):
    """What a linear layer is given of every row, by plain transformers."""
    seen = []
    hook = linear.register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        for row in rows:
            model(input_ids=row[None], use_cache=False)
    hook.remove()
    return torch.cat(seen)


def units(model):
    return [unit for layer in parts_of(model).layers for unit in units_of(layer)]


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "phi3", "olmo2", "qwen2"])
def test_each_matrix_is_rounded_for_the_inputs_that_it_has_in_the_finished_model(varied, kind, rows):
    model, was = varied(kind), varied(kind)
    plan = calibrated(model, rows, GRID)
    olds = dict(zip(*([linear for unit in units(each) for linear in unit] for each in (model, was))))
    assert len(plan) == len(olds)
    for unit in units(model):
        x = inputs_of(model, unit[0], rows)
        for linear in unit:
            wanted = compensated(weight_of(olds[linear]).contiguous(), x.T @ x / len(x), GRID, 0.01)
            same = plan[linear][0] == wanted[0]
            assert same.float().mean() > 0.99  # sums in another order move one that lay between two levels, and what makes up for it
            assert torch.equal(weight_of(linear), written_out(plan[linear], GRID))
            assert not torch.equal(plan[linear][0].int(), four_bits(weight_of(olds[linear]).contiguous(), *GRID)[0])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_model_that_is_made_has_the_weights_that_were_chosen_and_is_nearer_on_the_text(varied, dequantised, kind, rows, monkeypatch):
    changes = WIDE if kind == "llama" else {"n_embd": 64}
    exact, plain, made = (varied(kind, **changes) for _ in range(3))
    quantise(plain, "int4")
    chosen = []
    monkeypatch.setattr("seodang.infer.checkpoint.quantise.calibrated", lambda *args: chosen.append(calibrated(*args)) or chosen[0])
    rounded = [weight_of(linear) for unit in units(made) for linear in unit]
    quantise(made, "int4", rows)
    kept = [weight_of(linear) for unit in units(dequantised(made)) for linear in unit]  # GPT-2's too are nn.Linear by now, [out, in]
    assert all(torch.equal(written_out(part, GRID), weight) for part, weight in zip(chosen[0].values(), rounded, strict=True))
    assert all(map(torch.equal, rounded, kept))
    with torch.no_grad():
        logits, *others = (model(input_ids=rows).logits for model in (exact, dequantised(plain), dequantised(made)))
    loss = [torch.nn.functional.kl_div(other.log_softmax(-1), logits.log_softmax(-1), log_target=True, reduction="sum").item() for other in others]
    assert loss[1] < 0.75 * loss[0]


def test_a_model_with_matrices_of_both_kinds_speaks_natively_and_by_torch(varied, dequantised, rows, monkeypatch):
    tokens = rows[0].tolist()
    for native, kinds in ((True, (GroupedLinear4, GroupedLinear8)), (False, (Linear4, Linear8))):
        if not native:
            monkeypatch.setenv("SEODANG_NATIVE", "0")
        model = varied("llama", **WIDE)
        quantise(model, "int4", rows, 6.5)
        wholes = [module for module in model.model.modules() if isinstance(module, kinds)]
        assert {type(whole) for whole in wholes} == set(kinds)
        with torch.no_grad():
            wanted = dequantised(model).double()(input_ids=rows[:1]).logits[0]
            rounded = dequantised(model).bfloat16()(input_ids=rows[:1]).logits[0]
        runner = open_runner(model)
        assert (type(runner) is NativeRunner) == native
        slot = runner.allocate()
        got = torch.cat([runner.forward([slot], [tokens[:20]], [20]), *(runner.forward([slot], [[id]], [1]) for id in tokens[20:])])
        assert (got.double() - wanted).square().mean().sqrt() < 3 * (rounded.double() - wanted).square().mean().sqrt()


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "phi3", "olmo2"])
def test_without_a_text_inputs_count_by_their_squares_over_ids_drawn_by_chance(varied, kind):
    model = varied(kind)
    drawn = torch.randint(128, (1, CHANCE), generator=torch.Generator().manual_seed(0))
    counts = importances(model)
    for unit in units(model):
        squares = inputs_of(model, unit[0], drawn).square().mean(dim=0)
        for linear in unit:
            torch.testing.assert_close(counts[linear], squares + DAMPING * squares.mean())
    assert len(counts) == sum(map(len, units(model)))


def test_4_bits_without_a_text_are_nearer_where_inputs_are_large(varied, dequantised, rows, monkeypatch):
    """Two states out of 64 are large in every token, as in trained models."""

    def build():
        model = varied("llama", **WIDE)
        model.model.embed_tokens.weight.data[:, [7, 40]] += 6
        return model

    exact, made, even = build(), build(), build()
    quantise(made, "int4")
    monkeypatch.setattr("seodang.infer.checkpoint.quantise.importances", lambda model: dict.fromkeys(importances(model)))
    quantise(even, "int4")
    first = [weight_of(parts_of(model).layers[0].qkv[0]) for model in (exact, dequantised(made), dequantised(even))]
    assert torch.equal(first[2], written_out(four_bits(first[0], *GRID), GRID))
    near, far = ((each - first[0])[:, [7, 40]].abs().mean() for each in first[1:])
    assert near < 0.75 * far
    with torch.no_grad():
        logits, *others = (model(input_ids=rows).logits for model in (exact, dequantised(made), dequantised(even)))
    apart = [(other - logits).square().mean() for other in others]
    assert apart[0] < 0.7 * apart[1]


def test_weights_that_no_input_was_seen_of_are_rounded_for_themselves(varied):
    model = varied("llama")
    model.model.layers[1].input_layernorm.weight.data[3] = torch.nan
    counts = importances(model)
    for number, layer in enumerate(parts_of(model).layers):
        assert [(counts[linear] is None) for linear in layer.linears] == [number == 1] * 7


def test_the_same_text_chooses_the_same(varied, rows):
    first, second = (list(calibrated(varied("llama"), rows, GRID, 6.0).values()) for _ in range(2))
    assert sum(part is None for part in first) > 0
    assert all(a is b is None or all(map(torch.equal, a, b)) for a, b in zip(first, second, strict=True))


def test_what_a_matrix_loses_is_half_the_square_of_how_the_likelihood_moves_with_its_error(varied):
    """Of rows of two ids one position is judged, so the square is of one number, which finite differences give; matrices that stand together move together."""
    model = varied("llama").double()
    pairs = torch.tensor([[5, 90], [17, 4], [33, 33]])
    counts = importances(varied("llama"))
    counts = dict(zip((linear for unit in units(model) for linear in unit), counts.values()))
    found = sensitivities(model, pairs, units(model), GRID, counts)

    def loss(row):
        with torch.no_grad():
            return -model(input_ids=row[None]).logits[0, 0].log_softmax(-1)[row[1]].item()

    for unit, value in zip(units(model), found):
        errors = [written_out(four_bits(linear.weight.detach().float(), *GRID, counts[linear]), GRID).double() - linear.weight.detach() for linear in unit]
        squares = []
        for row in pairs:
            ends = []
            for step in (1e-2, -1e-2):
                for linear, error in zip(unit, errors):
                    linear.weight.data += step * error
                ends.append(loss(row))
                for linear, error in zip(unit, errors):
                    linear.weight.data -= step * error
            squares.append(((ends[0] - ends[1]) / 2e-2) ** 2)
        assert value == pytest.approx(sum(squares) / len(squares) / 2, rel=0.02)


def test_matrices_that_lose_most_a_weight_keep_8_bits_as_far_as_the_budget_goes():
    small, middle, large = ([torch.nn.Linear(32, outputs)] for outputs in (10, 20, 70))
    losses = [1.0, 3.0, 7.1]  # a weight: 0.1, 0.15, 0.101 in thirty-seconds
    kept = lambda bits: [unit[0] in kept_in_8_bits([small, middle, large], losses, bits) for unit in (small, middle, large)]
    assert kept(5.0) == [False, False, False]
    assert kept(5.0 + 3.5 * 0.10) == [True, False, False]  # the one that loses most does not fit
    assert kept(5.0 + 3.5 * 0.20) == [False, True, False]
    assert kept(5.0 + 3.5 * 0.30) == [True, True, False]
    assert kept(5.0 + 3.5 * 0.90) == [False, True, True]
    assert kept(8.5) == [True, True, True]


def test_a_line_tells_of_each_layer(varied, rows):
    told = []
    calibrated(varied("llama"), rows, GRID, 6.0, told.append)
    assert told[0].startswith("calibration: ") and "of 8 matrices keep 8 bits" in told[0]
    assert [line.split(",")[0] for line in told[1:]] == ["calibration: layer 1 of 2", "calibration: layer 2 of 2"] and " s, " in told[1]


def test_texts_lie_end_to_end_in_rows_with_ends_between(tiny, tiny_tokenizer):
    model = tiny("llama", max_position_embeddings=100)
    rows = calibration_rows(tiny_tokenizer, model, ["abc" * 500, "cd" * 634, "e" * 20_000, "f"])
    ids = [id for text in ("abc" * 500, "cd" * 634, "e" * 20_000) for id in [*tiny_tokenizer(text)["input_ids"], tiny_tokenizer.eos_token_id]]
    assert len(ids) > 20_000 and rows.shape == (163, 100) and rows.flatten().tolist() == ids[:16_300]


def test_what_cannot_choose_is_refused_before_anything_is_computed(tiny, tiny_tokenizer, varied, tmp_path, monkeypatch, rows):
    monkeypatch.setattr("seodang.infer.checkpoint.load._load_weights", None)
    text, records = tmp_path / "a.txt", tmp_path / "a.jsonl"
    text.write_text("some words\n")
    records.write_text('{"text": "some words"}\n')
    for options, said in (
        ({"weights": "int8", "calibration": text}, "calibration is for weights=int4, got weights=int8"),
        ({"calibration": text}, "calibration is for weights=int4, got weights=None"),
        ({"weights": "int4", "bits": 5.5}, "bits=5.5 says how many .* give calibration=FILE"),
        ({"weights": "int4", "calibration": text, "bits": 4.5}, r"bits must be 5.0 to 8.5, .* got 4.5"),
        ({"weights": "int4", "calibration": tmp_path / "none.txt"}, "needs a file of plain text, and '.*none.txt' is no file"),
        ({"weights": "int4", "calibration": text, "bits": "5.5"}, r"bits must be 5.0 to 8.5, .* got '5.5'"),
        ({"weights": "int4", "calibration": tmp_path}, "is no file"),
        ({"weights": "int4", "calibration": b"text"}, "needs a file of plain text, or a list of texts, got b'text'"),
        ({"weights": "int4", "calibration": [5]}, r"or a list of texts, got \[5\]"),
        ({"weights": "int4", "calibration": records}, "holds records: write their texts into a .txt file"),
    ):
        with pytest.raises(UserError, match=said):
            load("default", **options)
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\xff\x00\x01")
    with pytest.raises(UserError):
        load("default", weights="int4", calibration=tmp_path / "b.txt")
    text.write_text("")
    for short in (text, ["abc"], []):
        with pytest.raises(UserError, match=f"needs {LEAST:,} tokens of text, and .* give a longer text"):
            calibration_rows(tiny_tokenizer, tiny("llama"), short)
    with pytest.raises(UserError, match=f"the text has the id {tiny_tokenizer('z')['input_ids'][0]}, and the model embeddings for 60"):
        calibration_rows(tiny_tokenizer, tiny("llama", vocab_size=60), ["z" * LEAST])
    broken = varied("llama")
    broken.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match="layer 2 has inputs that are no numbers on this text"):
        calibrated(broken, rows, GRID)


def test_a_folder_is_loaded_by_a_calibration_file(tiny, tiny_tokenizer, tmp_path, monkeypatch):
    tiny("llama").save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 128)
    seen = []
    monkeypatch.setattr("seodang.infer.checkpoint.quantise.calibrated", lambda *args: seen.append(args) or calibrate.calibrated(*args))
    model, _ = load(tmp_path, weights="int4", calibration=tmp_path / "text.txt", bits=6.0)
    assert seen[0][1].shape == (9, 256) and seen[0][3] == 6.0
    assert {type(module) for module in model.model.modules()} & {GroupedLinear8, Linear8}
