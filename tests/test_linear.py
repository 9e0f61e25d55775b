"Linear probes: weights beside scikit-learn's, every kind of label and encoder, files, means with other classifiers."
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from awdtext.data.batches import RegressionSetup
from awdtext.data.data_block import RegressionBlock
from awdtext.data.dataloaders import TextDataLoaders
from awdtext.data.tokenizer import BaseTokenizer
from awdtext.ensemble import Ensemble
from awdtext.interpret import attribute
from awdtext.linear import fit_linear
from awdtext.models.language_model import encoders
from awdtext.pseudo_labels import pseudo_label
from awdtext.text_learner import language_model_learner, linear_probe, load_learner, text_classifier_learner
from awdtext.training.losses import cross_entropy_loss
from awdtext.training.progress import ProgressCallback

size = dict(emb_sz=6, n_hid=10, n_layers=2)
animals,places = 'cat dog cow hen owl fox'.split(),'mat log hill roof wall sea'.split()
texts = [f'The {a} sat on the {p} .' + ' It slept .' * i for a in animals for i, p in enumerate(places)]
kinds = {'one': ['pet' if 'cat' in t or 'dog' in t else 'farm' if 'cow' in t or 'hen' in t else 'wild' for t in texts],
         'two': ['pet' if 'cat' in t or 'dog' in t else 'wild' for t in texts],
         'several': [['tame'] * ('owl' not in t) + ['high'] * ('roof' in t or 'hill' in t) for t in texts],
         'number': [float(len(t.split())) for t in texts]}
plain = dict(bs=4, min_freq=1, seed=0, seq_len=8, tok_tfm=BaseTokenizer())


@pytest.fixture(autouse=True)
def one_thread(): torch.set_num_threads(1)


@pytest.fixture
def encoder(request, tmp_path):
    arch,backwards = getattr(request, 'param', ('AWD_LSTM', False))
    dls = TextDataLoaders.from_texts(texts, is_lm=True, backwards=backwards, path=tmp_path, **plain)
    learn = language_model_learner(dls, arch=encoders[arch], config=size, backwards=backwards)
    learn.remove_cb(ProgressCallback).fit(2, 1e-2)
    return learn, learn.save_encoder('enc').resolve()


def clas_dls(lm, labels):
    y_block = RegressionBlock() if labels is kinds['number'] else None
    return TextDataLoaders.from_texts(texts, labels, valid=texts, valid_labels=labels, text_vocab=lm.dls.vocab,
                                      backwards=lm.dls.backwards, path=lm.path, y_block=y_block, **plain)


def probe_of(encoder, kind='two', **how):
    lm,file = encoder
    arch = how.get('arch') or encoders['AWD_LSTM']
    return linear_probe(clas_dls(lm, kinds[kind]), file, backwards=lm.dls.backwards, **{**how, 'arch': arch})


def standardised(lm):
    x = lm.encode(texts, layers='all').astype(float)
    return (x - x.mean(0)) / x.std(0)


@pytest.mark.parametrize(('kind', 'C'), [('two', .01), ('one', .005), ('one', 1.)])
def test_probabilities_are_those_of_scikit_learn(encoder, kind, C):
    "Its two classes have one row of weights, which is penalised twice as much as the two rows here."
    linear = pytest.importorskip('sklearn.linear_model')
    x = standardised(encoder[0])
    peer = linear.LogisticRegression(C=C, tol=1e-9, max_iter=5000).fit(x, kinds[kind])
    probe = probe_of(encoder, kind, C=C / 2 if kind == 'two' else C)
    probs,y = probe.get_preds()
    assert probe.dls.categories == peer.classes_.tolist()
    assert_close(probs, torch.tensor(peer.predict_proba(x)).float(), atol=2e-3, rtol=0)
    assert probe.validate_figures()['accuracy'] == pytest.approx(peer.score(x, kinds[kind]), abs=1e-6)


@pytest.mark.parametrize('kind', ['several', 'number'])
def test_other_labels_beside_a_plain_descent(encoder, kind):
    "Of the same penalised loss, by another way to its minimum."
    probe,x = probe_of(encoder, kind, C=.1), torch.tensor(standardised(encoder[0]))
    y = probe.get_preds()[1].double()
    n_out = probe.options['n_out']
    weight,bias = (torch.zeros(s, dtype=torch.float64, requires_grad=True) for s in ((n_out, x.shape[1]), (n_out,)))
    opt = torch.optim.Adam([weight, bias], lr=.02)
    for i in range(6000):
        if i == 4000: opt.param_groups[0]['lr'] = 1e-3
        opt.zero_grad()
        (probe.loss_func(x @ weight.T + bias, y) + weight.square().sum() / (2 * .1 * len(x))).backward()
        opt.step()
    assert_close(probe.get_preds()[0], probe.loss_func.activation(x @ weight.T + bias).float().detach(), atol=5e-3,
                 rtol=1e-3)


