"""How much a model loses with its weights in 8 or 4 bits, or its cache in 8: perplexity and agreement with float32 on real text, bits a weight, and the pace of a step.

python benchmarks/quantised_quality.py --model runs/tuned --data gsm8k_test.jsonl --tokens 5000 --calibration texts.txt --bits 5.5 --gguf tuned-q4_0.gguf
python benchmarks/quantised_quality.py --data gsm8k_test.jsonl --kv8 --steps 1000
python benchmarks/quantised_quality.py --data gsm8k_test.jsonl --kv8 --steps 0 --tokens 6144 --length 2048

Every text is scored as the continuation of its first token: all tokens in long passes, `--steps` of them one position a pass too. In 8 and 4 bits by groups
(`seodang/infer/runners/native/grouped_linear.py`) both sum the same products in the same order; where the native kernels are not, a long pass has another
kernel (`seodang/infer/kernels/quantised_linear.py`), and so has bfloat16. With `--kv8` each is there with keys and values in 8 bits too (`kv_cache_dtype`). With
`--length` the texts are laid end to end and cut so long, for positions far behind.

Files of GGUF are read by the package gguf and run with float weights, so that they show what their rounding loses and nothing else; "weights alone" are ours in the
same way, without the rounding of inputs that the kernels do. A change is given with its standard error: that of the sum of differences, token by token,
with texts as what is drawn. What lies within two of them is no difference. The default model's own weights come from 4 bits, which flatters them: take one
whose weights were never rounded (`small_model.py` makes two). A peer's file: `seodang export MODEL --output_dir OUT --gguf f32`, then llama-quantize, or
`llama_cpp.llama_model_quantize`.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seodang.infer import load, open_runner
from seodang.infer.checkpoint.few_bits_folder import write_out
from seodang.infer.engine.id_scoring import chosen
from seodang.infer.kernels.quantised_linear import Quantised

ROWS = 8  # texts a pass
NO_MATRIX = ("token_embd.", "output.", "position_embd.")  # of a GGUF file, which are no layers' own


class Side(NamedTuple):
    """A model that is measured, and what its weights take."""

    name: str
    model: nn.Module
    layers: float  # bits a weight of the layers' matrices
    head: float
    steps: bool  # whether its steps are of interest


def texts_of(path: str, tokenizer, tokens: int, length: int | None = None) -> list[list[int]]:
    """Return the ids of records, all their strings joined, or of the lines of plain text, until there are `tokens` of them; laid end to end and cut where a `length` is given."""
    found, total = [], 0
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            text = "\n".join(value for value in json.loads(line).values() if isinstance(value, str)) if path.endswith(".jsonl") else line
            ids = tokenizer(text)["input_ids"][:1024]
            if len(ids) > 1:
                found.append(ids)
                total += len(ids) - 1
            if total >= tokens:
                return found if length is None else cut([id for ids in found for id in ids], length)
    raise SystemExit(f"{path} has {total} tokens, fewer than --tokens {tokens}")


def cut(ids: list[int], length: int) -> list[list[int]]:
    """Cut ids into texts of one length; what is left over at the end is left out."""
    return [ids[at : at + length] for at in range(0, len(ids) - length + 1, length)]


def in_long_passes(model, texts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return each token's log-probability and the likeliest token in its place."""
    logprobs, picks, runner = [], [], open_runner(model)
    for start in range(0, len(texts), ROWS):
        some = texts[start : start + ROWS]
        rows = [runner.allocate() for _ in some]
        logits = runner.forward(rows, [ids[:-1] for ids in some], [len(ids) - 1 for ids in some])
        logprobs.append(chosen(logits, [id for ids in some for id in ids[1:]]))
        picks.append(logits.argmax(dim=-1))
        runner.release(rows)
    return torch.cat(logprobs), torch.cat(picks)


def in_steps(model, texts: list[list[int]], tokens: int) -> tuple[Tensor, float]:
    """Return the log-probabilities of the first `tokens` tokens, computed one a pass, and the median of the seconds that a pass takes."""
    logprobs, seconds, runner = [], [], open_runner(model)
    for ids in texts:
        row = runner.allocate()
        for id, target in zip(ids, ids[1:]):
            if len(logprobs) == tokens:
                return torch.cat(logprobs), torch.tensor(seconds).median().item()
            began = time.perf_counter()
            logits = runner.forward([row], [[id]], [1])
            seconds.append(time.perf_counter() - began)
            logprobs.append(chosen(logits, [target]))
        runner.release([row])
    return torch.cat(logprobs), torch.tensor(seconds).median().item()


def sides(args: argparse.Namespace) -> Iterator[Side]:
    """The models to measure, each there only until the next is asked for."""
    settings = [("bfloat16", {"dtype": "bfloat16"}), ("int8", {"weights": "int8"}), ("int4", {"weights": "int4"})]
    for file in args.calibration or ():
        settings.append((f"int4, calibrated on {Path(file).name}", {"weights": "int4", "calibration": file}))
        for bits in args.bits or ():
            settings.append((f"int4, calibrated on {Path(file).name}, {bits} bits", {"weights": "int4", "calibration": file, "bits": bits}))
    if args.kv8:
        in_8_bits = {"kv_cache_dtype": "int8"}
        settings = [("float32, cache in 8 bits", {"dtype": "float32", **in_8_bits})] + [
            each for name, options in settings for each in ((name, options), (f"{name}, cache in 8 bits", options | in_8_bits))
        ]
    for name, options in settings:
        if args.only and not any(name.startswith(each) for each in args.only):
            continue
        began = time.perf_counter()
        model, _ = load(args.model, device="cpu", **options)
        print(f"{name}: loaded in {time.perf_counter() - began:.1f} s", flush=True)
        layers, head = bits_of(model)
        yield Side(name, model, layers, head, True)
        if "weights" in options and "kv_cache_dtype" not in options and not args.no_weights_alone:
            write_out(model)
            model.float().config.dtype = torch.float32
            yield Side(f"{name}, weights alone", model, layers, head, False)
        del model
    for file in args.gguf or ():
        yield read_gguf(Path(file))


