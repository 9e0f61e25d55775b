"""What a neural cache costs: seconds of CPU and peak memory of evaluation with and without one, in turn.

    python benchmarks/cache_cost.py               # random words: the cost depends on the sizes alone
    python benchmarks/cache_cost.py --data DIR    # the same on the validation part of WikiText-2
"""
import argparse
import multiprocessing
import sys
import time
from pathlib import Path
from statistics import median

import torch
from _common import first_tokens, machine, needed, table

from awdtext.core import seed_all
from awdtext.lm.evaluate import evaluate_lm
from awdtext.lm.neural_cache import NeuralCache
from awdtext.models.language_model import get_language_model

file = 'wikitext-2/valid.txt'


def parse(argv):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, help=f'folder that holds {file}')
    p.add_argument('--tokens', type=int, default=10_000, help='length of the text')
    p.add_argument('--window', type=int, default=3785, help='window of the cache')
    p.add_argument('--sizes', type=int, nargs=3, default=[400, 1150, 3], help='emb_sz, n_hid, n_layers')
    p.add_argument('--vocab', type=int, default=33_278, help='words in the vocabulary')
    p.add_argument('--bs', type=int, default=1, help='streams')
    p.add_argument('--bptt', type=int, default=72, help='tokens at a time')
    p.add_argument('--runs', type=int, default=3, help='how often each is measured')
    return p.parse_args(argv)


def text(a):
    "Token ids, less than `a.vocab`."
    if a.data is None: return torch.randint(a.vocab, (a.tokens + 1,))
    needed(a.data, file)
    found = {}
    return torch.tensor([found.setdefault(w, len(found)) % a.vocab for w in first_tokens(a.data / file, a.tokens + 1)])


def peak_memory():
    "Bytes of this process, at most so far."
    import resource                                                    # not on Windows
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def measure(cached, a, threads):
    "Seconds of CPU and bytes of one evaluation, in a process that does nothing else."
    torch.set_num_threads(threads)
    seed_all(0)
    model = get_language_model(a.vocab, dict(zip(('emb_sz', 'n_hid', 'n_layers'), a.sizes)))
    evaluate = NeuralCache(a.window).evaluate if cached else evaluate_lm
    ids,start = text(a), time.process_time()
    evaluate(model, ids, bs=a.bs, bptt=a.bptt)
    return time.process_time() - start, peak_memory()


def main(argv=None):
    a = parse(argv)
    text(a)                                                            # an error now, not in another process
    figures = {False: [], True: []}
    with multiprocessing.get_context('spawn').Pool(1, maxtasksperchild=1) as pool:
        for _ in range(a.runs):
            for cached, seen in figures.items(): seen.append(pool.apply(measure, (cached, a, torch.get_num_threads())))
    (plain, plain_b),(cached, cached_b) = (map(median, zip(*seen)) for seen in figures.values())
    rows = [['`evaluate_lm`', f'{plain:.1f}', '1.00', f'{plain_b / 2**20:,.0f}'],
            [f'`NeuralCache({a.window})`', f'{cached:.1f}', f'{cached / plain:.2f}', f'{cached_b / 2**20:,.0f}']]
    print(machine())
    print(f'{a.tokens:,} tokens in {a.bs} streams, {a.bptt} at a time; sizes {a.sizes}, {a.vocab:,} words; '
          f'medians of {a.runs}, in turn')
    print(table(['evaluation', 'seconds of CPU', 'times the first', 'peak MiB of the process'], rows))


if __name__ == '__main__': main()
