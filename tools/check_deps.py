"Fail if a module imports a package that settings.ini does not require, or settings.ini requires one that none imports."
import json
import subprocess
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path
from shlex import split

root = Path(__file__).parent.parent
pyproject = """[project]
name = {name}
version = {version}
dependencies = {dependencies}
[project.optional-dependencies]
{extras}
[tool.deptry]
optional_dependencies_dev_groups = ["dev"]
known_first_party = ["awdtext"]
[tool.deptry.per_rule_ignores]
# imported only inside a notebook, where it is there
DEP001 = ["IPython"]
DEP003 = ["IPython"]
# imported by torch.utils.tensorboard
DEP002 = ["tensorboard"]
"""


def write_pyproject(cfg):
    "deptry reads requirements only from a pyproject.toml: one that says of the requirements what settings.ini says."
    extras = {key.removesuffix('_requirements'): split(cfg[key]) for key in cfg if key.endswith('_requirements')}
    return pyproject.format(name=json.dumps(cfg['lib_name']), version=json.dumps(cfg['version']),
        dependencies=json.dumps(split(cfg['requirements'])),
        extras='\n'.join(f'{name} = {json.dumps(needs)}' for name, needs in extras.items()))


if __name__ == '__main__':
    config = ConfigParser(delimiters=['='])
    config.read(root / 'settings.ini', encoding='utf-8')
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'pyproject.toml'
        path.write_text(write_pyproject(config['DEFAULT']), encoding='utf-8')
        deptry = Path(sys.executable).parent / 'deptry'
        command = [deptry, 'awdtext', '--config', path, '--no-ansi']
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    print((done.stdout + done.stderr).replace(str(path), 'settings.ini').strip())
    sys.exit(done.returncode)