def bits_of(model) -> tuple[float, float]:
    """Return the bits a weight of the layers' matrices, and of the head."""
    matrices = [module for module in model.modules() if isinstance(module, Quantised | nn.Linear) and module is not model.lm_head]
    stored = lambda module: sum(each.nbytes for name, each in [*module.named_buffers(), *module.named_parameters()] if name != "bias")
    bits = lambda modules: 8 * sum(map(stored, modules)) / sum(module.in_features * module.out_features for module in modules)
    return bits(matrices), bits([model.lm_head])


def read_gguf(file: Path) -> Side:
    """A GGUF file's weights in float32, dequantised by the package gguf."""
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, GgufConfig

    tensors = GGUFReader(file).tensors
    matrices = [each for each in tensors if len(each.shape) == 2 and not each.name.startswith(NO_MATRIX)]
    heads = [each for name in ("output.weight", "token_embd.weight") for each in tensors if each.name == name]
    bits = lambda some: 8 * sum(int(each.n_bytes) for each in some) / sum(int(each.n_elements) for each in some)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True))
    return Side(file.name, model.eval(), bits(matrices), bits(heads[:1]), False)


def difference(logprobs: Tensor, others: Tensor, texts: list[list[int]]) -> tuple[float, float]:
    """Return by what share others' perplexity is above that of the first of `logprobs`, and its standard error, texts being what is drawn."""
    apart = (logprobs[: len(others)] - others).double()
    mean, left, square = apart.mean(), apart, 0.0
    for ids in texts:
        part, left = left[: len(ids) - 1], left[len(ids) - 1 :]
        square += (part - mean).sum().item() ** 2
    return math.exp(mean) - 1, math.sqrt(square) / len(apart) * math.exp(mean)


def percent(change: tuple[float, float]) -> str:
    """A change in words; one text alone has no error."""
    return f"{100 * change[0]:+.2f}%" + (f" ({100 * change[1]:.2f})" if change[1] > 1e-9 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--data", required=True, help="JSON Lines, the strings of a record are its text; or plain text, a line is one")
    parser.add_argument("--tokens", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--length", type=int)
    parser.add_argument("--kv8", action="store_true", help="all with a cache in 8 bits too")
    parser.add_argument("--calibration", nargs="+", help="text files; none that is measured on")
    parser.add_argument("--bits", type=float, nargs="+", help="bits a weight for the calibrated, some matrices in 8")
    parser.add_argument("--gguf", nargs="+", help="files that others made of the same weights")
    parser.add_argument("--only", nargs="+", help="sides whose names begin so, and the GGUF files")
    parser.add_argument("--no_weights_alone", action="store_true")
    parser.add_argument("--save", help="a file for each token's log-probabilities, to compare runs by")
    args = parser.parse_args()
    model, tokenizer = load(args.model, device="cpu", dtype="float32")
    texts = texts_of(args.data, tokenizer, args.tokens, args.length)
    exact, best = in_long_passes(model, texts)
    layers, head = bits_of(model)
    print(f"{len(exact)} tokens of {len(texts)} texts; float32 perplexity {math.exp(-exact.mean()):.4f}", flush=True)
    seconds = in_steps(model, texts, args.steps)[1] if args.steps else math.nan
    del model
    found, lines = {"float32": exact}, [f"| float32 | {layers:.2f}, {head:.2f} | {math.exp(-exact.mean()):.4f} | | | | | | {1 / seconds:.1f} |"]
    for side in sides(args):
        long, picks = in_long_passes(side.model, texts)
        found[side.name] = long
        steps, pace = "", ""
        if side.steps and args.steps:
            single, seconds = in_steps(side.model, texts, args.steps)
            steps, pace = percent(difference(exact, single, texts)), f"{1 / seconds:.1f}"
        beside = percent(difference(found["int4"], long, texts)) if "int4" in found and side.name != "int4" else ""
        off = f"{(long - exact).abs().mean():.3f}"
        agreement = f"{100 * (picks == best).float().mean():.1f}%"
        lines.append(
            f"| {side.name} | {side.layers:.2f}, {side.head:.2f} | {math.exp(-long.mean()):.4f} | {percent(difference(exact, long, texts))} "
            f"| {beside} | {steps} | {off} | {agreement} | {pace} |"
        )
        print(lines[-1], flush=True)
        del side
    print("\n| weights | bits a weight of layers, head | perplexity | beside float32 | beside int4 | in steps | a token's log-probability is off by | same likeliest | steps a second |\n|" + " --- |" * 9)
    print("\n".join(lines))
    if args.save:
        torch.save(found, args.save)


if __name__ == "__main__":
    main()
