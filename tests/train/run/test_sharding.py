import pytest
import torch

from seodang.data.errors import UserError
from seodang.train.models.branch_logprobs import patch_branch_logprobs
from seodang.train.models.critic import attach_critic, critics_part, without_critic
from seodang.train.run.sharding import ZERO3, WholeCopy, check_sharding, head_with_the_rest, refuse_other_engine, without_ties


def test_a_whole_copy_speaks_by_the_weights_as_they_are_and_keeps_none(fresh_tiny):
    model, ids = fresh_tiny("llama", tie_word_embeddings=True), torch.tensor([[5, 6, 7]])
    patch_branch_logprobs(model)
    whole = WholeCopy(model.train())
    assert sum(p.numel() for p in whole.model.parameters()) == 0
    for _ in range(2):
        with torch.no_grad():
            next(model.parameters()).mul_(1.5)
        with whole.filled(model, torch.device("cpu")) as copy:
            assert torch.equal(copy(ids).logits, model(ids).logits) and not copy.training
            assert copy.lm_head.weight is copy.model.embed_tokens.weight  # tied as before
            assert copy.lm_head.weight.data_ptr() != model.lm_head.weight.data_ptr()
        assert sum(p.numel() for p in whole.model.parameters()) == 0


def test_a_whole_copy_calls_its_own_forward_where_a_librarys_was_put_on_the_model(fresh_tiny):
    model = fresh_tiny("llama")
    theirs = model.forward
    model.forward = lambda *args, **kwargs: theirs(*args, **kwargs)  # bound to the model that is copied
    whole = WholeCopy(model)
    with whole.filled(model, torch.device("cpu")) as copy:
        del model.forward
        for parameter in model.parameters():
            parameter.data.zero_()
        assert copy(torch.tensor([[5, 6]])).logits.abs().max() > 0


def test_embeddings_and_head_are_no_units_of_their_own_while_a_model_is_sharded(fresh_tiny, fresh_encoder):
    model = fresh_tiny("llama")
    with head_with_the_rest(model):
        assert model.get_input_embeddings() is None and model.get_output_embeddings() is None and model._no_split_modules == ["LlamaDecoderLayer"]
    assert model.get_input_embeddings() is model.model.embed_tokens and model.base_model_prefix == "model"
    encoder = fresh_encoder("bert")
    with head_with_the_rest(encoder):  # BERT names its embeddings among its layers, and they are tied to the head
        assert encoder._no_split_modules == ["BertLayer"]
    assert "BertEmbeddings" in encoder._no_split_modules


def test_a_gathered_state_loses_what_is_tied_and_is_taken_apart_from_its_critic(fresh_tiny):
    tied = fresh_tiny("llama", tie_word_embeddings=True)
    state = {name: value.clone() for name, value in tied.state_dict().items()}
    assert state.keys() - without_ties(tied, state).keys() == {"lm_head.weight"}
    plain = fresh_tiny("llama")
    assert without_ties(plain, plain.state_dict()).keys() == plain.state_dict().keys()
    attach_critic(plain)
    state = plain.state_dict()
    own = {f"base_model.model.{name}": value for name, value in state.items()}
    assert critics_part(state).keys() == critics_part(own).keys() == {"linear.weight", "linear.bias"}
    assert len(without_critic(own)) == len(state) - 2


@pytest.mark.parametrize(("files", "engine", "told"), [
    ({"optimizer.pt"}, "FSDP", "was saved by plain processes, which FSDP cannot go on from"),
    ({"pytorch_model_fsdp.bin"}, "", "was saved under FSDP, which a run of plain processes cannot go on from"),
    ({"latest"}, "FSDP", "was saved under DeepSpeed, which FSDP cannot"),
])  # fmt: skip
def test_a_checkpoint_of_another_engine_is_refused(files, engine, told, tmp_path):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=told):
        refuse_other_engine(str(tmp_path), engine)
    refuse_other_engine(str(tmp_path), {"optimizer.pt": "", "pytorch_model_fsdp.bin": "FSDP", "latest": "DeepSpeed"}[min(files)])


def test_of_deepspeeds_checkpoints_another_stage_and_another_number_of_processes_are_refused(tmp_path):
    folder = tmp_path / "global_step2"
    folder.mkdir()
    (tmp_path / "latest").touch()
    for rank in range(2):
        (folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    refuse_other_engine(str(tmp_path), "DeepSpeed", 2)
    with pytest.raises(UserError, match="was saved by 2 processes, now 4: under DeepSpeed launch as many"):
        refuse_other_engine(str(tmp_path), "DeepSpeed", 4)
    with pytest.raises(UserError, match="was saved under DeepSpeed, which ZeRO-3 cannot go on from"):
        refuse_other_engine(str(tmp_path), ZERO3, 2)
    (folder / "zero_pp_rank_0_mp_rank_00_model_states.pt").touch()
    refuse_other_engine(str(tmp_path), ZERO3, 2)
    with pytest.raises(UserError, match="was saved under ZeRO-3, which DeepSpeed cannot"):
        refuse_other_engine(str(tmp_path), "DeepSpeed", 2)


def test_a_model_that_was_loaded_in_pieces_is_refused(fresh_tiny):
    model = fresh_tiny("llama")
    model.lm_head.weight.ds_id = 7  # what zero.Init leaves on each
    with pytest.raises(UserError, match="was loaded in pieces, as transformers does under ZeRO-3: load it before the TrainingArguments"):
        check_sharding(None, None, model, False)
