"Every metric is, however a pass is cut into batches, what scikit-learn computes on the whole."
import math
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from sklearn import metrics as skm
from torch import nn
from training_helpers import lm_data, lm_learner, plain_learner, points, two_classes

from awdtext.training import metrics as ours
from awdtext.training.learner import Learner
from awdtext.training.losses import binary_cross_entropy_loss, mse_loss
from awdtext.training.metrics import as_metrics


def batchings(n, g):
    "Sizes of batches that make `n`: one by one, all in one, and some uneven ones, of which some are empty."
    yield [1] * n
    yield [n]
    for n_cuts in (1, 3, n // 3):
        cuts = torch.randint(0, n + 1, (n_cuts,), generator=g).sort().values
        yield torch.diff(cuts, prepend=torch.tensor([0]), append=torch.tensor([n])).tolist()


def run(metric, preds, targs, sizes):
    "The figure of one pass over batches of these `sizes`."
    metric.reset()
    for p, t in zip(preds.split(sizes), targs.split(sizes)): metric.update(p, t, 0., len(t))
    return metric.value


def check(metric, preds, targs, expected, g, atol=1e-12):
    "For every batching, one pass after the other on the same metric, the figure is the expected one."
    (metric,) = as_metrics(metric)
    for sizes in batchings(len(targs), g):
        assert run(metric, preds, targs, sizes) == pytest.approx(expected, rel=0, abs=atol, nan_ok=True), sizes


def sk(func, *args, **kwargs):
    "What scikit-learn says, without its warnings of figures that are not defined."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return float(func(*args, **kwargs))


def classes(seed, n_classes):
    "Items, scores and classes: few or many, unbalanced, some classes without items, some equal scores."
    g = torch.Generator().manual_seed(seed)
    n = int(torch.randint(2, 40, (), generator=g))
    odds = torch.rand(n_classes, generator=g) ** 3 * (torch.rand(n_classes, generator=g) > .2) + 1e-9
    targs = torch.multinomial(odds, n, replacement=True, generator=g)
    preds = torch.randn(n, n_classes, generator=g)
    if seed % 3 == 0: preds = preds.round()
    if seed % 4 == 0: preds[:, 0] -= 9                            # a class that is never predicted
    return preds, targs, g


seeds = pytest.mark.parametrize('seed', range(8))
widths = pytest.mark.parametrize('n_classes', [2, 3, 7])
f_scores = [(ours.Precision, skm.precision_score, {}), (ours.Recall, skm.recall_score, {}),
            (ours.F1Score, skm.f1_score, {}), (partial(ours.FBeta, 2.), skm.fbeta_score, {'beta': 2.}),
            (partial(ours.FBeta, .3), skm.fbeta_score, {'beta': .3})]
multi_scores = [(ours.PrecisionMulti, skm.precision_score), (ours.RecallMulti, skm.recall_score),
                (ours.F1ScoreMulti, skm.f1_score)]


# One class per item

@seeds
@widths
def test_accuracies(seed, n_classes):
    preds,targs,g = classes(seed, n_classes)
    guess = preds.argmax(1)
    check(ours.accuracy, preds, targs, skm.accuracy_score(targs, guess), g)
    check(ours.error_rate, preds, targs, skm.zero_one_loss(targs, guess), g)
    check(ours.BalancedAccuracy, preds, targs, sk(skm.balanced_accuracy_score, targs, guess), g)
    check(ours.MatthewsCorrCoef, preds, targs, sk(skm.matthews_corrcoef, targs, guess), g)


@seeds
def test_top_k(seed):
    preds,targs,g = classes(seed, 7)
    for k in (1, 2, 5, 7):
        found = [t in sorted(range(7), key=lambda c: -row[c])[:k] for row, t in zip(preds.tolist(), targs.tolist())]
        check(partial(ours.top_k_accuracy, k=k), preds, targs, np.mean(found), g)
        if seed % 3: check(partial(ours.top_k_accuracy, k=k), preds, targs,
                           sk(skm.top_k_accuracy_score, targs, preds, k=k, labels=range(7)), g)
    check(partial(ours.top_k_accuracy, k=1), preds, targs, float(ours.accuracy(preds, targs)), g)


def test_a_broken_model_finds_nothing():
    preds,targs = torch.full((4, 5), math.nan),torch.arange(4)
    assert [float(ours.top_k_accuracy(preds, targs, k=k)) for k in (1, 4)] == [0., 0.]
    assert math.isnan(run(ours.RocAuc(), preds[:, :4], targs, 4))


@seeds
@pytest.mark.parametrize(('cls', 'func', 'kwargs'), f_scores)
def test_f_scores(seed, cls, func, kwargs):
    preds,targs,g = classes(seed, 2)
    score = partial(sk, func, zero_division=0, **kwargs)
    for label in (0, 1):                                          # scikit-learn refuses a label that no item has
        truth,guess = (targs == label).long(),(preds.argmax(1) == label).long()
        check(cls(pos_label=label), preds, targs, score(truth, guess), g)
    preds,targs,g = classes(seed, 5)
    for average in ('macro', 'micro', 'weighted'):
        guess = preds.argmax(1)
        check(cls(average=average), preds, targs, score(targs, guess, average=average), g)
        check(cls(average=average, labels=[0, 3]), preds, targs, score(targs, guess, average=average, labels=[0, 3]), g)


@seeds
def test_areas(seed):
    preds,targs,g = classes(seed, 2)
    area = sk(skm.roc_auc_score, targs, preds[:, 1] - preds[:, 0])
    check(ours.RocAucBinary, preds, targs, area, g)
    check(ours.RocAuc, preds, targs, area, g)
    preds,targs,g = classes(seed, 4)
    if seed % 2: targs[:3] = torch.arange(len(targs[:3]))         # else a class without items is likely
    probs = preds.double().softmax(1)
    for average in ('macro', 'micro', 'weighted'):
        kwargs = dict(multi_class='ovr', average=average, labels=range(4))
        check(ours.RocAuc(average=average), preds, targs, sk(skm.roc_auc_score, targs, probs, **kwargs), g)


def test_area_by_counting_pairs():
    g = torch.Generator().manual_seed(0)
    scores,targs = torch.randint(0, 4, (50,), generator=g),torch.randint(0, 2, (50,), generator=g)
    pairs = [(p > n) + (p == n)/2 for p in scores[targs == 1].tolist() for n in scores[targs == 0].tolist()]
    preds = torch.stack([-scores, scores], 1) * 40.               # their probabilities are 0, 1, or a half
    check(ours.RocAucBinary, preds, targs, np.mean(pairs), g)


def test_nothing_seen_is_nan():
    kinds = [ours.F1Score, ours.MatthewsCorrCoef, ours.BalancedAccuracy, ours.RocAuc, ours.RocAucBinary,
             ours.F1ScoreMulti, ours.RocAucMulti, ours.R2Score, ours.accuracy, ours.rmse, ours.Perplexity,
             ours.BitsPerChar]
    assert all(math.isnan(m.value) for m in as_metrics(kinds))


def test_counts_stay_whole_numbers_where_float32_has_no_more_of_them():
    metric,n = ours.F1Score(pos_label=0),2**24
    metric.update(torch.tensor([[1., 0.]]), torch.tensor([0]), 0., 1)
    metric.counts = metric.counts * n                             # the batch, 2^24 times
    for _ in range(3): metric.update(torch.tensor([[1., 0.]]), torch.tensor([1]), 0., 1)
    assert metric.counts.tolist() == [[n, 0], [n + 3, 0], [n, 3]]
    assert metric.value == pytest.approx(2*n / (2*n + 3), rel=1e-15)


# Several labels per item

@seeds
@pytest.mark.parametrize(('cls', 'func'), multi_scores)
def test_several_labels(seed, cls, func):
    g = torch.Generator().manual_seed(seed)
    n = 4 * seed + 2
    preds = torch.randn(n, 4, generator=g)
    targs = (torch.rand(n, 4, generator=g) > torch.tensor([.1, .5, .9, 1.])).float()    # the last is never there
    preds[:, 3] -= 9 * (seed % 2)                                                       # and often not predicted
    for thresh in (.5, .2):
        guess = preds.sigmoid() > thresh
        check(partial(ours.accuracy_multi, thresh=thresh), preds, targs, (guess == targs).double().mean().item(), g)
        for average in ('macro', 'micro', 'weighted'):
            for labels in (None, [3, 1]):
                expected = sk(func, targs, guess, average=average, labels=labels, zero_division=0)
                check(cls(thresh, average=average, labels=labels), preds, targs, expected, g)
                check(cls(thresh, False, average=average, labels=labels), preds.sigmoid(), targs, expected, g)


@seeds
def test_areas_of_several_labels(seed):
    g = torch.Generator().manual_seed(seed)
    n,n_labels = 20 + 3*seed,3 + seed % 2
    preds = torch.randn(n, n_labels, generator=g)
    if seed % 3 == 0: preds = preds.round()
    targs = (torch.rand(n, n_labels, generator=g) > torch.tensor([.2, .5, .8, 1.])[:n_labels]).long()
    for average in ('macro', 'micro', 'weighted'):
        check(ours.RocAucMulti(average=average), preds, targs, sk(skm.roc_auc_score, targs, preds, average=average), g)


# Numbers

@pytest.mark.parametrize('k', [1, 3])
@pytest.mark.parametrize('seed', range(6))
def test_regression(seed, k):
    g = torch.Generator().manual_seed(seed)
    n = 5 * seed + 2
    targs = 1000 + torch.randn(n, k, generator=g)
    preds = targs + torch.randn(n, k, generator=g)
    if seed % 2: targs[:, 0] = 1000                               # no spread
    whole = targs.double(),preds.double()
    squares = skm.mean_squared_error(*whole)
    expected = squares,skm.mean_absolute_error(*whole),squares**.5,skm.r2_score(*whole)
    for metric, value in zip((ours.mse, ours.mae, ours.rmse, ours.R2Score), expected):
        check(metric, preds, targs, value, g, atol=1e-10)
        if k == 1: check(metric, preds, targs[:, 0], value, g, atol=1e-10)     # one column, with and without its axis


def test_r2_of_few_and_of_perfect():
    column = torch.tensor([2., 2., 2.])
    assert math.isnan(run(ours.R2Score(), column[:1], column[:1], 1))
    assert run(ours.R2Score(), column, column, 2) == 1. == skm.r2_score(column, column)
    assert run(ours.R2Score(), column + 1, column, 2) == 0. == skm.r2_score(column, column + 1)


# Loss

def test_perplexity_and_bits_of_every_batching():
    g = torch.Generator().manual_seed(0)
    nats = torch.rand(50, generator=g, dtype=torch.float64) * 9
    for cls, expected in ((ours.Perplexity, nats.mean().exp()), (ours.BitsPerChar, nats.mean() / math.log(2))):
        metric = cls()
        for sizes in batchings(50, g):
            metric.reset()
            for part in nats.split(sizes): metric.update(None, None, part.mean(), len(part))
            assert metric.value == pytest.approx(expected.item(), rel=1e-12), sizes


# Through a learner

def everything():
    return [ours.accuracy, ours.error_rate, partial(ours.top_k_accuracy, k=1), ours.F1Score, ours.Precision,
            ours.Recall, ours.FBeta(2.), ours.MatthewsCorrCoef, ours.BalancedAccuracy, ours.RocAuc, ours.RocAucBinary]


def names(kinds): return [m.name for m in as_metrics(kinds)]


def test_names_in_the_table():
    assert names(everything()) == ['accuracy', 'error_rate', 'top_k_accuracy', 'f1_score', 'precision', 'recall',
        'f_beta', 'matthews_corr_coef', 'balanced_accuracy', 'roc_auc', 'roc_auc_binary']
    assert names([ours.F1ScoreMulti, ours.RocAucMulti, ours.mse, ours.rmse, ours.mae, ours.R2Score]) == [
        'f1_score_multi', 'roc_auc_multi', 'mse', 'rmse', 'mae', 'r2_score']


def test_a_learners_figures_do_not_depend_on_the_batch_size():
    learn = plain_learner(two_classes(), metrics=everything())
    learn.fit(1)
    x,y = (torch.cat(o) for o in zip(*learn.dls.valid))
    by_size = [learn.validate(dl=list(zip(x.split(bs), y.split(bs)))) for bs in (1, 7, 50)]
    assert by_size[1][1:] == [learn.record[0][n] for n in names(everything())]
    out = learn.model(x).detach()
    guess,scores = out.argmax(1),out[:, 1] - out[:, 0]
    expected = [skm.accuracy_score(y, guess), skm.zero_one_loss(y, guess), skm.accuracy_score(y, guess),
        skm.f1_score(y, guess), skm.precision_score(y, guess), skm.recall_score(y, guess),
        skm.fbeta_score(y, guess, beta=2.), skm.matthews_corrcoef(y, guess), skm.balanced_accuracy_score(y, guess),
        skm.roc_auc_score(y, scores), skm.roc_auc_score(y, scores)]
    for figures in by_size: assert figures[1:] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(('loss', 'kinds'), [
    (binary_cross_entropy_loss, [ours.accuracy_multi, ours.F1ScoreMulti, ours.PrecisionMulti, ours.RecallMulti,
                                 ours.RocAucMulti]),
    (mse_loss, [ours.mse, ours.rmse, ours.mae, ours.R2Score])])
def test_learners_of_labels_and_of_numbers(loss, kinds):
    torch.manual_seed(0)
    dls = two_classes()
    x = torch.cat([x for x, _ in dls.valid]).double()     # in float32 a prediction depends on its batch a little
    y = (torch.randn(50, 2) > 0).double()
    learn = Learner(dls, nn.Linear(3, 2).double(), loss(), metrics=kinds)
    first,*others = (learn.validate(dl=list(zip(x.split(bs), y.split(bs)))) for bs in (50, 1, 7))
    for figures in others: assert figures == pytest.approx(first, rel=1e-6)
    for figures in others: assert figures[1:] == pytest.approx(first[1:], rel=1e-9)


@pytest.mark.parametrize('seq_len', [5, 16, 200])
def test_a_language_model_is_measured_by_the_same_functions(seq_len):
    kinds = [ours.accuracy, ours.error_rate, partial(ours.top_k_accuracy, k=3)]
    learn = lm_learner(lm_data(seq_len=seq_len), metrics=kinds)
    acc,err,top3 = learn.validate()[1:]
    assert acc + err == pytest.approx(1, abs=1e-12) and acc <= top3 <= 1
    rows = [(p.detach(), t) for p, t in pieces(learn)]
    preds,targs = (torch.cat(o) for o in zip(*rows))
    labels = range(preds.shape[1])
    assert top3 == pytest.approx(skm.top_k_accuracy_score(targs, preds, k=3, labels=labels), abs=1e-12)
    assert acc == pytest.approx(skm.accuracy_score(targs, preds.argmax(1)), abs=1e-12)


def pieces(learn):
    seen = []
    class Watch(ours.Metric):
        def reset(self): seen.clear()
        def update(self, preds, targs, loss, n): seen.append((preds, targs))
        value = 0.
    learn.metrics = [Watch()]
    learn.validate()
    return seen


# Wrong input

one_class = [ours.accuracy, ours.error_rate, ours.top_k_accuracy, ours.F1Score(average='macro'), ours.Precision(),
             ours.Recall(), ours.FBeta(1.), ours.MatthewsCorrCoef(), ours.BalancedAccuracy(), ours.RocAuc(),
             ours.RocAucBinary()]
many_labels = [ours.accuracy_multi, ours.F1ScoreMulti(), ours.PrecisionMulti(), ours.RecallMulti(), ours.RocAucMulti()]
numbers = [ours.mse, ours.mae, ours.rmse, ours.R2Score()]


def refusal(metric, preds, targs):
    "The message with which the metric refuses, at once or when it is read, and what it is called there."
    (metric,) = as_metrics(metric)
    metric.reset()
    with pytest.raises(ValueError) as e:
        metric.update(preds, targs, 0., len(targs))
        _ = metric.value
    assert '\n' not in str(e.value)
    assert {metric.name, type(metric).__name__} & {str(e.value).split()[0].rstrip(':')}
    return str(e.value)


def misfits(metric, preds, targs):
    text = refusal(metric, preds, targs)
    return all(f'shape {tuple(o.shape)}' in text for o in (preds, targs)) and ' needs ' in text


@pytest.mark.parametrize('metric', one_class)
def test_classes_of_another_shape(metric):
    preds = torch.randn(6, 2)
    for targs in (torch.zeros(6, 1), torch.zeros(6, 2), torch.zeros(6)):  # float, also of the right shape
        assert misfits(metric, preds, targs) and misfits(metric, preds[:, None], targs)
    assert misfits(metric, preds, torch.zeros(6, 1).long()) and misfits(metric, preds[:, 0], torch.zeros(6).long())
    assert misfits(metric, preds[:, :1], torch.zeros(6).long())


@pytest.mark.parametrize('metric', many_labels)
def test_labels_of_another_shape(metric):
    for targs in (torch.zeros(6), torch.zeros(6, 1), torch.zeros(6, 3), torch.zeros(6, 2, 1)):
        assert misfits(metric, torch.randn(6, 2), targs)
    assert misfits(metric, torch.randn(6), torch.zeros(6))


@pytest.mark.parametrize('metric', numbers)
def test_numbers_of_another_shape(metric):
    for shapes in (((6, 2), (6,)), ((6, 2), (6, 1)), ((6, 2), (12,)), ((6, 1, 1), (6,)), ((6,), (6, 3))):
        assert misfits(metric, *map(torch.zeros, shapes))
    assert misfits(metric, torch.zeros(4, 1), torch.zeros(6))


@pytest.mark.parametrize('metric', one_class)
@pytest.mark.parametrize('stray', [-1, 2, -100])
def test_targets_that_are_no_class(metric, stray):
    if metric is ours.top_k_accuracy: metric = partial(metric, k=1)
    assert 'from 0 to 1: 1 of its targets' in refusal(metric, torch.randn(6, 2), torch.tensor([0, 1, 1, 0, stray, 1]))


@pytest.mark.parametrize('metric', many_labels)
@pytest.mark.parametrize('stray', [-1, 2, .5])
def test_targets_that_are_no_labels(metric, stray):
    assert '0 or 1: 1 of its targets' in refusal(metric, torch.randn(2, 2), torch.tensor([[0, 1], [1, stray]]))


@pytest.mark.parametrize('metric', [ours.F1Score(average='macro'), ours.RocAuc(), ours.MatthewsCorrCoef(),
                                    ours.F1ScoreMulti(), ours.RocAucMulti()])
def test_predictions_of_two_widths(metric):
    is_multi = 'Multi' in type(metric).__name__
    metric.reset()
    with pytest.raises(ValueError, match='predictions for 2 classes are followed by some for 3'):
        for width in (2, 3):
            metric.update(torch.randn(4, width), torch.zeros(4, width) if is_multi else torch.zeros(4).long(), 0., 4)


def test_settings_that_no_table_can_show():
    for cls in (ours.F1Score, ours.F1ScoreMulti, ours.RocAuc, ours.RocAucMulti):
        for average in (None, 'samples'):
            with pytest.raises(ValueError, match='the one number that fits into a table'): cls(average=average)
    with pytest.raises(ValueError, match="average='macro'.* is needed"):
        run(ours.F1Score(), torch.randn(4, 3), torch.zeros(4).long(), [4])
    with pytest.raises(ValueError, match='pos_label=2'): ours.Precision(pos_label=2)
    with pytest.raises(ValueError, match='must be a list of class indices'): ours.Recall(average='macro', labels=[])
    for k in (0, 4):
        with pytest.raises(ValueError, match=f'k={k} of 3 classes'):
            ours.top_k_accuracy(torch.zeros(2, 3), torch.zeros(2).long(), k=k)


def test_a_wrong_metric_stops_a_learner_with_one_line():
    learn = plain_learner(two_classes(), metrics=ours.RocAucMulti)
    with pytest.raises(ValueError, match=r'RocAucMulti needs .* shape \(7, 2\) do not fit targets of shape \(7,\)'):
        learn.validate()


def test_nothing_is_kept_for_the_backward_pass_and_nothing_given_is_changed():
    x,y = points(20, 20)[0]
    model = nn.Linear(3, 2)
    for metric in as_metrics(everything()):
        out = model(x)
        before = out.detach().clone()
        metric.reset()
        metric.update(out, y, 0., 20)
        held = [o for v in vars(metric).values() for o in (v if isinstance(v, list) else [v])]
        assert not any(o.requires_grad for o in held if isinstance(o, torch.Tensor))
        assert torch.equal(out.detach(), before)


def test_a_mean_whose_weights_are_small_is_a_mean():
    "Class weights may sum to less than one."
    mean = ours.RunningMean()
    mean.add(torch.tensor(.5), torch.tensor(.25))
    assert mean.value == .5
