"Scores and features: those of reading each document alone, in order, in any company, for texts without end."
import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close
from training_helpers import lm_learner, tiny_size, words

from awdtext.data.dataloaders import TextDataLoaders
from awdtext.data.tokenizer import CharTokenizer, Tokenizer
from awdtext.data.vocab import Vocab
from awdtext.ensemble import Ensemble, LMEnsemble
from awdtext.lm.score import encode_texts, pooled, score_texts, surprisals
from awdtext.models.awd_lstm import AWD_LSTM
from awdtext.models.gru import GRU
from awdtext.models.language_model import get_language_model
from awdtext.models.qrnn import QRNN
from awdtext.text_learner import language_model_learner, text_classifier_learner
from awdtext.training.optim import WeightAverage

kinds = {'lstm': {}, 'gru': dict(arch='GRU'), 'qrnn': dict(arch='QRNN'), 'mos': dict(decoder='mos', n_experts=3),
         'adaptive': dict(decoder='adaptive', cutoffs=[8], tie_weights=False)}


@pytest.fixture(autouse=True)
def start():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def new_model(kind='lstm', vocab_sz=20): return get_language_model(vocab_sz, dict(**tiny_size, **kinds[kind]))


def slow_nats(model, doc):
    "One token at a time, everything read again for each."
    model.eval()
    with torch.no_grad():
        logits = [model.logits(model(doc[None, :i]).dropped)[0, -1] for i in range(1, len(doc))]
    return [-z.log_softmax(-1)[word].item() for z, word in zip(logits, doc[1:])]


@pytest.mark.parametrize('kind', kinds)
@pytest.mark.parametrize('bptt', [1, 4, 72])
def test_surprisals_are_those_of_reading_everything_again(kind, bptt):
    model = new_model(kind)
    docs = [torch.randint(20, (n,)) for n in (3, 11, 1, 11, 6)]
    for doc, nats in zip(docs, surprisals(model, docs, bptt)):
        assert nats.tolist() == pytest.approx(slow_nats(model, doc), abs=1e-4)


@pytest.mark.parametrize('kind', ['lstm', 'qrnn'])
@pytest.mark.parametrize('max_len', [None, 1, 5])
def test_features_are_those_of_the_whole_document(kind, max_len):
    encoder = new_model(kind).encoder
    docs = [torch.randint(20, (n,)) for n in (3, 11, 1, 23)]
    for doc, row in zip(docs, pooled(encoder, docs, 4, max_len)):
        with torch.no_grad(): out = encoder.eval()(doc[None]).raw[0]
        tail = out if max_len is None else out[-max_len:]
        assert_close(row, torch.cat([out[-1], tail.amax(0), tail.mean(0)]), rtol=1e-4, atol=1e-5)


def raw_dls():
    return TextDataLoaders(None, None, Vocab(['xxunk', 'xxpad', *(f'w{i}' for i in range(20))]), seq_len=16)


def test_results_do_not_depend_on_company_nor_order():
    dls,model = raw_dls(), new_model(vocab_sz=22)
    texts = [words(n, seed=n) for n in (5, 40, 2, 33, 17, 1)]
    alone = [next(score_texts(model, dls, [text])) for text in texts]
    features = np.stack([next(encode_texts(model.encoder, dls, [text])) for text in texts])
    for bs in (1, 2, 64):
        for got, expected in zip(score_texts(model, dls, texts, bs), alone):
            assert got.tokens == expected.tokens and got.surprisals == pytest.approx(expected.surprisals, abs=1e-5)
        np.testing.assert_allclose(np.stack(list(encode_texts(model.encoder, dls, texts, bs=bs))), features, atol=1e-5)


def test_a_stream_without_end_is_read_as_needed():
    dls,model,taken = raw_dls(), new_model(vocab_sz=22), []
    def endless():
        for i in itertools.count():
            taken.append(i)
            yield words(1 + i % 7, seed=i)
    for results in (score_texts(model, dls, endless(), bs=2), encode_texts(model.encoder, dls, endless(), bs=2)):
        taken.clear()
        assert len(list(itertools.islice(results, 40))) == 40 and len(taken) <= 64


def test_tokenizer_streams_too():
    dls = TextDataLoaders(None, None, Vocab(['xxunk', 'xxpad', 'xxbos', *'the cat sat'.split()]), tokenizer=Tokenizer())
    results = score_texts(new_model(vocab_sz=6), dls, (f'The cat {i}' for i in itertools.count()), bs=1)
    assert next(results).tokens == ['xxunk', 'the', 'cat', 'xxunk']                 # xxmaj is not in this vocabulary


