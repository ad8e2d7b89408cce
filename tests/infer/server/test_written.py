"""Large answers are written as JSON in parts: the same bytes, and others have their turns meanwhile."""

import asyncio
import time

import pytest
from fastapi.responses import JSONResponse
from hypothesis import given, settings
from hypothesis import strategies as st

from seodang.infer.server.answering import joined
from seodang.infer.server.written import written

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=4), max_leaves=40)


@given(VALUES, st.sampled_from([1, 17, 4096, 4097, 10_000]))
@settings(max_examples=60, deadline=None)
def test_what_is_written_in_parts_is_what_is_written_in_one_go(value, times):
    assert asyncio.run(written(value)) == JSONResponse(value).body
    for many in ([value] * min(times, 50), [1.5] * times, [None, *[7] * times], [*[None] * times, [7], 5, {}], {"a": ["b" * times, {"c": [value] * 17}]}):
        assert asyncio.run(written(many)) == JSONResponse(many).body


def test_a_number_that_json_has_not_is_an_error():
    with pytest.raises(ValueError):
        asyncio.run(written({"a": [1.0] * 20 + [float("nan")]}))


def test_others_have_their_turns_while_a_large_answer_is_written():
    """The gaps are counted in the thread's own processor time, which a busy machine does not lengthen, against what the answer takes in one go."""
    token = {"token": " said", "logprob": -1.234567890123, "bytes": [32, 115, 97, 105, 100]}
    answer = {
        "choices": [{"index": n, "logprobs": {"content": [{**token, "top_logprobs": [token] * 20}] * 1_500}} for n in range(4)],
        "prompt_logprobs": [None, *[{"5": token, **{str(n): token for n in range(20)}}] * 2_000], "trace": [{"type": "choice", "stages": [["temperature", [[n, 0.5] for n in range(20)]]] * 3}] * 4_000, "tokens": list(range(300_000)),
    }  # fmt: skip
    gaps = []

    async def tick() -> None:
        last = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            gaps.append(now - last)
            last = now

    async def write() -> bytes:
        ticking = asyncio.create_task(tick())
        content = await written(answer)
        ticking.cancel()
        return content

    content = asyncio.run(write())
    began = time.thread_time()
    in_one_go = JSONResponse(answer).body
    seconds = time.thread_time() - began
    assert content == in_one_go and len(content) > 10 << 20
    assert len(gaps) > 10 and max(gaps) < seconds / 4


def test_lists_of_an_answer_grow_in_place_and_texts_and_numbers_are_as_before():
    first = {"index": 0, "text": "a", "logprobs": {"tokens": ["a"], "offset": None}, "finish_reason": None}
    tokens = first["logprobs"]["tokens"]
    found = joined(first, {"index": 0, "text": "b", "logprobs": {"tokens": ["b"], "offset": 3}, "finish_reason": "stop"})
    assert found == {"index": 0, "text": "ab", "logprobs": {"tokens": ["a", "b"], "offset": 3}, "finish_reason": "stop"}
    assert found["logprobs"]["tokens"] is tokens
