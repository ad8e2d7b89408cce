"""lm-eval's tasks: the same figures by our engine, by its own transformers backend, and by our server. Skipped where lm-eval is not installed."""

import functools
import json
import string
import threading

import pytest
import torch
import uvicorn

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'seodang[lm-eval]'")
pytestmark = pytest.mark.full

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from seodang.__main__ import main
from seodang.data.errors import UserError
from seodang.infer.engine.live import LiveEngine
from seodang.infer.server.app import Served, build_app
from seodang.infer.server.run import Server
from seodang.recipes.evaluation.lm_eval_model import SeodangLM

QUESTIONS = [
    {"text": text, "choices": ["good", "bad", "so so"], "label": number % 3, "sum": str(number)}
    for number, text in enumerate(["a fine film", "dull", "I laughed", "why, oh why?", "so-so ", "twice as long", "see it", "not for me"])
]
TASKS = {
    "choice": """
        output_type: multiple_choice
        doc_to_text: "{{text}} is"
        doc_to_choice: "{{choices}}"
        doc_to_target: label
        fewshot_split: test
        fewshot_config: {sampler: first_n}
        num_fewshot: 2
        metric_list: [{metric: acc}, {metric: acc_norm}]
    """,
    "rolling": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{(text + ' ') * 30}}"
        metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
    """,
    "said": """
        output_type: generate_until
        doc_to_text: "{{text}} "
        doc_to_target: "{{sum}}"
        generation_kwargs: {until: ["k", "#"], max_gen_toks: 12}
        filter_list:
          - name: first-letter
            filter: [{function: regex, regex_pattern: "(.)"}, {function: take_first}]
        metric_list: [{metric: exact_match}]
    """,
}


@pytest.fixture
def tasks(tmp_path):
    """A folder of three tasks in files, and what knows no others."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS), encoding="utf-8")
    for name, text in TASKS.items():
        lines = [line[8:] for line in text.strip("\n").splitlines()]
        head = [f"task: {name}", "dataset_path: json", "dataset_kwargs:", f"  data_files: {{test: {folder / 'questions.jsonl'}}}", "test_split: test"]
        (folder / f"{name}.yaml").write_text("\n".join([*head, *lines]), encoding="utf-8")
    return folder


def evaluated(lm, folder, **options):
    """The figures and every answer of the three tasks."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(model=lm, tasks=list(TASKS), task_manager=manager, log_samples=True, bootstrap_iters=0, verbosity="ERROR", **options)
    figures = {
        f"{task} {name}": value for task, each in found["results"].items() for name, value in each.items() if isinstance(value, float) and "stderr" not in name
    }
    samples = {task: [sample["resps"] for sample in sorted(found["samples"][task], key=lambda sample: sample["doc_id"])] for task in TASKS}
    return figures, samples


def flat(samples):
    """All that was answered, in order."""
    return flat(samples[0]) + flat(samples[1:]) if samples and isinstance(samples, list | tuple) else [samples] if not isinstance(samples, list | tuple) else []


def alike(found, wanted):
    """Whether two runs have the same figures, choices and texts, and log-likelihoods to a rounding error."""
    assert found[0].keys() == wanted[0].keys() and len(found[0]) == 6
    for name, value in wanted[0].items():
        assert found[0][name] == pytest.approx(value, rel=1e-5), name
    for task in TASKS:
        for own, other in zip(flat(found[1][task]), flat(wanted[1][task]), strict=True):
            assert own == (pytest.approx(other, rel=1e-4, abs=1e-4) if isinstance(other, float) else other), task


@pytest.fixture
def pair(tiny_llama, tiny_tokenizer, tmp_path):
    """A model, its tokenizer, and lm-eval's own around them."""
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tiny_llama, tiny_tokenizer, HFLM(pretrained=tiny_llama, tokenizer=tiny_tokenizer, batch_size=2, max_length=120)


