"""Training by blocks: what each block sees is what it sees when it is spoken, by plain passes and by the engine's own runner."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from seodang.data.errors import UserError
from seodang.data.packing import pack
from seodang.infer import SamplingParams, generate
from seodang.infer.checkpoint.load import load
from seodang.infer.diffusion.schedule import blocks_of
from seodang.infer.runners.open import open_runner
from seodang.infer.runners.paradigm import Diffusion, declare, diffusion_of
from seodang.train.diffusion.canvas import Canvas, canvas_length
from seodang.train.diffusion.collator import DenoisingCollator
from seodang.train.diffusion.noisy_record import noisy_record
from seodang.train.diffusion.objective import DenoisingObjective
from seodang.train.diffusion.order import DRAWN
from seodang.train.diffusion.trainer import diffusion, diffusion_trainer
from seodang.train.run.checkpoints import find_resume

from .by_blocks import block_logits
from .test_collator import MASK as HIDDEN
from .test_collator import Table
from .test_trainer import MASK, StopAt, arguments, losses, made, rows

N = 3
KINDS = [Diffusion(MASK, shift, "block_causal", N) for shift in (0, 1)]
CANVAS = Canvas(filling=0, ends=(2, 0), multiple=N)
PLAIN = DenoisingObjective(max_weight=0, crop=False)


def data(count=6):
    return list(CANVAS.rows(rows(count)))


def drawn(some):
    return [{**row, DRAWN: (0, place)} for place, row in enumerate(some)]


def records(batch):
    """Of each masked record of a batch: its prompt, its answer, and the answer with its masks."""
    lengths = batch["cu_seq_lens_q"].diff().tolist()
    parts = zip(*(batch[name][0].split(lengths) for name in ("input_ids", "labels")), batch["causal_lengths"].tolist(), batch["copied_lengths"].tolist(), strict=True)
    return [(ids[:prompt].tolist(), labels[-copied:].tolist(), ids[-copied:].tolist()) for ids, labels, prompt, copied in parts if copied]


def by_blocks(model, says, batch, weights):
    """The weighted cross entropies of all masked tokens, each block by a pass of its own; `weights` are those of each record's answer."""
    total = 0.0
    for (prompt, answer, noisy), own in zip(records(batch), weights, strict=True):
        for block in blocks_of(len(answer), N):
            masked = [noisy[place] == MASK for place in block]
            logits = block_logits(model, says, prompt, answer, block, masked)
            targets = torch.tensor([answer[place] if hidden else -100 for place, hidden in zip(block, masked, strict=True)])
            total = total + (torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="none") * own[block.start : block.stop]).sum()
    return total


def left_to_right(model, some, weight):
    """The weighted cross entropies of the answers, each row read causally."""
    total = 0.0
    for row in some:
        logits = model(torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1]
        total = total + weight * torch.nn.functional.cross_entropy(logits, torch.tensor(row["labels"][1:]), ignore_index=-100, reduction="sum")
    return total


@pytest.mark.parametrize("says", KINDS, ids=["own place", "shifted"])
@pytest.mark.parametrize("objective", [PLAIN, replace(PLAIN, weighting="cart", complementary=True, co_loss=0.5)], ids=["1/t", "cart, both ways of speaking"])
def test_loss_and_gradients_are_those_of_each_block_alone(fresh_tiny, tiny_tokenizer, tmp_path, says, objective):
    ours, plain, some = made(fresh_tiny, says=says).double(), made(fresh_tiny, says=says).double(), data()
    trainer = diffusion_trainer(ours, tiny_tokenizer, some, arguments(tmp_path), objective, canvas=CANVAS)
    batch = trainer.data_collator(drawn(some))
    unshifted = replace(trainer.data_collator, diffusion=KINDS[0])(drawn(some))  # there a weight stands where its mask does
    parts = zip(unshifted["weights"][0].split(unshifted["cu_seq_lens_q"].diff().tolist()), unshifted["copied_lengths"].tolist(), strict=True)
    weights = [own[-copied:] for own, copied in parts if copied]
    plain.set_attn_implementation("eager")
    expected = by_blocks(plain, says, batch, weights)
    if objective.co_loss:
        expected = expected + left_to_right(plain, some, objective.co_loss * 2)  # every token is counted twice
    expected = expected / sum(label != -100 for row in some for label in row["labels"]) / (1 + objective.complementary)
    expected.backward()
    loss = ours(**batch).loss
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6) and loss.item() > 1
    for (name, p), q in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-6, rtol=1e-5) and q.grad.abs().max() > 1e-4, name


