// Messages as they are shown: what was said, what was thought and called apart from it, how it came about, and what can be done with it.

class MessageView {
  constructor(chat, node) {
    Object.assign(this, { chat, node });
    this.body = h("div", { class: "body" });
    this.actions = h("div", { class: "actions" });
    this.element = h("article", { class: `message ${node.role}`, "data-node": node.id, "aria-label": this.label() });
    this.update();
  }

  update() {}

  label() {
    return this.node.role === "user" ? t("You") : t("Answer of {0}", this.node.model);
  }

  // Replace the body by a field; what is kept becomes a sibling.
  edit() {
    const area = h("textarea", { class: "editor", rows: 3, "aria-label": t("Edit the message") });
    const done = (save) => {
      if (save && area.value.trim()) this.chat.branch(this.node, area.value);
      else this.chat.draw(this.node.id, "edit");
    };
    area.value = this.node.content;
    area.addEventListener("keydown", (event) => {
      if (composing(event)) return;
      if (event.key === "Escape") {
        event.preventDefault(); // it stops no answer
        done(false);
      }
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey || (!event.shiftKey && this.node.role === "user"))) {
        event.preventDefault();
        done(true);
      }
    });
    const save = this.node.role === "user" ? t("Send") : t("Save");
    this.element.replaceChildren(
      area,
      h(
        "div",
        { class: "buttons" },
        textButton(t("Cancel"), () => done(false)),
        textButton(save, () => done(true), { class: "primary" }),
      ),
    );
    area.style.height = `${Math.min(area.scrollHeight + 4, 400)}px`;
    area.focus();
  }

  // < 2/3 >, where there are other versions.
  versions() {
    const units = unitsOf(this.chat.conversation, this.node);
    if (units.length < 2) return null;
    const at = units.findIndex((unit) => unit.includes(this.node));
    const go = (way) =>
      iconButton(
        way < 0 ? "before" : "next",
        way < 0 ? t("Version before") : t("Next version"),
        () => this.chat.show(units[at + way][0], way < 0 ? "before" : "next"),
        { disabled: !units[at + way], "data-action": way < 0 ? "before" : "next" },
      );
    return h(
      "span",
      { class: "versions", role: "group", "aria-label": t("Version {0} of {1}", at + 1, units.length) },
      go(-1),
      h("span", { "aria-hidden": "true" }, `${at + 1}/${units.length}`),
      go(1),
    );
  }

  action(name, label, onClick) {
    return iconButton(name, label, onClick, { "data-action": name });
  }
}

class QuestionView extends MessageView {
  update() {
    this.body.textContent = this.node.content;
    this.actions.replaceChildren(
      ...[
        this.versions(),
        this.action("copy", t("Copy the message"), (event) => copyText(this.node.content, event.currentTarget)),
        this.action("edit", t("Edit the message"), () => this.edit()),
      ].filter(Boolean),
    );
    this.element.replaceChildren(this.body, this.actions);
  }
}

class AnswerView extends MessageView {
  get traced() {
    return this.chat.answering.traces.get(this.node.id);
  }

  // The canvas of a diffusion answer, while it is filled in.
  get canvas() {
    if (!this.busy) return null;
    return this.chat.answering.canvases.get(this.node.id) ?? this.traced?.trace.canvases[this.traced.choice] ?? null;
  }

  get busy() {
    return this.node.finish === null && this.chat.answering.busy(this.chat.conversation);
  }

  update() {
    if (!this.thinking) this.build();
    const { node } = this;
    this.thinking.hidden = !node.reasoning;
    this.thought.textContent = node.reasoning;
    this.drawBody();
    this.calls.replaceChildren(...(node.calls || []).filter(Boolean).map(callBlock));
    this.element.setAttribute("aria-busy", String(this.busy));
    this.element.classList.toggle("waiting", this.busy && !node.content && !node.reasoning && !this.canvas);
    if (this.busy) return;
    if (this.overview && !this.inside.hidden) this.overview.update();
    this.finish();
  }

  build() {
    const name = this.node.side === null || this.node.side === undefined ? this.node.model : `${"AB"[this.node.side]} · ${this.node.model}`;
    this.thought = h("div", { class: "thought" });
    this.thinking = h("details", { class: "thinking" }, h("summary", {}, t("Thinking")), this.thought);
    this.calls = h("div", { class: "calls" });
    this.problem = h("div", { class: "problem", role: "alert" });
    this.inside = h("div", { class: "inside" });
    this.facts = h("p", { class: "stats" });
    this.element.replaceChildren(
      h("p", { class: "name" }, name),
      this.thinking,
      this.body,
      this.calls,
      this.problem,
      this.inside,
      this.facts,
      this.actions,
    );
  }

