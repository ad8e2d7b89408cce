"""WordPiece: what an answer says is what decoding it behind its prompt adds, however it is cut; no space lost, doubled or taken back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, trainers
from tokenizers.decoders import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import AutoModelForSeq2SeqLM, BertConfig, BertLMHeadModel, BertTokenizer, PreTrainedTokenizerFast

from seodang.infer import Committed, SamplingParams, generate, stream
from seodang.infer.text.detokenise import CleaningDetokeniser, WindowDetokeniser, detokeniser, is_wordpiece, settled, whole_text

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "cat", "sat", "##e", "##s", "##at", "s", "n", "t", "'", "##'", "##t", ".", "?", ",", "!", "ve", "re", "m", "is", "do", "not", "고양이", "##가", "##는",
         "앉", "##았다", "##n", "n't", "'s", "##.", "a"]  # fmt: skip
CORPUS = ["the cat sat on the mat, isn't it?", "고양이가 매트에 앉았다. 고양이는 앉는다!", "don't sit; it's the cat's."] * 20


def tokenizer_of(words=WORDS, **options) -> BertTokenizer:
    return BertTokenizer({token: id for id, token in enumerate([*SPECIAL, *words])}, **options)


def trained() -> PreTrainedTokenizerFast:
    """One that was trained on a few sentences, with the library's own clean-up."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer, backend.decoder = BertNormalizer(strip_accents=False), BertPreTokenizer(), WordPiece()
    backend.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=120, show_progress=False, special_tokens=SPECIAL))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[SEP]", **names)


PLAIN, CLEANED, TRAINED = tokenizer_of(do_lower_case=False), tokenizer_of(do_lower_case=False, clean_up_tokenization_spaces=True), trained()


def said(tokenizer, ids: list[int]) -> str:
    """By transformers, special tokens left out, spaces as the tokenizer has them."""
    return tokenizer.decode(ids, skip_special_tokens=True)


def pieces(tokenizer, before, ids) -> list[str]:
    one = detokeniser(tokenizer, before)
    return [*(one.push(id) for id in ids), one.flush()]


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer.convert_tokens_to_ids(text.split())


@pytest.mark.parametrize(
    ("before", "answer", "text"),
    [
        ("[CLS] the cat", "sat .", " sat."),
        ("[CLS] the", "##s ##at", "sat"),
        ("[CLS] the [SEP]", "##e sat", "e sat"),
        ("[CLS]", "sat [SEP]", "sat"),
        ("고양이", "##가 앉 ##았다 .", "가 앉았다."),
        ("", "##e sat", "##e sat"),  # as it is decoded alone
    ],
)
def test_the_answer_is_what_decoding_it_behind_its_prompt_adds(before, answer, text):
    before, answer = ids_of(PLAIN, before), ids_of(PLAIN, answer)
    assert whole_text(PLAIN, answer, before) == "".join(pieces(PLAIN, before, answer)) == text
    assert said(PLAIN, before) + text == said(PLAIN, before + answer)


def test_a_clean_up_takes_no_text_back_that_is_out():
    assert type(detokeniser(CLEANED)) is CleaningDetokeniser and type(detokeniser(PLAIN)) is WindowDetokeniser
    before, answer = ids_of(CLEANED, "the cat"), ids_of(CLEANED, "is n ' t a cat ' s sat")
    assert pieces(CLEANED, before, answer) == [" is", "", "", "", "n't a", " cat", "", "", "'s sat", ""]
    assert said(CLEANED, before + answer) == "the cat isn't a cat's sat"
    # over the border: of "cat's" the prompt had said "cat '"
    before, answer = ids_of(CLEANED, "the cat '"), ids_of(CLEANED, "s sat")
    assert "".join(pieces(CLEANED, before, answer)) == "s sat" and said(CLEANED, before + answer) == "the cat's sat"


def beyond(tokenizer, before: list[int], ids: list[int]) -> str:
    """What follows the last character of the prompt in the text of both; cleaning takes away spaces and nothing else."""
    whole, letters = said(tokenizer, before + ids), len(said(tokenizer, before).replace(" ", ""))
    return next(whole[end:] for end in range(len(whole) + 1) if len(whole[:end].replace(" ", "")) == letters)


