"What a training step may not do: wait for the device, copy the embedding's gradient; and its parts beside torch's."
import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.testing import assert_close
from training_helpers import Do, lm_data, lm_learner

from awdtext import core
from awdtext.core import pages_kept
from awdtext.models.language_model import get_language_model
from awdtext.training.losses import activation_reg, temporal_activation_reg
from awdtext.training.metrics import RunningMean
from awdtext.training.optim import SGD, Adam, WeightAverage
from awdtext.training.rnn import ASGD

# No look at values

def steps_without_values(n=2, averaging=None, cbs=()):
    "`n` training batches on the device `meta`, which knows shapes but no values: whoever asks for one gets an error."
    dls = lm_data()
    dls.device = torch.device('meta')
    learn = lm_learner(dls, averaging)
    for cb in cbs: learn.add_cb(cb)
    learn._set_up(1, 0, '5min', 1., None, reset=False)
    learn.dl,learn.n_iter,learn.n_epoch,learn.training,learn.totals = dls.train,n + 2,1,True,RunningMean()
    learn._event('before_fit')
    learn._event('before_train')
    learn.model.train()
    for learn.iter, batch in zip(range(1, n + 1), dls.train): learn._batch(batch)     # the first is TerminateOnNaN's
    return learn


@pytest.mark.parametrize('averaging', [None, ASGD(start=1)], ids=['sgd', 'asgd'])
def test_no_value_is_read_from_the_device_inside_a_batch(averaging):
    learn = steps_without_values(averaging=averaging)
    assert all(p.device.type == 'meta' for p in learn.model.parameters())
    assert len(learn.recorder.lrs) == 2 and bool(learn.average) == bool(averaging)


@pytest.mark.parametrize('look', [lambda learn: float(learn.loss.detach()), lambda learn: bool((learn.y > 0).all()),
                                  lambda learn: learn.y[learn.y > 0], lambda learn: learn.total_loss.item()])
def test_who_reads_one_is_found(look):
    with pytest.raises((RuntimeError, NotImplementedError)):
        steps_without_values(cbs=[Do('after_loss', look)])


# The tied gradient

def fused_step(node):
    "What the fused loss keeps for its backward pass: the node of the graph that has gradients already."
    if hasattr(node, 'grads'): return node
    return next((found for next_node, _ in node.next_functions if next_node and (found := fused_step(next_node))), None)


@pytest.mark.parametrize('precision', [torch.float32, torch.bfloat16])
def test_the_tied_gradient_is_the_decoders_memory_from_the_forward_pass_on(precision):
    "Autograd adds the embedding's gradient to it in place and gives it to the parameter: no sum, no copy of that size."
    lm,ids = get_language_model(50, dict(emb_sz=8, n_hid=12)), torch.randint(50, (3, 7))
    with torch.autocast('cpu', precision, enabled=precision != torch.float32):
        loss = lm.loss(lm(ids[:, :-1]).dropped, ids[:, 1:])
    made = fused_step(loss.grad_fn).grads[1].data_ptr()
    loss.backward()
    assert made == lm.encoder.embedding.weight.grad.data_ptr()


@pytest.mark.parametrize('factor', [1., .3])
def test_a_second_backward_pass_makes_the_gradient_anew(factor):
    lm = get_language_model(50, dict(emb_sz=8, n_hid=12)).double().eval()
    ids,weight = torch.randint(50, (3, 7)), lm.encoder.embedding.weight
    loss = factor * lm.loss(lm(ids[:, :-1]).dropped, ids[:, 1:])
    loss.backward(retain_graph=True)
    once = weight.grad.clone()
    loss.backward()
    assert_close(weight.grad, 2 * once)


# Parts

@pytest.mark.parametrize('ours,torchs,settings', [
    (SGD, torch.optim.SGD, dict(lr=.3, weight_decay=.01)),
    (SGD, torch.optim.SGD, dict(lr=.1, weight_decay=0., momentum=.9)),
    (Adam, torch.optim.AdamW, dict(lr=.01, weight_decay=.1, betas=(.9, .99), eps=1e-5))])
