"Write the floors, modules in the order of their notebooks' numbers, as import-linter's contract. `--check` compares."
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

root = Path(__file__).parent.parent
contract = '.importlinter'
head = """; Written by `make export` from the numbers of the notebooks: a module imports only from those below it.
[importlinter]
root_package = {package}

[importlinter:contract:floors]
name = A module imports only from lower numbers
type = layers
layers =
"""


class Module(NamedTuple):
    "A notebook that exports a module."
    number: int     # Rank among all notebooks
    name: str       # Full name, as in an import
    notebook: Path  # Where it is written
    package: Path   # Folder of the package it belongs to

    @property
    def path(self): return self.package.parent / Path(*self.name.split('.')).with_suffix('.py')


def notebooks(here=root):
    "Paths of all notebooks, in the order of their names."
    found = (path.relative_to(here / 'nbs') for path in (here / 'nbs').rglob('*.ipynb'))
    return [here / 'nbs' / path for path in sorted(found) if not any(part[0] in '._' for part in path.parts)]


def read_cells(notebook):
    "The cells of `notebook`, each with its source as one string."
    cells = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    return [cell | {'source': ''.join(cell['source'])} for cell in cells]


def default_exp(notebook):
    "Where `notebook` exports to, or None."
    for cell in read_cells(notebook):
        if found := re.search(r'^#\|\s*default_exp\s+(\S+)', cell['source'], re.M): return found[1]


def modules(here=root, package='awdtext'):
    "The modules in the order of their notebooks' numbers, lowest first."
    found = []
    for notebook in notebooks(here):
        if not (target := default_exp(notebook)): continue
        number = re.match(r'\d+', notebook.stem)
        if not number: raise ValueError(f"{notebook.relative_to(here)} exports {target}: begin its name with a number.")
        found.append(Module(int(number[0]), f'{package}.{target}', notebook, here / package))
    return sorted(found)


def write_contract(here=root, package='awdtext'):
    "The text of the contract that belongs to the notebooks in `here`."
    layers = [f'    {module.name}\n' for module in reversed(modules(here, package))]
    return head.format(package=package) + ''.join(layers)


def offenders(here=root):
    "What is wrong with the contract, a line each."
    path = here / contract
    if path.exists() and path.read_text(encoding='utf-8') == write_contract(here): return []
    return [f"{contract}: does not list the modules in the order of their notebooks: run `make export`"]


if __name__ == '__main__':
    if '--check' in sys.argv: sys.exit('\n'.join(offenders()) or 0)
    (root / contract).write_text(write_contract(), encoding='utf-8')
