// The request behind an answer, for a shell and for OpenAI's client.

const OPENAI = new Set([
  "model",
  "messages",
  "stream",
  "temperature",
  "top_p",
  "n",
  "max_tokens",
  "max_completion_tokens",
  "stop",
  "seed",
  "presence_penalty",
  "frequency_penalty",
  "logit_bias",
  "response_format",
  "tools",
  "tool_choice",
  "parallel_tool_calls",
  "reasoning_effort",
  "logprobs",
  "top_logprobs",
  "user",
  "stream_options",
]); // what OpenAI's client takes by name; all else is its extra_body

const base = () => new URL("v1", location.href).href;

const hasKey = () => Boolean(sessionStorage.getItem(KEY));

function curlOf(body) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const key = hasKey() ? ' \\\n  -H "Authorization: Bearer $SEODANG_API_KEY"' : "";
  return `curl -N ${base()}/chat/completions \\\n  -H 'Content-Type: application/json'${key} \\\n  -d ${quoted(JSON.stringify({ ...body, stream: true }, null, 2))}`;
}

function pythonOf(body) {
  const own = Object.entries(body).filter(([name]) => OPENAI.has(name));
  const extra = Object.fromEntries(Object.entries(body).filter(([name]) => !OPENAI.has(name)));
  const told = [...own, ...(Object.keys(extra).length ? [["extra_body", extra]] : [])];
  return [
    hasKey() ? "import os\n\nfrom openai import OpenAI\n" : "from openai import OpenAI\n",
    `client = OpenAI(base_url=${python(base())}, api_key=${hasKey() ? 'os.environ["SEODANG_API_KEY"]' : '"any"'})`,
    "stream = client.chat.completions.create(",
    ...told.map(([name, value]) => `    ${name}=${python(value, 1)},`),
    "    stream=True,",
    ")",
    "for chunk in stream:",
    "    if chunk.choices:",
    '        print(chunk.choices[0].delta.content or "", end="", flush=True)',
  ].join("\n");
}

// A value as Python writes it.
function python(value, depth = 0) {
  const line = `\n${"    ".repeat(depth + 1)}`;
  const wrapped = (open, parts, close) =>
    parts.length ? `${open}${parts.map((each) => `${line}${each},`).join("")}\n${"    ".repeat(depth)}${close}` : open + close;
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) {
    return value.every((each) => typeof each !== "object")
      ? `[${value.map((each) => python(each)).join(", ")}]`
      : wrapped(
          "[",
          value.map((each) => python(each, depth + 1)),
          "]",
        );
  }
  if (typeof value !== "object") return JSON.stringify(value);
  const entries = Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${python(each, depth + 1)}`);
  return depth && entries.join().length < 100 && !entries.join().includes("\n") ? `{${entries.join(", ")}}` : wrapped("{", entries, "}");
}

// Both in a dialog, to be read and copied.
function showSnippets(body) {
  const dialog = h(
    "dialog",
    { class: "snippets", "aria-label": t("The request as code") },
    h(
      "div",
      { class: "title" },
      h("h2", {}, t("The request as code")),
      iconButton("close", t("Close"), () => dialog.close()),
    ),
    codeBlock(curlOf(body), "curl"),
    codeBlock(pythonOf(body), "Python"),
  );
  dialog.addEventListener("close", () => {
    dialog.remove();
  });
  document.body.append(dialog);
  dialog.showModal();
}
