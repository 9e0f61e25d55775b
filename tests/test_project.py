"The project keeps its own rules: see CONTRIBUTING.md. Every failure lists all offenders as `path: name: problem`."
import ast
import inspect
import re
import subprocess
import sys
from configparser import ConfigParser
from dataclasses import is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from statistics import median

import check_sync
import floors
import nbformat
import pytest
import readme
from fastcore.docments import docments

root = Path(__file__).parent.parent
max_body, max_median, max_cell = 30, 8, 45
long_cells = {'Loop', 'Learner'}  # the loop, and a class of thin methods: each in one piece to be read in one piece
heavy = {'spacy', 'pandas', 'matplotlib', 'IPython', 'optuna', 'sklearn', 'sentencepiece'}

modules = floors.modules()
notebooks = floors.notebooks()
each_module = pytest.mark.parametrize('module', modules, ids=lambda module: module.name.removeprefix('awdtext.'))
each_notebook = pytest.mark.parametrize('notebook', notebooks, ids=lambda path: str(path.relative_to(root / 'nbs')))


def report(offenders):
    "Fail with a list of `offenders`, if there are any."
    offenders = list(offenders)
    if offenders: pytest.fail(f"{len(offenders)} found:\n" + '\n'.join(offenders), pytrace=False)


def blame(path, name, problem): return f"{path.relative_to(root)}: {name}: {problem}"


# What the checks look at

@cache
def parse(path): return ast.parse(path.read_text(encoding='utf-8'))


def all_functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def public_names(module):
    "The public names of `module` and what they stand for, without those that another module defines."
    loaded = import_module(module.name)
    named = {name: getattr(loaded, name) for name in getattr(loaded, '__all__', [])}
    return {name: obj for name, obj in named.items() if getattr(obj, '__module__', module.name) == module.name}


def documented(module):
    "Public functions and classes of `module`, and the public methods that its classes define, by name."
    for name, obj in public_names(module).items():
        if inspect.isclass(obj) or inspect.isfunction(obj): yield name, obj
        if not inspect.isclass(obj): continue
        for key, method in vars(obj).items():
            is_method = inspect.isfunction(method) or isinstance(method, property | classmethod | staticmethod)
            if is_method and not key.startswith('_'): yield f'{name}.{key}', getattr(obj, key)


def overrides(method):
    "Whether a base class of ours documents the arguments of `method` already."
    cls = getattr(inspect.getmodule(method), method.__qualname__.split('.')[0], None)
    bases = cls.__mro__[1:] if inspect.isclass(cls) else ()
    return any(base.__module__.startswith('awdtext.') and method.__name__ in vars(base) for base in bases)


def undocumented(obj):
    "Arguments of the function, or fields of the record, `obj` that no comment explains."
    if isinstance(obj, property): return []
    if inspect.isclass(obj):
        if is_dataclass(obj) or hasattr(obj, '_fields'): return undocumented_fields(obj)
        if '__init__' not in vars(obj): return []
        obj = obj.__init__
    elif overrides(obj): return []
    known = {'self', 'cls', 'learn'}  # the same thing everywhere
    return [name for name, text in docments(obj, returns=False).items() if not text and name not in known]


def undocumented_fields(record):
    source = inspect.getsource(record)
    return [name for name in record.__annotations__ if not re.search(rf'^\s+{name}\s*:.*#', source, re.M)]


def signature_lines(function):
    "How many lines of `function` come before its body: arguments are written one a line, and are no complexity."
    return function.body[0].lineno - function.lineno


def body_lines(function):
    "Lines of `function` without its signature and its docstring."
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def code_cells(notebook, exported):
    "Sources of the code cells of `notebook` that are, or are not, exported."
    cells = [cell['source'] for cell in floors.read_cells(notebook) if cell['cell_type'] == 'code']
    return [source for source in cells if bool(re.search(r'^#\|\s*export[is]?\b', source, re.M)) == exported]


def used_names(source):
    "Every name and attribute that appears in the code `source`; lines for the shell or with magics are left out."
    nodes = list(ast.walk(ast.parse(re.sub(r'^\s*[!%].*$', '', source, flags=re.M))))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    return names | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


# In sync

def test_notebooks_are_clean_and_modules_are_what_they_export(): report(check_sync.offenders())


def test_readme_is_what_index_gives(): report(readme.offenders())


