"""Fine-tuning of encoder-decoders: CPU time and wall time of a step, ours against transformers' Seq2SeqTrainer on the same pairs.

python benchmarks/seq2seq.py                             every case, steps of the two in turn, medians of the ratios
python benchmarks/seq2seq.py --cases t5-mixed --steps 7
python benchmarks/seq2seq.py --memory                    peak memory, a process each

Models of the sizes of t5-small, as T5 and as BART, with random weights, a vocabulary of 8,000, float32, no dropout, so that the losses can be compared. A step is 16
pairs: `equal`, sources and targets of 64 tokens; `mixed`, sources of 8 to 160 tokens, as sentences have them, and targets of about their length. Theirs pads
each side to the longest of the step, as DataCollatorForSeq2Seq does it.
"""

import tempfile

import torch
from beside_trl import Side, alternate, run
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainingArguments,
    set_seed,
)

from seodang.train import seq2seq_trainer

VOCABULARY = 8_000
ENDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
MODELS = {
    "t5": {**ENDS, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8, "dropout_rate": 0.0},
    "bart": {
        **ENDS, "d_model": 512, "encoder_layers": 6, "decoder_layers": 6, "encoder_attention_heads": 8, "decoder_attention_heads": 8,
        "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048, "max_position_embeddings": 512, "dropout": 0.0,
    },
}  # fmt: skip
EQUAL = [(64, 64)] * 16
MIXED = [(8, 10), (12, 9), (14, 16), (17, 14), (20, 24), (23, 20), (27, 30), (30, 26), (35, 38), (40, 34), (46, 52), (54, 47), (64, 70), (80, 71), (110, 120), (160, 140)]
CASES = {f"{kind}-{name}": (kind, sizes) for kind in MODELS for name, sizes in (("equal", EQUAL), ("mixed", MIXED))}


def model_of(kind: str) -> PreTrainedModel:
    set_seed(0)
    return AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(kind, **MODELS[kind]))


def tokenizer_of() -> PreTrainedTokenizerFast:
    """One that is asked for its pad token alone."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2}, "<pad>")), pad_token="<pad>", eos_token="</s>")


def make_rows(sizes: list[tuple[int, int]]) -> list[dict]:
    """Random sources and targets that end as texts do."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda length: [*torch.randint(3, VOCABULARY, (length - 1,), generator=generator).tolist(), 2]
    return [{"input_ids": draw(source), "labels": draw(target)} for source, target in sizes]


class Ours(Side):
    def __init__(self, kind: str, sizes: list[tuple[int, int]], folder: str):
        rows = [{**row, "decoder_input_ids": [0, *row["labels"][:-1]]} for row in make_rows(sizes)]
        args = TrainingArguments(folder, learning_rate=1e-5, per_device_train_batch_size=len(rows), report_to="none", use_cpu=True)
        self.start(seq2seq_trainer(model_of(kind), tokenizer_of(), rows, args), rows)


class Transformers(Side):
    def __init__(self, kind: str, sizes: list[tuple[int, int]], folder: str):
        rows, model, tokenizer = make_rows(sizes), model_of(kind), tokenizer_of()
        args = Seq2SeqTrainingArguments(folder, learning_rate=1e-5, per_device_train_batch_size=len(rows), report_to="none", use_cpu=True)
        collator = DataCollatorForSeq2Seq(tokenizer, model)
        masked = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
        self.start(Seq2SeqTrainer(model, args, train_dataset=rows, data_collator=collator, processing_class=tokenizer), masked)


def compare(name: str, steps: int) -> dict:
    """Alternate steps of the two in this process; the ratios transformers / ours, and the difference of the first losses."""
    kind, sizes = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        figures, losses = alternate(Ours(kind, sizes, folder), Transformers(kind, sizes, folder), steps)
    first = [seen[0] for seen in losses]
    return {"case": name, **figures, "losses": first, "loss_difference": abs(first[0] - first[1])}


def build(case: str, side: str, folder: str):
    return {"ours": Ours, "transformers": Transformers}[side](*CASES[case], folder).step


if __name__ == "__main__":
    run(__doc__, __file__, CASES, compare, build, other="transformers")
