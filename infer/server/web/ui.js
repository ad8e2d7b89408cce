// Buttons, icons, notices, and the dialogs that ask something.

const ICONS = {
  menu: "M4 6h16M4 12h16M4 18h16",
  add: "M12 5v14M5 12h14",
  send: "M12 20V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  copy: "M9 9h11v11H9zM15 5H5a1 1 0 0 0-1 1v10",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  again: "M20 11a8 8 0 1 0-2.3 6M20 4v7h-7",
  before: "M15 5l-7 7 7 7",
  next: "M9 5l7 7-7 7",
  settings: "M4 7h9M19 7h1M4 17h1M11 17h9M16 4v6M8 14v6",
  close: "M6 6l12 12M18 6L6 18",
  remove: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  save: "M12 4v11M7 11l5 5 5-5M5 20h14",
  look: "M2 12s4-7 10-7 10 7 10 7-4 7-10 7S2 12 2 12zM12 9a3 3 0 1 0 0 6 3 3 0 0 0 0-6",
  pair: "M4 5h7v14H4zM13 5h7v14h-7z",
  theme: "M12 4a8 8 0 1 0 0 16zM12 4a8 8 0 0 1 0 16",
  code: "M9 7l-5 5 5 5M15 7l5 5-5 5",
  check: "M5 13l4 4L19 7",
};

const icon = (name) => svg("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true" }, svg("path", { d: ICONS[name] }));

const iconButton = (name, label, onClick, attributes = {}) =>
  h("button", { type: "button", class: "icon-button", "aria-label": label, title: label, on: { click: onClick }, ...attributes }, icon(name));

const textButton = (label, onClick, attributes = {}) => h("button", { type: "button", on: { click: onClick }, ...attributes }, label);

// Whether there is room for one thing at a time, as on a phone.
const narrow = () => matchMedia("(max-width: 48rem)").matches;

const byId = (id) => document.getElementById(id);

// Said to screen readers alone.
function announce(text) {
  byId("said").textContent = text;
}

let noticeTimer = null;

// Shown for a while, and said.
function notice(text) {
  const place = byId("notice");
  place.textContent = text;
  place.hidden = false;
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => {
    place.hidden = true;
  }, 5000);
}

async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyBySelection(text); // pages that came over plain HTTP from another machine have no clipboard
  }
  announce(t("Copied"));
  if (!button?.querySelector("svg")) return;
  const before = button.querySelector("svg");
  before.replaceWith(icon("check"));
  setTimeout(() => button.querySelector("svg").replaceWith(before), 1200);
}

function copyBySelection(text) {
  const focused = document.activeElement;
  const area = h("textarea", { class: "visually-hidden" });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
  focused?.focus();
}

// A question with one field (or none); resolves to what is given, or null where it is dismissed.
function ask(question, { label = null, value = "", password = false, button = t("OK"), dangerous = false } = {}) {
  return new Promise((resolve) => {
    const field = label && h("input", { id: "asked", type: password ? "password" : "text", autocomplete: "off", spellcheck: "false" });
    const dialog = h(
      "dialog",
      { "aria-labelledby": "question" },
      h(
        "form",
        { method: "dialog" },
        h("p", { id: "question" }, question),
        field && h("label", { for: "asked" }, label),
        field,
        h(
          "div",
          { class: "buttons" },
          h("button", { type: "submit", value: "no", formnovalidate: true }, t("Cancel")),
          h("button", { type: "submit", value: "yes", class: dangerous ? "dangerous" : "primary" }, button),
        ),
      ),
    );
    if (field) field.value = value;
    // the first button of a form is what Enter presses: that is to be the second one here
    field?.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || composing(event)) return;
      event.preventDefault();
      dialog.close("yes");
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes" ? (field ? field.value : true) : null);
    });
    document.body.append(dialog);
    dialog.showModal();
    field?.select();
  });
}

// Whether a key belongs to a syllable that is being put together: Safari tells it by the key code alone.
const composing = (event) => event.isComposing || event.keyCode === 229;

// Hand a file to the reader.
function download(name, text) {
  const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  h("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