def test_readme_hides_what_is_hidden_and_moves_links(tmp_path):
    cell,text = nbformat.v4.new_code_cell,nbformat.v4.new_markdown_cell
    shown = cell('#|eval: false\nx = 1\nx', outputs=[nbformat.v4.new_output('execute_result', {'text/plain': '1'})])
    links = text('# t\n\n[a](../LICENSE) [b](data/02_b.ipynb#c) [d](https://e.f/) [g](#h)\n\n```\ni[0](j)\n```')
    notebook = nbformat.v4.new_notebook(cells=[links, cell('#|hide\nsecret'), shown])
    nbformat.write(notebook, tmp_path / 'index.ipynb')
    assert readme.make_readme(tmp_path / 'index.ipynb') == (
        '# t\n\n[a](LICENSE) [b](nbs/data/02_b.ipynb#c) [d](https://e.f/) [g](#h)\n\n```\ni[0](j)\n```\n\n'
        '```python\nx = 1\nx\n```\n\n    1\n')


def test_contract_lists_the_modules_in_the_order_of_their_notebooks(): report(floors.offenders())


def test_every_module_has_a_notebook_with_its_number_in_its_folder():
    numbers = [module.number for module in modules]
    for module in modules:
        folder = root / 'nbs' / Path(*module.name.split('.')[1:]).parent
        assert module.notebook.parent == folder, blame(module.notebook, module.name, f"belongs into {folder}")
        assert numbers.count(module.number) == 1, blame(module.notebook, module.number, "another one has this number")


def test_version_is_the_same_in_settings_and_package():
    import awdtext
    config = ConfigParser(delimiters=['='])
    config.read(root / 'settings.ini', encoding='utf-8')
    assert awdtext.__version__ == config['DEFAULT']['version'], "awdtext/__init__.py and settings.ini differ: set both"


# Public names

@each_module
def test_public_names_have_docstrings(module):
    report(blame(module.path, name, "has no docstring") for name, obj in documented(module) if not inspect.getdoc(obj))


@each_module
def test_public_arguments_have_docments(module):
    report(blame(module.path, name, f"no comment explains {arg}")
        for name, obj in documented(module) for arg in undocumented(obj))


@each_module
def test_public_names_have_an_example(module):
    used = set().union(*(used_names(source) for source in code_cells(module.notebook, exported=False)))
    def is_shown(name, obj):
        fields = getattr(obj, '_fields', None)  # a record is shown by reading each of its fields
        return name in used or (fields and used.issuperset(fields))
    names = public_names(module).items()
    report(blame(module.notebook, name, "is in no example") for name, obj in names if not is_shown(name, obj))


# Short and plain. Long lines, star imports, unused names, complexity and asserts are ruff's to find.

@each_module
def test_functions_are_short(module):
    lengths = [(function.name, body_lines(function)) for function in all_functions(parse(module.path))]
    report(blame(module.path, name, f"{n} lines of body, at most {max_body} allowed")
        for name, n in lengths if n > max_body)


def test_half_of_all_functions_are_tiny():
    lengths = [body_lines(function) for module in modules for function in all_functions(parse(module.path))]
    assert median(lengths) <= max_median, f"half of all functions have more than {max_median} lines: {median(lengths)}"


@each_module
def test_exported_cells_are_short(module):
    offenders = []
    for source in code_cells(module.notebook, exported=True):
        tree = ast.parse(source)
        names = [node.name for node in tree.body if hasattr(node, 'name')]
        written = [line for line in source.splitlines() if line.strip() and not line.startswith('#|')]
        n = len(written) - sum(signature_lines(function) for function in all_functions(tree))
        if n > max_cell and not long_cells & set(names):
            problem = f"{n} lines in one cell, at most {max_cell} allowed"
            offenders.append(blame(module.notebook, ', '.join(names), problem))
    report(offenders)


@each_module
def test_public_functions_spell_their_arguments_out(module):
    takes_any = [node for node in all_functions(parse(module.path)) if node.args.kwarg]
    report(blame(module.path, node.name, f"takes **{node.args.kwarg.arg}")
        for node in takes_any if not node.name.startswith('_') or node.name == '__init__')


@each_module
def test_nothing_is_patched_in(module):
    decorated = [(node.name, ast.unparse(d)) for node in all_functions(parse(module.path)) for d in node.decorator_list]
    report(blame(module.path, name, f"@{d}: write it out where it belongs") for name, d in decorated
        if re.match('patch|delegates', d))


@each_notebook
def test_notebook_begins_with_title_and_purpose(notebook):
    first = floors.read_cells(notebook)[0]
    titled = first['cell_type'] == 'markdown' and re.match(r'# \S.*\n\n> \S', first['source'])
    assert titled, blame(notebook, "first cell", "must be `# title`, an empty line, and `> purpose in one sentence`")


def test_importing_everything_leaves_heavy_packages_out():
    code = f"from awdtext.all import *; import sys; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, f"`from awdtext.all import *` fails:\n{done.stderr.strip()}"
    report(f"awdtext.all: {name}: comes along: import it only where it is needed" for name in done.stdout.split())
