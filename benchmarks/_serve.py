"""The half of a benchmark that runs in a process of its own, in whatever environment: it does samples when asked.

A line of JSON on stdin is a question, a line on stdout the answer. Everything else that is printed goes to stderr.
Only the standard library is needed.
"""
import json
import os
import sys
import time


class MissingError(Exception):
    "This library, or this machine, has no such thing."


def peak_mb():
    "The most memory this process has held so far, in MiB."
    try:
        with open('/proc/self/status') as f: lines = f.read().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith('VmHWM')) / 1024
    except FileNotFoundError:
        import resource  # not on Windows; not on Linux either, where a child inherits its parent's figure
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == 'darwin' else 1024)


def measured(sample, i):
    "The `i`-th sample, with its seconds. It returns how much it has done."
    wall,cpu = time.perf_counter(), time.process_time()
    amount = sample(i)
    return {'seconds': time.perf_counter() - wall, 'cpu_seconds': time.process_time() - cpu, 'amount': amount,
            'peak_mb': peak_mb()}


def serve(tasks):
    "Answer until stdin ends. `tasks` are functions from settings to a function that does a sample, and some facts."
    out = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what libraries print is no answer
    sample = None
    for line in sys.stdin:
        question = json.loads(line)
        try:
            if 'task' in question: sample,answer = tasks[question['task']](question['settings'])
            else: answer = measured(sample, question['sample'])
        except MissingError as e: answer = {'missing': str(e)}
        print(json.dumps(answer), file=out, flush=True)
