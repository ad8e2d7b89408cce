"""Markdown as the page reads it: into elements of its own, in time that grows with the text, and never as markup that runs."""

import pytest

from seodang.data.html_template import embedded
from seodang.infer.explain.page import LOOK_INSIDE
from seodang.infer.server.page import WEB

WRITTEN = {
    "plain": "<p>plain</p>",
    "a **b** *c* `d` ~~e~~ __f__ _g_": "<p>a <strong>b</strong> <em>c</em> <code>d</code> <s>e</s> <strong>f</strong> <em>g</em></p>",
    "**수원**은 *어디*야": "<p><strong>수원</strong>은 <em>어디</em>야</p>",
    "***both***": "<p><strong><em>both</em></strong></p>",
    "snake_case_name and 2 * 3 * 4": "<p>snake_case_name and 2 * 3 * 4</p>",
    r"\*no\* **open": "<p>*no* **open</p>",
    "# One\n\n## Two ##\nthree": "<h3>One</h3><h4>Two</h4><p>three</p>",
    "- a\n- b\n  - c\n  - d\n- e": "<ul><li>a</li><li>b<ul><li>c</li><li>d</li></ul></li><li>e</li></ul>",
    "3. a\n4. b": '<ol start="3"><li>a</li><li>b</li></ol>',
    "1. a\n\n2. b\n\nend": "<ol><li>a</li><li>b</li></ol><p>end</p>",
    "1. a\n   ```py\n   x\n   ```\n2. b": "<ol><li>a[py|x]</li><li>b</li></ol>",
    "> q\n> > r\n\ns": "<blockquote><p>q</p><blockquote><p>r</p></blockquote></blockquote><p>s</p>",
    "a\nb": "<p>a<br>b</p>",
    "---": "<hr>",
    "```python\na < b\n\n  `c`\n```\nafter": "[python|a < b\n\n  `c`]<p>after</p>",
    "```\nopen": "[code|open]",
    "| a | b |\n|---|--:|\n| 1 | `2|` |\n| x | y \\| z |": '<table><thead><tr><th scope="col">a</th><th class="right" scope="col">b</th></tr></thead>'
    '<tbody><tr><td>1</td><td class="right">`2</td></tr><tr><td>x</td><td class="right">y | z</td></tr></tbody></table>',
    "[a](https://b.c/d_(e)) <https://f.g> see https://h.i/j.": "<p>{a|https://b.c/d_(e)} {https://f.g|https://f.g} see {https://h.i/j|https://h.i/j}.</p>",
    "![pic](https://elsewhere.example/x.png)": "<p>{pic|https://elsewhere.example/x.png}</p>",  # a link: nothing is fetched
    "[a](javascript:alert(1)) [b](data:text/html,x) [c](/v1/models) [d](//e.f)": "<p>[a](javascript:alert(1)) [b](data:text/html,x) [c](/v1/models) [d](//e.f)</p>",
    "[a]( JaVaScRiPt:alert`1`)": "<p>[a]( JaVaScRiPt:alert<code>1</code>)</p>",
    "<b>no</b> &amp; <script>x</script>": "<p>&lt;b&gt;no&lt;/b&gt; &amp;amp; &lt;script&gt;x&lt;/script&gt;</p>",
}  # fmt: skip
# blocks of code and links are told in short, for they have buttons and attributes
SHOWN = """texts => texts.map((text) => {
    const root = document.createElement("div");
    root.append(markdown(text));
    for (const code of root.querySelectorAll(".code")) code.replaceWith(`[${code.querySelector("span").textContent}|${code.querySelector("pre").textContent}]`);
    for (const link of root.querySelectorAll("a")) {
        if (link.rel !== "noopener noreferrer nofollow" || link.target !== "_blank") throw new Error(link.outerHTML);
        link.replaceWith(`{${link.textContent}|${link.getAttribute("href")}}`);
    }
    for (const wide of root.querySelectorAll(".wide")) wide.replaceWith(...wide.childNodes);
    for (const each of root.querySelectorAll("[dir]")) each.removeAttribute("dir");
    return root.innerHTML;
})"""
ATTACKS = [
    "<img src=x onerror=alert(1)>", "<script>alert(1)</script>", "<svg onload=alert(1)>", "![x](x\" onerror=\"alert(1))", "[x](https://a.b/\"onmouseover=\"alert(1))",
    "```\" onclick=alert(1)\n</code></pre><script>alert(1)</script>\n```", "<https://a.b/\"><script>alert(1)</script>>", "| <img src=x onerror=alert(1)> |\n|---|\n| <iframe src=javascript:alert(1)> |",
    "# <style>*{display:none}</style>", "`<base href=//evil.example>`", "<a href=\"javascript:alert(1)\">x</a>", "[x](vbscript:alert(1))", "[\u202ex](https://a.b)",
]  # fmt: skip


