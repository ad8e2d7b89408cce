// The settings of an answer: which there are is read from the server's own description of them; what is given is kept by side.

// Spans of sliders, where a range has no end or where little of it is of use; the field beside a slider takes the whole range.
const SPANS = {
  temperature: [0, 2, 0.05], top_k: [0, 100, 1], top_n_sigma: [0, 5, 0.1], dynatemp_range: [0, 2, 0.05], dynatemp_exponent: [0.1, 3, 0.1], mirostat_tau: [0.5, 10, 0.1],
  repetition_penalty: [0.8, 1.5, 0.01], encoder_repetition_penalty: [0.8, 1.5, 0.01], presence_penalty: [-2, 2, 0.05], frequency_penalty: [-2, 2, 0.05],
  dry_multiplier: [0, 2, 0.05], dry_base: [1, 4, 0.05], num_beams: [1, 10, 1], num_beam_groups: [1, 5, 1], diversity_penalty: [0, 2, 0.05], length_penalty: [-2, 2, 0.1],
  guidance_scale: [0.5, 5, 0.1], best_of: [1, 16, 1], num_return_sequences: [1, 8, 1], prompt_lookup_num_tokens: [1, 16, 1], num_assistant_tokens: [1, 16, 1],
  epsilon_cutoff: [0, 0.05, 0.0005], eta_cutoff: [0, 0.05, 0.0005],
};
const GROUPS = { // in this order, with what they are called
  answer: "Length, end and chance", warpers: "Warpers: the shape of the distribution", penalties: "Penalties: looking back", biases: "Biases: added to scores",
  bans: "Bans: what does not come", constraints: "Constraints: what the text may be", "own filters": "Order of the filters",
};
const ELSEWHERE = new Set(["strategy", "attention_mask", "prompt_logprobs", "amateur_alpha", "amateur_temperature"]); // chosen above, or of no use on a page
const NEW_SIDE = { model: null, values: {}, extra: "" };

class Settings {
  constructor() {
    const known = stored("settings", {});
    this.sides = [0, 1].map((side) => ({ ...NEW_SIDE, ...known.sides?.[side], values: { ...known.sides?.[side]?.values } }));
    this.pair = Boolean(known.pair);
    this.look = Boolean(known.look);
    this.models = [];
    this.fields = new Map();
    this.strategies = {};
  }

  async load() {
    const [models, document] = await Promise.all([json("v1/models"), json("openapi.json")]);
    this.models = models.data;
    const { properties } = document.paths["/v1/chat/completions"].post.requestBody.content["application/json"].schema;
    this.strategies = properties.strategy["x-strategies"];
    for (const [name, schema] of Object.entries(properties)) {
      if (schema["x-group"] && !ELSEWHERE.has(name)) this.fields.set(name, fieldOf(name, schema));
    }
    for (const side of this.sides) {
      if (!this.models.some((each) => each.id === side.model)) side.model = this.models[0].id;
      for (const name of Object.keys(side.values)) if (name !== "strategy" && !this.fields.has(name)) delete side.values[name];
      if (side.values.strategy && !this.strategies[side.values.strategy]) delete side.values.strategy;
    }
  }

  keep() {
    store("settings", { sides: this.sides, pair: this.pair, look: this.look });
  }

  model(side) {
    return this.models.find((each) => each.id === this.sides[side].model);
  }

  strategy(side) {
    return this.strategies[this.sides[side].values.strategy || "sampling"] || { settings: [], least: {}, samples: true };
  }

  // What holds where nothing is given: by the model, else by the setting.
  defaultOf(side, field) {
    return this.model(side)?.defaults?.[field.name] ?? field.default;
  }

  set(side, name, value) {
    const { values } = this.sides[side];
    const usual = name === "strategy" ? "" : this.defaultOf(side, this.fields.get(name));
    if (value === undefined || value === "" || JSON.stringify(value) === JSON.stringify(usual)) delete values[name];
    else values[name] = value;
    this.keep();
  }

  // Take a strategy with the fewest settings that mean it; those that it has no use for go.
  choose(side, name) {
    const { values } = this.sides[side];
    const { settings, least } = this.strategies[name] || this.strategies.sampling;
    const before = this.strategy(side).least;
    for (const each of Object.keys(values)) {
      const owned = this.fields.get(each)?.group === "strategy" && !settings.includes(each);
      const was = JSON.stringify(before[each]) === JSON.stringify(values[each]);
      if (owned || was) delete values[each];
    }
    this.set(side, "strategy", name);
    for (const [each, value] of Object.entries(least)) if (values[each] === undefined) values[each] = value;
    this.keep();
  }

  reset(side) {
    this.sides[side].values = {};
    this.sides[side].extra = "";
    this.keep();
  }

