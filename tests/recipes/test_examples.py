"""Every example of recipes/examples/ runs by the commands of its comment, word for word, on tiny models that stand in for the default ones."""

import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants
from seldom import full_but

from seodang.data.form_pairs import main as form_pairs
from seodang.infer import SamplingParams, generate
from seodang.infer.checkpoint.load import load
from seodang.infer.checkpoint.manifest import verify
from seodang.train.run.callbacks import read_log

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "recipes" / "examples"
ORDER = ["instructgpt/sft", "instructgpt/reward", "instructgpt/ppo", "instructgpt/eval", "dpo", "grpo", "lora_hub", "diffusion", "classifier", "seq2seq/pretrain", "seq2seq/geography"]


def comment(name):
    """The lines of an example's comment without their marks."""
    lines = (EXAMPLES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return [line[1:].removeprefix(" ") for line in lines if line.startswith("#")]


def commands(name):
    return [line.strip() for line in comment(name) if line.startswith("    ")]


def left(name):
    """What the comment says that the commands leave behind."""
    [line] = [line for line in comment(name) if line.startswith("Leaves: ")]
    return re.findall(r"runs/\S+[^\s,.;]", line)


@pytest.fixture(scope="module")
def clone(tmp_path_factory, small_defaults):
    """A folder as a fresh clone is; what the hub's cache has there of Qwen is tiny."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("data", "recipes"):
        (folder / name).symlink_to(ROOT / name)
    repository = folder / "hub" / "models--Qwen--Qwen3-1.7B"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abc", encoding="utf-8")
    shutil.copytree(small_defaults / "qwen", repository / "snapshots" / "0123abc")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
        yield folder


@pytest.fixture
def ran(clone, unpainted, quickly):
    """`ran(name)`: an example has run, after those whose files it reads."""

    def run(name):
        settings = {EXAMPLES / f"{name}.yaml", *(ROOT / path for command in commands(name) for path in re.findall(r"recipes/\S+\.yaml", command))}
        text = "".join(path.read_text(encoding="utf-8") for path in settings)
        for other in ORDER[: ORDER.index(name)]:
            if any(path in text for path in left(other)):
                run(other)
        if not (done := clone / f"{name.replace('/', '-')}.done").exists():
            for command in commands(name):
                if command.startswith("python -m seodang.data.form_pairs "):
                    made = command.split()[-1]
                    form_pairs(made)
                    for path in Path(made).glob("*.jsonl"):  # a few of its records will do
                        path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:40]), encoding="utf-8")
                else:
                    quickly(command)
            done.touch()

    return run


def test_every_example_is_run_here_and_is_in_the_documents():
    assert {path.relative_to(EXAMPLES).with_suffix("").as_posix() for path in EXAMPLES.rglob("*.yaml")} == {*ORDER}
    told = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for name in ORDER:
        assert commands(name), name
        for command in commands(name):
            assert command in told, f"{name}: docs/recipes.md has another command than the comment"
        for start in ("Needs: ", "Came out: ", "Leaves: "):
            assert sum(line.startswith(start) for line in comment(name)) == 1, (name, start)


OFTEN = {*ORDER} - {"grpo", "lora_hub", "diffusion", "seq2seq/geography"}  # what these train is trained elsewhere too


@pytest.mark.parametrize("name", full_but(OFTEN, ORDER))
def test_an_example_runs_by_the_commands_of_its_comment_and_leaves_what_it_names(name, ran, clone):
    ran(name)
    for path in map(Path, left(name)):
        assert path.exists(), path
        if path.is_dir() and any(path.glob("*.safetensors")):
            assert verify(path) is not None, path


def speaks(folder):
    """The ids that a checkpoint answers with, and the model."""
    model, tokenizer = load(folder, device="cpu", dtype="float32")
    [result] = generate(model, tokenizer, [[{"role": "user", "content": "In which country is Suwon?"}]], SamplingParams(max_new_tokens=4))
    assert result.ids and result.finish_reason in ("eos", "length")
    return model


@pytest.mark.parametrize("name", full_but(OFTEN, ["instructgpt/sft", "instructgpt/ppo", "dpo", "grpo", "diffusion"]))
def test_what_an_example_teaches_speaks_and_is_not_what_it_began_with(name, ran, clone):
    ran(name)
    beginning = "default" if name in ("instructgpt/sft", "diffusion") else "runs/examples/instructgpt/sft"
    before, _ = load(beginning, device="cpu", dtype="float32")
    after = speaks(f"runs/examples/{name}")
    taught, untaught = (model.get_input_embeddings().weight for model in (after, before))
    rewarded = name != "grpo" or any(line.get("reward_std") for line in read_log(Path("runs/examples/grpo/log.jsonl")))
    assert taught[: len(untaught)].equal(untaught) != rewarded  # where all of a group are rewarded alike, nothing is to be learned


@pytest.mark.full
def test_the_adapter_names_the_hubs_model_as_its_base_and_speaks_on_it(ran, clone):
    ran("lora_hub")
    told = json.loads(Path("runs/examples/lora-hub/adapter_config.json").read_text(encoding="utf-8"))
    assert told["base_model_name_or_path"] == "Qwen/Qwen3-1.7B" and told["r"] == 16
    speaks("runs/examples/lora-hub")


@pytest.mark.parametrize(("name", "file"), [("instructgpt/eval", "instructgpt/eval"), ("dpo", "dpo/eval"), ("grpo", "grpo/eval")])
def test_before_and_after_are_measured_side_by_side(name, file, ran, clone):
    ran(name)
    told = json.loads(Path(f"runs/examples/{file}.json").read_text(encoding="utf-8"))
    names = [each["name"] for each in told["models"]]
    assert names[0] == "sft" and names[1] == Path(file).parent.name.replace("instructgpt", "ppo") and told["records"] == 3
    measured = {metric: set(of) for metric, of in told["figures"]["all records"].items()}
    assert {"contains", "rule:form"} <= measured.keys() and all(of == {*names} for of in measured.values())
    assert all(name in Path(f"runs/examples/{file}.html").read_text(encoding="utf-8") for name in names)


def test_the_classifier_says_of_each_text_one_of_the_tasks(ran, clone):
    ran("classifier")
    records, predicted = (
        [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        for path in ("data/samples/everyday_heldout.jsonl", "runs/examples/classifier/predicted.jsonl")
    )
    assert len(predicted) == len(records) and {each["label"] for each in predicted} <= {each["task"] for each in records}


@pytest.mark.full
def test_the_encoder_decoder_goes_on_from_what_it_read_and_answers_the_held_out_questions(ran, clone):
    ran("seq2seq/geography")
    pretrained, tokenizer = load("runs/examples/seq2seq/pretrained", device="cpu", dtype="float32")
    taught, _ = load("runs/examples/seq2seq/geography", device="cpu", dtype="float32")
    moved = (taught.get_input_embeddings().weight - pretrained.get_input_embeddings().weight).abs()
    assert 0 < moved.max() < 0.01 < pretrained.get_input_embeddings().weight.std()  # two steps from there: other random weights would be further
    records, answers = (
        [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        for path in ("data/samples/geography_heldout.jsonl", "runs/examples/seq2seq/answers.jsonl")
    )
    assert [each["reference"] for each in answers] == [each["output"] for each in records]
    assert json.loads(Path("runs/examples/seq2seq/answers.jsonl.metrics.json").read_text())["measured"] == len(records)
    assert "<extra_id_0>" in tokenizer.get_vocab()


def test_the_rewards_of_the_examples_by_hand():
    from seodang.recipes.examples.rules import form, right_in_form

    said, asked = ["Seoul", "SEOUL", "Busan", "Busan is a city in Korea."], ["alone"] * 4
    assert form(said, asked) == [1.0, 0.0, 1.0, 0.0]
    assert right_in_form(said, asked, ["Seoul"] * 4) == [1.0, 0.5, 0.5, 0.0]
