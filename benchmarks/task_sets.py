"""Two sets of several tasks of one input, made from what people have labelled: an utterance in English, a film review in Korean.

Each record is {input, tasks: [{name, instruction, output}, ...]} as `seodang sft --tasks` reads it. The files are:

- SNIPS, the custom intent engines of sonos/nlu-benchmark (CC0): utterances with an intent and the spans of its slots. Tasks: what is wanted
  (one of seven), the slots as JSON, the utterance with what stands in each slot replaced by the slot's name.
- KLUE-NER's development file (CC BY-SA 4.0): sentences with names marked by characters; those that are reviews of e9t/nsmc (CC0) have a rating
  there too. Tasks: the opinion (1 to 4 is 부정, 9 and 10 are 긍정, as in nsmc), the names as JSON, the review with each name replaced by its kind.
"""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

KINDS = {"PS": "인물", "LC": "장소", "OG": "기관", "DT": "날짜", "TI": "시간", "QT": "수량"}
LOW, HIGH = range(1, 5), (9, 10)


def snips(folder: Path) -> list[dict]:
    """Every utterance of the seven files train_INTENT.json that has a slot."""
    found = []
    for path in sorted(folder.glob("train_*.json")):
        [(intent, utterances)] = json.loads(_decoded(path.read_bytes())).items()
        found += [_utterance(intent, [(part["text"], part.get("entity")) for part in each["data"]]) for each in utterances]
    return [record for record in found if record["tasks"][1]["output"]]


def _decoded(data: bytes) -> str:
    """UTF-8 in which one file has an emoji as two halves of three bytes each (CESU-8)."""
    return data.decode("utf-8", "surrogatepass").encode("utf-16", "surrogatepass").decode("utf-16")


def _utterance(intent: str, parts: list[tuple[str, str | None]]) -> dict:
    fields: dict[str, str] = {}
    for text, slot in parts:
        if slot:
            fields.setdefault(slot, text.strip())
    return {
        "input": "".join(text for text, _ in parts).strip(),
        "tasks": [
            {"name": "intent", "instruction": "What does the user want?", "output": intent},
            {"name": "fields", "instruction": "Write what the request says as a JSON object.", "output": fields},
            {"name": "template", "instruction": "Write the request with each value replaced by the name of its field in brackets.",
             "output": "".join(f"[{slot}]" if slot else text for text, slot in parts).strip()},
        ],
    }  # fmt: skip


def reviews(tagged: Path, rated: Path) -> list[dict]:
    """Every review of KLUE-NER's file that has a rating of 1 to 4, 9 or 10 among nsmc's raw files."""
    ratings = {_bare(each["review"]): int(each["rating"]) for path in rated.glob("*.json") for each in json.loads(path.read_text(encoding="utf-8"))}
    found = []
    for source, parts in _sentences(tagged):
        rating = ratings.get(_bare("".join(text for text, _ in parts)))
        if source == "nsmc" and rating is not None and (rating in LOW or rating in HIGH):
            found.append(_review("긍정" if rating in HIGH else "부정", parts))
    return found


def _bare(text: str) -> str:
    return re.sub(r"\s+", "", text)


def _sentences(path: Path) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """Where each sentence is from, and its text in parts, each with the kind of name that it is, or None."""
    for block in path.read_text(encoding="utf-8").split("\n\n"):
        lines = block.split("\n")
        heads = [line for line in lines if line.startswith("## klue-ner")]
        parts: list[tuple[str, str | None]] = []
        for line in lines:
            if line.startswith("##") or "\t" not in line:
                continue
            character, tag = line.rsplit("\t", 1)
            kind = None if tag == "O" else tag[2:]
            if parts and kind == parts[-1][1] and not tag.startswith("B-"):
                parts[-1] = (parts[-1][0] + character, kind)
            else:
                parts.append((character, kind))
        if heads:
            yield heads[0].split("\t")[0].rsplit("-", 1)[1], parts


def _review(opinion: str, parts: list[tuple[str, str | None]]) -> dict:
    names: dict[str, list[str]] = {}
    for text, kind in parts:
        if kind:
            names.setdefault(KINDS[kind], []).append(text)
    return {
        "input": "".join(text for text, _ in parts).strip(),
        "tasks": [
            {"name": "평가", "instruction": "이 영화평은 긍정인가 부정인가?", "output": opinion},
            {"name": "이름", "instruction": "나오는 이름을 종류별로 JSON 객체로 쓰시오.", "output": names},
            {"name": "가림", "instruction": "영화평의 이름을 종류로 바꾸어 다시 쓰시오.",
             "output": "".join(f"[{KINDS[kind]}]" if kind else text for text, kind in parts).strip()},
        ],
    }  # fmt: skip


def split(records: list[dict], train: int, held_out: int, seed: int) -> tuple[list[dict], list[dict]]:
    """Records to train on and others to measure by, no input in both, drawn by the seed."""
    once = list({record["input"]: record for record in records}.values())
    drawn = random.Random(seed).sample(once, train + held_out)
    return drawn[:train], drawn[train:]
