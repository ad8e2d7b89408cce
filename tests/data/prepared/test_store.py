import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from seodang.data.errors import UserError
from seodang.data.files.sources import read
from seodang.data.formats import Dialogue
from seodang.data.labels import prepare
from seodang.data.packing import pack
from seodang.data.prepared import rows as mapped
from seodang.data.prepared import store
from seodang.data.prepared.shard import Maker
from seodang.data.prepared.store import prepared_rows, shard_records

TRIPLETS = [{"instruction": f"나무 {n}?", "input": "강" * (n % 3), "output": f"답 {n} " + "길" * n} for n in range(11)]
TALKS = [
    {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "하나"},
                  {"role": "user", "content": "more"}, {"role": "assistant", "content": f"<|im_end|> {n}"}]}
    for n in range(7)
]  # fmt: skip
SHAPES = {
    "triplets": TRIPLETS,
    "talks": TALKS,
    "pairs": [{"prompt": f"p{n}", "completion": "완성 " * (n + 1)} for n in range(5)],
    "sharegpt": [{"conversations": [{"from": "human", "value": "안녕"}, {"from": "gpt", "value": f"{n}"}]} for n in range(4)],
    "text": [{"text": "긴 글 " * 30 * n + "."} for n in range(4)],
    "doubled and empty": [*TRIPLETS[:4], {**TRIPLETS[0], "output": " "}, TRIPLETS[1], TRIPLETS[1], TRIPLETS[9]],
}


def in_memory(source, tokenizer, packing, **labelling):
    rows, counts = prepare(read(source), tokenizer, **labelling)
    return (pack(rows, labelling["max_length"]) if packing else rows), counts


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_rows_and_counts_are_those_that_are_made_in_memory(name, packing, write, small_shards, tiny_tokenizer, tmp_path):
    source, settings = write(SHAPES[name]), {"max_length": 80, "empty_answers": "drop", "train_on": "all" if name == "talks" and packing else "assistant"}
    expected, counts = in_memory(source, tiny_tokenizer, packing, **settings)
    rows, were_there = prepared_rows(read(source, lazy=True), tiny_tokenizer, tmp_path / "rows", packing=packing, processes=1, **settings)
    assert not were_there and len(rows) == len(expected) >= 1
    assert list(rows) == [rows[at] for at in range(len(rows))] == expected
    assert rows[-1] == expected[-1] and list(pickle.loads(pickle.dumps(rows))) == expected and type(rows[0]["input_ids"][0]) is int
    assert rows.counts == counts and rows.counts.lines() == counts.lines()
    lengths = [length for row in expected for length in row.get("lengths") or [len(row["input_ids"])]]
    assert rows.size == (max(lengths), max(max(row["input_ids"]) for row in expected))
    if not packing:
        assert datasets.load_from_disk(str(tmp_path / "rows")).to_list() == expected
    with pytest.raises(IndexError):
        rows[len(rows)]


def test_a_row_that_is_trained_on_and_held_out_is_found(write, tiny_tokenizer, tmp_path):
    rows, _ = prepared_rows(TRIPLETS, tiny_tokenizer, tmp_path / "rows", processes=1, max_length=80)
    _, rows.counts.held_out = prepare(read(write([TRIPLETS[3], {**TRIPLETS[4], "output": "new"}])), tiny_tokenizer, max_length=80)
    assert rows.counts.lines()[-1] == "warning         1 x held out and trained on, word for word: it is no measure"


def test_parquet_streams_and_dictionaries_give_the_same_rows_by_one_process_or_two(write, small_shards, tiny_tokenizer, tmp_path):
    expected, counts = in_memory(write(TRIPLETS), tiny_tokenizer, False, max_length=80)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(TRIPLETS), tmp_path / "data.parquet")
    stream = datasets.IterableDataset.from_generator(lambda: iter(TRIPLETS))
    for name, examples, processes in (("parquet", read(str(tmp_path / "data.parquet"), streaming=True), 1), ("stream", stream, 2)):
        advanced = []
        rows, _ = prepared_rows(examples, tiny_tokenizer, tmp_path / name, processes=processes, advance=advanced.append, max_length=80)
        assert list(rows) == expected and rows.counts == counts and advanced == [3, 3, 3, 2]


