// Elements out of data: whatever is handed in as a child is text, never markup.

const SVG = "http://www.w3.org/2000/svg";

// `on` holds listeners by event, `vars` custom properties of the style; a null or false attribute or child is left out
function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") {
      for (const [type, listener] of Object.entries(value)) node.addEventListener(type, listener);
    } else if (name === "vars") {
      for (const [property, set] of Object.entries(value)) node.style.setProperty(property, set);
    } else {
      node.setAttribute(name, value === true ? "" : value);
    }
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const h = (name, attributes = {}, ...children) => filled(document.createElement(name), attributes, children);

const svg = (name, attributes = {}, ...children) => filled(document.createElementNS(SVG, name), attributes, children);

const drawing = (width, height, label, ...children) =>
  svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, ...children);

const table = (name, headings, rows) =>
  h(
    "table",
    { class: name },
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        headings.map((each) => h("th", { scope: "col" }, each)),
      ),
    ),
    h("tbody", {}, rows),
  );

const words = {}; // what is said in the reader's language, by the English

const t = (english, ...values) => (words[english] ?? english).replace(/\{(\d)\}/g, (_, place) => values[place]);
