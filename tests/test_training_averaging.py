"NT-ASGD against an explicit loop over the iterates of SGD, and against runs that do not average."
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from training_helpers import (
    Do,
    Iterates,
    assert_same,
    lm_learner,
    mean_of,
    plain_learner,
    snapshot,
    two_classes,
)

from awdtext.text_learner import load_learner
from awdtext.training.guards import LossGuard
from awdtext.training.checkpoint import read_bundle
from awdtext.training.metrics import accuracy
from awdtext.training.optim import WeightAverage
from awdtext.training.rnn import ASGD, NTASGD, nonmonotone


def error_rate(preds, targs): return (preds.argmax(-1) != targs).double().mean()


# The trigger

def test_trigger_is_the_papers_for_every_history():
    "Algorithm 1: t > n and v_t > min over l in {0, …, t - n - 1} of v_l, with the histories as in the published code."
    for n in (0, 1, 5):
        values = torch.randint(20, (60,)).tolist()
        for t, v in enumerate(values):
            expected = t > n and any(v > values[l] for l in range(t - n))
            assert nonmonotone(values[:t], v, n) is expected


# The whole algorithm

def explicit_nt_asgd(model, train, valid, lr, n_epoch, n=5, every=None, start=None, metric=None):
    "SGD written out, one list of all iterates; returns the final mean, the validation losses, the trigger's step."
    iterates,logs,losses,began = [],[],[],None

    def valid_figure(weights, func):
        x,y = (torch.cat(o) for o in zip(*valid))
        with torch.no_grad(): return float(func(F.linear(x, weights['weight'], weights['bias']), y))

    def look(t):
        "Whether averaging begins after step `t`."
        v = valid_figure(iterates[t - 1], metric or F.cross_entropy)
        logs.append(v)
        return len(logs) - 1 > n and v > min(logs[:len(logs) - 1 - n])

    for _ in range(n_epoch):
        for x, y in train:
            grads = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
            with torch.no_grad():
                for p, g in zip(model.parameters(), grads): p -= lr * g
            iterates.append(snapshot(model))
            t = len(iterates)
            if began is None and start is not None and t >= start: began = t
            elif began is None and every and t % every == 0 and look(t): began = t
        shown = iterates[-1] if began is None else mean_of(iterates[began - 1:])
        losses.append(valid_figure(shown, F.cross_entropy))
        if began is None and not every and start is None and look(len(iterates)): began = len(iterates)
    return mean_of(iterates[began - 1:]), losses, began, logs, iterates


@pytest.mark.parametrize('how', [
    dict(n=2), dict(n=0), dict(n=3, every=3), dict(n=1, every=1), dict(start=11), dict(start=1),
    dict(n=1, monitor='error_rate'), dict(n=2, every=5, monitor='error_rate')], ids=str)