@pytest.fixture
def made(monkeypatch):
    """The numbers of the shards that are made."""
    numbers, make = [], Maker.make
    monkeypatch.setattr(Maker, "make", lambda self, number, *rest: numbers.append(number) or make(self, number, *rest))
    return numbers


def test_what_is_complete_is_used_without_reading_and_a_stream_is_made_anew_where_it_changed(small_shards, tiny_tokenizer, tmp_path, made):
    def prepared(records, known=False, max_length=80):
        return prepared_rows(records, tiny_tokenizer, tmp_path / "rows", packing=True, processes=1, known=known, max_length=max_length)

    first, _ = prepared(TRIPLETS)
    assert made == [0, 1, 2, 3]
    again, were_there = prepared(iter([1 / 0] for _ in "x"), known=True)  # would raise, were it read
    assert were_there and list(again) == list(first) and made == [0, 1, 2, 3]
    changed = [*TRIPLETS[:4], {**TRIPLETS[4], "output": "other"}, *TRIPLETS[5:9]]
    rows, were_there = prepared(changed)
    assert made == [0, 1, 2, 3, 1] and not were_there
    assert list(rows) == pack(prepare(map_examples(changed), tiny_tokenizer, max_length=80)[0], 80)
    assert not list((tmp_path / "rows").glob("rows-00003*"))  # which the shorter stream no longer has
    prepared(changed, max_length=81)
    assert made[5:] == [0, 1, 2]  # other settings
    tiny_tokenizer.chat_template = tiny_tokenizer.chat_template.replace("<|im_start|>", "")
    rows, _ = prepared(changed, max_length=81)
    assert made[8:] == [0, 1, 2] and list(rows) == pack(prepare(map_examples(changed), tiny_tokenizer, max_length=81)[0], 81)


def map_examples(records):
    return [Dialogue([{"role": "user", "content": "\n\n".join(filter(None, (r["instruction"], r["input"])))}, {"role": "assistant", "content": r["output"]}]) for r in records]


@pytest.mark.parametrize("damage, said", [
    (lambda path: path.write_bytes(path.read_bytes()[:-8] + b"\1" * 8), "its hash differs"),
    (lambda path: path.write_bytes(path.read_bytes()[:-8]), "bytes instead of"),
    (lambda path: path.unlink(), "cannot be read"),
])  # fmt: skip
def test_a_damaged_shard_alone_is_made_again_and_said(damage, said, small_shards, tiny_tokenizer, tmp_path, made, caplog):
    rows, _ = prepared_rows(TRIPLETS, tiny_tokenizer, tmp_path / "rows", processes=1, known=True, max_length=80)
    expected = list(rows)
    damage(tmp_path / "rows" / "rows-00002.arrow")
    rows, were_there = prepared_rows(TRIPLETS, tiny_tokenizer, tmp_path / "rows", processes=1, known=True, max_length=80)
    assert made == [0, 1, 2, 3, 2] and not were_there and list(rows) == expected
    assert said in caplog.text and "its 3 records are prepared again" in caplog.text


