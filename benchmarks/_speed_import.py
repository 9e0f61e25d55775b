"Seconds of an import in a fresh Python: a row of `speed.py`."
import subprocess
import sys

from _serve import serve


def imports(settings):
    "Start Python and import a module."
    def sample(i):
        subprocess.run([sys.executable, '-c', f"import {settings['module']}"], check=True)
        return 1
    return sample, {}


if __name__ == '__main__': serve({'imports': imports})
