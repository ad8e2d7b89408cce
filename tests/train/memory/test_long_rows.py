"""A row of 32,768 tokens, all learned from, over a vocabulary of 49,152: what a process takes for it, beside the plan."""

import json
import os
import subprocess
import sys

import pytest

STEP = """
import gc, json, sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
from seodang.infer.checkpoint.without_weights import load_without_weights, shapes_by
from seodang.recipes.options.training import Arguments
from seodang.train.memory.peak import measure
from seodang.train.stages.sft import sft_trainer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from tokenizers import Tokenizer, models
folder, checkpointing, length = sys.argv[1], sys.argv[2] == "yes", 32768
config = LlamaConfig(
    vocab_size=49152, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=length,
    tie_word_embeddings=True,
)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"</s>": 0}, unk_token="</s>")), eos_token="</s>")
rows = [{"input_ids": [7 * i % 49000 for i in range(n)], "labels": [7 * i % 49000 for i in range(n)]} for n in (600, length)]
args = Arguments(output_dir=folder, use_cpu=True, report_to="none", per_device_train_batch_size=1, activation_checkpointing=checkpointing)
def status(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))
def step(trainer, row):
    trainer.model.zero_grad(set_to_none=True)
    loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(trainer.data_collator([row])))
    loss.backward()
    return loss.item()
trainer = sft_trainer(LlamaForCausalLM(config), tokenizer, rows, args)
if checkpointing:
    trainer.model.activation_checkpointing_enable()
step(trainer, rows[0])
trainer.model.zero_grad(set_to_none=True)
gc.collect()
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
loss = step(trainer, rows[1])
taken = status("VmHWM") - before
load_without_weights()
measured = measure(sft_trainer(shapes_by(config, AutoModelForCausalLM, torch.float32), tokenizer, rows, args))
planned = max(sum(moment) for moment in (*measured.forward, *measured.backward))
print(json.dumps({"taken": taken, "planned": planned, "loss": loss}))
"""


@pytest.mark.full
@pytest.mark.parametrize("checkpointing", ["no", "yes"])
def test_a_long_row_takes_what_is_planned_and_no_matrix_of_its_logits_or_of_who_sees_whom(checkpointing, tmp_path):
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 16), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", STEP, str(tmp_path), checkpointing], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    print(told)
    assert told["taken"] == pytest.approx(told["planned"], rel=0.1)
    assert told["taken"] < 32768 * 32768 / 2  # bytes: half of a mask of bytes, a twelfth of whole float32 logits
    assert 10 < told["loss"] < 11.5  # of a uniform guess it is log 49,152 = 10.8
