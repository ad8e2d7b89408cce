"""A signal ends a run behind a checkpoint from which it goes on to the same weights; a second one ends it on the spot."""

import multiprocessing
import random
import signal
import threading

import pytest
import torch
from transformers import TrainerCallback, TrainingArguments

from seodang.infer.checkpoint.manifest import verify
from seodang.train.run import checkpoints
from seodang.train.run.callbacks import LOG, read_log
from seodang.train.run.checkpoints import complete_checkpoints
from seodang.train.stages.sft import sft_trainer

LEFT = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}


class Sent(TrainerCallback):
    """Send this process signals where a step has begun or ended, or training begins."""

    def __init__(self, at, *signals, step=0):
        def send(args, state, control, **kwargs):
            for each in signals if state.global_step == step else ():
                signal.raise_signal(each)

        setattr(self, at, send)


def trainer_of(fresh_tiny, tokenizer, folder, *callbacks, sample=None, **changes):
    generator = random.Random(0)
    rows = [[generator.randrange(3, 120) for _ in range(generator.randrange(5, 12))] for _ in range(12)]
    rows = [{"input_ids": ids, "labels": [-100, *ids[1:]]} for ids in rows]
    settings = {"num_train_epochs": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "save_strategy": "no", "logging_steps": 2}
    settings |= {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "learning_rate": 1e-2, "seed": 1}
    args = TrainingArguments(str(folder), **{**settings, **changes})
    model = fresh_tiny("llama", attention_dropout=0.1, num_hidden_layers=1)
    return sft_trainer(model, tokenizer, rows, args, eval_rows=rows[:4] if sample else None, sample=sample, callbacks=callbacks)


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def equal(ours, theirs):
    return all(torch.equal(value, weights(theirs)[name]) for name, value in weights(ours).items())


EPOCH_ENDS, WITHIN_ONE = ("on_step_end", 3), ("on_pre_optimizer_step", 4)
OFTEN, SELDOM = [(*EPOCH_ENDS, signal.SIGTERM), (*WITHIN_ONE, signal.SIGINT)], [(*EPOCH_ENDS, signal.SIGINT), (*WITHIN_ONE, signal.SIGTERM)]


@pytest.mark.parametrize(("at", "saved", "number"), [*OFTEN, *(pytest.param(*each, marks=pytest.mark.full) for each in SELDOM)])
def test_the_step_in_hand_is_finished_and_saved_and_the_run_goes_on_from_it(fresh_tiny, tiny_tokenizer, tmp_path, capfd, number, at, saved):
    whole = trainer_of(fresh_tiny, tiny_tokenizer, tmp_path / "whole")
    whole.train()
    stopped = trainer_of(fresh_tiny, tiny_tokenizer, tmp_path / "out", Sent(at, number, step=3))
    former = signal.getsignal(number)
    with pytest.raises(LEFT[number]) as left:
        stopped.train()
    assert signal.getsignal(number) is former
    assert number == signal.SIGINT or left.value.code == 143
    folder = tmp_path / "out" / f"checkpoint-{saved}"
    assert verify(folder)["step"] == saved and complete_checkpoints(folder.parent) == [folder]
    [line] = [line for line in capfd.readouterr().err.splitlines() if folder.name in line]
    assert line == f"step {saved} is saved in {folder}: resume from it to go on"
    resumed = trainer_of(fresh_tiny, tiny_tokenizer, tmp_path / "out")
    resumed.train(resume_from_checkpoint=str(folder))
    assert equal(resumed, whole) and resumed.state.global_step == whole.state.global_step == 6
    log = [(entry["step"], entry["loss"]) for entry in read_log(tmp_path / "out" / LOG) if "loss" in entry]
    assert [step for step, _ in log] == sorted({2, saved, 4, 6})  # what was learned since the last line is told as well