def test_facts_that_say_something_else_than_was_written_are_found_anew(small_shards, tiny_tokenizer, tmp_path, made, caplog):
    """Whichever file of the folder is damaged, and however, the rows are those that were."""

    def prepared():
        return prepared_rows(TRIPLETS[:7], tiny_tokenizer, tmp_path / "rows", packing=True, processes=1, known=True, max_length=80)[0]

    expected, shards = list(prepared()), len(made)
    assert shards == 3
    for name in (mapped.FACTS, mapped.PACKED, "state.json", "dataset_info.json"):
        path = tmp_path / "rows" / name
        whole = path.read_text(encoding="utf-8")
        for text in ("[]", "5", '"files"', '{"format": 1}', '{"sha256": "", "facts": {}}', whole.replace("1", "2", 1), "\ud800"):
            path.write_bytes(text.encode(errors="surrogatepass"))
            assert list(prepared()) == expected and len(made) == shards, (name, text)
        path.unlink()
        assert list(prepared()) == expected and len(made) == shards
    assert f"{mapped.FACTS} is not what was written: prepared again" in caplog.text
    (tmp_path / "rows" / "rows-notes.txt").write_text("mine")
    for text in ("[]", "5", '{"format": 1, "records": ""}'):
        (tmp_path / "rows" / mapped.FACTS).unlink()
        (tmp_path / "rows" / "rows-00001.json").write_text(text)
        assert list(prepared()) == expected
        shards += 1
        assert len(made) == shards and made[-1] == 1
    assert (tmp_path / "rows" / "rows-notes.txt").exists()


def test_another_versions_folder_is_made_anew_and_a_broken_order_of_packed_rows_found_again(tiny_tokenizer, tmp_path, monkeypatch, made, caplog):
    def prepared():
        return prepared_rows(TRIPLETS, tiny_tokenizer, tmp_path / "rows", packing=True, processes=1, known=True, max_length=80)[0]

    expected = list(prepared())
    (tmp_path / "rows" / mapped.ORDER).write_bytes(b"")
    assert list(prepared()) == expected and made == [0]
    for module in (store, mapped, sys.modules[Maker.__module__]):
        monkeypatch.setattr(module, "FORMAT", 2)
    assert list(prepared()) == expected and made == [0, 0]
    assert "made in format 1 by another version, 2 is this one's: prepared again" in caplog.text


def test_the_first_record_that_is_refused_is_named_whoever_reads_it(write, small_shards, tiny_tokenizer, tmp_path):
    def refused(records, **settings):
        with pytest.raises(UserError) as error:
            prepared_rows(read(write(records), lazy=True), tiny_tokenizer, tmp_path / "rows", processes=1, max_length=40, **settings)
        return str(error.value)

    long = {**TRIPLETS[0], "output": "길" * 60}
    told = refused([*TRIPLETS[:4], long, long], unusable="error")
    assert told == "data.jsonl line 5: answer longer than max_length: mend the record, or leave such records out with --unusable drop"
    assert refused([*TRIPLETS[:4], {"instruction": "q"}]).startswith("data.jsonl line 5: the key 'output' is missing")
    assert refused([*TRIPLETS[:3], long, {"instruction": "q"}], unusable="error").startswith("data.jsonl line 4: answer longer")  # before what cannot be read
    assert refused([long]) == "none of the 1 records can be used: 1 x answer longer than max_length"
    assert not (tmp_path / "rows" / mapped.FACTS).exists()


def test_a_full_disk_and_a_folder_that_cannot_be_are_refused_and_whole_shards_are_kept(small_shards, tiny_tokenizer, tmp_path, made):
    folder = tmp_path / "rows"

    def filling():
        for number, record in enumerate(TRIPLETS):
            if number == 3:  # where the second shard is to be written there is no room
                (folder / f"rows-00001.arrow.{os.getpid()}.partial").symlink_to("/dev/full")
            yield record

    with pytest.raises(UserError, match=r"cannot be written in .*rows \(No space left on device\): make room, or name another folder, --row_cache; shards that are whole"):
        prepared_rows(filling(), tiny_tokenizer, folder, processes=1, max_length=80)
    assert not list(folder.glob("*.partial"))
    rows, _ = prepared_rows(TRIPLETS, tiny_tokenizer, folder, processes=1, max_length=80)
    assert made == [0, 1, 1, 2, 3] and len(rows) == 11
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written in .*file/rows \(Not a directory\)"):
        prepared_rows(TRIPLETS, tiny_tokenizer, tmp_path / "file" / "rows", processes=1, max_length=80)
    with pytest.raises(UserError, match="num_proc must be at least 1, got 0"):
        prepared_rows(TRIPLETS, tiny_tokenizer, folder, processes=0, max_length=80)


