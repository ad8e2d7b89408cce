"""Train a small Llama from scratch on plain text, for measurements that need a model whose weights were never quantised.

python benchmarks/small_model.py OUTPUT --data gsm8k_train.jsonl --minutes 10

The tokenizer, a byte-level BPE of 4,096 tokens, is trained on the same text. Every JSON record's strings count as text, joined by newlines.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LENGTH, BATCH = 256, 8


def texts(path: str) -> list[str]:
    with open(path, encoding="utf-8") as lines:
        return ["\n".join(value for value in json.loads(line).values() if isinstance(value, str)) for line in lines]


def train_tokenizer(corpus: list[str]) -> PreTrainedTokenizerFast:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(corpus, vocab_size=4096, special_tokens=["<|end|>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|end|>", pad_token="<|end|>")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--minutes", type=float, default=10)
    options = parser.parse_args()
    torch.manual_seed(0)
    corpus = texts(options.data)
    tokenizer = train_tokenizer(corpus)
    ids = [id for text in corpus for id in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    rows = torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4,
        max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    began, step, smooth = time.monotonic(), 0, None
    while (spent := time.monotonic() - began) < 60 * options.minutes:
        share = spent / (60 * options.minutes)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 50) * max(0.05, 1 - share)
        batch = rows[torch.randint(len(rows), (BATCH,))]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        if step % 50 == 0:
            print(f"step {step}, {spent:.0f} s, loss {smooth:.3f}", flush=True)
        step += 1
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)


if __name__ == "__main__":
    main()