@pytest.mark.parametrize(("second", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_leaves_at_once(fresh_tiny, tiny_tokenizer, tmp_path, second, code):
    trainer = trainer_of(fresh_tiny, tiny_tokenizer, tmp_path, Sent("on_step_begin", signal.SIGINT, second, step=2))
    with pytest.raises(LEFT[second]) as left:
        trainer.train()
    assert trainer.state.global_step == 2 and not complete_checkpoints(tmp_path)
    assert not left.value.args if code == 130 else left.value.code == code
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_before_the_first_step_there_is_nothing_to_save(fresh_tiny, tiny_tokenizer, tmp_path, capfd):
    for step, resume, told in ((0, None, "its beginning"), (3, "checkpoint-3", f"step 3 is saved in {tmp_path}/checkpoint-3")):
        trainer = trainer_of(fresh_tiny, tiny_tokenizer, tmp_path, Sent("on_train_begin", signal.SIGTERM, step=step), Sent("on_step_end", signal.SIGINT, step=3))
        with pytest.raises(SystemExit):
            trainer.train(resume_from_checkpoint=resume and str(tmp_path / resume))
        assert trainer.state.global_step == step and told in capfd.readouterr().err
        if not resume:
            assert not complete_checkpoints(tmp_path)
            with pytest.raises(KeyboardInterrupt):
                trainer_of(fresh_tiny, tiny_tokenizer, tmp_path, Sent("on_step_end", signal.SIGINT, step=3)).train()
            before = (tmp_path / "checkpoint-3").stat().st_mtime_ns
    assert (tmp_path / "checkpoint-3").stat().st_mtime_ns == before


def test_a_signal_while_a_checkpoint_is_written_waits_for_it(fresh_tiny, tiny_tokenizer, tmp_path, monkeypatch):
    write_manifest = checkpoints.write_manifest

    def interrupted(folder, **facts):
        signal.raise_signal(signal.SIGINT)
        write_manifest(folder, **facts)

    monkeypatch.setattr(checkpoints, "write_manifest", interrupted)
    trainer = trainer_of(fresh_tiny, tiny_tokenizer, tmp_path, save_strategy="steps", save_steps=2)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.state.global_step == 2 and [verify(p)["step"] for p in complete_checkpoints(tmp_path)] == [2]
    with pytest.raises(KeyboardInterrupt):
        trainer.save_final()
    assert verify(tmp_path)["step"] == 2


def test_a_signal_at_the_very_end_is_heeded_too(fresh_tiny, tiny_tokenizer, tmp_path, capfd):
    trainer = trainer_of(fresh_tiny, tiny_tokenizer, tmp_path, Sent("on_train_end", signal.SIGTERM, step=6))
    with pytest.raises(SystemExit):
        trainer.train()
    assert verify(tmp_path / "checkpoint-6")["step"] == 6 and f"step 6 is saved in {tmp_path}/checkpoint-6" in capfd.readouterr().err
    resumed = trainer_of(fresh_tiny, tiny_tokenizer, tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert equal(resumed, trainer) and resumed.state.global_step == 6


@pytest.mark.parametrize("strategy", ["steps", pytest.param("epoch", marks=pytest.mark.full)])
def test_an_evaluation_is_left_at_once_and_done_by_the_run_that_goes_on(fresh_tiny, tiny_tokenizer, tmp_path, strategy):
    how = {"eval_strategy": strategy, "save_strategy": strategy, "eval_steps": 3, "save_steps": 3, "load_best_model_at_end": True, "metric_for_best_model": "eval_number"}
    calls = []

    def measured(interrupted):
        def sample(model):
            calls.append(interrupted)
            if interrupted:
                torch.rand(3)
                signal.raise_signal(signal.SIGTERM)
                pytest.fail("went on measuring")
            return {"number": float(next(iter(model.parameters())).sum())}

        return sample

    whole = trainer_of(fresh_tiny, tiny_tokenizer, tmp_path / "whole", sample=measured(False), **how)
    whole.train()
    with pytest.raises(SystemExit):
        trainer_of(fresh_tiny, tiny_tokenizer, tmp_path / "out", sample=measured(True), **how).train()
    assert [p.name for p in complete_checkpoints(tmp_path / "out")] == ["checkpoint-3"]
    resumed = trainer_of(fresh_tiny, tiny_tokenizer, tmp_path / "out", sample=measured(False), **how)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert calls == [False, False, True, False, False]
    found = [[(e["step"], e["eval_loss"], e["eval_number"]) for e in read_log(tmp_path / name / LOG) if "eval_loss" in e] for name in ("whole", "out")]
    assert found[0] == found[1] and [step for step, *_ in found[0]] == [3, 6]
    assert equal(resumed, whole) and resumed.state.best_global_step == whole.state.best_global_step


def test_workers_that_the_signal_ends_as_well_are_not_missed(fresh_tiny, tiny_tokenizer, tmp_path):
    class SentToAll(Sent):
        def on_optimizer_step(self, args, state, control, **kwargs):
            for worker in multiprocessing.active_children() if state.global_step == 3 else ():
                worker.kill()  # torch raises in the middle of whatever this process does then
                worker.join()

    with pytest.raises(SystemExit):
        trainer_of(fresh_tiny, tiny_tokenizer, tmp_path / "in", SentToAll("on_pre_optimizer_step", signal.SIGTERM, step=3), dataloader_num_workers=1).train()
    assert [verify(p)["step"] for p in complete_checkpoints(tmp_path / "in")] == [4]

    def ended(*args):
        if trainer.state.global_step == 3:
            signal.raise_signal(signal.SIGTERM)
            raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
        return type(trainer).get_batch_samples(trainer, *args)

    trainer = trainer_of(fresh_tiny, tiny_tokenizer, tmp_path / "between")
    trainer.get_batch_samples = ended
    with pytest.raises(SystemExit):
        trainer.train()
    assert [verify(p)["step"] for p in complete_checkpoints(tmp_path / "between")] == [3]


def test_handlers_that_are_not_ours_to_change_stay(fresh_tiny, tiny_tokenizer, tmp_path):
    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append([signal.getsignal(each) for each in LEFT])

    seen, former = [], signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a command that a shell has put into the background
    try:
        trainer_of(fresh_tiny, tiny_tokenizer, tmp_path, Look(), max_steps=1).train()
        assert seen[0][0] is signal.SIG_IGN and seen[0][1] not in (signal.SIG_IGN, signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGINT, former)
    thread = threading.Thread(target=trainer_of(fresh_tiny, tiny_tokenizer, tmp_path, Look(), max_steps=1).train)
    thread.start()
    thread.join()
    assert seen[1] == [former, signal.SIG_DFL]


SIGNALLED = """
import os, signal, sys
from seodang.recipes import sft
from seodang.train.run.callbacks import RunLog

def on_step_end(self, args, state, control, **kwargs):
    if state.global_step == 3 and os.environ["RANK"] == "1":
        signal.raise_signal(signal.SIGTERM)

wanted = 0
if "--signalled" in sys.argv:
    sys.argv.remove("--signalled")
    RunLog.on_step_end, wanted = on_step_end, 143
code = sft.main()
print("exit code", code)
sys.exit(code != wanted)
"""


@pytest.mark.full
def test_one_process_that_is_signalled_stops_both(fresh_tiny, tiny_tokenizer, tmp_path, run_script):
    base, data, script = tmp_path / "base", tmp_path / "data.jsonl", tmp_path / "signalled.py"
    fresh_tiny("llama", attention_dropout=0.1).save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    data.write_text("".join(f'{{"prompt": "say {letter}", "completion": "{letter * 3}"}}\n' for letter in "abcdefgh"))
    script.write_text(SIGNALLED)
    words = ["--model", base, "--data", data, "--device", "cpu", "--dtype", "float32", "--max_steps", 5, "--per_device_train_batch_size", 2,
             "--save_strategy", "no", "--report_to", "none", "--logging_steps", 1]  # fmt: skip
    written = run_script(script, *words, "--output_dir", tmp_path / "out", "--signalled", processes=2)
    assert written.count(f"step 3 is saved in {tmp_path / 'out' / 'checkpoint-3'}") == 1
    assert written.count("exit code 143") == 2 and verify(tmp_path / "out" / "checkpoint-3")["step"] == 3
    run_script(script, *words, "--output_dir", tmp_path / "out", processes=2)
    run_script(script, *words, "--output_dir", tmp_path / "whole", processes=2)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
