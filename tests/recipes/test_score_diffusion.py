"""seodang score on a diffusion checkpoint: the bound on each answer's likelihood, with its error."""

import json
import math

import pytest

from seodang.infer import Draws, score_bound
from seodang.infer.checkpoint.load import load
from seodang.infer.runners.ragged import RaggedRunner
from seodang.recipes.score import main

ANSWERS = [{"prompt": "abc", "completion": "hello"}, {"prompt": "x", "completion": "a longer one"}, {"prompt": "y", "completion": "ab"}]
RANKED = [{"prompt": "abc", "responses": ["hello", "hallo"], "ranks": [0, 1]}, {"prompt": "abc", "responses": ["ab", "bc", "hello there"], "ranks": [1, 0, 2]}]


@pytest.fixture
def checkpoint(declared):
    """`checkpoint(**diffusion)`: the folder of a tiny diffusion model, and what loads from it."""

    def make(**says) -> tuple:
        folder = declared(**{"shift": 1, "attention": "prompt_causal", **says})
        return str(folder), *load(folder, device="cpu", dtype="float32")

    return make


@pytest.fixture
def scored(tmp_path, capsys):
    """`scored(folder, records, *options)`: the lines that are written."""

    def run(folder, records, *options) -> list[dict]:
        data = tmp_path / "data.jsonl"
        data.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        assert main([folder, "--data", str(data), "--device", "cpu", "--dtype", "float32", *map(str, options)]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def asked(text):
    return [{"role": "user", "content": text}]


def test_each_answer_has_its_bound_and_the_last_line_all_of_them(checkpoint, scored):
    folder, model, tokenizer = checkpoint()
    *lines, totals = scored(folder, ANSWERS, "--draws", 8, "--seed", 5, "--tokens")
    bounds = score_bound(model, tokenizer, [asked(each["prompt"]) for each in ANSWERS], [each["completion"] for each in ANSWERS], Draws(8, seed=5))
    for line, bound in zip(lines, bounds, strict=True):
        n = len(bound.shares)
        assert (line["elbo"], line["elbo_se"], line["tokens"]) == (pytest.approx(bound.value, rel=1e-5), pytest.approx(bound.error, rel=1e-4), n)
        assert line["elbo_per_token"] == pytest.approx(bound.value / n, rel=1e-5) and line["elbo_per_token_se"] == pytest.approx(bound.error / n, rel=1e-4)
        assert line["perplexity_bound"] == pytest.approx(math.exp(-bound.value / n), rel=1e-4)
        assert line["logprobs"] == pytest.approx(bound.shares.tolist(), rel=1e-4, abs=1e-5) and "logprob" not in line
    assert lines[2]["elbo_se"] == 0 != lines[1]["elbo_se"]  # "ab" and the end of its turn have seven masks
    values, tokens = [line["elbo"] for line in lines], [line["tokens"] for line in lines]
    mean = sum(values) / sum(tokens)
    assert (totals["answers"], totals["tokens"], totals["elbo"]) == (3, sum(tokens), pytest.approx(sum(values)))
    assert totals["elbo_per_token"] == pytest.approx(mean)
    assert totals["elbo_per_token_se"] == pytest.approx(math.hypot(*(line["elbo_se"] for line in lines)) / sum(tokens))
    spread = math.sqrt(1.5 * sum((value - mean * n) ** 2 for value, n in zip(values, tokens))) / sum(tokens)  # over the answers, draws included
    assert totals["elbo_per_token_sampling_se"] == pytest.approx(spread)
    assert scored(folder, ANSWERS, "--draws", 8, "--seed", 5, "--tokens") == [*lines, totals]
    assert scored(folder, ANSWERS, "--seed", 6)[1]["elbo"] != lines[1]["elbo"]


def test_of_preferences_answers_share_their_masks_and_the_margins_error_is_told(checkpoint, scored):
    folder, model, tokenizer = checkpoint()
    first, ranked, totals = scored(folder, RANKED, "--draws", 16)
    assert first["margin"] == pytest.approx(first["chosen"]["elbo"] - first["rejected"]["elbo"])
    assert 0 < first["margin_se"] < math.hypot(first["chosen"]["elbo_se"], first["rejected"]["elbo_se"])  # they begin alike
    values = [each["elbo"] for each in ranked["answers"]]
    margins = [values[0] - values[1], values[0] - values[2], values[1] - values[2]]
    assert [each["rank"] for each in ranked["answers"]] == [0, 1, 2] and ranked["margin"] == pytest.approx(sum(margins) / 3)
    short, long = ranked["answers"][0], ranked["answers"][2]  # of three tokens each mask was taken
    assert short["elbo_se"] == 0 and ranked["margin_se"] == pytest.approx(2 * long["elbo_se"] / 3)
    margins.append(first["margin"])
    assert (totals["pairs"], totals["chosen_above"]) == (4, sum(margin > 0 for margin in margins) / 4) and totals["margin"] == pytest.approx(sum(margins) / 4)
    assert totals["margin_se"] == pytest.approx(math.hypot(first["margin_se"], 3 * ranked["margin_se"]) / 4)


def test_on_a_canvas_answers_are_filled_up_as_in_training(checkpoint, scored):
    folder, model, tokenizer = checkpoint(attention="bidirectional", shift=0)
    [line, _] = scored(folder, ANSWERS[:1], "--canvas", 8, "--draws", 4)
    ids = [*tokenizer("hello")["input_ids"], 2, 2, 2]  # the end of the turn ends the text, too
    prompt = tokenizer.apply_chat_template(asked("abc"), add_generation_prompt=True)["input_ids"]
    [bound] = score_bound(model, tokenizer, [prompt], [ids], Draws(4))
    assert line["tokens"] == 8 and line["elbo"] == pytest.approx(bound.value, rel=1e-5)


def test_a_model_that_speaks_both_ways_is_scored_from_left_to_right_unless_masks_are_asked_for(checkpoint, scored):
    folder, *_ = checkpoint(attention="prompt_causal", autoregressive=True)
    assert "logprob" in scored(folder, ANSWERS)[0] and "elbo" in scored(folder, ANSWERS, "--draws", 2)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--draws", "0"], "draws must be a whole number of at least 1, got 0"),
        (["--estimator", "time"], "there is no estimator 'time': did you mean times"),
        (["--canvas", "0"], "canvas must be at least 1, got 0"),
        ([], "data.jsonl line 2: the answer contains the mask token z, which a diffusion model never says"),
    ],
)
def test_mistakes_are_told_before_any_compute(checkpoint, tiny_tokenizer, tmp_path, monkeypatch, capsys, options, message):
    folder, *_ = checkpoint(mask=tiny_tokenizer.convert_tokens_to_ids("z"))
    (tmp_path / "data.jsonl").write_text('{"prompt": "z", "completion": "a"}\n{"prompt": "a", "completion": "bz"}\n')
    monkeypatch.setattr("seodang.infer.diffusion.likelihood._ask", lambda *args: pytest.fail("computed something"))
    assert main([folder, "--data", str(tmp_path / "data.jsonl"), "--device", "cpu", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["draws", "seed", "canvas"])
def test_a_model_that_speaks_from_left_to_right_has_no_draws(base, tmp_path, monkeypatch, capsys, option):
    (tmp_path / "data.jsonl").write_text('{"prompt": "z", "completion": "a"}\n')
    monkeypatch.setattr(RaggedRunner, "forward", lambda *args: pytest.fail("computed something"))
    assert main([str(base), "--data", str(tmp_path / "data.jsonl"), "--device", "cpu", f"--{option}", "4"]) == 2
    assert f"--{option} 4 is of masked diffusion, but this llama speaks from left to right, and its score is exact" in capsys.readouterr().err


def test_what_only_one_kind_of_model_can_say_is_asked_of_that_kind(checkpoint, tiny_llama, tiny_tokenizer):
    from seodang.data.errors import UserError
    from seodang.infer import score

    _, model, tokenizer = checkpoint()
    with pytest.raises(UserError, match="score reads from left to right, but this llama is a masked-diffusion model: .* score_bound"):
        score(model, tokenizer, ["a"], ["b"])
    with pytest.raises(UserError, match="a bound by masks is of masked diffusion, but this llama speaks from left to right"):
        score_bound(tiny_llama, tiny_tokenizer, ["a"], ["b"])
    with pytest.raises(UserError, match="answer 2 contains the mask token"):
        score_bound(model, tokenizer, ["a", "b"], [[5], [5, 127]])
