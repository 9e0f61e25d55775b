"The tutorials are too slow to run here: that they can be read, that their names exist, and that they were run."
import ast
import builtins
import inspect
import re

import floors
import nbformat
import pytest

import awdtext.all as everything

tutorials = [path for path in floors.notebooks() if path.parent.name == 'tutorials']
each_tutorial = pytest.mark.parametrize('path', tutorials, ids=lambda path: path.stem)


def code_cells(path): return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == 'code']


def parsed(path): return ast.parse('\n\n'.join(cell.source for cell in code_cells(path)))


def bound_names(tree):
    "What the code itself names: by assignment, definition, argument, import, or `except … as`."
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load): yield node.id
        elif isinstance(node, ast.FunctionDef | ast.ClassDef): yield node.name
        elif isinstance(node, ast.arg): yield node.arg
        elif isinstance(node, ast.ExceptHandler) and node.name: yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).split('.')[0] for alias in node.names)


def unknown_names(tree):
    known = {*bound_names(tree), *dir(builtins), *everything.__all__}
    return sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - known)


def unknown_arguments(tree):
    "Keywords that a public name of ours does not take, where it is called by its name."
    ours = {name: getattr(everything, name) for name in everything.__all__}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name): continue
        called = ours.get(node.func.id)
        if not (inspect.isclass(called) or inspect.isfunction(called)): continue
        takes = inspect.signature(called).parameters
        yield from (f'{node.func.id}({k.arg}=)' for k in node.keywords if k.arg and k.arg not in takes)


def imports(path):
    "The import statements, as they stand."
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import | ast.ImportFrom): yield ast.unparse(node)


def test_there_are_tutorials(): assert tutorials


@each_tutorial
def test_every_name_exists(path):
    tree = parsed(path)
    assert unknown_names(tree) == [] and list(unknown_arguments(tree)) == []


@each_tutorial
def test_every_import_works(path):
    for line in imports(path): exec(line, {})


@each_tutorial
def test_slow_cells_are_left_out_of_the_quick_run(path):
    "nbdev runs the rest, which does nothing but import."
    for cell in code_cells(path):
        if re.match(r'#\| *slow\b', cell.source): continue
        for node in ast.parse(cell.source).body: assert isinstance(node, ast.Import | ast.ImportFrom), cell.source


@each_tutorial
def test_it_was_run_and_its_outputs_are_kept(path):
    outputs = [output for cell in code_cells(path) for output in cell.outputs]
    assert any('image/png' in output.get('data', {}) for output in outputs)
    assert not [o for o in outputs if o.output_type == 'error' or o.get('name') == 'stderr']
    for cell in code_cells(path):
        last = ast.parse(cell.source).body[-1]
        if isinstance(last, ast.Expr): assert cell.outputs, f"a cell that shows something has no output:\n{cell.source}"


def test_a_name_that_does_not_exist_is_found():
    tree = ast.parse('from awdtext.all import *\nlearn = language_model_lerner(dls)\nNTASGD(n=5, window=3)')
    assert unknown_names(tree) == ['dls', 'language_model_lerner']
    assert list(unknown_arguments(tree)) == ['NTASGD(window=)']
