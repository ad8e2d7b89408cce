"""The page as it is served: one response that loads nothing, under a policy that lets its own script alone run, in readable colours and two languages."""

import re

import pytest
from fastapi.testclient import TestClient

from seodang.data.html_template import content_hash
from seodang.infer.explain.page import LOOK_INSIDE, LOOK_INSIDE_STYLE
from seodang.infer.server.app import build_app
from seodang.infer.server.page import PARTS, WEB
from seodang.infer.server.served import Served


@pytest.fixture
def response(engine):
    with TestClient(build_app(Served(engine, "<b>pupil</b>"))) as client:
        yield client.get("/")


def test_the_policy_lets_nothing_run_but_the_pages_own_script(response):
    assert response.status_code == 200 and response.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(each.split(" ", 1) for each in response.headers["content-security-policy"].split("; "))
    [script], [style] = (re.findall(rf"<{name}[^>]*>(.*?)</{name}>", response.text, re.S) for name in ("script", "style"))
    assert policy == {
        "default-src": "'none'", "script-src": content_hash(script), "style-src": content_hash(style), "connect-src": "'self'", "img-src": "data:",
        "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'", "require-trusted-types-for": "'script'", "trusted-types": "'none'",
    }  # fmt: skip
    assert content_hash("") == "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
    assert response.headers["x-content-type-options"] == "nosniff" and response.headers["referrer-policy"] == "no-referrer"


def test_it_is_one_file_that_loads_nothing_and_holds_no_markup_of_others(response):
    [script] = re.findall(r"<script[^>]*>(.*?)</script>", response.text, re.S)
    rest = response.text.replace(script, "")
    assert not re.search(r"\ssrc=|@import|url\((?!#)|<iframe|style=\"|\son\w+=", rest)
    assert re.findall(r'href="([^"]*)"', rest)[1:] == ["#message", "docs", "docs"] and 'href="data:image/svg+xml,' in rest
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function|DOMParser", script)
    assert set(re.findall(r"https?://[\w./]+", script)) == {"http://www.w3.org/2000/svg"}  # a name of a vocabulary
    assert "pupil" not in response.text  # the same for every model: it asks


def test_no_file_of_the_page_is_left_out():
    known = {f"{name}.js" for name in PARTS} | {"page.css", "page.html.jinja"}
    assert {path.name for path in WEB.iterdir()} == known
    assert {path.name for path in LOOK_INSIDE_STYLE.parent.iterdir()} == {path.name for path in LOOK_INSIDE} | {"look_inside.css", "explain.js", "explain.css", "explain.html.jinja"}


def test_all_that_is_said_is_said_in_korean_too():
    sources = {path.name: path.read_text(encoding="utf-8") for path in (*LOOK_INSIDE, *WEB.iterdir())}
    korean = sources.pop("korean.js")
    text = "\n".join(sources.values())
    said = set(re.findall(r'\bt\(\s*"((?:[^"\\]|\\.)*)"', text)) | set(re.findall(r'data-(?:say|label)="([^"]*)"', text))
    said |= {each for pair in re.findall(r'\bt\([^"]*? \? "([^"]*)" : "([^"]*)"', text) for each in pair}
    said |= set(re.findall(r'\w"?: "([^"]*)"', re.search(r"const GROUPS = .*?\n};", text, re.S)[0])) | set(re.findall(r'\w+: "([^"]*)"', re.search(r"const REASONS.*", text)[0]))
    known = dict(re.findall(r'(?:"((?:[^"\\]|\\.)*)"|\b(?:\w+)):\s+"((?:[^"\\]|\\.)*)"', korean)).keys() | set(re.findall(r"(?<![\w\"])(\w+):\s+\"", korean))
    assert len(said) > 130 and said - known == set()
    assert known - {""} - said == set()  # nothing is kept that is not said any more
    for english, theirs in re.findall(r'"((?:[^"\\]|\\.)*)":\s+"((?:[^"\\]|\\.)*)"', korean):
        assert sorted(re.findall(r"\{\d\}", english)) == sorted(re.findall(r"\{\d\}", theirs)), english


def luminance(colour: str) -> float:
    """Of #rgb or #rrggbb, as WCAG 2 defines it."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * each for each in colour[1:])
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in (int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4))]
    return sum(share * value for share, value in zip((0.2126, 0.7152, 0.0722), linear))


def contrast(one: str, other: str) -> float:
    """The ratio of two colours' luminances, from 1 to 21."""
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_colour_of_text_can_be_read_on_what_it_stands_on(theme):
    blocks = re.findall(r"--ground: [^}]*", LOOK_INSIDE_STYLE.read_text(encoding="utf-8"))
    light, dark, switched = (dict(re.findall(r"--([\w-]+): (#\w+)", block)) for block in blocks)
    assert dark == switched and light.keys() == dark.keys()  # by the system or by the switch
    colours = light if theme == "light" else {**light, **dark}
    for text, grounds in {
        "ink": ("ground", "raised", "soft", "tint", "unsure", "bad-tint"), "quiet": ("ground", "raised", "tint", "unsure"), "accent": ("ground", "raised"), "good": ("ground", "raised", "tint"),
        "bad": ("ground", "bad-tint"), "on-accent": ("accent",), "ground": ("bad", "ink"),
    }.items():  # fmt: skip
        for ground in grounds:
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for line, grounds in {"accent": ("ground", "raised", "soft"), "quiet": ("ground",), "bar": ("ground", "raised"), "good": ("tint",)}.items():
        assert all(contrast(colours[line], colours[ground]) >= 3 for ground in grounds), line
