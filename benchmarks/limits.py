"""What the machine allows: its matrix-product rates at the shapes of our models, operations and bytes counted.

Products are all that is counted: 2 operations for a multiplication and an addition, and each operand and result moved
once. The rate of a shape is the best of what torch offers for it: MKL or oneDNN, with a weight that is laid out
beforehand or not. float32 is true float32: `set_float32_matmul_precision('medium')` is not touched, as with AMX it
means bfloat16. The limit of a row is all its products at their own rates, and nothing else. Recurrent products are
done one after the other, step by step, as an LSTM must.

    python benchmarks/limits.py                        # the models and batches of speed.py
    python benchmarks/limits.py --only wt2 --rounds 7
"""
import argparse
import json
import time
from collections import namedtuple
from functools import partial
from pathlib import Path
from statistics import median

import torch
from _common import machine, table, write_result

results_file = Path(__file__).parent / 'results' / 'limits.jsonl'
dtypes = {'fp32': torch.float32, 'bf16': torch.bfloat16}
Product = namedtuple('Product', 'name times m k n')  # (m, k) times (k, n), so many times
# sizes emb_sz, n_hid, n_layers; vocabulary; rows and steps of a batch
models = {'wt2': {'sizes': [400, 1150, 3], 'vocab': 33_278, 'bs': 80, 'bptt': 70},
          'ptb': {'sizes': [400, 1150, 3], 'vocab': 10_000, 'bs': 20, 'bptt': 70},
          'small': {'sizes': [200, 600, 3], 'vocab': 10_000, 'bs': 32, 'bptt': 72}}


def layer_sizes(emb_sz, n_hid, n_layers):
    "Inputs and units of each layer; the last has the size of the embedding."
    return list(zip([emb_sz] + [n_hid] * (n_layers - 1), [n_hid] * (n_layers - 1) + [emb_sz]))


def lstm_products(name, n_in, n_hid, bs, bptt, train=True):
    "The products of an LSTM layer over a window."
    rows,gates = bs * bptt, 4 * n_hid
    yield Product(f'{name}: input', 1, rows, n_in, gates)
    yield Product(f'{name}: recurrent', bptt, bs, n_hid, gates)
    if not train: return
    yield Product(f'{name}: gradient of the input', 1, rows, gates, n_in)
    yield Product(f'{name}: gradient of the state', bptt, bs, gates, n_hid)
    yield Product(f'{name}: gradient of the input weights', 1, gates, rows, n_in)
    yield Product(f'{name}: gradient of the recurrent weights', 1, gates, rows, n_hid)


def decoder_products(vocab, emb_sz, rows, train=True):
    "The products of the decoder."
    yield Product('decoder: logits', 1, rows, emb_sz, vocab)
    if not train: return
    yield Product('decoder: gradient of the input', 1, rows, vocab, emb_sz)
    yield Product('decoder: gradient of the weights', 1, vocab, rows, emb_sz)


def model_products(sizes, bs, bptt, vocab=0, train=True):
    "The products of a window; without a vocabulary those of the encoder alone."
    found = [p for i, (n_in, n_hid) in enumerate(layer_sizes(*sizes))
             for p in lstm_products(f'layer {i + 1}', n_in, n_hid, bs, bptt, train)]
    return found + (list(decoder_products(vocab, sizes[0], bs * bptt, train)) if vocab else [])


def operations(products): return sum(2 * p.times * p.m * p.k * p.n for p in products)
def n_bytes(p, size=4): return size * p.times * (p.m * p.k + p.k * p.n + p.m * p.n)


# Rates

def _timed(f, seconds):
    "Seconds of a call: the median of as many as fit, three at least."
    f()
    taken,end = [], time.perf_counter() + seconds
    while len(taken) < 3 or time.perf_counter() < end and len(taken) < 1000:
        start = time.perf_counter()
        f()
        taken.append(time.perf_counter() - start)
    return median(taken)


