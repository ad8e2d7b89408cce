"""seodang eval: the figures are what generate, score and plain transformers say of the same records, whoever answers."""

import json
import math
import weakref

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from seodang.infer import SamplingParams, generate, score
from seodang.infer.checkpoint.load import load
from seodang.infer.engine.batch import Batch
from seodang.infer.remote import connection
from seodang.recipes import generate as generating
from seodang.recipes import preview
from seodang.recipes import score as scoring
from seodang.recipes.eval import main
from seodang.recipes.options.decoding import SpeakingModel
from seodang.train.maths.text_metrics import text_metrics
from seodang.train.rewards.scoring import score_answers

EXACT = ["--dtype", "float32", "--device", "cpu"]
SHORT = ["--max_new_tokens", "6", *EXACT]
RECORDS = [{"prompt": f"say {word}", "completion": word, "topic": topic} for word, topic in (("abc", "x"), ("de f", "y"), ("g", "x"), ("hi jk", "y"), ("lm", "x"))]
QUESTIONS = [
    {"question": "ab", "choices": ["cd", "e", "fgh"], "answer": 0, "topic": "x"}, {"question": "b a", "choices": ["e", "longer"], "answer": "B", "topic": "y"},
    {"question": "cab", "choices": ["q r", "s"], "answer": "s", "topic": "x"},
]  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(connection, "FIRST_WAIT", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def write(path, records) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "data.jsonl", RECORDS)


@pytest.fixture
def other(fresh_tiny, tiny_tokenizer, tmp_path):
    """Another tiny model's folder."""
    fresh_tiny("llama", seed=1).save_pretrained(tmp_path / "other")
    tiny_tokenizer.save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def figures(path, group="all records"):
    return json.loads(path.read_text(encoding="utf-8"))["figures"][group]


