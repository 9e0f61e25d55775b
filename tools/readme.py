"Write README.md from nbs/index.ipynb. `--check` writes nothing and fails if README.md differs."
import posixpath
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).parent.parent
fence = re.compile(r'(^```.*?^```)', re.M | re.S)


def move_links(text):
    "Links relative to nbs/ made relative to the root of the project; code blocks stay as they are."
    def moved(found):
        target = found[2]
        if re.match(r'[a-z]+:|#|/', target): return found[0]
        return f"{found[1]}({posixpath.normpath(posixpath.join('nbs', target))})"
    parts = fence.split(text)
    return ''.join(part if i % 2 else re.sub(r'(\[[^\]]*\])\(([^)\s]+)\)', moved, part) for i, part in enumerate(parts))


def prepare(notebook):
    "`notebook` as a reader of the README should see it: no hidden cells, no `#|` lines, links that work."
    def is_hidden(cell): return re.search(r'^#\|\s*(hide|export|default_exp)\b', cell.source, re.M)
    notebook.cells = [cell for cell in notebook.cells if not is_hidden(cell)]
    for cell in notebook.cells:
        if cell.cell_type == 'markdown': cell.source = move_links(cell.source)
        if cell.cell_type == 'code': cell.source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M).strip('\n')
    notebook.metadata.language_info = {'name': 'python'}
    return notebook


def make_readme(
    path, # The notebook
):        # The text of README.md
    "The notebook at `path` in Markdown."
    notebook = prepare(nbformat.read(path, as_version=4))
    text, resources = MarkdownExporter().from_notebook_node(notebook)
    if resources['outputs']:
        raise ValueError(f"{path}: an output is an image, which a README cannot hold: save it and link to it.")
    text = re.sub(r'<style.*?</style>\n?', '', text, flags=re.S)  # GitHub shows the rules of pandas' tables as text
    text = '\n'.join(line.rstrip() for line in text.splitlines())
    return re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'


def offenders(here=root):
    "What is wrong with README.md, a line each."
    readme = here / 'README.md'
    if readme.exists() and readme.read_text(encoding='utf-8') == make_readme(here / 'nbs/index.ipynb'): return []
    return ["README.md: differs from nbs/index.ipynb: edit the notebook and run `make readme`"]


if __name__ == '__main__':
    if '--check' in sys.argv: sys.exit('\n'.join(offenders()) or 0)
    (root / 'README.md').write_text(make_readme(root / 'nbs/index.ipynb'), encoding='utf-8')
