"""The answers before and after training, side by side."""

from seodang.recipes.run.before_after import SHOWN, before_and_after


def test_each_answer_stands_under_its_own_name(tiny_tokenizer):
    rows = [{"prompt_ids": tiny_tokenizer("say")["input_ids"]}, {"prompt_ids": tiny_tokenizer("b" * 400)["input_ids"]}]
    assert before_and_after(tiny_tokenizer, rows, ["was", "x" * 400], ["is\n now", ""]) == [
        "prompt          say",
        "  before        was",
        "  after         is now",
        "prompt          " + "b" * SHOWN,
        "  before        " + "x" * SHOWN,
        "  after         ",
    ]