def test_two_checkpoints_side_by_side(base, other, data, tmp_path, monkeypatch, capsys):
    output, html = tmp_path / "eval.json", tmp_path / "eval.html"
    metrics = ["exact", "contains", "chrf", "bleu", "rouge1", "rouge2", "rougeL", "perplexity", "bits_per_byte"]
    argv = [f"before={base}", f"after={other}", "--data", data, "--metrics", *metrics, "--by", "topic", "--output", str(output), *SHORT]
    assert main([*argv, "--html", str(html)]) == 0
    printed = capsys.readouterr()
    found, kept = figures(output), json.loads(output.read_text())
    wanted = [record["completion"] for record in RECORDS]
    for name, folder in (("before", base), ("after", other)):
        model, tokenizer = load(str(folder), device="cpu", dtype="float32")
        prompts = [[{"role": "user", "content": record["prompt"]}] for record in RECORDS]
        said = [result.text for result in generate(model, tokenizer, prompts, SamplingParams(max_new_tokens=6))]
        assert {metric: of[name]["value"] for metric, of in found.items() if metric in metrics[:7]} == pytest.approx(text_metrics(said, wanted))
        logprobs = score(model, tokenizer, prompts, wanted)
        nats, tokens = -sum(float(each.sum()) for each in logprobs), sum(map(len, logprobs))
        assert found["perplexity"][name]["value"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
        assert found["bits_per_byte"][name]["value"] == pytest.approx(nats / math.log(2) / sum(map(len, wanted)), rel=1e-5)
        of_x = [place for place, record in enumerate(RECORDS) if record["topic"] == "x"]
        chrf = text_metrics([said[place] for place in of_x], [wanted[place] for place in of_x])["chrf"]
        assert figures(output, "topic: x")["chrf"][name]["value"] == pytest.approx(chrf) and figures(output, "topic: x")["chrf"][name]["records"] == 3
        [line] = [line for line in kept["each"] if line["line"] == 2]
        assert line["group"] == "topic: y" and line["values"]["chrf"][name] == pytest.approx(text_metrics(said[1:2], wanted[1:2])["chrf"])
    low, value, high = (found["perplexity"]["after"]["difference"][key] for key in ("low", "value", "high"))
    assert value == pytest.approx(found["perplexity"]["after"]["value"] - found["perplexity"]["before"]["value"]) and low <= value <= high
    assert "all records, 5" in printed.out and "perplexity ↓" in printed.out and "its difference to before" in printed.out
    assert "difference" not in found["chrf"]["before"]
    page = html.read_text(encoding="utf-8")
    assert page.count("<article>") == 5 and "say hi jk" in page and "<script" not in page

    monkeypatch.setattr(Batch, "run", lambda *args: pytest.fail("computed something"))
    monkeypatch.setattr("seodang.recipes.eval.add_likelihoods", lambda *args: None)
    assert main([*argv, "--resume"]) == 0  # the answers are there
    assert figures(output)["chrf"] == found["chrf"]
    folder = tmp_path / "eval.json.answers"
    monkeypatch.undo()
    files = [f"{name}={folder / name}.jsonl" for name in ("before", "after")]
    assert main([*files, "--data", data, "--metrics", "chrf", "--output", str(tmp_path / "of_files.json")]) == 0
    assert figures(tmp_path / "of_files.json")["chrf"] == found["chrf"]
    assert main([*files, "--data", data, "--limit", "2", "--metrics", "chrf", "--output", str(tmp_path / "two.json")]) == 0
    assert figures(tmp_path / "two.json")["chrf"]["before"]["records"] == 2


def test_one_model_is_in_memory_at_a_time(base, other, data, monkeypatch, capsys):
    opened, there = [], []

    def opening(self):
        model, tokenizer = load(self.model, device="cpu", dtype="float32")
        there.append(sum(each() is not None for each in opened))
        opened.append(weakref.ref(model))
        return model, tokenizer

    monkeypatch.setattr(SpeakingModel, "open", opening)
    assert main([str(base), str(other), "--data", data, "--metrics", "exact", "perplexity", *SHORT]) == 0
    assert there == [0, 0]


def by_transformers(folder, tokenizer, text, choice):
    """The log-probability of a choice's ids behind a text, and how many they are, by the model's plain forward."""
    model = AutoModelForCausalLM.from_pretrained(folder).float()
    before, behind = tokenizer(text)["input_ids"], tokenizer(choice, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logprobs = model(torch.tensor([before + behind])).logits[0].log_softmax(-1)
    return sum(logprobs[len(before) - 1 + place, id].item() for place, id in enumerate(behind)), len(behind)


def test_choices_by_plain_transformers(base, tiny_tokenizer, tmp_path, capsys):
    output = tmp_path / "eval.json"
    argv = [str(base), "--data", write(tmp_path / "q.jsonl", QUESTIONS), "--raw", "--by", "topic", "--output", str(output), "--html", str(tmp_path / "q.html"), *EXACT]
    assert main(argv) == 0
    found, rights = figures(output), [0, 1, 1]
    hits, brier = {"acc": [], "acc_token": [], "acc_byte": [], "acc_char": []}, []
    for record, right in zip(QUESTIONS, rights):
        each = [(*by_transformers(base, tiny_tokenizer, record["question"], f" {choice}"), len(choice)) for choice in record["choices"]]
        for name, scores in (("acc", [s for s, _, _ in each]), ("acc_token", [s / n for s, n, _ in each]), ("acc_byte", [s / size for s, _, size in each])):
            hits[name].append(scores.index(max(scores)) == right)
        hits["acc_char"] = hits["acc_byte"]  # ASCII
        shares = torch.tensor([s for s, _, _ in each]).softmax(0).tolist()
        brier.append(sum((share - (place == right)) ** 2 for place, share in enumerate(shares)))
    for name, of in hits.items():
        assert found[name]["base"]["value"] == pytest.approx(sum(of) / 3)
    assert found["brier"]["base"]["value"] == pytest.approx(sum(brier) / 3, rel=1e-4)
    assert not (tmp_path / "eval.json.answers").exists()  # nothing was asked
    assert "(right)" in (tmp_path / "q.html").read_text(encoding="utf-8")


def test_an_encoder_decoder_and_a_diffusion_model_are_measured_as_score_scores_them(fresh_tiny, t5_tokenizer, declared, data, tmp_path, capsys):
    model = fresh_tiny("t5", vocab_size=len(t5_tokenizer))
    model.generation_config.eos_token_id = 1
    model.save_pretrained(tmp_path / "t5")
    t5_tokenizer.save_pretrained(tmp_path / "t5")
    pairs = write(tmp_path / "pairs.jsonl", [{"source": "abc d", "target": "bcd e", "prefix": "bcd"}, {"source": "x", "target": "yz"}])
    for folder, records in ((tmp_path / "t5", pairs), (declared(), data)):
        assert scoring.main([str(folder), "--data", records, *EXACT]) == 0
        total = json.loads(capsys.readouterr().out.splitlines()[-1])
        output = tmp_path / f"{folder.name}.json"
        assert main([f"m={folder}", "--data", records, "--metrics", "perplexity", "exact", "--output", str(output), *SHORT]) == 0
        assert figures(output)["perplexity"]["m"]["value"] == pytest.approx(total.get("perplexity") or total["perplexity_bound"], rel=1e-4)
        assert figures(output)["exact"]["m"]["records"] == len(open(records).readlines())
    assert "m is of diffusion: its likelihoods are lower bounds" in capsys.readouterr().out


def test_rules_and_samples(base, data, tmp_path, capsys):
    output = tmp_path / "eval.json"
    argv = [str(base), "--data", data, "--metrics", "pass@1", "pass@2", "--reward", "contains:a", "--num_return_sequences", "4", "--temperature", "1.5"]
    assert main([*argv, "--output", str(output), *SHORT]) == 0
    said = [json.loads(line) for line in (tmp_path / "eval.json.answers" / "base.jsonl").read_text(encoding="utf-8").splitlines()]
    right = [sum("a" in line["text"] for line in said if line["line"] == number) for number in range(1, 6)]
    assert len(said) == 20 and 0 < sum(right) < 20
    found = figures(output)
    assert found["pass@1"]["base"]["value"] == found["rule:contains"]["base"]["value"] == pytest.approx(sum(right) / 20)
    assert found["pass@2"]["base"]["value"] == pytest.approx(sum(1 - math.comb(4 - c, 2) / 6 for c in right) / 5)
    assert main([*argv, "--output", str(tmp_path / "again.json"), *SHORT]) == 0
    assert figures(tmp_path / "again.json") == found  # drawn from a seed


def judge(body):
    """Prefers what has more letters, and answers out of form about `hi jk`."""
    text = body["messages"][0]["content"]
    first, second = text.split("Answer A:\n")[1].split("\n\nWhich answer")[0].split("\n\nAnswer B:\n")
    better = "A" if len(first) > len(second) else "B"
    return "Well, both." if "say hi jk" in text else json.dumps({"better": better}) if "say g" not in text else "A"


def test_a_judge_is_asked_both_ways_and_counted_where_it_answers_out_of_form(scripted_server, data, tmp_path, capsys):
    answers = {"short": lambda body: body["messages"][0]["content"][4:], "long": lambda body: body["messages"][0]["content"]}
    servers = {name: scripted_server(lambda body, of=of: scripted_server.said(of(body))) for name, of in answers.items()}
    court = scripted_server(lambda body: scripted_server.said(judge(body)))
    models = [f"{name}={server.base_url}" for name, server in servers.items()]
    output = tmp_path / "eval.json"
    argv = [*models, "--data", data, "--judge", court.base_url, "--output", str(output)]
    assert main(argv) == 0
    found, told = figures(output), json.loads(output.read_text())
    assert found["exact"]["short"]["value"] == 1 and found["exact"]["long"]["value"] == 0 and found["exact"]["long"]["difference"]["excludes_zero"]
    assert "perplexity" not in found and any("without perplexity, bits_per_byte" in note for note in told["notes"])
    # three pairs won by the longer; of "say g" the first is named each time, half a point; "say hi jk" is left out
    assert (found["judge_win"]["long"]["value"], found["judge_win"]["long"]["records"]) == (pytest.approx(3.5 / 4), 4)
    assert any("long: of 1 pairs the judge answered out of form" in note for note in told["notes"])
    bodies = [body for path, body, _ in court.asked if body]
    assert len(bodies) == 10 and all(body["response_format"]["json_schema"]["schema"]["required"] == ["better"] and body["temperature"] == 0 for body in bodies)
    count = len(court.asked)
    assert main([*argv, "--resume"]) == 0 and len(court.asked) - count == 1  # which models it has
    assert main([models[0], "--data", data, "--judge", court.base_url, "--output", str(output), "--resume", "false"]) == 0
    assert figures(output)["judge_win"]["short"]["value"] == 0.5  # against references, which it says


def test_a_reward_model_and_a_model_as_judge(base, other, fresh_tiny, tiny_tokenizer, data, tmp_path, capsys):
    config = AutoModelForCausalLM.from_pretrained(base).config
    config.num_labels = 1
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "reward")
    tiny_tokenizer.save_pretrained(tmp_path / "reward")
    output = tmp_path / "eval.json"
    argv = [str(base), str(other), "--data", data, "--metrics", "exact", "--reward_model", str(tmp_path / "reward"), "--judge", str(base)]
    assert main([*argv, "--output", str(output), *SHORT]) == 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    prompts, scores, said = [[{"role": "user", "content": record["prompt"]}] for record in RECORDS], {}, {}
    for name in ("base", "other"):
        said[name] = [json.loads(line)["text"] for line in (tmp_path / "eval.json.answers" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        scores[name] = score_answers(model, tiny_tokenizer, prompts, said[name])
    found = figures(output)
    assert found["reward_model"]["other"]["value"] == pytest.approx(sum(scores["other"]) / 5, rel=1e-4)
    assert found["reward_win"]["other"]["value"] == pytest.approx(sum(a > b for a, b in zip(scores["other"], scores["base"])) / 5)
    assert found["reward_win"]["base"]["value"] == found["judge_win"]["base"]["value"] == 0.5 and found["judge_win"]["other"]["records"] == 5


def test_records_that_were_trained_on_are_warned_of(base, data, tmp_path, capsys):
    long = "the quick brown fox jumps over the lazy dog"
    known = write(tmp_path / "known.jsonl", [{"prompt": long, "completion": "so"}, {"prompt": "another prompt of five words", "completion": "no"}])
    trained = write(tmp_path / "trained.jsonl", [{"messages": [{"role": "user", "content": f"Well, {long.upper()}!"}, {"role": "assistant", "content": "Yes."}]}])
    output = tmp_path / "eval.json"
    assert main([str(base), "--data", known, "--train_data", trained, "--metrics", "exact", "--output", str(output), "--html", str(tmp_path / "e.html"), *SHORT]) == 0
    out, err = capsys.readouterr()
    assert "warning: 1 of 2 evaluation records have half of their words" in out and "(line 1)" in err
    assert [line["overlap"] for line in json.loads(output.read_text())["each"]] == [0.9, 0.0]
    assert "90% of its words in the training data" in (tmp_path / "e.html").read_text(encoding="utf-8")
    assert preview.main([known, "--model", str(base), "--eval_data", trained]) == 0
    assert "warning: 1 of 1 evaluation records" in capsys.readouterr().err
    assert preview.main([known, "--model", str(base), "--eval_data", data]) == 0
    assert "none of 5 evaluation records" in capsys.readouterr().err


def test_models_of_different_tokenizers_are_not_compared_by_the_token(base, fresh_tiny, byte_tokenizer, data, tmp_path, capsys):
    fresh_tiny("llama", vocab_size=120).save_pretrained(tmp_path / "small")
    byte_tokenizer(120).save_pretrained(tmp_path / "small")
    both = [str(base), str(tmp_path / "small"), "--data", data]
    assert main([*both, "--metrics", "perplexity"]) == 2
    assert "base and small have different tokenizers" in (told := capsys.readouterr().err) and "compare them by bits_per_byte" in told
    assert main([*both, "--output", str(tmp_path / "eval.json"), *SHORT]) == 0
    assert "perplexity" not in figures(tmp_path / "eval.json") and figures(tmp_path / "eval.json")["bits_per_byte"]["small"]["records"] == 5


@pytest.mark.parametrize(
    "argv, message",
    [
        (["BASE", "--data", "DATA", "--metrics", "exakt"], "unknown metric 'exakt': did you mean exact?"),
        (["BASE", "--data", "DATA", "--metrics", "acc"], "metric acc is of questions with choices, and no record has any"),
        (["BASE", "--data", "ALONE", "--metrics", "f1"], "no prompt has the answer that it should get"),
        (["BASE", "--data", "ALONE"], "there is nothing to measure"),
        (["BASE", "--data", "DATA", "--metrics", "pass@2"], "metric pass@2 counts answers that pass rules: give one"),
        (["BASE", "--data", "DATA", "--metrics", "pass@2", "--reward", "contains:a"], "num_return_sequences"),
        (["BASE", "--data", "DATA", "--by", "topics"], "by topics: there is no such column among completion, prompt, topic: did you mean topic?"),
        (["BASE", "--data", "HOLES", "--by", "topic"], "by topic: line 2 has nothing there"),
        (["BASE", "BASE", "--data", "DATA"], "2 models are called base: give them names"),
        (["BASE", "nowhere.jsonl", "--data", "DATA"], "there is no file of answers nowhere.jsonl"),
        (["BASE", "./no/such/folder", "--data", "DATA"], "./no/such/folder"),
        (["--data", "DATA"], "models are missing"), (["BASE"], "data is missing"), (["BASE", "--data", "no.jsonl"], "no.jsonl"),
        (["DATA", "--data", "DATA", "--metrics", "exact"], "data.jsonl line 1 is no answer of `seodang generate`"),
        (["OTHERS", "--data", "DATA", "--metrics", "exact"], "others.jsonl line 1 answers another prompt than line 1"),
        (["OTHERS", "--data", "DATA", "--metrics", "perplexity"], "servers and files of answers do not tell"),
        (["BASE", "--data", "DATA", "--reward", "exact_anser"], "unknown reward"), (["BASE", "--data", "ALONE", "--reward", "exact_answer"], "needs the column answer"),
        (["BASE", "--data", "DATA", "--judge", "DATA"], "is a file of answers"), (["BASE", "--data", "ALONE", "--judge", "BASE"], "no prompt has the answer"),
        (["BASE", "--data", "DATA", "--against", "last"], "against must be first or references"), (["BASE", "--data", "DATA", "--resamples", "9"], "resamples must be at least 100"),
        (["BASE", "--data", "DATA", "--normalise", "cases"], "normalise takes case, punctuation, articles or squad"),
        (["BASE", "--data", "DATA", "--train_data", "no.jsonl"], "no.jsonl"), (["BASE", "--data", "DATA", "--top_p", "7"], "top_p must be in (0, 1]"),
        (["BASE", "--data", "WRONG"], "wrong.jsonl line 1: answer 'Z' is none of the 2 choices"), (["BASE", "--data", "DATA", "--resume"], "give --output too"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_mistake_is_told_before_any_compute(base, data, tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.setattr(Batch, "run", lambda *args: pytest.fail("computed something"))
    monkeypatch.setattr("seodang.infer.checkpoint.load.load", lambda *args, **more: pytest.fail("loaded something"))
    files = {"BASE": str(base), "DATA": data, "ALONE": write(tmp_path / "alone.jsonl", [{"prompt": "a"}])}
    files["HOLES"] = write(tmp_path / "holes.jsonl", [RECORDS[0], {**RECORDS[1], "topic": None}])
    files["WRONG"] = write(tmp_path / "wrong.jsonl", [{"question": "a", "choices": ["b", "c"], "answer": "Z"}])
    files["OTHERS"] = write(tmp_path / "others.jsonl", [{"line": 1, "prompt": "?", "choice": 0, "text": "", "error": None}])
    assert main([files.get(word, word) for word in argv]) == 2
    assert message in capsys.readouterr().err


def test_a_server_that_answers_no_more_ends_it_and_what_came_is_gone_on_with(base, scripted_server, data, tmp_path, capsys):
    well = scripted_server(lambda body: scripted_server.said("abc"))
    ill = scripted_server(lambda body: (404, {"error": {"message": "gone"}}))
    argv = [f"well={well.base_url}", f"ill={ill.base_url}", "--data", data, "--metrics", "exact", "--output", str(tmp_path / "eval.json"), "--retries", "0"]
    assert main(argv) == 1
    assert "error: ill: " in (told := capsys.readouterr().err) and "gone" in told and not (tmp_path / "eval.json").exists()
    ill.script, asked = well.script, len([body for _, body, _ in well.asked if body])
    assert main([*argv, "--resume"]) == 0 and asked == len([body for _, body, _ in well.asked if body]) == 5
    assert figures(tmp_path / "eval.json")["exact"]["ill"] == {**figures(tmp_path / "eval.json")["exact"]["well"], "difference": {"value": 0, "low": 0, "high": 0, "records": 5, "excludes_zero": False}}


def test_answers_that_failed_are_counted_and_kept(base, data, tmp_path, capsys):
    """One answer of a file ended in an error, and another is not there."""
    assert generating.main([str(base), data, "--output", str(tmp_path / "a.jsonl"), *SHORT]) == 0
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    lines[1]["error"] = "broke off"
    answers = write(tmp_path / "a.jsonl", lines[:4])
    assert main([answers, "--data", data, "--metrics", "chrf", "--output", str(tmp_path / "eval.json")]) == 0
    assert "a: 2 of 5 records have no answer (1 ended in an error)" in capsys.readouterr().out
    assert figures(tmp_path / "eval.json")["chrf"]["a"]["records"] == 3
