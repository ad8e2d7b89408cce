"""Outputs that cannot be written are refused, and looking leaves nothing behind."""

import os

import pytest

from seodang.data.errors import UserError
from seodang.recipes.options.outputs import check_outputs, empty, open_output

# where nobody can write, root included
SEALED = "/proc"


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        ("output_dir", "FILE", "--output_dir FILE: FILE is not a folder"),
        ("output_dir", "FILE/below/it", "--output_dir FILE/below/it: FILE is not a folder"),
        ("output_dir", "DANGLING/x", "DANGLING is not a folder"),
        ("output_dir", SEALED, "nothing can be written in /proc"),
        ("output_dir", SEALED + "/a/b", "--output_dir /proc/a/b: nothing can be written in /proc"),
        ("output", "FOLDER", "--output FOLDER is a folder: name a file in it"),
        ("output", "FOLDER/no/file.jsonl", "there is no folder FOLDER/no"),
        ("html", "FILE/page.html", "there is no folder FILE"),
        ("html", SEALED + "/page.html", "--html /proc/page.html: nothing can be written in /proc"),
        ("output", SEALED + "/version", "--output /proc/version cannot be written"),
        ("output", "FOLDER/" + "가" * 86, "가 is a name too long for the file system"),
        ("output_dir", "FOLDER/" + "x" * 256 + "/y", "x/y is a name too long for the file system"),
        ("output_dir", "", "--output_dir must be the name of one folder, got ''"),
        ("html", "", "--html must be the name of one file, got ''"),
        ("output", "ASTRAY", "--output ASTRAY: there is no folder FOLDER/no, make it or name another"),
        ("output", "~nobody-of-that-name/x", "there is no folder ~nobody-of-that-name"),
    ],
)
def test_what_cannot_be_written_is_refused_with_its_path(name, path, message, tmp_path):
    if SEALED in path and not os.path.isdir(SEALED):
        pytest.skip(f"there is no {SEALED} here")
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    (tmp_path / "dangling").symlink_to(tmp_path / "nobody")
    (tmp_path / "astray").symlink_to("no/file.jsonl")
    here = lambda text: text.replace("FILE", f"{tmp_path}/file").replace("ASTRAY", f"{tmp_path}/astray").replace("DANGLING", f"{tmp_path}/dangling").replace("FOLDER", str(tmp_path))
    with pytest.raises(UserError) as caught:
        check_outputs({name: here(path)})
    assert here(message) in str(caught.value) and "name" in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["astray", "dangling", "file"] and (tmp_path / "file").read_text(encoding="utf-8") == "kept"


@pytest.mark.parametrize("name", ["data", "eval_data", "prompts", "config", "tasks_from", "triplets_from", "personas", "launch_file"])
def test_what_is_read_is_not_written_over(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    read, other = tmp_path / "read.jsonl", tmp_path / "other.jsonl"
    read.write_text("precious\n", encoding="utf-8")
    (tmp_path / "link").symlink_to(read)
    values = {name: str(read) if name in ("config", "personas", "launch_file") else ["no such file", str(read)]}
    for output in (str(read), "~/read.jsonl", str(tmp_path / "link")):
        with pytest.raises(UserError, match=f"^--output {output} is what --{name} reads: name another file"):
            check_outputs(values | {"output": output})
    check_outputs(values | {"output": str(other)})
    other.write_text("", encoding="utf-8")
    check_outputs(values | {"output": str(other)})


def test_two_outputs_are_two_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link").symlink_to(tmp_path / "made.jsonl")
    for dropped in (str(tmp_path / "made.jsonl"), "~/made.jsonl", str(tmp_path / "link")):
        with pytest.raises(UserError, match=f"^--dropped {dropped} is what --output writes: name another file"):
            check_outputs({"output": str(tmp_path / "made.jsonl"), "dropped": dropped})
    check_outputs({"output": str(tmp_path / "made.jsonl"), "dropped": str(tmp_path / "dropped.jsonl")})
    check_outputs({"output": "/dev/null", "dropped": "/dev/null"})


def test_a_list_is_no_name():
    with pytest.raises(UserError, match=r"--output must be the name of one file, got \['a', 'b'\]"):
        check_outputs({"output": ["a", "b"]})


def test_an_opened_output_keeps_what_it_holds_until_it_is_emptied(tmp_path):
    (tmp_path / "x").write_text("before\n", encoding="utf-8")
    with open_output(str(tmp_path / "x")) as output:
        assert (tmp_path / "x").read_text(encoding="utf-8") == "before\n"
        empty(output)
        output.write("수원\n")
    assert (tmp_path / "x").read_text(encoding="utf-8") == "수원\n"


def test_a_device_or_a_pipe_is_written_as_it_is():
    with open_output("/dev/null") as output:
        empty(output)
    reader, writer = os.pipe()
    with open_output(f"/dev/fd/{writer}") as output:
        os.close(writer)
        empty(output)
        output.write("x")
    with open(reader, encoding="utf-8") as heard:
        assert heard.read() == "x"


def test_what_can_be_written_passes_and_nothing_is_made_or_changed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    there = tmp_path / "there.jsonl"
    there.write_text("kept\n", encoding="utf-8")
    changed = there.stat().st_mtime_ns
    check_outputs({"output_dir": "runs/sft", "output": str(there), "html": "page.html"})
    check_outputs({"output_dir": str(tmp_path), "output": "/dev/stdout", "html": None})
    check_outputs({"model": "FILE/x"})
    assert os.listdir(tmp_path) == ["there.jsonl"] and there.stat().st_mtime_ns == changed
