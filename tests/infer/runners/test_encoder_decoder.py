"""The runner for encoder-decoders: the same calls, the same logits as the model's own."""

import copy

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from seodang.data.errors import UserError
from seodang.infer import score
from seodang.infer.checkpoint.load import load
from seodang.infer.engine import id_scoring, scoring
from seodang.infer.runners.encoder_decoder import EncoderDecoderRunner, decoder_start
from seodang.infer.runners.open import open_runner

KINDS = ["t5", "bart", "marian", "fsmt"]
# open_runner gives all but fsmt a runner of their own
RUNNERS = [*((open_runner, kind) for kind in KINDS), *((EncoderDecoderRunner, kind) for kind in KINDS[:3])]
SIZES = {
    "vocab_size": 128, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 0, "forced_eos_token_id": None,
}  # fmt: skip
FURTHER = {
    "marian": SIZES,
    "mbart": SIZES,
    "fsmt": {**SIZES, "langs": ["en", "de"], "src_vocab_size": 128, "tgt_vocab_size": 128},
    "umt5": {"vocab_size": 128, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
    "switch_transformers": {
        "vocab_size": 128, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, "num_experts": 4,
        "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "decoder_start_token_id": 0,
    },
}  # fmt: skip


def further(kind: str):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(kind, **FURTHER[kind])).eval()
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:  # positions must weigh more than the source, or one token is repeated
                torch.nn.init.normal_(parameter, std=1.5 if "embed_positions" in name else 0.16 if "encoder_attn" in name else 0.3)
    return model


@pytest.fixture(scope="module")
def model(tiny):
    """`model(kind)`: in float64, save for FSMT, whose mask takes float32 alone."""
    built = {}

    def get(kind: str):
        if kind not in built:
            made = further(kind) if kind in FURTHER else copy.deepcopy(tiny(kind))
            built[kind] = made if kind == "fsmt" else made.double()
        return built[kind]

    return get


def ids(n: int, seed: int) -> list[int]:
    return torch.randint(3, 128, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def whole(model, source: list[int], answer: list[int]):
    return model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([answer]), use_cache=False, output_hidden_states=True)


def logits(model, source: list[int], answer: list[int]) -> torch.Tensor:
    return whole(model, source, answer).logits[0]


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=1e-11 if want.dtype == torch.float64 else 2e-5)


LONG, SHORT, MIDDLE = ids(13, 1), ids(4, 2), ids(9, 3)  # sources
A, B, C = ids(9, 4), ids(8, 5), ids(8, 6)  # answers


@pytest.mark.parametrize("open_one, kind", RUNNERS)
def test_logits_of_rows_of_any_length_equal_the_models_own(model, open_one, kind):
    runner = open_one(model(kind))
    assert isinstance(runner, EncoderDecoderRunner)
    a, b = runner.allocate(LONG), runner.allocate(SHORT)
    got = {a: [], b: []}

    def run(rows, new):
        for row, part in zip(rows, runner.forward(rows, new, [len(own) for own in new]).split([len(own) for own in new])):
            got[row].append(part)

    run([a, b], [A[:2], B[:3]])  # new rows of unlike length
    run([a, b], [A[2:3], B[3:4]])  # unlike lengths: a pass each
    run([a], [A[3:4]])  # now they have the same
    run([b, a], [B[4:5], A[4:5]])
    run([a, b], [A[5:6], B[5:6]])  # the same rows in another order
    c = runner.allocate(MIDDLE)
    got[c] = []
    run([c, b, a], [C[:3], B[6:7], A[6:8]])  # one joins, with unlike numbers of tokens
    run([c, a], [C[3:8], A[8:9]])
    for row, source, answer in ((a, LONG, A), (b, SHORT, B[:7]), (c, MIDDLE, C)):
        close(torch.cat(got[row]), logits(model(kind), source, answer))
        assert runner.length(row) == len(answer)
    assert runner.live == 3
    runner.release([a, c])
    close(runner.forward([b], [B[7:8]], [1]), logits(model(kind), SHORT, B)[-1:])
    runner.refresh()
    assert runner.live == 0


