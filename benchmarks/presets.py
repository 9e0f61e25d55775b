"""Which size, which vocabulary, words or subwords: what 20 CPU minutes of reading are worth to a classifier.

Each cell reads IMDb reviews without labels for the same time, and its encoder then trains classifiers on three draws of
500 labelled reviews. Accuracy is that on 2,500 reviews which are in no draw, were not read, and are not those of
`quality_classifier.py`: what is chosen here is judged there. Perplexities are per token, so cells with other tokens
compare by bits per character; unknown words are cheap in them, so look at their share too. What `ulmfit()` does when
it is told nothing, and what is advised before training, comes from this table.

    python benchmarks/presets.py --data DIR                # DIR holds imdb/{train,unsup}.csv.gz; half an hour a cell
    python benchmarks/presets.py --data DIR --plan         # only measure how much each cell reads; nothing else may run
    python benchmarks/presets.py --data DIR --shard 1/2 &  # two processes that share the cells and the results file
    python benchmarks/presets.py --data DIR --shard 2/2

A minute of CPU is worth less while other programs run: beside four of them a cell would have read a third less.
So the cells are comparable if all were measured by one `--plan`; what is planned is read in whatever company.
Each finished part is a line of the results file: the command can be stopped, and goes on where it was.
"""
import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import mean
from time import process_time

import quality_classifier as q
import torch
from _common import earlier, machine, needed, read_results, shard, spread, table, write_result

results_file = Path(__file__).parent / 'results' / 'presets.jsonl'
cells = {  # sizes, vocabulary, tokens
    'medium, 10,000 words': ([200, 600, 2], 10_000, 'words'),
    'smallest, 10,000 words': ([150, 400, 2], 10_000, 'words'),
    'large, 10,000 words': ([400, 1152, 3], 10_000, 'words'),
    'medium, 30,000 words': ([200, 600, 2], 30_000, 'words'),
    'medium, 8,000 subwords': ([200, 600, 2], 8_000, 'subwords'),
    'medium, three layers, 10,000 words': ([200, 600, 3], 10_000, 'words'),
}
n_unseen = 2500  # of these benchmarks, and as many of `quality_classifier.py`


def arguments(args, name):
    "Those of `quality_classifier.py` for a cell."
    sizes,max_vocab,tokens = cells[name]
    return q.parse([*map(str, ['--data', args.data, '--lm-minutes', args.minutes, '--max-vocab', max_vocab, '--sizes',
                               *sizes, '--tokens', tokens, '--work', args.work, '--held-out', 2 * args.unseen]),
                    *args.more])


def measure_draw(args, run, encoder):
    "Accuracy on reviews that `quality_classifier.py` does not look at."
    train,held_out = q.labelled(args.data, 100 + run['draw'], args.labels, 2 * args.unseen)
    began = process_time()
    accuracy = q.classifier_accuracy(train, held_out[args.unseen:], encoder, run['draw'], precision='bf16')
    return {**run, 'accuracy': accuracy, 'cpu_minutes': (process_time() - began) / 60, 'machine': machine()}


def encoder_of(args, name): return (args.work / f"{name.replace(' ', '-').replace(',', '')}.safetensors").resolve()


def plan(args, names):
    "Measure what the cells read, one right after the other."
    for name in names:
        how = arguments(args, name)
        planned = q.reading_plan(how, encoder_of(args, name), q.read_texts(how)[0])
        print(f"{name}: {planned['tokens_per_second']:,.0f} tokens a second, {planned['reviews']:,} reviews "
              f"{planned['n_epoch']} time(s)", flush=True)


def finish(args, name):
    "What is not done of a cell."
    lm = {'cell': name, 'settings': [*cells[name]], 'minutes': args.minutes, 'part': 'language model'}
    encoder = encoder_of(args, name)
    if not earlier(read_results(args.results), lm) or not encoder.exists():
        write_result(args.results, q.train_lm(arguments(args, name), lm, encoder))
    for draw in range(args.draws):
        run = {**lm, 'part': 'draw', 'draw': draw, 'n_labels': args.labels}
        if earlier(read_results(args.results), run): continue
        print(f"\n{name}, draw {draw + 1}", flush=True)
        write_result(args.results, measure_draw(args, run, encoder))


def report(results, args):
    "The table, a line a cell."
    lines = []
    for name, (sizes, _, _) in cells.items():
        run = {'cell': name, 'settings': [*cells[name]], 'minutes': args.minutes}
        lm = earlier(results, {**run, 'part': 'language model'})
        if not lm: continue
        draws = [r for d in range(args.draws) if (r := earlier(results, {**run, 'part': 'draw', 'draw': d}))]
        lines.append([name, '/'.join(map(str, sizes)), f"{lm['tokens'] * lm['n_epoch'] / 1e6:.1f}",
                      f"{lm['cpu_minutes']:.0f}", f"{lm['perplexity']:.1f}", f"{100 * lm['unknown']:.1f}",
                      f"{lm['bits_per_character']:.3f}", spread([r['accuracy'] for r in draws], digits=3),
                      f"{mean(r['cpu_minutes'] for r in draws):.1f}" if draws else '-'])
    return table(['cell', 'sizes', 'million tokens read', 'in minutes', 'perplexity', 'unknown, %',
                  'bits per character', 'accuracy', 'minutes of a classifier'], lines)


def parse(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, help='folder that holds imdb')
    p.add_argument('--minutes', type=float, default=20., help='CPU minutes of a language model')
    p.add_argument('--draws', type=int, default=3, help='how often labels are drawn')
    p.add_argument('--plan', action='store_true', help='only measure how much each cell reads in its time')
    p.add_argument('--shard', type=shard, default=(1, 1), metavar='I/N', help='do the I-th part of N')
    p.add_argument('--results', type=Path, default=results_file)
    p.add_argument('--work', type=Path, default=Path(tempfile.gettempdir()) / 'awdtext_presets',
                   help='folder for encoders, and checkpoints of language models that are not finished')
    p.add_argument('--labels', type=int, default=500, help=argparse.SUPPRESS)
    p.add_argument('--unseen', type=int, default=n_unseen, help=argparse.SUPPRESS)
    p.add_argument('--more', type=json.loads, default=[], help=argparse.SUPPRESS)
    return p.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    needed(args.data, 'imdb/train.csv.gz', 'imdb/unsup.csv.gz')
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    first,n = args.shard
    names = [*cells][first - 1::n]
    if args.plan: return plan(args, names)
    for name in names: finish(args, name)
    print('\n' + report(read_results(args.results), args))


if __name__ == '__main__': main(sys.argv[1:])