def test_unknown_words_leave_the_vocabulary_as_it_was():
    dls = raw_dls()
    before = len(dls.vocab), len(dls.vocab.stoi)
    list(score_texts(new_model(vocab_sz=22), dls, [[f'new{i}' for i in range(100)]]))
    assert (len(dls.vocab), len(dls.vocab.stoi)) == before


def test_line_ends_are_the_context_of_raw_texts():
    dls = TextDataLoaders(None, None, Vocab(['xxunk', '<eos>', 'a', 'b']))
    model = new_model(vocab_sz=4)
    (score,) = score_texts(model, dls, [['a', 'b', '<eos>']])
    assert score.tokens == ['a', 'b', '<eos>']
    assert score.surprisals == pytest.approx(slow_nats(model, torch.tensor([1, 2, 3, 1])), abs=1e-5)


def test_figures_of_a_text():
    (score,) = score_texts(new_model(vocab_sz=22), raw_dls(), [words(9)])
    assert score.logp == pytest.approx(-sum(score.surprisals))
    assert score.perplexity == pytest.approx(math.exp(sum(score.surprisals) / 8))


def test_learners_score_and_encode_and_are_as_before():
    learn = lm_learner()
    learn.fit(1)
    learn.model.train()
    texts,weights = [words(12, seed=i) for i in range(5)], {k: v.clone() for k, v in learn.model.state_dict().items()}
    scores,features = learn.score(texts), learn.encode(texts)
    assert [len(s.surprisals) for s in scores] == [11] * 5
    assert features.shape == (5, 24) and features.dtype == np.float32
    assert learn.model.training and all(torch.equal(v, weights[k]) for k, v in learn.model.state_dict().items())
    assert [s.surprisals for s in learn.iter_score(texts)] == [s.surprisals for s in scores]
    np.testing.assert_array_equal(np.stack(list(learn.iter_encode(texts))), features)
    assert learn.score([]) == [] and learn.encode([]).shape == (0, 24)


@pytest.mark.parametrize('arch', [AWD_LSTM, GRU, QRNN])
@pytest.mark.parametrize(('seq_len', 'max_len'), [(4, None), (100, None), (7, 5)])
def test_means_of_all_layers_by_hand(arch, seq_len, max_len):
    encoder = arch(22, 4, 6, 3).eval()
    docs = [torch.randint(22, (n,), generator=torch.Generator().manual_seed(n)) for n in (9, 1, 30, 14)]
    for doc, row in zip(docs, pooled(encoder, docs, seq_len, max_len, layers='all')):
        x,expected = encoder.embedding(doc[None]), []
        for layer in (None, *encoder.rnns):
            if layer is not None: x = layer(x)[0]
            pool = x[0].tolist()[-(max_len or 99):]
            expected += [sum(column) / len(pool) for column in zip(*pool)]
        torch.testing.assert_close(row, torch.tensor(expected))


def test_features_of_all_layers_of_a_learner():
    learn,texts = lm_learner(), [words(12, seed=i) for i in range(5)]
    features = learn.encode(texts, layers='all')
    sizes = [learn.encoder.emb_sz, *(rnn.n_hid for rnn in learn.encoder.rnns)]
    assert features.shape == (5, sum(sizes)) and learn.encode([], layers='all').shape == (0, sum(sizes))
    np.testing.assert_allclose(features[:, -sizes[-1]:], learn.encode(texts)[:, -sizes[-1]:], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="layers='first': use 'last' or 'all'"): learn.encode(texts, layers='first')


def test_one_text_is_no_list_of_texts():
    learn = lm_learner()
    for method in (learn.score, learn.encode, learn.iter_score, learn.iter_encode):
        with pytest.raises(TypeError, match='give a list of texts, not one text'): method('w1 w2')
    with pytest.raises(ValueError, match='text 1 has no tokens'): learn.encode([['w1'], []])
    assert learn.score([['w1'], []])[1] == ([], [])


@pytest.mark.parametrize('backwards', [False, True])
@pytest.mark.parametrize('max_len', [1440, 5])
def test_a_classifiers_features_are_what_its_head_sees(backwards, max_len):
    texts = [' '.join(words(n, seed=n)) for n in (4, 30, 9, 14, 1, 22, 8, 5, 6, 7)]
    dls = TextDataLoaders.from_texts(texts, list('abab' 'ababab'), min_freq=1, bs=4, backwards=backwards, seed=0)
    learn = text_classifier_learner(dls, config=tiny_size, seq_len=6, max_len=max_len, backwards=backwards)
    with torch.no_grad(): logits = learn.model.eval().head.layers(torch.tensor(learn.encode(texts)))
    assert_close(logits.softmax(1), learn.get_preds(dl=dls.test_dl(texts))[0], rtol=1e-4, atol=1e-5)


