// One setting: how it is given by its schema, how what is typed is read, and its field in the drawer.

// Spans of sliders, where a range has no end or where little of it is of use; the field beside a slider takes the whole range.
const SPANS = {
  temperature: [0, 2, 0.05],
  top_k: [0, 100, 1],
  top_n_sigma: [0, 5, 0.1],
  dynatemp_range: [0, 2, 0.05],
  dynatemp_exponent: [0.1, 3, 0.1],
  mirostat_tau: [0.5, 10, 0.1],
  repetition_penalty: [0.8, 1.5, 0.01],
  encoder_repetition_penalty: [0.8, 1.5, 0.01],
  presence_penalty: [-2, 2, 0.05],
  frequency_penalty: [-2, 2, 0.05],
  dry_multiplier: [0, 2, 0.05],
  dry_base: [1, 4, 0.05],
  num_beams: [1, 10, 1],
  num_beam_groups: [1, 5, 1],
  diversity_penalty: [0, 2, 0.05],
  length_penalty: [-2, 2, 0.1],
  guidance_scale: [0.5, 5, 0.1],
  best_of: [1, 16, 1],
  num_return_sequences: [1, 8, 1],
  prompt_lookup_num_tokens: [1, 16, 1],
  num_assistant_tokens: [1, 16, 1],
  epsilon_cutoff: [0, 0.05, 0.0005],
  eta_cutoff: [0, 0.05, 0.0005],
};

// How a setting is given, by its schema: its kind, its range, and how what is typed is read.
function fieldOf(name, schema) {
  const fits = schema.anyOf.filter((each) => each.type !== "null");
  const field = { name, description: schema.description, default: schema.default, group: schema["x-group"], kind: "json", long: false };
  const types = fits.map((each) => each.type);
  const texts = fits.some((each) => each.type === "array" && each.items?.type === "string");
  const [only] = fits;
  if (fits.length === 1 && only.enum) return { ...field, kind: "choice", values: only.enum };
  if (fits.length === 1 && only.type === "boolean") return { ...field, kind: "choice", values: [true, false] };
  if (fits.length === 1 && (only.type === "integer" || only.type === "number"))
    return { ...field, kind: "number", whole: only.type === "integer", ...rangeOf(name, only) };
  if (texts && types.every((each) => each === "string" || each === "array")) return { ...field, kind: "lines", long: true };
  if (fits.length === 1 && only.type === "string") return { ...field, kind: "text", long: name === "grammar" };
  if (fits.length === 1 && only.type === "array" && only.items?.enum) return { ...field, kind: "names", values: only.items.enum };
  if (fits.length === 1 && only.type === "array" && only.items?.type === "integer") return { ...field, kind: "ids" };
  return { ...field, long: types.includes("object"), words: fits.flatMap((each) => each.enum || []), text: types.includes("string") };
}

function rangeOf(name, { minimum, exclusiveMinimum, maximum, exclusiveMaximum, type }) {
  const range = {
    low: minimum ?? exclusiveMinimum,
    high: maximum ?? exclusiveMaximum,
    aboveLow: minimum === undefined && exclusiveMinimum !== undefined,
    belowHigh: maximum === undefined && exclusiveMaximum !== undefined,
  };
  const step = type === "integer" ? 1 : 0.01;
  const span =
    SPANS[name] || (range.low !== undefined && range.high !== undefined ? [range.aboveLow ? range.low + step : range.low, range.high, step] : null);
  return { ...range, span };
}

