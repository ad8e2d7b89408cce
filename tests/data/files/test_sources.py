import csv
import gzip
import json

import datasets
import pyarrow
import pytest

from seodang.data.errors import UserError
from seodang.data.files.sources import is_source_file, mix, read, source_files
from seodang.data.preferences import PREFERENCE_SHAPES, PROMPT_SHAPES


def zstd(path, mode):
    return pyarrow.CompressedOutputStream(str(path), "zstd")


RECORDS = [{"instruction": f"Q{n}", "output": f"A{n}"} for n in range(3)]


def questions(examples):
    return [example.messages[0]["content"] for example in examples]


def lines(path, records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return str(path)


@pytest.fixture
def files(tmp_path):
    import pyarrow
    import pyarrow.parquet

    lines(tmp_path / "a.jsonl", RECORDS)
    lines(tmp_path / "b.json", RECORDS)  # JSON Lines under the name of JSON
    (tmp_path / "c.json").write_text(json.dumps(RECORDS))
    (tmp_path / "d.json").write_text(json.dumps({"version": 1, "data": RECORDS}, indent=1))
    (tmp_path / "e.csv").write_text('instruction,output\nQ0,"A0\nmore"\nQ1,A1\nQ2,A2\n')
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "f.parquet")
    return tmp_path


WHERE = {"a.jsonl": "a.jsonl line 2", "b.json": "b.json line 2", "c.json": "c.json record 2", "d.json": "d.json record 2"}
WHERE |= {"e.csv": "e.csv line 4", "f.parquet": "f.parquet record 2"}


@pytest.mark.parametrize("name", WHERE)
@pytest.mark.parametrize("streaming", [False, True])
def test_every_file_type_gives_its_records_and_knows_their_lines(files, name, streaming):
    examples = read(files / name, streaming=streaming)
    for _ in range(2):  # a stream too can be read again
        assert questions(examples) == ["Q0", "Q1", "Q2"]
    assert [example.where for example in examples][1] == WHERE[name]
    assert isinstance(examples, list) == (not streaming)


def test_a_folder_is_its_files_in_order(files):
    (files / "notes.md").write_text("not data")
    (files / "more").mkdir()
    lines(files / "more" / "z.jsonl", [{"instruction": "last", "output": "A"}])
    assert questions(read(files)) == ["Q0", "Q1", "Q2"] * 6 + ["last"]


def test_several_sources_follow_one_another_and_may_differ_in_shape(files):
    text = lines(files / "t.jsonl", [{"text": "나무"}])
    examples = read([files / "a.jsonl", text])
    assert questions(examples[:3]) == ["Q0", "Q1", "Q2"] and examples[3].text == "나무"


def test_a_mix_takes_the_source_that_is_furthest_behind_its_weight():
    # 2:1 of [1 2 3 4] and [a b c]: shares after n draws are 2n/3 and n/3; it ends when both have been read, b and c never skipped
    assert list(mix([[1, 2, 3, 4], "abc"], [2, 1])) == [1, "a", 2, 3, "b", 4, 1, "c"]
    assert "".join(mix(["aaaaaa", "bb"], [3, 1])) == "aabaaaba"
    drawn = list(mix([[0] * 10, [1] * 1000], [1, 3]))
    assert drawn.count(1) == 1000 and drawn.count(0) in (333, 334)  # the short source is read over and over
    assert all(abs(drawn[:n].count(1) - 0.75 * n) <= 1 for n in range(1, len(drawn)))


def test_an_empty_source_cannot_be_mixed():
    with pytest.raises(UserError, match="source 2 of 3 to be mixed has no example: leave it out"):
        list(mix(["ab", "", "c"], [1, 1, 1]))


def test_mixing_is_the_same_every_time_and_for_streams(files):
    other = lines(files / "other.jsonl", [{"instruction": f"R{n}", "output": "A"} for n in range(5)])
    whole = questions(read([files / "a.jsonl", other], weights=[1, 1]))
    stream = read([files / "a.jsonl", other], weights=[1, 1], streaming=True)
    assert whole == questions(stream) == questions(stream) == ["Q0", "R0", "Q1", "R1", "Q2", "R2", "Q0", "R3", "Q1", "R4"]