def with_pending_average(learn):
    "The average is what the weights were; the model, as within an epoch, has gone on."
    learn.average = WeightAverage(learn.model)
    with torch.no_grad():
        for p in learn.model.parameters(): p += .3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    return learn


def results_of(learn, texts):
    "What the learner says of `texts`, by each of its ways."
    found = {'encode': learn.encode(texts), 'iter_encode': np.stack(list(learn.iter_encode(texts, bs=2)))}
    if not learn.dls.is_lm: return found
    found['stream'] = ''.join(learn.stream(texts[0], 9, seed=0))
    return found | {'score': learn.score(texts), 'iter_score': list(learn.iter_score(texts, bs=2)),
                    'predict': learn.predict(texts[0], 9, seed=0)}


def same_results(found, expected):
    for way, ours in found.items():
        if isinstance(ours, np.ndarray): np.testing.assert_allclose(ours, expected[way], atol=1e-6)
        elif way in ('stream', 'predict'): assert ours == expected[way]
        else: assert [s.surprisals for s in ours] == [pytest.approx(s.surprisals, abs=1e-5) for s in expected[way]]


@pytest.mark.parametrize('kind', ['lm', 'classifier'])
def test_averages_are_what_every_way_uses(kind):
    texts = [words(n, seed=n) for n in (12, 5, 9)]
    learn = lm_learner() if kind == 'lm' else text_classifier_learner(TextDataLoaders.from_tokens(
        texts, texts, labels=list('aba'), valid_labels=list('aba'), is_lm=False, bs=2, seed=0), config=tiny_size)
    usual = results_of(learn, texts)
    own = {k: v.clone() for k, v in with_pending_average(learn).model.state_dict().items()}
    same_results(results_of(learn, texts), usual)
    if kind == 'lm':
        loss = learn.evaluate(texts[:1]).loss
        assert -learn.score(texts[:1])[0].logp / 11 == pytest.approx(loss, abs=1e-5)
    assert not learn.average.swapped and all(torch.equal(v, own[k]) for k, v in learn.model.state_dict().items())
    learn.average = None
    changed = results_of(learn, texts)
    assert not np.allclose(changed['encode'], usual['encode'], atol=1e-3)


@pytest.mark.parametrize('way', ['iter_score', 'iter_encode', 'stream'])
def test_between_what_is_given_one_by_one_a_model_may_be_trained(way):
    learn,texts = with_pending_average(lm_learner()), [words(5, seed=i) for i in range(40)]
    results = learn.stream(texts[0], 9, seed=0) if way == 'stream' else getattr(learn, way)(texts, bs=1)
    own = {k: v.clone() for k, v in learn.model.state_dict().items()}
    for _ in itertools.islice(results, 20):
        assert all(torch.equal(v, own[k]) for k, v in learn.model.state_dict().items())
        learn.average.update()                                           # which is refused while the model is the mean
    assert not learn.average.swapped


def test_an_ensemble_scores_with_the_averages_of_its_parts():
    texts,dls = ['the cat sat', 'on the mat the cat'], TextDataLoaders.from_texts(
        ['the cat sat on the mat'] * 6, is_lm=True, min_freq=1, bs=2, seed=0)
    both = LMEnsemble([language_model_learner(dls, config=tiny_size) for _ in range(2)])
    def found(): return {'score': both.score(texts), 'iter_score': list(both.iter_score(texts)),
                         'encode': both.encode(texts), 'stream': ''.join(both.stream('the', 9, seed=0))}
    usual,loss = found(), both.evaluate(texts).loss
    for part in both.parts: with_pending_average(part)
    same_results(found(), usual)
    assert both.evaluate(texts).loss == pytest.approx(loss, abs=1e-5)
    assert not any(part.average.swapped for part in both.parts)


# Several as one

sentences = ['the cat sat on the mat', 'a dog sat', 'the mat and the cat and a dog', 'on a mat', 'a cat and a dog sat']
ways = {'words': (sentences, None), 'characters': (sentences, CharTokenizer()),
        'tokens': ([sentence.split() for sentence in sentences], None)}


def lm_of(kind='words', backwards=False, seed=0, docs=None):
    torch.manual_seed(seed)
    docs,tok = docs or ways[kind][0], ways[kind][1]
    how = dict(bs=2, seq_len=8, seed=0, backwards=backwards, min_freq=1)
    if kind == 'tokens': dls = TextDataLoaders.from_tokens(docs, docs[:3], test=docs[3:], **how)
    else: dls = TextDataLoaders.from_texts(docs, valid=docs[:3], test=docs[3:], is_lm=True, tok_tfm=tok, **how)
    return language_model_learner(dls, config=tiny_size, backwards=backwards)


