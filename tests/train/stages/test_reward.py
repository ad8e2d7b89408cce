"""The reward model: trl's loss and gradients on pairs, Ouyang et al.'s on rankings, and scores that a plain model gives again."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import RewardConfig, RewardTrainer

from seodang.data.errors import UserError
from seodang.infer.checkpoint.load import load
from seodang.infer.checkpoint.manifest import verify
from seodang.train.attention.packed_attention import PACKED
from seodang.train.models.reward_model import padding_token
from seodang.train.run.callbacks import read_log
from seodang.train.stages.reward import reward, reward_trainer

from ..batch_gradients import gradients

END = 2  # of the tiny tokenizer: <|im_end|>
ADAPTER = dict(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.fixture
def scorer(fresh_tiny):
    """`scorer(kind)`: a random classification model of one label whose scores are well apart."""

    def build(kind="llama", seed=0, **changes):
        if kind == "bloom":
            config = AutoConfig.for_model("bloom", vocab_size=128, hidden_size=32, n_layer=2, n_head=4, num_labels=1)
        else:
            config = fresh_tiny(kind, **changes).config
            config.num_labels = 1
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config).float()
        for p in model.parameters():
            if p.dim() > 1:
                torch.nn.init.normal_(p, std=0.3)
        return model.eval()

    return build


def ranked_rows(count=6, seed=0, answers=2, ranks=None, end=END):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda low, high: int(torch.randint(low, high, (1,), generator=generator))
    ids = lambda n: torch.randint(4, 124, (n,), generator=generator).tolist()
    ranks = list(range(answers)) if ranks is None else ranks
    return [
        {"prompt_ids": ids(draw(3, 9)), "branches": [ids(draw(1, 8)) + [end] for _ in ranks], "ranks": ranks, "where": f"row {i}"}
        for i in range(count)
    ]


def ruled_rows(count=64, seed=0):
    """Answers with the token 7 before their end beat those with another."""
    generator = torch.Generator().manual_seed(seed)
    ids = lambda n: torch.randint(8, 16, (n,), generator=generator).tolist()
    return [{"prompt_ids": ids(3), "branches": [ids(2) + [7, END], ids(3) + [END], ids(3) + [END]], "ranks": [0, 1, 1]} for _ in range(count)]


def arguments(folder, **changes):
    settings = {"max_steps": 2, "per_device_train_batch_size": 6, "save_strategy": "no", "logging_steps": 1}
    settings |= {"learning_rate": 1e-2, "lr_scheduler_type": "constant"}
    quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "bf16": False, "activation_checkpointing": False}
    return RewardConfig(str(folder), **{**settings, **quiet, **changes})


def alone(model, rows):
    """The plain model's score of each answer alone behind its prompt."""
    return torch.cat([model(input_ids=torch.tensor([row["prompt_ids"] + branch])).logits[:, 0] for row in rows for branch in row["branches"]])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "mistral", "bloom"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_scores_on_the_tree_equal_those_of_the_plain_model(scorer, tiny_tokenizer, tmp_path, kind, dtype, tolerance):
    tolerance = 1e-6 if kind in ("gemma2", "bloom") and dtype == torch.float64 else tolerance  # norms, attention round to float32 whatever the weights are
    model, rows = scorer(kind).to(dtype), ranked_rows(answers=3)
    with torch.no_grad():
        expected = alone(scorer(kind).to(dtype), rows)
        trainer = reward_trainer(model, tiny_tokenizer, rows, arguments(tmp_path))
        assert (model.config._attn_implementation == PACKED) == (kind != "bloom")
        found = trainer.scores(model, trainer.data_collator(rows))
    assert found.dtype == dtype and torch.allclose(found, expected, atol=tolerance, rtol=tolerance)
    assert expected.std() > 0.1


