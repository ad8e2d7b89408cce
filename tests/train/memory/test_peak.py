"""What a step on shapes comes to, beside what the same step takes with values: tensors kept by autograd, and what torch's allocator was asked for."""

import copy

import pytest
import torch
from peft import LoraConfig
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from seodang.infer.checkpoint.without_weights import FOUR_BITS, load_without_weights, model_of_shapes, weight_bytes
from seodang.recipes.options.training import Arguments
from seodang.train.memory.allocations import Allocations, give_fakes
from seodang.train.memory.peak import cache_bytes, measure, memory_plan
from seodang.train.memory.sharding import Layout
from seodang.train.stages.dpo import dpo_trainer
from seodang.train.stages.ppo import ppo_trainer
from seodang.train.stages.ppo_settings import PpoSettings
from seodang.train.stages.sft import sft_trainer

VOCAB, HIDDEN, MIDDLE, LAYERS = 128, 32, 64, 2
WEIGHTS = VOCAB * HIDDEN + LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * 16 + 3 * HIDDEN * MIDDLE + 2 * HIDDEN) + HIDDEN  # 4 heads of 8, 2 of keys; the head is tied
ROWS = [{"input_ids": [5 + i] * 64, "labels": [-100] * 32 + [5 + i] * 32} for i in range(4)]


@pytest.fixture
def folder(fresh_tiny, tmp_path):
    model = fresh_tiny("llama")
    model.config.tie_word_embeddings = True
    model.config.save_pretrained(tmp_path / "config")
    return str(tmp_path / "config")


@pytest.fixture(autouse=True)
def built():
    """Models are made of shapes in each test, and no longer."""
    from seodang.infer.checkpoint import without_weights

    made = load_without_weights()
    yield made
    without_weights._BUILT.set(None)


def shapes(folder, dtype=torch.float32, **more):
    return model_of_shapes(folder, AutoModelForCausalLM, dtype, more)


def arguments(tmp_path, **more):
    return Arguments(**{"output_dir": str(tmp_path / "out"), "use_cpu": True, "report_to": "none", "per_device_train_batch_size": 4, **more})


def lora():
    return LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


def test_weights_gradients_and_states_are_counted_by_hand(folder, tmp_path, tokenizer):
    measured = measure(sft_trainer(shapes(folder), tokenizer, ROWS, arguments(tmp_path)))
    assert measured.count == measured.trained == WEIGHTS
    assert (measured.gradients, measured.optimizer.masters) == (4 * WEIGHTS, 0)
    assert measured.parameters - 4 * WEIGHTS == 2 * 4 * 4  # the rotary frequencies, 4 of them, twice
    assert measured.optimizer.state - 2 * 4 * WEIGHTS in (0, 4 * 20)  # and a float32 of the number of steps, a parameter
    plan = memory_plan(measured, Layout())
    step = plan.moments["optimizer"]
    assert step["gradients"] == 4 * WEIGHTS and plan.moments["forward"]["gradients"] == 0


def test_bfloat16_keeps_float32_masters_and_their_gradients_take_the_place_of_the_others(folder, tmp_path, tokenizer):
    measured = measure(sft_trainer(shapes(folder, torch.bfloat16), tokenizer, ROWS, arguments(tmp_path)))
    assert (measured.gradients, measured.optimizer.masters) == (2 * WEIGHTS, 4 * WEIGHTS)
    at_most = max(sum(moment) for moment in measured.optimizer.moments)
    assert 4 * WEIGHTS < at_most <= 6 * WEIGHTS


def test_an_adapter_trains_alone(folder, tmp_path, tokenizer):
    measured = measure(sft_trainer(shapes(folder), tokenizer, ROWS, arguments(tmp_path), lora=lora()))
    sides = 2 * (HIDDEN + HIDDEN) + 2 * (HIDDEN + 16) + 3 * (HIDDEN + MIDDLE)  # query and output, key and value, the feed-forward layers
    assert measured.trained == LAYERS * 4 * sides
    assert measured.gradients == 4 * measured.trained
    assert 8 * measured.trained <= measured.optimizer.state <= 8 * measured.trained + 4 * 28


def test_a_base_in_four_bits_takes_half_a_byte_a_weight_and_a_scale_a_block(folder):
    model = shapes(folder, quantization_config=FOUR_BITS)
    linear = LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * 16 + 3 * HIDDEN * MIDDLE)
    rest = WEIGHTS - linear
    assert weight_bytes(model) == linear // 2 + linear // 64 * 4 + 4 * rest + 2 * 4 * 4


def with_values(folder, tokenizer, args, adapter=None):
    """The same trainer over random weights."""
    config = AutoConfig.from_pretrained(folder)
    return sft_trainer(AutoModelForCausalLM.from_config(config, dtype=torch.float32), tokenizer, ROWS, args, lora=adapter)


