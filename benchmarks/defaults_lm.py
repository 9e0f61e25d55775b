"""What `fit(n)` does when no rate is given: optimisers and schedules on the first 400,000 tokens of WikiText-2.

The `small` preset with every other setting at its default, three seeds; perplexity of the validation part after 1, 3
and 10 passes. Each finished run is a line of the results file: the command can be stopped, and goes on where it was.

    python benchmarks/defaults_lm.py --data DIR              # DIR holds wikitext-2/{train,valid,test}.txt
    python benchmarks/defaults_lm.py --data DIR --only '1cycle' --epochs 1 3 --seeds 0
"""
import argparse
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean, stdev

from _common import first_tokens, machine, read_results, table, write_result

from awdtext.core import seed_all
from awdtext.data.dataloaders import TextDataLoaders
from awdtext.text_learner import language_model_learner
from awdtext.training.optim import SGD, Adam
from awdtext.training.schedule import ParamScheduler, combine, cosine, linear

n_tokens = 400_000
results_file = Path(__file__).parent / 'results' / 'defaults_lm.jsonl'


def constant(learn, n, lr): learn.fit(n, lr)
def one_cycle(learn, n, lr): learn.fit_one_cycle(n, lr)


def flat_cos(learn, n, lr):
    "A constant rate for three quarters of training, then half a cosine down."
    sched = combine([.75, .25], [partial(linear, start=1., end=1.), partial(cosine, start=1., end=0.)])
    learn.fit(n, lr, cbs=ParamScheduler({'lr': (lr, sched)}))


candidates = {  # name -> (optimiser, way to train, rate)
    'Adam, constant 2e-3': (Adam, constant, 2e-3),
    'Adam, constant 5e-3': (Adam, constant, 5e-3),
    'Adam, 1cycle 5e-3': (Adam, one_cycle, 5e-3),
    'Adam, 1cycle 1e-2': (Adam, one_cycle, 1e-2),
    'Adam, 1cycle 2e-2': (Adam, one_cycle, 2e-2),
    'Adam, flat-cos 5e-3': (Adam, flat_cos, 5e-3),
    'SGD, constant 30, NT-ASGD': (SGD, constant, 30.),
}


def run(data, name, n_epoch, seed):
    "Train once; the perplexity after each epoch."
    opt_func,train,lr = candidates[name]
    tokens,valid = first_tokens(data / 'wikitext-2/train.txt', n_tokens), first_tokens(data / 'wikitext-2/valid.txt')
    seed_all(seed)
    dls = TextDataLoaders.from_tokens([tokens], [valid], min_freq=3, seed=seed)
    learn = language_model_learner(dls, config='small', opt_func=opt_func)
    train(learn, n_epoch, lr)
    return {'vocabulary': len(dls.vocab), 'perplexity': [row['perplexity'] for row in learn.record],
            'seconds': sum(row['time'] for row in learn.record)}


def done(results, name, n_epoch, seed):
    "The perplexity after `n_epoch` epochs, if it is known. A longer run at a constant rate holds the shorter ones."
    prefix = candidates[name][1] is constant
    for r in results:
        if (r['name'], r['seed']) != (name, seed): continue
        if r['n_epoch'] == n_epoch or prefix and r['n_epoch'] > n_epoch: return r['perplexity'][n_epoch - 1]


def cell(results, name, n_epoch, seeds):
    "Mean and deviation over the seeds that have run."
    values = [v for seed in seeds if (v := done(results, name, n_epoch, seed))]
    if not values: return '-'
    return f'{mean(values):.1f}' + (f' ± {stdev(values):.1f}' if len(values) > 1 else ' (1 seed)')


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, help='folder that holds wikitext-2; without it only the table is printed')
    p.add_argument('--only', nargs='*', default=[], help='parts of the names of candidates')
    p.add_argument('--epochs', nargs='*', type=int, default=[1, 3, 10])
    p.add_argument('--seeds', nargs='*', type=int, default=[0, 1, 2])
    return p.parse_args()


def main():
    args = parse()
    names = [n for n in candidates if not args.only or any(part in n for part in args.only)]
    for n_epoch, seed, name in product(args.epochs, args.seeds, names) if args.data else ():
        if done(read_results(results_file), name, n_epoch, seed): continue
        print(f'\n{name}, {n_epoch} epochs, seed {seed}', flush=True)
        result = run(args.data, name, n_epoch, seed)
        write_result(results_file, {'name': name, 'n_epoch': n_epoch, 'seed': seed, **result, 'machine': machine()})
    results,epochs,seeds = read_results(results_file), [1, 3, 10], [0, 1, 2]
    print('\n' + table(['validation perplexity after', *(f'{n} epochs' for n in epochs)],
                       [[name, *(cell(results, name, n, seeds) for n in epochs)] for name in candidates]))


if __name__ == '__main__': main()
