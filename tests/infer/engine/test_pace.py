"""How much of waiting prompts a pass takes, by hand."""

import pytest

from seodang.data.errors import UserError
from seodang.infer.engine.pace import FIRST, LEAST, REST, WHOLE, Pace


def test_alone_prompts_have_a_whole_part_and_a_fixed_pace_has_it_always():
    assert Pace(512).room(streaming=False) == 512 == Pace(512, stall=None).room(streaming=True)
    assert Pace(512).whole(streaming=False) == 512 == Pace(512, stall=None).whole(streaming=True)


def test_beside_others_a_pass_takes_what_makes_it_last_so_many_times_the_usual():
    pace = Pace(512, stall=3.0)
    assert pace.room(True) == FIRST  # nothing is known yet
    for seconds in (0.1, 0.9, 0.1):  # the usual is the median, whatever the machine did meanwhile
        pace.took(seconds, 0, True)
    pace.took(0.3, 40, True)  # 40 positions took 0.2 s more than the usual pass: 5 ms each
    assert pace.room(True) == 40  # for twice the usual 0.1 s more
    pace.took(0.2, 40, True)  # 2.5 ms each by this pass, 3.75 by both
    assert pace.room(True) == 53
    for _ in range(5):
        pace.took(0.05, 40, True)  # faster than the usual: as good as free, but no pass takes more than twice what the last one had
    assert pace.room(True) == 80


def test_now_and_then_a_pass_goes_without_prompts_to_see_what_is_usual_by_now():
    pace = Pace(512, stall=2.0)
    pace.took(0.1, 0, True)
    for _ in range(REST):
        assert pace.room(True) > 0
        pace.took(0.2, 10, True)  # 10 ms a position
    assert pace.room(True) == 0 and pace.whole(True) == WHOLE and pace.room(False) == 512
    pace.took(0.5, 64, True)
    assert pace.room(True) > 0  # a short prompt that came in whole does not keep the long one waiting for ever


def test_what_a_pass_without_prompts_tells_counts_at_once():
    pace = Pace(512, stall=2.0)
    pace.took(0.1, 0, True)
    pace.took(0.2, 10, True)  # 10 ms a position
    assert pace.room(True) == 10
    pace.took(0.5, 0, True)  # the machine has become slower
    assert pace.room(True) == 20  # the median of 0.1 and 0.5 for 10 ms each is 30, and twice the last one 20


def test_however_slow_prompts_come_in_and_short_ones_whole():
    pace = Pace(512)
    pace.took(0.1, 0, True)
    pace.took(9.0, 40, True)
    assert pace.room(True) == LEAST and pace.whole(True) == WHOLE
    assert Pace(4).whole(False) == 4  # but for a part that is smaller still


def test_what_is_learned_alone_is_the_first_guess_beside_others():
    pace = Pace(512, stall=2.0)
    pace.took(1.0, 512, False)
    assert pace.room(True) == FIRST  # what a pass without prompts takes is not known yet
    pace.took(0.1, 0, True)
    assert pace.room(True) == 51  # 512 a second for 0.1 s


def test_a_part_of_nothing_and_a_stall_without_time_are_refused():
    with pytest.raises(UserError, match="part must be at least 1 position, got 0"):
        Pace(0)
    with pytest.raises(UserError, match="stall must be greater than 1, or None, got 1.0"):
        Pace(stall=1.0)