@pytest.mark.parametrize("open_one, kind", RUNNERS)
def test_forks_and_truncated_rows_go_on_by_themselves(model, open_one, kind):
    runner = open_one(model(kind))
    a = runner.allocate(LONG)
    [early] = runner.fork([a])  # before the source was read
    runner.forward([a], [A[:5]], [1])
    [late] = runner.fork([a])
    got = runner.forward([a, late, early], [A[5:6], [7], B[:2]], [1, 1, 2])
    want = [logits(model(kind), LONG, A[:6])[-1:], logits(model(kind), LONG, [*A[:5], 7])[-1:], logits(model(kind), LONG, B[:2])]
    close(got, torch.cat(want))
    runner.truncate(late, 3)
    runner.truncate(a, 5)  # the sixth was a guess
    got = runner.forward([a, late], [[8], [9, 10]], [1, 2])
    close(got, torch.cat([logits(model(kind), LONG, [*A[:5], 8])[-1:], logits(model(kind), LONG, [*A[:3], 9, 10])[-2:]]))
    runner.truncate(late, 0)
    new = runner.allocate(SHORT)
    got = runner.forward([late, new], [C[:2], C[:2]], [1, 1])
    close(got, torch.cat([logits(model(kind), LONG, C[:2])[-1:], logits(model(kind), SHORT, C[:2])[-1:]]))
    runner.release([a])
    close(runner.forward([late], [C[2:3]], [1]), logits(model(kind), LONG, C[:3])[-1:])


@pytest.mark.parametrize("open_one", [open_runner, EncoderDecoderRunner])
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_a_copied_row_has_the_past_and_the_source_of_the_other(model, open_one, kind):
    runner = open_one(model(kind))
    rows = [runner.allocate(LONG) for _ in range(3)] + [runner.allocate(SHORT)]
    runner.forward(rows, [A[:4], B[:4], C[:4], C[:4]], [1] * 4)
    runner.copy(rows[0], rows[1], 0)  # beams of one source
    runner.copy(rows[2], rows[3], 0)  # another source
    got = runner.forward(rows, [[5], [6], [7], [8]], [1] * 4)
    pasts = [A[:4], A[:4], C[:4], C[:4]]
    close(got, torch.cat([logits(model(kind), LONG, [*past, new])[-1:] for past, new in zip(pasts, [5, 6, 7, 8])]))
    runner.copy(rows[1], rows[0], 4)  # the first four are the same already
    got = runner.forward(rows[:2], [[9], [10]], [1, 1])
    close(got, torch.cat([logits(model(kind), LONG, [*A[:4], 6, new])[-1:] for new in (9, 10)]))


@pytest.mark.parametrize("open_one", [open_runner, EncoderDecoderRunner])
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_a_row_copied_onto_its_neighbour_does_not_pass_for_the_neighbour(model, open_one, kind):
    runner = open_one(model(kind))
    rows = [runner.allocate(LONG), runner.allocate(LONG)]
    runner.forward(rows, [A[:4], B[:4]], [1, 1])
    runner.copy(rows[0], rows[1], 0)
    runner.release([rows[0]])
    close(runner.forward([rows[1]], [[5]], [1]), logits(model(kind), LONG, [*A[:4], 5])[-1:])


def test_a_step_of_the_same_rows_goes_on_in_their_cache_and_changed_beams_keep_what_was_read(model):
    runner = EncoderDecoderRunner(model("t5"))
    rows = [runner.allocate(LONG), runner.allocate(SHORT), runner.allocate(LONG)]
    runner.forward(rows, [[3]] * 3, [1] * 3)
    before = runner._home[rows[0]][0]
    read = before.cache.cross_attention_cache.layers[0].keys
    runner.forward(rows, [[4]] * 3, [1] * 3)
    runner.forward(rows[::-1], [[5]] * 3, [1] * 3)
    assert runner._home[rows[0]][0] is before and before.cache.cross_attention_cache.layers[0].keys is read
    beams = runner.fork([rows[0], rows[0]])
    runner.forward(beams, [[6], [7]], [1, 1])
    beams_read = runner._home[beams[0]][0].cache.cross_attention_cache
    runner.copy(beams[1], beams[0], 3)
    runner.forward(beams, [[6], [7]], [1, 1])
    assert runner._home[beams[0]][0].cache.cross_attention_cache is beams_read


