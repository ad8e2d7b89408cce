// The server: its paths, relative to the page, with the API key where there is one; answers as they grow.

const KEY = "seodang.key"; // for as long as the tab is open

class RequestError extends Error {
  constructor(message, { status = 0, param = null, code = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, param, code, retryAfter });
  }
}

let asking = null; // one question for all that wait for the key

async function call(path, body = null, signal = null) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...(body ? { "Content-Type": "application/json" } : {}), ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    let response;
    try {
      response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new RequestError(t("The server cannot be reached."));
    }
    if (response.ok) return response;
    const told = await errorOf(response);
    if (told.status !== 401) throw told;
    asking ||= ask(key ? t("The server does not know this key.") : t("This server asks for a key."), { label: t("API key"), password: true }).finally(
      () => {
        asking = null;
      },
    );
    const given = await asking;
    if (!given) throw told;
    sessionStorage.setItem(KEY, given);
  }
}

async function errorOf(response) {
  const seconds = Number(response.headers.get("Retry-After"));
  const more = { status: response.status, retryAfter: seconds > 0 ? seconds : null };
  try {
    const { error } = await response.json();
    return new RequestError(error.message, { ...more, param: error.param, code: error.code });
  } catch {
    return new RequestError(t("The server answered {0}.", response.status), more);
  }
}

const json = async (path) => (await call(path)).json();

// The chunks of an answer; raises RequestError for one that cannot be had, or breaks off.
async function* chunksOf(body, signal) {
  const response = await call("v1/chat/completions", body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new RequestError(t("The connection broke off."));
      text += value;
      const frames = text.split("\n\n");
      text = frames.pop();
      for (const frame of frames) {
        const data = frame.replace(/^data: ?/, "");
        if (data === "[DONE]") return;
        if (!frame.startsWith("data:")) continue; // a comment that keeps the connection open
        const chunk = JSON.parse(data);
        if (chunk.error) throw new RequestError(chunk.error.message, { status: 200, ...chunk.error });
        yield chunk;
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof RequestError) throw error;
    throw new RequestError(t("The connection broke off."));
  } finally {
    reader.cancel().catch(() => {});
  }
}
