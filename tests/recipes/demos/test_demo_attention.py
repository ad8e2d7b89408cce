"""The story of attention: the whole of it on tiny models, and each of its figures by hand."""

import re
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from seodang.data.seq2seq.packing import lengths_of
from seodang.infer.checkpoint.manifest import verify
from seodang.infer.text.token_labels import TokenLabels
from seodang.recipes.demos import attention_story, demo_attention
from seodang.recipes.demos.attention_story import (
    Lesson,
    Settings,
    Share,
    by_group,
    by_length,
    by_thirds,
    lesson_of,
    thirds,
    token_seconds,
    trainer_of,
)
from seodang.recipes.demos.demo_attention import Reader, drawn_place, figures
from seodang.train.rollouts.eval_generation import HeldOut

TINY = {"d_model": 32, "layers": 1, "heads": 2, "rows": 300, "heldout": 3, "batch": 8}


@pytest.fixture
def quick(monkeypatch):
    """Short rows, few passes."""
    monkeypatch.setattr(demo_attention, "LENGTHS", (2, 4))
    monkeypatch.setattr(demo_attention, "REPEATS", 1)
    monkeypatch.setattr(demo_attention, "LEAST", 1)
    monkeypatch.setattr(demo_attention, "FLOOR", 6)
    monkeypatch.setattr(attention_story, "TRIED_STEPS", 2)


