"""How time and memory grow: against vocabulary, hidden units, window, batch, corpus and length of documents.

One thing at a time grows from a small model and batch (200/600/3, 8,000 words, 16 rows of 72). Each point has a process
of its own, so that its peak memory is its own; the points are measured in turn, each after a sample that does not
count (`speed.py` says why). Beside the seconds stand the operations counted (matrix products; for texts their bytes)
and what these products alone take here (`limits.py`). Where time has grown more than the operations, the last column
says which of the two it was: products that are slower at these shapes, or the work beside them. fastai 2.8.12 is
measured with us where its python is given.

    python benchmarks/growth.py --data DIR                       # needs wikitext-2; half an hour
    python benchmarks/growth.py --data DIR --only vocab bs --fastai-python PYTHON

Each finished line of points is a line of the results file, and the drawing is made from them.
"""
import argparse
import os
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch
from _common import machine, needed, read_results, table, write_result
from _measure import Worker, rounds, say
from limits import model_products, operations
from speed import repeated, wiki_ids

here = Path(__file__).parent
results_file = here / 'results' / 'growth.jsonl'
base = {'sizes': [200, 600, 3], 'vocab': 8000, 'bs': 16, 'bptt': 72}
tiny = {'sizes': [8, 12, 2], 'vocab': 100, 'bs': 2, 'bptt': 8}
# what grows -> its name, and its values; each is twice the last
axes = {'vocab': ('words in the vocabulary', [2000, 4000, 8000, 16000, 32000]),
        'n_hid': ('hidden units', [150, 300, 600, 1200]),
        'bptt': ('steps of a window', [18, 36, 72, 144, 288]),
        'bs': ('rows of a batch', [4, 8, 16, 32, 64]),
        'doc_len': ('tokens of a document', [72, 144, 288, 576, 1152]),
        'corpus': ('MB of text', [.5, 1, 2, 4, 8])}


def lm_point(args, axis, value):
    "A window of training."
    s = {**(tiny if args.quick else base)}
    if axis == 'n_hid': s['sizes'] = [s['sizes'][0], value, s['sizes'][2]]
    else: s[axis] = value
    ids,_,words = wiki_ids(args.data, s['vocab'])
    products = repeated(model_products(**s), args.windows)
    return 'train', {**s, 'lr': 1.}, {'ids': ids[:s['bs'] * s['bptt'] * args.windows + 1], 'words': words}, products


