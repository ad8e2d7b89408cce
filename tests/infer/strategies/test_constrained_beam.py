"""Forced words: against transformers 4.55 where it is sane, by brute force, and as texts."""

from itertools import product

import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer.constraints.forced_words import ForcedWords, words_of
from seodang.infer.engine.generate import generate
from seodang.infer.engine.params import SamplingParams
from seodang.infer.strategies import constrained_beam


def holds(ids: list[int], entry: list) -> bool:
    """Whether a phrase, or one of several, stands in the ids."""
    phrases = entry if isinstance(entry[0], list) else [entry]
    return any(ids[i : i + len(phrase)] == phrase for phrase in phrases for i in range(len(ids)))


def strict(case: dict) -> bool:
    """Whether transformers did what its documentation says: forced the words in the answer, and returned no answer without them."""
    return not case["fallback"] and not case["prompt_counts"]


def expected(case: dict) -> tuple[list, list]:
    right = case.get("unshared", case)
    return right["sequences"], right["scores"]


class OneAtATime(ForcedWords):
    """The progress as transformers counted it: one word at a time, and the token that breaks it off is looked at no more."""

    current, pending, done, had = None, None, 0, ()

    def accept(self, id):
        self.pending = list(range(len(self.words))) if self.pending is None else list(self.pending)
        tries = self.pending if self.current is None else [self.current]
        for word in tries:
            longer = [each for each in self.words[word] if each[: len(self.had) + 1] == (*self.had, id)]
            if longer:
                self.pending = [each for each in self.pending if each != word]
                complete = (*self.had, id) in longer
                self.current, self.had = (None, ()) if complete else (word, (*self.had, id))
                self.done += complete
                return
        if self.current is not None:
            self.pending, self.current, self.had = [*self.pending, self.current], None, ()

    @property
    def missing(self):
        return tuple(range(len(self.words) - self.done))

    @missing.setter
    def missing(self, value):
        pass

    @property
    def bank(self):
        begun = 0 if self.current is None else self.longest - max(map(len, self.words[self.current])) + len(self.had)
        return self.done * self.longest + begun

    def next_ids(self):
        left = range(len(self.words)) if self.pending is None else self.pending
        words = left if self.current is None else [self.current]
        matching = [each for word in words for each in self.words[word] if each[: len(self.had)] == self.had]
        return list(dict.fromkeys(each[len(self.had)] for each in matching))

    @property
    def still(self):
        left = range(len(self.words)) if self.pending is None else self.pending
        own = min((len(each) - len(self.had) for each in self.words[self.current]), default=0) if self.current is not None else 0
        return own + sum(min(map(len, self.words[word])) for word in left)


def test_the_search_is_that_of_transformers_4_save_how_it_counts_progress(golden, solved, monkeypatch):
    monkeypatch.setattr(constrained_beam, "ForcedWords", OneAtATime)
    cases = [(model, case) for model, case in golden("constrained_beam") if strict(case)]
    for model, case in cases:
        answers, scores = solved(model, case)
        assert answers == expected(case)[0]
        assert scores == pytest.approx(expected(case)[1], abs=1e-4)
    assert len(cases) > 60


def test_every_answer_contains_every_word_and_is_that_of_transformers_4_unless_a_token_broke_off_a_word(golden, solved):
    strictly, other = 0, 0
    for model, case in golden("constrained_beam"):
        answers, scores = solved(model, case)
        assert len({tuple(ids) for ids in answers}) == case["options"]["num_return_sequences"]
        assert all(holds(ids, entry) for ids in answers for entry in case["options"]["force_words_ids"])
        strictly += strict(case)
        other += strict(case) and (answers != expected(case)[0] or scores != pytest.approx(expected(case)[1], abs=1e-4))
    assert strictly > 60 and other == 3  # 5 5 6 holds the phrase 5 6, which transformers overlooks


WORDS = [[[4, 5]], [[5], [3, 3]], [[[4, 1], [0, 0]], [5]], [[5, 5, 0]]]