@pytest.mark.parametrize("tokenizer", [PLAIN, CLEANED, TRAINED], ids=["plain", "cleaned", "trained"])
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_ids_behind_any_others_are_what_transformers_decodes_beyond_them(tokenizer, data):
    apostrophes = st.sampled_from([id for id in ids_of(tokenizer, "' n t s ' .") if id != tokenizer.unk_token_id])
    ids = st.lists(st.one_of(st.integers(0, len(tokenizer) - 1), apostrophes), max_size=12)
    before, answer = data.draw(ids), data.draw(ids)
    text = beyond(tokenizer, before, answer)
    assert "".join(pieces(tokenizer, before, answer)) == text
    if said(tokenizer, before + answer).startswith(said(tokenizer, before)):
        assert said(tokenizer, before) + text == said(tokenizer, before + answer)
    fork = detokeniser(tokenizer, before)
    cut = data.draw(st.integers(0, len(answer)))
    begun = "".join(map(fork.push, answer[:cut]))
    other = fork.fork()
    fork.push(answer[0] if answer else 5)
    assert begun + "".join(map(other.push, answer[cut:])) + other.flush() == text  # a beam that went on elsewhere changes nothing


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([" ", "'", "n", "t", "s", ".", "v", "e", "a"]), max_size=14).map("".join), st.text(" 'nts.vea", max_size=6))
def test_what_is_settled_stays_whatever_follows(text, more):
    clean, cut = PLAIN.clean_up_tokenization, settled(text)
    assert clean(text[:cut]) + clean(text[cut:] + more) == clean(text + more)


def test_other_tokenizers_have_nothing_before_their_text(tokenizer, tiny_tokenizer):
    assert is_wordpiece(PLAIN) and is_wordpiece(TRAINED) and not is_wordpiece(tokenizer) and not is_wordpiece(tiny_tokenizer)
    ids = tokenizer(" sat on 나무")["input_ids"]
    assert whole_text(tokenizer, ids, tokenizer("The cat")["input_ids"]) == whole_text(tokenizer, ids) == " sat on 나무"


SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}


def sharpened(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model.double().eval()


@pytest.mark.parametrize("tokenizer", [PLAIN, CLEANED, TRAINED], ids=["plain", "cleaned", "trained"])
def test_a_decoder_of_berts_kind_says_what_goes_on_from_its_prompt(tokenizer):
    torch.manual_seed(1)
    model = sharpened(BertLMHeadModel(BertConfig(vocab_size=len(tokenizer), is_decoder=True, **SIZES)))
    model.generation_config.eos_token_id = tokenizer.sep_token_id
    prompts = ["the cat", "고양이가", "the cat isn't"] * 32
    params = [SamplingParams(max_new_tokens=8, temperature=20.0, do_sample=True, seed=seed) for seed in range(96)]  # nearly even draws
    continued = ended = 0
    for prompt, result in zip(prompts, generate(model, tokenizer, prompts, params)):
        before = tokenizer(prompt)["input_ids"]
        assert result.text == beyond(tokenizer, before, result.ids) and "[SEP]" not in result.text and "##" not in result.text
        continued += tokenizer.convert_ids_to_tokens(result.ids[0]).startswith("##")
        ended += result.finish_reason == "eos"
        if result.seed < 3:
            pieces = [event.text for event in stream(model, tokenizer, prompt, params[result.seed]) if isinstance(event, Committed)]
            assert "".join(pieces) == result.text
    assert continued and ended


def test_an_encoder_decoder_begins_its_text_without_a_space(tiny):
    tokenizer = trained()
    config = {"vocab_size": len(tokenizer), "decoder_start_token_id": 2, "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0}
    model = tiny("bart", **config)
    assert isinstance(model, AutoModelForSeq2SeqLM._model_mapping[type(model.config)])
    for seed in range(3):
        own = SamplingParams(max_new_tokens=12, temperature=1.5, do_sample=True, seed=seed)
        [result] = generate(model, tokenizer, ["the cat sat"], own)
        assert result.text == said(tokenizer, result.ids) and "[SEP]" not in result.text and not result.text.startswith(" ")
