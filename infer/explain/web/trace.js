// The events of one prompt, put in order as they come: its answers token by token, its passes, beams and drafts.

const CANDIDATES = 10; // likeliest tokens that a trace keeps of each distribution

const SIGNS = { " ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍" };
const UNSEEN = /[\p{C}\p{Z}\ufe00-\ufe0f]|(?<![\p{L}\p{M}\p{N}])\p{M}/gu; // what leaves no ink: marks do so on the letter before them alone
const named = (text) => text.replace(UNSEEN, (each) => SIGNS[each] || `<U+${each.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}>`);

class Trace {
  constructor(events = [], texts = {}) {
    this.texts = { ...texts }; // of the ids, by id; events may bring more
    this.answers = []; // by choice: {choice, steps, reason, grown: as which choice, checked: on how many of the steps}
    this.passes = [];
    this.beams = [];
    this.drafts = [];
    this.canvases = []; // by choice, of diffusion
    this.records = { choice: new Map(), layer: new Map(), contrast: new Map() }; // by grown choice and position
    this.spent = new Map(); // passes by the position of the token that they brought
    this.fresh = [];
    this.size = 0;
    for (const event of events) this.add(event);
  }

  add(event) {
    Object.assign(this.texts, event.texts);
    this.size += 1;
    if (event.type === "pass") {
      this.passes.push(event);
      this.fresh.push(event);
      return;
    }
    if (event.type === "provisional") return;
    if (event.type === "finished") {
      this.answer(event.choice).reason = event.reason;
      return;
    }
    if (this.fresh.length) {
      this.spent.set(event.position, [...(this.spent.get(event.position) || []), ...this.fresh]);
      this.fresh = [];
    }
    if (event.type === "committed") this.answer(event.choice).steps.push(event);
    else if (event.type === "beams") this.beams.push(event);
    else if (event.type === "draft") this.drafts.push(event);
    else if (event.type === "diffusion") (this.canvases[event.choice] ||= new Canvas()).take(event);
    else this.records[event.type].set(`${event.choice}.${event.position}`, event);
  }

  answer(choice) {
    return (this.answers[choice] ||= { choice, steps: [], reason: null, grown: choice, checked: 0 });
  }

  name(id) {
    return named(this.texts[id] ?? "") || `<${id}>`;
  }

  // Where answers were ranked once they were there, one was known by another number while it grew: by the one that took its tokens.
  grownAs(answer) {
    const { steps, checked } = answer;
    if (checked === steps.length) return answer.grown;
    const chose = (choice, from = 0) => steps.slice(from).every(({ position, id }) => this.records.choice.get(`${choice}.${position}`)?.id === id);
    if (!chose(answer.grown, checked)) {
      const known = new Set([answer.choice, ...[...this.records.choice.values()].map((each) => each.choice)]);
      answer.grown = [...known].find((choice) => chose(choice)) ?? answer.choice;
    }
    answer.checked = steps.length;
    return answer.grown;
  }

  observed(answer, step) {
    const key = `${this.grownAs(answer)}.${step.position}`;
    const choice = this.records.choice.get(key);
    return {
      choice,
      layer: this.records.layer.get(key),
      contrast: this.records.contrast.get(key),
      passes: this.spent.get(step.position) || [],
      probability: choice ? choice.probability : Math.min(Math.exp(step.logprob), 1),
    };
  }
}

// What the next filter does to a candidate: drops it, leaves it behind the likeliest that were kept, or neither.
function leaving(id, stages, place) {
  const after = stages[place + 1]?.[1];
  if (!after || after.some(([each]) => each === id)) return "";
  return after.length < CANDIDATES ? "drops" : "behind";
}

// For the model's distribution and after each filter: its name, and its likeliest tokens with what became of them.
function stagesOf(choice) {
  return choice.stages.map(([name, candidates], place) => {
    const last = place + 1 === choice.stages.length;
    const missing = last && !candidates.some(([id]) => id === choice.id);
    const shown = missing ? [...candidates.slice(0, CANDIDATES - 1), [choice.id, choice.probability]] : candidates;
    return [name, shown.map(([id, p]) => ({ id, p, kind: id === choice.id ? "chosen" : leaving(id, choice.stages, place) }))];
  });
}

// The tree that a beam search walked; `returned` marks the ways of the answers, `endings` where they left it.
function beamTree(trace) {
  const node = (step, lane, id, total) => ({ step, lane, id, total, children: [], endings: [], returned: false });
  const root = node(-1, 0, null, 0);
  let before = [root];
  trace.beams.forEach(({ live }, step) => {
    const row = live.map(([parent, id, total], lane) => {
      const made = node(step, lane, id, total);
      before[step ? parent : 0].children.push(made); // at first all go out from the prompt
      return made;
    });
    if (row.length) before = row;
  });
  const begin = trace.beams.length ? trace.beams[0].position : 0;
  for (const answer of trace.answers) if (answer) markWay(root, answer, begin);
  return root;
}

// Groups of beams may walk the same way for a while: an answer is of the one that walks it the farthest.
function markWay(root, answer, begin) {
  let reached = [[root]];
  for (const { id } of answer.steps.filter((step) => step.position >= begin)) {
    const further = reached.flatMap((way) =>
      way
        .at(-1)
        .children.filter((child) => child.id === id)
        .map((child) => [...way, child]),
    );
    if (!further.length) break;
    reached = further;
  }
  for (const node of reached[0]) node.returned = true;
  if (answer.reason) reached[0].at(-1).endings.push(answer);
}

function* walk(node) {
  yield node;
  for (const child of node.children) yield* walk(child);
}
