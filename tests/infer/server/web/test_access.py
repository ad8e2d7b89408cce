"""The page by the keyboard alone, to a screen reader, on a phone, and in both themes."""

import pytest

LONG = "```\n" + "x" * 400 + "\n```\n\n| " + " | ".join("column" for _ in range(20)) + " |\n|" + "---|" * 20 + "\n\n" + "supercalifragilistic" * 20 + " https://example.com/" + "y" * 300
FITS = "document.documentElement.scrollWidth <= innerWidth && document.body.scrollWidth <= innerWidth"


def focused(page) -> str:
    """What has the focus, as a screen reader names it."""
    return page.evaluate("(({ id, ariaLabel, innerText, dataset }) => ariaLabel || innerText || dataset.position || id)(document.activeElement)")


def test_all_can_be_done_by_the_keyboard_alone(chat, server, script):
    page = chat()
    script("one"), script("two"), script("three")
    assert page.evaluate("document.activeElement.id") == "message"
    page.keyboard.type("first")
    page.keyboard.press("Enter")
    page.locator("article.assistant .body", has_text="one").wait_for()
    page.locator("article.assistant [data-action=again]").wait_for()
    page.keyboard.press("Shift+Tab")  # the newest answer's last action
    assert focused(page) == "The request as code"
    page.keyboard.press("Enter")
    page.locator("dialog.snippets").wait_for()
    page.keyboard.press("Escape")
    assert focused(page) == "The request as code"
    for name in ("Edit the answer", "Answer again"):
        page.keyboard.press("Shift+Tab")
        assert focused(page) == name
    page.keyboard.press("Enter")
    page.locator("article.assistant .body", has_text="two").wait_for()
    page.focus("#message")
    seen = []
    for _ in range(40):  # every stop in turn, each with a name and a mark that it has the focus
        page.keyboard.press("Shift+Tab")
        name = focused(page)
        marked = "getComputedStyle(document.activeElement).outlineStyle !== 'none'"
        assert name and (page.evaluate(marked) or page.evaluate("document.activeElement === document.body")), name
        seen.append(name)
        if name == "To the message":
            break
    assert {"Version before", "Edit the message", "Messages", "Settings", "Look inside", "Side by side", "New conversation", "first"} <= {name.strip() for name in seen}
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "message"
    page.focus("#open-settings")
    page.keyboard.press("Enter")
    assert focused(page) == "Close the settings"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "open-settings" and page.locator("#settings").is_hidden()


@pytest.mark.full
def test_escape_stops_an_answer(chat, script):
    page, held = chat(), script("a", "b", held=1)
    page.keyboard.type("go")
    page.keyboard.press("Enter")
    page.locator("article.assistant .body", has_text="a").wait_for()
    page.focus("#open-settings")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")  # closes the settings alone
    assert page.locator("#settings").is_hidden() and not held.gone.wait(0.2)
    page.keyboard.press("Escape")
    assert held.gone.wait(5) and page.evaluate("document.activeElement.id") == "message"


@pytest.mark.full
def test_a_screen_reader_hears_the_answer_once_by_sentences(chat, script):
    page = chat()
    page.evaluate("""window.heard = []; new MutationObserver(() => heard.push(document.getElementById("said").textContent))
        .observe(document.getElementById("said"), { childList: true, characterData: true, subtree: true }); 0""")
    held = script("Suwon is a city", ". It is ", "in Korea", ".", held=2)
    page.keyboard.type("Where?")
    page.keyboard.press("Enter")
    page.locator("article.assistant .body", has_text="It is").wait_for()
    page.wait_for_timeout(50)
    assert page.evaluate("heard") == ["The answer is being written.", "Suwon is a city."]
    held.go.set()
    page.wait_for_selector("#send:not([hidden])")
    assert page.evaluate("heard") == ["The answer is being written.", "Suwon is a city.", " It is in Korea."]
    assert page.locator("#said").get_attribute("aria-live") == "polite" and page.locator("#transcript").get_attribute("role") == "log"


def test_every_control_has_a_name(chat, script, say):
    page = chat()
    page.click("#look")
    page.click("#pair")
    script("one"), script("two")
    say(page, "hi")
    page.wait_for_selector(".pair article:nth-child(2) .stats:not(:empty)")
    page.click("#open-settings")
    page.locator("#settings details").evaluate_all("all => all.forEach(each => { each.open = true; })")
    nameless = page.evaluate("""[...document.querySelectorAll("button, input, select, textarea, a, [role=button], svg[role=img]")].filter((each) =>
        !(each.ariaLabel || each.textContent.trim() || each.labels?.length)).map((each) => each.outerHTML)""")
    assert nameless == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(each => each.id)")
    assert len(ids) == len(set(ids))


@pytest.mark.full
def test_nothing_is_wider_than_a_phone(chat, script, say):
    page = chat(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    script(LONG)
    say(page, "w" * 200)
    assert page.evaluate(FITS)
    for open_it, close_it in (("#open-list", "#close-list"), ("#open-settings", "#settings-close")):
        page.click(open_it)
        page.locator("#settings details").evaluate_all("all => all.forEach(each => { each.open = true; })")
        assert page.evaluate(FITS) and page.locator(close_it).is_visible()
        assert page.locator("main").evaluate("main => main.inert") is (open_it == "#open-settings")  # which covers it
        page.click(close_it)
    page.click("#open-list")
    page.touchscreen.tap(350, 300)  # beside the list, which closes it
    page.locator("#sidebar").wait_for(state="hidden")
    page.click("#pair")
    script(LONG), script("short")
    say(page, "both")
    page.wait_for_selector(".pair article:nth-child(2) .stats:not(:empty)")
    assert page.evaluate(FITS)
    page.click("#pair")
    page.click("#look")
    page.click("#open-list")
    page.click("#new")
    say(page, "inside")
    page.locator("article.assistant .token").last.scroll_into_view_if_needed()
    page.locator("article.assistant .token").first.tap()
    assert page.evaluate(FITS) and page.locator(".story").last.is_visible()
    page.get_by_label("The request as code").last.click()
    assert page.evaluate(FITS)


@pytest.mark.full
@pytest.mark.parametrize("system", ["light", "dark"])
def test_colours_are_the_systems_until_the_reader_chooses(chat, system):
    page = chat(color_scheme=system)
    ground = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")  # noqa: E731
    colours = {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 26)"}
    assert ground() == colours[system]
    for theme in ("light", "dark"):
        page.click("#theme")
        assert ground() == colours[theme]
    page.reload()
    assert ground() == colours["dark"]
    page.click("#theme")
    assert ground() == colours[system]
