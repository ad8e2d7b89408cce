"""Which runner a model gets: by what a few tokens show, for every causal architecture that transformers has."""

import inspect
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from seodang.data.errors import UserError
from seodang.infer import SamplingParams, generate
from seodang.infer.runners import open as opening
from seodang.infer.runners.direct import DirectRunner
from seodang.infer.runners.open import open_runner
from seodang.infer.runners.probe import agree, tolerance
from seodang.infer.runners.ragged import RaggedRunner
from seodang.infer.runners.recomputing import RecomputingRunner

# what a configuration may call its sizes; whichever of these it has is set
SMALL = {
    **dict.fromkeys(["vocab_size", "vocab_size_per_layer_input"], 128),
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "emb_dim", "dim", "embedding_size", "attention_hidden_size", "lru_width"], 32),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "d_ff", "n_inner", "ffn_hidden_size", "decoder_ffn_dim", "encoder_ffn_dim"], 64),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"], 2),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "encoder_attention_heads"], 4),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "mamba_n_heads", "linear_num_value_heads"], 4),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"], 128),
    **dict.fromkeys(["head_dim", "kv_channels", "attention_head_dim", "qk_nope_head_dim", "v_head_dim", "kv_lora_rank", "index_head_dim"], 8),
    **dict.fromkeys(["linear_key_head_dim", "linear_value_head_dim", "hidden_size_per_layer_input"], 8),
    **dict.fromkeys(["num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts", "num_key_value_heads"], 2),
    **dict.fromkeys(["linear_num_key_heads", "index_n_heads", "mamba_expand"], 2),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank", "mamba_d_head"], 16),
    **dict.fromkeys(["state_size", "mamba_d_state", "mamba_chunk_size", "mamba_dt_rank", "time_step_rank", "rotary_dim", "qk_rope_head_dim"], 4),
    **dict.fromkeys(["n_shared_experts", "n_group", "topk_group", "num_expert_group", "first_k_dense_replace", "mamba_n_groups"], 1),
    "qk_head_dim": 12, "sliding_window": 6, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "dropout": 0.0,
}  # fmt: skip
LATENT = {"head_dim": 4, "num_key_value_heads": 4}
DEEP = {"num_hidden_layers": 4}  # so that attention is among the layers
OWN = {
    **dict.fromkeys(["axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "youtu", "minicpm3", "hy_v4"], LATENT),
    **dict.fromkeys(["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid", "minimax"], DEEP),
    **dict.fromkeys(["bert", "bert-generation", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert"], {"is_decoder": True}),
    **dict.fromkeys(["roberta", "roberta-prelayernorm", "roformer", "xlm-roberta", "xlm-roberta-xl", "big_bird"], {"is_decoder": True}),
    "glm_moe_dsa": {**LATENT, "index_topk": 64},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 6},
    "falcon_h1": {"mamba_d_ssm": 64},
    "granitemoehybrid": {"num_hidden_layers": 4, "layer_types": ["mamba", "attention"] * 2},
    "bamba": {"num_hidden_layers": 4, "attn_layer_indices": [1, 3]},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 4},
    "recurrent_gemma": {"num_key_value_heads": 1, "block_types": ["recurrent", "attention"]},
    "reformer": {
        "is_decoder": True, "axial_pos_shape": [8, 16], "axial_pos_embds_dim": [16, 16], "attn_layers": ["local"] * 2,
        "local_attn_chunk_length": 16, "feed_forward_size": 64,
    },
    "zaya": {"num_experts_per_tok": 1},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2, "mamba_ngroups": 1, "mamba_headdim": 16, "chunk_size": 4},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2}, "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 2, "moe_top_k": 1}},
}  # fmt: skip
RUNNERS = {
    **dict.fromkeys(["llama", "gpt2", "gemma2", "phi3", "olmo2", "smollm3", "qwen3_moe"], "NativeRunner"),
    "nemotron": "RaggedRunner",  # whose attention is handed no arguments
    "gemma4_unified_text": "RaggedRunner",  # attends in both directions within an image alone
    "gpt_oss": "RaggedRunner", "phimoe": "RaggedRunner",
    "doge": "PaddedRunner",  # lays a pattern of its own over the mask
    "diffllama": "PaddedRunner",  # attends more than once a layer
    "bloom": "PaddedRunner",
    "jamba": "StatefulRunner", "bart": "StatefulRunner",
    "openai-gpt": "RecomputingRunner", "recurrent_gemma": "RecomputingRunner",
    "roberta": "RecomputingRunner",  # counts its positions from its padding's id
}  # fmt: skip
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
REFUSED = {"xlnet": "xlnet attends in both directions", "bert": "bert attends in both directions"}
PROMPTS = [[100, 27, 64, 31, 80, 55, 9, 77, 46], [40, 81, 23, 60]]


