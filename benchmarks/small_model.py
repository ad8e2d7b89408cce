"""Train a small Llama from scratch on plain text, for measurements that need a model whose weights were never quantised.

python benchmarks/small_model.py OUTPUT --data gsm8k_train.jsonl --minutes 10
python benchmarks/small_model.py OUTPUT --data gsm8k_train.jsonl --minutes 6 --start default

The second starts from a model that there is. Where that was published in 4 bits, as the default was, its weights lie on a grid and 4 bits hold them without
loss: here each is first moved by chance, evenly within the step of its group, as it lay somewhere in it before it was rounded, and all are trained on, in
bfloat16 with weights of float32. From nothing, the tokenizer, a byte-level BPE of 4,096 tokens, is trained on the same text. Every JSON record's strings
count as text, joined by newlines.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from seodang.infer import load
from seodang.infer.kernels.quantised_linear import GROUP, four_bits

LENGTH, BATCH = 256, 8


def texts(path: str) -> list[str]:
    with open(path, encoding="utf-8") as lines:
        return ["\n".join(value for value in json.loads(line).values() if isinstance(value, str)) for line in lines]


def train_tokenizer(corpus: list[str]) -> PreTrainedTokenizerFast:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(corpus, vocab_size=4096, special_tokens=["<|end|>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|end|>", pad_token="<|end|>")


def moved_within_steps(model: PreTrainedModel) -> None:
    """Move each weight of the layers' linear modules within the step that 4 bits have there."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings():
            scale = four_bits(module.weight.detach())[1].float().repeat_interleave(GROUP, dim=1)
            module.weight.data += scale * (torch.rand_like(scale) - 0.5)


def small_llama(tokenizer: PreTrainedTokenizerFast, inner: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=inner, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4,
        max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--intermediate_size", type=int, default=704, help="768 divides into blocks of 256 inputs, which the K kinds of GGUF need")
    parser.add_argument("--start", help="a model to train on; without it a new one")
    options = parser.parse_args()
    torch.manual_seed(0)
    corpus = texts(options.data)
    if options.start:
        (model, tokenizer), rate, batch = load(options.start, device="cpu", dtype="float32"), 5e-5, BATCH // 2
        moved_within_steps(model)
        model.train()
    else:
        tokenizer = train_tokenizer(corpus)
        model, rate, batch = small_llama(tokenizer, options.intermediate_size), 1e-3, BATCH
    ids = [id for text in corpus for id in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    rows = torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1 if not options.start else 0.0)
    began, step, smooth = time.monotonic(), 0, None
    while (spent := time.monotonic() - began) < 60 * options.minutes:
        share = spent / (60 * options.minutes)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / (10 if options.start else 50)) * max(0.05, 1 - share)
        some = rows[torch.randint(len(rows), (batch,))]
        with torch.autocast("cpu", torch.bfloat16, enabled=bool(options.start)):
            loss = model(input_ids=some, labels=some).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        if step % (10 if options.start else 50) == 0:
            print(f"step {step}, {spent:.0f} s, loss {smooth:.3f}", flush=True)
        step += 1
    print(f"{step} steps, loss {smooth:.3f}")
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)


if __name__ == "__main__":
    main()
