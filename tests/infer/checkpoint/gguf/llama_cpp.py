"""llama.cpp in a process of its own, which may abort: reads requests from stdin, a JSON object a line, and answers each with a line.

{"load": FILE}, then {"ids_of": TEXTS}, {"likely_after": IDS, "count": N} (log-probabilities by id), {"after": IDS, "count": N} (greedy ids) or
{"messages": MESSAGES, "count": N} (a greedy answer).
"""

import json
import os
import sys
import urllib.request

import xllamacpp


def load(file: str) -> xllamacpp.Server:
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_parallel, params.n_ctx, params.cpuparams.n_threads, params.verbosity = 1, 512, 1, -1
    params.warmup = params.fit_params = False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type, params.swa_full = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED, True
    return xllamacpp.Server(params)


def ids_of(server: xllamacpp.Server, text: str) -> list[int]:
    body = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
    request = urllib.request.Request(f"{server.listening_address}/tokenize", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["tokens"]


def complete(server: xllamacpp.Server, ids: list[int], count: int, **settings) -> dict:
    return server.handle_completions({"prompt": ids, "n_predict": count, "temperature": 0, "cache_prompt": False, **settings})["choices"][0]


def main() -> None:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # llama.cpp prints
    server = None
    for line in sys.stdin:
        asked = json.loads(line)
        if "load" in asked:
            server = None  # before the next
            server, told = load(asked["load"]), True
        elif "ids_of" in asked:
            told = [ids_of(server, text) for text in asked["ids_of"]]
        elif "likely_after" in asked:
            [first] = complete(server, asked["likely_after"], 1, n_probs=asked["count"])["logprobs"]["content"][:1]
            told = {each["id"]: each["logprob"] for each in first["top_logprobs"]}
        elif "messages" in asked:
            told = server.handle_chat_completions({"messages": asked["messages"], "max_tokens": asked["count"], "temperature": 0})["choices"][0]
        else:
            told = [each["id"] for each in complete(server, asked["after"], asked["count"], n_probs=1, ignore_eos=True)["logprobs"]["content"]]
        print(json.dumps(told), file=out, flush=True)


main()
