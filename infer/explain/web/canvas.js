// The canvas of a diffusion answer as its steps tell it: what is certain, what is guessed, what is open; and its drawings.

const MASK = "░";

class Canvas {
  constructor() {
    this.cells = []; // by position: {certain, guess, again}; certain is {token, special, step, p}, guess {token, special, p}, both null where it is open
    this.steps = []; // {step, forwards, certain: what became so, tokens: what is certain after it, by position, or null}
  }

  take({ step, forwards, length, given = [], remasked, certain, guesses }) {
    while (this.cells.length < length) this.cells.push({ certain: null, guess: null, again: 0 });
    for (const { position, token, special = false } of given) this.cells[position].certain = { token, special, step: 0, p: 1 };
    for (const position of remasked) {
      const { again } = this.cells[position];
      this.cells[position] = { certain: null, guess: null, again: again + 1 };
    }
    for (const { position, token, special = false, logprob } of certain) {
      this.cells[position].certain = { token, special, step, p: Math.min(Math.exp(logprob), 1) };
      this.cells[position].guess = null;
    }
    for (const { position, token, special = false, logprob } of guesses)
      this.cells[position].guess = { token, special, p: Math.min(Math.exp(logprob), 1) };
    this.steps.push({ step, forwards, certain, tokens: this.cells.map((cell) => cell.certain) });
  }

  get done() {
    return this.cells.filter((cell) => cell.certain).length;
  }

  get last() {
    return this.steps.at(-1)?.step ?? 0;
  }
}

const BYTES = /<0x([0-9A-F]{2})>/;

// What some tokens say together: bytes that are written out become characters where they are whole, else they stay as they are.
function together(tokens) {
  const joined = tokens.join("");
  if (!BYTES.test(joined)) return joined;
  const bytes = joined.split(/(<0x[0-9A-F]{2}>)/).flatMap((part) => (BYTES.test(part) ? [parseInt(part.slice(3, 5), 16)] : [...new TextEncoder().encode(part)]));
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(new Uint8Array(bytes));
  } catch {
    return null;
  }
}

// Neighbours that make whole characters only together, [{kind, tokens, first}]; `kindOf` tells a position's kind, `tokenOf` its token or null. What
// is of several kinds is of the one that comes first in `ranks`.
function pieces(length, kindOf, tokenOf, ranks) {
  const found = [];
  for (let at = 0; at < length; ) {
    const token = tokenOf(at);
    let end = at + 1;
    if (token && BYTES.test(token.token)) {
      const parts = [token.token];
      while (together(parts) === null && parts.length < 4 && tokenOf(at + parts.length) && !tokenOf(at + parts.length).special)
        parts.push(tokenOf(at + parts.length).token);
      if (together(parts) !== null) end = at + parts.length;
    }
    const places = Array.from({ length: end - at }, (_, place) => at + place);
    found.push({ kind: ranks.find((kind) => places.some((place) => kindOf(place) === kind)), tokens: places.map(tokenOf), first: at });
    at = end;
  }
  return found;
}

const sayOf = (tokens) => together(tokens.map((each) => each.token)) ?? tokens.map((each) => each.token).join("");

// The canvas after a step by stretches of one kind, [kind, text]; a special token that is repeated is counted.
function stretchesOf({ certain, tokens }) {
  const fresh = new Set(certain.map((each) => each.position));
  const kindOf = (place) => (tokens[place] ? (fresh.has(place) ? "new" : "old") : "open");
  const found = [];
  for (const { kind, tokens: those } of pieces(tokens.length, kindOf, (place) => tokens[place] ?? null, ["open", "new", "old"])) {
    if (found.at(-1)?.kind !== kind) found.push({ kind, parts: [] });
    const { parts } = found.at(-1);
    const said = kind === "open" ? MASK : sayOf(those);
    const special = Boolean(those[0]?.special);
    const before = parts.at(-1);
    if (before?.special !== special || (special && before.text !== said)) parts.push({ text: said, special, count: 1 });
    else if (special) before.count += 1;
    else before.text += said;
  }
  const written = ({ text, count }) => named(text).replaceAll("␣", " ") + (count > 1 ? `×${count}` : "");
  return found.map(({ kind, parts }) => [kind, parts.map(written).join("")]);
}

