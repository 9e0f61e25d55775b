"Reports per class are scikit-learn's, calibration is the formula, and a temperature is where the loss is least."
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import optimize
from sklearn import metrics as skm
from sklearn.calibration import calibration_curve
from training_helpers import plain_learner, tiny_size, two_classes, words

from awdtext.data.batches import RegressionSetup
from awdtext.data.dataloaders import TextDataLoaders
from awdtext.ensemble import Ensemble, scores_of
from awdtext.text_learner import load_learner, text_classifier_learner
from awdtext.training.calibration import CalibratedLoss, calibration, class_report, fit_temperature, with_temperature
from awdtext.training.losses import binary_cross_entropy_loss, cross_entropy_loss
from awdtext.training.sklearn_metrics import SklearnMetric


@pytest.fixture(autouse=True)
def start():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.mark.parametrize('n_classes', [2, 3, 8])
@pytest.mark.parametrize('n', [1, 5, 300])
@pytest.mark.parametrize('several', [False, True])
def test_class_reports_are_scikit_learns(n_classes, n, several):
    probs = torch.rand(n, n_classes)
    targs = (torch.rand(n, n_classes) > .7).float() if several else torch.randint(n_classes, (n,))
    guess = (probs > .6) if several else probs.argmax(1)
    ours = class_report(probs, targs, thresh=.6)
    theirs = skm.classification_report(targs, guess, labels=range(n_classes), output_dict=True, zero_division=0)
    rows = {**{str(row.category): row for row in ours.classes}, 'macro avg': ours.macro, 'weighted avg': ours.weighted}
    for name, row in rows.items():
        assert row[1:] == pytest.approx([theirs[name][k] for k in ('precision', 'recall', 'f1-score', 'support')])
    assert ours.accuracy == pytest.approx(skm.accuracy_score(targs, guess))
    assert all(str(row.category) in repr(ours) for row in ours.classes)


@pytest.mark.parametrize('method', ['class_report', 'calibration', 'calibrate'])
def test_documents_without_labels(method):
    dls = TextDataLoaders.from_texts(['a b c d', 'b c d e'] * 5, [0, 1] * 5, min_freq=1, bs=4, seed=0)
    learn = text_classifier_learner(dls, config=tiny_size)
    dl = dls.test_dl(['a b'])
    with pytest.raises(ValueError, match='These documents have no labels'): getattr(learn, method)(dl=dl)


@pytest.mark.parametrize('n_bins', [1, 5, 10, 33])
def test_reliability_is_scikit_learns_curve(n_bins):
    "Of one label, where scikit-learn draws the same; its bins hold their lower edge."
    probs = torch.rand(500, 1, dtype=torch.float64)
    targs = (torch.rand(500, 1) < probs).float()
    true,mean = calibration_curve(targs[:, 0].numpy(), probs[:, 0].numpy(), n_bins=n_bins)
    ours = calibration(probs, targs, n_bins)
    full = [i for i, n in enumerate(ours.counts) if n]
    np.testing.assert_allclose([ours.accuracy[i] for i in full], true)
    np.testing.assert_allclose([ours.confidence[i] for i in full], mean)
    assert sum(ours.counts) == 500


@pytest.mark.parametrize('several', [False, True])
@pytest.mark.parametrize('true', [.3, 1., 4.])
def test_a_temperature_is_where_the_loss_is_least(several, true):
    z = torch.randn(3000, 3, dtype=torch.float64)
    probs,targs = (z.sigmoid(), (torch.rand(3000, 3) < (z / true).sigmoid()).double()) if several else (
        z.softmax(1), (z / true).softmax(1).multinomial(1)[:, 0])
    def loss(t):
        return (F.binary_cross_entropy_with_logits if several else F.cross_entropy)(z / t, targs).item()
    T = fit_temperature(probs, targs)
    assert T == pytest.approx(true, rel=.25)
    assert all(loss(T) <= loss(T * factor) for factor in (.5, .9, .99, 1.01, 1.1, 2))
    cooled = (z / T).sigmoid() if several else (z / T).softmax(1)
    torch.testing.assert_close(with_temperature(probs, T, several), cooled, atol=1e-5, rtol=0)


@pytest.mark.parametrize('loss_func,several', [
    (cross_entropy_loss(), False), (cross_entropy_loss([.5, 3., 1.]), False),
    (cross_entropy_loss(label_smoothing=.1), False), (binary_cross_entropy_loss(), True),
    (binary_cross_entropy_loss([2., 1., 5.]), True)])
