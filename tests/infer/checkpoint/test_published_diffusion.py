"""Dream's and LLaDA's checkpoints as they are published, in small: their names, shapes, keys and files, and code beside them that must not run."""

import json
import shutil

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from tokenizers.pre_tokenizers import ByteLevel
from torch.nn.functional import silu
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from seodang.data.errors import UserError
from seodang.infer.checkpoint.load import load, load_tokenizer
from seodang.infer.checkpoint.published_diffusion import stored_config
from seodang.infer.runners.paradigm import Diffusion, diffusion_of

LAYERS, HEADS, KV_HEADS, WIDTH, INNER, IDS = 2, 4, 2, 32, 48, 272
DREAM = {
    "architectures": ["DreamModel"], "attention_dropout": 0.0, "bos_token_id": 256, "eos_token_id": 256, "hidden_act": "silu", "hidden_size": WIDTH,
    "auto_map": {"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"}, "initializer_range": 0.02,
    "intermediate_size": INNER, "mask_token_id": 260, "max_position_embeddings": 131072, "max_window_layers": 28, "model_type": "Dream",
    "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "num_key_value_heads": KV_HEADS, "pad_token_id": 256, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.46.2", "use_cache": True, "use_mrope": False, "use_sliding_window": False, "vocab_size": IDS,
}  # fmt: skip
LLADA = {
    "activation_type": "silu", "alibi": False, "alibi_bias_max": 8.0, "architectures": ["LLaDAModelLM"], "attention_dropout": 0.0,
    "attention_layer_norm": False, "attention_layer_norm_with_affine": True, "bias_for_layer_norm": False, "block_group_size": 1, "block_type": "llama",
    "auto_map": {"AutoConfig": "configuration_llada.LLaDAConfig", "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM"}, "d_model": WIDTH,
    "embedding_dropout": 0.0, "embedding_size": IDS, "eos_token_id": 256, "flash_attention": False, "include_bias": False, "include_qkv_bias": False,
    "init_cutoff_factor": None, "init_device": "meta", "init_fn": "mitchell", "init_std": 0.02, "input_emb_norm": False, "layer_norm_type": "rms",
    "layer_norm_with_affine": True, "mask_token_id": 260, "max_sequence_length": 4096, "mlp_hidden_size": INNER, "mlp_ratio": 4, "model_type": "llada",
    "multi_query_attention": None, "n_heads": HEADS, "n_kv_heads": KV_HEADS, "n_layers": LAYERS, "pad_token_id": 256, "precision": "amp_bf16",
    "residual_dropout": 0.0, "rms_norm_eps": 1e-05, "rope": True, "rope_full_precision": True, "rope_theta": 500000.0, "scale_logits": False,
    "transformers_version": "4.46.3", "use_cache": False, "vocab_size": 264, "weight_tying": False,
}  # fmt: skip
# what is computed: (embeddings, last norm, head, layer), then of a layer: norms, q, k, v, o, gate, up, down
DREAM_NAMES = (
    "model.embed_tokens", "model.norm", "lm_head", "model.layers.{}.", "input_layernorm", "post_attention_layernorm", "self_attn.q_proj",
    "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
LLADA_NAMES = (
    "model.transformer.wte", "model.transformer.ln_f", "model.transformer.ff_out", "model.transformer.blocks.{}.", "attn_norm", "ff_norm",
    "q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out",
)  # fmt: skip
KINDS = {"dream": (DREAM, DREAM_NAMES), "llada": (LLADA, LLADA_NAMES)}
CODE = ("configuration_dream", "modeling_dream", "tokenization_dream", "generation_utils", "configuration_llada", "modeling_llada")
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>")
ASKED = {"device": "cpu", "dtype": "float32"}


def tensors_of(kind):
    """Random tensors under a kind's names; Dream has biases on queries, keys and values."""
    _, (wte, norm, head, layer, *parts) = KINDS[kind]
    random = torch.Generator().manual_seed(0)
    small = WIDTH // HEADS * KV_HEADS
    shapes = [(WIDTH,), (WIDTH,), (WIDTH, WIDTH), (small, WIDTH), (small, WIDTH), (WIDTH, WIDTH), (INNER, WIDTH), (INNER, WIDTH), (WIDTH, INNER)]
    found = {f"{wte}.weight": (IDS, WIDTH), f"{norm}.weight": (WIDTH,), f"{head}.weight": (IDS, WIDTH)}
    for number in range(LAYERS):
        found |= {f"{layer.format(number)}{part}.weight": shape for part, shape in zip(parts, shapes, strict=True)}
        if kind == "dream":
            found |= {f"{layer.format(number)}{part}.bias": shape[:1] for part, shape in list(zip(parts, shapes, strict=True))[2:5]}
    return {name: torch.randn(shape, generator=random) * 0.3 + (0.7 if len(shape) == 1 else 0) for name, shape in found.items()}


def written_out(kind, tensors, ids):
    """Their forward in plain operations, in float64: [length] -> [length, ids], every position seeing all."""
    config, (wte, norm, head, layer, *parts) = KINDS[kind]
    weights = {name: tensor.double() for name, tensor in tensors.items()}
    size, eps = WIDTH // HEADS, config["rms_norm_eps"]
    angles = torch.arange(len(ids)).double()[:, None] / config["rope_theta"] ** (torch.arange(0, size, 2).double() / size)
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)

    def rms(x, name):
        return x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt() * weights[f"{name}.weight"]

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)

    def heads(x, turned):  # [length, heads * size] -> [heads, length, size]
        x = x.view(len(ids), -1, size).transpose(0, 1)
        x = x * cos + torch.cat([-x[..., size // 2 :], x[..., : size // 2]], dim=-1) * sin if turned else x
        return x.repeat_interleave(HEADS // x.shape[0], dim=0)

    x = weights[f"{wte}.weight"][ids]
    for number in range(LAYERS):
        before, after, q, k, v, o, gate, up, down = (layer.format(number) + part for part in parts)
        h = rms(x, before)
        scores = heads(linear(h, q), True) @ heads(linear(h, k), True).transpose(1, 2) / size**0.5
        x = x + linear((scores.softmax(dim=-1) @ heads(linear(h, v), False)).transpose(0, 1).reshape(len(ids), WIDTH), o)
        h = rms(x, after)
        x = x + linear(silu(linear(h, gate)) * linear(h, up), down)
    return linear(rms(x, norm), head)


def write_tokenizer(folder, kind):
    """Bytes, for LLaDA two merges, and the special tokens behind them; Dream's as vocab.json and merges.txt with code, LLaDA's as tokenizer.json."""
    vocabulary = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    added = {
        str(256 + number): {"content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
        for number, token in enumerate(SPECIALS)
    }
    config = {"added_tokens_decoder": added, "bos_token": SPECIALS[3], "eos_token": SPECIALS[0], "pad_token": SPECIALS[0], "chat_template": "{{ messages }}"}
    if kind == "dream":
        config |= {"auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}, "tokenizer_class": "DreamTokenizer"}
        config |= {"mask_token": SPECIALS[4], "additional_special_tokens": list(SPECIALS[1:3]), "errors": "replace", "unk_token": None}
        (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    else:
        config |= {"tokenizer_class": "PreTrainedTokenizerFast"}
        last = sorted(vocabulary)[-2:]  # give way to two merges
        tokenizer = Tokenizer(models.BPE({("ab", "Ġa")[last.index(c)] if c in last else c: n for c, n in vocabulary.items()}, [("a", "b"), ("Ġ", "a")]))
        tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
        tokenizer.add_special_tokens(list(SPECIALS))
        tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.fixture
def written(tmp_path):
    """`written(kind, **changes of its config)`: a folder as it is published."""

    def write(kind, **changes):
        folder = tmp_path / kind
        folder.mkdir()
        config = {name: value for name, value in {**KINDS[kind][0], **changes}.items() if value != "left out"}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        save_file(tensors_of(kind), folder / "model.safetensors", metadata={"format": "pt"})
        write_tokenizer(folder, kind)
        for name in CODE:
            (folder / f"{name}.py").write_text("raise RuntimeError('code of the checkpoint was run')", encoding="utf-8")
        return folder

    return write


def change(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("kind, shift, architecture", [("dream", 1, "qwen2"), ("llada", 0, "llama")])
def test_logits_are_those_of_the_forward_written_out_and_saved_again_it_is_a_plain_checkpoint(written, tmp_path, kind, shift, architecture):
    model, tokenizer = load(written(kind), **ASKED)
    ids = torch.tensor([[7, 260, 3, 99, 260, 15, 200]])
    expected = written_out(kind, tensors_of(kind), ids[0])
    logits = model.double()(ids).logits[0]
    assert (logits - expected).abs().max() < 2e-5 < expected.std() / 1e4  # norms and turns are float32 in transformers
    assert diffusion_of(model.config) == Diffusion(260, shift) and model.generation_config.eos_token_id == 256
    again = tmp_path / "again"
    model.float().save_pretrained(again)
    tokenizer.save_pretrained(again)
    told = json.loads((again / "config.json").read_text(encoding="utf-8"))
    assert told["model_type"] == architecture and told["is_causal"] is False and told["diffusion"]["mask_token_id"] == 260 and "auto_map" not in told
    assert "auto_map" not in (again / "tokenizer_config.json").read_text(encoding="utf-8")
    assert "model.layers.1.self_attn.q_proj.weight" in load_file(again / "model.safetensors")
    for loaded in (load(again, **ASKED)[0], AutoModelForCausalLM.from_pretrained(again, dtype=torch.float32)):
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert load_tokenizer(again)("ab<|mask|>")["input_ids"] == tokenizer("ab<|mask|>")["input_ids"]


def test_weights_in_several_files_and_tied_to_the_embeddings(written):
    folder = written("llada", weight_tying=True)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.transformer.ff_out.weight")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, held in parts.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    ids = torch.tensor([[7, 260, 3]])
    expected = written_out("llada", tensors | {"model.transformer.ff_out.weight": tensors["model.transformer.wte.weight"]}, ids[0])
    assert (load(folder, **ASKED)[0].double()(ids).logits[0] - expected).abs().max() < 2e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_hub_name_is_loaded_without_its_code(written, tmp_path, monkeypatch, kind):
    repository = tmp_path / "hub" / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abc", encoding="utf-8")
    shutil.copytree(written(kind), repository / "snapshots" / "0123abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    model, tokenizer = load("owner/name", **ASKED)
    own, _ = load(tmp_path / kind, **ASKED)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(own.state_dict().values(), model.state_dict().values(), strict=True))
    assert tokenizer.mask_token_id == 260 and stored_config("owner/name").model_type == model.config.model_type


def test_dreams_tokenizer_is_qwen2s_and_its_added_tokens_have_their_ids(written):
    tokenizer = load_tokenizer(written("dream"))
    number = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    assert tokenizer("a12<|mask|> b<|im_end|>")["input_ids"] == [number["a"], number["1"], number["2"], 260, number["Ġ"], number["b"], 258]
    assert tokenizer("e\u0301")["input_ids"] == [number["Ã"], number["©"]]  # one letter, composed
    assert tokenizer.decode([number["a"], 260]) == "a<|mask|>" and tokenizer.decode([number["a"], 260], skip_special_tokens=True) == "a"
    assert (tokenizer.mask_token, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == ("<|mask|>", 259, 256, 256)


def test_lladas_tokenizer_learns_which_token_its_mask_is(written):
    tokenizer = load_tokenizer(written("llada"))
    assert tokenizer("ab<|mask|> a")["input_ids"] == [254, 260, 255] and tokenizer.mask_token == "<|mask|>" and tokenizer.mask_token_id == 260


@pytest.mark.parametrize("alg", ["entropy", "origin"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_call_that_people_copy_works_as_it_stands(written, kind, alg):
    model, tokenizer = load(written(kind), **ASKED)
    inputs = tokenizer("ab", return_tensors="pt")
    input_ids, attention_mask = inputs.input_ids, inputs.attention_mask
    torch.manual_seed(0)
    output = model.diffusion_generate(
        input_ids, attention_mask=attention_mask, max_new_tokens=8, output_history=True, return_dict_in_generate=True, steps=16, temperature=0, top_p=1,
        alg=alg, alg_temp=0.,
    )  # fmt: skip
    assert len(output.history) == 16 and output.history[-1].equal(output.sequences) and output.sequences.shape == (1, input_ids.shape[1] + 8)
    masks = [(canvas == 260).sum().item() for canvas in output.history]
    assert masks == sorted(masks, reverse=True) and masks[-1] == 0 and output.sequences[:, : input_ids.shape[1]].equal(input_ids)
    last = output.history[-2]  # what the last step made certain is the likeliest of its own forward
    logits = written_out(kind, tensors_of(kind), last[0])
    aligned = torch.cat([logits[:1], logits[:-1]]) if kind == "dream" else logits
    assert output.sequences[last == 260].tolist() == aligned.argmax(dim=-1)[last[0] == 260].tolist()


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        *(("llada", {name: value}, f"{name}=.* in config.json is not supported") for name, value in {
            "alibi": True, "attention_layer_norm": True, "block_type": "sequential", "activation_type": "gelu", "layer_norm_type": "gemma_rms", "rope": False,
            "include_bias": True, "include_qkv_bias": True, "bias_for_layer_norm": True, "scale_logits": True, "input_emb_norm": True, "block_group_size": 2,
            "layer_norm_with_affine": False, "multi_query_attention": True,
        }.items()),
        ("llada", {"activation_type": "left out"}, "activation_type='swiglu' in config.json"),  # what is missing is what their code takes
        ("llada", {"mask_token_id": "left out"}, "says no mask_token_id"),
        ("llada", {"architectures": ["LLaDAMoEModelLM"]}, "architectures=.'LLaDAMoEModelLM'. in config.json is not known, only LLaDAModelLM"),
        ("dream", {"use_sliding_window": True}, "use_sliding_window=True"),
        ("dream", {"use_mrope": True}, "use_mrope=True"),
        ("dream", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("dream", {"attention_bias": False}, "attention_bias=False"),
        ("dream", {"block_size": 32}, "block_size=32"),
        ("dream", {"head_dim": 16}, "head_dim=16"),
        ("dream", {"hidden_size": "left out"}, "says no hidden_size"),
    ],
)  # fmt: skip
def test_what_computes_something_else_is_refused_by_name(written, kind, changes, words):
    with pytest.raises(UserError, match=words):
        load(written(kind, **changes), **ASKED)


@pytest.mark.parametrize(
    ("kind", "edit", "words"),
    [
        ("dream", lambda t: t.pop("model.layers.1.self_attn.q_proj.bias"), "lacks the tensor model.layers.1.self_attn.q_proj.bias: the checkpoint is incomplete"),
        ("llada", lambda t: t.pop("model.transformer.blocks.1.ff_out.weight"), "lacks the tensor model.transformer.blocks.1.ff_out.weight:"),
        ("llada", lambda t: t.pop("model.transformer.ff_out.weight"), "lacks the tensor model.transformer.ff_out.weight:"),
        ("llada", lambda t: t.update({"model.transformer.blocks.0.q_norm.weight": torch.ones(8)}), "holds the tensor model.transformer.blocks.0.q_norm.weight, which is in no llama"),
        ("dream", lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(8)}), "holds the tensor model.layers.0.self_attn.q_norm.weight, which is in no qwen2"),
        ("llada", lambda t: t.update({"model.transformer.wte.weight": torch.ones(200, WIDTH)}), r"model.transformer.wte.weight has the shape \[200, 32\] in its file, but \[272, 32\]"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named_as_in_the_file(written, kind, edit, words):
    folder = written(kind)
    change(folder, edit)
    with pytest.raises(UserError, match=words):
        load(folder, **ASKED)


def test_what_is_not_known_of_a_config_is_told(written, caplog):
    load(written("llada", new_kind_of_gate=3, another=None), **ASKED)
    assert "config.json says new_kind_of_gate, which is not known of its kind and was passed over" in caplog.text
    assert caplog.text.count("new_kind_of_gate") == 1 and "another" not in caplog.text
    caplog.clear()
    load(written("dream"), **ASKED)
    assert "config.json" not in caplog.text  # all of a published one is known


def test_a_tokenizer_without_the_masks_token_is_refused(written):
    with pytest.raises(UserError, match="no token for the mask's id 271"):
        load(written("dream", mask_token_id=271), **ASKED)


def test_a_classifier_on_it_has_a_new_head_and_does_not_speak(written, caplog):
    model, _ = load(written("llada"), **ASKED, model_class=AutoModelForSequenceClassification)
    assert "score.weight is new in LlamaForSequenceClassification" in caplog.text and not hasattr(model, "diffusion_generate")
