"""An encoder-decoder on the page: each question is sent by itself, and the form has the languages and no strategy of decoders alone."""

import pytest
from translation_fixtures import build_mbart50, build_translator

from .conftest import scripted_server


@pytest.fixture(scope="module")
def _server():
    tokenizer = build_mbart50()
    with scripted_server(build_translator("mbart50", tokenizer), tokenizer) as server:
        yield server


def test_each_question_is_sent_by_itself_in_the_language_that_is_set(chat, server, say):
    page = chat()
    page.click("#open-settings")
    assert "dola" not in page.locator("#strategy option").evaluate_all("all => all.map(each => each.value)")
    page.locator("details:has(#set-target_lang)").evaluate_all("all => all.forEach(each => { each.open = true; })")
    page.fill("#set-target_lang", "ko_KR")
    for question in ("das Haus", "the small house"):
        say(page, question)
        body = server[1].bodies[-1]
        assert (body["messages"], body["target_lang"]) == ([{"role": "user", "content": question}], "ko_KR")
    assert page.locator("article.assistant").count() == 2
