// What a trace tells of the whole: steps of diffusion, entropy, beams, drafts, layers and time.

// Each part where there is some of it, drawn anew as the trace grows.
class Overview {
  constructor(trace) {
    this.trace = trace;
    this.size = -1;
    this.parts = { steps: stepPart, entropy: entropyPart, beams: beamPart, drafts: draftPart, layers: layerPart, time: timePart };
    this.sections = Object.fromEntries(Object.keys(this.parts).map((name) => [name, h("section", { class: `part ${name}`, hidden: true })]));
    this.element = h("div", { class: "overview" }, Object.values(this.sections));
    this.update();
  }

  update() {
    if (this.trace.size === this.size) return;
    this.size = this.trace.size;
    for (const [name, part] of Object.entries(this.parts)) {
      const told = part(this.trace);
      const scrolled = [...this.sections[name].querySelectorAll(".wide")].map((each) => [each.scrollLeft, each.scrollTop]);
      this.sections[name].hidden = !told;
      this.sections[name].replaceChildren(...(told || []));
      for (const [place, each] of this.sections[name].querySelectorAll(".wide").entries()) each.scrollTo(...(scrolled[place] ?? [0, 0]));
    }
  }
}

const heading = (text, small) => h("h3", {}, text, small ? h("small", {}, " ", small) : null);
const wide = (label, ...children) => h("div", { class: "wide", tabindex: 0, role: "group", "aria-label": label }, ...children);
const there = (trace) => trace.answers.filter(Boolean);

function entropyPart(trace) {
  const charts = there(trace).flatMap((answer) => {
    const points = answer.steps.flatMap((step) => {
      const { choice } = trace.observed(answer, step);
      return choice ? [{ name: trace.name(step.id), entropy: Math.abs(choice.entropy) }] : [];
    });
    return points.length > 1 ? [entropyChart(points)] : [];
  });
  return (
    charts.length &&
    [heading(t("Entropy"), t("how undecided the model was, after every filter")), charts.map((chart) => wide(t("Entropy"), chart))].flat()
  );
}

function stepPart(trace) {
  const canvases = [...trace.canvases.entries()].filter(([, canvas]) => canvas);
  if (!canvases.length) return null;
  const drawn = canvases.flatMap(([choice, canvas]) => [
    canvases.length > 1 ? h("h4", {}, t("Answer {0}", choice + 1)) : null,
    h("div", { class: "canvas-steps", "data-choice": choice }, momentStrip(canvas), wide(t("Heat map"), momentDrawing(canvas)), wide(t("Steps"), stepTable(canvas))),
  ]);
  return [
    heading(t("Steps"), t("each token stands over the step in which it became certain; in the drawing, the stronger the shade, the likelier it was then")),
    ...drawn.filter(Boolean),
  ];
}

function beamPart(trace) {
  if (!trace.beams.length) return null;
  const changes = trace.beams.filter(({ finished }, place) => finished.join() !== (trace.beams[place - 1]?.finished || []).join());
  const rows = changes.map(({ position, finished }) =>
    h("tr", {}, h("th", { scope: "row" }, position), h("td", {}, finished.map((each) => each.toFixed(4)).join(", "))),
  );
  return [
    heading(t("Beams"), t("a column a step: each box is a live beam's token, below it the sum of its log-probabilities")),
    wide(
      t("Beams"),
      beamDrawing(beamTree(trace), (id) => trace.name(id)),
    ),
    rows.length ? table("finished", [t("after step"), t("scores of the finished")], rows) : null,
  ].filter(Boolean);
}

function draftPart(trace) {
  if (!trace.drafts.length) return null;
  const several = there(trace).length > 1;
  const said = trace.drafts.reduce((sum, each) => sum + each.ids.length, 0);
  const kept = trace.drafts.reduce((sum, each) => sum + each.accepted, 0);
  const tokens = there(trace).reduce((sum, each) => sum + each.steps.length, 0);
  const rows = trace.drafts.map(({ position, choice, ids, accepted }) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, several ? `${choice + 1}.${position}` : position),
      h("td", { class: "number" }, t("{0} of {1}", accepted, ids.length)),
      h(
        "td",
        { class: "strip" },
        ids.map((id, place) => h(place < accepted ? "ins" : "del", { class: "token" }, trace.name(id))),
      ),
    ),
  );
  return [
    heading(
      t("Drafts"),
      t(
        "{0} of {1} drafted tokens accepted ({2}%); {3} tokens took {4} passes, those that draft included",
        kept,
        said,
        said ? Math.round((100 * kept) / said) : 0,
        tokens,
        trace.passes.length,
      ),
    ),
    wide(t("Drafts"), table("drafts", [t("from"), t("accepted"), t("draft")], rows)),
  ];
}

function layerPart(trace) {
  const shown = there(trace)
    .flatMap((answer) => answer.steps.map((step) => [trace.name(step.id), trace.observed(answer, step).layer]))
    .filter(([, layer]) => layer);
  if (!shown.length) return null;
  const most = Math.max(...shown.flatMap(([, layer]) => layer.divergences.map(([, each]) => each))) || 1;
  const rows = shown.map(([name, layer]) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, name),
      layer.divergences.map(([number, each]) =>
        h("td", { class: `shade${number === layer.chosen ? " chosen" : ""}`, vars: { "--p": (each / most).toFixed(3) }, title: each.toFixed(4) }),
      ),
    ),
  );
  return [
    heading(t("Layers"), t("how far each candidate layer's distribution is from the last one's; the framed one was contrasted with it")),
    wide(t("Layers"), table("layers", [t("token"), ...shown[0][1].divergences.map(([number]) => number)], rows)),
  ];
}

function timePart(trace) {
  if (!trace.passes.length) return null;
  return [heading(t("Time")), h("p", { class: "lines" }, timesOf(trace).join("\n")), wide(t("Time"), timingChart(trace.passes))];
}

// What reading the prompt took, and the steps after it.
function timesOf(trace) {
  const sum = (passes, key) => passes.reduce((total, each) => total + each[key], 0);
  const reading = trace.passes.filter((each) => each.prefill);
  const later = trace.passes.filter((each) => !each.prefill).sort((a, b) => a.seconds - b.seconds);
  const lines = [];
  if (reading.length) {
    lines.push(
      t("prefill: {0} for {1} positions", milliseconds(sum(reading, "seconds")), sum(reading, "positions")) +
        (reading.length > 1 ? `, ${t("{0} passes", reading.length)}` : ""),
    );
  }
  if (later.length) {
    const lengths = there(trace).map((answer) => Math.max(answer.steps.length - 1, 0)); // the first token came with the prompt
    const tokens = trace.beams.length ? Math.max(0, ...lengths) : lengths.reduce((total, each) => total + each, 0);
    const speed = (tokens / sum(later, "seconds")).toFixed(1);
    lines.push(t("steps: {0} passes, {1} in the middle, {2} tokens/s", later.length, milliseconds(later[later.length >> 1].seconds), speed));
  }
  lines.push(
    t("cache: {0} positions at the last pass, {1} at most", trace.passes.at(-1).cached, Math.max(...trace.passes.map((each) => each.cached))),
  );
  return lines;
}
