// The page begins: its parts are put together, and the list of conversations and the switches are set up.

const THEMES = ["auto", "light", "dark"];

function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  const names = { auto: t("Colours as the system has them"), light: t("Light colours"), dark: t("Dark colours") };
  byId("theme").setAttribute("aria-label", names[theme]);
  byId("theme").title = names[theme];
}

function setUpTheme() {
  let theme = stored("theme", "auto");
  byId("theme").append(icon("theme"));
  setTheme(theme);
  byId("theme").addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    store("theme", theme);
    setTheme(theme);
    announce(byId("theme").title);
  });
}

// The list of conversations: opened, renamed, exported, deleted.
class Sidebar {
  constructor(chat) {
    this.chat = chat;
    this.element = byId("sidebar");
    this.kept = new Map(); // those with an answer under way are the same object wherever they are opened from
    chat.onList = () => this.draw();
    byId("new").addEventListener("click", () => this.begin());
    byId("open-list").addEventListener("click", () => this.toggle());
    byId("close-list").addEventListener("click", () => this.toggle(false));
    byId("transcript").addEventListener("pointerdown", () => document.body.classList.contains("with-list") && this.toggle(false));
    this.element.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !narrow() || composing(event)) return;
      event.preventDefault(); // it stops no answer
      this.toggle(false);
    });
  }

  toggle(open = !document.body.classList.contains("with-list")) {
    document.body.classList.toggle("with-list", open);
    byId("open-list").setAttribute("aria-expanded", String(open));
    if (open) byId("new").focus();
    else byId("open-list").focus();
  }

  begin() {
    this.chat.open(newConversation());
    if (narrow()) this.toggle(false);
    this.chat.field.focus();
  }

  draw() {
    const { conversation } = this.chat;
    this.kept.set(conversation.id, conversation);
    const items = listed().map((each) =>
      h(
        "li",
        { class: each.id === conversation.id ? "current" : null },
        h(
          "button",
          {
            type: "button",
            class: "conversation",
            "aria-current": each.id === conversation.id ? "true" : null,
            on: { click: () => this.open(each.id) },
          },
          each.title,
        ),
        iconButton("edit", t("Rename {0}", each.title), () => this.rename(each)),
        iconButton("save", t("Export {0}", each.title), () => this.save(each)),
        iconButton("remove", t("Delete {0}", each.title), () => this.remove(each)),
      ),
    );
    byId("conversations").replaceChildren(...items);
  }

  found(id) {
    const known = this.kept.get(id);
    return known && this.chat.answering.busy(known) ? known : (opened(id) ?? known);
  }

  open(id) {
    const conversation = this.found(id);
    if (!conversation) return;
    this.chat.open(conversation);
    if (narrow()) this.toggle(false);
    this.chat.field.focus();
  }

  async rename({ id, title }) {
    const named = await ask(t("What shall the conversation be called?"), { label: t("Name"), value: title });
    if (!named?.trim()) return;
    const conversation = id === this.chat.conversation.id ? this.chat.conversation : this.found(id);
    conversation.title = named.trim();
    keep(conversation);
    this.chat.draw();
    this.draw();
    byId("conversations").querySelector(".conversation").focus(); // the newest now
  }

  save({ id, title }) {
    const name =
      title
        .replace(/[^\p{L}\p{N}]+/gu, "-")
        .replace(/^-|-$/g, "")
        .slice(0, 40) || "conversation";
    download(`${name}.json`, JSON.stringify(this.found(id), null, 2));
  }

  async remove({ id, title }) {
    if (!(await ask(t("Delete “{0}”? It cannot be had back.", title), { button: t("Delete"), dangerous: true }))) return;
    const conversation = id === this.chat.conversation.id ? this.chat.conversation : this.found(id);
    forget(conversation);
    this.chat.answering.stop(conversation);
    if (conversation === this.chat.conversation) this.chat.open(newConversation());
    this.draw();
    byId("new").focus();
  }
}

// A switch in the heading that the settings remember.
function setUpSwitch(id, settings, name, changed) {
  const button = byId(id);
  const tell = () => button.setAttribute("aria-pressed", String(settings[name]));
  button.addEventListener("click", () => {
    settings[name] = !settings[name];
    settings.keep();
    tell();
    changed();
  });
  tell();
}

function translate() {
  if (navigator.language.toLowerCase().startsWith("ko")) {
    Object.assign(words, KOREAN);
    document.documentElement.lang = "ko";
  }
  for (const node of document.querySelectorAll("[data-say]")) node.append(t(node.dataset.say));
  for (const node of document.querySelectorAll("[data-label]")) {
    node.setAttribute("aria-label", t(node.dataset.label));
    if (node.tagName === "BUTTON") node.title = t(node.dataset.label);
    if (node.placeholder !== undefined) node.placeholder = t(node.dataset.label);
  }
  for (const node of document.querySelectorAll("[data-icon]")) node.prepend(icon(node.dataset.icon));
}

async function begin() {
  translate();
  setUpTheme();
  const settings = new Settings();
  const chat = new Chat(settings);
  const sidebar = new Sidebar(chat);
  chat.drawer = new Drawer(settings, () => chat.conversation);
  byId("open-settings").addEventListener("click", () => chat.drawer.toggle());
  setUpSwitch("look", settings, "look", () => {
    chat.draw();
    announce(settings.look ? t("A look inside: on") : t("A look inside: off"));
  });
  setUpSwitch("pair", settings, "pair", () => {
    if (chat.drawer.open) chat.drawer.draw();
    announce(settings.pair ? t("Two answers: on") : t("Two answers: off"));
    if (settings.pair) notice(t("The next question gets two answers: give each its own settings."));
  });
  addEventListener("storage", () => sidebar.draw()); // another tab has written
  chat.draw();
  sidebar.draw();
  chat.field.focus();
  for (;;) {
    try {
      await settings.load();
      break;
    } catch (error) {
      byId("unreachable").hidden = false;
      byId("unreachable-why").textContent = error.message;
      await new Promise((resolve) => byId("reload").addEventListener("click", resolve, { once: true }));
      byId("unreachable").hidden = true;
    }
  }
  byId("docs").hidden = hasKey(); // a link sends no key
  document.body.classList.add("ready");
  if (chat.drawer.open) chat.drawer.draw();
  if (!chat.last) chat.draw();
}

begin();
