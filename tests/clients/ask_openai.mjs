// npm openai: models, chats, tools, responses, texts continued, embeddings, errors.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const OpenAI = createRequire(`${process.cwd()}/`)("openai"); // out of the folder that the test runs it in
const wanted = JSON.parse(readFileSync(process.env.WANTED, "utf-8"));
const model = process.env.MODEL;
const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "any", maxRetries: 0 });
const messages = [{ role: "user", content: wanted.question }];
const short = { model, temperature: 0, max_tokens: 8 };

assert.equal((await client.models.retrieve(model)).id, model);
const answer = await client.chat.completions.create({ messages, ...short });
assert.equal(answer.choices[0].message.content, wanted.answer);
let heard = "";
for await (const part of await client.chat.completions.create({ messages, stream: true, ...short })) heard += part.choices[0].delta.content ?? "";
assert.equal(heard, wanted.answer);

const tools = [{ type: "function", function: { name: "look_up", parameters: wanted.schema } }];
const stream = client.chat.completions.stream({ messages, tools, tool_choice: "required", parallel_tool_calls: false, ...short, max_tokens: 60 });
const [call] = (await stream.finalChatCompletion()).choices[0].message.tool_calls;
assert.equal(call.function.name, "look_up");
assert.deepEqual(Object.keys(JSON.parse(call.function.arguments)).sort(), ["city", "coastal", "country"]);

const asked = { model, input: wanted.question, temperature: 0, max_output_tokens: 8, store: false };
assert.equal((await client.responses.create(asked)).output_text, wanted.answer);
heard = "";
for await (const event of await client.responses.create({ ...asked, stream: true })) if (event.type === "response.output_text.delta") heard += event.delta;
assert.equal(heard, wanted.answer);

assert.equal((await client.completions.create({ prompt: wanted.prompt, ...short })).choices[0].text, wanted.continued);
const vector = (await client.embeddings.create({ model, input: wanted.prompt })).data[0].embedding;
assert.ok(vector.length === wanted.embedding.length && vector.every((value, i) => Math.abs(value - wanted.embedding[i]) < 1e-3));

await assert.rejects(
  client.chat.completions.create({ messages, ...short, temperature: -1 }),
  (error) => error instanceof OpenAI.BadRequestError && error.param === "temperature",
);