// The canvas as it stands: masks, guesses in grey, what is certain in the ink of texts, what is new marked; a special token that is repeated is counted.
function drawnCanvas(canvas) {
  const { cells, last } = canvas;
  const kindOf = (place) => (cells[place].certain ? "certain" : cells[place].guess ? "guess" : "open");
  const tokenOf = (place) => cells[place]?.certain ?? cells[place]?.guess ?? null;
  const found = [];
  for (const { kind, tokens, first } of pieces(cells.length, kindOf, tokenOf, ["open", "guess", "certain"])) {
    const fresh = kind === "certain" && tokens.some((each) => each.step === last);
    const special = tokens[0]?.special ? " special" : "";
    const cell = { look: `cell ${kind}${fresh ? " fresh" : ""}${special}`, text: kind === "open" ? MASK : sayOf(tokens), first, p: tokens[0]?.p, count: 1 };
    if (special && found.at(-1)?.look === cell.look && found.at(-1).text === cell.text) found.at(-1).count += 1;
    else found.push(cell);
  }
  const spans = found.map(({ look, text, first, p, count }) =>
    h(
      "span",
      { class: look, "data-position": first, title: p !== undefined && count === 1 && percent(p) },
      seenInText(text),
      count > 1 && `×${count}`,
    ),
  );
  return h(
    "div",
    { class: "canvas-now", role: "img", "aria-label": t("Step {0}: {1} of {2} positions are certain", last, canvas.done, cells.length) },
    spans,
  );
}

// Each token, coloured by the step in which it became certain, which stands below it.
function momentStrip(canvas) {
  const { cells, last } = canvas;
  return h(
    "div",
    { class: "moments" },
    cells.map(({ certain, again }, place) => {
      const told = certain ? (certain.step ? `${certain.step}${again ? "↺" : ""}` : t("given")) : "–";
      return h(
        "span",
        {
          class: `moment${certain ? "" : " open"}`,
          "data-position": place,
          vars: { "--p": certain?.step ? ((certain.step - 1) / Math.max(last - 1, 1)).toFixed(3) : 0 },
          title: certain && (certain.step ? t("step {0}, probability {1}", certain.step, percent(certain.p)) : t("given")),
        },
        certain ? named(certain.token) : MASK,
        h("small", {}, told),
      );
    }),
  );
}

const LEVELS = 12; // shades, a digit in base 36 each

// A row a step and a column a position, shaded from the step on in which it became certain, by how likely its token was then.
function momentDrawing(canvas) {
  const { cells, steps } = canvas;
  const rows = steps.map(({ tokens }) => tokens.map((each) => (each ? (1 + Math.round(each.p * (LEVELS - 1))).toString(36) : "0")).join(""));
  const wide = Math.max(Math.min(760 / cells.length, 22), 11);
  const high = Math.max(Math.min(320 / steps.length, 18), 3);
  const names = cells.map(({ certain }) => short(certain ? named(certain.token) : MASK, 14));
  const margin = Math.round(14 + 6.2 * Math.max(...names.map(widthOf)));
  const every = Math.ceil(14 / high); // labels that there is room for
  return drawing(
    round(46 + wide * cells.length + 60),
    round(margin + high * rows.length + 8),
    t("When each of {0} positions became certain, over {1} steps", cells.length, steps.length),
    svg("rect", { class: "ground", x: 46, y: margin, width: round(wide * cells.length), height: round(high * rows.length) }),
    svg("g", { transform: `translate(46 ${margin}) scale(${wide} ${high})` }, heatSquares(rows, LEVELS)),
    names.map((name, place) =>
      svg("text", { class: "name", "font-size": 11, dy: ".35em", transform: `translate(${round(46 + wide * (place + 0.5))} ${margin - 6}) rotate(-60)` }, name),
    ),
    steps.map(({ step }, place) =>
      place % every ? null : svg("text", { class: "axis", x: 40, y: round(margin + high * (place + 0.5) + 4), "text-anchor": "end" }, step),
    ),
  );
}

// Each step: the canvas after it, and what became certain with how sure the order was of it.
function stepTable(canvas) {
  const rows = canvas.steps.map((step) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, step.step),
      h(
        "td",
        { class: "canvas" },
        stretchesOf(step).map(([kind, text]) => h("span", { class: kind }, text)),
      ),
      h("td", {}, step.certain.map(({ position, token, sure }) => `${position} ${named(token)} ${sure.toFixed(3)}`).join(", ")),
    ),
  );
  return table("steps", [t("step"), t("canvas after it"), t("what became certain, and how sure the order was")], rows);
}