// What is typed, as a value; raises SyntaxError for what is none.
function readField(field, text) {
  if (!text.trim()) return undefined;
  switch (field.kind) {
    case "number": {
      const value = Number(text);
      if (!Number.isFinite(value) || (field.whole && !Number.isInteger(value)))
        throw new SyntaxError(field.whole ? t("a whole number is needed") : t("a number is needed"));
      const { low, high } = field;
      if (value < low || value > high || (field.aboveLow && value === low) || (field.belowHigh && value === high))
        throw new SyntaxError(t("out of range: {0}", spanText(field)));
      return value;
    }
    case "choice":
      return JSON.parse(text);
    case "lines":
      return text
        .split("\n")
        .filter((line) => line)
        .map((line) => line.replaceAll("\\n", "\n"));
    case "names":
      return text
        .split(/[\s,]+/)
        .filter(Boolean)
        .map((each) => {
          if (!field.values.includes(each)) throw new SyntaxError(t("unknown: {0}", each));
          return each;
        });
    case "ids":
      return text
        .split(/[\s,]+/)
        .filter(Boolean)
        .map((each) => {
          if (!/^\d+$/.test(each)) throw new SyntaxError(t("whole numbers with commas between them are needed"));
          return Number(each);
        });
    case "json": {
      const word = field.words.includes(text.trim()) || (field.text && !/^\s*[[{"]/.test(text));
      return word ? text.trim() : JSON.parse(text);
    }
    default:
      return text;
  }
}

// A value as it is typed.
function typed(field, value) {
  if (value === undefined || value === null) return "";
  switch (field.kind) {
    case "lines":
      return [value]
        .flat()
        .map((line) => line.replaceAll("\n", "\\n"))
        .join("\n");
    case "names":
    case "ids":
      return value.join(", ");
    case "text":
      return value;
    case "json":
      return typeof value === "string" ? value : JSON.stringify(value);
    default:
      return JSON.stringify(value);
  }
}

function spanText({ low, high, aboveLow, belowHigh }) {
  return [low === undefined ? "" : t(aboveLow ? "above {0}" : "from {0}", low), high === undefined ? "" : t(belowHigh ? "below {0}" : "to {0}", high)]
    .filter(Boolean)
    .join(" ");
}

// The field of a setting in a form; `changed` is told of the element when what is given changes.
function settingField(settings, side, field, changed) {
  const id = `set-${field.name}`;
  const value = settings.sides[side].values[field.name];
  const usual = settings.defaultOf(side, field);
  const control = fieldControl(field, id, usual);
  control.value = typed(field, value);
  const slider = field.span && h("input", { type: "range", min: field.span[0], max: field.span[1], step: field.span[2], "aria-label": field.name });
  const wrong = h("p", { class: "wrong", id: `${id}-wrong`, role: "alert", hidden: true });
  const back = iconButton("close", t("Take {0} back", field.name), () => {
    control.value = "";
    take();
    control.focus();
  });
  const show = (given) => {
    back.classList.toggle("invisible", !given);
    if (slider) slider.value = Number(control.value || usual || field.span[0]);
  };
  const take = () => {
    try {
      settings.set(side, field.name, readField(field, control.value));
      wrong.hidden = true;
      control.removeAttribute("aria-invalid");
    } catch (error) {
      wrong.textContent = error.message;
      wrong.hidden = false;
      control.setAttribute("aria-invalid", "true");
      settings.set(side, field.name, undefined); // what is wrong is not sent
    }
    show(control.value !== "");
    changed(back);
  };
  control.addEventListener(control.tagName === "SELECT" ? "change" : "input", take);
  slider?.addEventListener("input", () => {
    control.value = slider.value;
    take();
  });
  show(value !== undefined);
  return h(
    "div",
    { class: `field kind-${field.kind}`, "data-setting": field.name },
    h("label", { for: id }, field.name),
    h("div", { class: "control" }, slider, control, back),
    h(
      "p",
      { class: "about", id: `${id}-about` },
      inline(field.description),
      field.kind === "number" && spanText(field) ? h("span", { class: "span" }, ` (${spanText(field)})`) : "",
    ),
    wrong,
  );
}

function fieldControl(field, id, usual) {
  const told = { id, "aria-describedby": `${id}-about ${id}-wrong`, autocomplete: "off", spellcheck: "false" };
  const placeholder = usual === undefined || (Array.isArray(usual) && !usual.length) ? "" : typed(field, usual);
  if (field.kind === "choice") {
    const values = field.values.map((each) =>
      h("option", { value: JSON.stringify(each) }, each === true ? t("yes") : each === false ? t("no") : each),
    );
    const name = usual === true ? t("yes") : usual === false ? t("no") : usual;
    return h("select", told, h("option", { value: "" }, usual === undefined ? t("not given") : t("not given ({0})", name)), values);
  }
  if (field.kind === "lines") return h("textarea", { ...told, rows: 2, placeholder: placeholder || t("one a line") });
  if (field.long) return h("textarea", { ...told, rows: 3, placeholder });
  return h("input", { ...told, type: "text", inputmode: field.kind === "number" ? "decimal" : null, placeholder });
}