  // Whether a setting has any effect beside the strategy.
  takes(side, field) {
    const { samples, settings, least } = this.strategy(side);
    if (field.group === "strategy") return settings.includes(field.name);
    return samples || !(field.group === "warpers" || field.name === "do_sample") || field.name in least;
  }

  // What goes into the body: what is given and has an effect.
  given(side) {
    const { values, extra } = this.sides[side];
    const told = Object.entries(values).filter(([name]) => name === "strategy" || (this.fields.has(name) && this.takes(side, this.fields.get(name))));
    return { ...Object.fromEntries(told), ...extraOf(extra) };
  }
}

// The further fields of a body, written as JSON.
function extraOf(text) {
  if (!text.trim()) return {};
  const value = JSON.parse(text);
  if (value === null || typeof value !== "object" || Array.isArray(value)) throw new SyntaxError(t("an object is needed: {\"name\": value}"));
  return value;
}

// How a setting is given, by its schema: its kind, its range, and how what is typed is read.
function fieldOf(name, schema) {
  const fits = schema.anyOf.filter((each) => each.type !== "null");
  const field = { name, description: schema.description, default: schema.default, group: schema["x-group"], kind: "json", long: false };
  const types = fits.map((each) => each.type);
  const texts = fits.some((each) => each.type === "array" && each.items?.type === "string");
  const [only] = fits;
  if (fits.length === 1 && only.enum) return { ...field, kind: "choice", values: only.enum };
  if (fits.length === 1 && only.type === "boolean") return { ...field, kind: "choice", values: [true, false] };
  if (fits.length === 1 && (only.type === "integer" || only.type === "number")) return { ...field, kind: "number", whole: only.type === "integer", ...rangeOf(name, only) };
  if (texts && types.every((each) => each === "string" || each === "array")) return { ...field, kind: "lines", long: true };
  if (fits.length === 1 && only.type === "string") return { ...field, kind: "text", long: name === "grammar" };
  if (fits.length === 1 && only.type === "array" && only.items?.enum) return { ...field, kind: "names", values: only.items.enum };
  if (fits.length === 1 && only.type === "array" && only.items?.type === "integer") return { ...field, kind: "ids" };
  return { ...field, long: types.includes("object"), words: fits.flatMap((each) => each.enum || []), text: types.includes("string") };
}

function rangeOf(name, { minimum, exclusiveMinimum, maximum, exclusiveMaximum, type }) {
  const range = { low: minimum ?? exclusiveMinimum, high: maximum ?? exclusiveMaximum, aboveLow: minimum === undefined && exclusiveMinimum !== undefined, belowHigh: maximum === undefined && exclusiveMaximum !== undefined };
  const step = type === "integer" ? 1 : 0.01;
  const span = SPANS[name] || (range.low !== undefined && range.high !== undefined ? [range.aboveLow ? range.low + step : range.low, range.high, step] : null);
  return { ...range, span };
}

// What is typed, as a value; raises SyntaxError for what is none.
function readField(field, text) {
  if (!text.trim()) return undefined;
  switch (field.kind) {
    case "number": {
      const value = Number(text);
      if (!Number.isFinite(value) || (field.whole && !Number.isInteger(value))) throw new SyntaxError(field.whole ? t("a whole number is needed") : t("a number is needed"));
      const { low, high } = field;
      if (value < low || value > high || (field.aboveLow && value === low) || (field.belowHigh && value === high)) throw new SyntaxError(t("out of range: {0}", spanText(field)));
      return value;
    }
    case "choice": return JSON.parse(text);
    case "lines": return text.split("\n").filter((line) => line).map((line) => line.replaceAll("\\n", "\n"));
    case "names": return text.split(/[\s,]+/).filter(Boolean).map((each) => {
      if (!field.values.includes(each)) throw new SyntaxError(t("unknown: {0}", each));
      return each;
    });
    case "ids": return text.split(/[\s,]+/).filter(Boolean).map((each) => {
      if (!/^\d+$/.test(each)) throw new SyntaxError(t("whole numbers with commas between them are needed"));
      return Number(each);
    });
    case "json": {
      const word = field.words.includes(text.trim()) || (field.text && !/^\s*[[{"]/.test(text));
      return word ? text.trim() : JSON.parse(text);
    }
    default: return text;
  }
}

// A value as it is typed.
function typed(field, value) {
  if (value === undefined || value === null) return "";
  switch (field.kind) {
    case "lines": return [value].flat().map((line) => line.replaceAll("\n", "\\n")).join("\n");
    case "names": case "ids": return value.join(", ");
    case "text": return value;
    case "json": return typeof value === "string" ? value : JSON.stringify(value);
    default: return JSON.stringify(value);
  }
}

function spanText({ low, high, aboveLow, belowHigh }) {
  return [low === undefined ? "" : t(aboveLow ? "above {0}" : "from {0}", low), high === undefined ? "" : t(belowHigh ? "below {0}" : "to {0}", high)].filter(Boolean).join(" ");
}
