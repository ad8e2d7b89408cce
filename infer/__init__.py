"""A model and a prompt to text.

    from seodang.infer import load, generate, stream, score, SamplingParams

The loop beneath all of it, prefill and then one step a token, greedily:

    from seodang.infer import load, open_runner

    model, tokenizer = load("default")
    ids = tokenizer("The three primary colours are red,")["input_ids"]
    runner = open_runner(model)
    slot = runner.allocate()  # a place in the KV cache
    logits = runner.forward([slot], [ids], [1])  # prefill: the whole prompt, logits [1, vocab] of its last token
    while len(ids) < 30:
        token = logits[0].argmax().item()  # or draw one, or filter the logits first
        if token == tokenizer.eos_token_id:
            break
        ids.append(token)
        logits = runner.forward([slot], [[token]], [1])  # one step: one new position, the past is in the cache
    runner.release([slot])
    print(tokenizer.decode(ids))

Nothing is imported before it is asked for.
"""

import importlib
from typing import Any

from ..data.versions import versions_named

_HOMES = {
    "load": "checkpoint.load", "load_tokenizer": "checkpoint.load",
    "TransformerConfig": "architectures.transformer", "TransformerForConditionalGeneration": "architectures.transformer",
    "LSTMConfig": "architectures.lstm", "LSTMForConditionalGeneration": "architectures.lstm",
    "LiveEngine": "engine.live", "Ticket": "engine.loop", "QueueFull": "engine.live", "EngineClosed": "engine.loop",
    "generate": "engine.generate", "answers": "engine.generate", "stream": "engine.generate",
    "generate_tasks": "engine.several_tasks",
    "score": "engine.scoring", "score_bound": "engine.scoring", "first_ids": "engine.scoring", "Draws": "diffusion.masking", "Bound": "diffusion.likelihood",
    "embed": "encoders.embedding", "SentenceEncoder": "encoders.embedding",
    "classify": "encoders.classify", "Classifier": "encoders.classify", "Classified": "encoders.classify",
    "tag_texts": "encoders.tagging", "Tagger": "encoders.tagging", "Entity": "encoders.tagging",
    "fill_mask": "encoders.fill_mask", "Filling": "encoders.fill_mask", "MaskedText": "encoders.fill_mask", "Candidate": "encoders.fill_mask",
    "pseudo_log_likelihood": "encoders.pseudo_likelihood", "PseudoLogLikelihood": "encoders.pseudo_likelihood",
    "from_generation_config": "engine.checkpoint_settings", "from_openai": "engine.compat", "from_vllm": "engine.compat",
    "SamplingParams": "engine.params",
    "Result": "requests.events", "Event": "requests.events", "Committed": "requests.events", "Provisional": "requests.events", "Finished": "requests.events",
    "Stats": "requests.stats", "Runtime": "requests.stats", "runtime_of": "requests.runtime",
    "PromptRead": "requests.events", "ScoredToken": "requests.likelihoods", "TokenLogprobs": "requests.likelihoods",
    "open_runner": "runners.open", "set_kv_cache_dtype": "runners.open", "PrefixCache": "engine.prefix_cache", "Span": "text.spans", "Observed": "requests.events",
    "load_diffusion_lm": "diffusion_lm.checkpoint", "DiffusionLM": "diffusion_lm.model", "denoise": "diffusion_lm.sampling", "Sampling": "diffusion_lm.sampling",
    "Engine": "engine.core", "Forward": "requests.strategy", "Strategy": "requests.strategy", "Request": "requests.request", "Generation": "requests.generation",
    "TokenSequence": "requests.sequence", "Runner": "runners.contract",
}  # fmt: skip
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with versions_named():
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
