// Drawings of a trace as SVG: time, entropy, beams, attention. Colours are the stylesheet's, by class.

const chance = (p) => (p >= 0.001 || p === 0 ? p.toFixed(3) : p.toExponential(0));
const milliseconds = (seconds) => `${(1000 * seconds).toFixed(1)} ms`;
const round = (number) => Math.round(10 * number) / 10;

// Rules at shares of the height, with what they stand for.
function scale(left, width, height, top, unit) {
  return [0, 0.5, 1].flatMap((share) => {
    const y = round(10 + height * (1 - share));
    return [
      svg("line", { class: "grid", x1: left, x2: round(left + width), y1: y, y2: y }),
      svg("text", { class: "axis", x: left - 6, y: y + 4, "text-anchor": "end" }, `${Number((top * share).toPrecision(3))} ${unit}`),
    ];
  });
}

// A bar a pass, as high as its time; the passes that read the prompt are cut off where they tower over the others.
function timingChart(passes, height = 120) {
  const later = passes.filter((each) => !each.prefill);
  const top = 1000 * Math.max(1e-9, ...(later.length ? later : passes).map((each) => each.seconds)) * 1.1;
  const step = Math.max(Math.min(640 / Math.max(passes.length, 1), 24), 4);
  const left = 72;
  const cut = [];
  const bars = passes.map((each, place) => {
    const ms = 1000 * each.seconds;
    const tall = Math.min(ms / top, 1) * height;
    if (ms > top) cut.push(`${ms.toFixed(0)} ms`);
    const said = `pass ${place + 1}: ${milliseconds(each.seconds)}, ${each.positions} new positions, ${each.cached} in the cache`;
    return svg(
      "rect",
      {
        class: each.prefill ? "prefill" : "pass",
        x: round(left + step * place + 1),
        y: round(10 + height - tall),
        width: round(step - 2),
        height: round(tall),
      },
      svg("title", {}, said + (each.prefill ? ", reads the prompt" : "")),
    );
  });
  const said = "passes in their order" + (cut.length ? `; cut off: ${cut.slice(0, 5).join(", ")}` : "");
  const width = Math.max(step * passes.length, 6.5 * said.length) + left + 10;
  const rules = scale(left, step * passes.length, height, top, "ms");
  return drawing(
    round(width),
    height + 34,
    `Time of each of ${passes.length} passes`,
    rules,
    bars,
    svg("text", { class: "axis", x: left, y: height + 28 }, said),
  );
}

// The entropy at each token as a line, each point a token.
function entropyChart(points, height = 90) {
  const top = Math.max(0.5, ...points.map((each) => each.entropy)) * 1.05;
  const step = Math.max(Math.min(640 / Math.max(points.length, 1), 24), 3);
  const left = 72;
  const width = step * points.length;
  const at = (each, place) => [round(left + step * (place + 0.5)), round(10 + height * (1 - each.entropy / top))];
  const line = points.map((each, place) => `${place ? "L" : "M"}${at(each, place).join(" ")}`).join("");
  const dots = points.map((each, place) => {
    const [cx, cy] = at(each, place);
    return svg("circle", { class: "point", cx, cy, r: Math.min(step / 3, 3.5) }, svg("title", {}, `${each.name}: ${each.entropy.toFixed(2)} nats`));
  });
  const said = "tokens in their order";
  return drawing(
    round(Math.max(width, 6.5 * said.length) + left + 10),
    height + 34,
    `Entropy at each of ${points.length} tokens`,
    scale(left, width, height, top, "nats"),
    svg("path", { class: "line", d: line }),
    dots,
    svg("text", { class: "axis", x: left, y: height + 28 }, said),
  );
}

// The tree of beams, a column a step; the ways of the answers are thick.
function beamDrawing(root, name, dx = 104, dy = 46) {
  const nodes = [...walk(root)].filter((node) => node.id !== null);
  if (!nodes.length) return null;
  const last = Math.max(...nodes.map((node) => node.step));
  const lanes = Math.max(...nodes.map((node) => node.lane));
  const place = (node) => [54 + dx * (node.step + 1), 24 + (node.id === null ? 0 : dy * node.lane)];
  const edges = { edge: [], way: [] }; // the ways of the answers lie above
  const boxes = [];
  for (const node of walk(root)) {
    const [x, y] = place(node);
    for (const child of node.children) {
      const [toX, toY] = place(child);
      const kind = node.returned && child.returned ? "way" : "edge";
      const middle = (x + toX) / 2;
      edges[kind].push(svg("path", { class: kind, d: `M${x + 40} ${y}C${middle} ${y} ${middle} ${toY} ${toX - 40} ${toY}` }));
    }
    boxes.push(beamBox(node, node.id === null ? "prompt" : name(node.id), x, y));
  }
  return drawing(54 + dx * (last + 1) + 60, 24 + dy * lanes + 34, `${lanes + 1} beams over ${last + 1} steps`, edges.edge, edges.way, boxes);
}