def mean_nats(parts, texts):
    each = [[n for score in part.score(texts) for n in score.surprisals] for part in parts]
    return np.mean(each, 0).tolist()


@pytest.mark.parametrize('kind', ['characters', 'tokens'])
@pytest.mark.parametrize('backwards', [False, True])
def test_models_of_one_direction_score_whatever_they_read(kind, backwards):
    texts = ways[kind][0]
    both = LMEnsemble([lm_of(kind, backwards, seed) for seed in (0, 1)])
    assert [n for s in both.score(texts) for n in s.surprisals] == pytest.approx(mean_nats(both.parts, texts), abs=1e-5)
    assert both.score(texts)[0].tokens == both.parts[0].score(texts)[0].tokens
    assert both.evaluate('valid').loss == pytest.approx(np.mean(mean_nats(both.parts, texts[:3])), abs=1e-5)
    assert both.predict('the', 3, seed=0) and both.encode(texts).shape == (5, 48)
    with pytest.raises(ValueError, match='do not begin with xxbos.*one direction'):
        LMEnsemble([both.parts[0], lm_of(kind, not backwards)])
    with pytest.raises(ValueError, match='other words than part 0'):
        LMEnsemble([both.parts[0], lm_of(kind, backwards, docs=[*texts[:4], 'zz' if kind == 'characters' else ['zz']])])


def test_one_tokenizer_for_all():
    one,other = lm_of('tokens'), lm_of('tokens')
    other.dls.tokenizer = CharTokenizer()
    with pytest.raises(ValueError, match='part 1 reads texts, part 0 the other'): LMEnsemble([one, other])
    with pytest.raises(ValueError, match='part 1 reads lists of tokens, part 0 the other'): LMEnsemble([other, one])


@pytest.mark.parametrize('first', [False, True])
def test_an_ensemble_is_evaluated_on_its_data(first):
    "Each document alone, from the left and from the right."
    both = LMEnsemble([lm_of(backwards=first), lm_of(backwards=not first, seed=1)])
    for part, texts in (('train', sentences), ('valid', sentences[:3]), ('test', sentences[3:])):
        nats = mean_nats(both.parts, texts)
        assert both.evaluate(part).loss == pytest.approx(np.mean(nats), abs=1e-5)
    assert both.evaluate() == both.evaluate('valid') and both.evaluate() != both.evaluate('test')
    both.parts[0].dls.valid = None
    with pytest.raises(ValueError, match='These data have no valid part'): both.evaluate()


def refusal(how, *args):
    with pytest.raises((TypeError, ValueError)) as e: how(*args)
    return str(e.value)


def test_ensembles_refuse_one_text_as_one_learner_does():
    lms = LMEnsemble([lm_of(), lm_of()])
    dls = TextDataLoaders.from_texts(sentences * 2, list('abababbaab'), min_freq=1, bs=2, seed=0)
    clas = Ensemble([text_classifier_learner(dls, config=tiny_size) for _ in range(2)])
    for both, names in ((lms, ('score', 'iter_score', 'encode', 'evaluate')), (clas, ('encode',))):
        for name, wrong in itertools.product(names, ('the cat', 3)):
            told = refusal(getattr(both, name), wrong)
            if (name, wrong) != ('evaluate', 3): assert told == refusal(getattr(both.parts[0], name), wrong)
            assert 'list of texts' in told


def test_ensembles_read_frames_and_generators():
    frame = pd.DataFrame({'title': sentences, 'body': sentences[::-1], 'label': list('ababa')})
    dls = TextDataLoaders.from_df(frame, text_col=['title', 'body'], label_col='label', min_freq=1, bs=2, seed=0)
    parts = [text_classifier_learner(dls, config=tiny_size) for _ in range(2)]
    expected = np.concatenate([part.encode(frame) for part in parts], 1)
    np.testing.assert_array_equal(Ensemble(parts).encode(frame), expected)
    rows = frame.drop(columns='label').to_dict('records')
    np.testing.assert_array_equal(Ensemble(parts).encode(row for row in rows), expected)


def test_numbers_that_cannot_be():
    lm,docs = get_language_model(20, tiny_size), [torch.tensor([1, 2, 3])]
    assert surprisals(lm, []) == []
    for bptt in (0, -1):
        with pytest.raises(ValueError, match=f'bptt={bptt}'): surprisals(lm, docs, bptt)
    for how in (dict(max_len=0), dict(max_len=-1), dict(seq_len=0), dict(seq_len=-1)):
        with pytest.raises(ValueError, match='use a whole number'): pooled(lm.encoder, docs, **how)
    for none in ([], [*docs, torch.tensor([], dtype=torch.long)]):
        with pytest.raises(ValueError, match='there is no document, or one without tokens'): pooled(lm.encoder, none)