@pytest.mark.parametrize("chat", [False, True])
def test_the_figures_are_those_of_hf(pair, tasks, chat):
    model, tokenizer, theirs = pair
    ours = SeodangLM(model, tokenizer=tokenizer, max_length=120)
    wanted = evaluated(theirs, tasks, apply_chat_template=chat)
    found = evaluated(ours, tasks, apply_chat_template=chat)
    alike(found, wanted)
    assert len({str(each) for each in found[1]["said"]}) > 4 and any("k" not in str(each) for each in found[1]["said"])
    assert ours.tokenizer_name == theirs.tokenizer_name and ours.chat_template(True) == theirs.chat_template(True)


def test_the_figures_are_those_of_our_server(pair, tasks, tmp_path):
    model, tokenizer, _ = pair
    wanted = evaluated(SeodangLM(model, tokenizer=tokenizer, max_length=254), tasks)  # it leaves room for a token more, twice
    with LiveEngine(model, tokenizer) as engine:
        server = Server(uvicorn.Config(build_app(Served(engine, "tiny")), log_level="warning", lifespan="on", port=0), engine)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while not server.started:
                thread.join(0.02)
            port = server.servers[0].sockets[0].getsockname()[1]
            where = {"base_url": f"http://127.0.0.1:{port}/v1/completions", "tokenizer_backend": "huggingface", "tokenizer": str(tmp_path / "tokenizer")}
            found = evaluated("local-completions", tasks, model_args={"model": "tiny", "max_length": 256, "num_concurrent": 4, **where})
        finally:
            server.should_exit = True
            thread.join()
    alike(found, wanted)


def asked(kind, *args):
    return Instance(kind, {}, args, 0)


def hf_of(folder, **options):
    """lm-eval's own, without its cache: where ids are alike that are cut elsewhere it takes another one's row (0.4.13)."""
    return HFLM(pretrained=str(folder), device="cpu", max_length=120, logits_cache=False, **options)


CONTEXTS = [("", "ab"), ("a  ", "b"), ("a", " b"), ("<s>ab", "cd"), ("x" * 200, "yz"), ("ab", "c" * 118), ("<|im_end|>", "a"), ("", "<s>a")]


@pytest.mark.parametrize("options", [{}, {"add_bos_token": True}, {"add_bos_token": False}, {"prefix_token_id": 9}])
def test_ids_are_those_of_hf(base, options):
    """Spaces that move, texts that begin with <s> already, contexts that are cut: all as there."""
    ours, theirs = SeodangLM(base, dtype="float32", device="cpu", max_length=120, **options), hf_of(base, **options)
    pairs = [asked("loglikelihood", *each) for each in CONTEXTS]
    for found, wanted in zip(ours.loglikelihood(pairs), theirs.loglikelihood(pairs), strict=True):
        assert found == (pytest.approx(wanted[0], rel=1e-5), wanted[1])
    texts = [asked("loglikelihood_rolling", text) for text in ("a", "<s>ab", "long " * 60)]
    assert ours.loglikelihood_rolling(texts) == pytest.approx(theirs.loglikelihood_rolling(texts), rel=1e-5)
    how = {"until": ["e"], "max_gen_toks": 10, "do_sample": False}
    prompts = [asked("generate_until", text, how) for text in ("a", "x" * 200)]
    prompts += [asked("generate_until", "<s>ab", {**how, "until": "q", "top_p": 0.5, "repetition_penalty": 1.3}), asked("generate_until", "b", {"num_beams": 2, "max_new_tokens": 9})]
    assert ours.generate_until(prompts) == theirs.generate_until(prompts)


