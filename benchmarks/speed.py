"""How fast awdtext is beside fastai 2.8.12, and what fraction of the machine's own product rate it reaches.

Both libraries do the same work on the same text, each in a process of its own that stays alive: a round asks each in
turn for one sample. What is shown are medians of the rounds. A sample during which other processes took more than a
tenth of a core (from /proc/stat) is thrown away and repeated. Where the rate of steady work is asked for, a sample that
does not count comes before each, for all alike: whoever has his turn first gets his memory back from the (virtual)
machine, which took up to a third of such a sample. The limit of a row is the time of its matrix products
alone, each at its own rate (`limits.py`), measured in the first and the last of these rounds. fastai under CPU autocast
stands beside its float32; the ratio of each of our columns is to fastai's float32. Figures in bfloat16 and int8 count
only beside the quality that `quality_bf16.py` shows.

    python benchmarks/speed.py --data DIR --fastai-python PYTHON --encoder FILE  # wikitext-2 and imdb; two hours
    python benchmarks/speed.py --data DIR --fastai-python PYTHON --only wt2 ptb --rounds 7
    python benchmarks/speed.py --table                                # the table of what has been measured

Training is `fit` with SGD at the defaults of either library (for classifiers Adam), windows of fixed length, dropout
as published; texts and weights are the same in number and shape, which is checked. A sample has several steps, as what
happens once in a call of `fit` is no part of a step. How fast one text is read in bfloat16 and int8 depends on the
weights: `predict` is measured with those of a trained encoder (that of the cell *large* of `presets.py`, which has its
sizes), and left out without `--encoder`. `--awd-lstm-lm DIR` adds the step
of salesforce/awd-lstm-lm, of which DIR is a checkout. Each finished row is a line of the results file.
"""
import argparse
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from statistics import median

import torch
from _common import first_tokens, machine, needed, read_results, table, write_result
from _measure import FailedError, Worker, rounds, say, spread
from limits import can_bf16, model_products, models

here = Path(__file__).parent
results_file = here / 'results' / 'speed.jsonl'
paper = {'output_p': .4, 'hidden_p': .2, 'input_p': .65, 'embed_p': .1, 'weight_p': .5}
lower = {'predict', 'memory', 'import'}  # where less is better
steady = {'wt2', 'ptb', 'small', 'evaluate', 'unfrozen', 'frozen', 'get_preds'}  # a sample ahead of each that counts
# row -> title, unit, and what is to be reached against fastai in float32: awdtext in float32, bfloat16, int8
rows = {
    'wt2': ("training step, paper's WikiText-2 model", 'tokens/s', {'fp32': 1.5, 'bf16': 3.}),
    'ptb': ("training step, paper's PTB model", 'tokens/s', {'fp32': 1.15, 'bf16': 2.2}),
    'small': ('training step, small model', 'tokens/s', {'fp32': 1.3, 'bf16': 2.}),
    'evaluate': ('exact evaluation, WikiText-2 model, bs 64', 'tokens/s', {'fp32': 1.3, 'bf16': 2.3}),
    'unfrozen': ('classifier training step, all layers', 'documents/s', {'fp32': 1.2, 'bf16': 2.2}),
    'frozen': ('classifier training step, head alone', 'documents/s', {'fp32': 1.5, 'bf16': 2.8}),
    'get_preds': ('`get_preds`', 'documents/s', {'fp32': 1.1, 'bf16': 2.4, 'int8': 3.}),
    'predict': ('`predict`, a text of 250 tokens', 'ms', {'fp32': .4, 'bf16': .15, 'int8': .15}),
    'from_df': ('text to ids, `from_df`', 'MB/s', {'fp32': 3.}),
    'batches': ('language-model batches without a model', 'batches/s', {'fp32': 100.}),
    'memory': ("peak memory, training step of the paper's WikiText-2 model", 'MiB', {'fp32': .35, 'bf16': .3}),
    'generate': ('200 words after a prompt of 100', 'words/s', {'fp32': 20.}),
    'import': ('`import awdtext.all`; `import torch`', 's', {'fp32': None}),
}
clas_sizes = [400, 1152, 3]


# Text

