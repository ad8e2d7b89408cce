"""instructor: an answer in the caller's own class, by tools, by JSON and by a schema."""

import json
import os
from pathlib import Path
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel

wanted = json.loads(Path(os.environ["WANTED"]).read_text(encoding="utf-8"))


class Place(BaseModel):
    """A city and where it is."""

    country: Literal["Korea", "Japan"]
    city: Literal["Suwon", "Osaka"]
    coastal: bool


asked = {"model": os.environ["MODEL"], "messages": [{"role": "user", "content": wanted["question"]}], "temperature": 0, "max_tokens": 60}
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(OpenAI(base_url=os.environ["BASE_URL"], api_key="any", max_retries=0), mode=mode)
    place = client.chat.completions.create(response_model=Place, max_retries=0, **asked)
    assert isinstance(place, Place)
    if mode is instructor.Mode.JSON_SCHEMA:
        assert place.model_dump() == wanted["place"]
