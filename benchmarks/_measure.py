"""Samples of several processes, in turn, while nothing else runs: what `speed.py` and `growth.py` share.

A sample during which other processes took more than a tenth of a core is thrown away and repeated.
"""
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

here = Path(__file__).parent


class FailedError(Exception):
    "A worker has ended."


class Worker:
    "A process that does samples of one task."
    def __init__(self, command, threads):
        self.errors = tempfile.TemporaryFile('w+')
        env = {**os.environ, 'OMP_NUM_THREADS': str(threads), 'MKL_NUM_THREADS': str(threads),
               'PYTHONPATH': os.pathsep.join([str(here.parent), os.environ.get('PYTHONPATH', '')]), 'MPLBACKEND': 'agg'}
        self.process = subprocess.Popen([str(c) for c in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=self.errors, text=True, env=env)

    def ask(self, **question):
        "The answer to a question."
        try:
            self.process.stdin.write(json.dumps(question) + '\n')
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError: answer = ''
        if answer: return json.loads(answer)
        self.process.wait()
        self.errors.seek(0)
        raise FailedError('\n'.join(self.errors.read().splitlines()[-15:]))

    def close(self):
        "End the process."
        self.process.stdin.close()
        try: self.process.wait(20)
        except subprocess.TimeoutExpired: self.process.kill()
        self.process.stdout.close()
        self.errors.close()


# What else runs

def busy():
    "Seconds that all processors together have worked since the machine was started; None where nobody tells."
    try: first = Path('/proc/stat').read_text().splitlines()[0].split()
    except OSError: return None
    user,nice,system,_idle,_iowait,irq,softirq,steal,*_ = map(int, first[1:])
    return (user + nice + system + irq + softirq + steal) / os.sysconf('SC_CLK_TCK')


def tree_seconds(pid):
    "Seconds of CPU of a process, its children, and theirs."
    stats = {}
    for file in Path('/proc').glob('[0-9]*/stat'):
        try: stats[int(file.parent.name)] = file.read_text().rsplit(')', 1)[1].split()
        except OSError: continue  # it has ended
    mine,seconds = {pid}, 0.
    while more := {p for p, s in stats.items() if int(s[1]) in mine} - mine: mine |= more
    for p in mine & stats.keys(): seconds += sum(map(int, stats[p][11:15]))
    return seconds / os.sysconf('SC_CLK_TCK')


def sample(worker, i):
    "A sample, and how many cores other processes took meanwhile (None where nobody tells)."
    all_before,own_before,start = busy(), tree_seconds(os.getpid()), time.perf_counter()  # the workers are our children
    answer = worker.ask(sample=i)
    wall = time.perf_counter() - start
    if all_before is None: return {**answer, 'others': None}
    others = (busy() - all_before - (tree_seconds(os.getpid()) - own_before)) / wall
    return {**answer, 'others': max(0., others)}


# Rounds

def rounds(workers, n, quiet=.1, patience=20, warm=1, first=0, seldom=(), ahead=0):
    """`n` undisturbed samples of each worker, in turn, and how many were thrown away.

    At each turn `ahead` samples that do not count come first: a virtual machine takes back the memory that a worker has
    freed while others had their turns, and the first to ask for it again waits.
    Who was disturbed `patience` times keeps what it gets from there on. The order is reversed in every other round. The
    number of the first sample, after `warm` that do not count, is `first`. Who is in `seldom` is asked in the first and
    the last round alone.
    """
    kept,thrown = {name: [] for name in workers}, dict.fromkeys(workers, 0)
    for name in (name for name in workers if name not in seldom):
        for i in range(warm): sample(workers[name], i)
    for i in range(n):
        for name in list(workers)[::1 if i % 2 == 0 else -1]:
            if name in seldom and 0 < i < n - 1: continue
            for _ in range(0 if name in seldom else ahead): sample(workers[name], first + warm + i)
            while True:
                time.sleep(.2)  # others' threads fall asleep
                got = sample(workers[name], first + warm + i)
                if (got['others'] or 0.) <= quiet or thrown[name] >= patience: break
                thrown[name] += 1
            kept[name].append(got)
    return kept, thrown


def spread(values):
    "Median, least and greatest."
    return {'median': median(values), 'min': min(values), 'max': max(values)}


def say(text): print(text, file=sys.stderr, flush=True)
