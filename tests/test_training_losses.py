"Penalties and losses against slow loops; means that do not depend on how the data are cut into batches."
import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from training_helpers import lm_data, lm_learner, plain_learner, two_classes

from awdtext.data.stream import LMDataLoader
from awdtext.training.losses import (
    activation_reg,
    binary_cross_entropy_loss,
    cross_entropy_loss,
    mse_loss,
    temporal_activation_reg,
)
from awdtext.training.metrics import AvgMetric, Metric, Perplexity, RunningMean, accuracy, as_metrics


def lengths_mask(lengths, n): return torch.arange(n)[None] < torch.tensor(lengths)[:, None]


def test_penalties_of_masked_rows_are_those_of_the_rows_cut_to_length():
    lengths = [5, 3, 1]
    raw,dropped = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    mask = lengths_mask(lengths, 5)
    squares = [v**2 for row, n in zip(dropped, lengths) for step in row[:n] for v in step.tolist()]
    pairs = [(row[t], row[t + 1]) for row, n in zip(raw, lengths) for t in range(n - 1)]
    diffs = [d**2 for now, then in pairs for d in (then - now).tolist()]
    assert activation_reg(dropped, 2., mask).item() == pytest.approx(2 * sum(squares) / len(squares), rel=1e-6)
    assert temporal_activation_reg(raw, 3., mask).item() == pytest.approx(3 * sum(diffs) / len(diffs), rel=1e-6)


def test_what_lies_behind_a_documents_end_gets_no_gradient():
    h = torch.randn(2, 4, 3, requires_grad=True)
    mask = lengths_mask([4, 2], 4)
    (activation_reg(h, 2., mask) + temporal_activation_reg(h, 1., mask)).backward()
    assert (h.grad[1, 2:] == 0).all() and (h.grad[0] != 0).all() and (h.grad[1, :2] != 0).all()


def test_documents_of_one_token_and_windows_of_one_step_cost_no_temporal_penalty():
    assert temporal_activation_reg(torch.randn(3, 4, 2), 1., lengths_mask([1, 1, 1], 4)).item() == 0
    assert temporal_activation_reg(torch.randn(3, 1, 2), 1.).item() == 0
    assert temporal_activation_reg(torch.randn(1, 5, 2), 1.).item() > 0, "a batch of one row is no special case"


@pytest.mark.parametrize('loss,targets', [
    (cross_entropy_loss(weight=torch.tensor([1., 2., 3.]), label_smoothing=.1), torch.tensor([0, 2, 1, 1])),
    (binary_cross_entropy_loss(), torch.randint(2, (4, 3))), (mse_loss(), torch.randn(4, 3))])
def test_losses_of_items_can_be_copied_and_say_when_there_are_no_labels(loss, targets):
    out = torch.randn(4, 3)
    assert loss(out, targets, reduction='none').shape == (4,)
    for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert_close(again(out, targets), loss(out, targets))
        assert_close(again.activation(out), loss.activation(out))
    with pytest.raises(ValueError, match="no labels"): loss(out, None)


@pytest.mark.parametrize('smoothing', [0., .2])
def test_a_batch_of_classes_that_do_not_count(smoothing):
    loss,output = cross_entropy_loss([1., 0.], smoothing), torch.randn(3, 2, requires_grad=True)
    nothing = loss(output, torch.ones(3, dtype=torch.long))
    assert nothing.item() == 0. and not torch.autograd.grad(nothing, output)[0].any()
    y = torch.tensor([0, 1, 1])
    torch.testing.assert_close(loss(output, y), F.cross_entropy(output, y, torch.tensor([1., 0.]),
                                                                label_smoothing=smoothing))


def test_cross_entropy_weights_move_to_where_the_output_is():
    loss,y = cross_entropy_loss(weight=torch.tensor([1., 4.])),torch.tensor([0, 1])
    out = torch.randn(2, 2, dtype=torch.float64)         # another type stands for another device
    assert_close(loss(out, y), F.cross_entropy(out, y, torch.tensor([1., 4.]).double()))


# Means

def test_mean_does_not_depend_on_how_values_are_cut_into_batches():
    values = torch.randn(100, dtype=torch.float64)
    for bs in (1, 7, 64, 100):
        mean = RunningMean()
        for part in values.split(bs): mean.add(part.mean(), len(part))
        assert mean.value == pytest.approx(values.mean().item(), rel=1e-12) and mean.count == 100


def test_running_mean_keeps_no_graph():
    mean,w = RunningMean(),torch.ones(1, requires_grad=True)
    mean.add((2 * w).mean(), 1)
    assert not mean.means[0].requires_grad


