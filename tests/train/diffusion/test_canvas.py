import pytest

from seodang.data.errors import UserError
from seodang.data.packing import pack
from seodang.train.diffusion.canvas import (
    Canvas,
    denoised_size,
    end_of_text_id,
    ends_of_answers,
    longest_canvas,
    prompt_length,
    refuse_mask,
    stretches,
)

CANVAS = Canvas(filling=0, ends=(2, 0), multiple=4)
TALK = {"input_ids": [5, 6, 7, 2, 8, 9, 10, 11, 12, 13, 2], "labels": [-100, -100, 7, 2, -100, -100, 10, 11, 12, 13, 2]}


def test_each_answer_of_a_dialogue_is_a_row_filled_up_to_a_multiple():
    first, second = CANVAS.rows([TALK])
    assert first == {"input_ids": [5, 6, 7, 2, 0, 0], "labels": [-100, -100, 7, 2, 0, 0]}
    assert second == {"input_ids": [5, 6, 7, 2, 8, 9, 10, 11, 12, 13, 2, 0, 0, 0], "labels": [-100] * 6 + [10, 11, 12, 13, 2, 0, 0, 0]}
    assert stretches(TALK["labels"]) == [(2, 4), (6, 11)]
    assert [prompt_length(row) for row in (first, second)] == [2, 6]


def test_no_row_is_filled_up_beyond_its_longest_and_none_that_has_no_end():
    first, second = CANVAS.rows([TALK], max_length=12)
    assert len(first["input_ids"]) == 6 and len(second["input_ids"]) == 12
    part = {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}
    assert list(CANVAS.rows([part])) == [part]
    assert list(Canvas(0, (2, 0)).rows([part])) == [part]
    assert list(Canvas(0, (7, 0), 4).rows([part], max_length=2)) == [part]


@pytest.mark.parametrize(
    ("canvas", "ids", "filled"),
    [
        (CANVAS, [5, 6, 2], 0),
        (CANVAS, [5, 6, 2, 0, 0], 2),
        (CANVAS, [5, 6, 0, 0, 0], 2),  # the first ends the text
        (CANVAS, [5, 6], 0),
        (Canvas(2, (2,), 4), [5, 6, 2], 0),
        (Canvas(2, (2,), 4), [5, 6, 2, 2], 1),
    ],
)
def test_what_ends_an_answer_is_not_what_it_is_filled_up_with(canvas, ids, filled):
    assert canvas.filled(ids) == filled


def test_rows_that_are_no_prompt_and_answer_are_refused():
    with pytest.raises(UserError, match="row 3 is not one prompt and one answer"):
        denoised_size(TALK, "row 3")
    rows = list(CANVAS.rows([TALK]))
    [packed] = pack(rows, 32)
    assert denoised_size(packed, "row 1") == (14, 13) and longest_canvas([packed]) == longest_canvas(rows) == 8


def test_an_answer_that_says_the_mask_is_refused():
    refuse_mask([TALK], 8, "<|mask|>")  # in a prompt it may stand
    with pytest.raises(UserError, match=r"answers contain the mask token <\|mask\|>"):
        refuse_mask([TALK], 12, "<|mask|>")


def test_the_end_of_text_is_eos_where_turns_end_with_another_token(tokenizer, tiny_tokenizer):
    text, turn = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert end_of_text_id(tokenizer) == text  # SmolLM2: its eos ends turns
    tokenizer.eos_token = "<|endoftext|>"  # as in Qwen
    assert end_of_text_id(tokenizer) == text and ends_of_answers(tokenizer, text) == (text, turn)
    assert end_of_text_id(tiny_tokenizer) == tiny_tokenizer.eos_token_id  # it has no other
    assert end_of_text_id(tiny_tokenizer, "<pad>") == 0
    with pytest.raises(UserError, match="'<end>' is no token of the tokenizer"):
        end_of_text_id(tiny_tokenizer, "<end>")
    tiny_tokenizer.eos_token = None
    with pytest.raises(UserError, match="--end_of_text"):
        end_of_text_id(tiny_tokenizer)
