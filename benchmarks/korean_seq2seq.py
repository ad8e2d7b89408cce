"""Korean to English from nothing: a small encoder-decoder of T5's type, its tokenizer included, learned from some hundred pairs, beside guesses that know nothing.

python benchmarks/korean_seq2seq.py --data jhe_koen.jsonl --output_dir runs/korean-seq2seq
python benchmarks/korean_seq2seq.py --data jhe_koen.jsonl --architecture seodang_transformer --steps 1500

The data are JSON Lines of {source, target} (the development part of jungyeul/korean-parallel-corpora, CC BY-SA 3.0). A tenth of the pairs is held out at random, and
with them every pair of one of their texts. Texts of both languages first teach the tokenizer, then, by span corruption, the model; then come the pairs. chrF (sacrebleu) of the
held-out targets beside that of the commonest training target given each time, of the training target that suits all training targets best, and of the
target of the training source whose character 1- to 4-grams are nearest. A Transformer as its paper has it, but with norms before its sublayers, begins the pairs
with random weights.
"""

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from math import log, sqrt
from pathlib import Path

import torch
from sacrebleu import CHRF
from transformers import AutoModelForSeq2SeqLM

from seodang.data import TokenizerSettings, train_tokenizer
from seodang.infer import SamplingParams, TransformerConfig, generate, load
from seodang.recipes import pretrain, seq2seq
from seodang.train import read_log
from seodang.train.pretraining.architecture import of_tokenizer, untrained

