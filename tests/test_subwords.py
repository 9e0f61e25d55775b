"Subwords: exact ways back, one learned model in every file, and learners of all kinds on them."
import copy, json, pickle, random, sys

import pytest
import torch
from sentencepiece import SentencePieceProcessor
from torch.testing import assert_close

from awdtext.data.dataloaders import TextDataLoaders
from awdtext.data.tokenizer import BaseTokenizer, DocumentError, Subwords, SubwordTokenizer, Tokenizer, special_tokens
from awdtext.text_learner import language_model_learner, load_learner, text_classifier_learner
from awdtext.training.checkpoint import read_bundle
from awdtext.training.progress import ProgressCallback

texts = [f'The {a} sat\non the {p}.' for a in ('kitten', 'puppy', 'Cow') for p in ('mat', 'log', 'hill', 'roof')] * 3
labels = ['pet' if 'Cow' not in text else 'wild' for text in texts]
size = dict(emb_sz=16, n_hid=20, n_layers=2)
nasty = ['', ' ', '  ', 'a', '▁', ' ▁ ', '▁▁a', '<0x41>', '<unk>', 'xxbos', ' xxbos xxpad xxeos xxunk', '\r\n\t ',
         '\0\x01', '\ufeff\u2028', 'naïve e\u0301 日本 👩‍👩‍👧', '&amp; <br /> "so"', 'ﬁ Ⅷ １',
         'The kitten▁sat', 'Ġ Ċ', '\U0010ffff']


@pytest.fixture(scope='module', params=['unigram', 'bpe'])
def tok(request): return SubwordTokenizer(400, request.param).setup(texts + ['xxbos xxpad xxbos'] * 50)


def sub_dls(texts=texts, **options):
    settings = dict(bs=4, seed=0, is_lm=True, seq_len=12, tok_tfm=SubwordTokenizer(330)) | options
    return TextDataLoaders.from_texts(texts, **settings)


def lm(dls=None, **options):
    return language_model_learner(dls or sub_dls(), **dict(config=size) | options).remove_cb(ProgressCallback)


def clas_dls(learn, **options):
    own = dict(is_lm=False, labels=labels, text_vocab=learn.dls.vocab, tok_tfm=learn.dls.tokenizer)
    return sub_dls(**own | options)


# There and back

@pytest.mark.parametrize('text', nasty)
def test_text_to_subwords_and_back(tok, text):
    tokens = tok(text)
    assert tokens[0] == 'xxbos' and set(tokens[1:]) <= set(tok.pieces) and tok.detokenize(tokens) == text
    assert set(tokens[1:]).isdisjoint(special_tokens)


def test_any_text_survives(tok):
    rng = random.Random(0)
    ranges = [(1, 128), (1, 0xd800), (0xe000, 0x110000), (0x2580, 0x2583)]
    for _ in range(200):
        text = ''.join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(40)))
        assert tok.detokenize(tok(text)) == text
    for text in texts: assert tok.detokenize(tok(text)) == text


def test_pieces_are_sentencepieces_own(tok):
    spm = SentencePieceProcessor(model_proto=tok.word_tok.model)
    for text in texts: assert tok(text)[1:] == spm.encode(' ' + text, out_type=str)


def test_bytes_that_are_no_character_are_readable(tok):
    assert tok.detokenize(['xxbos', '▁a', '<0xF0>', 'b']) == 'a\ufffdb'


def test_frequent_words_are_one_piece():
    tok = SubwordTokenizer(400, 'bpe').setup(texts)
    assert tok('The kitten sat')[1:] == ['▁The', '▁kitten', '▁sat'] and len(tok('The kitten-ish')) > 4


# Learning

def test_learning_is_the_same_each_time_and_happens_once(tok):
    words = tok.word_tok
    again = Subwords(400, words.model_type)
    again.setup(texts + ['xxbos xxpad xxbos'] * 50)
    assert again.pieces == words.pieces
    model = words.model
    tok.setup(['other texts', 'quite other'])
    assert words.model is model


def test_much_text_is_thinned_out_and_long_lines_are_cut(monkeypatch):
    from awdtext.data import tokenizer as module
    monkeypatch.setattr(module, '_max_chars', 1000)
    monkeypatch.setattr(module, '_max_line', 10)
    lines = list(module._sample_lines(['abcdefghijklmno\npq'] * 300))
    assert set(lines) <= {' abcdefghij', ' klmno', ' pq'} and len(set(lines)) > 1 and 100 < len(lines) < 250


