// The page of one prompt: its answers, what happened, and the attention of a layer, out of the data that the page holds.

const SHOWN = JSON.parse(document.getElementById("trace").textContent);

function drawAnswers() {
  const trace = new Trace(SHOWN.events, SHOWN.texts);
  for (const section of document.querySelectorAll("section.answer")) {
    const { element, tokens } = new TokenStrip(trace, Number(section.dataset.choice));
    section.append(legend(), element);
    section.addEventListener(
      "focusin",
      (event) => event.target.dataset.position && history.replaceState(null, "", `#a${section.dataset.choice}t${event.target.dataset.position}`),
    );
    const wanted = tokens.find((token) => location.hash === `#a${section.dataset.choice}t${token.dataset.position}`);
    if (wanted) wanted.focus();
  }
  document.getElementById("overview").append(new Overview(trace).element);
}

function drawAttention({ title, tokens, prompt, levels, rows, heads, weights }) {
  const { drawn, cursor, cell, margin } = attentionDrawing(rows, levels, tokens, prompt, title);
  const told = h("p", { class: "told" }, "\u00a0");
  const thumbnails = heads.map((each, number) => h("figure", {}, thumbnail(each, levels, `head ${number}`), h("figcaption", {}, `head ${number}`)));
  document
    .getElementById("attention")
    .append(told, wide(title, drawn), h("h3", {}, "All heads of the layer"), h("div", { class: "heads" }, thumbnails));
  drawn.addEventListener("mousemove", (event) => {
    const box = drawn.getBoundingClientRect();
    const [column, row] = [event.clientX - box.left, event.clientY - box.top].map((each) => Math.floor((each - margin) / cell));
    const weight = weights?.[row]?.[column];
    cursor.setAttribute("visibility", weight === undefined ? "hidden" : "visible");
    if (weight === undefined) return;
    cursor.setAttribute("x", margin + column * cell);
    cursor.setAttribute("y", margin + row * cell);
    told.textContent = `${tokens[row]} (position ${row}) attends to ${tokens[column]} (position ${column}) by ${(weight / 1000).toFixed(3)}`;
  });
}

drawAnswers();
if (SHOWN.picture) drawAttention(SHOWN.picture);
