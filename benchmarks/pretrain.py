"""Pretraining on plain text: CPU time to the same number of tokens, ours against transformers' Trainer, and the loss that each comes to.

python benchmarks/pretrain.py --cases mlm
python benchmarks/pretrain.py --cases mlm --data reviews.jsonl --documents 4000      a column "text", or a .txt file with a document a line

Both begin from the same random weights and see the same documents as often; steps are taken in turn, each side's next when it has seen no more
tokens of documents than the other, so that what else the machine does falls on both. `mlm`: an encoder, 15% hidden; transformers' Trainer with
DataCollatorForLanguageModeling on batches of documents padded to the longest, ours on packed rows of as many tokens a step. `causal`: a decoder;
transformers' Trainer on documents laid end to end and cut into rows, each token seeing the documents before its own in the row, ours on packed rows that
keep documents apart, as many rows a step. Without --data the documents are random ids, their lengths those of short reviews.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from beside_trl import Side
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from seodang.data import Masking, MaskingOptions, causal_rows, masked_rows, token_store
from seodang.data.text.store import TokenStore
from seodang.data.text.tokenizer_training import TokenizerSettings, train_tokenizer
from seodang.train import mlm_trainer, pretrain_trainer
from seodang.train.pretraining.architecture import Sizes, small_config, untrained

MAX_LENGTH, BATCH = 256, 32  # tokens of a row of ours; documents of a batch of theirs
ROWS = 4  # of a step of the causal case
SIZES = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": MAX_LENGTH}
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}


def texts_of(options: argparse.Namespace) -> list[str]:
    """The documents that both learn from, and behind them a tenth as many that are held out."""
    count = options.documents + options.documents // 10
    if options.data is None:
        draw = np.random.default_rng(0)
        lengths = np.clip(draw.lognormal(2.3, 0.8, count), 1, 120).astype(int)
        return [" ".join(f"w{id}" for id in draw.zipf(1.3, length) % 8000) for length in lengths]
    lines = Path(options.data).read_text(encoding="utf-8").splitlines()
    found = [json.loads(line)["text"] for line in lines] if options.data.endswith(".jsonl") else lines
    return [" ".join(text.split()) for text in found if text.strip()][:count]


def wordpiece(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer trained on the documents."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(strip_accents=False), pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=size, special_tokens=list(SPECIAL.values()), show_progress=False))
    around = [(mark, backend.token_to_id(mark)) for mark in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


class Epochs(Side):
    """A side that goes through its examples in a random order, batch after batch, and counts the tokens of documents that it has seen."""

    def begin(self, trainer: Trainer, examples: list, batch: int) -> None:
        self.start(trainer, [])
        self.examples, self.batch, self.seen, self.cpu, self.order = examples, batch, 0, 0.0, self._shuffled()

    def _shuffled(self) -> Iterator[tuple[int, int]]:
        draw = np.random.default_rng(0)
        epoch = 0
        while True:
            yield from ((epoch, int(i)) for i in draw.permutation(len(self.examples)))
            epoch += 1

    def timed(self) -> None:
        """One step on the next batch."""
        drawn = [next(self.order) for _ in range(self.batch)]
        self.rows = [self.example(epoch, self.examples[i]) for epoch, i in drawn]
        self.seen += sum(len(row["input_ids"]) for row in self.rows)
        start = time.process_time()
        self.step()
        self.cpu += time.process_time() - start

    def example(self, epoch: int, row: dict) -> dict:
        """A row as the collator takes it."""
        return row


class OursMlm(Epochs):
    def example(self, epoch: int, row: dict) -> dict:
        return {**row, "drawn": (epoch, 0)}


def compare_mlm(options: argparse.Namespace, folder: str) -> dict:
    """Both sides over the same documents, then the held-out loss of each on the same masks."""
    texts = texts_of(options)
    tokenizer = wordpiece(texts[: options.documents], 8000)
    stores = encoded_apart(texts, tokenizer, options, folder)
    rows, held = (masked_rows(store, tokenizer, MAX_LENGTH) for store in stores)
    masking = Masking.of(tokenizer, MaskingOptions())
    settings = {"learning_rate": options.learning_rate, "report_to": "none", "use_cpu": True, "bf16": False, "weight_decay": 0.01}

    def model():
        set_seed(0)
        return AutoModelForMaskedLM.from_config(AutoConfig.for_model("bert", vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **SIZES))

    encoded = tokenizer(texts[: options.documents], truncation=True, max_length=MAX_LENGTH, return_special_tokens_mask=True)
    documents = [{name: encoded[name][i] for name in ("input_ids", "attention_mask", "special_tokens_mask")} for i in range(options.documents)]
    per_step = max(round(BATCH * rows.token_count() / len(documents) / MAX_LENGTH), 1)  # rows of as many tokens as BATCH documents have
    ours, theirs = OursMlm(), Epochs()
    trained = model()
    ours.begin(mlm_trainer(trained, tokenizer, rows, TrainingArguments(folder, per_device_train_batch_size=per_step, **settings), masking), [*rows], per_step)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    plain = Trainer(model(), TrainingArguments(folder, remove_unused_columns=False, **settings), collator, train_dataset=documents, processing_class=tokenizer)
    theirs.begin(plain, documents, BATCH)
    torch.manual_seed(0)
    goal = in_turn(ours, theirs, options.epochs * rows.token_count())
    measuring = mlm_trainer(model(), tokenizer, rows, TrainingArguments(folder, **settings), masking)
    losses = [side_loss(measuring, side.trainer.model, held) for side in (ours, theirs)]
    return told("mlm", len(documents), goal, ours, theirs, losses, side_loss(measuring, model(), held))


def compare_causal(options: argparse.Namespace, folder: str) -> dict:
    """Both sides over the same documents, then the held-out loss of each on documents by themselves."""
    texts = texts_of(options)
    tokenizer = train_tokenizer(texts[: options.documents], TokenizerSettings(vocab_size=options.vocab_size))
    rows, held = (causal_rows(store, tokenizer, MAX_LENGTH) for store in encoded_apart(texts, tokenizer, options, folder))
    settings = {"learning_rate": options.learning_rate, "report_to": "none", "use_cpu": True, "bf16": False, "weight_decay": 0.01}
    model = lambda: untrained(small_config("llama", Sizes(256, 4, 4), tokenizer, MAX_LENGTH), 0, torch.float32, torch.device("cpu"))
    end = [tokenizer.eos_token_id]
    together = [id for ids in tokenizer(texts[: options.documents])["input_ids"] for id in ids + end]
    chunks = [together[start : start + MAX_LENGTH] for start in range(0, len(together) - MAX_LENGTH + 1, MAX_LENGTH)]
    examples = [{"input_ids": chunk, "labels": chunk} for chunk in chunks]
    ours, theirs, arguments = Epochs(), Epochs(), TrainingArguments(folder, per_device_train_batch_size=ROWS, **settings)
    ours.begin(pretrain_trainer(model(), tokenizer, rows, arguments), [*rows], ROWS)
    theirs.begin(Trainer(model(), arguments, default_data_collator, train_dataset=examples, processing_class=tokenizer), examples, ROWS)
    goal = in_turn(ours, theirs, options.epochs * rows.token_count())
    measuring = pretrain_trainer(model(), tokenizer, rows, TrainingArguments(folder, **settings))
    losses = [side_loss(measuring, side.trainer.model, held) for side in (ours, theirs)]
    return told("causal", options.documents, goal, ours, theirs, losses, side_loss(measuring, model(), held))


def encoded_apart(texts: list[str], tokenizer: PreTrainedTokenizerFast, options: argparse.Namespace, folder: str) -> list[TokenStore]:
    """The tokens of the documents to learn from, and of those held out."""
    stores = []
    for name, some in (("train", texts[: options.documents]), ("held", texts[options.documents :])):
        Path(folder, f"{name}.txt").write_text("\n".join(some) + "\n", encoding="utf-8")
        stores.append(token_store([f"{folder}/{name}.txt"], tokenizer, Path(folder, "cache"), documents="line")[0])
    return stores


def in_turn(ours: Epochs, theirs: Epochs, goal: int) -> int:
    """Step both until each has seen so many tokens; return them."""
    for side in (ours, theirs):
        side.timed()
        side.cpu, side.uncounted = 0.0, side.seen  # the first step pays for what is set up once
    while min(ours.seen, theirs.seen) < goal:
        (ours if ours.seen <= theirs.seen else theirs).timed()
    return goal


def told(case: str, documents: int, goal: int, ours: Epochs, theirs: Epochs, losses: list[float], untrained_loss: float) -> dict:
    """What came of a case."""
    rates = [(side.seen - side.uncounted) / side.cpu for side in (ours, theirs)]
    return {
        "case": case, "documents": documents, "tokens": goal, "ours_tokens_a_cpu_s": rates[0], "theirs_tokens_a_cpu_s": rates[1],
        "cpu_ratio": rates[0] / rates[1], "ours_held_out_loss": losses[0], "theirs_held_out_loss": losses[1], "untrained_loss": untrained_loss,
    }  # fmt: skip


def side_loss(measuring, model, held) -> float:
    """The held-out loss of weights, whoever trained them, on the same masks."""
    measuring.model.load_state_dict(model.state_dict())
    with measuring.in_evaluation() as inner:
        loss = measuring.measure(inner, held)["loss"]
    assert math.isfinite(loss)
    return loss


CASES: dict[str, Callable[[argparse.Namespace, str], dict]] = {"mlm": compare_mlm, "causal": compare_causal}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--data", help="A .jsonl file with a column text, or a .txt file with a document a line.")
    parser.add_argument("--documents", type=int, default=1500)
    parser.add_argument("--vocab_size", type=int, default=512, help="Of the causal case.")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    options = parser.parse_args()
    for name in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(CASES[name](options, folder)), flush=True)


if __name__ == "__main__":
    main()
