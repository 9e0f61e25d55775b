"""What `ulmfit()` makes of 1,000 labelled and 10,000 unlabelled reviews when it is told nothing but the time it has.

The code of a user is what stands in `user`. 2,500 labelled reviews are in nothing that is trained; the card is printed,
with accuracy on them, time and the most memory that the process had.

    python benchmarks/ulmfit_imdb.py --data DIR     # DIR holds imdb/{train,unsup}.csv.gz

The run has a folder (`--work`): the command can be stopped, and goes on where it was.
"""
import argparse
import json
import sys
import tempfile
from pathlib import Path

import pandas as pd
from _common import machine, needed, table, write_result

from awdtext.all import ulmfit

results_file = Path(__file__).parent / 'results' / 'ulmfit_imdb.jsonl'


def user(data, out, minutes, n_labelled, n_texts, n_unseen):
    "Eight lines at most."
    reviews = pd.read_csv(data / 'imdb/train.csv.gz').sample(frac=1, random_state=42)
    texts = pd.read_csv(data / 'imdb/unsup.csv.gz')['text'][:n_texts]
    unseen,labelled = reviews[:n_unseen], reviews[n_unseen:n_unseen + n_labelled]
    learn = ulmfit(texts, labelled, out, test=unseen, minutes=minutes)
    print(learn.card)


def parse(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, help='folder that holds imdb')
    p.add_argument('--minutes', type=float, default=60., help='time for all of it')
    p.add_argument('--results', type=Path, default=results_file)
    p.add_argument('--work', type=Path, default=Path(tempfile.gettempdir()) / 'awdtext_ulmfit_imdb',
                   help='folder of the run')
    for name, n in (('labelled', 1000), ('texts', 10_000), ('unseen', 2500)):
        p.add_argument(f'--n-{name}', type=int, default=n, help=argparse.SUPPRESS)
    return p.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    needed(args.data, 'imdb/train.csv.gz', 'imdb/unsup.csv.gz')
    user(args.data, args.work, args.minutes, args.n_labelled, args.n_texts, args.n_unseen)
    content = json.loads((args.work / 'results.json').read_text(encoding='utf-8'))
    figures,seconds = content['figures'], content['seconds']
    done = {'minutes': args.minutes, 'n_labelled': args.n_labelled, 'n_texts': args.n_texts,
            'accuracy': figures['test']['accuracy'], 'spent': sum(seconds.values()) / 60,
            'memory': figures['memory'] / 1e9, 'plan': content['plan'], 'machine': machine()}
    write_result(args.results, done)
    print('\n' + table(['minutes asked for', 'minutes', f'accuracy on {args.n_unseen:,} reviews', 'GB at most'],
                       [[f"{args.minutes:g}", f"{done['spent']:.0f}", f"{done['accuracy']:.3f}",
                         f"{done['memory']:.1f}"]]))


if __name__ == '__main__': main(sys.argv[1:])
