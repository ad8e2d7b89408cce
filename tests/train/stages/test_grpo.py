"""GRPO and RLOO on shared prompts: trl's own losses and gradients, our engine's answers, and trl's inside as we know it."""

import inspect
import math
from importlib.metadata import version

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from seodang.data.chat import prompt_ids
from seodang.data.errors import UserError
from seodang.infer.runners.architecture import transformers_model
from seodang.train.attention.groups import answer_indices, branch_batches, group_by_prompt, regroup, scatter_answers
from seodang.train.rewards.reward_function import with_all_columns
from seodang.train.stages.grpo import GrpoTrainer, RlooTrainer, grpo_trainer, rloo_trainer

QUIET = {"report_to": "none", "use_cpu": True, "bf16": False, "activation_checkpointing": False, "save_strategy": "no", "logging_steps": 1,
         "disable_tqdm": True, "max_completion_length": 10, "num_generations": 4, "per_device_train_batch_size": 8}  # fmt: skip
KINDS = {"grpo": (GRPOConfig, grpo_trainer, GRPOTrainer), "rloo": (RLOOConfig, rloo_trainer, RLOOTrainer)}


def letter_a(prompts, completions, **columns):
    return [text.count("a") / 10 for text in completions]


def asked(tokenizer, texts=("say something", "hi", "what is it then?", "and now?")):
    dialogues = [[{"role": "user", "content": text}] for text in texts]
    return [{"prompt_ids": prompt_ids(tokenizer, messages), "messages": messages, "columns": {}} for messages in dialogues]


def build(kind, model, tokenizer, folder, rewards=(letter_a,), rows=None, lora=None, **settings):
    config, build, _ = KINDS[kind]
    args = config(str(folder), **{**QUIET, **settings})
    return build(model, tokenizer, rows or asked(tokenizer), list(rewards), args, lora=lora)


