"Small batches, accumulated, train as large ones do."
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.testing import assert_close
from training_helpers import Do, assert_same, lm_data, lm_learner, plain_learner, points, snapshot, two_classes

from awdtext.training.accumulate import GradientAccumulation
from awdtext.training.callback import CancelBatchException
from awdtext.training.losses import binary_cross_entropy_loss, cross_entropy_loss, mse_loss
from awdtext.training.optim import Adam
from awdtext.training.rnn import GradientClip, RNNRegularizer
from awdtext.training.tracking import TerminateOnNaN


def data(bs, n=64, seed=3):
    dls = two_classes()
    torch.manual_seed(seed)
    items = points(n, n)
    dls.train = list(zip(items[0][0].split(bs), items[0][1].split(bs)))
    return dls


def trained(bs, n=64, cbs=(), n_epoch=2, **kwargs):
    learn = plain_learner(data(bs, n), **{'lr': 1., **kwargs})
    learn.fit(n_epoch, cbs=list(cbs))
    return learn


@pytest.mark.parametrize('clip', [None, .25, .05])
@pytest.mark.parametrize('opt_func', [torch.optim.SGD, Adam])
def test_equal_batches_are_as_one_large(clip, opt_func):
    clips = lambda: [GradientClip(clip)] if clip else []
    kwargs = dict(opt_func=opt_func, lr=1. if opt_func is torch.optim.SGD else .01)
    small = trained(8, cbs=[*clips(), GradientAccumulation(32)], **kwargs)
    assert_close(small.model.state_dict(), trained(32, cbs=clips(), **kwargs).model.state_dict(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('bs, n_acc, ends', [
    (8, 30, [32, 61]), (8, 20, [24, 48, 61]), (10, 25, [30, 60, 61]), (7, 1, None), (61, 32, [61]), (3, 1000, [61])])
def test_any_sizes_against_a_loop(bs, n_acc, ends):
    "The mean over the rows since the last step, clipped; the last batch always steps."
    n,dls = 61,data(bs, 61)
    ends = ends or [*range(bs, n, bs), n]
    learn,used = plain_learner(dls, lr=1.),[]
    model = nn.Linear(3, 2)
    model.load_state_dict(snapshot(learn.model))
    look = Do('before_step', lambda learn: used.append([p.grad.clone() for p in learn.model.parameters()]), order=90)
    learn.fit(1, cbs=[GradientAccumulation(n_acc), GradientClip(.25), look])
    x,y = (torch.cat(o) for o in zip(*dls.train))
    for start, end, grads in zip([0, *ends], ends, used, strict=False):
        model.zero_grad()
        F.cross_entropy(model(x[start:end]), y[start:end]).backward()
        clip_grad_norm_(model.parameters(), .25)
        assert_close([p.grad for p in model.parameters()], grads, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            for p in model.parameters(): p -= p.grad
    assert len(used) == len(ends)
    assert_close(learn.model.state_dict(), snapshot(model), rtol=1e-4, atol=1e-5)


weight = torch.tensor([5., .3, 1.], dtype=torch.float64)
classes = torch.randint(3, (61,), generator=torch.Generator().manual_seed(0))
some = classes.masked_fill(torch.rand(61, generator=torch.Generator().manual_seed(1)) < .4, -100)
some[16:24] = -100                                                          # the third batch has no target at all
losses = {
    'class weights': (cross_entropy_loss(weight), classes, lambda out, y: F.cross_entropy(out, y, weight)),
    'smoothed': (cross_entropy_loss(weight, .1), some,
                 lambda out, y: F.cross_entropy(out, y, weight, label_smoothing=.1)),
    'ignored': (cross_entropy_loss(), some, F.cross_entropy),
    'none in the last batch': (cross_entropy_loss(weight), some[:24], lambda out, y: F.cross_entropy(out, y, weight)),
    'several labels': (binary_cross_entropy_loss(weight), F.one_hot(classes).double(),
                       lambda out, y: F.binary_cross_entropy_with_logits(out, y, pos_weight=weight)),
    'regression': (mse_loss(), torch.randn(61, 3, dtype=torch.float64), F.mse_loss)}


@pytest.mark.parametrize('name', losses)
@pytest.mark.parametrize('n_acc', [20, 1000])
def test_several_batches_are_one_large_batch_for_every_loss(name, n_acc):
    "The gradient of each step beside torch's of all its rows at once, in float64."
    loss_func,y,oracle = losses[name]
    x,ends = torch.randn(len(y), 3, dtype=torch.float64), [24, 48, 61] if n_acc == 20 else [61]
    ends = [end for end in ends if end < len(y)] + [len(y)]
    dls = two_classes()
    dls.train,dls.valid,used = list(zip(x.split(8), y.split(8))), None, []
    learn = plain_learner(dls, model=nn.Linear(3, 3).double(), loss_func=loss_func, lr=0.)
    look = Do('before_step', lambda learn: used.append([p.grad.clone() for p in learn.model.parameters()]))
    learn.fit(1, cbs=[GradientAccumulation(n_acc), look])
    assert len(used) == len(ends)
    for start, end, grads in zip([0, *ends], ends, used, strict=False):
        slow = torch.autograd.grad(oracle(learn.model(x[start:end]), y[start:end]), list(learn.model.parameters()))
        assert_close(grads, list(slow), rtol=1e-10, atol=1e-12)
    assert learn.record[0]['train_loss'] == pytest.approx(oracle(learn.model(x), y).item(), rel=1e-6)


def test_windows_of_a_language_model_count_by_their_tokens():
    "Random windows have other lengths each; the mean is over all tokens that the step has seen."
    learn,sums,used = lm_learner(lm_data(n_train=800), lr=0., alpha=0., beta=0.), [], []

    def own(learn):
        "The gradient of this batch, summed over its tokens."
        if not learn.training: return
        grads = torch.autograd.grad(learn.loss * learn.y.numel(), list(learn.model.parameters()), retain_graph=True)
        sums.append((learn.y.numel(), grads))
    look = Do('before_step', lambda learn: used.append([p.grad.clone() for p in learn.model.parameters()]), order=-99)
    cbs = [GradientAccumulation(1000), Do('after_loss', own), look]
    learn.remove_cb(GradientClip).fit(1, cbs=cbs)
    n = sum(n for n, _ in sums)
    assert len(used) == 1 and len({n for n, _ in sums}) > 2, "windows must differ here"
    assert_close(used[0], [sum(gs) / n for gs in zip(*(grads for _, grads in sums))], rtol=1e-4, atol=1e-6)


def test_reported_losses_are_those_of_the_batches():
    "No step within the epoch: the mean of the losses is the loss of the first weights."
    learn = plain_learner(data(8), lr=1.)
    x,y = (torch.cat(o) for o in zip(*learn.dls.train))
    with torch.no_grad(): before = float(F.cross_entropy(learn.model(x), y))
    learn.fit(1, cbs=GradientAccumulation(1000))
    assert math.isclose(learn.record[0]['train_loss'], before, rel_tol=1e-5)
    assert len(learn.recorder.losses) == 8 and math.isclose(sum(learn.recorder.losses) / 8, before, rel_tol=1e-5)


def test_no_gradient_crosses_an_epoch():
    "Also where the last batch, which would have made the step, is cancelled."
    def cancel(learn):
        if learn.training and learn.epoch == 0 and learn.iter >= 6: raise CancelBatchException
    steps = []
    look = Do('after_step', lambda learn: steps.append(learn.epoch))
    learn = trained(8, cbs=[GradientAccumulation(1000), Do('after_pred', cancel), look])
    assert steps == [1]
    assert_close(learn.model.state_dict(), trained(64, n_epoch=1).model.state_dict(), rtol=1e-6, atol=1e-6)


def test_penalties_count_once_in_a_language_model():
    "Their mean over the batches, each weighted by its tokens, as the loss is."
    learn = lm_learner(lr=0.)
    learn.add_cb(GradientAccumulation(12))                       # three batches of 4 rows
    used,now = [],[]

    def own(learn):
        "The gradient of this batch alone."
        if not learn.training: return
        ps = [p for p in learn.model.parameters() if p.requires_grad]
        now.append((learn.y.numel(), torch.autograd.grad(learn.total_loss * learn.y.numel(), ps, retain_graph=True)))
    look = Do('before_step', lambda learn: used.append([p.grad.clone() for p in learn.model.parameters()]), order=-99)
    learn.remove_cb(GradientClip).fit(1, cbs=[Do('after_loss', own, order=TerminateOnNaN.order + 1), look])
    assert any(isinstance(cb, RNNRegularizer) for cb in learn.cbs) and len(used) > 1
    for i, grads in zip(range(0, len(now), 3), used, strict=True):
        ns,sums = zip(*now[i:i+3])
        assert_close([sum(gs) / sum(ns) for gs in zip(*sums)], grads, rtol=1e-4, atol=1e-6)


def test_a_killed_run_keeps_what_waits(tmp_path):
    dls = data(8)
    def run(folder, kill):
        learn = plain_learner(dls, lr=1., path=tmp_path)
        def stop(learn):
            if kill and learn.epoch == 1 and learn.training and learn.iter == 5: raise KeyboardInterrupt
        cbs = [GradientAccumulation(24), Do('before_batch', stop)]
        learn.fit(3, cbs=cbs, checkpoint=tmp_path / folder, every='1steps')
        return learn
    run('killed', True)
    assert_same(run('killed', False).model.state_dict(), run('whole', False).model.state_dict())


def test_whoever_looks_after_the_backward_pass_sees_the_mean_alone():
    seen = []
    trained(8, cbs=[Do('after_backward', lambda learn: seen.append(learn.iter)), GradientAccumulation(24)], n_epoch=1)
    assert seen == [2, 5, 7]


def test_validation_is_left_alone():
    learn = plain_learner(data(8))
    cb = GradientAccumulation(24)
    learn.fit(1, cbs=[cb, Do('after_validate', lambda learn: None)])
    assert cb.state_dict() == {'seen': 0, 'weight': 0., 'unit': 0.}


@pytest.mark.parametrize('n_acc', [0, -3])
def test_impossible_settings(n_acc):
    with pytest.raises(ValueError, match=f'n_acc={n_acc}'): GradientAccumulation(n_acc)
