"""Which texts are scored at a time."""

from seodang.recipes.evaluation import likelihoods


def test_the_choices_of_a_question_are_scored_together(monkeypatch):
    monkeypatch.setattr(likelihoods, "TEXTS_A_CALL", 3)

    def pieces(*counts):
        texts = [(index, "text") for index, count in enumerate(counts) for _ in range(count)]
        return [[index for index, _ in texts[some]] for some in likelihoods.together(texts)]

    assert pieces(2, 2, 1, 4, 1) == [[0, 0, 1, 1], [2, 3, 3, 3, 3], [4]]
    assert pieces(1, 1, 1, 1) == [[0, 1, 2], [3]]
    assert pieces(5) == [[0] * 5]
    assert pieces() == []
