"What the AWD-LSTM adds to a plain loop, on a real small model: the rate of each step, the penalties, clipping."
import pytest
import torch
from torch.testing import assert_close
from training_helpers import Do, Iterates, assert_same, lm_learner, plain_learner, snapshot, two_classes

from awdtext.training.accumulate import GradientAccumulation
from awdtext.training.callback import CancelBatchException
from awdtext.training.rnn import ASGD, GradientClip, RNNRegularizer, ScaleLRBySeqLen


def bare_learner(averaging=None, **kwargs):
    "Without clipping and penalties: a step is the rate times the gradient."
    learn = lm_learner(averaging=averaging, **kwargs)
    return learn.remove_cb(GradientClip).remove_cb(RNNRegularizer)


@pytest.mark.parametrize('averaging', [None, 'from step 6'])
def test_rate_follows_the_window_at_the_step_at_hand(averaging):
    "w - lr * L / bptt * gradient for every step, with windows of many lengths, before and after averaging begins."
    learn,steps = bare_learner(ASGD(start=6) if averaging else None, lr=2.),[]

    def before(learn):
        grads = {n: p.grad.clone() for n, p in learn.model.named_parameters()}
        steps.append((snapshot(learn.model), grads, learn.x.shape[1]))

    def after(learn):
        weights,grads,length = steps[-1]
        for n, p in learn.model.named_parameters():
            assert_close(p.data, weights[n] - 2. * length / 16 * grads[n], rtol=1e-5, atol=1e-7)
        assert [g['lr'] for g in learn.opt.param_groups] == [2.] * 3, "the base rate is back for the next step"

    learn.fit(3, cbs=[Do('before_step', before, order=90), Do('after_step', after, order=90)])
    assert len(steps) > 15 and len({length for *_, length in steps}) > 8
    assert (learn.average is not None) == bool(averaging)


def test_rate_of_accumulated_windows_is_that_of_their_mean_length(tmp_path):
    "The gradient is the mean over all of them; also in a run that goes on between two steps."
    def life(folder, *cbs):
        learn,steps,lengths = bare_learner(lr=2.), [], []

        def before(learn):
            steps.append((learn.opt.param_groups[0]['lr'], sum(lengths) / len(lengths)))
            lengths.clear()

        look = [Do('after_loss', lambda learn: learn.training and lengths.append(learn.x.shape[1])),
                Do('before_step', before, order=90)]
        learn.fit(2, cbs=[GradientAccumulation(12), *look, *cbs], checkpoint=tmp_path / folder, every='1steps')
        return learn, steps

    whole,steps = life('whole')
    assert len(steps) > 5
    for rate, mean in steps: assert rate == pytest.approx(2. * mean / 16)

    def kill(learn):
        if learn.training and (learn.epoch, learn.iter) == (1, 4): raise SystemError
    with pytest.raises(SystemError): life('cut', Do('after_batch', kill, order=1000))
    assert_same(snapshot(life('cut')[0].model), snapshot(whole.model))


def test_rate_does_not_drift_when_steps_are_cancelled():
    def cancel(learn):
        if learn.iter % 2: raise CancelBatchException
    learn,rates = bare_learner(lr=2.),[]
    look = Do('before_batch', lambda learn: rates.append(learn.opt.param_groups[0]['lr']))
    learn.fit(2, cbs=[look, Do('before_step', cancel, order=ScaleLRBySeqLen.order + 1)])
    assert len(rates) > 10 and set(rates) == {2.}


def test_the_schedules_rate_is_scaled_and_recorded_unscaled():
    learn,used = bare_learner(),[]
    look = Do('before_step', lambda learn: used.append(learn.opt.param_groups[-1]['lr']), order=90)
    learn.fit_one_cycle(2, 1., cbs=look)
    lrs = learn.recorder.lrs
    assert len(used) == len(lrs) and used != lrs and lrs[0] == pytest.approx(1 / 25)
    rising = lrs[:len(lrs) // 4]
    assert rising == sorted(rising)


def test_penalties_are_those_of_the_formulas_on_the_last_layer():
    learn = lm_learner(alpha=3., beta=5.)

    def check(learn):
        raw,dropped = learn.out.raw.double(),learn.out.dropped.double()
        assert raw.shape == (*learn.x.shape, 8)
        expected = 3 * (dropped**2).mean() + 5 * ((raw[:, 1:] - raw[:, :-1])**2).mean()
        assert_close((learn.total_loss - learn.loss).double(), expected, rtol=1e-3, atol=1e-5)
        assert not torch.equal(raw, dropped), "the output's dropout stands between them"

    def check_valid(learn):
        if not learn.training: assert learn.total_loss is learn.loss
    learn.fit(1, cbs=[Do('before_step', check), Do('after_loss', check_valid, order=99)])


def test_penalties_change_the_gradient_only():
    runs = []
    for alpha in (0., 50.):
        learn,seen = lm_learner(alpha=alpha, beta=0.),Iterates()
        learn.fit(1, cbs=seen)
        runs.append((learn.recorder.losses, seen.seen[0]))
    (losses,weights),(losses2,weights2) = runs
    assert losses[0] == losses2[0] and losses[1] != losses2[1]
    recurrent = [k for k in weights if 'weight_hh' in k]
    assert recurrent and all(not torch.equal(weights[k], weights2[k]) for k in recurrent)


def test_clipping_bounds_the_norm_of_all_gradients_together():
    norms = []
    def norm(learn): norms.append(torch.cat([p.grad.flatten() for p in learn.model.parameters()]).norm().item())
    lm_learner().fit(1, cbs=[Do('after_backward', norm, order=-5), Do('before_step', norm)])
    before,after = norms[::2],norms[1::2]
    assert max(before) > .25
    for b, a in zip(before, after): assert a == pytest.approx(min(b, .25), rel=1e-4)


def test_clipping_leaves_frozen_layers_alone():
    learn = lm_learner()
    learn.freeze().fit(1)
    assert len(learn.record) == 1


def test_wrong_norm():
    with pytest.raises(ValueError, match="max_norm=-1"): GradientClip(-1)
    plain_learner(two_classes(), cbs=GradientClip(1.)).fit(1)