@pytest.mark.parametrize('factor', [.3, 1., 8.])
def test_calibrated_loss_is_the_least_over_temperatures(loss_func, several, factor):
    scores = torch.randn(200, 3)
    targs = (torch.rand(200, 3) < scores.sigmoid()).float() if several else scores.softmax(1).multinomial(1)[:, 0]
    metric = CalibratedLoss(loss_func)
    assert np.isnan(metric.value)
    for _ in range(2):                                                  # nothing of the last pass is left
        metric.reset()
        for some in torch.arange(200).split(64):
            with torch.inference_mode(): metric.update(factor * scores[some].bfloat16().float(), targs[some], None, 64)
    exact = factor * scores.bfloat16().double()
    least = optimize.minimize_scalar(lambda log: loss_func(exact / np.exp(log), targs.double() if several else targs)
                                     .item(), bounds=(-3, 3), method='bounded', options={'xatol': 1e-8}).fun
    assert metric.value == pytest.approx(least, rel=1e-5)
    assert metric.value <= loss_func(exact, targs) + 1e-6


def test_a_classifier_without_a_mistake_has_hardly_a_calibrated_loss():
    metric = CalibratedLoss(cross_entropy_loss())
    metric.update(torch.tensor([[.5, 0.], [0., .5]]), torch.tensor([0, 1]), None, 2)
    assert metric.value == pytest.approx(np.log1p(np.exp(-.5 / .05)), rel=1e-3)


def test_probabilities_of_zero_and_one_stay_numbers():
    probs = torch.tensor([[1., 0.], [0., 1.], [1., 0.], [.5, .5]])
    assert np.isfinite(fit_temperature(probs, torch.tensor([0, 1, 1, 0])))
    assert np.isfinite(fit_temperature(probs, torch.tensor([[1., 0.], [0., 1.], [0., 1.], [1., 0.]])))
    assert with_temperature(probs, 2.).isfinite().all() and with_temperature(probs, 2., several=True).isfinite().all()


def test_nothing_to_fit_is_told():
    probs,targs = torch.tensor([[.9, .1]]), torch.tensor([0])
    with pytest.warns(UserWarning, match='nothing to fit it to'): assert fit_temperature(probs, targs) == 1.


def test_a_classifier_without_a_mistake_keeps_its_probabilities():
    "All scores were multiplied by twenty, which made every later mistake a certain one."
    learn,texts = classifier(['a', 'b'] * 20)
    dl = learn.dls.test_dl(texts[:1], [learn.predict(texts[0])[0]])
    before = learn.predict(texts[1])[2]
    with pytest.warns(UserWarning, match='stay as they are'): assert learn.calibrate(dl=dl) == 1.
    assert torch.equal(learn.predict(texts[1])[2], before)


def classifier(labels, y_block=None):
    texts = [' '.join(words(8 + i % 9, seed=i)) for i in range(len(labels))]
    dls = TextDataLoaders.from_texts(texts, labels, min_freq=1, bs=8, seed=0, y_block=y_block, valid_pct=.5)
    learn = text_classifier_learner(dls, config=tiny_size)
    learn.fit(1, 1e-2)
    return learn, texts


@pytest.mark.parametrize('several', [False, True])
def test_a_calibrated_classifier_says_the_same_with_truer_probabilities(several, tmp_path):
    g = torch.Generator().manual_seed(0)
    names = [['ab'[int(i)]] if several else 'ab'[int(i)] for i in torch.randint(2, (60,), generator=g)]
    learn,texts = classifier(names)
    with torch.no_grad(): learn.model.head.layers[-1][-1].weight *= 30.                    # much too sure
    probs,targs = learn.get_preds()
    before = learn.calibration()
    T = learn.calibrate()
    now = learn.get_preds()[0]
    torch.testing.assert_close(now, with_temperature(probs, T, several), atol=1e-4, rtol=0)
    assert T > 1 and learn.calibration().ece < before.ece
    assert torch.equal(now > .5, probs > .5)
    there = load_learner(learn.export(tmp_path / 'clas'))
    torch.testing.assert_close(there.predict(texts[0])[2], learn.predict(texts[0])[2])
    right = ((probs > .5) == (targs > .5)).all(1) if several else probs.argmax(1) == targs
    assert learn.class_report().accuracy == pytest.approx(right.double().mean().item())
    assert [row.category for row in learn.class_report().classes] == ['a', 'b']


