"Models of characters, from text to bits per character; and the learners of every encoder and decoder."
import math
import random
import signal

import pytest
import torch
from torch.testing import assert_close

from awdtext.core import seed_all
from awdtext.data.dataloaders import TextDataLoaders
from awdtext.data.tokenizer import BaseTokenizer, CharTokenizer, Tokenizer, special_tokens
from awdtext.data.vocab import Vocab
from awdtext.models.awd_lstm import AWDLSTMConfig, presets
from awdtext.models.gru import GRU
from awdtext.models.language_model import encoders
from awdtext.models.qrnn import QRNN
from awdtext.text_learner import advise_preset, language_model_learner, load_learner, text_classifier_learner
from awdtext.training.callback import Callback
from awdtext.training.metrics import BitsPerChar
from awdtext.training.progress import ProgressCallback
from awdtext.training.rnn import NTASGD, RNNRegularizer

size = dict(emb_sz=16, n_hid=20, n_layers=2)
texts = [f'The {a} sat\non the {p}.' for a in ('cat', 'dog', 'Cow') for p in ('mat', 'log', 'hill', 'roof')] * 3
labels = ['pet' if 'Cow' not in text else 'wild' for text in texts]
common = dict(bs=4, min_freq=1, seed=0)


def char_dls(texts=texts, **options):
    settings = common | dict(is_lm=True, tok_tfm=CharTokenizer(), seq_len=20) | options
    return TextDataLoaders.from_texts(texts, **settings)


def word_dls(**options):
    return TextDataLoaders.from_texts(texts, **dict(tok_tfm=BaseTokenizer(), seq_len=8) | common | options)


def lm(dls=None, **options):
    return language_model_learner(dls or char_dls(), **dict(config=size) | options).remove_cb(ProgressCallback)


def weights(learn): return {name: p.clone() for name, p in learn.model.state_dict().items()}


# The tokenizer

@pytest.mark.parametrize('text', [
    '', ' ', 'a', '\r\n\t ', 'It\'s  &amp; <br /> "so"', 'xxbos xxmaj', '\x00\ufeff\u2028', 'AAAAAA!!!!!',
    'naïve e\u0301 日本 👩‍👩‍👧'])
def test_text_to_characters_and_back(text):
    tok = CharTokenizer()
    assert tok(text) == list(text) and tok.detokenize(tok(text)) == text
    again = Tokenizer.from_dict(tok.to_dict())
    assert again(text) == list(text) and again.detokenize(again(text)) == text
    vocab = Vocab([*special_tokens, *sorted(set(text))])
    assert tok.detokenize(vocab.decode(vocab.encode(tok(text)))) == text


def test_any_text_survives():
    letters = random.Random(0)
    tok = CharTokenizer()
    for _ in range(50):
        text = ''.join(chr(letters.choice([letters.randrange(0xd800), letters.randrange(0xe000, 0x110000)]))
                       for _ in range(letters.randrange(40)))
        assert tok.detokenize(tok(text)) == text


def test_what_is_no_text_is_told():
    with pytest.raises(ValueError, match='document 1 .* is not a string'): CharTokenizer()(['a', None])
    with pytest.raises(ValueError, match='rules are given twice'): char_dls(rules=[str.lower])


# The model

def test_from_text_to_bits_per_character(tmp_path):
    learn = lm(metrics=BitsPerChar(), path=tmp_path)
    fresh = learn.evaluate().bpc
    learn.fit_one_cycle(8, 2e-2)
    score = learn.evaluate()
    assert score.bpc < fresh - 1 and score.bpc == pytest.approx(score.loss / math.log(2))
    assert score.n_tokens == learn.dls.valid.n_tokens
    assert learn.record[-1]['bits_per_char'] == pytest.approx(score.bpc, abs=.5)
    assert set(learn.dls.vocab.itos) >= set(''.join(texts)) and '\n' in learn.dls.vocab
    out = learn.predict('The cat', 30, temperature=0)
    assert out.startswith('The cat') and len(out) == len('The cat') + 30
    there = load_learner(learn.export())
    assert there.predict('The cat', 30, temperature=0) == out
    assert there.evaluate(texts[:4]).bpc == pytest.approx(learn.evaluate(texts[:4]).bpc, abs=1e-5)


def test_bits_per_character_by_a_loop_over_characters():
    learn = lm()
    text = ''.join(learn.dls.vocab.decode(learn.dls.valid.corpus.ids))
    ids,nats,state = learn.dls.vocab.encode(list(text)), 0., None
    model = learn.model.eval()
    with torch.no_grad():
        for now, then in zip(ids[:-1], ids[1:]):
            out = model(now[None, None], state)
            state = out.state
            nats -= model.logits(out.dropped)[0, 0].log_softmax(-1)[then].item()
    assert learn.evaluate().bpc == pytest.approx(nats / math.log(2) / (len(text) - 1), abs=1e-4)