def test_a_source_is_read_once_and_those_of_like_length_together(model, monkeypatch):
    runner, shapes = EncoderDecoderRunner(model("bart")), []
    encoder = runner.model.get_encoder()
    hook = encoder.register_forward_hook(lambda module, inputs, kwargs, output: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True)
    try:
        rows = [runner.allocate(ids(n, n)) for n in (12, 3, 10, 2, 11)]
        rows += runner.fork(rows[:2])
        runner.forward(rows, [[2]] * 7, [1] * 7)
        runner.forward(rows, [[5]] * 7, [1] * 7)
    finally:
        hook.remove()
    assert shapes == [(3, 12), (2, 3)]


@pytest.mark.parametrize("kind", ["t5", "bart", "marian"])
def test_greedy_decoding_over_the_runner_gives_the_tokens_of_generate(model, kind):
    sources = [LONG, SHORT, MIDDLE]
    runner = open_runner(model(kind))
    rows = [runner.allocate(source) for source in sources]
    answers = [decoder_start(model(kind)) for _ in sources]
    logits = runner.forward(rows, answers, [1] * 3)
    for _ in range(20):
        picks = logits.argmax(dim=-1).tolist()
        answers = [answer + [pick] for answer, pick in zip(answers, picks)]
        logits = runner.forward(rows, [[pick] for pick in picks], [1] * 3)
    for source, answer in zip(sources, answers):
        want = model(kind).generate(torch.tensor([source]), max_new_tokens=20, do_sample=False, num_beams=1)[0].tolist()
        assert answer[: len(want)] == want and len(set(want)) > 3
    assert len({tuple(answer) for answer in answers}) == 3


@pytest.mark.parametrize("open_one, kind", [*RUNNERS, (open_runner, "mbart"), (open_runner, "umt5"), (open_runner, "switch_transformers")])
def test_hidden_states_are_those_of_the_decoder_and_the_head_turns_the_last_into_logits(model, open_one, kind):
    runner = open_one(model(kind))
    rows = [runner.allocate(LONG), runner.allocate(SHORT)]
    first = runner.observe(rows, [A[:3], B[:2]], [0, 1], (0, 1, 2))
    then = runner.observe(rows, [A[3:5], B[2:3]], [2, 1], (2,))
    a, b = whole(model(kind), LONG, A[:5]), whole(model(kind), SHORT, B[:3])
    atol = 1e-5 if kind in ("fsmt", "switch_transformers") else 1e-11  # the router counts in float32
    for layer in (0, 1, 2):
        want = torch.cat([a.decoder_hidden_states[layer][0, :3], b.decoder_hidden_states[layer][0, :2]])
        torch.testing.assert_close(first.states[layer], want, rtol=0, atol=atol)
    want = torch.cat([a.decoder_hidden_states[2][0, 3:], b.decoder_hidden_states[2][0, 2:]])
    torch.testing.assert_close(then.states[2], want, rtol=0, atol=atol)
    torch.testing.assert_close(then.logits, torch.cat([a.logits[0, 3:], b.logits[0, 2:]]), rtol=0, atol=atol)
    if kind == "fsmt":
        with pytest.raises(UserError, match="fsmt"):
            runner.head(then.states[2])
    else:
        torch.testing.assert_close(runner.head(then.states[2]), then.logits, rtol=0, atol=atol)


def test_limits_are_those_of_absolute_positions_and_a_source_beyond_them_is_refused(model):
    assert (open_runner(model("t5")).limit, open_runner(model("t5")).source_limit) == (None, None)
    runner = open_runner(model("bart"))
    assert (runner.limit, runner.source_limit) == (256, 256)
    runner.allocate(ids(256, 0))
    with pytest.raises(UserError, match="source has 257 tokens, more than the 256"):
        runner.allocate(ids(257, 0))
    with pytest.raises(UserError, match="source is empty"):
        runner.allocate([])


def test_t5_stays_unlimited_where_its_checkpoint_names_the_length_of_its_training(fresh_tiny):
    assert open_runner(fresh_tiny("t5", n_positions=16)).limit is None


def test_an_adapter_speaks_through_the_runner(fresh_tiny):
    model = get_peft_model(fresh_tiny("t5").double(), LoraConfig(r=2, target_modules=["q", "v"], init_lora_weights=False))
    runner = open_runner(model.eval())
    got = runner.forward([runner.allocate(SHORT)], [A[:3]], [3])
    close(got, logits(model, SHORT, A[:3]))
    with model.disable_adapter():
        assert not torch.allclose(got, logits(model, SHORT, A[:3]), atol=1e-3)