@pytest.mark.parametrize("centring", [None, 0.3])
@pytest.mark.parametrize("margins", [False, True])
def test_loss_and_gradients_on_pairs_are_those_of_trls_reward_trainer(scorer, tiny_tokenizer, tmp_path, centring, margins):
    rows = [{**row, **({"margin": 0.5 * i} if margins else {})} for i, row in enumerate(ranked_rows())]
    args = arguments(tmp_path, center_rewards_coefficient=centring)
    whole = [{"chosen_ids": row["prompt_ids"] + row["branches"][0], "rejected_ids": row["prompt_ids"] + row["branches"][1]} for row in rows]
    whole = [{**ids, **({"margin": row["margin"]} if margins else {})} for ids, row in zip(whole, rows, strict=True)]
    theirs = RewardTrainer(scorer(), args, train_dataset=Dataset.from_list(whole), processing_class=tiny_tokenizer)
    expected, plain = gradients(theirs, whole)
    loss, found = gradients(reward_trainer(scorer(), tiny_tokenizer, rows, args), rows)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert plain.keys() == found.keys() and "score.weight" in found
    for name, gradient in plain.items():
        assert (found[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max().clamp_min(1e-3), name


def test_a_prompts_pairs_share_its_weight_and_ties_give_none(scorer, tiny_tokenizer, tmp_path):
    """Ouyang et al.'s eq. 1 on four answers, two of them tied: five pairs of 1/5, beside a prompt with one pair."""
    rows = ranked_rows(1, ranks=[0, 1, 1, 2]) + ranked_rows(1, seed=1)
    with torch.no_grad():
        a, b, c, d, e, f = alone(scorer(), rows)
        of = lambda *pairs: [-torch.nn.functional.logsigmoid(better - worse) for better, worse in pairs]
        first, second = of((a, b), (a, c), (a, d), (b, d), (c, d)), of((e, f))
        prompts = (sum(first) / 5 + second[0]) / 2
    loss, _ = gradients(reward_trainer(scorer(), tiny_tokenizer, rows, arguments(tmp_path)), rows)
    assert loss == pytest.approx(prompts.item(), rel=1e-5)
    loss, _ = gradients(reward_trainer(scorer(), tiny_tokenizer, rows, arguments(tmp_path), pair_weights="pair"), rows)
    assert loss == pytest.approx((sum(first + second) / 6).item(), rel=1e-5)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("pair_weights", ["prompt", "pair"])
def test_accumulating_gradients_changes_nothing(scorer, tiny_tokenizer, tmp_path, lora, pair_weights):
    """Two steps of six prompts of two to four answers, in one batch, in twos, one by one."""
    rows = [row for n in (2, 3, 4) for row in ranked_rows(2, seed=n, answers=n)]
    weights = []
    for size, steps in ((6, 1), (2, 3), (1, 6)):
        args = arguments(tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps, optim="sgd", learning_rate=0.1, max_grad_norm=0.0,
                         center_rewards_coefficient=0.01)  # fmt: skip
        torch.manual_seed(0)
        trainer = reward(scorer(), tiny_tokenizer, rows, args, lora=LoraConfig(**ADAPTER) if lora else None, pair_weights=pair_weights)
        weights.append({name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad})
    head = next(p for name, p in weights[0].items() if "score" in name)
    assert (head - scorer().score.weight).abs().max() > 1e-3
    for other in weights[1:]:
        for name, p in weights[0].items():
            assert torch.allclose(p, other[name], atol=1e-6), name


@pytest.mark.parametrize("lora", [False, True])
def test_a_rule_is_learned_and_held_out_rankings_are_all_right(scorer, tiny_tokenizer, tmp_path, lora):
    args = arguments(tmp_path, max_steps=60, per_device_train_batch_size=8)
    trainer = reward(scorer(), tiny_tokenizer, ruled_rows(), args, eval_rows=ruled_rows(12, seed=1), lora=LoraConfig(**ADAPTER) if lora else None)
    before, after = reward_trainer(scorer(), tiny_tokenizer, ruled_rows(), args, eval_rows=ruled_rows(12, seed=1)).evaluate(), trainer.evaluate()
    assert before["eval_accuracy"] < 0.9 and after["eval_accuracy"] == after["eval_best_of"] == 1.0
    assert after["eval_loss"] < 0.1 and after["eval_margin"] > 2
    last = [entry for entry in read_log(tmp_path / "log.jsonl") if "loss" in entry][-1]
    assert last["accuracy"] == 1.0 and last["min_reward"] < last["mean_reward"] < last["max_reward"] and last["margin"] > 2


def test_an_evaluation_counts_every_pair_once_whatever_the_batches(scorer, tiny_tokenizer, tmp_path):
    rows = ranked_rows(5, answers=3) + ranked_rows(2, seed=3, ranks=[1, 0])
    with torch.no_grad():
        scores = iter(alone(scorer(), rows).tolist())
    leads, best = [], []
    for row in rows:
        mine = [next(scores) for _ in row["ranks"]]
        some = [mine[i] - mine[j] for i, a in enumerate(row["ranks"]) for j, b in enumerate(row["ranks"]) if a < b]
        leads.append(torch.tensor(some))
        best.append(mine.index(max(mine)) == row["ranks"].index(0))
    loss = torch.stack([-torch.nn.functional.logsigmoid(lead).mean() for lead in leads]).mean().item()
    every = torch.cat(leads)
    assert len(every) == 17 and 0 < sum(best) < 7
    for size in (1, 3, 8):
        found = reward_trainer(scorer(), tiny_tokenizer, rows, arguments(tmp_path, per_device_eval_batch_size=size), eval_rows=rows).evaluate()
        expected = {"loss": loss, "accuracy": (every > 0).float().mean().item(), "margin": every.mean().item(), "best_of": sum(best) / 7}
        assert {name: found[f"eval_{name}"] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_equal_scores_are_no_success(scorer, tiny_tokenizer, tmp_path):
    model = scorer()
    torch.nn.init.zeros_(model.score.weight)
    rows = ranked_rows(answers=3)
    found = reward_trainer(model, tiny_tokenizer, rows, arguments(tmp_path), eval_rows=rows).evaluate()
    assert found["eval_accuracy"] == found["eval_best_of"] == 0


def test_an_evaluation_between_logs_leaves_the_training_metrics_whole(scorer, tiny_tokenizer, tmp_path):
    """The log at step 4 is the mean over four steps, though step 2 was followed by an evaluation."""
    logs = []
    for evaluates in (False, True):
        more = {"eval_strategy": "steps", "eval_steps": 2} if evaluates else {}
        args = arguments(tmp_path / str(evaluates), max_steps=4, logging_steps=4, per_device_train_batch_size=2, **more)
        reward(scorer(), tiny_tokenizer, ranked_rows(), args, eval_rows=ranked_rows(3, seed=4))
        logs.append(next(entry for entry in read_log(tmp_path / str(evaluates) / "log.jsonl") if "loss" in entry))
    assert all(logs[0][name] == logs[1][name] for name in ("loss", "accuracy", "margin", "mean_reward", "min_reward", "max_reward"))


@pytest.fixture
def ends_as_it_pads(tiny_tokenizer):
    """As SmolLM2's: the token that ends a turn pads too, and there is an unknown token."""
    tiny_tokenizer.unk_token = "<pad>"
    tiny_tokenizer.pad_token = "<|im_end|>"
    return tiny_tokenizer


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_saved_folder_scores_in_plain_transformers_as_in_training(scorer, ends_as_it_pads, tmp_path, kind):
    """The end-of-turn token included: without it, or with another end, the score is another."""
    model, rows = scorer(kind, pad_token_id=END), ranked_rows(answers=3)
    trainer = reward(model, ends_as_it_pads, rows, arguments(tmp_path))
    with torch.no_grad():
        expected = trainer.scores(model.eval(), trainer.data_collator(rows))
    verify(trainer.save_final())
    assert ends_as_it_pads.pad_token_id == END  # the caller's own is untouched
    plain, tokenizer = AutoModelForSequenceClassification.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert plain.config.num_labels == 1 and plain.config.pad_token_id == tokenizer.pad_token_id == 0
    whole = [row["prompt_ids"] + branch for row in rows for branch in row["branches"]]
    scores = lambda ids: plain(**tokenizer.pad({"input_ids": ids}, return_tensors="pt")).logits[:, 0]
    with torch.no_grad():
        found, cut_off = scores(whole), scores([ids[:-1] for ids in whole])
    assert torch.allclose(found, expected, atol=1e-5) and not torch.allclose(cut_off, expected, atol=0.05)
    opened, own = load(tmp_path, device="cpu", dtype="float32")
    assert type(opened) is type(plain) and own.pad_token_id == 0


def test_an_adapters_folder_brings_the_trained_head(scorer, ends_as_it_pads, tmp_path):
    base, rows = tmp_path / "base", ranked_rows(answers=3)
    scorer(pad_token_id=END).model.save_pretrained(base)  # a trunk without any head
    model, _ = load(_with(base, ends_as_it_pads), device="cpu", dtype="float32", model_class=AutoModelForSequenceClassification, num_labels=1)
    trainer = reward(model, ends_as_it_pads, rows, arguments(tmp_path / "out"), lora=LoraConfig(**ADAPTER))
    with torch.no_grad():
        expected = trainer.scores(trainer.model.eval(), trainer.data_collator(rows))
    folder = trainer.save_final()
    assert (folder / "adapter_model.safetensors").is_file() and not (folder / "model.safetensors").exists()
    for options in ({}, {"model_class": AutoModelForSequenceClassification}):
        opened, tokenizer = load(folder, device="cpu", dtype="float32", **options)
        batch = tokenizer.pad({"input_ids": [row["prompt_ids"] + branch for row in rows for branch in row["branches"]]}, return_tensors="pt")
        with torch.no_grad():
            assert torch.allclose(opened(**batch).logits[:, 0], expected, atol=1e-5)


def _with(folder, tokenizer):
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("lora", [False, True])
def test_a_resumed_run_ends_with_the_weights_of_one_that_ran_through(scorer, tiny_tokenizer, tmp_path, lora):
    ends = []
    for name, stops in (("through", [4]), ("resumed", [2, 4])):
        for stop in stops:
            torch.manual_seed(0)
            folder = tmp_path / name
            args = arguments(folder, max_steps=4, per_device_train_batch_size=2, save_strategy="steps", save_steps=2, lr_scheduler_type="linear")
            trainer = reward_trainer(scorer(), tiny_tokenizer, ranked_rows(8, answers=3), args, lora=LoraConfig(**ADAPTER) if lora else None)
            if stop == 2:
                trainer.add_callback(_StopAt(2))
            trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2") if len(stops) > 1 and stop == 4 else None)
        assert trainer.state.global_step == 4
        ends.append({name: p.detach() for name, p in trainer.model.named_parameters()})
    assert all(torch.equal(p, ends[1][name]) for name, p in ends[0].items())


class _StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.step


def test_low_precision_weights_train_with_masters(scorer, tiny_tokenizer, tmp_path):
    args = arguments(tmp_path, max_steps=60, per_device_train_batch_size=8)
    trainer = reward(scorer().bfloat16(), tiny_tokenizer, ruled_rows(), args, eval_rows=ruled_rows(12, seed=1))
    assert trainer.evaluate()["eval_accuracy"] > 0.95
    assert type(trainer.optimizer.optimizer).__name__ == "MasterAdamW"


def test_padding_is_a_token_that_ends_no_answer(tiny_tokenizer, tokenizer):
    assert padding_token(tiny_tokenizer, 128) == "<pad>"  # its own, which ends nothing
    assert tokenizer.pad_token == "<|im_end|>" and padding_token(tokenizer, 49152) == "<|endoftext|>"  # SmolLM2's unknown token
    tiny_tokenizer.pad_token = "<|im_end|>"
    assert padding_token(tiny_tokenizer, 128) == "<pad>"  # still a special token, named after padding
    tokenizer.unk_token = None
    assert padding_token(tokenizer, 49152) == "<|im_start|>"  # the beginning of text
    tokenizer.bos_token = None
    with pytest.raises(UserError, match=r"also ends an answer \(<\|im_end\|>\).*add_special_tokens"):
        padding_token(tokenizer, 49152)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": []}, "no ranked answers"),
        ({"rows": ranked_rows(ranks=[0, 0])}, "row 0 has no pair"),
        ({"rows": ranked_rows(end=0)}, "row 0 has an answer that ends in <pad>, the padding"),
        ({"args": {"max_length": 8}}, "max_length is 8"),
        ({"args": {"chat_template_path": "x"}}, "chat_template_path='x' is not taken here"),
        ({"args": {"eos_token": "<s>"}}, "eos_token='<s>' is not taken here"),
        ({"pair_weights": "answer"}, "pair_weights must be prompt or pair, got 'answer'"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(scorer, tiny_tokenizer, tmp_path, changes, message):
    changes = {"rows": ranked_rows(), "args": {}, **changes}
    rows, args = changes.pop("rows"), arguments(tmp_path, **changes.pop("args"))
    with pytest.raises(UserError, match=message):
        reward_trainer(scorer(), tiny_tokenizer, rows, args, **changes)


def test_a_model_that_gives_no_single_score_is_refused(fresh_tiny, scorer, tiny_tokenizer, tmp_path):
    with pytest.raises(UserError, match="LlamaForCausalLM has no head that scores"):
        reward_trainer(fresh_tiny("llama"), tiny_tokenizer, ranked_rows(), arguments(tmp_path))
    two = AutoModelForSequenceClassification.from_config(fresh_tiny("llama").config)
    with pytest.raises(UserError, match="this one has num_labels=2"):
        reward_trainer(two, tiny_tokenizer, ranked_rows(), arguments(tmp_path))


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(scorer, tiny_tokenizer, tmp_path):
    model = scorer()
    with torch.no_grad():
        model.score.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="the loss is nan at step 1"):
        reward(model, tiny_tokenizer, ranked_rows(), arguments(tmp_path))