def one_step(trainer):
    batch = trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset)))
    trainer.model.train()
    return lambda: trainer.compute_loss(trainer.model, batch)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_activations_are_what_autograd_saves(folder, tmp_path, tokenizer, checkpointed):
    args = arguments(tmp_path, activation_checkpointing=checkpointed)
    measured = measure(sft_trainer(shapes(folder), tokenizer, ROWS, args))
    trainer = with_values(folder, tokenizer, args)
    if checkpointed:
        trainer.model.activation_checkpointing_enable()
    loss, kept = one_step(trainer), {}
    standing = {p.untyped_storage().data_ptr() for p in (*trainer.model.parameters(), *trainer.model.buffers())}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in standing:
            kept[storage.data_ptr()] = storage.nbytes(), storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        value = loss()
    saved = sum(size for size, _ in kept.values())
    assert value.isfinite() and saved > 100_000
    assert measured.activations == pytest.approx(saved, rel=0.1 if checkpointed else 0.03)  # a checkpoint keeps its inputs by itself too


@pytest.mark.parametrize("adapter", [None, lora()])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_peak_of_both_passes_is_what_the_allocator_was_asked_for(folder, tmp_path, tokenizer, checkpointed, adapter):
    args = arguments(tmp_path, activation_checkpointing=checkpointed)
    measured = measure(sft_trainer(shapes(folder), tokenizer, ROWS, args, lora=copy.deepcopy(adapter)))
    trainer = with_values(folder, tokenizer, args, adapter)
    if checkpointed:
        trainer.model.activation_checkpointing_enable()
    loss = one_step(trainer)
    loss().backward()  # what is set up once
    trainer.model.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        loss().backward()
    held = peak = 0
    for event in told.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert max(sum(moment) for moment in (*measured.forward, *measured.backward)) == pytest.approx(peak, rel=0.03)


def test_smaller_rows_take_less_and_accumulated_gradients_stay(folder, tmp_path, tokenizer):
    one = measure(sft_trainer(shapes(folder), tokenizer, ROWS, arguments(tmp_path, per_device_train_batch_size=1)))
    four = measure(sft_trainer(shapes(folder), tokenizer, ROWS, arguments(tmp_path, gradient_accumulation_steps=2)))
    head = 4 * VOCAB * HIDDEN  # whose gradient is kept with the loss
    assert four.activations - head == pytest.approx(4 * (one.activations - head), rel=0.03)
    plan = memory_plan(four, Layout())
    assert plan.moments["forward"]["gradients"] == 4 * WEIGHTS and plan.moments["backward"]["gradients"] == 4 * WEIGHTS


def test_a_reference_counts_where_it_is_kept_and_not_where_it_has_scored_before(folder, tmp_path, tokenizer):
    rows = [{"prompt_ids": [5] * 20, "branches": [[7] * 12, [9] * 12], "ranks": [0, 1]} for _ in range(4)]
    own = weight_bytes(shapes(folder))
    for when, beside in (("step", own), ("before", 0)):
        trainer = dpo_trainer(shapes(folder), tokenizer, rows, arguments(tmp_path), reference_time=when)
        assert measure(trainer).beside == beside


def test_ppo_keeps_a_reference_a_critic_and_a_cache_for_its_answers(folder, tmp_path, tokenizer):
    rows = [{"prompt_ids": [5] * 20, "messages": [{"role": "user", "content": "a"}], "columns": {}} for _ in range(8)]
    settings = PpoSettings(rollouts=16, max_new_tokens=12)
    critic = model_of_shapes(folder, AutoModelForSequenceClassification, torch.float32, {"num_labels": 1})
    reward = lambda prompts, completions: [0.0] * len(completions)
    trainer = ppo_trainer(shapes(folder), tokenizer, rows, reward, arguments(tmp_path), settings, value_model=critic)
    measured = measure(trainer)
    assert measured.trained == 2 * WEIGHTS + HIDDEN  # a head of one label on layers of its own
    assert measured.beside == 4 * WEIGHTS + 2 * 4 * 4
    assert measured.cache == 16 * (20 + 12) * (2 * LAYERS * 2 * 8 * 4)  # keys and values of two heads of 8
    assert "rollout" in memory_plan(measured, Layout(way="ddp")).moments


def test_the_bytes_of_a_position_in_the_cache():
    config = AutoConfig.for_model("llama", hidden_size=4096, num_attention_heads=32, num_key_value_heads=8, num_hidden_layers=32)
    assert cache_bytes(config, torch.bfloat16) == 128 * 1024  # Llama-3.1-8B: 2 x 32 layers x 8 heads x 128 x 2 bytes


def test_allocations_live_as_long_as_their_tensors():
    layer = torch.nn.Linear(100, 200, bias=False, device="meta")
    give_fakes([layer], torch.device("cpu"))
    allocations = Allocations()
    allocations.knows([layer.weight])
    x = torch.empty(10, 100)
    with allocations:
        first = layer(x)
        assert allocations.others == 10 * 200 * 4
        second = first * 2
        del first
        assert allocations.others == 10 * 200 * 4
        assert second.sum().item() == 1  # whatever is asked for
    assert [moment.others for moment in allocations.moments] == [8000, 16000]
