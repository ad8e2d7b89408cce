"""The languages of a translation checkpoint: its own codes, what is forced, what is saved."""

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer, GenerationConfig
from translation_fixtures import LANGUAGES

from seodang.data.errors import UserError
from seodang.data.seq2seq.encoding import source_ids, target_ids
from seodang.data.seq2seq.languages import begins_targets, forced_first, known_language, language_ids, set_languages, starting_language

COUNTS = {"mbart50": 52, "mbart": 25, "nllb": 202, "m2m": 100}


@pytest.mark.parametrize("kind", LANGUAGES)
def test_the_forced_first_token_is_that_of_transformers(translation_tokenizer, kind):
    source, target = LANGUAGES[kind]
    tokenizer = translation_tokenizer(kind)
    theirs = translation_tokenizer(kind)._build_translation_inputs("a", return_tensors=None, src_lang=source, tgt_lang=target)["forced_bos_token_id"]
    assert len(language_ids(tokenizer)) == COUNTS[kind] and language_ids(tokenizer)[target] == theirs
    if kind == "mbart":  # whose targets end with the language: it starts the decoder
        assert (forced_first(tokenizer, None, target), starting_language(tokenizer, target)) == (None, theirs)
        assert target_ids(tokenizer, "das", target_lang=target)[-1] == theirs
        return
    assert (forced_first(tokenizer, None, target), starting_language(tokenizer, target)) == (theirs, None)
    other = GenerationConfig(forced_bos_token_id=9)
    assert forced_first(tokenizer, other, target) == theirs  # what is asked for wins over the checkpoint
    assert forced_first(tokenizer, other) == 9 and forced_first(tokenizer, GenerationConfig()) is None
    set_languages(tokenizer, target_lang=target)
    assert forced_first(tokenizer, GenerationConfig()) == theirs and forced_first(tokenizer, other) == 9


@pytest.mark.parametrize("kind", LANGUAGES)
def test_languages_that_are_set_are_saved(translation_tokenizer, tmp_path, kind):
    source, target = LANGUAGES[kind]
    tokenizer = translation_tokenizer(kind)
    asked = source_ids(tokenizer, "das", source_lang=source), target_ids(tokenizer, "das", target_lang=target)
    set_languages(tokenizer, source, target)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert (source_ids(again, "das"), target_ids(again, "das")) == asked == (source_ids(tokenizer, "das"), target_ids(tokenizer, "das"))


def test_nllbs_old_form_has_its_language_behind_a_source_and_still_begins_an_answer_with_it(translation_tokenizer):
    tokenizer = translation_tokenizer("nllb", legacy_behaviour=True)
    code = tokenizer.convert_tokens_to_ids("deu_Latn")
    assert source_ids(tokenizer, "das", source_lang="deu_Latn")[-2:] == [tokenizer.eos_token_id, code]
    assert begins_targets(tokenizer) and forced_first(tokenizer, None, "deu_Latn") == code


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("mbart50", "ge_DE", "source_lang='ge_DE' is no language of the checkpoint: did you mean de_DE?"),
        ("mbart50", "KO_kr", "did you mean ko_KR?"),
        ("mbart50", "ko", "did you mean ko_KR?"),
        ("nllb", "deu", "did you mean deu_Latn?"),
        ("mbart", "qqqqqq", "it has ar_AR, cs_CZ, .* and 13 more"),
    ],
)
def test_a_code_that_is_none_is_refused_with_the_one_that_is_meant(translation_tokenizer, kind, code, message):
    with pytest.raises(UserError, match=message):
        known_language(translation_tokenizer(kind), "source_lang", code)


def test_a_tokenizer_without_languages_has_none_to_be_set(t5_tokenizer):
    assert language_ids(t5_tokenizer) == {} and forced_first(t5_tokenizer, GenerationConfig(forced_bos_token_id=9)) == 9
    for ask in (lambda: source_ids(t5_tokenizer, "a", target_lang="ko"), lambda: set_languages(t5_tokenizer, None, "ko")):
        with pytest.raises(UserError, match=r"target_lang='ko': the tokenizer of this encoder-decoder \(T5Tokenizer\) has no tokens of languages"):
            ask()


def check_named_in_source(tokenizer, plain: list[int], french: int, german: int) -> None:
    assert language_ids(tokenizer) == {"fra": french, "deu": german}
    assert source_ids(tokenizer, "das Haus", target_lang="fra") == source_ids(tokenizer, "das Haus", target_lang=">>fra<<") == [french, *plain]
    assert source_ids(tokenizer, ">>deu<<das Haus", literal=True) == [german, *plain]
    assert source_ids(tokenizer, "das Haus", target_lang="") == plain  # for one that was taught without
    for text, language, message in (
        ("das Haus", None, "speaks several languages, and nothing says which: give target_lang, or begin the source with >>fra<< .it has fra, deu"),
        (">>frx<< das", None, "'>>frx<<' is no language of the checkpoint: did you mean fra?"),
        (">>fra<< das", "deu", "target_lang='deu', but the source begins with >>fra<<"),
        (">>fra<< ", None, "nothing but its language"),
    ):
        with pytest.raises(UserError, match=message):
            source_ids(tokenizer, text, target_lang=language)
    with pytest.raises(UserError, match="source_lang='deu': this checkpoint has a token for the target language alone"):
        source_ids(tokenizer, "das", source_lang="deu", target_lang="fra")
    set_languages(tokenizer, None, "deu")
    assert source_ids(tokenizer, "das Haus") == [german, *plain] and forced_first(tokenizer, GenerationConfig()) is None
    set_languages(tokenizer, None, "")
    assert source_ids(tokenizer, "das Haus") == plain


def test_marian_names_the_target_in_its_source_by_a_token_of_a_fast_tokenizer(t5_tokenizer):
    t5_tokenizer.add_tokens([AddedToken(">>fra<<", special=True), AddedToken(">>deu<<", special=True)])
    french, german = t5_tokenizer.convert_tokens_to_ids([">>fra<<", ">>deu<<"])
    check_named_in_source(t5_tokenizer, t5_tokenizer("das Haus")["input_ids"], french, german)


def test_marians_own_tokenizer_reads_the_same(translation_tokenizer, tmp_path):
    tokenizer = translation_tokenizer("marian")
    plain = tokenizer("das Haus")["input_ids"]
    assert tokenizer(">>fra<< das Haus")["input_ids"] == [2, *plain]
    check_named_in_source(tokenizer, plain, 2, 3)
    assert target_ids(tokenizer, "das Haus") == tokenizer(text_target="das Haus")["input_ids"]
    set_languages(tokenizer, None, "deu")
    tokenizer.save_pretrained(tmp_path)
    assert source_ids(AutoTokenizer.from_pretrained(tmp_path), "das Haus") == [3, *plain]


def test_one_language_need_not_be_named(translation_tokenizer):
    tokenizer = translation_tokenizer("marian", codes=(">>fra<<",))
    assert source_ids(tokenizer, "das Haus") == tokenizer("das Haus")["input_ids"]