  // With a look inside, the answer is its tokens; else it is read as markdown. What is filled in by diffusion is its canvas until it is there.
  drawBody() {
    const { traced, canvas } = this;
    const look = this.chat.settings.look && traced;
    this.inside.hidden = !look;
    this.body.classList.toggle("said", !look && !canvas);
    if (look) this.lookInside(traced);
    else this.strip = null;
    if (canvas) this.body.replaceChildren(drawnCanvas(canvas));
    else if (!look) this.body.replaceChildren(markdown(this.node.content));
    else if (!this.body.contains(this.strip.element)) this.body.replaceChildren(legend(), this.strip.element);
  }

  lookInside({ trace, choice }) {
    if (!this.strip) {
      this.strip = new TokenStrip(trace, choice);
      this.overview = new Overview(trace);
      this.body.replaceChildren(legend(), this.strip.element);
      this.inside.replaceChildren(h("details", { class: "came-about", open: true }, h("summary", {}, t("How it came about")), this.overview.element));
    }
    this.strip.update();
    this.drawOverview();
  }

  // Drawn a few times a second as the answer grows: a tree of many steps takes a while.
  drawOverview() {
    if (this.waits) return;
    const began = performance.now();
    this.overview.update();
    if (!this.busy) return;
    const pause = Math.max(200, 5 * (performance.now() - began));
    this.waits = setTimeout(() => {
      this.waits = null;
      if (this.strip && this.element.isConnected) this.drawOverview();
    }, pause);
  }

  finish() {
    const { node, chat } = this;
    const edit = this.action("edit", t("Edit the answer"), () => this.edit());
    const chosen = chat.conversation.chosen[node.parent] === node.id;
    const choose = node.pair
      ? h(
          "button",
          {
            type: "button",
            class: "choose",
            "aria-pressed": String(chosen),
            "data-action": "choose",
            on: { click: () => chat.show(node, "choose") },
          },
          chosen ? t("Goes on from here") : t("Go on from here"),
        )
      : null;
    this.actions.replaceChildren(
      ...[
        this.versions(),
        this.action("copy", t("Copy the answer"), (event) => copyText(node.content, event.currentTarget)),
        this.action("again", t("Answer again"), () => chat.again(node)),
        edit,
        this.action("code", t("The request as code"), () =>
          showSnippets(bodyOf(chat.conversation, chat.conversation.nodes[node.parent], node.model, node.given, chat.settings.singleTurn(node.model))),
        ),
        choose,
      ].filter(Boolean),
    );
    this.facts.replaceChildren(statsText(node, chat.settings.look && !this.traced));
    this.drawProblem();
  }

  drawProblem() {
    const { error, finish } = this.node;
    if (finish !== "error") {
      this.problem.replaceChildren();
      return;
    }
    const again = textButton(t("Try again"), () => this.chat.retry(this.node), { "data-action": "retry" });
    const param =
      error.param && this.chat.settings.fields.has(error.param) && textButton(t("Show the setting"), () => this.chat.drawer.reveal(error.param));
    this.problem.replaceChildren(h("p", {}, error.message), h("div", { class: "buttons" }, param || "", again));
    if (error.retryAfter) countDown(again, error.retryAfter);
    error.retryAfter = null; // it has been waited for
  }
}

// A button that can be pressed once the server says so.
function countDown(button, seconds) {
  const until = performance.now() + 1000 * seconds;
  const tell = () => {
    const left = Math.ceil((until - performance.now()) / 1000);
    button.disabled = left > 0;
    button.textContent = left > 0 ? t("Try again in {0} s", left) : t("Try again");
    if (left > 0) setTimeout(tell, 250);
  };
  tell();
}

function callBlock({ name, arguments: given }) {
  let shown = given;
  try {
    shown = JSON.stringify(JSON.parse(given), null, 2);
  } catch {
    // as it stands by now
  }
  return h(
    "figure",
    { class: "call" },
    h("figcaption", {}, t("Calls {0}", ""), h("code", {}, name)),
    h("pre", { tabindex: 0, role: "region", "aria-label": t("Calls {0}", name) }, h("code", {}, shown)),
  );
}

const REASONS = { length: "cut off at its greatest length", stopped: "stopped" };

function statsText({ stats, finish }, unseen) {
  const told = [];
  if (stats) {
    told.push(t("first token after {0} s", stats.first.toFixed(2)));
    if (stats.speed !== null) told.push(t("{0} tokens/s", stats.speed.toFixed(1)));
    if (stats.tokens !== null) told.push(t("{0} tokens", stats.tokens));
    if (stats.passes) told.push(t("{0} passes, {1} tokens each", stats.passes, (stats.tokens / stats.passes).toFixed(2)));
    if (stats.prompt !== null) told.push(t("{0} read, {1} of them cached", stats.prompt, stats.cached ?? 0));
  }
  if (REASONS[finish]) told.push(t(REASONS[finish]));
  if (unseen) told.push(t("what happened inside was not kept: answer again to see it"));
  return told.join(" · ");
}

// The versions of a message; two answers side by side are one.
function unitsOf(conversation, node) {
  const units = new Map();
  for (const each of siblings(conversation, node)) {
    const key = each.pair || each.id;
    units.set(key, [...(units.get(key) || []), each]);
  }
  return [...units.values()];
}
