"Data and models that train in milliseconds, and callbacks that look on."
from types import SimpleNamespace

import torch
from torch import nn

from awdtext.data.dataloaders import TextDataLoaders
from awdtext.text_learner import language_model_learner
from awdtext.training.callback import Callback
from awdtext.training.learner import Learner
from awdtext.training.optim import SGD
from awdtext.training.progress import ProgressCallback
from awdtext.training.rnn import NTASGD

tiny_size = dict(emb_sz=8, n_hid=12, n_layers=2)


def points(n, bs, flip=.2):
    "Points of two classes that a line separates, but for those that were flipped."
    x = torch.randn(n, 3)
    y = ((x.sum(1) > 0) ^ (torch.rand(n) < flip)).long()
    return list(zip(x.split(bs), y.split(bs)))


def two_classes(n_train=60, n_valid=50, bs=8):
    return SimpleNamespace(train=points(n_train, bs), valid=points(n_valid, 7), test=None, device='cpu', path='.')


def plain_learner(dls, opt_func=SGD, lr=.1, cbs=None, model=None, **kwargs):
    "A linear model; the same weights and no output every time."
    _start()
    model = model or nn.Linear(3, 2)
    return Learner(dls, model, opt_func=opt_func, lr=lr, cbs=cbs, **kwargs).remove_cb(ProgressCallback)


def words(n, n_words=20, seed=0):
    "A text in which each word is one of two that may follow the last."
    g = torch.Generator().manual_seed(seed)
    steps = torch.randint(1, 3, (n,), generator=g).cumsum(0) % n_words
    return [f'w{i}' for i in steps.tolist()]


def lm_data(n_train=400, n_valid=151, bs=4, seq_len=16):
    return TextDataLoaders.from_tokens([words(n_train)], [words(n_valid, seed=1)], bs=bs, seq_len=seq_len, seed=0)


def lm_learner(dls=None, averaging=None, **kwargs):
    "A small language model that learns by plain SGD; `averaging` replaces its NTASGD."
    _start()
    kwargs = {'opt_func': SGD, 'lr': 2., 'wd': 0., **kwargs}
    learn = language_model_learner(dls or lm_data(), config=tiny_size, **kwargs)
    learn.remove_cb(ProgressCallback).remove_cb(NTASGD)
    return learn.add_cb(averaging) if averaging else learn


def _start():
    torch.manual_seed(0)
    torch.set_num_threads(1)  # on models this small, two threads only wait for each other


def snapshot(model): return {k: v.detach().clone() for k, v in model.state_dict().items()}


def mean_of(weights):
    "The mean of state dicts, summed in float64."
    return {k: torch.stack([w[k].double() for w in weights]).mean(0).to(w0) for k, w0 in weights[0].items()}


class Iterates(Callback):
    "Keeps the weights after every step."
    order = -100  # before an average can be shown

    def __init__(self): self.seen = []
    def after_step(self, learn): self.seen.append(snapshot(learn.model))


class Do(Callback):
    "Calls `func(learn)` at `event`."
    in_lr_find = decides = False
    def __init__(self, event, func, order=0):
        self.order = order
        setattr(self, event, func)


def assert_same(a, b):
    "Two state dicts are the same to the last bit."
    assert a.keys() == b.keys()
    for k in a: assert torch.equal(a[k], b[k]), k