def config_of(name: str):
    kind = CONFIG_MAPPING[name]
    fields = {field for base in kind.__mro__ for field in getattr(base, "__annotations__", {})} | set(inspect.signature(kind.__init__).parameters)
    return kind(**{**{field: size for field, size in SMALL.items() if field in fields}, **OWN.get(name, {})})


def build(config, most: int = 5_000_000):
    """A random float32 model; None for one of more weights than fit a test, whose sizes go by other names."""
    with torch.device("meta"):
        if sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters()) > most:
            return None
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model


def greedy(runner, prompts: list[list[int]], count: int = 6) -> list[list[int]]:
    slots, new, found = [runner.allocate() for _ in prompts], prompts, [[] for _ in prompts]
    for _ in range(count):
        new = [[id] for id in runner.forward(slots, new, [1] * len(slots)).argmax(dim=-1).tolist()]
        for own, ids in zip(found, new):
            own += ids
    return found


@torch.no_grad()
def read_whole(model, ids: list[int], count: int = 6) -> list[int]:
    """What the model says without a cache."""
    for _ in range(count):
        ids = [*ids, model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item()]
    return ids[-count:]


def by_transformers(model, ids: list[int]) -> list[int]:
    ids = torch.tensor([ids])
    options = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :].tolist()


@pytest.mark.filterwarnings("ignore:.*has no memory that Seodang can use")
@pytest.mark.parametrize("name", RUNNERS)
def test_a_model_gets_the_runner_that_says_what_it_says_itself(name):
    model = build(config_of(name))
    runner = open_runner(model)
    assert type(runner).__name__ == RUNNERS[name]
    assert greedy(runner, PROMPTS) == [read_whole(model, ids) for ids in PROMPTS]


@pytest.mark.parametrize("name", REFUSED)
def test_an_architecture_that_fits_no_runner_is_refused_by_name(name):
    config = config_of(name)
    config.is_decoder = False
    with pytest.raises(UserError, match=REFUSED[name]):
        open_runner(build(config))


def test_a_model_that_wants_more_than_ids_is_refused_by_name(fresh_tiny):
    model = fresh_tiny("llama")
    model.forward = lambda input_ids, pixel_values, use_cache: None
    with pytest.raises(UserError, match="llama makes no logits of token ids alone .*pixel_values"):
        open_runner(model)


