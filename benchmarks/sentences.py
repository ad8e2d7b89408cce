"""Sentences with labels, to teach a Diffusion-LM: of the words and wordings of data/samples/everyday.yaml, or of GSM8K's questions.

python benchmarks/sentences.py everyday sentences.jsonl
python benchmarks/sentences.py gsm8k natural.jsonl --data gsm8k_train.jsonl

Each line has `text`, `label` (everyday: praise, blame or neutral; gsm8k: question or statement).
"""

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

EVERYDAY = Path(__file__).parents[1] / "data" / "samples" / "everyday.yaml"
SLOT = re.compile(r"\{(\w*)\}")


def everyday(count: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """A third of the sentences praises, a third blames, a third does neither; none twice."""
    told, draw, seen = yaml.safe_load(EVERYDAY.read_text(encoding="utf-8")), random.Random(seed), set()
    words = {name: each["trained"] for name, each in told["words"].items()}
    plain = [wording for wording, _ in told["wordings"]["form"]["input"]["trained"]]
    reviews = told["wordings"]["sentiment"]["input"]["trained"]

    def fill(match: re.Match, label: str, used: dict[str, str]) -> str:
        name = match[1] or "name"
        if name == "so":
            return draw.choice(words[label])
        if name == "a_so":
            word = draw.choice(words[label])
            return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
        if name == "it":
            return draw.choice(words["reviewed"])
        if name == "end":
            return draw.choice(told["ends"][label])
        if name in ("number", "few"):
            return str(draw.randint(2, 9 if name == "few" else 20))
        return used.setdefault(name, draw.choice([each for each in words["name" if name == "other" else name] if each not in used.values()]))

    while len(seen) < count:
        label = ("praise", "blame", "neutral")[len(seen) % 3]
        used: dict[str, str] = {}
        text = SLOT.sub(lambda match, used=used, label=label: fill(match, label, used), draw.choice(plain if label == "neutral" else reviews))
        if text not in seen:
            seen.add(text)
            yield {"text": text, "label": label}


def gsm8k(path: str, longest: int) -> Iterator[dict[str, str]]:
    """The sentences of the questions, of at most so many words, without those that have other signs than usual; none twice."""
    seen = set()
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            for text in re.split(r"(?<=[.?!]) +", json.loads(line)["question"].replace("\n", " ").strip()):
                if re.fullmatch(r"[A-Z][\w ,'$%-]*[.?!]", text) and len(re.findall(r"\w+|[^\w\s]", text)) <= longest and text not in seen:
                    seen.add(text)
                    yield {"text": text, "label": "question" if text.endswith("?") else "statement"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("everyday", "gsm8k"))
    parser.add_argument("output", type=Path)
    parser.add_argument("--data", help="GSM8K's file of questions")
    parser.add_argument("--count", type=int, default=6000, help="sentences of everyday")
    parser.add_argument("--longest", type=int, default=15, help="words and signs of a sentence of GSM8K")
    options = parser.parse_args()
    if options.kind == "gsm8k" and options.data is None:
        parser.error("gsm8k needs --data, the file of its questions")
    made = everyday(options.count) if options.kind == "everyday" else gsm8k(options.data, options.longest)
    lines = [json.dumps(each, ensure_ascii=False) + "\n" for each in made]
    options.output.write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines):,} sentences in {options.output}")


if __name__ == "__main__":
    main()
