"""The page in a browser: what is sent and streamed, stopped, edited, kept, and told when something is wrong."""

import json
import re

import pytest

from seodang.infer import SamplingParams, generate
from seodang.infer.server.guard.access import Access, Gate


def user(page) -> list[str]:
    return page.locator("article.user .body").all_inner_texts()


def answers(page) -> list[str]:
    return page.locator("article.assistant .body").all_inner_texts()


def answered(page, text: str) -> None:
    """Wait until an answer says just this."""
    page.locator("article.assistant .body").filter(has_text=re.compile(f"^{re.escape(text)}$")).first.wait_for()


def asked(app) -> list[tuple[str, str]]:
    """The messages of the newest request."""
    return [(message["role"], message["content"]) for message in app.bodies[-1]["messages"]]


def test_a_message_is_answered_with_what_the_model_says(chat, server, say, tiny_llama, tiny_tokenizer):
    page = chat()
    page.evaluate("localStorage.setItem('seodang.settings', JSON.stringify({sides: [{values: {temperature: 0, max_new_tokens: 20}}]}))")
    page.reload()
    page.wait_for_selector("body.ready")
    say(page, "Where is Suwon?")
    dialogue = [{"role": "user", "content": "Where is Suwon?"}]
    [result] = generate(tiny_llama, tiny_tokenizer, [dialogue], SamplingParams(max_new_tokens=20))
    assert page.evaluate("JSON.parse(localStorage['seodang.conversation.' + JSON.parse(localStorage['seodang.conversations'])[0].id])")["nodes"]
    kept = page.evaluate("Object.values(JSON.parse(localStorage['seodang.conversation.' + JSON.parse(localStorage['seodang.conversations'])[0].id]).nodes)")
    assert [node["content"] for node in kept] == ["Where is Suwon?", result.text]
    body = server[1].bodies[0]
    assert body == {
        "model": "pupil", "messages": dialogue, "temperature": 0, "max_new_tokens": 20, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    told = page.locator(".stats").inner_text()
    assert f"{len(result.ids)} tokens" in told and f"{result.prompt_length} read" in told


def test_an_answer_is_shown_as_it_grows_and_its_figures_at_the_end(chat, script):
    page, held = chat(), script("Su", "won", " is", held=2)
    page.fill("#message", "Where?")
    page.click("#send")
    answered(page, "Suwon")
    assert page.locator("#stop").is_visible() and not page.locator("#send").is_visible()
    assert page.locator("article.assistant").get_attribute("aria-busy") == "true" and page.locator(".stats").inner_text() == ""
    held.go.set()
    page.wait_for_selector("#send:not([hidden])")
    assert answers(page) == ["Suwon is"]
    assert re.fullmatch(r"first token after \d+\.\d\d s · \d+\.\d tokens/s · 3 tokens · 12 read, 5 of them cached", page.locator(".stats").inner_text())


def test_stop_ends_the_request_and_keeps_what_is_there(chat, server, script, say):
    page, held = chat(), script("Suwon", " is", " in", held=2)
    page.fill("#message", "Where?")
    page.press("#message", "Enter")
    answered(page, "Suwon is")
    page.click("#stop")
    assert held.gone.wait(5)
    page.wait_for_selector("#send:not([hidden])")
    assert answers(page) == ["Suwon is"] and "stopped" in page.locator(".stats").inner_text()
    script("Korea")
    say(page, "And?")
    assert asked(server[1]) == [("user", "Where?"), ("assistant", "Suwon is"), ("user", "And?")]


def test_an_edited_message_begins_a_branch_and_arrows_go_between_them(chat, server, script, say):
    page = chat()
    script("one"), script("two"), script("three")
    say(page, "first")
    say(page, "second")
    page.locator("article.user").first.get_by_label("Edit the message").click()
    page.keyboard.type("!")
    page.keyboard.press("Enter")
    answered(page, "three")
    assert user(page) == ["first!"] and asked(server[1]) == [("user", "first!")]
    assert page.locator("article.user .versions").inner_text() == "2/2"
    page.get_by_label("Version before").click()
    assert user(page) == ["first", "second"] and answers(page) == ["one", "two"]
    assert page.evaluate("document.activeElement.dataset.action") == "next"  # the focus stays where a key can go on
    page.keyboard.press("Enter")
    assert user(page) == ["first!"] and answers(page) == ["three"]
    page.reload()
    page.wait_for_selector("body.ready")
    page.locator("#conversations .conversation").click()
    assert user(page) == ["first!"] and page.locator("article.user .versions").inner_text() == "2/2"


def test_an_answer_is_given_again_or_edited_beside_the_first(chat, server, script, say):
    page = chat()
    script("one"), script("two"), script("four")
    say(page, "Count.")
    page.get_by_label("Answer again").click()
    answered(page, "two")
    assert page.locator("article.assistant .versions").inner_text() == "2/2" and asked(server[1]) == [("user", "Count.")]
    page.get_by_label("Edit the answer").click()
    page.keyboard.press("Control+a")
    page.keyboard.type("three")
    page.get_by_role("button", name="Save").click()
    assert answers(page) == ["three"] and page.locator("article.assistant .versions").inner_text() == "3/3"
    say(page, "Go on.")
    assert asked(server[1]) == [("user", "Count."), ("assistant", "three"), ("user", "Go on.")]


def test_conversations_are_kept_renamed_exported_and_deleted(chat, script, say):
    page = chat()
    script("one"), script("two")
    say(page, "About rivers")
    page.click("#new")
    say(page, "About hills")
    names = page.locator("#conversations .conversation")
    assert names.all_inner_texts() == ["About hills", "About rivers"]
    page.get_by_label("Rename About hills").click()
    page.locator("#asked").fill("Hills")
    page.keyboard.press("Enter")
    names.filter(has_text=re.compile("^Hills$")).wait_for()
    with page.expect_download() as download:
        page.get_by_label("Export Hills").click()
    exported = json.loads(download.value.path().read_text(encoding="utf-8"))
    assert download.value.suggested_filename == "Hills.json" and [node["content"] for node in exported["nodes"].values()] == ["About hills", "two"]
    page.get_by_label("Delete Hills").click()
    page.get_by_role("button", name="Cancel").click()
    assert names.all_inner_texts() == ["Hills", "About rivers"]
    page.get_by_label("Delete Hills").click()
    page.locator("dialog").get_by_role("button", name="Delete").click()
    names.filter(has_text="Hills").wait_for(state="detached")
    page.reload()
    page.wait_for_selector("body.ready")
    assert names.all_inner_texts() == ["About rivers"] and page.evaluate("Object.keys(localStorage).filter(each => each.includes('conversation.')).length") == 1
    names.first.click()
    assert answers(page) == ["one"]


@pytest.mark.full
def test_two_conversations_grow_at_once_each_in_its_own(chat, script):
    page, held = chat(), script("slow", " one", held=1)
    page.fill("#message", "A")
    page.press("#message", "Enter")
    page.wait_for_selector("article.assistant .body p")
    page.click("#new")
    script("quick")
    page.fill("#message", "B")
    page.press("#message", "Enter")
    answered(page, "quick")
    held.go.set()
    page.locator("#conversations .conversation", has_text="A").click()
    answered(page, "slow one")
    assert user(page) == ["A"]


@pytest.mark.full
def test_a_conversation_that_is_deleted_under_way_is_gone(chat, script):
    page, held = chat(), script("never", " kept", held=1)
    page.fill("#message", "A secret")
    page.press("#message", "Enter")
    answered(page, "never")
    page.get_by_label("Delete A secret").click()
    page.locator("dialog").get_by_role("button", name="Delete").click()
    assert held.gone.wait(5)
    page.wait_for_selector("#send:not([hidden])")
    assert page.locator("#conversations .conversation").count() == 0 and "secret" not in page.evaluate("JSON.stringify(localStorage)")


def test_enter_while_a_syllable_is_composed_does_not_send(chat, server, script):
    page = chat(locale="ko-KR")
    script("네")
    page.focus("#message")
    keys = page.context.new_cdp_session(page)
    for syllables in ("ㅅ", "수", "숭", "수우", "수원"):
        keys.send("Input.imeSetComposition", {"text": syllables, "selectionStart": len(syllables), "selectionEnd": len(syllables)})
    assert page.input_value("#message") == "수원"
    for kind in ("rawKeyDown", "keyUp"):  # the key that ends the syllable, as input methods hand it on
        keys.send("Input.dispatchKeyEvent", {"type": kind, "windowsVirtualKeyCode": 229, "key": "Enter", "code": "Enter"})
    page.dispatch_event("#message", "keydown", {"key": "Enter", "isComposing": True, "bubbles": True})
    assert server[1].bodies == [] and page.input_value("#message") == "수원"
    keys.send("Input.insertText", {"text": "수원"})
    page.keyboard.press("Shift+Enter")
    page.keyboard.insert_text("은 어디?")
    page.keyboard.press("Enter")
    answered(page, "네")
    assert [body["messages"] for body in server[1].bodies] == [[{"role": "user", "content": "수원\n은 어디?"}]]
    assert page.locator("html").get_attribute("lang") == "ko" and page.locator("#send").get_attribute("aria-label") == "보내기"


def test_an_error_is_told_and_the_question_can_be_asked_again(chat, server, script):
    page = chat()
    script(error=(429, "too many requests of this key: wait a moment", {"Retry-After": "1"}))
    script("Korea")
    page.fill("#message", "Where?")
    page.press("#message", "Enter")
    problem = page.locator(".problem")
    problem.get_by_text("too many requests of this key").wait_for()
    assert problem.get_attribute("role") == "alert" and problem.locator("[data-action=retry]").is_disabled()
    problem.get_by_role("button", name="Try again", exact=True).click()  # waits until it can be pressed
    answered(page, "Korea")
    assert page.locator("article.assistant").count() == 1 and page.locator(".problem").inner_text() == ""
    assert asked(server[1]) == [("user", "Where?")] and len(server[1].bodies) == 2


@pytest.mark.full
def test_a_refused_setting_is_told_and_shown(chat, server, say):
    page = chat()
    page.evaluate("localStorage.setItem('seodang.settings', JSON.stringify({sides: [{values: {min_new_tokens: 9, max_new_tokens: 3}}]}))")
    page.reload()
    page.wait_for_selector("body.ready")
    page.fill("#message", "hi")
    page.press("#message", "Enter")
    page.get_by_role("button", name="Show the setting").click()
    assert page.evaluate("document.activeElement.id") in ("set-min_new_tokens", "set-max_new_tokens")


@pytest.mark.full
def test_a_connection_that_breaks_off_leaves_what_was_said(chat, server, script):
    page, held = chat(), script("Suwon", " is", {"role": object()}, held=2)  # which cannot be written: the server breaks off
    page.fill("#message", "Where?")
    page.press("#message", "Enter")
    answered(page, "Suwon is")
    held.go.set()
    page.get_by_text("The connection broke off.").wait_for()
    assert answers(page) == ["Suwon is"]


def test_a_key_is_asked_for_once_and_kept_in_the_tab_alone(browse, server, script, say):
    address, app = server
    app.app = Gate(app.app, Access(("sesame",)))
    page = browse(address)
    page.locator("dialog").get_by_text("This server asks for a key.").wait_for()
    page.locator("#asked").fill("wrong")
    page.keyboard.press("Enter")
    page.locator("dialog").get_by_text("The server does not know this key.").wait_for()
    page.locator("#asked").fill("sesame")
    page.keyboard.press("Enter")
    page.wait_for_selector("body.ready")
    say(page, "Where?")
    assert app.keys == ["Bearer sesame"] and page.locator(".problem:not(:empty)").count() == 0
    assert "sesame" not in page.evaluate("Object.values(localStorage).join()")
    page.reload()
    page.wait_for_selector("body.ready")
    assert page.locator("dialog").count() == 0


def test_thinking_and_calls_stand_apart_from_the_answer(chat, server, script, say):
    page = chat()
    call = [{"index": 0, "id": "call-1", "type": "function", "function": {"name": "weather", "arguments": ""}}]
    script({"reasoning_content": "Let me "}, {"reasoning_content": "see."}, "In Suwon", {"tool_calls": call},
           {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": "Su'}}]}, {"tool_calls": [{"index": 0, "function": {"arguments": 'won"}'}}]})  # fmt: skip
    say(page, "Weather?")
    assert answers(page) == ["In Suwon"]
    assert page.locator(".thinking summary").inner_text() == "Thinking" and page.locator(".thought").text_content() == "Let me see."
    assert page.locator(".call figcaption").inner_text().split() == ["Calls", "weather"]
    assert json.loads(page.locator(".call pre").inner_text()) == {"city": "Suwon"}
    script("Sunny")
    say(page, "Well?")
    sent = server[1].bodies[-1]["messages"][1]
    assert sent["content"] == "In Suwon" and sent["tool_calls"] == [{"id": "call-1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Suwon"}'}}]


def test_the_code_of_a_request_asks_the_same(chat, server, say):
    page = chat()
    page.evaluate("localStorage.setItem('seodang.settings', JSON.stringify({sides: [{values: {temperature: 0, max_new_tokens: 6, top_k: 3, ignore_eos: true}}]}))")
    page.reload()
    page.wait_for_selector("body.ready")
    say(page, "It's \"quoted\" 수원\\n\n— done?")
    first = server[1].bodies[-1]
    page.get_by_label("The request as code").click()
    curl, python = page.locator(".snippets pre").all_inner_texts()
    sent = json.loads(re.search(r"-d '(.*)'$", curl, re.S)[1].replace("'\\''", "'"))
    assert sent == {key: value for key, value in first.items() if key != "stream_options"} and server[0] + "v1/chat/completions" in curl
    told = []
    exec(python, {"print": lambda text, **more: told.append(text)})
    assert server[1].bodies[-1] == sent
    page.keyboard.press("Escape")
    [kept] = page.evaluate("Object.entries(localStorage).filter(([name]) => name.includes('conversation.')).map(([, text]) => JSON.parse(text))")
    assert "".join(told) == [node["content"] for node in kept["nodes"].values()][1]


@pytest.mark.full
@pytest.mark.parametrize("pair", [False, True])
def test_a_system_prompt_is_told_first(chat, server, script, say, pair):
    page = chat()
    if pair:
        page.click("#pair")
        script("b")
    script("a")
    page.click("#open-settings")
    page.fill("#system", "Be brief.")
    say(page, "Hi")
    page.wait_for_selector("#send:not([hidden])")
    assert all(body["messages"][0] == {"role": "system", "content": "Be brief."} for body in server[1].bodies) and len(server[1].bodies) == 1 + pair
