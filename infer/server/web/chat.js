// The conversation that is open: its messages, the field that is written into, and what moves between branches.

class Chat {
  constructor(settings) {
    this.settings = settings;
    this.answering = new Answering(settings);
    this.answering.onChange = (conversation, node, what) => this.heard(conversation, node, what);
    this.conversation = newConversation();
    this.views = new Map();
    this.grown = new Set(); // views to be drawn in the next frame
    this.transcript = byId("transcript");
    this.field = byId("message");
    this.said = new Map(); // how much of an answer has been told to screen readers, by node
    this.onList = () => {};
    this.setUpField();
  }

  setUpField() {
    const { field } = this;
    field.addEventListener("input", () => this.fit());
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || composing(event)) return; // that Enter ends a syllable
      event.preventDefault();
      this.send();
    });
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    byId("stop").addEventListener("click", () => this.stop());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !composing(event) && !event.defaultPrevented && !document.querySelector("dialog[open]")) this.stop();
    });
  }

  fit() {
    this.field.style.height = "auto";
    this.field.style.height = `${Math.min(this.field.scrollHeight + 2, 240)}px`;
  }

  get busy() {
    return this.answering.busy(this.conversation);
  }

  // The node that the next message follows.
  get last() {
    return pathOf(this.conversation).at(-1) ?? null;
  }

  send() {
    const text = this.field.value.trim();
    if (!text || this.busy || !this.settings.models.length) return;
    this.field.value = "";
    this.fit();
    this.question(text, this.last?.id ?? ROOT);
  }

  question(text, parent) {
    const { conversation } = this;
    conversation.title ||= text.replace(/\s+/g, " ").slice(0, 60);
    const node = addNode(conversation, parent, { role: "user", content: text });
    keep(conversation);
    this.onList();
    this.draw();
    this.answer(node);
  }

  answer(question) {
    announce(t("The answer is being written."));
    this.answering.answer(this.conversation, question);
    this.tell();
    this.toEnd();
  }

  stop() {
    if (!this.busy) return;
    this.answering.stop(this.conversation);
    this.field.focus();
  }

  // An edited message: a question is asked anew, an answer stands beside the model's.
  branch(node, text) {
    if (node.role === "user") {
      if (this.busy) return;
      this.question(text, node.parent);
    } else {
      const { id, ...rest } = node;
      const made = addNode(this.conversation, node.parent, {
        ...rest,
        content: text,
        pair: null,
        side: null,
        finish: "edited",
        error: null,
        stats: null,
      });
      keep(this.conversation);
      this.draw(made.id, "edit");
    }
  }

  again(node) {
    if (this.busy) return;
    this.answer(this.conversation.nodes[node.parent]);
  }

  // Ask once more in place of an answer that failed.
  retry(node) {
    if (this.busy) return;
    const question = this.conversation.nodes[node.parent];
    for (const each of siblings(this.conversation, node).filter((other) => other.finish === "error" && !other.content))
      removeNode(this.conversation, each);
    this.answer(question);
    this.field.focus();
  }

  // Show a version; the focus stays on what was pressed.
  show(node, action) {
    this.conversation.chosen[node.parent] = node.id;
    keep(this.conversation);
    this.draw(node.id, action);
  }

  heard(conversation, node, what) {
    if (conversation.id !== this.conversation.id) {
      if (what === "ended") this.onList();
      return;
    }
    if (what === "added") this.draw();
    const view = this.views.get(node.id);
    if (what === "ended") {
      for (const each of this.views.values()) if (!each.element.querySelector(".editor")) each.update();
      this.tellAnswer(node, true);
      this.tell();
      this.onList();
    } else if (view) {
      if (!this.grown.size) requestAnimationFrame(() => this.drawGrown());
      this.grown.add(view);
    }
  }

  drawGrown() {
    const atEnd = this.atEnd();
    for (const view of this.grown) {
      view.update();
      this.tellAnswer(view.node, false);
    }
    this.grown.clear();
    if (atEnd) this.toEnd();
  }

  // Tell screen readers what is new of an answer, by whole sentences.
  tellAnswer(node, ended) {
    if (this.settings.pair && node.side === 1) return; // one voice at a time
    const from = this.said.get(node.id) ?? 0;
    const rest = node.content.slice(from);
    const length = ended ? rest.length : ([...rest.matchAll(/[.!?。…](?=\s)|\n/g)].at(-1)?.index ?? -1) + 1;
    if (rest.slice(0, length).trim()) {
      announce(rest.slice(0, length));
      this.said.set(node.id, from + length);
    }
    if (ended && node.finish === "stopped") announce(t("stopped"));
  }

  atEnd() {
    const { scrollTop, scrollHeight, clientHeight } = this.transcript;
    return scrollHeight - scrollTop - clientHeight < 80;
  }

  toEnd() {
    this.transcript.scrollTop = this.transcript.scrollHeight;
  }

  // What depends on whether an answer is under way.
  tell() {
    byId("send").hidden = this.busy;
    byId("stop").hidden = !this.busy;
  }

  // Draw the messages that are shown; the focus goes to an action of one of them.
  draw(focused = null, action = null) {
    const path = pathOf(this.conversation);
    this.views = new Map();
    const shown = path.map((node) => {
      if (node.role === "user") return this.view(new QuestionView(this, node));
      const unit = node.pair
        ? siblings(this.conversation, node)
            .filter((each) => each.pair === node.pair)
            .sort((a, b) => a.side - b.side)
        : [node];
      const views = unit.map((each) => this.view(new AnswerView(this, each)));
      return unit.length > 1 ? h("div", { class: "pair", role: "group", "aria-label": t("Two answers side by side") }, views) : views;
    });
    this.transcript.replaceChildren(...(shown.length ? shown.flat() : [this.welcome()]));
    byId("title").textContent = this.conversation.title || t("New conversation");
    document.title = this.conversation.title ? `${this.conversation.title} · Seodang` : "Seodang";
    this.tell();
    if (focused && action) {
      const actions = this.views.get(focused)?.element;
      (actions?.querySelector(`[data-action="${action}"]:not(:disabled)`) ?? actions?.querySelector("[data-action]:not(:disabled)"))?.focus();
    }
  }

  view(view) {
    this.views.set(view.node.id, view);
    return view.element;
  }

  welcome() {
    const asked = [
      t("Which country is the city of Suwon located in?"),
      t("Explain in three sentences what a language model does."),
      t("Write a Python function that reverses a list."),
      t("Name three rivers and where they flow."),
    ];
    return h(
      "div",
      { class: "welcome" },
      h("h2", {}, t("What shall we talk about?")),
      h("p", {}, this.settings.models.map((each) => each.id).join(", ")),
      h(
        "div",
        { class: "asked" },
        asked.map((text) =>
          textButton(text, () => {
            if (!this.busy && this.settings.models.length) this.question(text, ROOT);
          }),
        ),
      ),
    );
  }

  open(conversation) {
    this.conversation = conversation;
    if (!this.answering.busy(conversation)) {
      for (const node of Object.values(conversation.nodes)) if (node.role === "assistant" && node.finish === null) node.finish = "stopped"; // the page was closed meanwhile
    }
    this.draw();
    this.toEnd();
    this.onList();
  }
}