def document_point(args, axis, length):
    "A step of a classifier with documents of one length."
    s = {**(tiny if args.quick else base)}
    ids,_,words = wiki_ids(args.data, s['vocab'])
    n = s['bs']
    arrays = {'ids': ids[:n * length], 'lengths': torch.full((n,), length), 'labels': torch.arange(n) % 2,
              'words': words}
    products = repeated(model_products(s['sizes'], n, min(length, 72)), -(-length // 72))
    return 'classify', {**s, 'val_bs': n, 'frozen': False}, arrays, products


def corpus_point(args, axis, mb):
    "Texts to ids; what is counted is bytes."
    size,texts = mb * 1e6, []
    with open(args.data / 'wikitext-2/train.txt', encoding='utf-8') as f:
        for line in f:
            if size <= 0: break
            if line.strip(): texts.append(line)
            size -= len(line.encode())
    return 'from_df', {}, {'texts': [texts]}, []


def point(args, axis, value):
    "Task, settings, arrays and products of a point."
    maker = {'doc_len': document_point, 'corpus': corpus_point}.get(axis, lm_point)
    return maker(args, axis, value)


def start(args, axis, values, folder):
    "The workers of all points: (who, value) -> worker; and the operations of each."
    workers,counted = {}, []
    commands = {'awdtext': [sys.executable, here / '_speed_awdtext.py']}
    if args.fastai_python: commands['fastai'] = [args.fastai_python, here / '_speed_fastai.py']
    if axis != 'corpus': commands['limit'] = commands['awdtext']
    for value in values:
        task,settings,arrays,products = point(args, axis, value)
        counted.append(operations(products) if products else value * 1e6)
        file = Path(folder) / f'{value}.pt'
        torch.save(arrays, file)
        for who, command in commands.items():
            worker = workers[who, value] = Worker(command, args.threads)
            s = {**settings, 'file': str(file), 'threads': args.threads, 'precision': 'fp32'}
            if who == 'limit': worker.ask(task='limit', settings={**s, 'products': products, 'seconds': args.seconds})
            else: worker.ask(task=task, settings=s)
    return workers, counted


def run(args, axis):
    "Measure a line of points."
    values = axes[axis][1]
    if args.quick: values = [.005, .01] if axis == 'corpus' else [4, 8] if axis in ('bs', 'bptt') else [100, 200]
    with tempfile.TemporaryDirectory() as folder:
        workers,counted = start(args, axis, values, folder)
        try: kept,thrown = rounds(workers, args.rounds, args.quiet, args.patience,
                                  seldom=[key for key in workers if key[0] == 'limit'], ahead=int(not args.quick))
        finally:
            for worker in workers.values(): worker.close()
    def of(who, f): return [median(map(f, kept[who, v])) for v in values if (who, v) in kept] or None
    return {'axis': axis, 'quick': args.quick, 'values': values, 'operations': counted, 'rounds': args.rounds,
            'seconds': {who: of(who, lambda got: got['seconds']) for who in ('awdtext', 'fastai')},
            'peak_mb': {who: of(who, lambda got: got['peak_mb']) for who in ('awdtext', 'fastai')},
            'limit': of('limit', lambda got: got['amount']['fp32']), 'thrown': sum(thrown.values()),
            'machine': machine(), 'threads': args.threads}


# What it says

def growth(series): return series[-1] / series[0] if series else None


def why(r):
    "Where time has grown more than the operations, which part of it did."
    seconds,limit = r['seconds']['awdtext'], r['limit']
    worse = growth(seconds) / growth(r['operations'])
    if worse <= 1.1: return 'no worse than the operations'
    if not limit: return f'{worse:.2f} times worse; no products here'
    slower = growth(limit) / growth(r['operations'])
    rest = [s - l for s, l in zip(seconds, limit)]
    shares = f'the work beside them went from {rest[0] / seconds[0]:.0%} to {rest[-1] / seconds[-1]:.0%} of the time'
    return f'{worse:.2f} times worse: products {slower:.2f} times slower at these shapes; {shares}'


def times(x): return '-' if x is None else f'{x:.2f}'


def report(results):
    "The table of the latest line of points on each axis."
    latest = {r['axis']: r for r in results}
    found = []
    for axis, (title, _) in axes.items():
        if not (r := latest.get(axis)): continue
        mb,theirs = r['peak_mb']['awdtext'], r['peak_mb']['fastai']
        found.append([title, f"{r['values'][0]:g} to {r['values'][-1]:g}",
                      *(times(growth(s)) for s in (r['operations'], r['limit'], r['seconds']['awdtext'],
                                                   r['seconds']['fastai'])),
                      f'{mb[0]:,.0f} to {mb[-1]:,.0f}', f'{theirs[0]:,.0f} to {theirs[-1]:,.0f}' if theirs else '-',
                      why(r)])
    head = ['what grows', 'from, to', 'operations x', 'products alone x', 'awdtext, time x', 'fastai, time x',
            'awdtext, peak MiB', 'fastai, peak MiB', 'worse than the operations?']
    return table(head, found)


def draw(results, file):
    "Seconds and MiB against each thing that grows, on logarithmic axes."
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator
    latest = {r['axis']: r for r in results}
    found = [latest[axis] for axis in axes if axis in latest]
    fig = Figure(figsize=(3.4 * len(found), 6), layout='constrained')
    for i, r in enumerate(found):
        top,below = fig.add_subplot(2, len(found), i + 1), fig.add_subplot(2, len(found), len(found) + i + 1)
        for ax, key in ((top, 'seconds'), (below, 'peak_mb')):
            for who, series in r[key].items():
                if series: ax.plot(r['values'], series, 'o-', label=who)
        first,ours = r['operations'][0], r['seconds']['awdtext'][0]
        top.plot(r['values'], [ours * n / first for n in r['operations']], 'k:', label='as the operations')
        if r['limit']: top.plot(r['values'], r['limit'], 'k--', label='products alone')
        top.set(title=axes[r['axis']][0], xscale='log', yscale='log', ylabel='seconds')
        below.set(xscale='log', ylabel='peak MiB', ylim=(0, None))
        for ax in (top, below): ax.set_xticks(r['values'], [f'{v:g}' for v in r['values']], rotation=30)
        for axis in (top.xaxis, below.xaxis, top.yaxis): axis.set_minor_locator(NullLocator())
        top.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        top.yaxis.set_major_formatter('{x:g}')
    named = {label: line for ax in fig.axes for line, label in zip(*ax.get_legend_handles_labels())}
    fig.legend(named.values(), named.keys(), loc='outside lower center', ncols=len(named))
    fig.savefig(file)


def parse(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, help='folder that holds wikitext-2')
    p.add_argument('--fastai-python', default=os.environ.get('AWDTEXT_FASTAI_PYTHON'),
                   help='python of an environment with fastai 2.8.12; default: $AWDTEXT_FASTAI_PYTHON')
    p.add_argument('--only', nargs='*', default=list(axes), choices=list(axes), help='some of the things that grow')
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--windows', type=int, default=3, help='windows of a sample')
    p.add_argument('--threads', type=int, default=torch.get_num_threads(), help='of each process')
    p.add_argument('--quiet', type=float, default=.1, help='cores that others may take during a sample')
    p.add_argument('--patience', type=int, default=20, help='disturbed samples of a point that are repeated')
    p.add_argument('--seconds', type=float, default=.1, help=argparse.SUPPRESS)
    p.add_argument('--quick', action='store_true', help='tiny sizes, to see that it runs')
    p.add_argument('--results', type=Path, default=results_file)
    return p.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    needed(args.data, 'wikitext-2/train.txt')
    if args.quick: args.seconds = 0.
    torch.set_num_threads(args.threads)
    for axis in args.only:
        write_result(args.results, run(args, axis))
        say(f'{axis} is done')
    results = [r for r in read_results(args.results) if r['axis'] in args.only and r['quick'] == args.quick]
    draw(results, args.results.with_suffix('.png'))
    print(machine())
    print(report(results))


if __name__ == '__main__': main()
