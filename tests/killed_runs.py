"""Trains, is killed, and trains on: `python killed_runs.py KIND FOLDER N_KILLS SEED` kills at random moments.

Every life of a run is a process of its own, forked from this one, which has imported everything and computed nothing. A
run that has ended begins again in another folder until all kills are done; the last one is let live. Results are
written to FOLDER/result-*.pt.
"""
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from training_helpers import lm_learner, plain_learner, two_classes, words

from awdtext.data.dataloaders import TextDataLoaders
from awdtext.text_learner import text_classifier_learner
from awdtext.training.accumulate import GradientAccumulation
from awdtext.training.callback import Callback, CancelBatchException, CancelEpochException
from awdtext.training.monitors import EarlyStopping, SaveModel
from awdtext.training.optim import Adam
from awdtext.training.progress import ProgressCallback
from awdtext.training.rnn import NTASGD


class Linger(Callback):
    "Leaves time to be killed in."
    in_lr_find = decides = False
    seconds = 0.
    def after_step(self, learn): time.sleep(self.seconds)
    def before_validate(self, learn): time.sleep(2 * self.seconds)


def averaged(folder, every='3steps'):
    "Plain SGD whose averaging begins on the way, and a second fit after the first."
    learn = lm_learner(averaging=NTASGD(n=0), lr=20.)
    learn.fit(4, checkpoint=folder / 'first', every=every, cbs=Linger)
    learn.fit(2, 5., checkpoint=folder / 'second', every='1epoch', cbs=Linger)
    assert learn.average
    return learn


def one_cycle(folder, every='4steps'):
    learn = lm_learner(opt_func=Adam, lr=.01)
    learn.fit_one_cycle(5, checkpoint=folder, every=every, cbs=Linger)
    return learn


def fine_tuned(folder, every='3steps'):
    "A classifier: batch normalisation, documents in random order, frozen and unfrozen."
    torch.manual_seed(0)
    texts = [words(5 + i % 7, seed=i) for i in range(40)]
    labels = ['odd' if i % 3 else 'even' for i in range(40)]
    dls = TextDataLoaders.from_tokens(texts, texts[:9], labels=labels, valid_labels=labels[:9], is_lm=False, bs=4,
                                      seed=0)
    learn = text_classifier_learner(dls, config=dict(emb_sz=8, n_hid=12, n_layers=2)).remove_cb(ProgressCallback)
    learn.fine_tune(3, 1e-2, checkpoint=folder, every=every, cbs=Linger)
    return learn


def shuffled(folder, every='2steps'):
    "A loader that knows nothing of passes and seeds: torch's own, which draws its order from the global generator."
    torch.manual_seed(0)
    data = two_classes(120, 50)
    points = [(x, y) for xs, ys in data.train for x, y in zip(xs, ys)]
    data.train = torch.utils.data.DataLoader(points, batch_size=8, shuffle=True)
    data.valid = torch.utils.data.DataLoader(points[:30], batch_size=8)
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(), torch.nn.Linear(8, 2))
    learn = plain_learner(data, opt_func=Adam, model=model)
    learn.fit_flat_cos(4, checkpoint=folder, every=every, cbs=Linger)
    return learn


def own_generator(folder, every='2steps'):
    "Torch's loader with a generator of its own, steps that are left out, and weights of the best epoch at the end."
    torch.manual_seed(0)
    data = two_classes(60, 50)
    points = [(x, y) for xs, ys in data.train for x, y in zip(xs, ys)]
    generator = torch.Generator().manual_seed(3)
    data.train = torch.utils.data.DataLoader(points, batch_size=8, shuffle=True, generator=generator)
    learn = plain_learner(data, lr=.5, path=folder.parent / f'{folder.name} files')
    cbs = [Linger, GradientAccumulation(16), SaveModel(), EarlyStopping(patience=2), RandomCallback()]
    learn.fit(6, checkpoint=folder, every=every, cbs=cbs)
    return learn


class RandomCallback(Callback):
    "Leaves out a batch, and an epoch, now and then, by python's generator."
    def before_batch(self, learn):
        if learn.training and random.random() < .1: raise CancelBatchException
    def before_epoch(self, learn):
        if learn.epoch == 1 and random.random() < .9: raise CancelEpochException


def measured(folder, every='2steps'):
    "Averaging that is triggered within the epochs."
    learn = lm_learner(averaging=NTASGD(n=1, every=3), lr=20.)
    learn.fit(3, checkpoint=folder, every=every, cbs=[Linger, SaveModel(fname=folder.with_suffix('.best').absolute())])
    return learn


def two_stages(folder, every='3steps'):
    "The paper's training, in which the criterion fires twice, on documents, and rows that begin at random places."
    text = words(240)
    dls = TextDataLoaders.from_tokens([text[i:i + 24] for i in range(0, 240, 24)], [words(130, seed=1)], bs=4,
                                      seq_len=16, seed=0)
    learn = lm_learner(dls.read_lm(partial_shuffle=True, reset_at_docs=True), opt_func=Adam, lr=.01)
    learn.fit_ntasgd(3, 6, 20., n=0, checkpoint=folder, every=every, cbs=Linger)
    assert learn.recorder.averaging_from and len(learn.record) < 9
    return learn


kinds = {f.__name__: f for f in (averaged, one_cycle, fine_tuned, shuffled, own_generator, measured, two_stages)}


def result(learn):
    "All that must be the same to the last bit: everything but the clock."
    record = [{k: v for k, v in row.items() if k != 'time' and not k.endswith('/s')} for row in learn.record]
    preds,_ = learn.get_preds()
    return {'weights': learn.model.state_dict(), 'record': record, 'losses': learn.recorder.losses, 'preds': preds,
            'rates': learn.recorder.lrs, 'draw': torch.rand(3),
            'epochs': [getattr(learn.dls.train, 'epoch', 0), learn.epoch],
            'average': learn.average and learn.average.mean.state_dict()}


def live(kind, folder):
    "One life of a run, in a process of its own."
    pid = os.fork()
    if pid: return pid
    code = 1
    try:
        sys.stdout = open(os.devnull, 'w')
        torch.set_num_threads(1)
        random.seed(0)
        Linger.seconds = .004
        torch.save(result(kinds[kind](folder)), folder.parent / f'result-{folder.name}.pt')
        code = 0
    finally: os._exit(code)


def main(kind, folder, n_kills, seed):
    rng,kills,run = random.Random(seed),0,0
    while True:
        pid = live(kind, folder / str(run))
        if kills < n_kills:
            time.sleep(rng.uniform(.01, .3))
            os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code not in (0, -signal.SIGKILL): sys.exit(f'{kind}: a run failed with exit status {code}')
        kills += code == -signal.SIGKILL
        if code == 0 and kills == n_kills: break
        run += code == 0
    print(kills, 'kills,', run + 1, 'runs')


if __name__ == '__main__': main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