def wiki_ids(data, vocab):
    "WikiText-2 as ids of the `vocab` most frequent words, lengths of its lines, and the words."
    tokens = first_tokens(data / 'wikitext-2/train.txt')
    special = ['<unk>', 'xxpad']
    words = special + [w for w, _ in Counter(tokens).most_common() if w not in special][:vocab - len(special)]
    index = {w: i for i, w in enumerate(words)}
    ids = torch.tensor([index.get(w, 0) for w in tokens], dtype=torch.int32)
    ends = (ids == index['<eos>']).nonzero()[:, 0] + 1
    return ids, torch.diff(ends, prepend=ends.new_zeros(1)), words


def reviews(data, n):
    "Texts and labels of IMDb in random order."
    import pandas as pd
    df = pd.read_csv(data / 'imdb/train.csv.gz').sample(frac=1, random_state=0)[:n]
    return df['text'].tolist(), df['label'].tolist()


def documents(data, n, vocab):
    "`n` reviews of 30 to 1,000 tokens: texts, labels, tokens, and a vocabulary filled up to `vocab` words."
    from awdtext.data.dataloaders import make_tokenizer
    from awdtext.data.vocab import make_vocab
    texts,labels = reviews(data, 2 * n)
    tokens = make_tokenizer(None, None)(texts)
    kept = [i for i, doc in enumerate(tokens) if 30 <= len(doc) <= 1000][:n]
    words = make_vocab(Counter(t for doc in tokens for t in doc), min_freq=1, max_vocab=vocab).itos
    words += [f'word{i}' for i in range(vocab - len(words))]
    return *([o[i] for i in kept] for o in (texts, labels, tokens)), words


# What each row is given: task, settings, arrays, and the products of a sample

def repeated(products, n): return [p._replace(times=n * p.times) for p in products]


def lm_row(args, name, n_windows, train=True):
    "Windows of a language model."
    s = {**models['wt2' if name in ('evaluate', 'memory') else name]}
    if name == 'evaluate': s['bs'] = 64
    if args.quick: s.update(sizes=[8, 12, 2], vocab=200, bs=4, bptt=10)
    ids,_,words = wiki_ids(args.data, s['vocab'])
    n = s['bs'] * s['bptt'] * n_windows + 1
    products = repeated(model_products(**s, train=train), n_windows)
    task,arrays = 'train' if train else 'evaluate', {'ids': ids[:n], 'words': words}
    return task, {**s, 'dropouts': paper, 'lr': 1.}, arrays, products


