"""How a language model reads most in a given time: rows of a batch, rate and schedule, on IMDb reviews.

One model (200/600, two layers, bfloat16, dropouts times .1, one thread) with the first 10,000 words: 6,000 reviews read
once, and 1,200 read six times; perplexity of 400 reviews that are not read. Labels are not looked at, and the labelled
reviews that other benchmarks hold out are in neither part. Each finished run is a line of the results file: the command
can be stopped, and goes on where it was.

    python benchmarks/rates.py --data DIR               # DIR holds imdb/{train,unsup}.csv.gz; 70 minutes a seed
    python benchmarks/rates.py --data DIR --seeds 0 --only '32 rows'
"""
import argparse
import sys
from itertools import product
from pathlib import Path
from statistics import mean
from time import process_time

import quality_classifier as q
import torch
from _common import earlier, machine, needed, read_results, spread, table, write_result

from awdtext.core import seed_all
from awdtext.data.dataloaders import TextDataLoaders
from awdtext.text_learner import language_model_learner

results_file = Path(__file__).parent / 'results' / 'rates.jsonl'
amounts = [(6000, 1), (1200, 6)]  # reviews, passes
candidates = {  # rows of a batch, schedule, rate
    '64 rows, one cycle up to 5e-3': (64, 'one-cycle', 5e-3),
    '32 rows, constant 5e-3': (32, 'constant', 5e-3),
    '32 rows, one cycle up to 5e-3': (32, 'one-cycle', 5e-3),
    '32 rows, one cycle up to 1e-2': (32, 'one-cycle', 1e-2),
    '32 rows, one cycle up to 2e-2': (32, 'one-cycle', 2e-2),
    '32 rows, one cycle up to 4e-2': (32, 'one-cycle', 4e-2),
    '16 rows, one cycle up to 1e-2': (16, 'one-cycle', 1e-2),
}


def measure(args, run, texts, valid):
    "Train once."
    seed_all(run['seed'])
    dls = TextDataLoaders.from_texts(texts[:run['reviews']], valid=valid, is_lm=True, bs=run['bs'],
                                     max_vocab=args.max_vocab, seed=run['seed'], n_workers=1, device='cpu')
    config = dict(zip(('emb_sz', 'n_hid', 'n_layers'), args.sizes))
    learn = language_model_learner(dls, config=config, drop_mult=.1, precision='bf16')
    began,fit = process_time(), learn.fit if run['schedule'] == 'constant' else learn.fit_one_cycle
    fit(run['n_epoch'], run['lr'])
    if learn.interrupted: raise KeyboardInterrupt
    return {**run, 'tokens': dls.train.corpus.n_tokens, 'perplexity': learn.evaluate().perplexity,
            'cpu_minutes': (process_time() - began) / 60, 'machine': machine()}


def planned(args, name, amount, seed):
    "The settings of a run."
    return {**dict(zip(('bs', 'schedule', 'lr'), candidates[name])), 'reviews': amount[0], 'n_epoch': amount[1],
            'seed': seed, 'sizes': args.sizes, 'max_vocab': args.max_vocab}


def report(results, args):
    "The table, a line a candidate."
    lines = []
    for name in candidates:
        found = [[r for seed in args.seeds if (r := earlier(results, planned(args, name, amount, seed)))]
                 for amount in args.amounts]
        if any(found): lines.append([name, *(value for rows in found for value in _cells(rows))])
    head = [value for n, passes in args.amounts for value in (f'{n:,} reviews, {passes} pass(es)', 'CPU minutes')]
    return table(['perplexity after', *head], lines)


def _cells(rows):
    if not rows: return '-', '-'
    return spread([r['perplexity'] for r in rows]), f"{mean(r['cpu_minutes'] for r in rows):.1f}"


def parse(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, help='folder that holds imdb')
    p.add_argument('--only', nargs='*', default=[], help='parts of the names of candidates')
    p.add_argument('--seeds', nargs='*', type=int, default=[0, 1, 2])
    p.add_argument('--results', type=Path, default=results_file)
    for name, value in (('max-vocab', 10_000), ('held-out', 5000)):               # as presets.py
        p.add_argument(f'--{name}', type=int, default=value, help=argparse.SUPPRESS)
    p.add_argument('--sizes', nargs=3, type=int, default=[200, 600, 2], help=argparse.SUPPRESS)
    p.add_argument('--amounts', nargs='*', type=lambda s: tuple(map(int, s.split('x'))), default=amounts,
                   help='reviews x passes, like 6000x1')
    return p.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    needed(args.data, 'imdb/train.csv.gz', 'imdb/unsup.csv.gz')
    torch.set_num_threads(1)
    texts,valid = q.read_texts(args)
    names = [name for name in candidates if not args.only or any(part in name for part in args.only)]
    for seed, amount, name in product(args.seeds, args.amounts, names):
        run = planned(args, name, amount, seed)
        if earlier(read_results(args.results), run): continue
        print(f'\n{name}; {amount[0]:,} reviews, {amount[1]} pass(es), seed {seed}', flush=True)
        write_result(args.results, measure(args, run, texts, valid))
    print('\n' + report(read_results(args.results), args))


if __name__ == '__main__': main(sys.argv[1:])
