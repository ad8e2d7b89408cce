"""langchain-openai: chats, structured outputs in its three ways, texts continued, embeddings, the responses API."""

import json
import os
from pathlib import Path
from typing import Literal

from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel

wanted = json.loads(Path(os.environ["WANTED"]).read_text(encoding="utf-8"))
where = {"base_url": os.environ["BASE_URL"], "api_key": "any", "model": os.environ["MODEL"], "max_retries": 0}


class Place(BaseModel):
    """A city and where it is."""

    country: Literal["Korea", "Japan"]
    city: Literal["Suwon", "Osaka"]
    coastal: bool


chat = ChatOpenAI(temperature=0, max_tokens=8, **where)
assert chat.invoke(wanted["question"]).content == wanted["answer"]
parts = list(ChatOpenAI(temperature=0, max_tokens=8, stream_usage=True, **where).stream(wanted["question"]))
assert "".join(part.content for part in parts) == wanted["answer"]
assert sum(part.usage_metadata["output_tokens"] for part in parts if part.usage_metadata) == 8

long = ChatOpenAI(temperature=0, max_tokens=60, **where)
assert long.with_structured_output(Place, method="json_schema").invoke(wanted["question"]).model_dump() == wanted["place"]
assert isinstance(long.with_structured_output(Place, method="function_calling").invoke(wanted["question"]), Place)
called = long.bind_tools([Place], tool_choice="required", parallel_tool_calls=False).invoke(wanted["question"])
assert [call["name"] for call in called.tool_calls] == ["Place"] and Place(**called.tool_calls[0]["args"]), called
assert called.response_metadata["finish_reason"] == "tool_calls"

responses = ChatOpenAI(temperature=0, max_tokens=8, use_responses_api=True, **where)
assert responses.invoke(wanted["question"]).text == wanted["answer"]
assert "".join(part.text for part in responses.stream(wanted["question"])) == wanted["answer"]

assert OpenAI(temperature=0, max_tokens=8, **where).invoke(wanted["prompt"]) == wanted["continued"]
vector = OpenAIEmbeddings(check_embedding_ctx_length=False, **where).embed_query(wanted["prompt"])
assert all(abs(a - b) < 1e-3 for a, b in zip(vector, wanted["embedding"], strict=True))
