"""Golden outputs of the four strategies that transformers 5 dropped, made by transformers 4.55.4 with tiny float64 models.

    python -m venv old && old/bin/pip install transformers==4.55.4 torch==2.13.0
    old/bin/python tests/infer/golden/make_golden.py          # writes contrastive.json dola.json group_beam.json constrained_beam.json

Every file holds `models` (name -> {tolerance, logits}, to be compared with `models.probe` first) and `cases`. A case holds the model's name, the
`prompt` (an encoder-decoder's source), the `options` of `generate`, and `sequences`: the generated ids alone, without decoder start and padding,
with the final eos, if there is one. Where several ids end a sequence the library writes the first of them, whichever was chosen.
`scores` are the sequences' sums of processed log-probabilities over length ** length_penalty, in float32.
`fulfilled` says which sequences complete every constraint in what was generated. Three flags mark peculiarities of the library that need not be followed:
`prompt_counts`, a decoder-only prompt completes or begins a constraint; `fallback`, too few open beams were complete at the end, so the best of all were
returned; `shared_prefix`, the outcome hangs on copies of a disjunction that share their progress (`unshared` has the outcome when they do not).
A case is kept only if the model in float32 gives the same ids: rounding decides none of them.
"""

import contextlib
import json
import math
from itertools import cycle, product
from pathlib import Path

import torch
import transformers
from models import MODELS, build, probe
from transformers.generation import beam_constraints, beam_search, utils

HERE = Path(__file__).parent
PROMPTS = [
    [1, 17, 90],
    [1, 55, 8, 23, 23, 101, 64],
    [1, 4, 77, 77, 31, 119, 5, 62, 14, 88, 41, 30],
    [1, 9, 10, 11, 12, 13],
    [1, 126, 3, 48, 92],
    [1, 61, 61, 20, 7, 7, 35, 100],
    [1, 27, 115],
    [1, 82, 19, 6, 50, 105, 38, 24, 95],
]
TOLERANCE = {"t5": 1e-6}  # 4.55.4 takes T5's softmax in float32, 5.x in the model's dtype
BUILT: dict[str, tuple[torch.nn.Module, torch.nn.Module]] = {}


