"What every test finds: one seed, a fixed number of threads, and real data where there is some."
import os
import signal
from pathlib import Path

import pytest
import torch

from awdtext.core import seed_all

root = Path(__file__).parent.parent


def pytest_configure(config):
    """Two threads unless told otherwise: sums come out the same on every machine, and many would slow small models.
    A GPU is seen by those alone who ask for `-m gpu`, or learners would go there by default.
    Ctrl-C is heard, by the processes that tests start too: a job in a shell's background is born deaf to it."""
    if 'not gpu' in config.option.markexpr: os.environ['CUDA_VISIBLE_DEVICES'] = ''
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if 'OMP_NUM_THREADS' not in os.environ: torch.set_num_threads(min(2, os.cpu_count() or 1))


def pytest_collection_modifyitems(items):
    "Asked for by `-m gpu` on a machine without one, such a test is skipped and says so."
    if torch.cuda.is_available(): return
    for item in items:
        if item.get_closest_marker('gpu'): item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture(autouse=True)
def seed():
    "Every test starts from the same seed, and leaves threads and default type as it found them."
    threads,dtype = torch.get_num_threads(),torch.get_default_dtype()
    seed_all(42)
    yield 42
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)


@pytest.fixture(scope='session')
def data_dir():
    "Folder of real corpora: $AWDTEXT_DATA, else shared/data beside the checkout. Without one, the test is skipped."
    folder = Path(os.environ.get('AWDTEXT_DATA') or root.parent / 'shared/data')
    if not folder.is_dir(): pytest.skip(f"needs real data: set AWDTEXT_DATA to its folder ({folder} does not exist)")
    return folder
