"The rate finder against fastai 2.8.12's curves and suggestions, and on small models then trained at its rates."
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from training_helpers import plain_learner, two_classes

from awdtext.data.dataloaders import TextDataLoaders
from awdtext.text_learner import language_model_learner
from awdtext.training.optim import SGD, Adam
from awdtext.training.progress import ProgressCallback
from awdtext.training.rnn import NTASGD, GradientClip, RNNRegularizer
from awdtext.training.guards import LossGuard
from awdtext.training.schedule import (LRFinder, cosine, flat_cos, lr_range, minimum, plot_lr_find, slide, steep,
                                       valley)
from awdtext.training.tracking import TerminateOnNaN

recorded = json.loads((Path(__file__).parent / 'fixtures' / 'fastai_lr_find.json').read_text())
suggestions = dict(valley=valley, slide=slide, minimum=minimum, steep=steep)


def find(learn, n_epoch=20, **kwargs):
    "The finder after a rehearsal, which has no validation."
    finder,valid = LRFinder(**kwargs),learn.dls.valid
    learn.dls.valid = None
    learn.remove_cb(LossGuard).fit(n_epoch, cbs=finder)
    learn.dls.valid = valid
    return finder


# The schedule

def test_flat_cos_is_flat_and_then_half_a_cosine():
    f = flat_cos(div_final=100., pct_start=.6)
    assert [f(t) for t in np.linspace(0, .6, 7)] == [1.] * 7
    for t in (.6, .7, .9, 1.): assert math.isclose(f(t), cosine((t - .6) / .4, 1., .01), rel_tol=1e-9)


@pytest.mark.parametrize('pct_start', [-.1, 1., 2.])
def test_flat_cos_refuses_impossible_shares(pct_start):
    with pytest.raises(ValueError, match=f'pct_start={pct_start}'): flat_cos(pct_start=pct_start)


# Suggestions

@pytest.mark.parametrize('name', suggestions)
@pytest.mark.parametrize('curve', recorded['curves'], ids=range(len(recorded['curves'])))
def test_suggestions_are_fastais(name, curve):
    ours = suggestions[name](curve['lrs'], curve['losses'], 100)
    assert math.isclose(ours, curve['answers'][name], rel_tol=1e-5)


def test_suggestions_take_tensors_arrays_and_lists():
    c = recorded['curves'][1]
    lists = c['lrs'],c['losses']
    for f in suggestions.values():
        assert f(*lists) == f(*map(np.array, lists)) == f(*(torch.tensor(o, dtype=torch.float64) for o in lists))


def test_suggestions_on_a_curve_whose_answers_are_obvious():
    "Flat to 1e-4, a line in log rate down to 1e-2 with one steepest piece, an explosion."
    lrs = np.logspace(-6, 0, 61)
    losses = np.interp(np.log10(lrs), [-6, -4, -3, -2.9, -2, 0], [5., 5., 4., 3.5, 2., 20.])
    assert math.isclose(minimum(lrs, losses), 1e-3, rel_tol=1e-6)
    assert math.isclose(steep(lrs, losses), 1e-3, rel_tol=1e-6)
    assert 1e-4 < valley(lrs, losses) < 1e-2
    assert 1e-6 <= slide(lrs, losses) <= 1e-1


def test_suggestions_on_a_falling_curve():
    lrs = np.logspace(-4, 0, 30)
    losses = np.linspace(5, 1, 30)
    assert math.isclose(minimum(lrs, losses), .1) and valley(lrs, losses) == lrs[14]
    assert lrs[0] <= slide(lrs, losses) <= lrs[-1] and lrs[0] <= steep(lrs, losses) <= lrs[-1]
    for n in range(3, 30):
        for f in (valley, steep, minimum): assert f(lrs[:n], losses[:n]) <= lrs[n-1]


