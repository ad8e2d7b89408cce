"""litellm: whole and streamed chats, text completions, embeddings, tools."""

import json
import os
from pathlib import Path

import litellm

wanted = json.loads(Path(os.environ["WANTED"]).read_text(encoding="utf-8"))
where = {"api_base": os.environ["BASE_URL"], "api_key": "any", "num_retries": 0}
chat, text = f"openai/{os.environ['MODEL']}", f"text-completion-openai/{os.environ['MODEL']}"
asked = {"model": chat, "messages": [{"role": "user", "content": wanted["question"]}], "temperature": 0, **where}

answer = litellm.completion(max_tokens=8, **asked)
assert answer.choices[0].message.content == wanted["answer"], answer
assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (8, "length"), answer
parts = litellm.completion(max_tokens=8, stream=True, **asked)
assert "".join(part.choices[0].delta.content or "" for part in parts) == wanted["answer"]

tool = {"type": "function", "function": {"name": "look_up", "parameters": wanted["schema"]}}
choice = litellm.completion(max_tokens=60, tools=[tool], tool_choice="required", parallel_tool_calls=False, **asked).choices[0]
[call] = choice.message.tool_calls
assert (call.function.name, choice.finish_reason) == ("look_up", "tool_calls"), choice
assert set(json.loads(call.function.arguments)) == {"country", "city", "coastal"}, call

answer = litellm.text_completion(model=text, prompt=wanted["prompt"], max_tokens=8, temperature=0, **where)
assert answer.choices[0].text == wanted["continued"], answer
[vector] = litellm.embedding(model=chat, input=[wanted["prompt"]], **where).data
assert all(abs(a - b) < 1e-3 for a, b in zip(vector["embedding"], wanted["embedding"], strict=True))