def clas_row(args, name):
    "Documents for a classifier."
    s = {'sizes': clas_sizes, 'vocab': 33_278, 'bs': 32, 'val_bs': 64, 'frozen': name == 'frozen'}
    if args.quick: s.update(sizes=[8, 12, 2], vocab=3000, bs=4, val_bs=8)
    n = 2 * s['bs'] if args.quick else args.docs
    _,labels,tokens,words = documents(args.data, n, s['vocab'])
    index = {w: i for i, w in enumerate(words)}
    arrays = {'ids': torch.tensor([index.get(t, 0) for doc in tokens for t in doc], dtype=torch.int32),
              'lengths': torch.tensor([len(doc) for doc in tokens]), 'words': words,
              'labels': torch.tensor([int(y == 'pos') for y in labels])}
    say(f"{n} documents of {arrays['lengths'].min()} to {arrays['lengths'].max()} tokens, "
        f"mean {arrays['lengths'].float().mean():.0f}")
    # all documents at the rate of whole batches: no padding, no short windows
    rows_read = s['val_bs'] if name == 'get_preds' else s['bs']
    windows = -(-int(arrays['lengths'].sum()) // (rows_read * 72))
    products = model_products(s['sizes'], rows_read, 72, train=name == 'unfrozen')
    return ('get_preds' if name == 'get_preds' else 'classify'), s, arrays, repeated(products, windows)


def text_row(args, name):
    "Texts as they are."
    s = {'sizes': clas_sizes, 'vocab': 33_278, 'times': 2 if args.quick else 10, 'n_words': 5 if args.quick else 200}
    if args.quick: s.update(sizes=[8, 12, 2], vocab=3000)
    if name == 'predict' and args.encoder: s['encoder'] = str(args.encoder.resolve())
    texts,labels,tokens,words = documents(args.data, 20 if args.quick else 200, s['vocab'])
    i = min(range(len(tokens)), key=lambda i: abs(len(tokens[i]) - 250))
    prompt = ' '.join(texts[i].split()[:100])
    products = repeated(model_products(s['sizes'], 1, len(tokens[i]), train=False), s['times'])
    if name == 'generate':
        words_drawn = repeated(model_products(s['sizes'], 1, 1, s['vocab'], train=False), s['n_words'])
        products = model_products(s['sizes'], 1, 100, train=False) + words_drawn
    arrays = {'texts': texts, 'labels': labels, 'words': words, 'text': texts[i], 'prompt': prompt}
    return name, s, arrays, products


def df_row(args, name):
    "Slices of the unlabelled reviews, each of them another text."
    import pandas as pd
    size = 20_000 if args.quick else 5_000_000
    slices,now = [[]], 0
    for text in pd.read_csv(args.data / 'imdb/unsup.csv.gz')['text']:
        slices[-1].append(text)
        now += len(text.encode())
        if now >= size:
            slices.append([])
            now = 0
    return 'from_df', {}, {'texts': slices[:-1] or slices}, []


def batches_row(args, name):
    "WikiText-2, each line a document."
    ids,lengths,_ = wiki_ids(args.data, 33_278)
    n = 50 if args.quick else 20_000
    return 'batches', {'bs': 64, 'bptt': 72, 'passes': 1 if args.quick else 40}, {
        'ids': ids[:int(lengths[:n].sum())], 'lengths': lengths[:n]}, []


makers = {**dict.fromkeys(('unfrozen', 'frozen', 'get_preds'), clas_row), 'from_df': df_row, 'batches': batches_row,
          **dict.fromkeys(('predict', 'generate'), text_row),
          'wt2': lambda a, n: lm_row(a, n, 3), 'ptb': lambda a, n: lm_row(a, n, 8),
          'memory': lambda a, n: lm_row(a, n, 2), 'small': lambda a, n: lm_row(a, n, 16),
          'evaluate': lambda a, n: lm_row(a, n, 2, False)}


# Measuring

def columns(args, name):
    "Who takes part in a row: column -> (command, precision)."
    ours = [sys.executable, here / '_speed_awdtext.py']
    found = {f'awdtext {p}': (ours, p) for p in rows[name][2]}
    if args.fastai_python:
        fastai = [args.fastai_python, here / '_speed_fastai.py']
        found['fastai fp32'] = fastai, 'fp32'
        if 'bf16' in rows[name][2] and can_bf16(): found['fastai bf16'] = fastai, 'bf16'
    if args.awd_lstm_lm and name in ('wt2', 'ptb', 'small', 'memory'):
        found['awd-lstm-lm fp32'] = [sys.executable, here / '_speed_awd_lstm_lm.py', args.awd_lstm_lm], 'fp32'
    if name not in ('from_df', 'batches', 'memory'): found['limit'] = ours, 'fp32'
    return found


def start(args, name, folder):
    "The workers of a row, ready, and the facts they tell of themselves."
    task,settings,arrays,products = makers[name](args, name)
    settings = {**settings, 'file': str(Path(folder) / f'{name}.pt'), 'threads': args.threads}
    torch.save(arrays, settings['file'])
    workers,facts = {}, {}
    for column, (command, precision) in columns(args, name).items():
        workers[column] = Worker(command, args.threads)
        own = {'products': products, 'seconds': 0. if args.quick else .1} if column == 'limit' else {}
        own['precision'] = precision
        answer = ask(workers, column, task='limit' if column == 'limit' else task, settings={**settings, **own})
        if 'missing' in answer:
            say(f"{name}, {column}: left out, {answer['missing']}")
            workers.pop(column).close()
        else: facts[column] = answer
    for fact in ('parameters', 'batch'): check_same(name, fact, facts)
    return workers, facts


def ask(workers, column, **question):
    "An answer; where fastai or awdtext fail, the end of what they said."
    try: return workers[column].ask(**question)
    except FailedError as e:
        if column.startswith('awd-lstm-lm'): return {'missing': f'it has failed:\n{e}'}
        sys.exit(f'{column} has failed:\n{e}')


def start_imports(args):
    "Workers that start a Python for each sample."
    modules = {'awdtext fp32': (sys.executable, 'awdtext.all'), 'torch': (sys.executable, 'torch')}
    if args.fastai_python: modules['fastai fp32'] = args.fastai_python, 'fastai.text.all'
    script = here / '_speed_import.py'
    workers = {column: Worker([python, script], args.threads) for column, (python, _) in modules.items()}
    for column, (_, module) in modules.items(): workers[column].ask(task='imports', settings={'module': module})
    return workers, {}


def check_same(name, fact, facts):
    "Say so if libraries do not do the same."
    found = {column: answer[fact] for column, answer in facts.items() if fact in answer}
    if len(set(found.values())) > 1: say(f'{name}: NOT THE SAME {fact}: {found}')


def figure(name, got):
    "What a sample says in the unit of its row."
    if name == 'memory': return got['peak_mb']
    if name in lower: return got['seconds'] / got['amount'] * (1000 if name == 'predict' else 1)
    return got['amount'] / got['seconds']


def collect(args, name, n, patience, warm=1, first=0):
    "Samples of each column of a row, how many were thrown away, and facts."
    with tempfile.TemporaryDirectory() as folder:
        workers,facts = start_imports(args) if name == 'import' else start(args, name, folder)
        ahead = int(name in steady and not args.quick)
        try: return *rounds(workers, n, args.quiet, patience, warm, first, seldom=('limit',), ahead=ahead), facts
        except FailedError as e: sys.exit(f'{name}: a worker has failed:\n{e}')
        finally:
            for worker in workers.values(): worker.close()


def fresh(args, name):
    "The same with new processes for each round: what a library remembers of earlier texts does not count."
    kept,thrown = {}, {}
    while len(kept.get('awdtext fp32', ())) < args.rounds:
        n = len(kept.get('awdtext fp32', ()))
        found,_,facts = collect(args, name, 1, 0, warm=0, first=n)
        loud = [column for column, (got,) in found.items() if (got['others'] or 0) > args.quiet]
        if loud and sum(thrown.values()) < args.patience:
            for column in found: thrown[column] = thrown.get(column, 0) + (column in loud)
            continue
        for column, samples in found.items(): kept.setdefault(column, []).extend(samples)
    return kept, thrown, facts


def run(args, name):
    "Measure a row."
    if name == 'from_df': kept,thrown,facts = fresh(args, name)
    else: kept,thrown,facts = collect(args, name, args.rounds, args.patience)
    limits = kept.pop('limit', [])
    figures = {column: [figure(name, got) for got in samples] for column, samples in kept.items()}
    others = {column: [got['others'] for got in samples] for column, samples in kept.items()}
    amount = kept['awdtext fp32'][0]['amount']
    more = {'encoder': args.encoder.name} if name == 'predict' and args.encoder else {}
    return {'row': name, **more, 'quick': args.quick, 'rounds': args.rounds, 'quiet': args.quiet, 'machine': machine(),
            'threads': args.threads, 'figures': figures, 'facts': facts,
            'thrown': thrown, 'others': others,
            'cpu_seconds': {column: [got['cpu_seconds'] for got in samples] for column, samples in kept.items()},
            'limit': {p: figure(name, {'amount': amount, 'seconds': median(o['amount'][p] for o in limits)})
                      for p in (limits[0]['amount'] if limits else ())}}


# The table

def short(x): return f'{x:,.0f}' if x >= 100 else f'{x:.3g}'


def cell(values):
    "Median, least and most."
    if not values: return '-'
    s = spread(values)
    return f"{short(s['median'])} ({short(s['min'])}-{short(s['max'])})"


def beside(theirs, ours):
    "A peer's figure, and the ratio of ours to it."
    return cell(theirs) + (f'; ratio {median(ours) / median(theirs):.2f}' if theirs and ours else '')


def ratio_cell(name, ours, theirs, goal):
    "The ratio of the medians, those of the rounds, what is to be reached, and whether it is."
    if not theirs: return ['-', '-', '-']
    value,each = median(ours) / median(theirs), [a / b for a, b in zip(ours, theirs)]
    less = name in lower
    said = f'{value:.2f} ({min(each):.2f}-{max(each):.2f})'
    if goal is None: return [said, '-', '-']
    return [said, f"{'<=' if less else '>='} {goal:g}", 'yes' if (value <= goal if less else value >= goal) else 'no']


def lines(r):
    "A line of the table for each of our precisions."
    name,figures = r['row'], r['figures']
    title,unit,goals = rows[name]
    for precision, goal in goals.items():
        ours,theirs = figures.get(f'awdtext {precision}'), figures.get('fastai fp32')
        peers = [cell(theirs), *(beside(figures.get(c), ours) for c in ('fastai bf16', 'awd-lstm-lm fp32'))]
        if not ours:
            yield [title, unit, precision, *peers, '-', '-', f'{goal:g}', 'not measured', '-']
            continue
        limit = r['limit'].get('bf16' if precision == 'int8' else precision)
        part = limit and median(ours) / limit
        part = f'{(1 / part if name in lower else part):.0%}' if part else '-'
        rest = ratio_cell(name, ours, theirs, goal)
        if name == 'import': rest = import_cells(figures)
        yield [title, unit, precision, *peers, cell(ours), *rest, part]


def import_cells(figures):
    more = median(figures['awdtext fp32']) - median(figures['torch'])
    return [f"torch {more:+.2f} s", '<= torch +0.5 s', 'yes' if more <= .5 else 'no']


def note(r):
    "How a row was measured; said plainly where it was not quiet."
    taken = [x for each in r['others'].values() for x in each]
    known = None not in taken
    others = f'others took at most {max(taken):.2f} of a core' if known else 'nobody tells what others took'
    loud = '**disturbed**, ' if known and max(taken) > .1 else ''         # whatever --quiet allowed
    return (f"{loud}{sum(r['thrown'].values())} disturbed samples repeated, {r['rounds']} rounds, {others}; "
            f"{r['machine']}")


def report(results):
    "The table of the latest result of each row."
    latest = {r['row']: r for r in results}
    head = ['work', 'unit', 'awdtext in', 'fastai 2.8.12', 'fastai, autocast bf16', 'awd-lstm-lm', 'awdtext',
            'ratio to fastai fp32', 'goal', 'reached', 'of the limit (goal 75 %)']
    found = [line for name in rows if name in latest for line in lines(latest[name])]
    notes = [f'{name}: {note(r)}' for name in rows if (r := latest.get(name))]
    return table(head, found) + '\n\nMedian (least-most).\n\n' + '\n'.join(notes)


def parse(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, help='folder that holds wikitext-2 and imdb')
    p.add_argument('--fastai-python', default=os.environ.get('AWDTEXT_FASTAI_PYTHON'),
                   help='python of an environment with fastai 2.8.12; default: $AWDTEXT_FASTAI_PYTHON')
    p.add_argument('--awd-lstm-lm', type=Path, help='a checkout of salesforce/awd-lstm-lm')
    p.add_argument('--encoder', type=Path, help='file of a trained encoder of 400/1152/3, for `predict`')
    p.add_argument('--only', nargs='*', default=list(rows), choices=list(rows), help='some of the rows')
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity')
                   else os.cpu_count(), help='of both libraries; all cores if not given')
    p.add_argument('--docs', type=int, default=128, help='documents of a sample of a classifier')
    p.add_argument('--quiet', type=float, default=.1, help='cores that others may take during a sample')
    p.add_argument('--patience', type=int, default=20, help='disturbed samples of a column that are repeated')
    p.add_argument('--quick', action='store_true', help='tiny sizes, to see that it runs')
    p.add_argument('--table', action='store_true', help='measure nothing, print the table of what is in the results')
    p.add_argument('--results', type=Path, default=results_file)
    return p.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    if not args.table:
        needed(args.data, 'wikitext-2/train.txt', 'imdb/train.csv.gz', 'imdb/unsup.csv.gz')
        if not args.fastai_python: sys.exit('fastai is missing: give --fastai-python (see benchmarks/README.md).')
        torch.set_num_threads(args.threads)
        for name in args.only:
            if name == 'predict' and not (args.encoder or args.quick):
                say('predict is left out: give --encoder, a file of a trained encoder of 400/1152/3')
                continue
            write_result(args.results, run(args, name))
            say(f'{name} is done')
    print(report([r for r in read_results(args.results) if r['row'] in args.only and r['quick'] == args.quick]))


if __name__ == '__main__': main()
