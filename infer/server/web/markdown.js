// Markdown to nodes. What a model writes becomes text in elements that are made here, never markup that is parsed.

const WIDEST = 200; // columns of a table
const DEEPEST = 12; // of quotes and lists in one another; deeper ones are shown as they are written
const LINKS = new Set(["http:", "https:", "mailto:"]);

// none of these looks at a letter more than a few times: a model can write anything
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s(.*)$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}>\s?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(\s+|$)/;
const BORDER = /^\|?:?-+:?(\|:?-+:?)*\|?$/; // without its spaces

function markdown(text) {
  const made = document.createDocumentFragment();
  made.append(...blocks(text.replace(/\r\n?/g, "\n").split("\n"), 0));
  return made;
}

function blocks(lines, depth) {
  const made = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    if (!line.trim()) {
      at += 1;
      continue;
    }
    const found = [fence, headingOf, rule, quote, list, tableOf].map((read) => depth < DEEPEST && read(lines, at, depth)).find(Boolean);
    const [node, next] = found || paragraph(lines, at);
    made.push(node);
    at = next;
  }
  return made;
}

function fence(lines, at) {
  const [, mark, language] = FENCE.exec(lines[at]) || [];
  if (!mark) return null;
  let end = at + 1;
  while (end < lines.length && !(lines[end].trim().startsWith(mark) && /^[`~]+$/.test(lines[end].trim()))) end += 1;
  return [codeBlock(lines.slice(at + 1, end).join("\n"), language.trim()), end + 1];
}

function codeBlock(code, language) {
  const copy = iconButton("copy", t("Copy the code"), (event) => copyText(code, event.currentTarget));
  return h(
    "figure",
    { class: "code" },
    h("figcaption", {}, h("span", {}, language || t("code")), copy),
    h("pre", { tabindex: 0, role: "region", "aria-label": t("code") }, h("code", {}, code)),
  );
}

function headingOf(lines, at) {
  const [, marks, text] = HEADING.exec(lines[at]) || [];
  return marks ? [h(`h${Math.min(marks.length + 2, 6)}`, {}, inline(unclosed(text.trim()))), at + 1] : null;
}

// A heading without the signs that close it.
function unclosed(text) {
  let end = text.length;
  while (text[end - 1] === "#") end -= 1;
  return end === 0 || /\s/.test(text[end - 1]) ? text.slice(0, end).trimEnd() : text;
}

const rule = (lines, at) => (RULE.test(lines[at]) ? [h("hr"), at + 1] : null);

function quote(lines, at, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  return end === at
    ? null
    : [
        h(
          "blockquote",
          {},
          blocks(
            lines.slice(at, end).map((line) => line.replace(QUOTE, "")),
            depth + 1,
          ),
        ),
        end,
      ];
}

function list(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  if (!first) return null;
  const ordered = /\d/.test(first[2]);
  const items = [];
  let end = at;
  while (end < lines.length) {
    const mark = ITEM.exec(lines[end]);
    if (!mark || /\d/.test(mark[2]) !== ordered || mark[1].length > first[1].length + 3 || RULE.test(lines[end])) break;
    const offset = mark[0].length;
    const own = [lines[end].slice(offset)];
    for (end += 1; end < lines.length; end += 1) {
      const blank = !lines[end].trim();
      const inside = blank ? indentOf(lines[end + 1] ?? "") > mark[1].length && lines[end + 1].trim() : indentOf(lines[end]) > mark[1].length;
      const lazy = !blank && !ITEM.test(lines[end]) && !startsBlock(lines[end]) && lines[end - 1].trim();
      if (!inside && !lazy) break;
      own.push(lines[end].slice(Math.min(offset, indentOf(lines[end]))));
    }
    items.push(h("li", {}, tight(blocks(own, depth + 1))));
    while (end < lines.length && !lines[end].trim() && ITEM.test(lines[end + 1] ?? "")) end += 1; // items with a line between them
  }
  return [h(ordered ? "ol" : "ul", { start: ordered && parseInt(first[2], 10) !== 1 ? parseInt(first[2], 10) : null }, items), end];
}

const indentOf = (line) => line.length - line.trimStart().length;
const startsBlock = (line) => [FENCE, HEADING, RULE, QUOTE].some((each) => each.test(line));

// An item of a single paragraph is that paragraph's text.
const tight = (nodes) => (nodes[0]?.tagName === "P" ? [[...nodes[0].childNodes], nodes.slice(1)] : nodes);

function tableOf(lines, at) {
  if (!lines[at].includes("|") || !BORDER.test((lines[at + 1] ?? "").replace(/\s/g, ""))) return null;
  const heads = cells(lines[at]);
  const sides = cells(lines[at + 1]).map((each) => (/^:-+:$/.test(each) ? "middle" : /-:$/.test(each) ? "right" : null));
  if (heads.length !== sides.length || heads.length > WIDEST) return null;
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|") && lines[end].trim()) end += 1;
  const row = (name, line) =>
    h(
      "tr",
      {},
      cells(line)
        .slice(0, heads.length)
        .map((each, n) => h(name, { class: sides[n], scope: name === "th" ? "col" : null }, inline(each))),
    );
  const made = h(
    "table",
    {},
    h("thead", {}, row("th", lines[at])),
    h(
      "tbody",
      {},
      lines.slice(at + 2, end).map((line) => row("td", line)),
    ),
  );
  return [h("div", { class: "wide", tabindex: 0, role: "group", "aria-label": t("table") }, made), end];
}

const cells = (line) =>
  line
    .trim()
    .replace(/^\|/, "")
    .replace(/\|$/, "")
    .split(/(?<!\\)\|/)
    .map((each) => each.trim().replaceAll("\\|", "|"));

function paragraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !startsBlock(lines[end]) && !ITEM.test(lines[end])) end += 1;
  return [
    h(
      "p",
      {},
      inline(
        lines
          .slice(at, end)
          .map((line) => line.trimStart())
          .join("\n"),
      ),
    ),
    end,
  ];
}

const ESCAPED = /\\([!-/:-@[-`{-~])/y;
const CODE = /(`+)/y;
const LINK = /!?\[([^[\]\n]{0,500})\]\(\s*<?([^\s()<>]{1,2000}(?:\([^\s()<>]{0,500}\)[^\s()<>]{0,500})?)>?(?:\s+"[^"\n]{0,500}")?\s*\)/y;
const ADDRESS = /<?(https?:\/\/[^\s<>"'`]{1,2000})>?/y;
const MARKS = { "**": "strong", __: "strong", "*": "em", _: "em", "~~": "s" };

// Runs of text with emphasis, code and links, as nodes.
function inline(text, depth = 0) {
  const made = [];
  const missing = new Set(); // marks that nothing closes from here on: looked for once
  let plain = "";
  let at = 0;
  const put = (node, length) => {
    made.push(plain, node);
    plain = "";
    at += length;
  };
  const read = (pattern) => {
    pattern.lastIndex = at;
    return pattern.exec(text);
  };
  while (at < text.length) {
    const letter = text[at];
    let found;
    if (letter === "\\" && (found = read(ESCAPED))) {
      plain += found[1];
      at += 2;
    } else if (letter === "\n") {
      put(h("br"), 1);
    } else if (letter === "`" && (found = read(CODE))) {
      const [ticks] = found;
      const end = missing.has(ticks) ? -1 : closingTicks(text, ticks, at + ticks.length);
      if (end === -1) {
        missing.add(ticks);
        plain += ticks;
        at += ticks.length;
      } else {
        put(h("code", {}, text.slice(at + ticks.length, end).replace(/^ (.*) $/s, "$1")), end + ticks.length - at);
      }
    } else if ((letter === "[" || letter === "!") && (found = read(LINK)) && addressOf(found[2])) {
      put(link(found[2], depth < 2 ? inline(found[1] || found[2], depth + 1) : found[1]), found[0].length);
    } else if ((letter === "h" || letter === "<") && !/\w/.test(text[at - 1] ?? "") && (found = read(ADDRESS)) && addressOf(found[1])) {
      const address = found[0][0] === "<" ? found[1] : found[1].replace(/[.,;:!?)\]*_~]+$/, "");
      put(link(address, address), found[0][0] === "<" ? found[0].length : address.length);
    } else {
      const mark = text.startsWith("**", at) || text.startsWith("__", at) || text.startsWith("~~", at) ? text.slice(at, at + 2) : letter;
      const end = MARKS[mark] && depth < DEEPEST && !missing.has(mark) ? closing(text, mark, at) : -1;
      if (end > 0) {
        put(h(MARKS[mark], {}, inline(text.slice(at + mark.length, end), depth + 1)), end + mark.length - at);
      } else {
        if (end === -1 && MARKS[mark]) missing.add(mark);
        plain += MARKS[mark] ? mark : letter;
        at += MARKS[mark] ? mark.length : 1;
      }
    }
  }
  return [...made, plain].filter((each) => each !== "");
}