@pytest.mark.parametrize('suggest', suggestions.values(), ids=suggestions)
@pytest.mark.parametrize('losses, message', [
    ([1.] * 20, 'never falls'), (list(range(20)), 'never falls'), ([2.] * 9 + [math.nan] + [1.] * 10, 'Loss number 9'),
    ([3., 2., math.inf] + [1.] * 17, 'Loss number 2'), ([], 'too few'), ([2., 1.], 'too few')],
    ids='flat rising nan inf none two'.split())
def test_suggestions_say_what_is_wrong_with_a_curve(suggest, losses, message):
    with pytest.raises(ValueError, match=message): suggest(np.logspace(-4, 0, len(losses)), losses)


def test_slide_needs_as_many_points_as_its_interval():
    with pytest.raises(ValueError, match='10 points are too few for a suggestion, which needs 16'):
        slide(np.logspace(-4, 0, 10), np.linspace(3, 1, 10))


def test_as_many_losses_as_rates():
    with pytest.raises(ValueError, match='3 rates for 2 losses'): valley([.1, .2, .3], [2., 1.])


def test_the_picture_marks_what_it_is_given():
    c = recorded['curves'][4]
    ax = plot_lr_find(c['lrs'], c['losses'], {'valley': valley(c['lrs'], c['losses'])})
    x,y = (o.item() for o in ax.lines[1].get_data())
    assert x == valley(c['lrs'], c['losses']) and math.isclose(y, c['losses'][c['lrs'].index(x)], rel_tol=1e-6)
    assert plot_lr_find(c['lrs'], c['losses'], ax=ax) is ax


# The rehearsal

def test_rates_and_smoothed_losses_are_fastais():
    "The same data, weights and rates as fastai's finder had; its grid ends one point before its `end_lr`."
    run = recorded['run']
    model = nn.Linear(3, 2)
    model.load_state_dict({k: torch.tensor(v) for k, v in run['weights'].items()})
    x,y = torch.tensor(run['x']), torch.tensor(run['y'])
    dls = SimpleNamespace(train=list(zip(x.split(8), y.split(8))), valid=None, device='cpu')
    learn = plain_learner(dls, opt_func=torch.optim.SGD, model=model)
    n,ratio = run['num_it'],run['end'] / run['start']
    finder = find(learn, n_epoch=n, start_lr=run['start'], end_lr=run['start'] * ratio ** ((n - 1) / n), num_it=n)
    assert_close(torch.tensor(finder.lrs), torch.tensor(run['lrs']), rtol=1e-5, atol=0)
    assert_close(torch.tensor(finder.losses), torch.tensor(run['losses']), rtol=1e-3, atol=1e-5)


def test_the_rehearsal_runs_over_more_batches_than_the_loader_has():
    learn = plain_learner(two_classes(n_train=24, bs=8))
    finder = find(learn, n_epoch=10, start_lr=1e-6, end_lr=1e-3, num_it=11)
    assert len(finder.lrs) == len(finder.losses) == 11
    assert math.isclose(finder.lrs[0], 1e-6) and math.isclose(finder.lrs[-1], 1e-3)
    steps = np.diff(np.log(finder.lrs))
    assert np.allclose(steps, steps[0])


def test_groups_keep_their_ratios():
    learn = plain_learner(two_classes(), model=nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), lr=slice(.01, 1.),
                          splitter=lambda m: [list(l.parameters()) for l in m])
    finder = find(learn, num_it=20)
    rates = [g['lr'] for g in learn.opt.param_groups]
    assert math.isclose(rates[0] * 100, rates[1]) and math.isclose(rates[1], finder.lrs[-1])


def test_it_ends_when_the_loss_explodes_unless_told_otherwise():
    learn = plain_learner(two_classes())
    finder = find(learn, n_epoch=60, start_lr=1e-2, end_lr=1e4)
    assert 10 < len(finder.lrs) < 100 and finder.losses[-1] > 4 * min(finder.losses)
    assert max(finder.losses[:-1]) <= 4 * min(finder.losses[:-1])
    assert len(find(plain_learner(two_classes()), n_epoch=60, start_lr=1e-2, end_lr=1e4, stop_div=False).lrs) == 100