@pytest.fixture
def blank(browse):
    """A page that has the reader alone."""
    page = browse("about:blank")
    page.add_script_tag(content=embedded(*LOOK_INSIDE, *(WEB / f"{name}.js" for name in ("ui", "markdown"))))
    return page


def test_what_is_written_becomes_these_elements(blank):
    found = blank.evaluate(SHOWN, list(WRITTEN))
    shown = lambda html: html.replace("a < b", "a &lt; b")  # noqa: E731
    assert dict(zip(WRITTEN, found)) == {text: shown(html) for text, html in WRITTEN.items()}


HOSTILE = ["*a " * 20000, "**" * 20000, "[" * 40000, "`" * 999 + " `" * 20000, "> " * 20000, "- " * 20000, "_a" * 20000, "[a](" * 10000,
                                  "|" * 40000 + "\n" + "-|" * 20000, "<https://" * 5000, "~~a ~~ " * 10000, "1. " * 10000, "#" * 40000, "![" * 20000, "\\" * 40000, "# " + " " * 40000 + "x", "# " + "#" * 40000 + "x",
           "|\n" + " " * 40000 + "x", "```" + " " * 40000 + "`", "***" * 10000 + "x" + "***" * 10000, "\u200f" * 40000]  # fmt: skip


def test_a_hostile_text_is_read_at_once(blank):
    seconds = blank.evaluate("""texts => texts.map((text) => {
        const began = performance.now();
        document.body.replaceChildren(markdown(text));
        if (!document.body.childNodes.length) throw new Error(text.slice(0, 20));
        return (performance.now() - began) / 1000;
    })""", HOSTILE)  # fmt: skip
    assert {text[:20]: each for text, each in zip(HOSTILE, seconds) if each > 5} == {}  # seconds of a busy machine


def test_every_beginning_of_a_text_can_be_read(blank):
    """As it is while an answer grows."""
    whole = "\n\n".join(WRITTEN)
    assert blank.evaluate("text => { for (let end = 0; end <= text.length; end += 1) markdown(text.slice(0, end)); return true; }", whole)


def test_what_a_model_writes_does_not_run_and_asks_no_one(chat, script, say):
    page = chat()
    page.on("dialog", lambda dialog: pytest.fail(f"ran {dialog.message}"))
    script({"reasoning_content": ATTACKS[0]}, *(f"{attack}\n\n" for attack in ATTACKS), {"tool_calls": [{"index": 0, "id": "1", "function": {"name": ATTACKS[0], "arguments": ATTACKS[1]}}]})
    say(page, ATTACKS[0])
    page.wait_for_timeout(100)
    shown = page.locator("article.assistant .body")
    assert shown.locator("img, script, svg:not(.icon), iframe, style, base").count() == 0 and page.locator("article.user img").count() == 0
    for attack in ATTACKS[:3]:
        assert attack in shown.inner_text()
    addresses = shown.locator("a").evaluate_all("all => all.map(each => each.protocol)")
    assert addresses and set(addresses) == {"https:"}
    assert page.locator("article").evaluate_all("all => all.flatMap(each => [...each.querySelectorAll('*')]).filter(each => [...each.attributes].some(({ name }) => name.startsWith('on'))).length") == 0
    assert page.locator("#conversations .conversation").inner_text() == ATTACKS[0] == page.locator("#title").inner_text()