def table(page: str, caption: str) -> list[list[str]]:
    """The cells of a table of the page, the names of the columns first."""
    [found] = re.findall(rf"<caption>{re.escape(caption)}</caption>(.*?)</table>", page, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", found, re.DOTALL)]


def test_the_demo_draws_three_models_on_a_page_with_the_weights_of_their_forward_passes(quick, tmp_path, capsys):
    """`make demo-attention` does the same with models that learn."""
    out = tmp_path / "out"
    asked = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]
    assert demo_attention.main([*asked, "--max_steps", "400", "--minutes", "0.0001", "--timed_tokens", "16", "--output_dir", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("this takes up to 10 minutes") and printed.count("6 steps of 8 rows") == 3 and str(out / "page.html") in printed
    assert [line.split()[0] for line in printed.splitlines() if re.match(r"\w+ .*short ", line)] == ["context", "attention", "transformer", "ahead"]
    page = (out / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page and not re.search(r'\s(src|href)="', page) and "prefers-color-scheme: dark" in page
    titles = re.findall(r"<h3>([^<]*?) ?<", page)
    assert titles[:4] == ["Accuracy by the length of the source, words to digits", "Accuracy by the length of the source, digits to words",
                          "Accuracy by the length of the number, both ways", "Training time a token, one thread, CPU time"]  # fmt: skip
    assert len(titles) == 5 + 2 * 2 + 2  # the loss; a map a model and source; two heads
    assert "With LSTM, context vector alone and LSTM with attention it is refused: strategy &#39;assisted&#39; needs truncate" in page
    for kind, name in (("attention", "LSTM with attention"), ("transformer", "Transformer, layer 1, mean of 2 heads")):
        verify(out / kind)
        head, *rows = table(page, f"{name}: digits&gt;ko")
        model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(out / kind, attn_implementation="eager"), AutoTokenizer.from_pretrained(out / kind)
        ids = {TokenLabels(tokenizer)(id): id for id in range(len(tokenizer))}
        source, answer = ([ids[name.replace("&gt;", ">").replace("&lt;", "<")] for name in names] for names in (head[1:], [row[0] for row in rows]))
        shown = torch.tensor([[tokenizer.bos_token_id, *answer[:-1]]])
        with torch.no_grad():
            weights = model.eval()(input_ids=torch.tensor([source]), decoder_input_ids=shown, output_attentions=True).cross_attentions[0][0].mean(dim=0)
        drawn = torch.tensor([[float(cell) for cell in row[1:]] for row in rows])
        assert source[-1] == answer[-1] == tokenizer.eos_token_id and len(source) > 3
        torch.testing.assert_close(drawn, weights, atol=0.0051, rtol=0)


def test_all_models_are_taught_the_same_batches_in_the_same_order(tmp_path):
    settings = Settings(max_steps=50, **TINY)
    lesson = lesson_of(settings)
    assert len(lesson.batches) == 50 and len({tuple(batch["input_ids"]) for batch in lesson.batches}) == 38  # 300 rows by 8, then again in another order
    assert lesson.batches[38:] != lesson.batches[:12]
    loaders = [trainer_of(kind, settings, lesson, tmp_path).get_train_dataloader() for kind in ("context", "transformer")]
    for batch, padded, flat in zip(lesson.batches, *loaders, strict=False):
        rows = [ids[mask.bool()].tolist() for ids, mask in zip(padded["input_ids"], padded["attention_mask"], strict=True)]
        assert sum(rows, []) == flat["input_ids"][0].tolist() == batch["input_ids"]
        assert [len(row) for row in rows] == flat["source_lengths"].tolist() == lengths_of(batch)[0]


def test_accuracy_by_the_length_of_the_source_by_hand():
    lengths, right = [4, 7, 8, 9, 9, 12], [True, False, True, True, False, False]
    assert thirds(lengths) == thirds(lengths[::-1]) == {"short": range(4, 8), "middle": range(8, 9), "long": range(9, 13)}
    assert by_group(lengths, right, thirds(lengths)) == {"short": Share(1, 2), "middle": Share(1, 1), "long": Share(1, 3)}
    assert thirds([4]) == {"long": range(4, 5)} and by_group([4, 5], [True, False], {"long": range(4, 5), "none": range(9, 12)}) == {"long": Share(1, 1)}
    lesson = Lesson(None, [], [HeldOut([5] * length, "") for length in lengths], ["ko>digits", "digits>en", "digits>ko", "digits>ko", "en>digits", "ko>digits"])
    assert by_thirds(lesson, right) == by_group(lengths, right, thirds(lengths))
    assert by_thirds(lesson, right, "words to digits") == {"short": Share(1, 1), "middle": Share(0, 1), "long": Share(0, 1)}  # of 4, 9 and 12 tokens
    assert by_thirds(lesson, right, "digits to words") == {"short": Share(0, 1), "middle": Share(1, 1), "long": Share(1, 1)}
    assert by_length(lengths, right, least=2) == {9: Share(1, 2)}
    assert Share(9, 100).value == 0.09 and Share(9, 100).error == pytest.approx((0.09 * 0.91 / 100) ** 0.5) and str(Share(1, 4)) == "0.250 ± 0.217"


def test_numbers_have_as_many_digits_as_asked_for_and_each_count_is_asked_about_as_often():
    lesson = lesson_of(Settings(rows=300, heldout=140, digits=9))
    counts = Counter(lesson.digits)
    assert set(counts) == {3, 4, 5, 6, 7, 8, 9} and all(50 < count < 110 for count in counts.values())  # 80 each but for chance
    assert {len(each) for each in (lesson.of_part("digits to words", lesson.lengths), lesson.of_part("words to digits", lesson.lengths))} == {280}
    assert lesson.of_part("digits to words", lesson.lengths) == [digits + 2 for digits in lesson.of_part("digits to words", lesson.digits)]
    assert set(lesson_of(Settings(rows=300, heldout=20, digits=3)).digits) == {3}


def readers_of(right: dict[str, list[bool]]) -> list[Reader]:
    return [Reader(kind, SimpleNamespace(), 7.4, {}, {"greedy": each, "beam 4": [True] * len(each)}) for kind, each in right.items()]


def test_how_far_attention_is_ahead_and_which_answer_is_drawn_by_hand():
    answers, tasks = ["이", "이", "삼", "123", "1234"], ["digits>ko", "digits>ko", "digits>en", "ko>digits", "ko>digits"]
    lesson = Lesson(None, [], [HeldOut([5] * length, answer) for length, answer in zip((7, 9, 9, 12, 13), answers)], tasks)
    assert lesson.digits == [5, 7, 7, 3, 4]
    readers = readers_of({"context": [True, True, False, False, False], "attention": [True, True, True, True, False]})
    told = [*figures(readers, lesson)]
    assert told[0].split(maxsplit=1) == [
        "context", "short 1.000 ± 0.000, middle 0.500 ± 0.354, long 0.000 ± 0.000; beam 4 1.000 ± 0.000; 7 s of CPU time",
    ]  # fmt: skip
    assert told[2].split("alone, ")[1] == (
        "both ways: short +0.000, middle +0.500, long +0.500; words to digits: middle +1.000, long +0.000; "
        "digits to words: short +0.000, long +0.500; by digits of the number: 3 +1.000, 4 +0.000, 5 +0.000, 7 +0.500"
    )  # fmt: skip
    assert [drawn_place(readers, lesson, task) for task in ("digits>ko", "ko>digits", "digits>en")] == [1, 3, 2]


def test_time_a_token_is_the_median_of_the_passes_behind_the_first(monkeypatch):
    taken = {"one": iter([99, 6, 2, 4, 99, 8, 8, 9] * 2), "two": iter([99, 1, 3, 2, 99, 5, 6, 7] * 2)}
    sizes, clocks = [], []

    def pass_seconds(trainer, rows, clock):
        clocks.append((clock, torch.get_num_threads()))
        sizes.append((len(rows), {len(row["input_ids"]) for row in rows} | {len(row["labels"]) for row in rows}))
        return next(taken[trainer.name])

    monkeypatch.setattr(attention_story, "pass_seconds", pass_seconds)
    trainers = {name: SimpleNamespace(name=name, model=SimpleNamespace(config=SimpleNamespace(vocab_size=9))) for name in taken}
    threads = torch.get_num_threads()
    wanted = {"one": {4: 4 / 16, 16: 8 / 32}, "two": {4: 2 / 16, 16: 6 / 32}}
    assert token_seconds(trainers, (4, 16), tokens=16, repeats=3) == wanted and set(clocks) == {(time.process_time, 1)}
    assert sizes == [(2, {4})] * 8 + [(1, {16})] * 8
    assert token_seconds(trainers, (4, 16), tokens=16, repeats=3, threads=2) == wanted and clocks[-1] == (time.perf_counter, 2)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--models", "gru"], "no model 'gru': choose among context, attention, transformer"), (["--minutes", "0"], "minutes must be above 0"),
        (["--batch", "0"], "batch must be above 0"), (["--digits", "2"], "digits must be between 3 and 12, got 2"),
    ],  # fmt: skip
)
def test_values_that_make_no_sense_are_refused(words, told, capsys):
    assert demo_attention.main(words) == 2
    assert told in capsys.readouterr().err


def test_the_demo_is_a_verb_and_a_target_of_make():
    makefile = (Path(__file__).parents[3] / "Makefile").read_text(encoding="utf-8")
    assert "seodang demo-attention $(ARGS)" in makefile and "make demo-attention  " in makefile
