"The optimisers beside torch's plain loops: late gradients, groups that stand still, copies, rates that are none."
import math
import pickle
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from awdtext.training.optim import SGD, Adam, group_values, noted, set_hyper

plain = dict(fused=False, foreach=False)
pairs = {
    'Adam': (Adam, lambda p: torch.optim.AdamW(p, 1e-3, betas=(.9, .99), eps=1e-5, weight_decay=.01, **plain)),
    'SGD': (SGD, lambda p: torch.optim.SGD(p, 30., weight_decay=1.2e-6, **plain)),
    'momentum': (lambda p: SGD(p, momentum=.9), lambda p: torch.optim.SGD(p, 30., .9, weight_decay=1.2e-6, **plain))}


@pytest.mark.parametrize('kind', pairs)
def test_steps_are_those_of_the_plain_loop(kind):
    "Also where a group's rate is 0, where a weight never has a gradient, and where one has its first later on."
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(5)) for _ in range(4)]
    theirs = deepcopy(ours)
    opts = [make([{'params': p[:2], 'lr': 0.}, {'params': p[2:], 'lr': .1}])
            for make, p in zip(pairs[kind], (ours, theirs))]
    for i in range(6):
        for k, (p, q) in enumerate(zip(ours, theirs)):
            p.grad = None if k == 1 or (k == 3 and i < 2) else torch.randn(5)
            q.grad = None if p.grad is None else p.grad.clone()
        if i == 4: opts[0].load_state_dict(pickle.loads(pickle.dumps(opts[0].state_dict())))
        for opt in opts: opt.step()
        assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('opt_func', [SGD, Adam])
@pytest.mark.parametrize('copy', [deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=['deepcopy', 'pickle'])
def test_a_copy_that_is_noted_tells_of_its_steps(opt_func, copy):
    w,opt = copy((w := nn.Parameter(torch.ones(3)), opt_func([w])))
    for _ in range(3): noted(opt)
    w.grad,before = torch.ones(3), w._version
    opt.step()
    assert w._version == before + 1


def test_a_weight_may_be_given_as_a_group():
    w = nn.Parameter(torch.ones(3, 2))
    assert SGD([{'params': w}]).param_groups[0]['params'][0] is w
    with pytest.raises(TypeError, match='iterable of Tensors'): SGD(torch.ones(3, 2))


@pytest.mark.parametrize('value', [math.nan, math.inf, -1., [1e-3, math.nan], slice(1e-3, math.nan),
                                   slice(math.nan, 1e-3), slice(math.inf)], ids=str)
def test_rates_that_are_none(value):
    opt = SGD([{'params': [nn.Parameter(torch.ones(2))]} for _ in range(2)], lr=.5)
    with pytest.raises(ValueError, match='no rate|no range of rates'): group_values(value, 2)
    for name in ('lr', 'wd', 'mom'):
        with pytest.raises(ValueError): set_hyper(opt, name, value)
    assert [g['lr'] for g in opt.param_groups] == [.5, .5]