def plain_figures(model, corpus, bs):
    "Loss and accuracy of `bs` streams, read one after the other and each as a whole: no windows, no padding."
    ids,n = corpus.ids.long(),corpus.n_tokens - 1
    n_steps,nats,right = math.ceil(n / bs),0.,0
    model.eval()
    with torch.no_grad():
        for start in range(0, n, n_steps):
            piece = ids[start:min(start + n_steps, n) + 1]
            logp = model.logits(model(piece[None, :-1]).dropped)[0].log_softmax(-1)
            nats -= logp[range(len(piece) - 1), piece[1:]].sum().item()
            right += (logp.argmax(-1) == piece[1:]).sum().item()
    return nats / n, right / n


@pytest.mark.parametrize('bs', [1, 3, 7, 64, 150])
@pytest.mark.parametrize('seq_len', [5, 1000])
def test_a_language_models_figures_are_means_over_tokens(bs, seq_len):
    learn = lm_learner(metrics=[Perplexity, accuracy])
    learn.model.double()
    dl = LMDataLoader(learn.dls.valid.corpus, bs=bs, seq_len=seq_len)
    loss,ppl,acc = learn.validate(dl=dl)
    expected = plain_figures(learn.model, dl.corpus, bs)
    assert (loss, acc) == pytest.approx(expected, rel=1e-9)
    assert ppl == pytest.approx(math.exp(expected[0]), rel=1e-9)


def test_every_target_counts_once_for_every_bs():
    class Count(Metric):
        needs_preds = True
        def reset(self): self.n = 0
        def update(self, preds, targs, loss, n): self.n += len(targs)
        @property
        def value(self): return self.n
    learn = lm_learner(metrics=Count())
    for bs in (1, 4, 9, 64): assert learn.validate(dl=LMDataLoader(learn.dls.valid.corpus, bs=bs, seq_len=7))[1] == 150


def test_the_tables_figures_are_those_of_the_whole_set():
    learn = plain_learner(two_classes(), metrics=accuracy)
    learn.fit(2)
    x,y = (torch.cat(o) for o in zip(*learn.dls.valid))  # 50 points in batches of 7
    out = learn.model(x)
    row = learn.record[-1]
    assert row['valid_loss'] == pytest.approx(F.cross_entropy(out, y).item(), rel=1e-6)
    assert row['accuracy'] == pytest.approx((out.argmax(1) == y).double().mean().item())


def test_train_loss_is_a_mean_over_items():
    learn = plain_learner(two_classes(n_train=17), lr=0.)  # batches of 8, 8 and 1
    learn.fit(1)
    x,y = (torch.cat(o) for o in zip(*learn.dls.train))
    assert learn.record[0]['train_loss'] == pytest.approx(F.cross_entropy(learn.model(x), y).item(), rel=1e-6)
    assert learn.recorder.losses[2] == pytest.approx(F.cross_entropy(learn.model(x[16:]), y[16:]).item(), rel=1e-5)


def test_reported_loss_never_contains_a_penalty():
    dls = lm_data()
    def losses(alpha, beta):
        for part in (dls.train, dls.valid): part.epoch = 0
        learn = lm_learner(dls, alpha=alpha, beta=beta)
        learn.fit(1, 0.)
        return learn.recorder.losses, learn.record[0]['train_loss'], learn.validate()[0]
    assert losses(0., 0.) == losses(1000., 1000.)


def test_metrics_of_several_kinds_and_wrong_ones():
    assert [m.name for m in as_metrics([accuracy, Perplexity])] == ['accuracy', 'perplexity']
    assert as_metrics(AvgMetric(accuracy))[0].name == 'accuracy'
    for wrong in ('accuracy', 3, ['x']):
        with pytest.raises(TypeError, match="is not a metric"): as_metrics(wrong)
    with pytest.raises(ValueError, match=r"\(4, 3\) do not fit targets of shape \(5,\)"):
        accuracy(torch.zeros(4, 3), torch.zeros(5))


def test_numbers_keep_their_digits_in_sixteen_bits():
    "2,003.9 is 2,000 in bfloat16, and 100,000 infinite in float16."
    def loss(output, target): return mse_loss()(output, torch.tensor([target])).item()
    assert loss(torch.tensor([[2000.]]).bfloat16(), 2003.9) == pytest.approx(3.9**2, rel=1e-3)
    assert loss(torch.tensor([[9e3]]).half(), 1e5) == pytest.approx(91e3**2, rel=1e-3)
