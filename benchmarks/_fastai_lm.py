"""The fastai half of `quality_lm.py`, run by it with the python of fastai's own environment: `_fastai_lm.py IN OUT`.

IN holds the token ids and the settings, OUT takes the weights, the time, and fastai's own figure of the validation
part.
"""
import sys
import time

import torch
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback  # noqa: F401, brings no_bar
from fastai.callback.schedule import ParamScheduler  # noqa: F401, brings fit_one_cycle
from fastai.callback.training import GradientClip
from fastai.data.core import DataLoaders
from fastai.text.data import LMDataLoader
from fastai.text.learner import language_model_learner
from fastai.text.models.awdlstm import AWD_LSTM, awd_lstm_lm_config
from fastai.torch_core import set_seed


class Stopwatch(Callback):
    "Seconds spent in training, validation left out."
    def before_fit(self): self.seconds,self.cpu_seconds = 0., 0.
    def before_train(self): self.since = time.perf_counter(), time.process_time()

    def after_train(self):
        self.seconds += time.perf_counter() - self.since[0]
        self.cpu_seconds += time.process_time() - self.since[1]


def loader(ids, bs, bptt, shuffle):
    "The text as one document, which leaves nothing to shuffle."
    return LMDataLoader([ids], lens=[len(ids)], bs=bs, seq_len=bptt, shuffle=shuffle)


def check(model, loss_func, batch):
    "A batch and fastai's own loss of it, to see that the weights mean the same in the other library."
    x,y = (t.as_subclass(torch.Tensor) for t in batch)
    model.eval()
    model.reset()
    with torch.no_grad(): return {'x': x, 'y': y, 'loss': float(loss_func(model(x)[0], y))}


def main(given, out):
    args = torch.load(given, weights_only=True)
    torch.set_num_threads(args['threads'])
    set_seed(args['seed'])
    dls = DataLoaders(*(loader(args[part], args['bs'], args['bptt'], part == 'train') for part in ('train', 'valid')))
    dls.vocab = list(range(args['vocabulary']))
    watch = Stopwatch()
    learn = language_model_learner(dls, AWD_LSTM, config=awd_lstm_lm_config | args['sizes'], pretrained=False,
                                   cbs=[GradientClip(args['clip']), watch])
    with learn.no_bar(): learn.fit_one_cycle(args['n_epoch'], args['lr'])
    torch.save({'weights': learn.model.state_dict(), 'seconds': watch.seconds, 'cpu_seconds': watch.cpu_seconds,
                'own_loss': float(learn.recorder.values[-1][1]),
                'check': check(learn.model, learn.loss_func, dls.valid.one_batch())}, out)


if __name__ == '__main__': main(*sys.argv[1:])
