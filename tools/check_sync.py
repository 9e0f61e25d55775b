"Fail if a notebook is not clean, or if the modules, the floors or README.md are not what the notebooks would give."
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import floors
import readme

root = Path(__file__).parent.parent


def rebuild(here, copy):
    "Clean and export the notebooks of `here` in the folder `copy`, from nothing but them and the version."
    shutil.copytree(here / 'nbs', copy / 'nbs', ignore=shutil.ignore_patterns('.*', '_proc'))
    shutil.copy(here / 'pyproject.toml', copy)
    (copy / 'awdtext').mkdir()
    shutil.copy(here / 'awdtext/__init__.py', copy / 'awdtext')
    # nbdev signs what it cleans: into the copy's folder, not into the user's
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'} | {'JUPYTER_DATA_DIR': str(copy / 'jupyter')}
    for command in ('nbdev-clean', 'nbdev-export'):
        script = Path(sys.executable).parent / command
        done = subprocess.run([script], cwd=copy, env=env, capture_output=True, text=True)
        if done.returncode: raise RuntimeError(f"{command} failed:\n{done.stderr.strip()}")


def different(here, copy, folder, pattern):
    "Paths under `folder` that match `pattern` and are not the same in both trees."
    paths = {path.relative_to(tree) for tree in (here, copy) for path in (tree / folder).rglob(pattern)}
    paths = {path for path in paths if not any(part.startswith('.') for part in path.parts)}
    def content(path): return path.read_bytes() if path.exists() else None
    return [path for path in sorted(paths) if content(here / path) != content(copy / path)]


def offenders(here=root):
    "What is out of sync, a line each."
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder).resolve() / here.name
        copy.mkdir()
        rebuild(here, copy)
        unclean = different(here, copy, 'nbs', '*.ipynb')
        stale = different(here, copy, 'awdtext', '*.py')
    return ([f"{path}: is not clean: run `make export`" for path in unclean]
        + [f"{path}: is not what the notebooks export: edit only those, and run `make export`" for path in stale])


if __name__ == '__main__': sys.exit('\n'.join(offenders() + floors.offenders() + readme.offenders()) or 0)