def test_ntasgd_is_the_explicit_loop(how):
    torch.set_default_dtype(torch.float64)  # a rate that makes the loss jump amplifies every rounding
    dls,lr,n_epoch = two_classes(),30.,9
    cb = NTASGD(**how)
    learn = plain_learner(dls, lr=lr, wd=0., cbs=cb, metrics=error_rate).remove_cb(LossGuard)  # its losses are wild
    kwargs = {k: v for k, v in how.items() if k != 'monitor'} | {'metric': error_rate if 'monitor' in how else None}
    model = copy.deepcopy(learn.model)
    mean,losses,began,logs,iterates = explicit_nt_asgd(model, dls.train, dls.valid, lr, n_epoch, **kwargs)
    assert 0 < began <= len(iterates), "the example must trigger"

    learn.fit(n_epoch)
    assert [r['valid_loss'] for r in learn.record] == pytest.approx(losses, rel=1e-5)
    assert cb.logs == pytest.approx(logs, rel=1e-5)
    assert learn.average.n == len(iterates) - began + 1
    assert learn.recorder.averaging_from in (began, began - 1)    # in the middle of a step it is not counted yet
    assert_close(snapshot(learn.model), mean, rtol=1e-5, atol=1e-6)
    learn.average.show_iterate()
    assert_close(snapshot(learn.model), iterates[-1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('how', [dict(n=1), dict(n=1, every=4), dict(start=20)], ids=str)
def test_history_outlives_one_call_of_fit(how):
    dls = two_classes()
    once,often = (plain_learner(dls, lr=3., cbs=NTASGD(**how)) for _ in range(2))
    once.fit(9)
    for _ in range(9): often.fit(1)
    assert once.average.n == often.average.n > 1
    assert [r['valid_loss'] for r in once.record] == [r['valid_loss'] for r in often.record]
    assert once.recorder.averaging_from == often.recorder.averaging_from
    assert_same(snapshot(once.model), snapshot(often.model))
    for learn in (once, often): learn.average.show_iterate()
    assert_same(snapshot(once.model), snapshot(often.model))


# What averaging must leave alone

def test_the_iterate_goes_on_as_if_nobody_averaged():
    runs = []
    for averaging in (ASGD(start=5), None):
        learn,seen = lm_learner(averaging=averaging),Iterates()
        learn.fit(3, cbs=seen)
        runs.append((learn, seen.seen))
    (averaged,seen),(raw,expected) = runs
    assert len(seen) == len(expected) > 20 and averaged.average.n == len(seen) - 4
    for a, b in zip(seen, expected): assert_same(a, b)
    assert averaged.recorder.losses == raw.recorder.losses
    assert averaged.validate()[0] != raw.validate()[0]


def test_measuring_in_the_middle_of_an_epoch_changes_nothing():
    names = 'dl iter n_iter training state totals x y out preds loss total_loss opt epoch record'.split()
    kept = []
    def remember(learn): kept.append([getattr(learn, n) for n in names] + [m.training for m in learn.model.modules()])
    def compare(learn):
        now = [getattr(learn, n) for n in names] + [m.training for m in learn.model.modules()]
        assert all(a is b for a, b in zip(kept.pop(), now))
        assert torch.is_grad_enabled()
    runs = []
    for cb in (NTASGD(n=10**6, every=2), None):
        learn,seen = lm_learner(averaging=cb),Iterates()
        before,after = (Do('after_step', func, NTASGD.order + i) for func, i in ((remember, -1), (compare, 1)))
        learn.fit(2, cbs=[seen, before, after])
        runs.append((seen.seen, learn.recorder.losses, [r['valid_loss'] for r in learn.record]))
        if cb: assert len(cb.logs) == len(seen.seen) // 2 > 5
    assert runs[0][1:] == runs[1][1:], "losses with dropout, random windows and carried state are the same"
    for a, b in zip(runs[0][0], runs[1][0]): assert_same(a, b)


def test_all_optimised_parameters_are_averaged():
    learn,seen = lm_learner(averaging=ASGD(start=1)),Iterates()
    learn.fit(2, cbs=seen)
    optimised = {id(p) for g in learn.opt.param_groups for p in g['params']}
    assert optimised == {id(p) for p in learn.model.parameters()}
    names = dict(learn.model.named_parameters())
    assert names.keys() >= {'decoder.bias'} and any(p is learn.encoder.embedding.weight for p in names.values())
    mean = mean_of(seen.seen)
    for name, p in names.items():
        assert_close(p.data, mean[name], rtol=1e-5, atol=1e-6)
        assert not torch.equal(p.data, seen.seen[-1][name]), f"{name} did not learn"


def test_averages_are_validated_saved_and_exported_in_the_middle_of_training(tmp_path):
    learn,seen = lm_learner(averaging=ASGD(start=3), path=tmp_path),Iterates()
    validated = []

    def look(learn):
        if learn.training: validated.clear()
        else: validated.append(snapshot(learn.model))

    def check(learn):
        mean = mean_of(seen.seen[2:])
        assert_close(validated[0], mean, rtol=1e-5, atol=1e-6)
        assert_same(snapshot(learn.model), seen.seen[-1])                    # the iterate is back for the next step
        saved = read_bundle(learn.save('now'))
        assert_close(saved['weights'], mean, rtol=1e-5, atol=1e-6)
        assert_same(saved['average']['iterate'], seen.seen[-1])
        assert_close(snapshot(load_learner(learn.export('e')).model), mean, rtol=1e-5, atol=1e-6)
        encoder = read_bundle(learn.save_encoder('enc'))['weights']
        assert_close(encoder, {k: mean[f'encoder.{k}'] for k in encoder}, rtol=1e-5, atol=1e-6)
        with learn.averaged(): probs = learn.get_preds()[0]
        assert torch.equal(learn.get_preds()[0], probs)
        assert_same(snapshot(learn.model), seen.seen[-1])

    learn.fit(2, cbs=[seen, Do('before_batch', look), Do('after_epoch', check, order=50)])
    assert len(learn.record) == 2


def test_a_callback_may_validate_while_averages_are_kept():
    learn = lm_learner(averaging=ASGD(start=2))
    losses = []
    def validate(learn):
        if learn.iter % 3 == 0: losses.append(learn.validate()[0])
    learn.fit(1, cbs=Do('after_step', validate, order=50))
    assert len(losses) >= 3 and learn.average.n == len(learn.recorder.losses) - 1


# When there is none

def test_idle_under_a_schedule_and_the_average_becomes_the_starting_point():
    cb = NTASGD(n=0)
    learn = plain_learner(two_classes(), lr=3., cbs=cb)
    learn.fit_one_cycle(4)
    assert learn.average is None and (cb.logs, cb.step) == ([], 0)
    learn.fit(6)
    assert learn.average is not None
    shown,logs = snapshot(learn.model),list(cb.logs)
    first = []
    learn.fit_one_cycle(1, cbs=Do('before_batch', lambda learn: first.append(snapshot(learn.model))))
    assert_same(first[0], shown)
    assert learn.average is None and cb.logs == logs


def test_of_several_only_the_one_given_to_fit_averages_and_without_any_the_average_ends():
    learn,seen = plain_learner(two_classes(), lr=3., cbs=NTASGD(n=0, every=1)),Iterates()
    learn.fit(3, cbs=[seen, ASGD(start=4)])
    assert learn.average.n == len(seen.seen) - 3
    assert_close(snapshot(learn.model), mean_of(seen.seen[3:]), rtol=1e-5, atol=1e-6)
    shown = snapshot(learn.model)
    first = []
    learn.remove_cb(NTASGD).fit(1, cbs=Do('before_batch', lambda learn: first.append(snapshot(learn.model))))
    assert_same(first[0], shown)
    assert learn.average is None


def test_without_validation_data_there_is_no_trigger():
    dls = two_classes()
    dls.valid = None
    learn = plain_learner(dls, cbs=NTASGD(n=0))
    learn.fit(3)
    assert learn.average is None and len(learn.record) == 3 and 'valid_loss' not in learn.record[0]
    with pytest.raises(ValueError, match="no validation data"): plain_learner(dls, cbs=NTASGD(every=2)).fit(1)


def test_wrong_settings_are_told_before_training():
    for kwargs, match in ((dict(n=-1), 'n=-1'), (dict(every=0), 'every=0'), (dict(start=0), 'start=0')):
        with pytest.raises(ValueError, match=match): NTASGD(**kwargs)
    learn = plain_learner(two_classes(), metrics=accuracy, cbs=NTASGD(monitor='perplexity'))
    with pytest.raises(ValueError, match=r"monitor='perplexity'.*valid_loss.*accuracy"): learn.fit(1)
    assert learn.recorder.losses == []


# The average itself

def test_mean_and_iterate_change_places_by_value():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    flat = nn.utils.parameters_to_vector(net.parameters()).detach().clone()
    held = [p.data_ptr() for p in net.parameters()]
    average = WeightAverage(net)
    with torch.no_grad():
        for p in net.parameters(): p.add_(1.)
    average.update()
    average.show_mean()
    average.show_mean()                                          # twice is once
    assert_close(nn.utils.parameters_to_vector(net.parameters()).detach(), flat + .5)
    with pytest.raises(RuntimeError, match="show_iterate"): average.update()
    average.show_iterate()
    assert_close(nn.utils.parameters_to_vector(net.parameters()).detach(), flat + 1)
    assert [p.data_ptr() for p in net.parameters()] == held


def test_an_average_of_many_iterates_is_exact():
    net = nn.Linear(1, 1, bias=False).double()
    values = torch.randn(1000, dtype=torch.float64)
    nn.init.constant_(net.weight, values[0].item())
    average = WeightAverage(net)
    for v in values[1:]:
        nn.init.constant_(net.weight, v.item())
        average.update()
    average.show_mean()
    assert net.weight.item() == pytest.approx(values.mean().item(), rel=1e-9)