def test_a_hub_name_is_asked_of_datasets(monkeypatch):
    asked = []

    def load_dataset(path, subset, split, streaming):
        asked.append((path, subset, split, streaming))
        return datasets.Dataset.from_list(RECORDS)

    monkeypatch.setattr("seodang.data.files.sources.check_hub_name", lambda *_: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    examples = read("owner/name:small", split="test")
    assert questions(examples) == ["Q0", "Q1", "Q2"] and examples[0].where == "owner/name:small record 1"
    assert asked == [("owner/name", "small", "test", False)]


def test_an_unreachable_hub_is_one_line(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("cannot reach\nthe hub")

    monkeypatch.setattr("seodang.data.files.sources.check_hub_name", lambda *_: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match="owner/name is no file here.*cannot reach the hub"):
        read("owner/name")


@pytest.mark.parametrize("name", ["owner/name", "owner/name:subset", "nowhere"])
def test_a_hub_that_may_not_be_asked_is_not_waited_for(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=f"dataset '{name.partition(':')[0]}' is no file or folder, nor in the hub's cache"):
        read(name, streaming=True)


@pytest.mark.parametrize(
    "name, content, named",
    [
        ("a.jsonl", '{"instruction": "Q", "output": "A"}\n\n{"instruction": "Q"}\n', "a.jsonl line 3: the key 'output' is missing"),
        ("a.jsonl", '{"instruction": "Q", "output": "A"}\n{"text": "T"}\n', "a.jsonl line 2: this record has the shape text, but a.jsonl line 1"),
        ("a.jsonl", '{"question": "Q"}\n', "a.jsonl line 1: no known shape has the keys question"),
        ("a.jsonl", '{"text": "T"}\n{"text": \n', "a.jsonl line 2: not JSON"),
        ("a.jsonl", "3\n", "a.jsonl line 1: a record must be an object"),
        ("a.jsonl", "", "a.jsonl has no records"),
        ("a.json", "[]", "a.json has no records"),
        ("a.json", "\n", "a.json has no records"),
        ("a.json", "[1, 2", "a.json line 1: not JSON"),
        ("a.json", '"text"', "a.json must hold a list of records, got str"),
        ("a.csv", "instruction,output\n", "a.csv has no records"),
        ("a.csv", "instruction,result\nQ,A\n", "a.csv line 2: the key 'output' is missing (keys found: instruction, result); if another column"),
        ("a.csv", "instruction,output\nQ,A,B\n", "a.csv line 2: more fields"),
        ("a.parquet", "no", "a.parquet is not a Parquet file"),
        ("a.txt", "T", "cannot read .txt: name it .tsv"),
        ("a.xls", "T", "cannot read .xls: save it as .xlsx"),
        ("a.md", "T", "cannot read .md, only .json, .jsonl"),
        ("a.jsonl", '{"instruction": "Q", "output": null}\n', "a.jsonl line 1: the key 'output' holds nothing (null): fill it in"),
        ("a.jsonl", b'{"text": "\xff"}\n', "a.jsonl is not UTF-8"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(tmp_path, name, content, named):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as refused:
        read(path)
    assert named in str(refused.value) and "\n" not in str(refused.value)


def test_unknown_names_and_senseless_weights_are_refused(tmp_path, files):
    with pytest.raises(UserError, match="no file or folder nothere.jsonl"):
        read("nothere.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no .json"):
        read(tmp_path / "empty")
    with pytest.raises(UserError, match="no data given"):
        read([])
    with pytest.raises(UserError, match="1 sources, 2 weights"):
        read(files / "a.jsonl", weights=[1, 2])
    with pytest.raises(UserError, match="above zero, got 0"):
        read([files / "a.jsonl", files / "b.json"], weights=[1, 0])
    with pytest.raises(UserError, match="above zero, got inf"):  # a mix of which the other would never end
        read([files / "a.jsonl", files / "b.json"], weights=[1, float("inf")])


@pytest.mark.parametrize("name", ["~nobody-of-that-name/a.jsonl", "x" * 300 + ".jsonl", "\0.jsonl"])
def test_what_can_be_no_file_is_none(name):
    with pytest.raises(UserError, match="there is no file or folder"):
        read(name)
    assert source_files(name) == [] and not is_source_file(name)


REPLIES = [{"role": "assistant", "text": text, "rank": rank, "replies": []} for rank, text in enumerate("AB")]
TREE = {"role": "prompter", "text": "Q", "replies": [{**REPLIES[0], "replies": [{"role": "prompter", "text": "R", "replies": REPLIES}]}, REPLIES[1]]}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_record_of_another_family_may_give_several_examples(tmp_path, streaming):
    alone = {"message_tree_id": "b", "prompt": {**TREE, "replies": REPLIES[:1]}}
    trees = lines(tmp_path / "trees.jsonl", [alone, {"message_tree_id": "a", "prompt": TREE}])
    examples = list(read(trees, shapes=PREFERENCE_SHAPES, streaming=streaming))
    assert [example.where for example in examples] == ["trees.jsonl line 1", "trees.jsonl line 2, example 1", "trees.jsonl line 2, example 2"]
    assert [example.prompt[-1]["content"] for example in examples] == ["Q", "Q", "R"]
    assert [example.flaw for example in examples] == ["no prompt in the tree has two ranked replies", "", ""]


def test_a_source_of_another_family_is_refused_with_what_is_wanted(tmp_path):
    trees = lines(tmp_path / "trees.jsonl", [{"message_tree_id": "b", "prompt": {**TREE, "replies": []}}])
    with pytest.raises(UserError, match="a.jsonl line 1: no shape wanted here has the keys instruction, output: use .*chosen or rejected"):
        read(lines(tmp_path / "a.jsonl", RECORDS), shapes=PREFERENCE_SHAPES)
    with pytest.raises(UserError, match="trees.jsonl line 1: .*`seodang dpo`"):
        read(trees)
    with pytest.raises(UserError, match="shape must be one of trees, preference"):
        read(trees, shape="triplet", shapes=PREFERENCE_SHAPES)


@pytest.mark.parametrize("name, opened", [("a.jsonl.gz", gzip.open), ("a.csv.gz", gzip.open), ("a.json.zst", zstd), ("a.ndjson.zst", zstd)])
def test_compressed_files_are_read_as_what_is_in_them(tmp_path, name, opened):
    plain = {"csv": "instruction,output\nQ0,A0\nQ1,A1\nQ2,A2\n", "json": json.dumps(RECORDS)}
    text = plain.get(name.split(".")[1]) or "".join(json.dumps(record) + "\n" for record in RECORDS)
    with opened(tmp_path / name, "wb") as file:
        file.write(text.encode())
    for source in (tmp_path / name, tmp_path, f"{tmp_path}/*.{name.partition('.')[2]}"):
        for streaming in (False, True):
            examples = read(source, streaming=streaming)
            assert questions(examples) == questions(examples) == ["Q0", "Q1", "Q2"]


def test_a_pattern_is_the_files_that_it_fits_and_a_folder_hides_none_that_could_be_meant(files):
    assert questions(read(f"{files}/[a-c].js*")) == ["Q0", "Q1", "Q2"] * 3
    with pytest.raises(UserError, match=r"no file matches nothere\*\.csv"):
        read("nothere*.csv")
    (files / "~$book.xlsx").write_text("left by Excel")
    (files / ".hidden.csv").write_text("left by an editor")
    assert len(read(files)) == 18
    (files / "old.XLS").write_text("not read")
    with pytest.raises(UserError, match="old.XLS: cannot read .XLS: save it as .xlsx"):
        read(files)


def test_a_file_is_read_once_whatever_links_lead_to_it_and_hidden_folders_are_left_out(tmp_path):
    (tmp_path / "deep" / ".ipynb_checkpoints").mkdir(parents=True)
    for name in ("a.csv", "deep/b.csv", "deep/.ipynb_checkpoints/b-checkpoint.csv", ".hidden.csv"):
        (tmp_path / name).write_text(f"question,answer\n{name},A\n")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "link.csv").symlink_to("a.csv")
    (tmp_path / "broken.csv").symlink_to("nothing.csv")
    assert questions(read(tmp_path)) == questions(read(f"{tmp_path}/**/*.csv")) == ["a.csv", "deep/b.csv"]
    (tmp_path / ".home").mkdir()
    (tmp_path / ".home" / "c.csv").write_text("question,answer\nc,A\n")
    assert questions(read(tmp_path / ".home")) == ["c"]  # named by the user, it is not hidden


def test_json_that_python_cannot_hold_is_one_line_that_names_it(tmp_path):
    deep = "[" * 100_000 + "]" * 100_000
    for name, content, told in [
        ("a.jsonl", f'{{"text": "T"}}\n{{"text": {deep}}}\n', "a.jsonl line 2: not JSON: lists or objects lie too deep in one another"),
        ("a.json", deep, "a.json line 1: not JSON: lists or objects lie too deep in one another"),
        ("c.jsonl", f'{{"text": {"1" * 5000}}}', "c.jsonl line 1: not JSON: Exceeds the limit"),
        ("d.jsonl", json.dumps({"messages": [], "tools": deep}), "d.jsonl line 1: tools is not JSON: lists or objects lie too deep in one another"),
    ]:
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=told):
            read(tmp_path / name)


def test_json_lines_put_behind_one_another_may_have_a_mark_between_them(tmp_path):
    (tmp_path / "a.jsonl").write_text('\ufeff{"text": "A"}\n\ufeff{"text": "\ufeffB"}\n', encoding="utf-8")
    assert [example.text for example in read(tmp_path / "a.jsonl")] == ["A", "\ufeffB"]


def test_a_spreadsheets_numbers_of_rows_are_left_out(tmp_path):
    (tmp_path / "a.csv").write_text(",prompt,level\n0,Q,1\n1,R,2\n", encoding="utf-8")
    examples = read(tmp_path / "a.csv", shapes=PROMPT_SHAPES)
    assert [(example.prompt[0]["content"], example.columns) for example in examples] == [("Q", {"level": "1"}), ("R", {"level": "2"})]
    (tmp_path / "b.csv").write_text(",prompt,level\n0,Q,1\n1,R,2,3\n", encoding="utf-8")
    with pytest.raises(UserError, match="b.csv line 3: more fields than the header has"):
        read(tmp_path / "b.csv", shapes=PROMPT_SHAPES)


def test_a_long_field_is_read_and_the_processs_limit_left_alone(tmp_path):
    before = csv.field_size_limit()
    (tmp_path / "a.csv").write_text(f"prompt\n{'Q' * (before + 1)}\nR\n", encoding="utf-8")
    seen = []
    for example in read(tmp_path / "a.csv", shapes=PROMPT_SHAPES, streaming=True):
        seen.append((len(example.prompt[0]["content"]), csv.field_size_limit()))
    assert seen == [(before + 1, before), (1, before)]


def test_pairs_are_read_from_csv_and_parquet_as_from_json(tmp_path):
    import pyarrow
    import pyarrow.parquet

    talk = [{"role": "user", "content": "수도는?"}]
    records = [{"prompt": talk, "chosen": "서울", "rejected": "부산"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text('prompt,chosen,rejected\n"[{""role"": ""user"", ""content"": ""수도는?""}]",서울,부산\n', encoding="utf-8")
    for path in (lines(tmp_path / "a.jsonl", records), tmp_path / "a.parquet", tmp_path / "a.csv"):
        [example] = read(path, shapes=PREFERENCE_SHAPES)
        assert example.prompt == talk and [answer["content"] for answer in example.answers] == ["서울", "부산"]
