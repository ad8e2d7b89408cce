// An answer's tokens, coloured by probability, and what each was chosen from.

const percent = (p) => `${(100 * p).toFixed(p >= 0.995 || p < 0.0995 ? 1 : 0)}%`;

// One answer's tokens. The one under the pointer, or focused, is explained below; arrow keys go from token to token.
class TokenStrip {
  constructor(trace, choice) {
    this.trace = trace;
    this.choice = choice;
    this.tokens = [];
    this.kept = this.shown = -1;
    this.strip = h("div", { class: "strip", role: "group", "aria-label": t("Tokens, coloured by probability: arrow keys go from one to the next") });
    this.story = h("div", { class: "story", hidden: true });
    this.element = h("div", { class: "tokens" }, this.strip, this.story);
    this.strip.addEventListener("mouseover", (event) => this.show(this.placeOf(event.target), false));
    this.strip.addEventListener("mouseleave", () => this.show(this.kept, false));
    this.strip.addEventListener("focusin", (event) => this.show(this.placeOf(event.target), true));
    this.strip.addEventListener("click", (event) => this.tokens[this.placeOf(event.target)]?.focus());
    this.strip.addEventListener("keydown", (event) => this.walk(event));
    this.update();
  }

  get answer() {
    return this.trace.answer(this.choice);
  }

  placeOf(target) {
    return this.tokens.indexOf(target.closest(".token"));
  }

  walk(event) {
    const goal = { ArrowLeft: this.shown - 1, ArrowRight: this.shown + 1, Home: 0, End: this.tokens.length - 1 }[event.key];
    if (goal === undefined || !this.tokens[goal]) return;
    event.preventDefault();
    this.tokens[goal].focus();
  }

  update() {
    for (const step of this.answer.steps.slice(this.tokens.length)) {
      const { probability } = this.trace.observed(this.answer, step);
      const name = this.trace.name(step.id);
      const token = h(
        "span",
        {
          class: `token${step.text ? "" : " silent"}`,
          role: "button",
          tabindex: this.tokens.length ? -1 : 0,
          vars: { "--p": probability.toFixed(3) },
          "data-position": step.position,
          "aria-label": t("{0}, probability {1}", name, percent(probability)),
        },
        step.text ? seenInText(step.text) : name,
      );
      this.tokens.push(token);
      this.strip.append(token);
    }
  }

  show(place, keep) {
    if (place === -1 || !this.tokens[place] || (place === this.shown && !keep)) return;
    if (keep) {
      this.tokens[Math.max(this.kept, 0)].tabIndex = -1;
      this.tokens[place].tabIndex = 0;
      this.kept = place;
    }
    this.tokens[this.shown]?.classList.remove("on");
    this.tokens[place].classList.add("on");
    this.shown = place;
    this.story.hidden = false;
    this.story.replaceChildren(...storyOf(this.trace, this.answer, this.answer.steps[place]));
  }
}

// Line ends are seen and end the line; what else leaves no ink is told in the story.
const seenInText = (text) => text.split("\n").flatMap((line, place) => (place ? [h("i", { class: "sign" }, "⏎"), "\n", line] : [line]));

function storyOf(trace, answer, step) {
  const { choice, layer, contrast, passes, probability } = trace.observed(answer, step);
  const partial = step.text.trim() && /<0x/.test(trace.name(step.id)) ? ` (${step.text.trim()})` : "";
  const facts = [`p ${chance(probability)}`];
  if (choice) facts.push(`${t("entropy")} ${Math.abs(choice.entropy).toFixed(2)} nats`);
  if (passes.length) facts.push(costOf(passes));
  const parts = [
    h(
      "p",
      { class: "facts" },
      h("span", { class: "place" }, step.position),
      " ",
      h("b", {}, trace.name(step.id) + partial),
      " ",
      h("small", {}, facts.join(", ")),
    ),
  ];
  if (layer) parts.push(h("div", { class: "stages" }, layerStage(layer)));
  if (choice) {
    const stages = stagesOf(choice).map(([name, candidates]) =>
      stage(
        name,
        candidates.map(({ id, p, kind }) => bar(trace.name(id), p, chance(p), kind)),
      ),
    );
    parts.push(h("div", { class: "stages" }, stages));
  }
  if (contrast) parts.push(contrastTable(trace, contrast, step.id));
  return parts;
}

const stage = (name, rows) => h("div", { class: "stage" }, h("h4", {}, name), h("table", { class: "bars" }, rows));

const bar = (name, share, value, kind) =>
  h(
    "tr",
    { class: kind || null },
    h("th", { scope: "row" }, name),
    h("td", { class: "bar" }, h("span", { vars: { "--share": `${(100 * Math.min(Math.max(share, 0), 1)).toFixed(1)}%` } })),
    h("td", { class: "number" }, value),
  );

function layerStage(layer) {
  const most = Math.max(...layer.divergences.map(([, each]) => each)) || 1;
  const rows = layer.divergences.map(([number, each]) =>
    bar(`${t("layer")} ${number}`, each / most, Number(each.toPrecision(4)), number === layer.chosen ? "chosen" : ""),
  );
  return stage(t("divergence from the last layer"), rows);
}

function contrastTable(trace, contrast, chosen) {
  const rows = contrast.candidates.map(([id, p, likeness, score]) =>
    h(
      "tr",
      { class: id === chosen ? "chosen" : null },
      h("th", { scope: "row" }, trace.name(id)),
      [chance(p), likeness.toFixed(3), score.toFixed(3)].map((each) => h("td", { class: "number" }, each)),
    ),
  );
  return table("terms", [t("candidate"), t("probability"), t("likeness"), t("score")], rows);
}

// What the passes before a token took.
function costOf(passes) {
  const read = passes.filter((each) => each.prefill).reduce((sum, each) => sum + each.positions, 0);
  const said = [milliseconds(passes.reduce((sum, each) => sum + each.seconds, 0))];
  if (passes.length > 1) said.push(t("{0} passes", passes.length));
  if (read) said.push(t("prompt {0}", read));
  return [...said, t("cache {0}", passes.at(-1).cached)].join(", ");
}

const legend = () =>
  h("p", { class: "legend" }, h("span", { class: "scale" }, t("unlikely")), " ", h("span", { class: "scale sure" }, t("certain")), " ", t("A token that is clicked shows what it was chosen from."));