def test_without_a_memory_a_warning_says_once_what_a_token_costs(tiny_tokenizer):
    model = build(config_of("openai-gpt"))
    with pytest.warns(UserWarning, match="openai-gpt has no memory that Seodang can use: each token costs a pass over its whole text"):
        runner = open_runner(model)
    assert isinstance(runner, RecomputingRunner)
    params = SamplingParams(max_new_tokens=6, num_beams=2, ignore_eos=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        [ours] = generate(model, tiny_tokenizer, [PROMPTS[1]], params)
        assert ours.ids == model.generate(torch.tensor([PROMPTS[1]]), num_beams=2, do_sample=False, max_new_tokens=6, eos_token_id=None)[0, 4:].tolist()
    slot = runner.allocate()
    runner.forward([slot], [PROMPTS[0]], [1])
    runner.truncate(slot, 4)
    want = model(input_ids=torch.tensor([[*PROMPTS[0][:4], 5]])).logits[0, -1:]
    torch.testing.assert_close(runner.forward([slot], [[5]], [1]), want, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="hidden states of openai-gpt"):
        runner.observe([slot], [[5]], [1], [0])


def test_logits_that_are_all_alike_are_told_apart_within_their_rounding_alone():
    alike = torch.tensor([[1000.0, 1000.0], [1000.0, 1000.0]])
    assert agree(alike + 1e-4, alike, 1e-3) and not agree(alike + 1, alike, 1e-3)
    assert type(open_runner(build(CONFIG_MAPPING["llama"](**SIZES, vocab_size=1, pad_token_id=None, bos_token_id=None)))).__name__ == "NativeRunner"


@pytest.mark.parametrize("banned", [torch.finfo(torch.float32).min, -torch.inf])
def test_what_a_model_bans_itself_hides_no_difference_of_the_rest(banned):
    want = torch.tensor([[1.0, 2.0, 3.0, banned], [3.0, 1.0, 2.0, banned]])
    assert agree(want.clone(), want, 1e-3) and not agree(want.flip(0), want, 1e-3)


def test_products_in_fewer_bits_may_lie_further_from_the_models_own(fresh_tiny, monkeypatch):
    model = fresh_tiny("llama").float()
    assert tolerance(model, torch.zeros(1)) == 1e-3
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert tolerance(model, torch.zeros(1)) == 0.03 and tolerance(fresh_tiny("llama").double(), torch.zeros(1).double()) == 1e-4


def test_a_layer_that_lies_on_the_disk_is_run_where_it_is_needed(tmp_path):
    from accelerate import dispatch_model

    model = build(CONFIG_MAPPING["llama"](**SIZES, vocab_size=128))
    want = greedy(open_runner(model), PROMPTS)
    parts = dict.fromkeys(["model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head"], "cpu")
    dispatch_model(model, {**parts, "model.layers.1": "disk"}, main_device="cpu", offload_dir=str(tmp_path))
    runner = open_runner(model)
    assert type(runner).__name__ == "RaggedRunner" and greedy(runner, PROMPTS) == want


def test_a_model_without_values_is_refused():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**SIZES, vocab_size=128))
    with pytest.raises(UserError, match="the embeddings of llama are on the meta device"):
        open_runner(model)


def test_a_model_is_probed_once_and_a_runner_with_other_logits_is_passed_over(fresh_tiny, monkeypatch):
    monkeypatch.setenv("SEODANG_NATIVE", "0")
    probed = []
    monkeypatch.setattr(opening, "probe", lambda runner, *rest, probe=opening.probe: probed.append(type(runner).__name__) or probe(runner, *rest))
    assert type(open_runner(fresh_tiny("llama"))) is DirectRunner and not probed  # as tested with these versions
    monkeypatch.setattr(opening, "untried", lambda: "transformers 9.0 is installed")
    assert type(open_runner(fresh_tiny("llama"))) is DirectRunner and probed == ["DirectRunner"]
    monkeypatch.setattr("seodang.infer.runners.direct.rotate", lambda *_: None)  # a direct runner that has gone wrong
    model = fresh_tiny("llama")
    with pytest.warns(UserWarning, match="slower than it may .DirectRunner: its logits are not the model's own.; transformers 9.0 is installed"):
        assert type(open_runner(model)) is type(open_runner(model)) is RaggedRunner
    assert probed == ["DirectRunner", "DirectRunner", "RaggedRunner"]


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_every_causal_architecture_of_transformers_is_run_right_or_refused(name):
    try:
        model = build(config_of(name))
        [read_whole(model, ids) for ids in PROMPTS]
    except Exception as error:
        pytest.skip(f"no tiny model of {name} that runs ({type(error).__name__}: {str(error)[:100]})")
    try:
        runner = open_runner(model)
    except UserError as refusal:
        assert name in REFUSED or "attends in both directions" in str(refusal)
        return
    ours = greedy(runner, PROMPTS)
    assert ours == [read_whole(model, ids) for ids in PROMPTS] or ours == [by_transformers(model, ids) for ids in PROMPTS]