@pytest.mark.parametrize('encoder', [('QRNN', False), ('GRU', False), ('AWD_LSTM', True)], indirect=True)
def test_kin_and_the_other_direction(encoder):
    lm,_ = encoder
    probe = probe_of(encoder, arch=type(lm.encoder), C=.1)
    x = torch.tensor(standardised(lm))
    fit = fit_linear(x, probe.get_preds()[1], cross_entropy_loss(), 2, C=.1)
    assert_close(probe.get_preds()[0], fit(x).softmax(1).float(), atol=2e-3, rtol=0)


def test_class_weights_count(encoder):
    probe = probe_of(encoder, class_weights={'pet': 50., 'wild': 1.})
    assert (probe.get_preds()[0][:, 0] > probe_of(encoder).get_preds()[0][:, 0]).all()


def test_a_file_of_it_predicts_the_same_and_in_other_precisions(encoder, tmp_path):
    probe = probe_of(encoder, 'one')
    again = load_learner(probe.export(tmp_path / 'probe'))
    for precision in (None, 'bf16', 'int8'):
        want = probe.predict(texts[7])[2]
        atol = 1e-6 if precision is None else .02
        assert_close(again.predict(texts[7], precision=precision)[2], want, atol=atol, rtol=0)
    assert again.options['layers'] == 'all'


def test_it_trains_on(encoder):
    "All its layers learn, and the penalties see the last one alone."
    probe = probe_of(encoder, 'one').remove_cb(ProgressCallback)
    before = [p.clone() for p in probe.model.parameters()]
    first = probe.validate_figures()['valid_loss']
    probe.unfreeze().fit(20, 5e-3)
    assert not any(torch.equal(p, q) for p, q in zip(before, probe.model.parameters()))
    assert probe.validate_figures()['valid_loss'] < first


def test_words_explain_it(encoder):
    probe = probe_of(encoder, C=1.)
    text = 'The cat sat on the mat .'
    end = float(attribute(probe, text, 'pet', n_steps=64).title.split(':')[1].split(',')[0])
    assert end == pytest.approx(torch.logit(probe.predict(text)[2][0].double()).item(), rel=5e-3)


def test_the_mean_with_another_classifier(encoder, tmp_path):
    lm,file = encoder
    tuned = text_classifier_learner(clas_dls(lm, kinds['two']), pretrained=file).remove_cb(ProgressCallback)
    tuned.unfreeze().fit(8, 1e-2)
    tuned.cool(.1)                                                                 # far too sure
    both = Ensemble([tuned, probe_of(encoder)])
    temperatures = both.balance(texts)
    assert temperatures[1] == 1 and temperatures[0] > 2
    spreads = [part.get_preds()[0].log().double().std(1).square().mean().sqrt() for part in both.parts]
    assert_close(spreads[0], spreads[1], rtol=1e-3, atol=0)
    assert both.balance(texts) == pytest.approx([1, 1], rel=1e-3)
    found = pseudo_label(both, texts, 10)
    assert found.categories == [int(both.predict(text)[1]) for text in found.texts]
    again = load_learner(both.export(tmp_path / 'both'))
    assert_close(again.predict(texts[0])[2], both.predict(texts[0])[2])
    for precision in ('bf16', 'int8'):
        mean = sum(part.predict(texts[0], precision=precision)[2] for part in both.parts) / 2
        assert_close(both.predict(texts[0], precision=precision)[2], mean, atol=1e-6, rtol=0)


def test_what_cannot_be(encoder):
    lm,file = encoder
    with pytest.raises(ValueError, match='C=0: use a number above 0'): probe_of(encoder, C=0)
    with pytest.raises(ValueError, match="layers='first': use 'last' or 'all'"):
        text_classifier_learner(clas_dls(lm, kinds['two']), config=size, layers='first')
    with pytest.raises(ValueError, match='pretrained=None: name an encoder'): linear_probe(lm.dls, None)
    with pytest.raises(ValueError, match="C='strong': use a number above 0"): linear_probe(lm.dls, file, C='strong')
    number = probe_of(encoder, 'number')
    assert isinstance(number.dls.labeler, RegressionSetup)
    with pytest.raises(ValueError, match='nothing to balance'): Ensemble([number, number]).balance(texts)
    with pytest.raises(ValueError, match='temperature=0: use a number above 0'): number.cool(0)
    with pytest.raises(ValueError, match="temperature='2': use a number above 0"): number.cool('2')
    with pytest.raises(ValueError, match='features of shape'): fit_linear(torch.zeros(3), None, None, 1)


def test_features_that_never_change_do_no_harm():
    x = np.random.RandomState(0).randn(40, 3)
    x[:, 1] = .1
    fit = fit_linear(torch.tensor(x), torch.tensor(x[:, 0] > 0).long(), cross_entropy_loss(), 2, C=1.)
    assert fit.std[1] == 1 and abs(fit.weight[:, 1]).max() < 1e-6
    before = fit(torch.tensor(x))
    x[:, 1] = .2
    assert_close(fit(torch.tensor(x)), before, atol=1e-6, rtol=0)
