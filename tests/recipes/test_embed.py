"""`seodang embed`: vectors of a file in every format, gone on with after an interruption, searches, what is refused; `seodang contrastive` into its folder."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from seodang.infer import SentenceEncoder
from seodang.infer.encoders.search import Nearest
from seodang.recipes import contrastive, embed
from seodang.recipes.run import vectors_file

TEXTS = [f"w{i} w{i + 1} w{2 * i}" + f" w{i + 3}" * (i % 4) for i in range(20)]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"review": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


@pytest.fixture
def run(encoder_folder, data, capsys):
    def run(*words):
        code = embed.main(["--model", str(encoder_folder), "--dtype", "float32", "--device", "cpu", "--data", str(data), "--column", "review", *map(str, words)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def wanted(encoder_folder):
    return SentenceEncoder.open(encoder_folder, dtype="float32", device="cpu").embed(TEXTS)


@pytest.mark.parametrize("ending", [".npy", ".safetensors", ".jsonl"])
def test_vectors_of_a_file_a_window_at_a_time(run, wanted, tmp_path, monkeypatch, ending):
    monkeypatch.setattr(embed, "WINDOW", 6)
    out = tmp_path / f"vectors{ending}"
    assert run("--output", out)[:2] == (0, f"vectors         20 of 32 numbers in {out}\n")
    torch.testing.assert_close(read(out), wanted, rtol=0, atol=1e-6)
    assert sorted(path.name for path in tmp_path.glob("vectors*")) == [out.name]
    if ending == ".jsonl":
        assert json.loads(out.read_text().splitlines()[2])["record"].endswith("line 3")


def read(path):
    if path.suffix == ".npy":
        return torch.from_numpy(np.load(path))
    if path.suffix == ".safetensors":
        return load_file(path)["vectors"]
    return torch.tensor([json.loads(line)["vector"] for line in path.read_text(encoding="utf-8").splitlines()])


@pytest.mark.parametrize("ending", [".npy", ".safetensors", ".jsonl"])
def test_an_interrupted_run_is_gone_on_with(run, wanted, tmp_path, monkeypatch, ending):
    monkeypatch.setattr(embed, "WINDOW", 6)
    out, vectors, passed = tmp_path / f"vectors{ending}", embed.OfEncoder.vectors, []

    def interrupted(self, records, prompt):
        if len(passed) == 2:
            raise KeyboardInterrupt
        passed.append(len(records))
        return vectors(self, records, prompt)

    monkeypatch.setattr(embed.OfEncoder, "vectors", interrupted)
    try:
        run("--output", out)
    except KeyboardInterrupt:
        pass
    with open(f"{out}.partial", "ab") as file:
        file.write(b"half a row")
    monkeypatch.setattr(embed.OfEncoder, "vectors", lambda self, records, prompt: passed.append(len(records)) or vectors(self, records, prompt))
    code, _, err = run("--output", out)
    assert code == 2 and "holds the rows of a run that was interrupted: --resume goes on from there" in err
    code, _, err = run("--output", out, "--resume", "--normalise", "true")
    assert code == 2 and "was made with normalise None, now True" in err
    assert run("--output", out, "--resume")[0] == 0
    assert passed == [6, 6, 6, 2]
    torch.testing.assert_close(read(out), wanted, rtol=0, atol=1e-6)


def test_what_is_nearest_is_what_comparing_with_all_finds(run, wanted, encoder_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "WINDOW", 6)
    query = SentenceEncoder.open(encoder_folder, dtype="float32", device="cpu").embed(["w5 w6"])
    cosines = torch.nn.functional.cosine_similarity(query, wanted)
    order = cosines.argsort(descending=True, stable=True)[:3].tolist()
    code, out, _ = run("--search", "w5 w6", "--top_k", 3)
    assert code == 0 and [line.split("  ")[-1].strip() for line in out.splitlines()] == [TEXTS[i] for i in order]
    assert [float(line.split()[0]) for line in out.splitlines()] == pytest.approx(cosines[order].tolist(), abs=1e-4)
    (tmp_path / "queries.jsonl").write_text('{"review": "w5 w6"}\n{"review": "w9"}\n', encoding="utf-8")
    assert run("--search", tmp_path / "queries.jsonl", "--top_k", 3, "--output", tmp_path / "found.jsonl")[0] == 0
    first, second = map(json.loads, (tmp_path / "found.jsonl").read_text().splitlines())
    assert [hit["text"] for hit in first["hits"]] == [TEXTS[i] for i in order] and second["query"] == "w9" and len(second["hits"]) == 3


def test_equally_near_ones_come_in_their_order():
    nearest = Nearest(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), 2)
    nearest.add(torch.tensor([[0.0, 1.0], [3.0, 0.0]]), ["a", "b"])
    nearest.add(torch.tensor([[5.0, 0.0], [1.0, 0.0], [0.0, 4.0]]), ["c", "d", "e"])
    assert [[(hit.place, hit.told) for hit in hits] for hits in nearest.hits()] == [[(1, "b"), (2, "c")], [(0, "a"), (4, "e")]]


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "give --output, the file of the vectors"), (["--output", "v.txt"], "vectors are written to .npy, .safetensors or .jsonl"),
        (["--search", "w1", "--top_k", 0], "top_k must be at least 1"), (["--output", "v.npy", "--resume"], "there is no v.npy.partial"),
        (["--output", "v.npy", "--max_length", 40], "max_length 40 is more than the 32 positions"), (["--output", "v.npy", "--column", "text"], "did you mean"),
        (["--output", "v.npy", "--prompt", "query"], "prompt 'query' is none of the model's"), (["--output", "v.npy", "--too_long", "error", "--max_length", 5], "line 2 has 6 tokens"),
    ],
)  # fmt: skip
def test_mistakes_are_told(run, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*words)
    assert code == 2 and message in err


def test_what_is_cut_is_counted(run, tmp_path):
    code, _, err = run("--output", tmp_path / "v.npy", "--max_length", 5)
    assert code == 0 and "warning: 15 of 20 texts are longer than 5 tokens (the longest has 8)" in err


def test_a_file_that_is_no_run_of_ours_stays(tmp_path):
    with pytest.raises(Exception, match="choose one of these endings"):
        vectors_file.kind(str(tmp_path / "a.bin"))


def test_a_decoder_gives_the_mean_of_its_last_layer(fresh_tiny, tiny_tokenizer, tmp_path, capsys):
    from seodang.infer import embed as of_model

    model = fresh_tiny("llama")
    model.save_pretrained(tmp_path / "llama")
    tiny_tokenizer.save_pretrained(tmp_path / "llama")
    (tmp_path / "texts.txt").write_text("abc\nde\n", encoding="utf-8")
    common = ["--model", str(tmp_path / "llama"), "--dtype", "float32", "--device", "cpu", "--data", str(tmp_path / "texts.txt"), "--output", str(tmp_path / "v.npy")]
    assert embed.main(common) == 0
    torch.testing.assert_close(read(tmp_path / "v.npy"), of_model(model, tiny_tokenizer, ["abc", "de"]), rtol=0, atol=1e-6)
    assert embed.main([*common, "--pooling", "cls"]) == 2 and "pooling cls is for encoders" in capsys.readouterr().err


def test_contrastive_writes_a_folder_that_embed_reads(encoder_folder, tmp_path, capsys):
    pairs = tmp_path / "pairs.jsonl"
    records = [{"query": f"w{i}", "document": f"w{i + 25}", "negative": f"w{(i + 7) % 20}"} for i in range(20)]
    pairs.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    run = ["--model", str(encoder_folder), "--device", "cpu", "--dtype", "float32", "--data", str(pairs), "--eval_fraction", "0.2", "--output_dir", str(tmp_path / "run"),
           "--report_to", "none", "--per_device_train_batch_size", "4", "--max_steps", "4", "--save_steps", "2", "--max_length", "9"]  # fmt: skip
    assert contrastive.main([*run, "--dry_run"]) == 0 and not (tmp_path / "run").exists()
    assert "of each pair the texts of the 3 others of its batch, less those that belong to it" in capsys.readouterr().out
    assert contrastive.main(run) == 0
    out = capsys.readouterr().out
    assert "held out        4 pairs" in out and "negatives       16 texts that records say do not belong to theirs" in out
    assert "recall@1" in out and "mrr" in out and " -> " in out
    encoder = SentenceEncoder.open(tmp_path / "run", dtype="float32", device="cpu")
    assert (encoder.max_length, encoder.readout.normalised) == (9, True)
    torch.testing.assert_close(encoder.embed(["w1"]).norm(dim=1), torch.ones(1))
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert {"modules.json", "1_Pooling/config.json", "2_Normalize/config.json"} <= manifest["files"].keys() and manifest["paradigm"] == "embedding"
    assert contrastive.main([*run, "--temperature", "0.1"]) == 2 and "--temperature 0.05, now 0.1" in capsys.readouterr().err


def test_what_finds_nothing_is_refused_and_leaves_nothing_to_go_on_with(run, data, tmp_path):
    (tmp_path / "none.txt").write_text("\n\n")
    out = tmp_path / "vectors.npy"
    assert "none.txt has no texts" in run("--output", out, "--data", tmp_path / "none.txt")[2]
    assert "none.txt has no texts" in run("--search", tmp_path / "none.txt")[2]
    assert "search questions.txt: there is no such file" in run("--search", "questions.txt")[2]
    assert "search is empty" in run("--search", " ")[2]
    assert "top_k 3 is for a search" in run("--output", out, "--top_k", 3)[2]
    data.write_text('{"review": " "}\n')
    assert "the text is empty" in run("--output", out)[2]
    data.write_text('{"review": "w1"}\n')
    assert run("--output", out)[0] == 0  # and not: what was interrupted is to be gone on with
    assert sorted(path.name for path in tmp_path.glob("vectors*")) == ["vectors.npy"]
    code, told, _ = run("--search", "w1", "--top_k", 5, "--output", tmp_path / "found.jsonl", "--normalise")
    assert code == 0 and told.startswith("found           the 1 nearest of 1 texts to 1 queries")
