"""Entities of sentences found by a tagger and by generation: F1, what training takes, what an answer takes, on the same records.

python benchmarks/entities.py --set wnut --data wnut17train.conll
python benchmarks/entities.py --set snips --data train_BookRestaurant.json --records 300 --heldout 80
python benchmarks/entities.py --set klue --data klue_ner_dev.tsv --sides tagger own decoder

Sets: SNIPS's slots (2017-06-custom-intent-engines, CC0, one train_*.json or their folder), WNUT17's names (CC-BY 4.0, .conll), KLUE-NER's by characters (CC BY-SA 4.0, .tsv).
Of the sentences `--records` are drawn to train on and `--heldout` to answer. Sides: "tagger", the default encoder behind `seodang tag`; "own", a small ModernBERT
pretrained before on all other sentences of the set, without their entities, by `seodang pretrain`, tokenizer and all; "decoder", the default decoder behind `seodang sft` (LoRA), which writes a line
"label: text" for each entity, or "none", within a regular expression that knows the labels. A written text stands for its first place behind that of the entity before, or
else anywhere; one that stands nowhere in the sentence is a wrong entity. All sides are measured by the same code (seqeval's count). CPU seconds are the process's, on `--threads`
threads; on a machine with nothing beside they are those of the clock. Prints a JSON line a side.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from seodang.data.chat import prompt_ids
from seodang.data.tagging.records import TaggedText, tagged_texts
from seodang.data.tagging.rows import entity_labels
from seodang.data.tagging.schemes import Span
from seodang.infer import SamplingParams, generate, load
from seodang.infer.encoders.tagging import Tagger
from seodang.recipes import pretrain, sft
from seodang.recipes.tagging import tag
from seodang.train.maths.entity_metrics import decisions_over, entity_metrics

SIDES = ("tagger", "own", "decoder")
ASKED, NONE = "Name the entities of the sentence, each on a line of its own as label: text.", "none"
COMMON = {"report_to": "none", "disable_tqdm": "true", "save_strategy": "no", "device": "cpu", "logging_steps": 20, "resume": "never"}
PRETRAINING = {
    "architecture": "modernbert", "kind": "wordpiece", "vocab_size": 4000, "hidden_size": 128, "layers": 3, "heads": 4, "max_length": 128, "mlm_probability": 0.2,
    "per_device_train_batch_size": 12, "learning_rate": 1.5e-3, "lr_scheduler_type": "cosine", "warmup_steps": 0.05,
}  # fmt: skip
TAGGING = {"per_device_train_batch_size": 16, "lr_scheduler_type": "cosine", "warmup_steps": 0.1}
RATES = {"tagger": 2e-4, "own": 1e-3, "decoder": 1e-4, "adapter": 1e-3}
WRITING = {"per_device_train_batch_size": 8, "lr_scheduler_type": "cosine", "warmup_steps": 0.1, "max_length": 512}


def argv_of(options: dict) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def ran(main, options: dict) -> None:
    if code := main(argv_of(options | COMMON)):
        raise SystemExit(code)


# Records


def sentences(kind: str, data: str) -> list[TaggedText]:
    """The different sentences of a set with their entities."""
    found = list(snips(Path(data)) if kind == "snips" else tagged_texts(data))
    return list({each.text: each for each in found if each.text.strip()}.values())


def snips(folder: Path) -> Iterator[TaggedText]:
    """The sentences of all intents, or of the file of one."""
    for path in sorted(folder.glob("train_*.json")) if folder.is_dir() else [folder]:
        for number, said in enumerate(next(iter(json.loads(path.read_text(encoding="utf-8", errors="replace")).values())), start=1):
            text, spans = "", []
            for part in said["data"]:
                if "entity" in part:
                    spans.append(Span(len(text), len(text) + len(part["text"]), part["entity"]))
                text += part["text"]
            yield TaggedText(f"{path.name} record {number}", text, tuple(spans))


def write(path: Path, records: Sequence[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


# Entities as text


def written(each: TaggedText) -> str:
    """What the decoder is to write of a sentence."""
    return "\n".join(f"{label}: {each.text[start:end]}" for start, end, label in each.entities) or NONE


def located(text: str, answer: str) -> list[Span]:
    """The entities of an answer, where they stand in a sentence; one that stands nowhere has a place before its beginning.

    >>> located("seoul is not Seoul", "LOC: Seoul\\nLOC: Paris")
    [Span(start=13, end=18, label='LOC'), Span(start=-1, end=0, label='LOC')]
    """
    found, behind, nowhere = [], 0, 0
    for line in answer.splitlines():
        label, mark, piece = line.partition(": ")
        if not mark or not piece.strip():
            continue
        start = text.find(piece, behind)
        start = text.find(piece) if start < 0 else start
        if start < 0:
            nowhere -= 1
            found.append(Span(nowhere, nowhere + 1, label))
        else:
            behind = start + len(piece)
            found.append(Span(start, behind, label))
    return found


def form_of(labels: Sequence[str]) -> str:
    """The regular expression of an answer."""
    entity = rf"({'|'.join(label.replace('.', '[.]') for label in labels)}): [^\n]+"
    return rf"({NONE}|{entity}(\n{entity})*)"


# Sides


class Side:
    """What was measured of a side while it learned and answered."""

    def __init__(self, name: str, held: Sequence[TaggedText], labels: Sequence[str]):
        self.name, self.held, self.labels, self.seconds = name, held, labels, {}

    def timed(self, what: str, call):
        """Do something, and keep how long it took, by the process's CPU time and by the clock."""
        cpu, wall = time.process_time(), time.perf_counter()
        found = call()
        self.seconds |= {f"{what}_cpu_s": round(time.process_time() - cpu, 1), f"{what}_s": round(time.perf_counter() - wall, 1)}
        return found

    def line(self, answers: Sequence[Sequence[Span]], tokens: int, generated: int, **further) -> dict:
        """All of it; `tokens` went through the model for all answers, `generated` of them one after the other."""
        count = len(self.held)
        found = entity_metrics(decisions_over(zip([each.entities for each in self.held], answers, strict=True), self.labels))
        values = {name: round(value, 4) for name, value in found.values.items()}
        each = {"tokens_a_sentence": round(tokens / count, 1), "generated_a_sentence": round(generated / count, 1)}
        each["cpu_ms_a_sentence"] = round(1000 * self.seconds["answering_cpu_s"] / count, 1)
        return {"side": self.name, **values, **self.seconds, **each, **further}


