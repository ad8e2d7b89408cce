// The drawer with the settings: drawn from what the server says of them.

class Drawer {
  constructor(settings, conversation) {
    this.settings = settings;
    this.conversation = conversation; // () => the one that is open
    this.side = 0;
    this.element = byId("settings");
    this.body = byId("settings-body");
    byId("settings-close").addEventListener("click", () => this.toggle(false));
    this.element.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || composing(event)) return;
      event.preventDefault(); // it stops no answer
      this.toggle(false);
    });
  }

  get open() {
    return !this.element.hidden;
  }

  toggle(open = !this.open) {
    if (open === this.open) return;
    this.element.hidden = !open;
    document.querySelector("main").inert = open && narrow(); // what lies behind it
    byId("open-settings").setAttribute("aria-expanded", String(open));
    document.body.classList.toggle("with-settings", open);
    if (open) {
      this.draw();
      byId("settings-close").focus();
    } else {
      byId("open-settings").focus();
    }
  }

  // Draw all anew, for another side, another strategy, or values that have been taken back.
  draw() {
    if (!this.settings.pair) this.side = 0;
    const searched = byId("setting-search")?.value ?? "";
    const opened = new Set([...this.body.querySelectorAll("details[open]")].map((each) => each.dataset.group));
    this.body.replaceChildren(
      this.settings.pair ? this.sides() : "",
      this.models(),
      this.system(),
      this.search(searched),
      h("p", { class: "none", hidden: true }, t("No setting is called so.")),
      this.strategy(),
      ...Object.entries(GROUPS).map(([group, title]) => this.group(group, t(title), opened.has(group))),
      this.extra(),
      h(
        "div",
        { class: "buttons" },
        textButton(t("Reset all"), () => {
          this.settings.reset(this.side);
          this.draw();
          announce(t("All settings are as they were."));
        }),
      ),
    );
    this.filter(searched);
  }

  sides() {
    const tab = (side, name) =>
      h(
        "button",
        {
          type: "button",
          "aria-pressed": String(side === this.side),
          on: {
            click: () => {
              this.side = side;
              this.draw();
              this.body.querySelector("[aria-pressed=true]").focus();
            },
          },
        },
        name,
      );
    return h(
      "div",
      { class: "sides", role: "group", "aria-label": t("Which answer the settings are for") },
      tab(0, t("Answer A")),
      tab(1, t("Answer B")),
    );
  }

  models() {
    const select = h(
      "select",
      {
        id: "model",
        on: {
          change: () => {
            this.settings.sides[this.side].model = select.value;
            this.settings.keep();
            this.draw();
            byId("model").focus();
          },
        },
      },
      this.settings.models.map((each) => h("option", { value: each.id }, each.id)),
    );
    select.value = this.settings.sides[this.side].model;
    return h("div", { class: "field" }, h("label", { for: "model" }, t("Model")), select);
  }

  system() {
    const area = h("textarea", { id: "system", rows: 3, placeholder: t("What the model is told before the conversation") });
    area.value = this.conversation().system;
    area.addEventListener("input", () => {
      this.conversation().system = area.value;
    });
    area.addEventListener("change", () => keep(this.conversation()));
    return h("div", { class: "field" }, h("label", { for: "system" }, t("System prompt")), area);
  }

  search(text) {
    const input = h("input", {
      id: "setting-search",
      type: "search",
      placeholder: t("Search the settings"),
      "aria-label": t("Search the settings"),
      autocomplete: "off",
    });
    input.value = text;
    input.addEventListener("input", () => this.filter(input.value));
    return input;
  }

  // Show the settings whose name or sentence has all words; their groups are open as long as something is searched.
  filter(text) {
    const wanted = text
      .toLowerCase()
      .split(/[\s_]+/)
      .filter(Boolean);
    const groups = [...this.body.querySelectorAll("details[data-group]")];
    if (wanted.length) this.before ||= new Set(groups.filter((each) => each.open).map((each) => each.dataset.group));
    for (const field of this.body.querySelectorAll("[data-setting]")) {
      const said = `${field.dataset.setting.replaceAll("_", " ")} ${field.textContent}`.toLowerCase();
      field.classList.toggle("filtered", !wanted.every((each) => said.includes(each)));
    }
    for (const group of groups) {
      const some = group.querySelector("[data-setting]:not(.filtered)");
      group.hidden = Boolean(wanted.length) && !some;
      if (this.before) group.open = wanted.length ? Boolean(some) : this.before.has(group.dataset.group);
    }
    if (!wanted.length) this.before = null;
    this.body.querySelector(".none").hidden = !wanted.length || Boolean(this.body.querySelector("[data-setting]:not(.filtered)"));
  }

  strategy() {
    const { settings, side } = this;
    const select = h(
      "select",
      {
        id: "strategy",
        on: {
          change: () => {
            settings.choose(side, select.value);
            this.draw();
            byId("strategy").focus();
          },
        },
      },
      h("option", { value: "" }, t("as the settings say ({0})", settings.usual)),
      Object.keys(settings.strategies).map((name) => h("option", { value: name }, name)),
    );
    select.value = settings.sides[side].values.strategy ?? "";
    const { description, samples } = settings.strategy(side);
    const own = [...settings.fields.values()].filter((field) => field.group === "strategy" && settings.takes(side, field));
    return h(
      "section",
      { class: "strategy" },
      h(
        "div",
        { class: "field", "data-setting": "strategy" },
        h("label", { for: "strategy" }, t("Strategy")),
        select,
        h("p", { class: "about" }, inline(`${description}.`)),
      ),
      samples ? "" : h("p", { class: "about" }, t("It takes no random choices: warpers are not sent.")),
      own.map((field) => settingField(this.settings, this.side, field, (inside) => this.count(inside))),
    );
  }

  group(group, title, open) {
    const fields = [...this.settings.fields.values()].filter((field) => field.group === group && this.settings.takes(this.side, field));
    const given = fields.filter((field) => this.settings.sides[this.side].values[field.name] !== undefined).length;
    return fields.length
      ? h(
          "details",
          { "data-group": group, open: open || (group === "answer" && !this.body.childElementCount) || null },
          h("summary", {}, title, " ", h("span", { class: "count", hidden: !given }, given)),
          fields.map((field) => settingField(this.settings, this.side, field, (inside) => this.count(inside))),
        )
      : "";
  }

  // How many settings of the group are given.
  count(inside) {
    const count = inside.closest("details")?.querySelector(".count");
    if (!count) return;
    const given = [...inside.closest("details").querySelectorAll("[data-setting]")].filter(
      (each) => this.settings.sides[this.side].values[each.dataset.setting] !== undefined,
    ).length;
    count.textContent = given;
    count.hidden = !given;
  }

  extra() {
    const side = this.settings.sides[this.side];
    const area = h("textarea", {
      id: "extra",
      rows: 2,
      spellcheck: "false",
      placeholder: '{"reasoning_effort": "low", "tools": []}',
      "aria-describedby": "extra-wrong",
    });
    const wrong = h("p", { class: "wrong", id: "extra-wrong", role: "alert", hidden: true });
    area.value = side.extra;
    area.addEventListener("input", () => {
      try {
        extraOf(area.value);
        side.extra = area.value;
        wrong.hidden = true;
      } catch (error) {
        side.extra = "";
        wrong.textContent = error.message;
        wrong.hidden = false;
      }
      area.setAttribute("aria-invalid", String(!wrong.hidden));
      this.settings.keep();
    });
    return h("div", { class: "field" }, h("label", { for: "extra" }, t("Further fields of the request, as JSON")), area, wrong);
  }

  // Bring a setting before the reader's eyes.
  reveal(name) {
    this.toggle(true);
    const field = this.body.querySelector(`[data-setting="${CSS.escape(name)}"]`);
    if (!field) return;
    if (field.closest("details")) field.closest("details").open = true;
    field.scrollIntoView({ block: "center" });
    field.querySelector("select, input:not([type=range]), textarea").focus();
  }
}
