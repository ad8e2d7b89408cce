"""The settings drawer in a browser: drawn from what the server says of its settings, and what of them is sent."""

import re

import pytest

from seodang.infer.engine.params import OPTIONS
from seodang.infer.filters.registry import FILTERS
from seodang.infer.filters.spec import KINDS

HIDDEN = {"strategy", "attention_mask", "prompt_logprobs", "amateur_alpha", "amateur_temperature"}


@pytest.fixture
def drawer(chat):
    """The page with its settings open."""
    page = chat()
    page.click("#open-settings")
    return page


@pytest.fixture
def fields(server):
    """What the server says of a chat's fields."""
    import httpx2

    schema = httpx2.get(f"{server[0]}openapi.json").json()["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return schema["properties"]


def sent(page, app, say, text: str = "hi") -> dict:
    """The settings that a message is sent with."""
    say(page, text)
    return {name: value for name, value in app.bodies[-1].items() if name not in ("model", "messages", "stream", "stream_options")}


def test_every_setting_is_there_once_with_its_sentence_and_range(drawer, fields):
    found, page = {}, drawer
    for strategy in ["", *fields["strategy"]["x-strategies"]]:
        page.select_option("#strategy", strategy)
        shown = page.locator("#settings-body [data-setting]").evaluate_all("all => all.map(each => [each.dataset.setting, each.closest('details')?.dataset.group, each.querySelector('.about').textContent])")
        assert len({name for name, *_ in shown}) == len(shown)
        found |= {name: (group, about) for name, group, about in shown}
    wanted = {name: each for name, each in fields.items() if "x-group" in each and name not in HIDDEN}
    assert found.keys() - {"strategy"} == wanted.keys()
    for name, schema in wanted.items():
        group, about = found[name]
        assert about.startswith(schema["description"]) and group == (None if schema["x-group"] == "strategy" else schema["x-group"]), name
    assert found["top_p"][1].endswith(" (above 0 to 1)") and found["max_new_tokens"][1].endswith(" (from 1)") and found["epsilon_cutoff"][1].endswith(" (from 0 below 1)")
    of_filters = {name for spec in FILTERS.values() for name in spec.fields} - {"filters", "prefix_allowed_tokens_fn"}  # functions
    assert of_filters <= found.keys() and all(found[name][0] == KINDS[FILTERS[name].kind] for name in FILTERS if name in found)


@pytest.mark.full
def test_every_strategy_is_taken_with_its_fewest_settings_and_answered(drawer, server, say, fields):
    page, strategies = drawer, fields["strategy"]["x-strategies"]
    assert len(strategies) == 10 and "self_consistency" not in strategies  # which needs a function
    page.fill("#set-max_new_tokens", "3")
    for name, known in strategies.items():
        page.select_option("#strategy", name)
        assert page.locator(".strategy .about").first.inner_text().replace("`", "") == known["description"].replace("`", "") + "."
        given = sent(page, server[1], say)
        assert given == {"max_new_tokens": 3, "strategy": name, **known["least"]}
        assert page.locator(".problem:not(:empty)").count() == 0
        page.click("#new")
    page.select_option("#strategy", "")
    assert sent(page, server[1], say) == {"max_new_tokens": 3}


def test_only_what_differs_from_the_default_is_sent_and_each_kind_is_read(drawer, server, say, script):
    page, app = drawer, server[1]
    page.locator("details").evaluate_all("all => all.forEach(each => { each.open = true; })")
    typed = {
        "temperature": ("0.5", 0.5), "top_k": ("7", 7), "stop": ("a\\nb\nc", ["a\nb", "c"]), "regex": ("[a-z]+", "[a-z]+"), "suppress_tokens": ("5, 6", [5, 6]),
        "logit_bias": ('{"5": 1.5}', {"5": 1.5}), "filter_order": ("top_k temperature", ["top_k", "temperature"]), "json_schema": ('{"type": "object"}', {"type": "object"}),
    }  # fmt: skip
    for name, (text, _) in typed.items():
        page.fill(f"#set-{name}", text)
    page.select_option("#set-ignore_eos", label="yes")
    page.fill("#set-mirostat_eta", str(OPTIONS["mirostat_eta"].default))  # as it is anyway
    page.fill("#set-xtc_threshold", "0.2")
    page.get_by_label("Take xtc_threshold back").click()
    script("ok")
    assert sent(page, app, say) == {name: value for name, (_, value) in typed.items()} | {"ignore_eos": True}
    assert page.locator('[data-group="warpers"] .count').inner_text() == "2"
    page.get_by_role("button", name="Reset all").click()
    script("ok")
    assert sent(page, app, say) == {} and page.input_value("#set-temperature") == ""


@pytest.mark.full
def test_a_slider_and_its_field_say_the_same(drawer, server, say, script):
    page = drawer
    page.locator('[data-group="warpers"] summary').click()
    slider = page.get_by_role("slider", name="top_p")
    slider.focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    assert page.input_value("#set-top_p") == "0.99" == slider.input_value()
    page.fill("#set-top_p", "0.25")
    assert slider.input_value() == "0.25"
    script("ok")
    assert sent(page, server[1], say) == {"top_p": 0.25}


MISFITS = [
    ("top_p", "1.5", "out of range: above 0 to 1"), ("top_p", "0", "out of range: above 0 to 1"), ("max_new_tokens", "2.5", "a whole number is needed"),
    ("temperature", "warm", "a number is needed"), ("suppress_tokens", "5, x", "whole numbers with commas between them are needed"),
    ("filter_order", "top_q", "unknown: top_q"), ("logit_bias", "{", "JSON"),
]  # fmt: skip


@pytest.mark.full
def test_what_does_not_fit_is_told_and_not_sent(drawer, server, say, script):
    page = drawer
    page.locator("details").evaluate_all("all => all.forEach(each => { each.open = true; })")
    for name, text, why in MISFITS:
        page.fill(f"#set-{name}", text)
        assert why in page.locator(f"#set-{name}-wrong").inner_text() and page.locator(f"#set-{name}").get_attribute("aria-invalid") == "true"
    script("ok")
    assert sent(page, server[1], say) == {}
    page.fill("#set-top_p", "0.5")
    assert page.locator("#set-top_p-wrong").is_hidden() and page.locator("#set-top_p").get_attribute("aria-invalid") is None


@pytest.mark.full
def test_the_search_finds_by_name_and_by_what_is_said(drawer):
    page = drawer
    shown = lambda: page.locator("#settings-body [data-setting]:visible").evaluate_all("all => all.map(each => each.dataset.setting)")  # noqa: E731
    page.fill("#setting-search", "min p")
    assert "min_p" in shown() and "top_p" not in shown()
    page.fill("#setting-search", "together reach")
    assert shown() == ["top_p", "typical_p"]
    page.fill("#setting-search", "nothing such")
    assert shown() == [] and page.get_by_text("No setting is called so.").is_visible()
    page.fill("#setting-search", "")
    assert "temperature" not in shown() and "max_new_tokens" in shown()  # groups are as they were


def test_warpers_are_not_sent_where_a_strategy_takes_no_chance(drawer, server, say):
    page = drawer
    page.fill("#set-max_new_tokens", "3")
    page.locator('[data-group="warpers"] summary').click()
    page.fill("#set-temperature", "0.5")
    page.select_option("#strategy", "diverse_beam")
    assert page.get_by_text("It takes no random choices").is_visible() and page.locator("#set-temperature").count() == 0
    assert "temperature" not in sent(page, server[1], say) and page.locator(".problem:not(:empty)").count() == 0
    page.select_option("#strategy", "beam")
    assert page.input_value("#set-temperature") == "0.5"


@pytest.mark.full
def test_further_fields_are_sent_as_they_are_written(drawer, server, say, script):
    page = drawer
    page.fill("#extra", '{"reasoning_effort": "low", "user": "me"}')
    script("ok")
    assert sent(page, server[1], say) == {"reasoning_effort": "low", "user": "me"}
    page.fill("#extra", "[1]")
    assert page.locator("#extra-wrong").is_visible()
    script("ok")
    assert sent(page, server[1], say) == {}


@pytest.mark.full
def test_settings_outlive_the_page(drawer, server, say, script):
    page = drawer
    page.fill("#set-seed", "7")
    page.select_option("#strategy", "beam")
    page.reload()
    page.wait_for_selector("body.ready")
    script("ok")
    assert sent(page, server[1], say) == {"seed": 7, "strategy": "beam", "num_beams": 2}


def test_two_answers_stand_side_by_side_each_by_its_own_settings(drawer, server, script, say):
    page, app = drawer, server[1]
    page.click("#pair")
    page.fill("#set-seed", "1")
    page.get_by_role("button", name="Answer B").click()
    assert page.input_value("#set-seed") == ""
    page.select_option("#strategy", "beam")
    first, second = script("red", "!", held=1), script("blue", "!", held=1)
    page.fill("#message", "A colour?")
    page.press("#message", "Enter")
    names = page.locator(".pair .name")
    page.wait_for_selector(".pair article:nth-child(2) .body p")
    page.wait_for_selector(".pair article:nth-child(1) .body p")
    assert names.all_inner_texts() == ["A · pupil", "B · pupil"]  # both grow at once
    first.go.set(), second.go.set()
    page.wait_for_selector("#send:not([hidden])")
    bodies = sorted(app.bodies, key=lambda body: "strategy" in body)
    assert bodies[0]["seed"] == 1 and "strategy" not in bodies[0]
    assert bodies[1]["strategy"] == "beam" and bodies[1]["num_beams"] == 2 and "seed" not in bodies[1]
    shown = page.locator(".pair .body").all_inner_texts()
    assert sorted(shown) == ["blue!", "red!"]
    boxes = [page.locator(".pair article").nth(place).bounding_box() for place in (0, 1)]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"] and boxes[0]["y"] == boxes[1]["y"]
    page.get_by_role("button", name="Go on from here").click()
    page.click("#pair")
    script("green")
    say(page, "Another?")
    assert [message["content"] for message in app.bodies[-1]["messages"]] == ["A colour?", shown[1], "Another?"]
    page.reload()
    page.wait_for_selector("body.ready")
    page.locator("#conversations .conversation").click()
    assert page.locator(".pair .body").all_inner_texts() == shown and re.search("green", page.locator("article.assistant .body").last.inner_text())


@pytest.mark.full
def test_each_side_has_a_model_of_its_own(browse, server, script, say):
    """As before and after training; an adapter is a model as well."""
    address, app = server
    page = browse("about:blank")
    page.route(f"{address}v1/models", lambda route: route.fulfill(json={"data": [{"id": name, "defaults": {"temperature": 1.0}} for name in ("pupil", "trained")]}))
    page.goto(address)
    page.wait_for_selector("body.ready")
    page.click("#pair")
    page.click("#open-settings")
    page.get_by_role("button", name="Answer B").click()
    page.select_option("#model", "trained")
    script("before"), script("before")
    say(page, "hi")
    page.wait_for_selector(".pair article:nth-child(2) .stats:not(:empty)")
    assert page.locator(".pair .name").all_inner_texts() == ["A · pupil", "B · trained"] and sorted(body["model"] for body in app.bodies) == ["pupil", "trained"]
