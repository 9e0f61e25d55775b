"""What `fit(n)` does when no rate is given: optimisers and schedules on the first 400,000 tokens of WikiText-2.

The `small` preset with every other setting at its default, three seeds; perplexity of the validation part after 1, 3
and 10 passes. Each finished run is a line of the results file: the command can be stopped, and goes on where it was.
Runs share what they have in common: one of 10 epochs at a constant rate holds those of 1 and 3, and a flat-cos run is
the constant one up to three quarters of its length, where a copy of the process takes it to its end. It runs in one
thread, as a copy has no more. With `--precision bf16` the same runs in bfloat16 (float32 weights): a table of its own.

    python benchmarks/defaults_lm.py --data DIR              # DIR holds wikitext-2/{train,valid,test}.txt
    python benchmarks/defaults_lm.py --data DIR --only '1cycle' --epochs 1 3 --seeds 0
    python benchmarks/defaults_lm.py --data DIR --precision bf16 --epochs 10
"""
import argparse
import os
import sys
from itertools import product
from pathlib import Path
from statistics import mean, stdev

import torch
from _common import first_tokens, machine, read_results, table, write_result

from awdtext.core import seed_all
from awdtext.data.dataloaders import TextDataLoaders
from awdtext.text_learner import language_model_learner
from awdtext.training.callback import Callback
from awdtext.training.optim import SGD, Adam
from awdtext.training.schedule import ParamScheduler, flat_cos

n_tokens = 400_000
results_file = Path(__file__).parent / 'results' / 'defaults_lm.jsonl'


def constant(learn, n, lr): learn.fit(n, lr)
def one_cycle(learn, n, lr): learn.fit_one_cycle(n, lr)


candidates = {  # name -> (optimiser, way to train, rate)
    'Adam, constant 2e-3': (Adam, constant, 2e-3),
    'Adam, flat-cos 2e-3': (Adam, None, 2e-3),
    'Adam, constant 5e-3': (Adam, constant, 5e-3),
    'Adam, flat-cos 5e-3': (Adam, None, 5e-3),
    'Adam, 1cycle 1e-2': (Adam, one_cycle, 1e-2),
    'Adam, 1cycle 2e-2': (Adam, one_cycle, 2e-2),
    'SGD, constant 30, NT-ASGD': (SGD, constant, 30.),
}
branches = {f'Adam, constant {lr}': f'Adam, flat-cos {lr}' for lr in ('2e-3', '5e-3')}  # who branches off from whom


class Branches(Callback):
    "Where a flat-cos run of one of `lengths` leaves the run at a constant rate, a copy of the process ends it."
    order = 100
    length = None  # of the copy's run; None in the original

    def __init__(self, lengths, lr, finish): self.lengths,self.lr,self.finish = sorted(lengths),lr,finish

    def before_batch(self, learn):
        "Branch off at the last batch whose rate is the full one."
        following = learn.epoch + (learn.iter + 1) / learn.n_iter
        if not learn.training or self.length or not self.lengths or following / self.lengths[0] <= .75: return
        length = self.lengths.pop(0)
        sys.stdout.flush()                                  # or the copy would print it once more
        copy = os.fork()
        if copy == 0: self.turn_off(learn, length)
        elif os.waitpid(copy, 0)[1]: sys.exit(f'The flat-cos run of {length} epochs has failed.')

    def turn_off(self, learn, length):
        "From here on it is another run."
        self.length = learn.n_epoch = length
        learn.add_cb(ParamScheduler({'lr': (self.lr, flat_cos())}))

    def after_epoch(self, learn):
        "The copy's work may be done."
        if learn.epoch + 1 != self.length: return
        self.finish(learn, self.length)
        sys.stdout.flush()
        os._exit(0)                                         # nothing of the original's is to be tidied up


def run(data, name, n_epoch, seed, precision, finish, lengths=()):
    "Train once, and flat-cos runs of `lengths` with it; `finish(name, learner, epochs)` for each."
    opt_func,train,lr = candidates[name]
    tokens,valid = first_tokens(data / 'wikitext-2/train.txt', n_tokens), first_tokens(data / 'wikitext-2/valid.txt')
    seed_all(seed)
    dls = TextDataLoaders.from_tokens([tokens], [valid], min_freq=3, seed=seed)
    learn = language_model_learner(dls, config='small', opt_func=opt_func, precision=precision)
    if lengths: learn.add_cb(Branches(lengths, lr, lambda learn, n: finish(branches[name], learn, n)))
    train(learn, n_epoch, lr)
    if learn.interrupted: raise KeyboardInterrupt
    finish(name, learn, n_epoch)


def done(results, name, n_epoch, seed):
    "The perplexity after `n_epoch` epochs, if it is known. A longer run at a constant rate holds the shorter ones."
    prefix = candidates[name][1] is constant
    for r in results:
        if (r['name'], r['seed']) != (name, seed): continue
        if r['n_epoch'] == n_epoch or prefix and r['n_epoch'] > n_epoch: return r['perplexity'][n_epoch - 1]


def of_precision(results, precision): return [r for r in results if r.get('precision', 'fp32') == precision]


def cell(results, name, n_epoch, seeds):
    "Mean and deviation over the seeds that have run."
    values = [v for seed in seeds if (v := done(results, name, n_epoch, seed))]
    if not values: return '-'
    return f'{mean(values):.1f}' + (f' ± {stdev(values):.1f}' if len(values) > 1 else ' (1 seed)')


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, help='folder that holds wikitext-2; without it only the table is printed')
    p.add_argument('--only', nargs='*', default=[], help='parts of the names of candidates')
    p.add_argument('--epochs', nargs='*', type=int, default=[10, 3, 1])
    p.add_argument('--seeds', nargs='*', type=int, default=[0, 1, 2])
    p.add_argument('--precision', choices=['fp32', 'bf16'], default='fp32')
    p.add_argument('--results', type=Path, default=results_file)
    return p.parse_args()


def main():
    args = parse()
    torch.set_num_threads(1)
    names = [n for n in candidates if n not in branches.values()]
    if args.only: names = [n for n in names if any(part in n for part in args.only)]
    for n_epoch, seed, name in product(args.epochs, args.seeds, names) if args.data else ():
        results = of_precision(read_results(args.results), args.precision)
        lengths = [n for n in args.epochs if name in branches and n <= n_epoch]
        lengths = [n for n in lengths if not done(results, branches[name], n, seed)]
        if done(results, name, n_epoch, seed) and not lengths: continue
        print(f'\n{name}, {n_epoch} epochs, seed {seed}', flush=True)
        def finish(name, learn, n, seed=seed):
            write_result(args.results, {
                'name': name, 'n_epoch': n, 'seed': seed, 'precision': args.precision,
                'vocabulary': len(learn.dls.vocab), 'perplexity': [row['perplexity'] for row in learn.record],
                'seconds': sum(row['time'] for row in learn.record), 'machine': machine()})
        run(args.data, name, n_epoch, seed, args.precision, finish, lengths)
    results,epochs,seeds = of_precision(read_results(args.results), args.precision), [1, 3, 10], [0, 1, 2]
    print('\n' + table(['validation perplexity after', *(f'{n} epochs' for n in epochs)],
                       [[name, *(cell(results, name, n, seeds) for n in epochs)] for name in candidates]))


if __name__ == '__main__': main()