@pytest.mark.parametrize('several', [False, True])
def test_the_mean_of_calibrated_parts_has_a_temperature_of_its_own(several, tmp_path):
    "scipy's search over temperatures finds none that is better; no prediction changes, and the file knows it."
    names = [['ab'[i % 2]] if several else 'ab'[i % 2] for i in range(60)]
    one,texts = classifier(names)
    two = load_learner(one.export(tmp_path / 'one'))
    for part, sure in ((one, 4.), (two, 2.)):
        z = scores_of(part.get_preds(dl=part.dls.test_dl(texts))[0], part.dls.labeler)
        part.cool((z if several else z[:, 0] - z[:, 1]).abs().mean().item() / sure)
    both = Ensemble([one, two])
    if several: both.thresholds = torch.tensor([.3, .6])
    law = with_temperature(both.get_preds(dl=both.dls.test_dl(texts))[0], 3., several)     # three times too sure of it
    drawn = [[['ab'[i] for i in row.bernoulli().nonzero()] if several else 'ab'[row.multinomial(1)] for row in law]]
    dl = both.dls.test_dl(texts, *drawn)
    (probs,targs),cut = both.get_preds(dl=dl), both.thresholds if several else .5
    z,T = scores_of(probs.double(), both.dls.labeler), both.calibrate(dl=dl)
    def loss(t):
        return F.binary_cross_entropy_with_logits(z / t, targs.double()) if several else F.cross_entropy(z / t, targs)
    best = optimize.minimize_scalar(lambda t: loss(t).item(), bounds=(.05, 20.), options={'xatol': 1e-6}).x
    assert best == pytest.approx(T, rel=1e-3) and T > 1.5
    now = both.get_preds(dl=dl)[0]
    torch.testing.assert_close(now, with_temperature(probs, T, several), atol=1e-5, rtol=0)
    assert both.validate(dl=dl)[0] == pytest.approx(loss(T).item(), rel=1e-4)
    assert torch.equal(now > (both.thresholds if several else .5), probs > cut)
    there = load_learner(both.export(tmp_path / 'both'))
    assert there.temperature == T
    torch.testing.assert_close(there.predict(texts[0])[2], both.predict(texts[0])[2])
    both.cool(2.)
    torch.testing.assert_close(both.get_preds(dl=dl)[0], with_temperature(probs, 2 * T, several), atol=1e-5, rtol=0)


def test_numbers_have_neither_classes_nor_probabilities():
    learn,_ = classifier([float(i % 5) for i in range(20)], RegressionSetup)
    for method in (learn.class_report, learn.calibration, learn.calibrate):
        with pytest.raises(ValueError, match='a regression has neither classes nor probabilities'): method()


def test_scikit_learns_metrics_in_the_table():
    metrics = [SklearnMetric(skm.cohen_kappa_score), SklearnMetric(skm.roc_auc_score, of='probs')]
    learn = plain_learner(two_classes(), metrics=metrics)
    learn.fit(2)
    probs,targs = learn.get_preds()
    assert learn.record[-1]['cohen_kappa_score'] == pytest.approx(skm.cohen_kappa_score(targs, probs.argmax(1)))
    assert learn.record[-1]['roc_auc_score'] == pytest.approx(skm.roc_auc_score(targs, probs[:, 1]), abs=1e-6)


def test_what_is_neither_probability_nor_class():
    p,t = torch.tensor([[.7, .2, .1], [.1, .8, .1]]), torch.tensor([0, 1])
    for probs, targs, message in ((p * torch.nan, t, 'no probabilities'), (p.log(), t, 'no probabilities'),
                                  (p * 9, t, 'no probabilities'), (p, t - 1, 'run from -1 to 0'),
                                  (p, t + 2, 'run from 2 to 3, but these are probabilities of 3 classes')):
        for f in (class_report, calibration, fit_temperature):
            with pytest.raises(ValueError, match=message): f(probs, targs)
    with pytest.raises(ValueError, match='2 categories for 3 classes'): class_report(p, t, ['a', 'b'])
    for n_bins in (0, -1, 2.5):
        with pytest.raises(ValueError, match='n_bins='): calibration(p, t, n_bins)
    for temperature in (0., -1., torch.inf, torch.nan):
        with pytest.raises(ValueError, match='temperature='): with_temperature(p, temperature)
    for low, high in ((0., 20.), (5., 2.), (1., torch.inf)):
        with pytest.raises(ValueError, match='low='): fit_temperature(p, t, low, high)


def test_a_metric_needs_a_function():
    with pytest.raises(TypeError, match='func=3 is no function'): SklearnMetric(3)