@pytest.mark.parametrize('settings, says', [
    (dict(vocab_sz=200), 'vocab_sz=200: use 300 or more'), (dict(vocab_sz='many'), "vocab_sz='many'"),
    (dict(model_type='word'), "use 'unigram' or 'bpe'")])
def test_settings_that_cannot_be(settings, says):
    with pytest.raises(ValueError, match=says): SubwordTokenizer(**settings)


@pytest.mark.parametrize('nothing', [[], [''], ['\n']])
def test_nothing_to_learn_from(nothing):
    tok = SubwordTokenizer()
    with pytest.raises(ValueError, match='can be learned from these'): tok.setup(nothing)
    assert tok.pieces is None


def test_a_document_that_is_none_is_named():
    with pytest.raises(DocumentError, match='document 1 .*not a string'): SubwordTokenizer().setup(['a', None])
    with pytest.raises(DocumentError, match='document 0 .*not learned yet'): SubwordTokenizer()('a')
    with pytest.raises(ValueError, match='rules are given twice'): sub_dls(rules=[str.lower])


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'sentencepiece', None)
    with pytest.raises(ImportError, match=r"pip install 'awdtext\[subwords\]'"): sub_dls()


# Saved

def test_json_pickle_and_copy(tok):
    for again in (Tokenizer.from_dict(json.loads(json.dumps(tok.to_dict()))), pickle.loads(pickle.dumps(tok)),
                  copy.deepcopy(tok)):
        assert [again(text) for text in nasty] == [tok(text) for text in nasty]
        assert again.to_dict() == tok.to_dict()
    with pytest.raises(ValueError, match='not learned yet cannot be saved'): SubwordTokenizer().to_dict()


@pytest.mark.parametrize('model', ['', 'AAAA', 'bm90aGluZw=='])
def test_a_model_that_is_none_is_refused(tok, model):
    d = tok.to_dict()
    d['words'] = {**d['words'], 'model': model}
    if model:
        with pytest.raises(ValueError, match='no model of subwords'): Tokenizer.from_dict(d)
    else: assert Tokenizer.from_dict(d).pieces is None


# In the loaders

def test_all_pieces_are_in_the_vocabulary_by_frequency():
    dls = sub_dls(min_freq=9, max_vocab=50)
    vocab,tok = dls.vocab,dls.tokenizer
    assert set(vocab.itos) == {*special_tokens, *tok.pieces} and vocab.itos[:9] == list(special_tokens)
    counts = dls.train.corpus.ids.bincount(minlength=len(vocab))[9:]
    assert (counts.diff() <= 0).all() and dls.unk_rate == 0
    for text in nasty: assert tok.detokenize(vocab.decode(vocab.encode(tok(text)))) == text


def test_the_validation_part_is_not_learned_from():
    dls = TextDataLoaders.from_texts(texts, valid=['zzyzx zzyzx zzyzx'] * 50, is_lm=True, tok_tfm=SubwordTokenizer(330))
    assert not any('z' in piece for piece in dls.tokenizer.pieces)


def test_folders_frames_files_and_blocks(tmp_path):
    import pandas as pd
    from awdtext.data.data_block import DataBlock, TextBlock
    for i, text in enumerate(texts[:12]): (tmp_path / f'{i}.txt').write_text(text)
    (tmp_path / 'lines').write_text('\n'.join(text.replace('\n', ' ') for text in texts))
    common = dict(is_lm=True, bs=2, seq_len=8, seed=0)
    frame = pd.DataFrame({'text': texts})
    block = DataBlock(TextBlock.from_df('text', is_lm=True, tok=SubwordTokenizer(330)))
    many = [TextDataLoaders.from_folder(tmp_path, valid_pct=.2, tok_tfm=SubwordTokenizer(330), **common),
            TextDataLoaders.from_file(tmp_path / 'lines', whole=False, tok_tfm=SubwordTokenizer(330), bs=2, seq_len=8),
            TextDataLoaders.from_df(frame, tok_tfm=SubwordTokenizer(330), **common), block.dataloaders(frame, bs=2)]
    for dls in many:
        assert dls.tokenizer.unit == 'subwords' and dls.unk_rate == 0
        text = dls.tokenizer.detokenize(dls.vocab.decode(dls.valid.corpus[0]))
        assert text in (texts + [text.replace('\n', ' ') for text in texts])