def test_a_character_encoder_makes_a_classifier(tmp_path):
    learn = lm(path=tmp_path)
    learn.fit(1)
    learn.save_encoder('chars')
    dls = char_dls(is_lm=False, labels=labels, text_vocab=learn.dls.vocab)
    clas = text_classifier_learner(dls, pretrained='chars', path=tmp_path, drop_mult=0.).remove_cb(ProgressCallback)
    clas.unfreeze().fit_one_cycle(20, 2e-2)
    assert clas.validate()[1] > .9 and clas.predict(texts[0])[0] == 'pet'


# Words are refused

def test_words_are_no_prompt():
    learn = lm()
    before = weights(learn)
    for words in (['The', 'cat'], ['x', 'y', 'zz']):
        with pytest.raises(ValueError, match='is a word, and this is for characters: give a text'): learn.predict(words)
    assert_close(weights(learn), before)
    assert learn.predict(['T', 'h', 'e'], 2, seed=0) == learn.predict('The', 2, seed=0)


def test_an_encoder_of_characters_does_not_read_words_nor_the_other_way(tmp_path):
    chars,words = lm(path=tmp_path), lm(word_dls(is_lm=True), path=tmp_path)
    chars.save_encoder('chars'); words.save_encoder('words')
    for learn, file, says in [(chars, 'words', 'reads words, these data are characters'),
                              (words, 'chars', 'reads characters, these data are words')]:
        before = weights(learn)
        with pytest.raises(ValueError, match=says): learn.load_encoder(file)
        assert_close(weights(learn), before, rtol=0, atol=0)
        assert all(p.requires_grad for p in learn.model.parameters())
        with pytest.raises(ValueError, match=says):
            language_model_learner(learn.dls, pretrained=file, path=tmp_path)


def test_a_vocabulary_of_words_is_refused():
    for vocab in (Vocab([*special_tokens, 'cat', 'dog']), ['xxunk', 'xxpad', 'a', 'cat']):
        with pytest.raises(ValueError, match="'cat' is a word"): char_dls(text_vocab=vocab)
    assert len(char_dls(text_vocab=[*special_tokens, 'a', 'b']).vocab) == len(special_tokens) + 2


# The learners of the kin

kin = [dict(arch=QRNN), dict(arch=GRU),
       dict(arch=QRNN, config=dict(decoder='mos', n_experts=3, window=1, zoneout_p=.1)),
       dict(arch=GRU, config=dict(decoder='adaptive', cutoffs=[15], tie_weights=False)),
       dict(config=dict(decoder='mos', n_experts=2, n_hid_last=10))]
each_kin = pytest.mark.parametrize('options', kin, ids=['qrnn', 'gru', 'qrnn-mos', 'gru-adaptive', 'lstm-mos'])


def kin_lm(options, **rest): return lm(**options | dict(config=size | options.get('config', {})) | rest)


@each_kin
def test_it_trains_saves_and_comes_back(options, tmp_path):
    learn = kin_lm(options, path=tmp_path)
    arch = options.get('arch', encoders['AWD_LSTM'])
    assert type(learn.encoder) is arch and learn.config.arch == arch.__name__
    assert {RNNRegularizer, NTASGD} <= {type(cb) for cb in learn.cbs}
    fresh = learn.evaluate().loss
    learn.fit_one_cycle(2, 2e-2)
    assert learn.evaluate().loss < fresh - .3
    there = load_learner(learn.export())
    assert type(there.encoder) is arch and there.config == learn.config
    assert there.evaluate(texts[:3]).loss == pytest.approx(learn.evaluate(texts[:3]).loss, abs=1e-5)
    assert there.predict('The', 9, seed=1) == learn.predict('The', 9, seed=1)
    probs,y,losses = learn.get_preds(with_loss=True)
    assert losses.mean().item() == pytest.approx(learn.validate()[0], abs=1e-4)


@each_kin
def test_its_encoder_goes_into_a_classifier_and_no_other(options, tmp_path):
    learn = kin_lm(options, path=tmp_path)
    learn.fit(1)
    learn.save_encoder('enc')
    dls = char_dls(is_lm=False, labels=labels, text_vocab=learn.dls.vocab, path=tmp_path)
    clas = text_classifier_learner(dls, pretrained='enc').remove_cb(ProgressCallback)
    assert type(clas.encoder) is type(learn.encoder)
    pairs = zip(clas.encoder.rnns.parameters(), learn.encoder.rnns.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)
    assert len(clas.splitter(clas.model)) == learn.encoder.n_layers + 2
    clas.fit(1)
    there = load_learner(clas.export())
    assert_close(there.predict(texts[0])[2], clas.predict(texts[0])[2])
    other = lm(learn.dls, arch=GRU if options.get('arch') is QRNN else QRNN, path=tmp_path)
    before = weights(other)
    with pytest.raises(ValueError, match=f"has the shape .*'arch': '{learn.config.arch}'"): other.load_encoder('enc')
    assert_close(weights(other), before, rtol=0, atol=0)