def test_a_training_model_is_run_without_dropout_and_stays_in_training(fresh_tiny):
    model = fresh_tiny("bart").double().train()
    runner = open_runner(model)
    row = runner.allocate(SHORT)
    got = torch.cat([runner.forward([row], [[id]], [1]) for id in A])
    assert all(module.training for module in model.modules())
    close(got, logits(model.eval(), SHORT, A))


def test_the_decoders_start_is_the_generation_configs_then_the_configs_then_bos(fresh_tiny):
    model = fresh_tiny("t5")
    model.generation_config.decoder_start_token_id = 5
    assert decoder_start(model) == [5]
    model.generation_config.decoder_start_token_id = None
    assert decoder_start(model) == [0]
    model.config.decoder_start_token_id = None
    assert decoder_start(model) == [1]
    model.generation_config.bos_token_id = model.config.bos_token_id = None
    with pytest.raises(UserError, match="set decoder_start_token_id in its generation_config.json"):
        decoder_start(model)


def test_refuses_by_name_models_that_do_not_turn_a_text_into_a_text(fresh_tiny):
    with pytest.raises(UserError, match="T5Model has no language model head"):
        from transformers import T5Model

        open_runner(T5Model(fresh_tiny("t5").config))
    small = {"hidden_size": 16, "num_encoder_layers": 1, "num_decoder_layers": 1, "num_encoder_attention_heads": 2, "vocab_size": 32}
    with pytest.raises(UserError, match="prophetnet"):
        open_runner(AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("prophetnet", **small)))


@torch.no_grad()
def by_labels(model, source: list[int], labels: list[int]) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([source]), labels=torch.tensor([labels])).logits[0]
    return -F.cross_entropy(logits, torch.tensor(labels), reduction="none")


@pytest.mark.parametrize("positions, rows_of_logits", [(8192, 512), (16, 5)])
@pytest.mark.parametrize("kind", ["t5", "bart", "mbart", "marian"])
def test_scores_equal_the_cross_entropy_of_labels(model, tokenizer, monkeypatch, kind, positions, rows_of_logits):
    for module in (scoring, id_scoring):
        monkeypatch.setattr(module, "MAX_POSITIONS", positions)
    monkeypatch.setattr(id_scoring, "MAX_LOGITS", rows_of_logits)
    pairs = [(LONG, A), (SHORT, B), (MIDDLE, C[:1]), (SHORT, ids(20, 7)), (LONG, C[:3])]
    got = score(model(kind), tokenizer, *map(list, zip(*pairs)))
    for scores, pair in zip(got, pairs):
        close(scores, by_labels(model(kind), *pair))


def test_a_text_is_scored_with_the_end_that_the_tokenizer_gives_a_target(model, tiny_tokenizer):
    from tokenizers.processors import TemplateProcessing

    tiny_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A <|im_end|>", special_tokens=[("<|im_end|>", 2)])
    [got] = score(model("t5"), tiny_tokenizer, ["Suwon"], ["Korea"])
    source, target = tiny_tokenizer("Suwon")["input_ids"], tiny_tokenizer(text_target="Korea")["input_ids"]
    assert target[-1] == 2 and len(target) == 6
    close(got, by_labels(model("t5"), source, target))


def test_refuses_to_score_messages_nothing_and_what_is_too_long(model, tokenizer):
    with pytest.raises(UserError, match="answer 1 is a message"):
        score(model("t5"), tokenizer, [[5]], [{"role": "assistant", "content": "a"}])
    with pytest.raises(UserError, match="answer 2 is empty"):
        score(model("t5"), tokenizer, [[5], [5]], [[6], []])
    with pytest.raises(UserError, match="answer 1 has 257 tokens"):
        score(model("bart"), tokenizer, [[5]], [ids(257, 0)])
    with pytest.raises(UserError, match="prompt 1 has 257 tokens"):
        score(model("bart"), tokenizer, [ids(257, 0)], [[5]])


def test_load_opens_an_encoder_decoders_checkpoint_as_one(fresh_tiny, tiny_tokenizer, tmp_path):
    saved = fresh_tiny("t5", seed=3)
    saved.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    loaded, _ = load(tmp_path, device="cpu", dtype="float32")
    assert type(loaded) is type(saved)
    assert torch.equal(logits(loaded, SHORT, A), logits(saved, SHORT, A))
