from seodang.train.stages.plan import Spread


def test_of_many_rows_as_many_as_are_looked_at_are_read_one_by_one():
    asked = []

    class Rows(list):
        def __getitem__(self, number):
            asked.append(number)
            return super().__getitem__(number)

    spread = Spread(Rows(range(10)), 4)
    assert list(spread) == [0, 2, 5, 7] == asked and len(spread) == 4
    assert list(Spread(Rows("abc"), 4)) == ["a", "b", "c"]