Pair = tuple[str, str]
TOKENIZER = {"kind": "unigram", "vocab_size": 2048}
MODEL = {"architecture": "t5", "hidden_size": 128, "layers": 2, "heads": 4, "intermediate": 256}
COMMON = {"lr_scheduler_type": "cosine", "warmup_steps": 0.05, "logging_steps": 50, "save_strategy": "no", "eval_strategy": "steps", "report_to": "none", "disable_tqdm": "true"}
TRANSFORMER = {"d_model": 128, "encoder_layers": 2, "num_heads": 4, "d_ff": 512, "norm_position": "pre"}
SPANS = {"max_length": 256, "per_device_train_batch_size": 2, "learning_rate": 2e-3, "eval_samples": 2}
PAIRS = {"max_source_length": 128, "max_target_length": 128, "per_device_train_batch_size": 2, "learning_rate": 1.5e-3, "weight_decay": 0.01, "eval_samples": 0}
SPOKEN = {"greedy": SamplingParams(max_new_tokens=100), "four beams": SamplingParams(max_new_tokens=100, num_beams=4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/korean-seq2seq"))
    parser.add_argument("--architecture", choices=("t5", TransformerConfig.model_type), default="t5", help="the second learns from pairs alone")
    parser.add_argument("--span_steps", type=int, default=400, help="0 begins the pairs with random weights")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    train, held = split(options.data)
    print(f"{len(train):,} pairs to train on, {len(held):,} held out", flush=True)
    for name, answers in guesses(train, held).items():
        print(f"{name:<16}chrF {chrf(answers, held):.2f}", flush=True)
    files = {name: write(options.output_dir / f"{name}.jsonl", pairs) for name, pairs in (("train", train), ("held", held))}
    texts = {name: write_texts(options.output_dir / f"{name}_texts.jsonl", pairs) for name, pairs in (("train", train), ("held", held))}
    of_spans = options.architecture == "t5"
    folder = learn_spans(options, texts) if of_spans else untrained_transformer(options.output_dir / "untrained", train, options.seed)
    began = time.process_time()
    given = {"model": folder, "data": files["train"], "eval_data": files["held"], "output_dir": options.output_dir / "pairs", "max_steps": options.steps}
    scratch = str(of_spans and not options.span_steps).lower()
    command(seq2seq.main, given | {"eval_steps": max(options.steps // 5, 1), "seed": options.seed, "scratch": scratch} | PAIRS)
    tell(options.output_dir / "pairs", "pairs", time.process_time() - began)
    speak(options.output_dir / "pairs", train, held)


def learn_spans(options: argparse.Namespace, texts: dict[str, Path]) -> Path:
    """The folder of a T5 that has learned hidden spans of the texts, its tokenizer with it."""
    folder, began = options.output_dir / "spans", time.process_time()
    steps = max(options.span_steps, 1)  # one makes the folder that the pairs begin with, by its config alone
    given = {"data": texts["train"], "eval_data": texts["held"], "output_dir": folder, "max_steps": steps, "eval_steps": max(steps // 3, 1), "seed": options.seed}
    command(pretrain.main, given | TOKENIZER | MODEL | SPANS)
    if options.span_steps:
        tell(folder, "spans", time.process_time() - began)
    return folder


def untrained_transformer(folder: Path, train: Sequence[Pair], seed: int) -> Path:
    """The folder of a Transformer with random weights, with a tokenizer learned from the training texts."""
    tokenizer = train_tokenizer([text for pair in train for text in pair], TokenizerSettings(**TOKENIZER))
    model = untrained(TransformerConfig(**of_tokenizer(tokenizer), **TRANSFORMER), seed, torch.float32, torch.device("cpu"), AutoModelForSeq2SeqLM)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def split(path: str) -> tuple[list[Pair], list[Pair]]:
    """The different pairs in a random order: those to train on, and a tenth held out, of whose texts none is trained on."""
    with open(path, encoding="utf-8") as lines:
        pairs = list(dict.fromkeys((record["source"], record["target"]) for record in map(json.loads, lines)))
    random.Random(0).shuffle(pairs)
    held, rest = pairs[: len(pairs) // 10], pairs[len(pairs) // 10 :]
    shown = {text for pair in held for text in pair}
    return [pair for pair in rest if not shown.intersection(pair)], held


def write(path: Path, pairs: Sequence[Pair]) -> Path:
    """Pairs as records."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"source": source, "target": target}, ensure_ascii=False) + "\n" for source, target in pairs), encoding="utf-8")
    return path


def write_texts(path: Path, pairs: Sequence[Pair]) -> Path:
    """The texts of both languages as records of their own."""
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for pair in pairs for text in pair), encoding="utf-8")
    return path


def command(verb: Callable[[list[str]], int], given: dict) -> None:
    """Run a command with options by their names."""
    if code := verb([word for name, value in (given | COMMON).items() for word in (f"--{name}", str(value))]):
        raise SystemExit(code)


def tell(folder: Path, name: str, spent: float) -> None:
    """Print the held-out losses of a run, and what it took."""
    for entry in read_log(folder / "log.jsonl"):
        if "eval_loss" in entry:
            print(f"{name}, step {entry['step']:<6}{entry['eval_loss']:.3f} nats a token, {entry['eval_token_accuracy']:.1%} of tokens right")
    print(f"{name:<16}{spent:.0f} s of CPU time, evaluations included", flush=True)


def chrf(answers: Sequence[str], held: Sequence[Pair]) -> float:
    """chrF2 of the whole held-out corpus."""
    return CHRF().corpus_score(list(answers), [[target for _, target in held]]).score


def guesses(train: Sequence[Pair], held: Sequence[Pair]) -> dict[str, list[str]]:
    """What is answered without having learned to translate."""
    commonest = Counter(target for _, target in train).most_common(1)[0][0]
    some = random.Random(0).sample(train, min(len(train), 200))
    typical = max((target for _, target in some), key=lambda target: CHRF().corpus_score([target] * len(some), [[other for _, other in some]]).score)
    return {"commonest": [commonest] * len(held), "most typical": [typical] * len(held), "nearest source": nearest(train, held)}


def nearest(train: Sequence[Pair], held: Sequence[Pair]) -> list[str]:
    """The target of that training source for each held-out one to which the cosine of their n-grams, weighted by how rare they are, is largest."""
    found = [Counter(ngrams(source)) for source, _ in train]
    rare = Counter(gram for grams in found for gram in grams)

    def vector(grams: Counter) -> dict[str, float]:
        weighted = {gram: count * log((1 + len(train)) / (1 + rare[gram])) for gram, count in grams.items()}
        size = sqrt(sum(weight * weight for weight in weighted.values())) or 1.0
        return {gram: weight / size for gram, weight in weighted.items()}

    known = [vector(grams) for grams in found]
    answers = []
    for source, _ in held:
        own = vector(Counter(ngrams(source)))
        likeness = [sum(weight * other.get(gram, 0.0) for gram, weight in own.items()) for other in known]
        answers.append(train[max(range(len(train)), key=likeness.__getitem__)][1])
    return answers


def ngrams(text: str) -> list[str]:
    """Its runs of one to four characters, ends included."""
    text = f" {text} "
    return [text[i : i + n] for n in range(1, 5) for i in range(len(text) - n + 1)]


def speak(folder: Path, train: Sequence[Pair], held: Sequence[Pair]) -> None:
    """How near the model comes to held-out targets, to training targets, and some of what it says."""
    model, tokenizer = load(folder)
    answers = {name: [each.text for each in generate(model, tokenizer, [source for source, _ in held], params)] for name, params in SPOKEN.items()}
    for name, said in answers.items():
        print(f"{name:<16}chrF {chrf(said, held):.2f}", flush=True)
    seen = random.Random(1).sample(train, len(held))
    said = [each.text for each in generate(model, tokenizer, [source for source, _ in seen], SPOKEN["greedy"])]
    print(f"{'trained on':<16}chrF {chrf(said, seen):.2f}, greedy, of as many training pairs")
    for i, (source, target) in enumerate(held[:5]):
        print(f"{source} -> expected {target}")
        for name in SPOKEN:
            print(f"  {name:<12}{answers[name][i]!r}")


if __name__ == "__main__":
    main()