class Aborts:
    def __reduce__(self):
        return os.abort, ()


@pytest.mark.full
def test_a_process_that_is_lost_and_a_refusal_in_one_are_told(small_shards, tiny_tokenizer, tmp_path):
    with pytest.raises(UserError, match="a process that prepares rows was killed by signal 6: .* --num_proc 1, and the same command goes on"):
        prepared_rows([*TRIPLETS[:3], Aborts()], tiny_tokenizer, tmp_path / "rows", processes=2, max_length=80)
    assert (tmp_path / "rows" / "rows-00000.json").exists()
    with pytest.raises(UserError, match="^record 2: answer longer than max_length"):
        prepared_rows([TRIPLETS[0], {**TRIPLETS[0], "output": "길" * 60}], tiny_tokenizer, tmp_path / "rows", processes=2, max_length=40, unusable="error")


@pytest.mark.full
def test_a_killed_run_leaves_whole_shards_and_the_next_makes_the_others(small_shards, tiny_tokenizer, tmp_path, made):
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    folder, script = tmp_path / "rows", tmp_path / "script.py"
    script.write_text(f"""
import time
from transformers import AutoTokenizer
from seodang.data.prepared import store
store.shard_records = lambda number: 3
def records():
    for number, record in enumerate({TRIPLETS!r}):
        if number == 7:
            print("killed here", flush=True)
            time.sleep(60)
        yield record
store.prepared_rows(records(), AutoTokenizer.from_pretrained({str(tmp_path / "tokenizer")!r}), {str(folder)!r}, processes=1, max_length=80)
""")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=environment) as killed:
        assert killed.stdout.readline() == b"killed here\n"
        killed.send_signal(signal.SIGKILL)
    assert sorted(path.name for path in folder.glob("*.json")) == ["rows-00000.json", "rows-00001.json"]
    (folder / "rows-00002.arrow.1.partial").write_bytes(b"half")
    rows, _ = prepared_rows(TRIPLETS, tiny_tokenizer, folder, processes=1, max_length=80)
    assert made == [2, 3] and not list(folder.glob("*.partial"))
    assert list(rows) == prepare(map_examples(TRIPLETS), tiny_tokenizer, max_length=80)[0]


@pytest.mark.parametrize("known", [True, False])
def test_of_several_that_ask_at_once_one_prepares(known, small_shards, tiny_tokenizer, tmp_path, made):
    begun, results = threading.Event(), []

    def slowly():
        begun.set()
        time.sleep(0.3)
        yield from TRIPLETS

    def ask(records):
        results.append(prepared_rows(records, tiny_tokenizer, tmp_path / "rows", processes=1, known=known, max_length=80))

    first = threading.Thread(target=ask, args=(slowly(),))
    first.start()
    begun.wait()
    others = [threading.Thread(target=ask, args=(TRIPLETS,)) for _ in range(2)]
    for thread in others:
        thread.start()
    for thread in (first, *others):
        thread.join()
    assert Counter(made) == {0: 1, 1: 1, 2: 1, 3: 1}
    assert [list(rows) for rows, _ in results] == [list(results[0][0])] * 3
    assert sorted(were_there for _, were_there in results) == [False, True, True]


def test_shards_grow_with_their_number():
    assert [shard_records(number) for number in (0, 15, 16, 31, 32, 1000)] == [1024, 1024, 2048, 2048, 4096, 4096]
    assert sum(map(shard_records, range(264))) < 1_000_000 <= sum(map(shard_records, range(265)))  # files of a million
