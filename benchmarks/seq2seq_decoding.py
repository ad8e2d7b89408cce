"""Decoding of encoder-decoders: ours against transformers' generate on the same sources, in turn in one process.

python benchmarks/seq2seq_decoding.py                                         every case, medians of the ratios of time and of CPU time
python benchmarks/seq2seq_decoding.py --cases t5-beams bart-greedy --rounds 2

Models of t5-small's and bart-base's sizes with random weights and a vocabulary of 8,192, saved and loaded as any checkpoint, in float32.
`*-greedy` is 32 sources of 8 to 128 tokens with 8 to 48 new ones each, against generate over the padded batch, which runs until the longest
answer is done and is counted the same tokens; `*-beams` four beams of one source of 64 tokens with 32 new ones, `*-beams-of-8` of eight sources
of 8 to 128. No answer ends before its length. The tokens are compared: `other_tokens` counts those that are not the same (behind two that are
about as likely), `different_tokens` how many of the vocabulary there are.
"""

import argparse
import gc
import json
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from seodang.infer import SamplingParams, generate, load

VOCAB = 8192
SIZES = {
    "t5": {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8, "vocab_size": VOCAB, "decoder_start_token_id": 0},
    "bart": {
        "d_model": 768, "encoder_layers": 6, "decoder_layers": 6, "encoder_attention_heads": 12, "decoder_attention_heads": 12, "encoder_ffn_dim": 3072,
        "decoder_ffn_dim": 3072, "max_position_embeddings": 1024, "vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "decoder_start_token_id": 2, "forced_eos_token_id": None,
    },
}  # fmt: skip
DEVIATIONS = {  # of weights; the others' go by their width
    "t5": {"relative_attention_bias": 1.0, "shared": 0.1, ".q.": (512 * 64) ** -0.5},  # its scores are not divided by the width of a head
    "bart": {"embed_positions": 2.0, "shared": 0.5, "encoder_attn.out_proj": 0.015},
}
PAD = 0
BEAMS = 4
NEW = 32  # of each beam


def saved(kind: str, folder: str) -> None:
    """A checkpoint whose answers hang on their sources and do not all repeat one token, with a tokenizer of as many words."""
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(kind, **SIZES[kind]))
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            wide = next((std for part, std in DEVIATIONS[kind].items() if part in name), None)
            torch.nn.init.normal_(parameter, std=wide or 1.5 * parameter.shape[1] ** -0.5)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0").save_pretrained(folder)


def numbers(low: int, high: int, count: int, seed: int) -> list[int]:
    return torch.randint(low, high + 1, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def sources(lengths: list[int]) -> list[list[int]]:
    return [numbers(10, VOCAB - 1, length, 100 + n) for n, length in enumerate(lengths)]


class Ours:
    def __init__(self, folder: str):
        self.model, self.tokenizer = load(folder, device="cpu", dtype="float32")

    def __call__(self, asked: list[list[int]], new: list[int], **settings) -> list[list[int]]:
        params = [SamplingParams(max_new_tokens=n, ignore_eos=True, **settings) for n in new]
        return [result.ids for result in generate(self.model, self.tokenizer, asked, params)]


class Theirs:
    """transformers' generate over sources padded on the right."""

    def __init__(self, folder: str):
        self.model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.model.generation_config.eos_token_id = None

    def __call__(self, asked: list[list[int]], new: list[int], **settings) -> list[list[int]]:
        width = max(map(len, asked))
        ids = torch.tensor([source + [PAD] * (width - len(source)) for source in asked])
        mask = torch.tensor([[1] * len(source) + [0] * (width - len(source)) for source in asked])
        with torch.inference_mode():
            length = {"max_new_tokens": max(new), "min_new_tokens": max(new)}
            found = self.model.generate(ids, attention_mask=mask, do_sample=False, pad_token_id=PAD, **length, **settings)
        return [answer[1 : 1 + n] for answer, n in zip(found.tolist(), new)]


def timed(call: Callable) -> tuple[float, float]:
    """Seconds, and seconds of CPU time."""
    began, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - began, time.process_time() - cpu


def compare(ours: Callable[[], list[list[int]]], theirs: Callable[[], list[list[int]]], rounds: int) -> dict:
    """Run the two in turn; the medians of the ratios of their times, theirs over ours."""
    mine, other = ours(), theirs()
    pairs = [(timed(ours), timed(theirs)) for _ in range(rounds)]
    found: dict = {"tokens": sum(map(len, mine)), "other_tokens": sum(a != b for one, two in zip(mine, other) for a, b in zip(one, two))}
    found["different_tokens"] = len({id for answer in mine for id in answer})
    for i, name in enumerate(("time", "cpu_time")):
        ratios = [their[i] / own[i] for own, their in pairs]
        found[name] = {
            "ratio": round(statistics.median(ratios), 2), "range": [round(min(ratios), 2), round(max(ratios), 2)],
            "ours_s": round(statistics.median(own[i] for own, _ in pairs), 3), "theirs_s": round(statistics.median(their[i] for _, their in pairs), 3),
        }  # fmt: skip
    return found


def greedy(folder: str, rounds: int) -> dict:
    asked, new = sources(numbers(8, 128, 32, 1)), numbers(8, 48, 32, 2)
    ours, theirs = Ours(folder), Theirs(folder)
    return compare(lambda: ours(asked, new), lambda: theirs(asked, new, num_beams=1), rounds)


def beams(folder: str, rounds: int, lengths: list[int]) -> dict:
    asked, new = sources(lengths), [NEW] * len(lengths)
    ours, theirs = Ours(folder), Theirs(folder)
    return compare(lambda: ours(asked, new, num_beams=BEAMS), lambda: theirs(asked, new, num_beams=BEAMS), rounds)


CASES: dict[str, Callable[[str, int], dict]] = {
    "greedy": greedy,
    "beams": lambda folder, rounds: beams(folder, rounds, [64]),
    "beams-of-8": lambda folder, rounds: beams(folder, rounds, numbers(8, 128, 8, 3)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [f"{kind}-{case}" for kind in SIZES for case in CASES]
    parser.add_argument("--cases", nargs="+", default=names, choices=names, metavar="CASE")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    print(json.dumps({"threads": torch.get_num_threads(), "machine": platform.processor() or platform.machine(), **torch.cpu.get_capabilities()}))
    for kind in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            if asked := [name for name in options.cases if name.startswith(kind)]:
                saved(kind, folder)
            for name in asked:
                print(json.dumps({"case": name, **CASES[name.removeprefix(f"{kind}-")](folder, options.rounds)}), flush=True)
                gc.collect()


if __name__ == "__main__":
    main()