function beamBox(node, name, x, y) {
  const ends = node.endings.map((answer) => `answer ${answer.choice + 1} ends`).join("; ");
  const total = node.id === null ? "" : node.total.toFixed(2) + (ends ? " ■" : "");
  return svg(
    "g",
    {},
    svg("title", {}, `${name}, sum ${node.total.toFixed(4)}${ends ? `; ${ends}` : ""}`),
    svg("rect", { class: `node${node.returned ? " returned" : ""}${ends ? " ends" : ""}`, x: x - 40, y: y - 12, width: 80, height: 24, rx: 5 }),
    svg("text", { class: "name", x, y: y + 4, "text-anchor": "middle" }, short(name, 10)),
    svg("text", { class: "sum", x, y: y + 29, "text-anchor": "middle" }, total),
  );
}

const FULL =
  /[\u1100-\u115f\u2e80-\u303e\u3041-\u33ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua4cf\ua960-\ua97f\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6\u{1f300}-\u{1faff}\u{20000}-\u{3fffd}]/u;

// How many characters of half width a text is wide.
const widthOf = (text) => [...text].reduce((sum, each) => sum + (FULL.test(each) ? 2 : 1), 0);

function short(text, length) {
  if (widthOf(text) <= length) return text;
  let kept = [...text];
  while (widthOf(kept.join("")) >= length) kept = kept.slice(0, -1);
  return kept.join("") + "…";
}

// The cells of a map as one path a shade, each cell 1 by 1; `rows` are strings of shades up to `levels`, in base 36, each up to its own position.
function heatSquares(rows, levels) {
  const paths = new Map();
  rows.forEach((row, y) => {
    for (let x = 0, end; x < row.length; x = end) {
      for (end = x; end < row.length && row[end] === row[x];) end += 1;
      if (row[x] !== "0") paths.set(row[x], `${paths.get(row[x]) || ""}M${x} ${y}h${end - x}v1h-${end - x}z`);
    }
  });
  return [...paths].sort().map(([level, d]) => svg("path", { class: "heat", opacity: (parseInt(level, 36) / levels).toFixed(2), d }));
}

// The heat map of one head, a row a query, with its tokens along both sides; a line tells the prompt from the answer.
function attentionDrawing(rows, levels, tokens, prompt, title) {
  const n = tokens.length;
  const cell = Math.max(Math.min(760 / n, 20), 11); // so small that labels can just be read
  const margin = Math.round(10 + 0.62 * Math.min(cell * 0.85, 13) * Math.min(Math.max(...tokens.map(widthOf)), 15));
  const side = round(cell * n);
  const size = Math.min(cell * 0.85, 13).toFixed(1);
  const labels = tokens.flatMap((token, place) => {
    const middle = (place + 0.5) * cell;
    const look = { class: place >= prompt ? "name answer" : "name", "font-size": size, dy: ".35em" };
    return [
      svg("text", { ...look, x: margin - 6, y: round(margin + middle), "text-anchor": "end" }, short(token, 14)),
      svg("text", { ...look, transform: `translate(${round(margin + middle)} ${margin - 6}) rotate(-60)` }, short(token, 14)),
    ];
  });
  const border =
    prompt > 0 && prompt < n
      ? svg("path", { class: "border", d: `M${margin} ${margin + prompt * cell}h${side}M${margin + prompt * cell} ${margin}v${side}` })
      : null;
  const cursor = svg("rect", { class: "cursor", width: cell, height: cell, visibility: "hidden" });
  const drawn = drawing(
    margin + side + 60,
    margin + side + 10,
    title,
    svg("rect", { class: "ground", x: margin, y: margin, width: side, height: side }),
    svg("g", { transform: `translate(${margin} ${margin}) scale(${cell})` }, heatSquares(rows, levels)),
    labels,
    border,
    cursor,
  );
  return { drawn, cursor, cell, margin };
}

// The heat map of one head without labels.
function thumbnail(rows, levels, title) {
  return svg(
    "svg",
    { class: "thumbnail", viewBox: `0 0 ${rows.length} ${rows.length}`, role: "img", "aria-label": title },
    svg("rect", { class: "ground", width: rows.length, height: rows.length }),
    heatSquares(rows, levels),
  );
}