def by_tagging(side: Side, model: str, files: dict[str, Path], out: Path, epochs: int) -> dict:
    options = {"model": model, "data": files["entities"], "output_dir": out, "num_train_epochs": epochs, "learning_rate": RATES[side.name]}
    side.timed("training", lambda: ran(tag.main, options | TAGGING))
    tagger = Tagger(*load(out, device="cpu"))
    texts = [each.text for each in side.held]
    tagger.entities(texts[:4], tagger.encode(texts[:4]))  # the trial of computing without padding is made once a model
    encoded, found = side.timed("answering", lambda: (read := tagger.encode(texts), tagger.entities(texts, read)))
    return side.line([[Span(each.start, each.end, each.label) for each in some] for some in found], sum(each.tokens for each in encoded), 0)


def by_generation(side: Side, files: dict[str, Path], out: Path, epochs: int, most: int, lora_r: int) -> dict:
    options = {"model": "default", "data": files["written"], "output_dir": out, "num_train_epochs": epochs, "learning_rate": RATES["adapter" if lora_r else "decoder"]}
    side.timed("training", lambda: ran(sft.main, options | WRITING | {"lora_r": lora_r}))
    model, tokenizer = load(out, device="cpu")
    prompts = [[{"role": "user", "content": f"{ASKED}\n\n{each.text}"}] for each in side.held]
    params = SamplingParams(max_new_tokens=most, regex=form_of(side.labels))
    generate(model, tokenizer, prompts[:2], params)  # the runner is chosen once a model
    results = side.timed("answering", lambda: generate(model, tokenizer, prompts, params))
    found = [located(each.text, result.text) for each, result in zip(side.held, results, strict=True)]
    generated, nowhere = sum(len(result.ids) for result in results), sum(span.start < 0 for some in found for span in some)
    read = sum(len(prompt_ids(tokenizer, prompt)) for prompt in prompts)
    cut = sum(result.finish_reason == "length" for result in results)
    return side.line(found, read + generated, generated, stand_nowhere=nowhere, cut_at_the_limit=cut)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=("snips", "wnut", "klue"), required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/entities"))
    parser.add_argument("--sides", choices=SIDES, nargs="+", default=("tagger", "decoder"))
    parser.add_argument("--records", type=int, default=600)
    parser.add_argument("--heldout", type=int, default=150)
    parser.add_argument("--epochs", type=int, default=4, help="of a tagger")
    parser.add_argument("--decoder_epochs", type=int, default=1)
    parser.add_argument("--lora_r", type=int, default=16, help="of the decoder's adapter; 0 trains all its weights")
    parser.add_argument("--pretraining_steps", type=int, default=300, help="of the encoder of its own")
    parser.add_argument("--max_new_tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    known = sentences(options.set, options.data)
    drawn = random.Random(options.seed).sample(known, options.records + options.heldout)
    train, labels = drawn[: options.records], entity_labels(drawn[: options.records])
    held = [each for each in drawn[options.records :] if {span.label for span in each.entities} <= {*labels}]
    apart = {each.text for each in drawn[options.records :]}
    out = options.output_dir / options.set
    files = {
        "entities": write(out / "entities.jsonl", [{"text": each.text, "entities": [span._asdict() for span in each.entities]} for each in train]),
        "written": write(out / "written.jsonl", [{"instruction": ASKED, "input": each.text, "output": written(each)} for each in train]),
        "texts": write(out / "texts.jsonl", [{"text": each.text} for each in known if each.text not in apart]),
    }
    about = {"set": options.set, "records": len(train), "held_out": len(held), "labels": len(labels), "entities": sum(len(each.entities) for each in held)}
    print(json.dumps(about), flush=True)
    for name in options.sides:
        side = Side(name, held, labels)
        if name == "decoder":
            line = by_generation(side, files, out / name, options.decoder_epochs, options.max_new_tokens, options.lora_r)
        elif name == "own":
            pretrained = out / "pretrained"
            how = {"data": files["texts"], "output_dir": pretrained, "max_steps": options.pretraining_steps} | PRETRAINING
            side.timed("pretraining", lambda how=how: ran(pretrain.main, how))
            line = by_tagging(side, str(pretrained), files, out / name, options.epochs)
        else:
            line = by_tagging(side, "default-encoder", files, out / name, options.epochs)
        print(json.dumps({"set": options.set, **line}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
