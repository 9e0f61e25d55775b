"""What it costs to be killable: size and time of a checkpoint, and its share of training at the default interval.

    python benchmarks/checkpoint_cost.py         # needs no data: the cost depends on the sizes alone
"""
import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from _common import machine, table

from awdtext.core import seed_all
from awdtext.data.dataloaders import TextDataLoaders
from awdtext.text_learner import language_model_learner
from awdtext.training.callback import Callback

models = {'`small`, vocabulary 10,000': ('small', 10_000), '`paper`, vocabulary 33,278': ('paper', 33_278)}
interval = 300.


class Pauses(Callback):
    "Seconds between the end of a batch and the beginning of the next: that is where checkpoints are written."
    order,in_lr_find = 10**6,False

    def __init__(self): self.seen,self.last = [],None
    def after_batch(self, learn): self.last = time.perf_counter()

    def before_batch(self, learn):
        if learn.training and learn.iter: self.seen.append(time.perf_counter() - self.last)


def learner(config, vocab_sz):
    "A learner on eight little batches of random words."
    seed_all(0)
    words = ['xxunk', *(f'w{i}' for i in range(1, vocab_sz))]
    text = [words[i] for i in torch.randint(vocab_sz, (4 * 40 * 8,)).tolist()]
    dls = TextDataLoaders.from_tokens([text], [text[:50]], vocab=words, bs=4, seq_len=40, seed=0)
    return language_model_learner(dls, config=config)


def pauses(config, vocab_sz, every, folder):
    learn,cb = learner(config, vocab_sz),Pauses()
    learn.fit(1, cbs=cb, checkpoint=folder, every=every)
    return cb.seen[1:], max(p.stat().st_size for p in folder.glob('run-*'))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', help='not needed, but given to every benchmark')
    p.parse_args()
    rows = []
    for name, (config, vocab_sz) in models.items():
        with tempfile.TemporaryDirectory() as d:
            with_writing,size = pauses(config, vocab_sz, '1steps', Path(d) / 'often')
            without,_ = pauses(config, vocab_sz, '1epoch', Path(d) / 'never')
        seconds = median(with_writing) - median(without)
        rows.append([name, f'{size / 2**20:.0f}', f'{seconds:.2f}', f'{seconds / interval:.2%}'])
    print(machine())
    print(table(['model, with Adam', 'MiB', 'seconds to write (median)', 'share of the time, every 5 minutes'], rows))


if __name__ == '__main__': main()