@pytest.mark.parametrize('stop_div', [True, False])
def test_it_ends_quietly_when_the_loss_is_no_longer_a_number(stop_div):
    learn = plain_learner(two_classes(), model=nn.Sequential(nn.Linear(3, 30), nn.Linear(30, 30), nn.Linear(30, 2)))
    finder = find(learn, n_epoch=60, start_lr=1., end_lr=1e30, stop_div=stop_div)
    assert 2 < len(finder.lrs) < 100 and all(math.isfinite(o) for o in finder.losses)


def test_it_looks_after_the_penalties_and_before_the_guard():
    assert RNNRegularizer.order < LRFinder.order < TerminateOnNaN.order


def test_validation_leaves_the_rates_alone():
    finder = LRFinder()
    learn = SimpleNamespace(opt=torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.), training=False)
    finder.before_fit(learn)
    finder.before_batch(learn)
    finder.after_batch(learn)
    assert learn.opt.param_groups[0]['lr'] == 1. and not finder.lrs


def test_a_rate_of_zero_has_no_ratio():
    learn = plain_learner(two_classes(), lr=0.)
    with pytest.raises(ValueError, match="last group's rate is 0"): learn.fit(1, cbs=LRFinder())


@pytest.mark.parametrize('settings, message', [
    (dict(start_lr=0.), 'start_lr=0'), (dict(start_lr=2., end_lr=1.), 'start_lr=2'), (dict(num_it=1), 'num_it=1')])
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message): LRFinder(**settings)


def test_the_range_of_sgd_contains_the_papers_rate():
    for opt in (SGD, torch.optim.SGD, torch.optim.ASGD):
        lo,hi = lr_range(opt)
        assert lo * 100 <= .01 and 30 <= hi / 10
    for opt in (Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad): assert lr_range(opt) == (1e-7, 10.)


# Whether it is good advice: the loss after some training at the suggestion, and far from it

def markov_text(n, seed, n_words=200):
    "Each word is one of four that may follow the last, with odds from 12:4:3:1."
    successors = torch.randint(n_words, (n_words, 4), generator=torch.Generator().manual_seed(0))
    g,word,text = torch.Generator().manual_seed(seed),0,[]
    for pick in torch.multinomial(torch.tensor([12., 4., 3., 1.]), n, replacement=True, generator=g).tolist():
        word = int(successors[word, pick])
        text.append(f'w{word}')
    return text


def markov_learner(opt_func, lr):
    train,valid = [markov_text(12000, 1)],[markov_text(1500, 2)]
    dls = TextDataLoaders.from_tokens(train, valid, bs=16, seq_len=20, seed=0)
    torch.manual_seed(0)
    learn = language_model_learner(dls, config=dict(emb_sz=24, n_hid=48, n_layers=2), opt_func=opt_func, lr=lr, wd=0.)
    learn.remove_cb(ProgressCallback).remove_cb(NTASGD)
    assert any(isinstance(cb, GradientClip) for cb in learn.cbs)
    return learn


def loss_after(opt_func, lr):
    learn = markov_learner(opt_func, lr)
    try: learn.fit(2)
    except FloatingPointError: return math.inf
    return learn.record[-1]['valid_loss']


@pytest.mark.parametrize('opt_func, lo, hi', [(Adam, 1e-3, 1e-1), (SGD, 1., 100.)], ids=['Adam', 'SGD'])
def test_a_language_model_learns_at_the_suggested_rate(opt_func, lo, hi):
    start,end = lr_range(opt_func)
    lr = valley(*find(markov_learner(opt_func, 1.), start_lr=start, end_lr=end).curve)
    assert lo < lr < hi
    at,above,below = (loss_after(opt_func, lr * factor) for factor in (1, 100, .01))
    assert at < above - .1 and at < below - .1
