"""Korean small talk from nothing, its tokenizer included: bits a byte of held-out dialogues beside gzip's, xz's and a character 5-gram's.

python benchmarks/korean_pretrain.py --data chatbot_ko.jsonl --output_dir runs/korean

The data are JSON Lines of {prompt, completion} (songys/Chatbot_data, MIT). A tenth of the different dialogues is held out at random. Bits count
for every byte of the held-out texts, of the model and of the 5-gram also what their ends cost; gzip and xz see these texts alone, in one file.
"""

import argparse
import json
import lzma
import random
import time
import zlib
from collections import Counter
from collections.abc import Iterable
from math import log2
from pathlib import Path

from seodang.infer import SamplingParams, generate, load
from seodang.recipes import pretrain
from seodang.train import read_log

START, END = "\x02", "\x03"
CHARACTERS = 0x110000 - 0x800  # that Unicode has, surrogates aside
SIZES = {"vocab_size": 2048, "hidden_size": 192, "layers": 4, "heads": 3, "max_length": 256}
TRAINING = {
    "per_device_train_batch_size": 4, "learning_rate": 4e-3, "lr_scheduler_type": "cosine", "warmup_steps": 0.05, "logging_steps": 50, "save_strategy": "no",
    "eval_strategy": "steps", "report_to": "none", "disable_tqdm": "true", "eval_samples": 3, "sample_tokens": 24,
}  # fmt: skip
SPOKEN = {
    "greedy": SamplingParams(max_new_tokens=24), "top-p": SamplingParams(max_new_tokens=24, temperature=0.8, top_p=0.95, seed=1),
    "contrastive": SamplingParams(max_new_tokens=24, penalty_alpha=0.6, top_k=4),
}  # fmt: skip


class CharacterNgrams:
    """Interpolated Kneser-Ney over characters (Chen and Goodman 1999, their equation 4.37 with one discount an order, n1 / (n1 + 2 n2)).

    A text stands between START and END; a character that training has not shown is found by the uniform distribution below the first order.
    """

    def __init__(self, texts: Iterable[str], order: int = 5):
        self.order = order
        self.counts = [Counter() for _ in range(order)]  # of n-grams; below the highest order the number of characters that stand before them
        for text in texts:
            whole = START * (order - 1) + text + END
            self.counts[-1].update(whole[i : i + order] for i in range(len(whole) - order + 1))
        for n in range(order - 1, 0, -1):
            self.counts[n - 1].update(gram[1:] for gram in self.counts[n])
        self.totals, self.kinds = [Counter() for _ in range(order)], [Counter() for _ in range(order)]
        for counts, totals, kinds in zip(self.counts, self.totals, self.kinds, strict=True):
            for gram, count in counts.items():
                totals[gram[:-1]] += count
                kinds[gram[:-1]] += 1
        self.discounts = [self._discount(counts) for counts in self.counts]

    @staticmethod
    def _discount(counts: Counter) -> float:
        by_count = Counter(counts.values())
        return by_count[1] / (by_count[1] + 2 * by_count[2]) if by_count[1] else 0.5

    def probability(self, history: str, character: str) -> float:
        """Of a character behind those before it, the last `order` - 1 of which count."""
        found = 1 / CHARACTERS
        for n in range(self.order):
            context = history[len(history) - n :]
            if total := self.totals[n][context]:
                discount = self.discounts[n]
                found = (max(self.counts[n][context + character] - discount, 0) + discount * self.kinds[n][context] * found) / total
        return found

    def bits(self, text: str) -> float:
        """How long a code for the text and its end is."""
        whole, first = START * (self.order - 1) + text + END, self.order - 1
        return -sum(log2(self.probability(whole[i - first : i], whole[i])) for i in range(first, len(whole)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/korean"))
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    train, held = split(options.data)
    size = sum(len(text.encode()) for text in held)
    print(f"{len(train):,} dialogues to train on, {sum(len(text.encode()) for text in train):,} bytes; {len(held):,} held out, {size:,} bytes", flush=True)
    files = {name: write(options.output_dir / f"{name}.jsonl", texts) for name, texts in (("train", train), ("held", held))}
    whole = "\n".join(held).encode()
    for name, data in (("gzip -9", zlib.compress(whole, 9)), ("xz -9", lzma.compress(whole, preset=9))):
        print(f"{name:<16}{8 * len(data) / size:.3f} bits a byte", flush=True)
    began = time.process_time()
    bits = sum(map(CharacterNgrams(train).bits, held)) / size
    print(f"5-gram          {bits:.3f} bits a byte ({time.process_time() - began:.0f} s of CPU time)", flush=True)
    began = time.process_time()
    given = {"data": files["train"], "eval_data": files["held"], "output_dir": options.output_dir / "model", "max_steps": options.steps, "eval_steps": options.steps // 4}
    if code := pretrain.main([word for name, value in (given | SIZES | TRAINING).items() for word in (f"--{name}", str(value))]):
        raise SystemExit(code)
    spent = time.process_time() - began
    for entry in read_log(options.output_dir / "model" / "log.jsonl"):
        if "eval_bits_per_byte" in entry:
            print(f"step {entry['step']:<11}{entry['eval_bits_per_byte']:.3f} bits a byte, {entry['eval_loss']:.3f} nats a token")
    print(f"training        {spent:.0f} s of CPU time, tokenizer, evaluations and samples included")
    speak(options.output_dir / "model", held)


def split(path: str) -> tuple[list[str], list[str]]:
    """The different dialogues, a prompt and its completion on a line each, in a random order: those to train on, and a tenth held out."""
    with open(path, encoding="utf-8") as lines:
        texts = list(dict.fromkeys("{prompt}\n{completion}".format(**json.loads(line)) for line in lines))
    random.Random(0).shuffle(texts)
    return texts[len(texts) // 10 :], texts[: len(texts) // 10]


def write(path: Path, texts: Iterable[str]) -> Path:
    """Texts as records."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    return path


def speak(folder: Path, held: list[str]) -> None:
    """What the model answers to held-out prompts, by each strategy."""
    model, tokenizer = load(folder)
    for text in held[:5]:
        prompt, _, expected = text.partition("\n")
        print(f"{prompt} -> expected {expected}")
        for name, params in SPOKEN.items():
            print(f"  {name:<12}{generate(model, tokenizer, [prompt + chr(10)], params)[0].text!r}")


if __name__ == "__main__":
    main()