# In the learners

def test_a_language_model_speaks_in_text(tmp_path):
    learn = lm(path=tmp_path)
    learn.fit_one_cycle(6, 2e-2)
    out = learn.predict('The kitten sat\non', 8, temperature=0)
    assert out.startswith('The kitten sat\non') and '▁' not in out and len(out) > len('The kitten sat\non')
    assert learn.predict('  ▁ two', 0) == '  ▁ two' and isinstance(learn.predict('', 3, seed=0), str)
    there = load_learner(learn.export())
    assert there.predict('The kitten sat\non', 8, temperature=0) == out
    assert there.evaluate(texts[:4]).loss == pytest.approx(learn.evaluate(texts[:4]).loss, abs=1e-5)
    with pytest.raises(ValueError, match="'lighthouses' is none of the .* and a prompt is a text"):
        learn.predict(['xxbos', 'lighthouses'])


def test_a_backward_model_writes_what_stands_before():
    out = lm(sub_dls(backwards=True)).predict('the mat.', 5, seed=0)
    assert out.endswith('the mat.') and len(out) > len('the mat.')


def test_encoder_and_classifier_share_subwords(tmp_path):
    learn = lm(path=tmp_path)
    learn.fit(1)
    learn.save_encoder('enc')
    dls = clas_dls(learn, bs=16, texts=texts * 5, labels=labels * 5)
    assert dls.vocab == learn.dls.vocab and dls.tokenizer is learn.dls.tokenizer
    clas = text_classifier_learner(dls, pretrained='enc', path=tmp_path, drop_mult=0.).remove_cb(ProgressCallback)
    clas.unfreeze().fit_one_cycle(10, 2e-2)
    assert clas.validate()[1] > .9 and clas.predict(texts[0])[0] == 'pet'
    there = load_learner(clas.export())
    assert_close(there.predict(texts[0])[2], clas.predict(texts[0])[2])
    assert len(there.predict('')[2]) == 2


def test_a_later_session_takes_the_subwords_from_the_file(tmp_path):
    learn = lm(path=tmp_path)
    bundle = read_bundle(learn.save_encoder('enc'), 'encoder')
    dls = clas_dls(learn, text_vocab=bundle['vocab'], tok_tfm=Tokenizer.from_dict(bundle['tokenizer']))
    clas = text_classifier_learner(dls, config=size, path=tmp_path).load_encoder('enc')
    embeddings = [o.encoder.embedding.state_dict() for o in (clas, learn)]
    assert_close(*embeddings, rtol=0, atol=0)


# What does not fit

def test_a_vocabulary_of_another_tokenizer_is_refused():
    learn = lm()
    for tok in (SubwordTokenizer(330), SubwordTokenizer(330).setup(['quite other texts, with other words'] * 20)):
        with pytest.raises(ValueError, match='none of the .* text_vocab=dls.vocab and tok_tfm=dls.tokenizer'):
            clas_dls(learn, tok_tfm=tok)
    with pytest.raises(ValueError, match="'cat' is none of the"): clas_dls(learn, text_vocab=['xxunk', 'xxpad', 'cat'])


def test_an_encoder_of_other_tokens_is_refused_and_nothing_changes(tmp_path):
    learn = lm(path=tmp_path)
    words = lm(TextDataLoaders.from_texts(texts, is_lm=True, tok_tfm=BaseTokenizer(), min_freq=1, bs=4), path=tmp_path)
    other = lm(sub_dls([text.upper() for text in texts]), path=tmp_path)
    for o, name in ((learn, 'subs'), (words, 'words'), (other, 'other')): o.save_encoder(name)
    for o, file, says in [(words, 'subs', 'reads subwords, these data are words'),
                          (learn, 'words', 'reads words, these data are subwords'),
                          (learn, 'other', r"has learned other subwords .*=Tokenizer.from_dict\(read_bundle\(")]:
        before = {name: p.clone() for name, p in o.model.state_dict().items()}
        with pytest.raises(ValueError, match=says): o.load_encoder(file)
        assert_close(dict(o.model.state_dict()), before, rtol=0, atol=0)
        assert all(p.requires_grad for p in o.model.parameters())
    assert torch.is_grad_enabled()