def test_likeliest_continuations_are_told(pair):
    model, tokenizer, theirs = pair
    ours = SeodangLM(model, tokenizer=tokenizer, max_length=120)
    with torch.no_grad():
        ids = [model(torch.tensor([tokenizer(letter)["input_ids"]])).logits[0, -1].argmax() for letter in string.ascii_letters]
    said = dict(zip(string.ascii_letters, map(tokenizer.decode, ids)))
    pairs = [asked("loglikelihood", letter, more) for letter, next in said.items() if next in said for more in (next, next + "~", "~")]
    greedy = [greedy for _, greedy in ours.loglikelihood(pairs)]
    assert greedy == [greedy for _, greedy in theirs.loglikelihood(pairs)] == [True, False, False] * (len(pairs) // 3) and pairs


def test_samples_of_one_request_differ_and_come_again(pair):
    model, tokenizer, _ = pair
    ours = SeodangLM(model, tokenizer=tokenizer)
    requests = [asked("generate_until", "abc", {"max_gen_toks": 20, "do_sample": True, "temperature": 1.0, "until": []}) for _ in range(4)]
    found = ours.generate_until(requests)
    assert len(set(found)) == 4 and ours.generate_until(requests) == found


def test_thinking_is_left_out(pair, monkeypatch):
    model, tokenizer, _ = pair
    ours = SeodangLM(model, tokenizer=tokenizer, think_end_token="</think>")
    assert ours._text_of(tokenizer("let me see: 1#</think> 2#3")["input_ids"], ["#"]) == "2"
    ours = SeodangLM(model, tokenizer=tokenizer, think_end_token=str(tokenizer.convert_tokens_to_ids("|")))
    assert ours._text_of(tokenizer("1| 2| 3#4")["input_ids"], ["#"]) == "3"


def test_what_cannot_be_asked_is_refused_by_name(pair, tiny, base):
    model, tokenizer, _ = pair
    ours = SeodangLM(model, tokenizer=tokenizer, max_length=20)
    with pytest.raises(UserError, match="peft='x', which is unknown: Seodang takes pretrained, device, dtype"):
        SeodangLM(base, peft="x")
    with pytest.raises(UserError, match="needs its tokenizer"):
        SeodangLM(model)
    with pytest.raises(UserError, match="t5 is an encoder-decoder: use seodang eval"):
        SeodangLM(tiny("t5"), tokenizer=tokenizer)
    with pytest.raises(UserError, match="has 21 tokens, but 1 to 20 can be scored: 'ab+"):
        ours.loglikelihood([asked("loglikelihood", "a", "b" * 21)])
    with pytest.raises(UserError, match="max_gen_toks=20 leaves no room"):
        ours.generate_until([asked("generate_until", "a", {"max_gen_toks": 20})])
    with pytest.raises(UserError, match="temprature"):
        ours.generate_until([asked("generate_until", "a", {"max_gen_toks": 2, "temprature": 1})])
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(UserError, match="no token that a text begins or ends with.*: give prefix_token_id"):
        SeodangLM(model, tokenizer=tokenizer)
    assert SeodangLM(model, tokenizer=tokenizer, prefix_token_id=5).prefix_token_id == 5
    with pytest.raises(UserError, match="enable_thinking needs think_end_token"):
        SeodangLM(model, tokenizer=tokenizer, prefix_token_id=5, enable_thinking=True)


def test_the_command_runs_tasks_and_reports_what_we_refuse(base, tasks, tmp_path, capsys, monkeypatch):
    """With tasks alone that lie in files: to look through all of lm-eval's takes half a minute."""
    monkeypatch.setattr(TaskManager, "__init__", functools.partialmethod(TaskManager.__init__, include_defaults=False))
    out = tmp_path / "found.json"
    argv = ["--tasks", *(str(tasks / f"{name}.yaml") for name in TASKS), "--output_path", str(out)]
    assert main(["lm-eval", "--model_args", f"pretrained={base},dtype=float32,max_length=120", *argv]) == 0
    [written] = tmp_path.glob("found_*.json")
    found = json.loads(written.read_text(encoding="utf-8"))
    theirs, _ = evaluated(hf_of(base), tasks)
    assert found["results"]["rolling"]["bits_per_byte,none"] == pytest.approx(theirs["rolling bits_per_byte,none"], rel=1e-5)
    assert found["config"]["model"] == "seodang" and found["config"]["model_dtype"] == str(torch.float32)
    assert main(["lm-eval", "--model_args", f"pretrained={base},weights=int3", *argv]) == 2
    assert "error: weights" in capsys.readouterr().err