@pytest.mark.parametrize("says", KINDS, ids=["own place", "shifted"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_logits_are_those_of_the_engines_runner_that_keeps_finished_blocks(fresh_tiny, tiny_tokenizer, tmp_path, says, kind):
    model, some = made(fresh_tiny, kind, says).double().eval(), data(4)
    trainer = diffusion_trainer(model, tiny_tokenizer, some, arguments(tmp_path), replace(PLAIN, eval_draws=2), canvas=CANVAS)
    batch = trainer.data_collator.held_out(some, range(4))
    with torch.no_grad():
        trained = iter(model(**batch).losses.tolist())
    runner = open_runner(model)
    for prompt, answer, noisy in records(batch):
        slot, found = runner.allocate(), []
        before = runner.forward([slot], [prompt], [1])
        runner.attend_both_ways(slot, True)
        for block in blocks_of(len(answer), N):
            own = [noisy[place] for place in block]
            [copy] = runner.fork([slot])
            logits = runner.forward([copy], [own], [len(own)])
            runner.release([copy])
            if says.shift:
                logits = torch.cat([before, logits[:-1]])
            found += [-logits[place].log_softmax(-1)[answer[block.start + place]].item() for place, id in enumerate(own) if id == MASK]
            before = runner.forward([slot], [[answer[place] for place in block]], [1])
        runner.release([slot])
        in_order = sorted_by_reading(found, noisy) if says.shift else found
        assert found and in_order == pytest.approx(list(itertools.islice(trained, len(found))), rel=1e-6)


def sorted_by_reading(values, noisy):
    """Values of masked tokens in the order that these are read in under a shift: the first of each block in the clean blocks, which come first."""
    places = [place for place, id in enumerate(noisy) if id == MASK]
    return [value for _, value in sorted(zip(places, values, strict=True), key=lambda each: (each[0] % N > 0, each[0]))]


def test_a_block_sees_finished_blocks_and_no_other_masks(fresh_tiny, tiny_tokenizer, tmp_path):
    says = KINDS[0]
    model = made(fresh_tiny, says=says).double().eval()
    prompt, answer = [20, 21], [*range(30, 39)]
    trainer = diffusion_trainer(model, tiny_tokenizer, data(), arguments(tmp_path), PLAIN, canvas=CANVAS)
    batch = trainer.data_collator.held_out([{"input_ids": prompt + answer, "labels": [-100, -100, *answer]}], [0])
    size = 2 + 6 + 9  # the prompt, two clean blocks, three copies
    ids, layout = batch["input_ids"][:, :size], {"position_ids": batch["position_ids"][:, :size], "record_lengths": (size,), "causal_lengths": (2,)}
    assert layout["position_ids"][0].tolist() == [*range(8), *range(2, 11)] and ids[0, :8].tolist() == prompt + answer[:6]

    def heard(place):
        """Which of the parts (prompt, clean blocks, copies) hear of another token at a place."""
        other = ids.clone()
        other[0, place] = 77
        with torch.no_grad():
            one, two = (model(each, **layout, copied_lengths=(9,), block_length=N, use_cache=False).logits[0] for each in (ids, other))
        return [not torch.equal(*parts) for parts in zip(one.split([2] + [3] * 5), two.split([2] + [3] * 5), strict=True)]

    assert heard(0) == [True, True, True, True, True, True]
    assert heard(2) == heard(4) == [False, True, True, False, True, True]
    assert heard(5) == heard(7) == [False, False, True, False, False, True]
    assert [heard(place) for place in (8, 11, 16)] == [[False] * 3 + [number == own for number in range(3)] for own in range(3)]


@pytest.mark.parametrize("says", KINDS, ids=["own place", "shifted"])
def test_records_of_a_packed_row_learn_as_if_alone(fresh_tiny, tiny_tokenizer, tmp_path, says):
    model, some = made(fresh_tiny, says=says).double().eval(), data(5)
    trainer = diffusion_trainer(model, tiny_tokenizer, some, arguments(tmp_path), PLAIN, canvas=CANVAS)
    [packed] = pack(some, 200)
    whole = trainer.data_collator(drawn([packed]))
    borders = whole["cu_seq_lens_q"].tolist()
    with torch.no_grad():
        together = model(**whole).losses
        alone = []
        for number, (start, end) in enumerate(itertools.pairwise(borders)):
            part = {name: whole[name][:, start:end] for name in ("input_ids", "labels", "position_ids", "targets", "weights")}
            part |= {name: whole[name][number : number + 1] for name in ("causal_lengths", "copied_lengths")}
            alone.append(model(**part, cu_seq_lens_q=torch.tensor([0, end - start]), block_length=N).losses)
    assert len(alone) == 5 and torch.allclose(together, torch.cat(alone), atol=1e-9)


# The noise


def test_each_block_has_a_time_of_its_own_and_weighs_by_it():
    answer = list(range(10, 10 + 8 * 40))
    says = Diffusion(MASK, 0, "block_causal", 40)
    made = DenoisingCollator(PLAIN, says, replace(CANVAS, multiple=40))
    batch = made(drawn([{"input_ids": [60, *answer], "labels": [-100, *answer]}]))
    [(_, _, noisy)] = records(batch)
    weights = [set(part.tolist()) - {0.0} for part in batch["weights"][0, -320:].split(40)]
    shares = [sum(id == MASK for id in noisy[block.start : block.stop]) / 40 for block in blocks_of(320, 40)]
    times = [1 / own.pop() for own in weights if own]
    assert sorted(int(8 * time) for time in times) == list(range(8 - len(times), 8)) and len(times) >= 7  # one in each stratum, the lowest without a mask perhaps
    assert all(abs(share - time) < 0.3 for share, time in zip([share for share in shares if share], times, strict=True))


def test_cart_counts_the_clean_blocks_before_and_nothing_behind():
    says = Diffusion(MASK, 0, "block_causal", 2)
    made = DenoisingCollator(replace(PLAIN, weighting="cart", cart_p=0.5), says, replace(CANVAS, multiple=2))
    seen = set()
    for place in range(24):
        batch = made([{"input_ids": [60, 10, 11, 12, 13], "labels": [-100, 10, 11, 12, 13], DRAWN: (0, place)}])
        [(_, _, noisy)] = records(batch)
        own = batch["weights"][0, -4:].tolist()
        # half of p times: 1 of a neighbour, 1/2 of the next, ...: on the left the prompt and clean blocks, on the right what is left of the block
        assert own[:2] == {(MASK, MASK): [0.25, 0.125], (10, MASK): [0, 0.375], (MASK, 11): [0.5, 0], (10, 11): [0, 0]}[tuple(noisy[:2])]
        assert own[2:] == {(MASK, MASK): [0.4375, 0.21875], (12, MASK): [0, 0.46875], (MASK, 13): [0.6875, 0], (12, 13): [0, 0]}[tuple(noisy[2:])]
        seen |= {tuple(noisy[:2]), tuple(noisy[2:])}
    assert len(seen) == 7  # both hidden is the same in both


@pytest.mark.parametrize(("schedule", "complementary"), [("linear", False), ("cosine", True)])
def test_the_weighted_loss_is_an_unbiased_estimate_of_the_sum_of_the_blocks_bounds(schedule, complementary):
    """A table of distributions in place of a model; later blocks stand in it as masks. The bound of a block is that of every mask by its Beta integral."""
    table, answer, exact = Table(), [5, 7, 6], 0.0
    for begin, end in ((0, 2), (2, 3)):
        n = end - begin
        for hidden in itertools.product((False, True), repeat=n):
            if k := sum(hidden):
                context = [*answer[:begin], *(HIDDEN if each else answer[begin + place] for place, each in enumerate(hidden)), *[HIDDEN] * (3 - end)]
                exact += math.factorial(k - 1) * math.factorial(n - k) / math.factorial(n) * sum(table.loss(context, answer)[:k])
    made = DenoisingCollator(replace(PLAIN, schedule=schedule, complementary=complementary), Diffusion(HIDDEN, 0, "block_causal", 2), replace(CANVAS, multiple=1), strata=8)
    estimates = []
    for start in range(0, 1600, 8):
        batch = made([{"input_ids": [60, *answer], "labels": [-100, *answer], DRAWN: (0, start + i)} for i in range(8)])
        loss, found = 0.0, records(batch)
        weights = [own[-3:].tolist() for own in batch["weights"][0].split(batch["cu_seq_lens_q"].diff().tolist())]
        for (_, _, noisy), own in zip(found, weights, strict=True):
            for begin, end in ((0, 2), (2, 3)):
                context = [*answer[:begin], *noisy[begin:end], *[HIDDEN] * (3 - end)]
                asked = [weight for weight, id in zip(own[begin:end], noisy[begin:end], strict=True) if id == HIDDEN]
                loss += sum(weight * each for weight, each in zip(asked, table.loss(context, answer), strict=False))
        estimates.append(loss / len(found))
    mean = sum(estimates) / len(estimates)
    error = math.sqrt(sum((each - mean) ** 2 for each in estimates)) / len(estimates)
    assert error < 0.05 * exact and abs(mean - exact) < 3 * error


def test_what_a_row_is_filled_up_with_is_cropped_by_whole_blocks():
    row = {"input_ids": [60, 5, 6, 7, 2, *[0] * 8], "labels": [-100, 5, 6, 7, 2, *[0] * 8]}
    made = DenoisingCollator(replace(PLAIN, crop=True), KINDS[0], CANVAS, strata=4)
    lengths = [len(records(made([{**row, DRAWN: (0, place)}]))[0][1]) for place in range(60)]
    assert {*lengths} == {6, 9, 12} and min(map(lengths.count, (6, 9, 12))) > 8


def test_answers_are_filled_up_to_whole_blocks():
    assert [canvas_length(KINDS[0]), canvas_length(KINDS[0], 9), canvas_length(Diffusion(MASK)), canvas_length(Diffusion(MASK), 7)] == [3, 9, 32, 7]
    with pytest.raises(UserError, match="canvas 8 is not made of whole blocks of block_length 3: make it a multiple, or leave it out"):
        canvas_length(KINDS[0], 8)


def test_an_answer_of_one_block_lies_as_one_without_blocks():
    one = noisy_record([7, 8], [9, 10], [True, False], Diffusion(MASK, 1, "block_causal", 2))
    assert one == noisy_record([7, 8], [9, 10], [True, False], Diffusion(MASK, 1, "prompt_causal"))
    assert (one.input_ids, one.position_ids, one.read_at, one.causal) == ([7, 8, MASK, 10], [0, 1, 2, 3], [1, 2], 2)


# The run


def test_a_canvas_of_parts_of_blocks_and_an_attention_that_knows_none_are_refused(fresh_tiny, tiny_tokenizer, tmp_path):
    bloom = AutoModelForCausalLM.from_config(AutoConfig.for_model("bloom", vocab_size=128, hidden_size=32, n_layer=1, n_head=4))
    declare(bloom.config, KINDS[0])
    with pytest.raises(UserError, match="bloom has an attention of its own, which cannot do attention block_causal"):
        diffusion_trainer(bloom, tiny_tokenizer, data(), arguments(tmp_path), canvas=CANVAS)
    with pytest.raises(UserError, match="canvas 4 is not made of whole blocks"):
        diffusion_trainer(made(fresh_tiny, says=KINDS[0]), tiny_tokenizer, data(), arguments(tmp_path), canvas=replace(CANVAS, multiple=4))


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit_and_its_checkpoint_says_what_it_is(fresh_tiny, tiny_tokenizer, tmp_path):
    def run(folder, resume=None, callbacks=(), **changes):
        torch.manual_seed(0)
        args = arguments(tmp_path / folder, max_steps=4, per_device_train_batch_size=2, gradient_accumulation_steps=2, **changes)
        model = made(fresh_tiny, says=KINDS[1], attention_dropout=0.1)
        return diffusion(model, tiny_tokenizer, data(12), args, DenoisingObjective(co_loss=0.3), canvas=CANVAS, resume=resume, callbacks=callbacks)

    whole = run("whole")
    run("part", callbacks=[StopAt(2)], save_steps=2, save_strategy="steps")
    resumed = run("part", resume=str(find_resume(tmp_path / "part", "auto")))
    assert losses(tmp_path / "part") == losses(tmp_path / "whole") and len(losses(tmp_path / "whole")) == 4
    assert all(torch.equal(p, q) for p, q in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))
    model, _ = load(resumed.save_final(), device="cpu")
    assert diffusion_of(model.config) == KINDS[1]
    [result] = generate(model, tiny_tokenizer, [[20, 21, 22]], SamplingParams(max_new_tokens=6, ignore_eos=True))
    assert len(result.ids) == 6 and MASK not in result.ids