def both(name: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The model in float64 and in float32."""
    if name not in BUILT:
        BUILT[name] = build(name), build(name).float()
    return BUILT[name]


def generated(model: torch.nn.Module, prompt: list[int], row: list[int], eos: int | list[int]) -> list[int]:
    """What follows the prompt (or decoder start), up to the first eos, which is kept."""
    ids = row[1:] if model.config.is_encoder_decoder else row[len(prompt) :]
    ends = {eos} if isinstance(eos, int) else set(eos)
    return next((ids[: at + 1] for at, id in enumerate(ids) if id in ends), ids)


@contextlib.contextmanager
def replaced(owner, name: str, value):
    kept = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)


def decode(model: torch.nn.Module, prompts: list[list[int]], options: dict) -> dict:
    """{"sequences", "scores" (beams), "fallback" (constrained)} of a left-padded batch (encoder-decoder: on the right), all rows in one list."""
    width = max(map(len, prompts))
    pads = [[0] * (width - len(prompt)) for prompt in prompts]
    right = model.config.is_encoder_decoder
    ids = [prompt + pad if right else pad + prompt for prompt, pad in zip(prompts, pads, strict=True)]
    mask = [[1] * len(prompt) + pad if right else pad + [1] * len(prompt) for prompt, pad in zip(prompts, pads, strict=True)]
    scores: list[float] = []
    noted: dict = {}

    def finalize(kept):
        def call(self, input_ids, *args, **kwargs):
            if isinstance(self, beam_search.ConstrainedBeamSearchScorer):
                complete = sum(self.check_completes_constraints(ids) for ids in input_ids.tolist())
                noted["fallback"] = complete < self.num_beam_hyps_to_keep and not self.is_done.item()
            result = kept(self, input_ids, *args, **kwargs)
            scores.extend(result["sequence_scores"].tolist())
            return result

        return call

    with contextlib.ExitStack() as stack:
        for scorer in (beam_search.BeamSearchScorer, beam_search.ConstrainedBeamSearchScorer):
            stack.enter_context(replaced(scorer, "finalize", finalize(scorer.finalize)))  # output_scores fails in float64
        rows = model.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), do_sample=False, **options).tolist()
    eos = options.get("eos_token_id", 2)
    result = {"sequences": [generated(model, [0] * width, row, eos) for row in rows]}
    return {**result, "scores": [round(score, 6) for score in scores], **noted} if scores else result


def agree(one: dict, other: dict) -> bool:
    close = all(math.isclose(a, b, abs_tol=1e-4, rel_tol=1e-5) for a, b in zip(one.get("scores", []), other.get("scores", []), strict=True))
    return close and {**one, "scores": 0} == {**other, "scores": 0}


def case(name: str, prompts, options: dict, extra=lambda model, prompt, result, options: {}) -> dict:
    """The case of the first of `prompts` (an endless iterator) at which float32 and float64 agree."""
    for _ in range(20):
        prompt, (exact, rounded) = next(prompts), both(name)
        chosen = with_reachable_eos(exact, prompt, options)
        result = run_case(exact, prompt, chosen, extra)
        if "num_beams" not in options and len(result["sequences"][0]) < 3:
            continue  # says little
        if agree(result, run_case(rounded, prompt, chosen, extra)):
            return {"model": name, "prompt": prompt, "options": chosen, **result}
        print("not robust:", name, prompt, options)
    raise SystemExit(f"no prompt suits {name} with {options}")


def run_case(model: torch.nn.Module, prompt: list[int], options: dict, extra) -> dict:
    noted: dict = {}
    with recorded_layers(noted):
        result = decode(model, [prompt], options)
    return {**result, **noted, **extra(model, prompt, result, options)}


def with_reachable_eos(model: torch.nn.Module, prompt: list[int], options: dict) -> dict:
    """Replace `eos_at`, pairs of a sequence and a place, by the ids that stand there in the outputs without it (no forced word, no padding)."""
    if "eos_at" not in options:
        return options
    rest = {key: value for key, value in options.items() if key != "eos_at"}
    sequences = decode(model, [prompt], rest)["sequences"]
    barred = {0, *leaves(options.get("force_words_ids", []))}
    eos = []
    for row, at in options["eos_at"]:
        ids = sequences[row % len(sequences)]
        eos.append(next((id for id in ids[at:] + ids if id not in barred and id not in eos), 2))
    return {**rest, "eos_token_id": eos[0] if len(eos) == 1 else eos}


def leaves(nested) -> list[int]:
    return [nested] if isinstance(nested, int) else [id for inner in nested for id in leaves(inner)]


@contextlib.contextmanager
def recorded_layers(noted: dict):
    """Note DoLa's candidate layers and the layer that it contrasts at every step."""
    select, top = utils._dola_select_contrast, utils._relative_top_filter
    premature: dict = {}

    def noting_select(layers, logits, final):
        noted["candidates"] = layers
        premature.update(logits)
        return select(layers, logits, final)

    def noting_top(final, base, **kwargs):
        noted.setdefault("layers", []).append(next(layer for layer, logits in premature.items() if logits is base))
        return top(final, base, **kwargs)

    with replaced(utils, "_dola_select_contrast", noting_select), replaced(utils, "_relative_top_filter", noting_top):
        yield


def contrastive():
    prompts = cycle(PROMPTS)
    processed = [
        {"penalty_alpha": 0.6, "top_k": 4, "repetition_penalty": 1.2},
        {"penalty_alpha": 0.3, "top_k": 6, "no_repeat_ngram_size": 3},
        {"penalty_alpha": 0.6, "top_k": 4, "eos_at": [(0, 3)]},
        {"penalty_alpha": 0.6, "top_k": 4, "eos_at": [(0, 3)], "min_new_tokens": 8},
        {"penalty_alpha": 0.9, "top_k": 2, "repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "min_new_tokens": 6},
    ]
    for name in ("llama", "gpt2", "qwen3", "gemma", "t5", "bart"):
        grid = [{"penalty_alpha": alpha, "top_k": k} for alpha, k in product((0.3, 0.6, 0.9), (2, 4, 6))]
        for options in grid + processed:
            yield case(name, prompts, {"max_new_tokens": 24, **options})


def check_padded_batches(cases: list[dict]) -> None:
    """A padded batch gives each prompt the tokens that it gets alone (plain contrastive cases of every model)."""
    for name in dict.fromkeys(each["model"] for each in cases):
        plain = [each for each in cases if each["model"] == name and each["options"].keys() == {"max_new_tokens", "penalty_alpha", "top_k"}]
        options = plain[4]["options"]
        rows = {tuple(each["prompt"]): decode(both(name)[0], [each["prompt"]], options)["sequences"][0] for each in plain}
        assert decode(both(name)[0], [list(prompt) for prompt in rows], options)["sequences"] == list(rows.values()), name


def dola():
    prompts = cycle(PROMPTS)
    for name in ("llama_8_layers", "llama_8_layers_tied", "llama_12_layers_tied", "qwen3_8_layers", "qwen3_2_layers_tied", "gemma"):
        short = name in ("qwen3_2_layers_tied", "gemma")
        for layers, penalty in product(("low", "high", [0, 1] if short else [2, 4, 6]), (1.0, 1.2)):
            yield case(name, prompts, {"max_new_tokens": 24, "dola_layers": layers, "repetition_penalty": penalty})
        yield case(name, prompts, {"max_new_tokens": 24, "dola_layers": [1] if short else [1, 3, 5, 7], "no_repeat_ngram_size": 2})
        yield case(name, prompts, {"max_new_tokens": 24, "dola_layers": "high", "repetition_penalty": 1.2, "eos_at": [(0, 5)]})


def group_beam():
    names = ("num_beams", "num_beam_groups", "diversity_penalty", "length_penalty", "early_stopping", "num_return_sequences")
    table = [
        (4, 2, 0.5, 1.0, False, 4, {"eos_at": [(0, 4)]}),
        (4, 2, 2.0, 1.0, True, 2, {"eos_at": [(0, 3)]}),
        (4, 2, 0.5, 0.5, "never", 1, {"eos_at": [(1, 5), (0, 2)]}),
        (4, 2, 2.0, 2.0, False, 3, {"eos_at": [(2, 4)]}),
        (4, 2, 0.5, -0.5, "never", 4, {"eos_at": [(0, 5)]}),
        (4, 4, 0.5, 1.0, False, 4, {"eos_at": [(0, 4)]}),
        (6, 2, 0.5, 2.0, "never", 6, {"eos_at": [(0, 5)]}),
        (6, 2, 2.0, 0.5, True, 2, {"eos_at": [(0, 4), (2, 1), (1, 3)]}),
        (6, 3, 0.5, 1.0, False, 6, {}),
        (6, 3, 2.0, 1.0, "never", 3, {"eos_at": [(3, 4)]}),
        (6, 3, 2.0, 2.0, True, 6, {"eos_at": [(0, 6)]}),
        (4, 2, 1.0, 1.0, False, 4, {"eos_at": [(0, 2)], "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 5}),
    ]
    prompts = cycle(PROMPTS)
    for name in ("llama", "gpt2", "t5", "bart"):
        for *values, more in table:
            yield case(name, prompts, {"max_new_tokens": 12, **dict(zip(names, values, strict=True)), **more})


def constraint_flags(model: torch.nn.Module, prompt: list[int], result: dict, options: dict) -> dict:
    """`fulfilled`: which sequences complete every constraint by what was generated; `prompt_counts`: the prompt completes or begins one."""
    constraints = [
        (beam_constraints.DisjunctiveConstraint if isinstance(words[0], list) else beam_constraints.PhrasalConstraint)(words)
        for words in options["force_words_ids"]
    ]

    def state(ids: list[int]) -> beam_constraints.ConstraintListState:
        fresh = beam_constraints.ConstraintListState([constraint.copy() for constraint in constraints])
        fresh.reset(ids)
        return fresh

    counted = not model.config.is_encoder_decoder and state(prompt).get_bank() > 0
    return {"fulfilled": [state(ids).completed for ids in result["sequences"]], "prompt_counts": counted}


def likely(model: torch.nn.Module, prompt: list[int], places: list) -> tuple[list, int]:
    """Words and an eos that the model is inclined to: what stands in its own beam search at the `places` of each word, and two tokens after the last."""
    ids = decode(model, [prompt], {"max_new_tokens": 12, "num_beams": 3, "min_new_tokens": 12})["sequences"][0]
    words = [[ids[at] for at in word] for word in places]
    barred = {0, *leaves(words), *ids[: max(leaves(places)) + 2]}
    return words, next((id for id in ids[max(leaves(places)) + 2 :] if id not in barred), 2)


def unshared_copy(self, stateful=False):
    """A copy of a disjunction with a progress of its own."""
    new = beam_constraints.DisjunctiveConstraint(self.token_ids)
    if stateful:
        new.current_seq, new.completed = list(self.current_seq), self.completed
    return new


def constrained_beam():
    table = [
        (3, 1, [[70]], {}),
        (5, 2, [[70, 71]], {}),
        (5, 2, [[70, 33, 99]], {"length_penalty": 0.5}),
        (3, 1, [[70], [44, 12]], {}),
        (5, 1, [[70, 71], [44, 12, 9]], {"eos_at": [(0, 5)]}),
        (5, 1, [[[70, 71], [44, 12, 9]]], {}),
        (5, 2, [[[70], [44]], [91, 92]], {"early_stopping": True, "eos_at": [(0, 4)]}),
        (5, 1, [[[70], [44]], [91, 92]], {"early_stopping": True, "eos_at": [(0, 2), (0, 4)]}),
        (3, 1, [[[70, 71], [70, 72]]], {}),
        (5, 2, [[[70, 71, 72], [70, 73, 74], [44]], [59]], {"length_penalty": 2.0}),
        (5, 1, [[70], [71], [72]], {"early_stopping": "never", "eos_at": [(0, 6)]}),
        (5, 1, [[70, 70]], {"repetition_penalty": 1.2}),
        (3, 1, [[70, 71]], {"min_new_tokens": 6, "no_repeat_ngram_size": 2, "eos_at": [(0, 3)]}),
        (3, 1, [[17, 90]], {"prompt": [1, 17, 90, 4]}),  # a decoder-only model's prompt counts as text
    ]
    inclined = [
        (3, 1, [[1]], {}),
        (5, 2, [[1, 2]], {"early_stopping": True}),
        (5, 3, [[0], [2]], {"length_penalty": 0.0}),
        (3, 2, [[0, 1, 2]], {"early_stopping": "never", "length_penalty": 2.0}),
        (5, 1, [[3], [0, 1]], {"length_penalty": -0.5}),
    ]
    prompts = cycle(PROMPTS)
    for name in ("llama", "gpt2", "t5", "qwen3"):
        for (beams, returned, places, more), prompt in zip(inclined, PROMPTS, strict=False):
            words, eos = likely(both(name)[0], prompt, places)
            options = {"max_new_tokens": 12, "num_beams": beams, "num_return_sequences": returned, "force_words_ids": words, **more}
            yield {**case(name, cycle([prompt]), {**options, "eos_token_id": eos}, constraint_flags), "shared_prefix": False}
        for beams, returned, words, more in table:
            own = cycle([more["prompt"]]) if "prompt" in more else prompts
            options = {"max_new_tokens": 12, "num_beams": beams, "num_return_sequences": returned, "force_words_ids": words}
            options |= {key: value for key, value in more.items() if key != "prompt"}
            made = case(name, own, options, constraint_flags)
            with replaced(beam_constraints.DisjunctiveConstraint, "copy", unshared_copy):
                unshared = run_case(both(name)[0], made["prompt"], made["options"], constraint_flags)
            made["shared_prefix"] = not agree(unshared, {key: made[key] for key in unshared})
            if made["shared_prefix"]:
                made["unshared"] = {key: unshared[key] for key in ("sequences", "scores")}
            yield made


def write(name: str, cases: list[dict]) -> None:
    used = dict.fromkeys(each["model"] for each in cases)
    models = {each: {"tolerance": TOLERANCE.get(MODELS[each][0], 1e-9), "logits": probe(both(each)[0])} for each in used}
    head = json.dumps({"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0], "models": models}, indent=1)
    lines = ",\n".join("  " + json.dumps(each) for each in cases)
    (HERE / f"{name}.json").write_text(f'{head[:-2]},\n "cases": [\n{lines}\n ]\n}}\n', encoding="utf-8")
    print(name, len(cases), "cases")


def main() -> None:
    if not transformers.__version__.startswith("4.55."):
        raise SystemExit(f"transformers 4.55.4 has these strategies, {transformers.__version__} does not; see the head of this file")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    made = list(contrastive())
    check_padded_batches(made)
    write("contrastive", made)
    write("dola", list(dola()))
    write("group_beam", list(group_beam()))
    write("constrained_beam", list(constrained_beam()))


if __name__ == "__main__":
    main()