function closingTicks(text, ticks, from) {
  for (let at = text.indexOf(ticks, from); at !== -1;) {
    let end = at;
    while (text[end] === "`") end += 1;
    if (end - at === ticks.length) return at;
    at = text.indexOf(ticks, end);
  }
  return -1;
}

// Where what is marked at a place ends: -1 where nothing closes it, 0 where the mark opens nothing.
function closing(text, mark, at) {
  const inner = at + mark.length;
  const word = (character) => /[\p{L}\p{N}]/u.test(character ?? "");
  if (!text[inner] || /\s/.test(text[inner]) || (mark[0] === "_" && word(text[at - 1]))) return 0;
  for (let end = text.indexOf(mark, inner + 1), tries = 0; end !== -1 && tries < 16; tries += 1) {
    const doubled = mark.length === 1 && (text[end + 1] === mark || text[end - 1] === mark);
    while (mark.length === 2 && text[end + 2] === mark[0]) end += 1; // of three, the last two close what is outside
    if (!doubled && !/\s/.test(text[end - 1]) && !(mark[0] === "_" && word(text[end + mark.length]))) return end;
    end = text.indexOf(mark, end + (doubled ? 2 : 1));
  }
  return text.indexOf(mark, inner + 1) === -1 ? -1 : 0;
}

// Whether it is an address that a link may have: a relative one would be this server's own.
function addressOf(text) {
  try {
    return LINKS.has(new URL(text).protocol);
  } catch {
    return false;
  }
}

const link = (address, children) => h("a", { href: address, target: "_blank", rel: "noopener noreferrer nofollow" }, children);