def test_regularisation_and_the_carried_state_are_those_of_a_slow_loop():
    "One training step of each kind: the loss with AR and TAR from the state of the window before, without its graph."
    for options in kin:
        learn = kin_lm(options, drop_mult=0.)
        (x1, y1),(x2, y2) = list(learn.dls.train)[:2]
        model = learn.model.train()
        learn.training,learn.state = True,None
        learn.x,learn.y = x1,y1; learn.forward()
        assert all(not o.requires_grad for layer in learn.state for o in layer)
        learn.x,learn.y = x2,y2; learn.forward(); learn.get_loss()
        whole = model(torch.cat([x1, x2], 1)).raw[:, x1.shape[1]:]
        assert_close(learn.out.raw, whole, atol=1e-5, rtol=1e-5)
        learn.total_loss = learn.loss
        next(cb for cb in learn.cbs if isinstance(cb, RNNRegularizer)).after_loss(learn)
        ar,tar = (o.pow(2).mean() for o in (learn.out.dropped, whole[:, 1:] - whole[:, :-1]))
        assert_close(learn.total_loss, learn.loss + 2 * ar + tar)


class Stop(Callback):
    "Presses Ctrl-C in the middle of batch `n`."
    decides,order = False,1000
    def __init__(self, n): self.n = n
    def after_pred(self, learn):
        self.n -= 1
        if not self.n: signal.raise_signal(signal.SIGINT)


@each_kin
def test_a_run_that_is_stopped_goes_on_to_the_same_weights(options, tmp_path):
    def life(folder, cbs=None):
        seed_all(5)
        learn = kin_lm(options, dls=char_dls(seed=3), cbs=cbs)
        learn.fit(2, 1e-2, checkpoint=tmp_path / folder)
        return learn
    uncut = life('uncut')
    assert life('cut', Stop(4)).interrupted
    again = life('cut')
    assert not again.interrupted
    assert_close(weights(again), weights(uncut), rtol=0, atol=0)


def test_the_encoder_can_be_said_in_the_configuration_too(tmp_path):
    assert type(lm(config=size | dict(arch='QRNN')).encoder) is QRNN
    assert lm(arch=QRNN, config=size | dict(bidir=False, pad_token=1)).config.arch == 'QRNN'
    with pytest.raises(ValueError, match='arch=GRU and config is of arch=QRNN'): lm(arch=GRU, config=dict(arch='QRNN'))
    lm(arch=QRNN, path=tmp_path).save_encoder('enc')
    with pytest.raises(ValueError, match='arch=GRU and the encoder is of arch=QRNN'):
        lm(arch=GRU, pretrained='enc', path=tmp_path)
    assert lm(arch=QRNN, pretrained='enc', path=tmp_path, config=None).config.n_hid == 20
    for wrong in ('QRNN', 'LSTM', torch.nn.LSTM, None):
        with pytest.raises(ValueError, match='use one of the classes AWD_LSTM, QRNN, GRU'): lm(arch=wrong)
        with pytest.raises(ValueError, match='use one of the classes AWD_LSTM, QRNN, GRU'):
            text_classifier_learner(char_dls(is_lm=False, labels=labels), arch=wrong)


@pytest.mark.parametrize('config,says', [
    (dict(window=3), 'window=3'), (dict(decoder='mos', n_experts=0), 'n_experts=0'),
    (dict(decoder='adaptive', tie_weights=False, cutoffs=[9, 5]), 'whole numbers that increase'),
    (dict(decoder='adaptive', tie_weights=False, cutoffs=[999]), 'as the vocabulary has'),
    (dict(decoder='adaptive', cutoffs=[5]), 'use tie_weights=False'), (dict(decoder='best'), "use one of 'softmax'")])
def test_impossible_configurations(config, says):
    with pytest.raises(ValueError, match=says): lm(arch=QRNN, config=size | config)


def test_the_advice_counts_with_the_encoder_and_decoder_at_hand():
    base,laptop = (AWDLSTMConfig(**presets[name].sizes() | dict(arch='QRNN')) for name in ('base', 'laptop'))
    hours = 4 * laptop.macs_per_token(30_000) / base.macs_per_token(30_000)
    assert f"about {int(hours)} h" in advise_preset(4 * 3600, base, 30_000)