def ways(x, weight):
    "The ways in which torch multiplies `x` with the transposed `weight`: name -> function."
    out,ops = torch.empty(len(x), len(weight), dtype=x.dtype), torch.ops.mkldnn
    found = {'torch': partial(torch.mm, x, weight.T, out=out)}  # MKL in float32, oneDNN in bfloat16
    if not hasattr(ops, '_reorder_linear_weight') or x.dtype == torch.bfloat16 and not can_bf16(): return found
    pieces = x.split(max(1, 2**24 // len(weight)))              # results of at most 64 MiB, as in our decoder
    def onednn(w): return [ops._linear_pointwise(piece, w, None, 'none', [], '') for piece in pieces]
    if x.dtype == torch.float32: found['oneDNN'] = partial(onednn, weight)
    found['laid out'] = partial(onednn, ops._reorder_linear_weight(weight, len(pieces[0])))
    return found


def product_seconds(shape, precision, seconds=.1):
    "Seconds of one product of this shape `(m, k, n)` by each way."
    m,k,n = shape
    x,weight = (torch.randn(rows, k).to(dtypes[precision]) for rows in (m, n))
    return {name: _timed(f, seconds) for name, f in ways(x, weight).items()}


def shapes(products): return sorted({(p.m, p.k, p.n) for p in products})


def limit_seconds(products, times):
    "Seconds of all products; `times` has the seconds of each shape."
    return sum(p.times * times[p.m, p.k, p.n] for p in products)


def can_bf16():
    "Whether the processor multiplies bfloat16; else its rate says nothing."
    has = torch.cpu.get_capabilities()
    return bool(has.get('avx512_bf16') or has.get('amx_bf16'))


# The command

def measure(products, rounds, seconds):
    "Precision -> shape -> (seconds, way): medians of rounds in turn, of the best way."
    taken = {}
    for _ in range(rounds):
        for precision in ('fp32', 'bf16') if can_bf16() else ('fp32',):
            for shape in shapes(products):
                for way, t in product_seconds(shape, precision, seconds).items():
                    taken.setdefault((precision, shape), {}).setdefault(way, []).append(t)
    best = {key: min((median(ts), way) for way, ts in found.items()) for key, found in taken.items()}
    return {precision: {s: v for (p, s), v in best.items() if p == precision} for precision in dtypes}


def report(products, rates, tokens):
    "Tables of the products, and of their sums."
    rows = []
    for p in products:
        shape,flop = (p.m, p.k, p.n), 2 * p.m * p.k * p.n
        cells = [f'{flop / t / 1e9:.0f} ({way}), {p.times * t * 1e3:.0f} ms' if (t := rate.get(shape, (0, ''))[0])
                 else '-' for rate in rates.values() for way in [rate.get(shape, (0, ''))[1]]]
        rows.append([p.name, f'{p.times} x {p.m} x {p.k} x {p.n}', f'{p.times * flop / 1e9:.1f}',
                     f'{n_bytes(p) / 2**20:.0f}', *cells])
    total = operations(products)
    sums = [f'{tokens / s:,.0f} tokens/s' if rate and (s := limit_seconds(products, _seconds(rate))) else '-'
            for rate in rates.values()]
    rows.append(['**limit**', f'{total / tokens / 1e6:.1f} MFLOP/token', f'{total / 1e9:.1f}',
                 f'{sum(map(n_bytes, products)) / 2**20:.0f}', *sums])
    return table(['product', 'times x m x k x n', 'GFLOP', 'MiB in float32', 'GFLOP/s fp32', 'GFLOP/s bf16'], rows)


def _seconds(rate): return {shape: t for shape, (t, _) in rate.items()}


def memory_rate(mb=256, rounds=7):
    "GB/s of a copy, read and written counted."
    a = torch.randn(mb * 2**18)
    b = torch.empty_like(a)
    return 2 * a.nbytes / median(_timed(lambda: b.copy_(a), .05) for _ in range(rounds)) / 1e9


def parse(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', help='not needed, but given to every benchmark')
    p.add_argument('--only', nargs='*', default=list(models), choices=list(models), help='some of the models')
    p.add_argument('--rounds', type=int, default=5, help='how often each shape is measured, in turn')
    p.add_argument('--seconds', type=float, default=.1, help='of each measurement')
    p.add_argument('--quick', action='store_true', help='tiny sizes, to see that it runs')
    p.add_argument('--results', type=Path, default=results_file)
    return p.parse_args(argv)


tiny = {'sizes': [8, 12, 2], 'vocab': 50, 'bs': 4, 'bptt': 5}


def main(argv=None):
    a = parse(argv)
    print(machine())
    print(f'copies in memory: {memory_rate(1 if a.quick else 256):.0f} GB/s; medians of {a.rounds}')
    for name in a.only:
        settings = tiny if a.quick else models[name]
        for train in (True, False):
            products = model_products(**settings, train=train)
            rates = measure(products, a.rounds, 0. if a.quick else a.seconds)
            print(f"\n{name}, {'training' if train else 'evaluation'}\n\n" +
                  report(products, rates, settings['bs'] * settings['bptt']), flush=True)
            write_result(a.results, {'model': name, 'train': train, **settings, 'machine': machine(), 'seconds': {
                p: {json.dumps(shape): t for shape, t in rate.items()} for p, rate in rates.items()}})


if __name__ == '__main__': main()
