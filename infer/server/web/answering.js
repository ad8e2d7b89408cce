// Answers under way: what is asked, and what comes of it, token by token.

// The messages that lead to a node, as the protocol has them; of a model that answers single turns, the last.
function messagesOf(conversation, last, single) {
  const system = conversation.system.trim() ? [{ role: "system", content: conversation.system }] : [];
  const path = pathOf(conversation, last).filter((node) => node.role === "user" || node.content || node.calls?.length);
  const said = single ? path.slice(-1) : path;
  return [
    ...system,
    ...said.map(({ role, content, calls }) => ({
      role,
      content,
      ...(calls?.length
        ? { tool_calls: calls.map(({ id, name, arguments: given }) => ({ id, type: "function", function: { name, arguments: given } })) }
        : {}),
    })),
  ];
}

// The request behind an answer, or behind the next one.
const bodyOf = (conversation, question, model, given, single = false) => ({ model, messages: messagesOf(conversation, question, single), ...given });

class Answering {
  constructor(settings) {
    this.settings = settings;
    this.running = new Map(); // by conversation: what stops each of its answers
    this.traces = new Map(); // by node, as long as the page is open: {trace, choice}
    this.canvases = new Map(); // by node, as long as a diffusion answer is under way
    this.onChange = () => {}; // (conversation, node, what): "grown", "added" or "ended"
  }

  busy(conversation) {
    return Boolean(this.running.get(conversation.id)?.size);
  }

  stop(conversation) {
    for (const controller of this.running.get(conversation.id) || []) controller.abort();
  }

  // Answer a question, once or by both sides.
  answer(conversation, question) {
    if (!this.settings.pair) return Promise.all([this.begin(conversation, question, 0, null)]);
    const pair = newId();
    return Promise.all([this.begin(conversation, question, 0, pair), this.begin(conversation, question, 1, pair)]);
  }

  async begin(conversation, question, side, pair) {
    const controller = new AbortController();
    const given = this.settings.given(side);
    const model = this.settings.sides[side].model;
    const asked = { model, given, side: pair ? side : null, pair };
    const body = bodyOf(conversation, question, model, given, this.settings.singleTurn(model)); // before the answer stands among the messages
    const answers = new Growing(this, conversation, question, asked, Boolean(this.settings.look), side === 0);
    const own = this.running.get(conversation.id) || new Set();
    this.running.set(conversation.id, own.add(controller));
    this.onChange(conversation, answers.first, "added");
    try {
      const steps = this.settings.strategyName(side) === "diffusion" && !answers.trace ? { include_steps: true } : {}; // a trace has them anyway
      const more = { stream: true, stream_options: { include_usage: true, ...steps }, ...(answers.trace ? { trace: true } : {}) };
      for await (const chunk of chunksOf({ ...body, ...more }, controller.signal)) answers.take(chunk);
      answers.end(null);
    } catch (error) {
      if (error.name !== "AbortError" && !(error instanceof RequestError)) console.error(error);
      answers.end(error);
    } finally {
      own.delete(controller);
      keep(conversation);
      this.onChange(conversation, answers.first, "ended");
    }
  }
}

// The answers of one request: a node each, siblings where there are several.
class Growing {
  constructor(answering, conversation, question, asked, look, shown) {
    Object.assign(this, { answering, conversation, question, asked });
    this.trace = look ? new Trace() : null;
    this.started = performance.now();
    this.firstAt = this.lastAt = null;
    this.usage = null;
    this.kept = this.started;
    this.nodes = [];
    this.first = this.node(0, shown);
  }

  node(index, shown = false) {
    if (!this.nodes[index]) {
      const { model, given, side, pair } = this.asked;
      const made = addNode(
        this.conversation,
        this.question.id,
        { role: "assistant", content: "", reasoning: "", calls: [], model, given, side, pair, finish: null },
        shown,
      );
      this.nodes[index] = made;
      if (this.trace) this.answering.traces.set(made.id, { trace: this.trace, choice: index });
      if (index) this.answering.onChange(this.conversation, made, "added");
    }
    return this.nodes[index];
  }

  take(chunk) {
    if (chunk.usage) this.usage = chunk.usage;
    for (const event of chunk.trace || []) this.trace?.add(event);
    if (chunk.step) this.canvas(this.node(chunk.step.index)).take(chunk.step);
    for (const { index, delta, finish_reason: reason } of chunk.choices) {
      const node = this.node(index);
      node.content += delta.content ?? "";
      node.reasoning += delta.reasoning_content ?? "";
      for (const call of delta.tool_calls || []) {
        const known = (node.calls[call.index] ||= { id: call.id, name: "", arguments: "" });
        known.name += call.function.name ?? "";
        known.arguments += call.function.arguments ?? "";
      }
      if (reason) node.finish = reason;
      if (delta.content || delta.reasoning_content || delta.tool_calls) {
        this.lastAt = performance.now();
        this.firstAt ??= this.lastAt;
      }
    }
    for (const node of this.nodes) this.answering.onChange(this.conversation, node, "grown");
    if (performance.now() - this.kept > 2000) {
      // what is there by now outlives the page
      this.kept = performance.now();
      keep(this.conversation);
    }
  }

  canvas(node) {
    const { canvases } = this.answering;
    if (!canvases.has(node.id)) canvases.set(node.id, new Canvas());
    return canvases.get(node.id);
  }

  end(error) {
    const now = performance.now();
    for (const node of this.nodes) {
      this.answering.canvases.delete(node.id);
      if (error) node.finish = error.name === "AbortError" ? "stopped" : "error";
      if (node.finish === "error") node.error = { message: error.message, status: error.status, param: error.param, retryAfter: error.retryAfter };
      if (this.firstAt !== null) node.stats = this.stats(now);
    }
  }

  // Where all comes at the end, as a search tells it, the time for it counts from the question on.
  stats(now) {
    const { usage, started, firstAt, lastAt } = this;
    const first = (firstAt - started) / 1000;
    const seconds = (now - started) / 1000;
    const tokens = usage?.completion_tokens ?? null;
    const speed =
      tokens === null
        ? null
        : tokens > 1 && first < 0.8 * seconds && lastAt > firstAt
          ? (tokens - 1) / ((lastAt - firstAt) / 1000)
          : tokens / seconds;
    const { prompt_tokens: prompt = null, prompt_tokens_details: details, forward_passes: passes = null } = usage ?? {};
    return { first, seconds, tokens, speed, prompt, cached: details?.cached_tokens ?? null, passes };
  }
}
