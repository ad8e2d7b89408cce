"""Steps of continuous diffusion as steps of masked diffusion: when a word stays, what is guessed before."""

from seodang.infer.diffusion_lm.sampling import Denoised
from seodang.infer.diffusion_lm.words import train_words
from seodang.infer.explain.diffusion_steps import moments
from seodang.infer.explain.nearest_words import as_result, as_steps, lines, settled, shown_steps
from seodang.infer.text.token_labels import TokenLabels

TOKENIZER = train_words(["a b c d e"])  # ids 3 to 7
PREDICTED = [[4, 5, 7], [3, 5, 6], [3, 4, 6], [3, 5, 6]]
LOGPROBS = [[-1.0, -2.0, -3.0], [-0.1, -0.2, -0.3], [-0.1, -0.7, -0.2], [-0.01, -0.02, -0.03]]
HISTORY = [Denoised(step, [words], [words], [logprobs]) for step, words, logprobs in zip((30, 20, 10, 0), PREDICTED, LOGPROBS)]


def test_a_position_is_settled_from_when_its_word_stays():
    assert settled(PREDICTED) == [1, 3, 1] and settled([[1, 2]]) == [0, 0]
    assert shown_steps(4, 9) == [0, 1, 2, 3] and shown_steps(200, 3) == [0, 100, 199] and shown_steps(5, 1) == [4]


def test_lines_name_the_step_and_its_words_and_what_stays_is_green():
    shown = list(lines(HISTORY, 0, TokenLabels(TOKENIZER), 4))
    assert [line.plain for line in shown] == ["step 30  b c e", "step 20  a c d", "step 10  a b d", "step  0  a c d"]
    green = [[line.plain[span.start : span.end].strip() for span in line.spans if span.style == "bold green"] for line in shown]
    assert green == [[], ["a", "d"], ["a", "d"], ["a", "c", "d"]]


def test_as_steps_of_masked_diffusion_words_are_certain_once_they_stay_and_guesses_before():
    given = [Denoised(each.step, [[*each.words[0][:2], 6]], [[*each.predicted[0][:2], 6]], each.logprobs) for each in HISTORY]
    steps = as_steps(given, 0, [False, False, True])
    assert [step.canvas for step in steps] == [(None, None, 6), (3, None, 6), (3, None, 6), (3, 5, 6)]
    assert [step.committed for step in steps] == [(), ((0, 3, -0.1),), (), ((1, 5, -0.02),)]
    assert [step.guesses for step in steps] == [((0, 4, -1.0), (1, 5, -2.0)), (), ((1, 4, -0.7),), ()]
    assert [each.step for each in moments(steps)] == [2, 4, 0]  # the third was given
    result = as_result(steps, "a c d", TOKENIZER, 7)
    assert result.ids == [3, 5, 6] and result.logprobs == [-0.1, -0.02, 0.0] and result.forwards == 4