def ragged_batch(seed=0):
    """trl's layout: two prompts of 5 and 3 tokens padded on the left, answers of 1 to 6 tokens on the right, one masked whole."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randint(3, 128, shape, generator=generator)
    long, short = draw(5), draw(3)
    prompts = [long, short, long, long, short, long]
    lengths = [6, 1, 4, 2, 5, 0]
    fill = lambda n: torch.zeros(n, dtype=torch.long)
    lines = [torch.cat([fill(5 - len(p)), p, draw(6) * (torch.arange(6) < max(n, 3))]) for p, n in zip(prompts, lengths, strict=True)]
    mask = [[0] * (5 - len(p)) + [1] * len(p) + [1] * n + [0] * (6 - n) for p, n in zip(prompts, lengths, strict=True)]
    return torch.stack(lines), torch.tensor(mask)


# trl's lines and our groups


def test_lines_become_groups_and_values_find_their_way_back():
    ids = torch.tensor([[0, 5, 6, 7, 8], [4, 5, 9, 0, 0], [0, 5, 7, 7, 0], [4, 5, 1, 2, 3], [0, 5, 9, 9, 9]])
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, 0]])
    groups = group_by_prompt(ids, mask, 3)
    assert groups == [([5], [(0, [6, 7, 8]), (2, [7, 7])]), ([4, 5], [(1, [9]), (3, [1, 2, 3])])]
    assert list(branch_batches(groups, 3)) == [
        [{"prompt_ids": [5], "branches": [[6, 7, 8], [7, 7]]}, {"prompt_ids": [4, 5], "branches": [[9]]}],
        [{"prompt_ids": [4, 5], "branches": [[1, 2, 3]]}],
    ]
    values = torch.arange(1.0, 10)
    placed = scatter_answers(values, answer_indices(groups, 3, ids.device), (5, 3))
    assert placed.tolist() == [[1, 2, 3], [6, 0, 0], [4, 5, 0], [7, 8, 9], [0, 0, 0]]


def test_answers_of_a_prompt_come_together_again_after_trls_shuffle():
    prompts = torch.tensor([[1], [2], [3], [2], [1], [3]])
    whole = {"prompt_ids": prompts, "prompt_mask": torch.ones_like(prompts), "advantages": torch.arange(6.0), "num_items_in_batch": torch.tensor(9)}
    parts = [{k: v[i : i + 2] if v.dim() else v for k, v in whole.items()} for i in (0, 2, 4)]
    together = regroup(parts)
    assert [part["prompt_ids"].flatten().tolist() for part in together] == [[1, 1], [2, 2], [3, 3]]
    assert [part["advantages"].tolist() for part in together] == [[0, 4], [1, 3], [2, 5]]
    assert [part["num_items_in_batch"].item() for part in together] == [9, 9, 9]


# The same numbers as trl


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_log_probabilities_and_entropies_equal_trls_plain_ones(kind, family, fresh_tiny, tiny_tokenizer, tmp_path):
    ids, mask = ragged_batch()
    trainer = build(kind, fresh_tiny(family), tiny_tokenizer, tmp_path, temperature=0.7)
    plain = plain_trainer(kind, fresh_tiny(family), tiny_tokenizer, tmp_path, temperature=0.7, beta=0.0)
    with torch.no_grad():
        ours, theirs = (t._get_per_token_logps_and_entropies(t.model, ids, mask, 6, compute_entropy=True) for t in (trainer, plain))
        chunked = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, 6, batch_size=2)
    answered = mask[:, -6:].bool()
    for mine, other in zip(ours[:2], theirs[:2], strict=True):
        assert torch.allclose(mine, other, atol=1e-5) and not mine[~answered].any()
    assert torch.allclose(chunked[0], ours[0], atol=1e-6) and chunked[1] is None


def test_left_padding_moves_trls_positions_where_they_are_absolute_and_not_ours(fresh_tiny, tiny_tokenizer, tmp_path):
    ids, mask = ragged_batch()
    trainer = build("grpo", fresh_tiny("gpt2"), tiny_tokenizer, tmp_path)
    plain = plain_trainer("grpo", fresh_tiny("gpt2"), tiny_tokenizer, tmp_path)
    with torch.no_grad():
        ours, theirs = (t._get_per_token_logps_and_entropies(t.model, ids, mask, 6)[0] for t in (trainer, plain))
        alone = plain._get_per_token_logps_and_entropies(plain.model, ids[4:5, 2:], mask[4:5, 2:], 6)[0]  # a line whose prompt is padded by two
    assert torch.allclose(ours[0], theirs[0], atol=1e-5) and torch.allclose(ours[4], alone[0], atol=1e-5)
    assert not torch.allclose(theirs[4], alone[0], atol=1e-2)


def plain_trainer(kind, model, tokenizer, folder, **settings):
    config, _, trainer = KINDS[kind]
    args = config(str(folder), **{**QUIET, **settings})
    rows = [{"prompt": [{"role": "user", "content": "hi"}]}] * 4
    return trainer(model, letter_a, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def batch_of_trls(ids, mask, kind):
    advantages = torch.tensor([1.0, -0.5, 0.3, -1.2, 0.8, 0.1])
    inputs = {"prompt_ids": ids[:, :5], "prompt_mask": mask[:, :5], "completion_ids": ids[:, 5:], "completion_mask": mask[:, 5:],
              "advantages": advantages, "num_items_in_batch": mask[:, 5:].sum()}  # fmt: skip
    old = torch.linspace(-6, -4, 36).view(6, 6) * mask[:, 5:]
    return inputs | ({"old_per_token_logps": old, "ref_per_token_logps": old * 1.1} if kind == "grpo" else {"old_logps": old.sum(1)})


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_equal_trls_plain_ones_in_fewer_positions(kind, fresh_tiny, tiny_tokenizer, tmp_path):
    ids, mask = ragged_batch()
    settings = {"beta": 0.04, "entropy_coef": 0.1} if kind == "grpo" else {}
    trainer = build(kind, fresh_tiny("llama"), tiny_tokenizer, tmp_path, **settings)
    fresh_tiny("llama").save_pretrained(tmp_path / "base")  # whence trl takes its reference
    model = type(fresh_tiny("llama")).from_pretrained(tmp_path / "base")
    plain = plain_trainer(kind, model, tiny_tokenizer, tmp_path, **settings)
    found, positions = [], []
    for each in (trainer, plain):
        each.current_gradient_accumulation_steps = 1
        counted = each.model.get_input_embeddings().register_forward_hook(lambda module, args, out: positions.append(args[0].numel()))
        each.model.train()
        loss = each.compute_loss(each.model, batch_of_trls(ids, mask, kind))
        loss.backward()
        counted.remove()
        found.append((loss.item(), [p.grad for p in each.model.parameters()]))
    (ours, our_gradients), (theirs, their_gradients) = found
    assert ours == pytest.approx(theirs, rel=1e-5)
    for mine, other in zip(our_gradients, their_gradients, strict=True):
        assert (mine - other).abs().max() <= 1e-5 * other.abs().max()
    assert positions == [(5 + 5 + 3 + 1) + (3 + 0 + 4), 6 * 11]  # each prompt once, each answer but its last token


def test_a_batch_whose_answers_are_all_masked_gives_zeros_with_a_gradient(fresh_tiny, tiny_tokenizer, tmp_path):
    ids, mask = ragged_batch()
    mask[:, 5:] = 0
    trainer = build("grpo", fresh_tiny("llama"), tiny_tokenizer, tmp_path)
    logprobs, entropies, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, 6, compute_entropy=True)
    (logprobs.sum() + entropies.sum()).backward()
    assert not logprobs.any() and not entropies.any() and not trainer.model.get_input_embeddings().weight.grad.any()


# Answers


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_sampled_from_the_weights_as_they_are_and_end_with_their_end_token(kind, fresh_tiny, tiny_tokenizer, tmp_path):
    model = fresh_tiny("llama")
    trainer = build(kind, model, tiny_tokenizer, tmp_path, temperature=1e-5)
    rows = [trainer.rows[i]["prompt_ids"] for i in (0, 0, 1)]

    def greedy(ids):
        out = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=10, attention_mask=torch.ones(1, len(ids)))
        return out[0, len(ids) :].tolist()

    model.train()
    assert trainer._answers(rows) == [greedy(ids) for ids in rows] and model.training
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1.3)
    assert trainer._answers(rows) == [greedy(ids) for ids in rows]
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()[2] += 50  # <|im_end|>, whatever the state's sign
    answers = trainer._answers(rows * 6)
    assert all(2 not in answer[:-1] for answer in answers) and any(answer[-1] == 2 for answer in answers)


def test_the_noise_hangs_on_seed_step_and_turn(fresh_tiny, tiny_tokenizer, tmp_path):
    trainer = build("grpo", fresh_tiny("llama"), tiny_tokenizer, tmp_path, temperature=3.0)
    rows = [trainer.rows[0]["prompt_ids"]] * 4
    first, second = trainer._answers(rows), trainer._answers(rows)
    assert len({tuple(answer) for answer in first + second}) == 8  # four answers of a prompt differ, and so does a second turn of the step
    trainer.state.global_step = 1
    other = trainer._answers(rows)
    again = build("grpo", fresh_tiny("llama"), tiny_tokenizer, tmp_path, temperature=3.0)
    again.state.global_step = 1
    assert again._answers(rows) == other != first


def test_the_prompts_trained_on_are_the_rows_ids_and_rewards_get_messages_and_columns(fresh_tiny, tiny_tokenizer, tmp_path):
    rows = asked(tiny_tokenizer, ["<|im_end|> is text here", "hi"])
    rows[0]["columns"], rows[1]["columns"] = {"answer": "72"}, {"level": [1, "a"]}
    calls = []

    def reward(prompts, completions, answer, level, **others):
        calls.append((prompts, completions, answer, level))
        return [0.0] * len(prompts)

    two = {"num_generations": 2, "per_device_train_batch_size": 4}
    trainer = build("grpo", fresh_tiny("llama"), tiny_tokenizer, tmp_path, rewards=[reward], rows=rows, **two)
    trainer.model.train()
    batch = trainer._generate_and_score_completions([{"row": 0}, {"row": 0}, {"row": 1}, {"row": 1}])
    for line, row in zip([0, 2], rows, strict=True):
        assert batch["prompt_ids"][line][batch["prompt_mask"][line].bool()].tolist() == row["prompt_ids"]
    prompts, completions, answer, level = calls[0]
    assert prompts[0] == rows[0]["messages"] and all(isinstance(text, str) for text in completions)
    assert answer == ["72", "72", None, None] and level == [None, None, [1, "a"], [1, "a"]]
    own = tiny_tokenizer.apply_chat_template(rows[0]["messages"], add_generation_prompt=True)["input_ids"]
    assert rows[0]["prompt_ids"] != own  # trl would have read the text as the control token


@pytest.mark.parametrize("kind", KINDS)
def test_rewards_read_whole_characters_alone_of_an_answer_that_its_length_cuts(kind, fresh_tiny, byte_tokenizer, tmp_path):
    tokenizer, heard = byte_tokenizer(260), []
    hear = lambda prompts, completions, **columns: heard.extend(completions) or [0.0] * len(prompts)
    two = {"num_generations": 2, "per_device_train_batch_size": 2}
    trainer = build(kind, fresh_tiny("llama", vocab_size=260), tokenizer, tmp_path, rewards=[hear], rows=asked(tokenizer), **two)
    answers = [tokenizer("서울은")["input_ids"][:-1], tokenizer("a\ufffd")["input_ids"]]
    trainer._answers = lambda prompts: answers
    batch = trainer._generate_and_score_completions([{"row": 0}, {"row": 0}])
    assert heard == ["서울", "a\ufffd"] and batch["completion_ids"][0].tolist() == answers[0]
    assert tokenizer.batch_decode(answers, skip_special_tokens=True)[0] == "서울\ufffd"  # the tokenizer is as it was


def test_columns_are_whole():
    assert with_all_columns([{"columns": {"a": 1}}, {"columns": {"b": 2}}]) == [{"columns": {"a": 1, "b": None}}, {"columns": {"a": None, "b": 2}}]


# Training


@pytest.mark.parametrize("kind, adapter", [("grpo", True), *(pytest.param(*each, marks=pytest.mark.full) for each in (("grpo", False), ("rloo", False), ("rloo", True)))])
def test_the_share_of_a_letter_rises(kind, adapter, fresh_tiny, tiny_tokenizer, tmp_path):
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM") if adapter else None
    settings = {"learning_rate": 2e-2 if adapter else 1e-2, "max_steps": 20, "beta": 0.001, "lr_scheduler_type": "constant",
                "gradient_accumulation_steps": 2, "max_grad_norm": 1.0}  # fmt: skip
    trainer = build(kind, fresh_tiny("llama"), tiny_tokenizer, tmp_path, lora=lora, **settings)
    before = {name: p.clone() for name, p in trainer.model.named_parameters() if not p.requires_grad}
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "reward" in entry]
    rewards = [entry["rewards/letter_a/mean"] for entry in log]
    assert sum(rewards[-5:]) / 5 > 5 * max(sum(rewards[:5]) / 5, 0.01)
    assert log[0]["kl"] == pytest.approx(0, abs=1e-5) and log[-1]["kl"] > 0.1 and "rollout_seconds" in log[0]
    assert all(torch.equal(before[name], p) for name, p in trainer.model.named_parameters() if name in before)


def test_the_reference_is_a_copy_and_not_what_the_config_names(fresh_tiny, tiny_tokenizer, tmp_path):
    model = fresh_tiny("llama")
    model.config._name_or_path = "/nowhere"
    trainer = build("grpo", model, tiny_tokenizer, tmp_path, beta=0.1)
    assert trainer.beta == trainer.args.beta == 0.1 and trainer.ref_model is not model
    with torch.no_grad():
        transformers_model(trainer.model).get_output_embeddings().weight.zero_()
    assert trainer.ref_model.get_output_embeddings().weight.any() and not any(p.requires_grad for p in trainer.ref_model.parameters())
    assert build("grpo", fresh_tiny("llama"), tiny_tokenizer, tmp_path, beta=0.0).ref_model is None


def test_a_mixture_of_experts_that_trains_its_router_is_left_to_trl(tiny_tokenizer, tmp_path):
    config = AutoConfig.for_model(
        "mixtral", vocab_size=128, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=256, eos_token_id=2, pad_token_id=0, router_aux_loss_coef=0.02,
    )  # fmt: skip
    trainer = build("grpo", AutoModelForCausalLM.from_config(config), tiny_tokenizer, tmp_path, max_steps=1)
    trainer.train()
    assert not trainer.shares_prompts and "aux_loss" in trainer.state.log_history[0]
    plain = build("grpo", AutoModelForCausalLM.from_config(config), tiny_tokenizer, tmp_path, router_aux_loss_coef=0.0)
    assert plain.shares_prompts
    with pytest.raises(UserError, match="set --lora_r, --beta 0"):
        build("rloo", AutoModelForCausalLM.from_config(config), tiny_tokenizer, tmp_path, beta=0.1)


# Refused


@pytest.mark.parametrize("kind", KINDS)
def test_a_reward_that_is_no_number_stops_the_run_before_the_update(kind, fresh_tiny, tiny_tokenizer, tmp_path):
    model = fresh_tiny("llama")
    before = {name: p.clone() for name, p in model.named_parameters()}
    trainer = build(kind, model, tiny_tokenizer, tmp_path, rewards=[lambda prompts, completions, **columns: [math.nan] * len(prompts)], max_steps=2)
    with pytest.raises(UserError, match="returned nan for the completion"):
        trainer.train()
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ({"rewards": []}, {}, "give --reward"),
        ({}, {"per_device_train_batch_size": 32}, "a step answers 8 prompts"),
        ({}, {"max_completion_length": 240}, "more than the model's context of 256"),
        ({}, {"cast_lm_head_to_fp32": True}, "cast_lm_head_to_fp32"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_compute(settings, changes, message, fresh_tiny, tiny_tokenizer, tmp_path):
    with pytest.raises(UserError, match=message):
        build("grpo", fresh_tiny("llama"), tiny_tokenizer, tmp_path, **settings, **changes)


def test_a_column_that_trl_keeps_for_itself_is_refused(fresh_tiny, tiny_tokenizer, tmp_path):
    rows = [{**row, "columns": {"image": "a.png"}} for row in asked(tiny_tokenizer)]
    with pytest.raises(UserError, match="a column of the data is named image"):
        build("rloo", fresh_tiny("llama"), tiny_tokenizer, tmp_path, rows=rows)


# trl's inside, as SharedPrompt knows it


def test_trl_is_as_it_was_when_shared_prompts_were_written():
    assert version("trl").startswith("1.16.")
    pictures = ["pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles", "image_sizes",
                "token_type_ids", "mm_token_type_ids", "image_position_ids"]  # fmt: skip
    scored = ["self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy", "compute_aux_loss", *pictures]
    for trainer, turn in ((GRPOTrainer, ["num_generations", "has_tool_images"]), (RLOOTrainer, [])):
        names = lambda method: list(inspect.signature(inspect.unwrap(getattr(trainer, method))).parameters)
        assert names("_get_per_token_logps_and_entropies") == scored
        assert names("_generate_single_turn") == ["self", "prompt_ids", "images", "multimodal_fields", *turn]
        assert names("_tokenize_prompts") == ["self", "prompts"] and names("_generate_and_score_completions") == ["self", "inputs"]
        assert names("_prepare_inputs") == ["self", "generation_batch"]
    for stage in (GrpoTrainer, RlooTrainer):
        assert [base.__name__ for base in stage.__mro__[1:3]] == ["SharedPrompt", "CrashSafeCheckpoints"]