@pytest.mark.parametrize("words", WORDS)
def test_beams_as_wide_as_the_tree_find_the_likeliest_sequences_that_contain_the_words(fresh_tiny, tiny_tokenizer, words):
    model, depth, prompt = fresh_tiny(vocab_size=6).double(), 4, [1, 3]
    every = torch.tensor([[*prompt, *ids] for ids in product(range(6), repeat=depth)])
    with torch.no_grad():
        logprobs = model(every).logits.log_softmax(dim=-1)[:, len(prompt) - 1 : -1].gather(-1, every[:, len(prompt) :, None])[..., 0]
    scores = {}
    for ids, each in zip(every[:, len(prompt) :].tolist(), logprobs.tolist()):
        end = ids.index(2) + 1 if 2 in ids else depth
        if all(holds(ids[:end], entry) for entry in words):
            scores[tuple(ids[:end])] = sum(each[:end]) / end
    params = SamplingParams(num_beams=6**depth, num_return_sequences=4, max_new_tokens=depth, force_words_ids=words)
    results = generate(model, tiny_tokenizer, [prompt], params)
    best = sorted(scores, key=scores.get, reverse=True)[:4]
    assert [tuple(each.ids) for each in results] == best
    assert [each.score for each in results] == pytest.approx([scores[ids] for ids in best])


def test_words_fill_an_answer_that_has_just_room_for_them(tiny_llama, tiny_tokenizer):
    params = SamplingParams(num_beams=2, num_return_sequences=2, max_new_tokens=6, force_words_ids=[[40, 41, 42], [60, 61, 62]])
    answers = [each.ids for each in generate(tiny_llama, tiny_tokenizer, [[5, 6]], params)]
    assert sorted(answers) == [[40, 41, 42, 60, 61, 62], [60, 61, 62, 40, 41, 42]]


def test_progress_is_by_what_stands_in_the_answer():
    words = ForcedWords(words_of(SamplingParams(force_words_ids=[[5, 6], [[7, 8, 9], [4]]])))
    assert (words.bank, words.still, words.next_ids()) == (0, 3, [5, 7, 4])
    seen = []
    for id in (5, 5, 6, 7, 8, 3, 4):
        words.accept(id)
        seen.append((words.missing, words.bank, words.still))
    # banks: a word that is there counts 3, as the longest; 5 alone is one short of its word
    assert seen == [((0, 1), 2, 2), ((0, 1), 2, 2), ((1,), 3, 1), ((1,), 4, 1), ((1,), 5, 1), ((1,), 3, 1), ((), 6, 0)]


def test_texts_are_forced_as_words_of_their_own(real_model, tokenizer):
    params = SamplingParams(num_beams=3, max_new_tokens=14, force_words=["purple", ["Tuesday", "Friday"]])
    [result] = generate(real_model, tokenizer, ["The colour of the house was"], params)
    assert " purple" in result.text and (" Tuesday" in result.text or " Friday" in result.text)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"force_words_ids": [5, 6]}, "entry 5"),
        ({"force_words_ids": [[]]}, "entry"),
        ({"force_words_ids": [[5, 2]]}, "ends the answer"),
        ({"force_words_ids": [[500]]}, "500"),
        ({"force_words_ids": [[5], [5]]}, "twice"),
        ({"force_words_ids": [[5, 6, 7], [8, 9]]}, "5 tokens"),
        ({"force_words": "house"}, "force_words must be a list"),
        ({"force_words": ["a house"], "stop": "house"}, "stop='house'"),
        ({"force_words": [" "]}, "nothing"),
        ({"force_words_ids": [[5]], "temperature": 1.0}, "random"),
        ({"strategy": "constrained_beam"}, "no words"),
    ],
)  # fmt: skip
def test_wrong_words_are_refused_by_name_before_anything_is_computed(tiny_llama, tiny_tokenizer, settings, named):
    with pytest.raises(UserError, match=named):
        generate(tiny_llama, tiny_tokenizer, [[5, 6]], SamplingParams(num_beams=3, max_new_tokens=4, **settings))


def test_words_that_a_filter_drops_are_an_error_and_not_left_out(tiny_llama, tiny_tokenizer):
    params = SamplingParams(num_beams=2, max_new_tokens=4, force_words_ids=[[40]], suppress_tokens=[40])
    with pytest.raises(UserError, match="0 answers within"):
        generate(tiny_llama, tiny_tokenizer, [[5, 6]], params)


def test_words_that_are_no_texts_are_refused(tiny_llama, tiny_tokenizer):
    with pytest.raises(UserError, match="force_words must be a list of texts"):
        generate(tiny_llama, tiny_tokenizer, [[5]], SamplingParams(num_beams=2, force_words=[5]))
