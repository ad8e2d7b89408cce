// The settings of an answer: which there are is read from the server's own description of them; what is given is kept by side.

// In this order, with what they are called.
const GROUPS = {
  answer: "Length, end and chance",
  warpers: "Warpers: the shape of the distribution",
  penalties: "Penalties: looking back",
  biases: "Biases: added to scores",
  bans: "Bans: what does not come",
  constraints: "Constraints: what the text may be",
  "own filters": "Order of the filters",
};
// Chosen at another place, or of no use on a page.
const ELSEWHERE = new Set(["strategy", "attention_mask", "prompt_logprobs", "amateur_alpha", "amateur_temperature"]);
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
    this.usual = "sampling"; // the strategy where none is given
  }

  async load() {
    const [models, document] = await Promise.all([json("v1/models"), json("openapi.json")]);
    this.models = models.data;
    const { properties } = document.paths["/v1/chat/completions"].post.requestBody.content["application/json"].schema;
    this.strategies = properties.strategy["x-strategies"];
    this.usual = properties.strategy.default;
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

  // Whether a model reads one turn at a time: an encoder-decoder without a chat template.
  singleTurn(model) {
    return Boolean(this.models.find((each) => each.id === model)?.single_turn);
  }

  strategy(side) {
    return this.strategies[this.strategyName(side)] || { settings: [], least: {}, samples: true };
  }

  strategyName(side) {
    return this.sides[side].values.strategy || this.usual;
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
    const { settings } = this.strategies[name] || this.strategies[this.usual];
    const least = this.strategies[name]?.least ?? {};
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
  if (value === null || typeof value !== "object" || Array.isArray(value)) throw new SyntaxError(t('an object is needed: {"name": value}'));
  return value;
}