def test_fused_steps_are_torchs_loop(ours, torchs, settings):
    nets = [nn.Linear(5, 4).double() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    opts = [ours(nets[0].parameters(), **settings), torchs(nets[1].parameters(), **settings, foreach=False)]
    assert opts[0].param_groups[0]['fused'] == (None if 'momentum' in settings else True)
    assert not opts[1].param_groups[0]['fused']
    for x in torch.randn(20, 3, 5, dtype=torch.float64):
        for net, opt in zip(nets, opts):
            opt.zero_grad()
            net(x).square().mean().backward()
            opt.step()
    assert_close(*(net.state_dict() for net in nets), rtol=1e-10, atol=1e-12)


def test_the_average_is_torchs():
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)).double()      # which has buffers too
    ours,torchs = WeightAverage(net), AveragedModel(net)
    torchs.update_parameters(net)
    for x in torch.randn(30, 6, 5, dtype=torch.float64):
        net(x)
        for p in net.parameters(): p.data += torch.randn_like(p)
        ours.update()
        torchs.update_parameters(net)
    assert ours.n == int(torchs.n_averaged) == 31
    assert_close(ours.mean.state_dict(), torchs.module.state_dict(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('seq_len', [2, 3, 9])
def test_the_penalties_and_their_gradients_are_the_formulas(seq_len, masked):
    h = torch.randn(seq_len, 4, 5, dtype=torch.float64).transpose(0, 1).requires_grad_()  # time first
    lengths = [[2], [seq_len], [seq_len], [1]] if masked else [[seq_len]] * 4
    counts = torch.arange(seq_len) < torch.tensor(lengths)
    both = counts[:, 1:] & counts[:, :-1]
    ar = 2. * h[counts].square().mean()
    tar = 3. * (h[:, 1:] - h[:, :-1])[both].square().mean()
    mask = counts if masked else None
    for ours, formula in ((activation_reg(h, 2., mask), ar), (temporal_activation_reg(h, 3., mask), tar)):
        assert_close(ours.double(), formula, rtol=1e-5, atol=0)                # under a mask it is in float32
        grads = [torch.autograd.grad(o, h, retain_graph=True)[0] for o in (ours, formula)]
        assert_close(*grads, rtol=1e-5, atol=1e-8)


def test_penalties_of_zeros_have_a_gradient_of_zero():
    h = torch.zeros(2, 3, 4, requires_grad=True)
    (activation_reg(h) + temporal_activation_reg(h)).backward()
    assert torch.equal(h.grad, torch.zeros_like(h))


def test_a_copy_of_an_average_is_independent():
    net = nn.Linear(2, 2)
    average = WeightAverage(net)
    twin = deepcopy(average)
    net.weight.data += 1
    average.update()
    assert twin.n == 1 and not torch.equal(twin.mean.weight, average.mean.weight)


pages = """
import resource
from pathlib import Path
import torch
from awdtext import core
from awdtext.core import pages_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)                                                  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident(): return int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize()

before = resident()
with pages_kept():
    faults()
    assert faults() < 1000
    with pages_kept(): pass
    faults()
    assert faults() < 1000                                             # the outer one still holds
assert faults() > 10_000
assert resident() - before < 2**25, (before, resident())
"""


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='the setting is of glibc')
def test_pages_are_kept_while_it_lasts_and_given_back_afterwards():
    "In a process of its own, whose heap nobody has used."
    done = subprocess.run([sys.executable, '-c', pages], capture_output=True, text=True)
    assert not done.returncode, done.stderr


def test_pages_are_given_back_after_an_error():
    with pytest.raises(ValueError), pages_kept(): raise ValueError
    assert not core._keepers


def test_two_who_keep_pages_may_end_in_any_order():
    first,second = pages_kept(), pages_kept()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert core._keepers
    second.__exit__(None, None, None)
    assert not core._keepers
