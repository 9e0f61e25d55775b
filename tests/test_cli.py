"The shell: what each command reads and leaves, one line for each error, and how it ends."
import contextlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import cache

import matplotlib.image
import pandas as pd
import pytest
import torch
from sklearn.metrics import classification_report

from awdtext import demo, text_learner, tune, ulmfit
from awdtext.cli import COMMANDS, main
from awdtext.core import seed_all
from awdtext.data import tokenizer
from awdtext.data.batches import RegressionSetup
from awdtext.data.dataloaders import TextDataLoaders
from awdtext.data.tokenizer import BaseTokenizer
from awdtext.demo import save_curve
from awdtext.ensemble import Ensemble, LMEnsemble
from awdtext.models.awd_lstm import AWDLSTMConfig, presets
from awdtext.text_learner import LMLearner, language_model_learner, load_learner, text_classifier_learner
from awdtext.training.checkpoint import read_bundle
from awdtext.training import precision
from awdtext.training.learner import Learner

size = dict(emb_sz=8, n_hid=12, n_layers=2)
animals,places = 'cat dog cow hen owl fox'.split(),'mat log hill roof wall sea'.split()
texts = [f'The {a} sat on the {p} .' for a in animals for p in places]
labels = ['pet' if a in animals[:2] else 'wild' for a in animals for p in places]


@pytest.fixture(scope='module', autouse=True)
def all_is_cheap():
    "The preset `small` is tiny, spaCy's tables are made once, and curves are drawn by the test that looks at one."
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets, 'small', AWDLSTMConfig(**size))
        patch.setattr(tokenizer, '_spacy_tokenizer', cache(tokenizer._spacy_tokenizer))
        patch.setattr(demo, 'save_curve', lambda learn, file: file.touch())
        yield


@pytest.fixture(autouse=True)
def one_thread(): torch.set_num_threads(1)    # on models this small, two threads only wait for each other


@pytest.fixture
def shell(capsys):
    "Exit status, standard output and standard error of a command line."
    def run(*argv):
        capsys.readouterr()
        try: status = main([str(a) for a in argv])
        except SystemExit as e: status = e.code                                  # argparse leaves by itself
        return status, *capsys.readouterr()
    return run


def write(folder, **files):
    "Text files; a frame becomes a CSV. `sub__name` is `sub/name`."
    for name, content in files.items():
        path = folder / (name.replace('__', '/') + ('.csv' if isinstance(content, pd.DataFrame) else '.txt'))
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, pd.DataFrame): content.to_csv(path, index=False)
        elif isinstance(content, bytes): path.write_bytes(content)
        else: path.write_text('\n'.join(content) + '\n', encoding='utf-8')
    return folder


frame = pd.DataFrame({'text': texts, 'label': labels})
few = ['--bs', 4, '--seq-len', 8, '--min-freq', 1]


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A language model and a classifier, made by the commands."
    folder = write(tmp_path_factory.mktemp('made'), text=texts, labelled=frame)
    seed_all(0)
    lm = ['train-lm', '--data', folder / 'text.txt', '--out', folder / 'lm', *few]
    clas = ['train-classifier', '--data', folder / 'labelled.csv', '--encoder', folder / 'lm/encoder', '--bs', 4,
            '--out', folder / 'clas', '--epochs', 1]
    for argv in (lm, clas): assert main([str(a) for a in argv]) == 0
    return folder


# The command line

@pytest.mark.parametrize('name', COMMANDS)
def test_help_shows_every_option(name, shell):
    status,out,err = shell(name, '--help')
    assert (status, err) == (0, '') and COMMANDS[name].__doc__ in ' '.join(out.split())
    for arg, parameter in inspect.signature(COMMANDS[name]).parameters.items():
        shown = arg if parameter.default is inspect.Parameter.empty else '--' + arg.replace('_', '-')
        assert re.search(rf'^ +{shown}\b.* \S', out, re.M), arg
        if parameter.default in (inspect.Parameter.empty, None, ''): continue
        assert f'(default: {parameter.default})' in ' '.join(out.split()), arg


@pytest.mark.parametrize('name', ['train-lm', 'tune', 'train-classifier', 'ulmfit'])
def test_help_names_the_presets(name, shell):
    options = ' '.join(shell(name, '--help')[1].partition('options:')[2].split())
    (line,) = re.findall(r'--config\b.*?(?=--\w)', options)
    assert all(re.search(rf'\b{preset}\b', line) for preset in presets), line


def test_help_in_general(shell):
    for argv in (['--help'], ['-h']):
        status,out,err = shell(*argv)
        assert (status, err) == (0, '') and all(f'  {name} ' in out for name in COMMANDS)
    assert shell()[0] == 2
    assert re.fullmatch(r'\d+\.\d+.*\n', shell('--version')[1])


@pytest.mark.parametrize('argv', ['train-lm --speed 9', 'train-lm --bs many', 'evaluate', 'evaluate model', 'predict',
                                  'train-lm stray', 'fly', '--speed'], ids=lambda argv: argv)
def test_wrong_command_lines(argv, shell):
    status,out,err = shell(*argv.split())
    assert (status, out) == (2, '') and err.splitlines()[-1].startswith('awdtext')


def test_help_needs_no_torch():
    code = "import sys; from awdtext.cli import main\ntry: main(['train-lm', '--help'])\nexcept SystemExit: pass\n" \
           "print({'torch', 'spacy', 'pandas', 'matplotlib', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.endswith('set()\n')


def test_the_command_is_installed():
    command = os.path.join(os.path.dirname(sys.executable), 'awdtext')
    done = subprocess.run([command, 'fly'], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, '') and len(done.stderr.splitlines()) == 1


# Training a language model

def test_language_model_from_parts(tmp_path, shell, monkeypatch):
    monkeypatch.setattr(demo, 'save_curve', save_curve)
    write(tmp_path, data__train=texts, data__valid=texts[:9], data__test=texts[:5])
    status,out,err = shell('train-lm', '--data', tmp_path / 'data', '--out', tmp_path / 'new/out', '--epochs', 2, *few)
    assert (status, err) == (0, '')
    assert '36 + 9 + 5 documents' in out and '\r' not in out
    for part, n in (('valid', 9 * 9 - 1), ('test', 5 * 9 - 1)):                  # xxbos, xxmaj and 7 words a line
        line = rf'^{part}: perplexity [\d.]+ over {n} tokens in one stream \(unigram model: [\d.]+\)$'
        assert re.search(line, out, re.M)
    names = ['encoder.safetensors', 'language_model.json', 'language_model.png', 'language_model.safetensors']
    assert sorted(p.name for p in (tmp_path / 'new/out').iterdir()) == names
    assert matplotlib.image.imread(tmp_path / 'new/out/language_model.png').std() > 0
    record = json.loads((tmp_path / 'new/out/language_model.json').read_text())
    assert [line['epoch'] for line in record] == [0, 1] and record[1]['perplexity'] > 1
    said = shell('evaluate', tmp_path / 'new/out/language_model', tmp_path / 'data/test.txt')[1]
    test = re.search(r'^test: perplexity ([\d.]+) over (\d+)', out, re.M)
    assert said.startswith(f'perplexity {test[1]}, ') and said.endswith(f', {test[2]} tokens in one stream\n')


@pytest.mark.parametrize('data,files,docs', [
    ('a.txt', dict(a=texts), '33 + 3 documents'),
    ('a.csv', dict(a=frame), '33 + 3 documents'),
    ('a', {f'a__{i}': [text] for i, text in enumerate(texts)}, '33 + 3 documents'),
    ('a', {f'a__{"valid" if i < 5 else "train"}__{i}': [text] for i, text in enumerate(texts)}, '31 + 5 documents')])
def test_language_model_from_whatever_there_is(data, files, docs, tmp_path, shell):
    write(tmp_path, **files)
    status,out,err = shell('train-lm', '--data', tmp_path / data, '--out', tmp_path / 'out', *few)
    assert (status, err) == (0, '') and docs in out


def test_compressed_tables_and_other_columns(tmp_path, shell):
    frame.rename(columns={'text': 'body'}).to_csv(tmp_path / 'a.csv.gz', index=False)
    options = ['--data', tmp_path / 'a.csv.gz', '--text-col', 'body']
    assert shell('train-lm', *options, '--out', tmp_path / 'lm', *few)[0] == 0
    assert shell('train-classifier', *options, '--out', tmp_path / 'clas', '--epochs', 1)[0] == 0


def test_tables_whose_names_are_in_capitals(tmp_path, shell):
    "Are tables too: their commas and labels are no text to learn."
    frame.to_csv(tmp_path / 'A.CSV', index=False)
    status,out,err = shell('train-lm', '--data', tmp_path / 'A.CSV', '--out', tmp_path / 'lm', *few)
    assert (status, err) == (0, '') and '33 + 3 documents' in out and 'pet' not in load_learner(
        tmp_path / 'lm/language_model').dls.vocab


def test_options_reach_the_model(tmp_path, shell):
    write(tmp_path, a=texts)
    out = tmp_path / 'out'
    options = ['--backwards', '--lang', 'de', '--max-vocab', 15, '--seed', 3, '--drop-mult', 0, '--valid-pct', .5]
    status,said,_ = shell('train-lm', '--data', tmp_path / 'a.txt', '--out', out, *few, *options)
    assert status == 0 and '18 + 18 documents' in said and 'a vocabulary of 15' in said
    learn = load_learner(out / 'language_model')
    assert learn.dls.backwards and learn.dls.tokenizer.word_tok.lang == 'de' and learn.dls.seq_len == 8
    again = shell('train-lm', '--data', tmp_path / 'a.txt', '--out', tmp_path / 'out2', *few, *options)[1]
    figures = lambda said: re.findall(r'perplexity [\d.]+', said)
    assert figures(said) == figures(again) != []                                # the same seed, the same figures


@pytest.mark.parametrize('options,arch,decoder', [
    ('--schedule flat-cos', 'AWD_LSTM', 'softmax'), ('--schedule one-cycle --arch GRU', 'GRU', 'softmax'),
    ('--schedule ntasgd --lr 1 --arch QRNN --decoder mos', 'QRNN', 'mos')])
def test_kinds_of_models_and_of_training(options, arch, decoder, tmp_path, shell):
    write(tmp_path, a=texts)
    argv = ['train-lm', '--data', tmp_path / 'a.txt', '--out', tmp_path / 'out', '--resume', *few, *options.split()]
    status,said,err = shell(*argv)
    assert (status, err) == (0, '')
    config = load_learner(tmp_path / 'out/language_model').config
    assert (config.arch, config.decoder) == (arch, decoder)
    assert ('finetune' in [p.name for p in (tmp_path / 'out/checkpoints').iterdir()]) == ('ntasgd' in options)
    again = shell(*argv)[1]
    figure = re.search(r'valid: perplexity [\d.]+', said)[0]
    assert 'is finished: its result is loaded' in again and figure in again


@pytest.mark.parametrize('options,message', [
    ('--schedule cosine', '--schedule cosine: use one of constant, flat-cos, one-cycle, ntasgd'),
    ('--arch LSTM', "arch='LSTM': use one of"), ('--decoder tree', "decoder='tree': use one of"),
    ('--precision int4', 'int4')])
def test_kinds_that_there_are_not(options, message, tmp_path, shell):
    write(tmp_path, a=texts)
    argv = ['train-lm', '--data', tmp_path / 'a.txt', '--out', tmp_path / 'out', *few, *options.split()]
    refused(shell(*argv), re.escape(message), tmp_path / 'out')


def test_text_that_is_tokenised_already(tmp_path, shell):
    "As WikiText: a token <eos> at each end of a line, an empty one too; evaluation reads the same tokens."
    wiki = [' = Title = ', '', *(f' {text} ' for text in texts), '']
    write(tmp_path, data__train=wiki, data__valid=wiki[:9], data__test=wiki[:12])
    status,out,err = shell('train-lm', '--data', tmp_path / 'data', '--out', tmp_path / 'out', '--tokenized', *few[:4])
    assert (status, err) == (0, '')
    n = sum(len(line.split()) + 1 for line in wiki[:12]) - 1
    test = re.search(rf'^test: perplexity ([\d.]+) over {n} tokens', out, re.M)
    model = tmp_path / 'out/language_model.safetensors'
    said = shell('evaluate', model, tmp_path / 'data/test.txt')[1]
    assert said.startswith(f'perplexity {test[1]}, ') and f', {n} tokens in one stream' in said
    assert read_bundle(model)['vocab'].count('<eos>') == 1
    status,out,err = shell('generate', model, '--n-texts', 2, '--n-words', 5)   # begins after an <eos>
    assert (status, err) == (0, '') and len(out.splitlines()) == 2
    assert shell('predict', model, 'The cat')[1].startswith('The cat')


def test_one_tokenised_file(tmp_path, shell):
    "Its lines are split at random."
    write(tmp_path, a=texts)
    status,out,err = shell('train-lm', '--data', tmp_path / 'a.txt', '--out', tmp_path / 'out', '--tokenized', *few[:4])
    assert (status, err) == (0, '') and '33 + 3 documents' in out


def test_windows_files(tmp_path, shell):
    "Carriage returns and a byte order mark are no part of the text."
    write(tmp_path, a='\n'.join(texts).encode(), b=('\ufeff' + '\r\n'.join(texts)).encode())
    said = [shell('train-lm', '--data', tmp_path / f'{n}.txt', '--out', tmp_path / n, *few)[1] for n in 'ab']
    assert re.findall('perplexity.*', said[0]) == re.findall('perplexity.*', said[1]) != []
    assert shell('evaluate', tmp_path / 'a/language_model', tmp_path / 'a.txt')[1] == shell(
        'evaluate', tmp_path / 'a/language_model', tmp_path / 'b.txt')[1]


def test_results_replace_older_ones_and_leave_other_files_alone(tmp_path, shell):
    write(tmp_path, a=texts, out__mine=['keep'])
    argv = ['train-lm', '--data', tmp_path / 'a.txt', '--out', tmp_path / 'out', *few]
    assert shell(*argv)[0] == 0
    before = (tmp_path / 'out/encoder.safetensors').read_bytes()
    status,out,_ = shell(*argv, '--seed', 1)
    assert status == 0 and 'mine' not in out and (tmp_path / 'out/encoder.safetensors').read_bytes() != before
    assert (tmp_path / 'out/mine.txt').read_text() == 'keep\n'


# Training a classifier, and using it

def test_classifier_without_encoder(tmp_path, shell):
    write(tmp_path, a=frame)
    status,out,err = shell('train-classifier', '--data', tmp_path / 'a.csv', '--out', tmp_path / 'out', '--epochs', 2)
    assert (status, err) == (0, '') and 'accuracy' in out and '2 labels' in out and '\r' not in out
    assert sorted(p.suffix for p in (tmp_path / 'out').glob('classifier.*')) == ['.json', '.png', '.safetensors']


def test_classifier_with_encoder(made, tmp_path, shell):
    encoder = made / 'lm/encoder.safetensors'
    argv = ['train-classifier', '--data', made / 'labelled.csv', '--encoder', encoder, '--out', tmp_path, '--epochs', 1]
    status,out,err = shell(*argv)
    assert (status, err) == (0, '') and ' words matched, 0 are new.' in out
    assert read_bundle(tmp_path / 'classifier')['vocab'] == read_bundle(made / 'lm/encoder')['vocab']


def test_classifier_reads_as_its_encoder_did(tmp_path, shell):
    write(tmp_path, a=texts, b=frame)
    shell('train-lm', '--data', tmp_path / 'a.txt', '--out', tmp_path / 'lm', '--backwards', '--lang', 'de', *few)
    status,_,err = shell('train-classifier', '--data', tmp_path / 'b.csv', '--encoder', tmp_path / 'lm/encoder',
                         '--out', tmp_path / 'c', '--epochs', 1)
    assert (status, err) == (0, '')
    learn = load_learner(tmp_path / 'c/classifier')
    assert learn.dls.backwards and learn.dls.tokenizer.word_tok.lang == 'de'


def test_classifier_from_folders(tmp_path, shell):
    write(tmp_path, **{f'{part}__{label}__{i}': [text] for i, (text, label) in enumerate(zip(texts, labels))
                       for part in (('valid',) if i % 4 == 0 else ('train',))})
    status,out,err = shell('train-classifier', '--data', tmp_path, '--out', tmp_path / 'out', '--epochs', 1)
    assert (status, err) == (0, '') and '27 + 9 documents' in out


def test_prediction_from_arguments_and_standard_input(made, shell, monkeypatch):
    model = made / 'clas/classifier.safetensors'
    status,out,err = shell('predict', model, 'The cat sat', 'a\nsecond\ttext', '')
    assert (status, err) == (0, '')
    rows = [line.split('\t') for line in out.splitlines()]
    assert [len(row) for row in rows] == [3, 3, 3] and [row[2] for row in rows] == ['The cat sat', 'a second text', '']
    learn = load_learner(model)
    label,idx,probs = learn.predict('The cat sat')
    assert rows[0][:2] == [label, f'{float(probs[idx]):.4f}']
    monkeypatch.setattr('sys.stdin', iter(['The cat sat\n', 'The owl sat\n', '\n', 'no line end']))
    out = shell('predict', model)[1]
    assert len(out.splitlines()) == 4 and out.splitlines()[0] == '\t'.join(rows[0])
    monkeypatch.setattr('sys.stdin', iter(['\ufeffThe cat sat\n', 'The owl sat\n']))      # a byte order mark
    assert shell('predict', model)[1].splitlines()[0] == '\t'.join(rows[0])
    monkeypatch.setattr('sys.stdin', None)                                                 # closed, by <&-
    assert shell('predict', model) == (0, '', '')
    monkeypatch.setattr('sys.stdout', None)                                                # closed, by >&-
    assert main(['predict', str(model), 'The cat sat']) == 0


def said_of(learn, row, *texts):
    "The line of a document, by what python says of it."
    label,idx,probs = learn.predict(row)
    return '\t'.join([str(label), f'{float(probs[idx]):.4f}', *texts])


def test_prediction_of_a_table(made, tmp_path, shell):
    "The rows as python has them, in their order."
    model,rows = made / 'clas/classifier.safetensors', [texts[3], 'The owl\nsat', 'sat ' * 9, texts[20]]
    write(tmp_path, a=pd.DataFrame({'n': range(4), 'text': rows}), b=pd.DataFrame({'body': rows}))
    learn = load_learner(model)
    expected = [said_of(learn, row, ' '.join(row.split())) for row in rows]
    for options in (['a.csv'], ['b.csv', '--text-col', 'body']):
        status,out,err = shell('predict', model, '--data', tmp_path / options[0], *options[1:])
        assert (status, err, out.splitlines()) == (0, '', expected)


def test_predictions_in_another_precision(made, tmp_path, shell, monkeypatch):
    "Of texts, of a table and of an ensemble; what the machine lacks is told once, beside the answers."
    model,asked = made / 'clas/classifier.safetensors', []
    def read(learn, precision): return asked.append(precision) or usual(learn, precision)
    usual = text_learner._for_prediction
    monkeypatch.setattr(text_learner, '_for_prediction', read)
    learn = load_learner(model)
    both = Ensemble([learn, learn]).export(tmp_path / 'both')
    monkeypatch.setattr(precision, 'can_int8', lambda: True)
    for file, n in ((model, 1), (both, 2)):
        for argv, n_read in (([texts[0], texts[1]], 2), (['--data', made / 'labelled.csv'], 1)):
            asked.clear()
            plain = shell('predict', file, *argv)
            assert asked == [None] * n * n_read
            asked.clear()
            status,out,err = shell('predict', file, *argv, '--precision', 'int8')
            assert (status, err, asked) == (0, '', ['int8'] * n * n_read)
            assert [line.split('\t')[2] for line in out.splitlines()] == [
                line.split('\t')[2] for line in plain[1].splitlines()]
    monkeypatch.setattr(precision, 'can_int8', lambda: False)
    said = shell('predict', both, texts[0], texts[1], '--precision', 'int8')
    assert said[:2] == shell('predict', both, texts[0], texts[1])[:2]
    assert said[2] == ('Precision int8 needs hardware that this machine (cpu) lacks: predictions are made in '
                       'float32.\n')
    refused(shell('predict', model, texts[0], '--precision', 'int4'), "precision='int4': use 'fp32', 'fp16', 'bf16'")
    refused(shell('predict', made / 'lm/language_model', 'The', '--precision', 'bf16'), '--precision is for classif')


titles = ['1. About pets', 'News', 'From the farm']
fielded = pd.DataFrame({'title': [titles[i % 3] for i in range(36)], 'body': texts, 'label': labels})


@pytest.mark.parametrize('command', ['train-classifier', 'ulmfit'])
def test_several_text_columns(command, tmp_path, shell):
    "Trained, evaluated and used by the shell; each answer is python's for the dict."
    new = fielded[['body', 'title']][::5].iloc[::-1]                           # another order, of columns and of rows
    write(tmp_path, a=fielded, new=new, renamed=new.rename(columns={'title': 'headline', 'body': 'content'}))
    own = ['--labelled', tmp_path / 'a.csv', '--config', 'small', '--lm-epochs', 1, '--direction', 'both']
    own = own if command == 'ulmfit' else ['--data', tmp_path / 'a.csv', '--epochs', 1]
    status,_,err = shell(command, *own, '--text-col', 'title,body', '--out', tmp_path / 'out')
    assert (status, err) == (0, '')
    model = tmp_path / 'out/classifier'
    learn = load_learner(model)
    parts = getattr(learn, 'parts', [learn])
    assert [part.dls.fields for part in parts] == [['title', 'body']] * (2 if command == 'ulmfit' else 1)
    expected = [said_of(learn, {'title': t, 'body': b}, t, b) for t, b in zip(new['title'], new['body'])]
    for options in (['new.csv'], ['renamed.csv', '--text-col', 'headline,content']):
        status,out,err = shell('predict', model, '--data', tmp_path / options[0], *options[1:])
        assert (status, err, out.splitlines()) == (0, '', expected)
    swapped = shell('predict', model, '--data', tmp_path / 'new.csv', '--text-col', 'body,title')[1]
    assert [line.split('\t')[1] for line in swapped.splitlines()] != [line.split('\t')[1] for line in expected]
    right = sum(learn.predict(row)[0] == row['label'] for row in fielded.to_dict('records'))
    assert f'accuracy {right / 36:.4f}, 36 documents' in shell('evaluate', model, tmp_path / 'a.csv')[1]
    marked = f'xxfld 1 {titles[0]} xxfld 2 {texts[0]}'
    assert shell('predict', model, marked)[1].split('\t')[:2] == said_of(learn, marked).split('\t')


@pytest.mark.parametrize('command', ['train-classifier', 'ulmfit'])
def test_names_with_commas(command, tmp_path, shell):
    "Columns and labels are quoted as in a CSV."
    odd = fielded.rename(columns={'title': 'a, "b"', 'body': 'c'})
    odd['label'] = odd['label'].replace({'pet': 'pet, or so'})
    write(tmp_path, a=odd)
    own = ['--labelled', tmp_path / 'a.csv', '--config', 'small', '--lm-epochs', 1]
    own = own if command == 'ulmfit' else ['--data', tmp_path / 'a.csv', '--epochs', 1]
    columns = (tmp_path / 'a.csv').read_text().splitlines()[0].removesuffix(',label')
    status,_,err = shell(command, *own, '--text-col', columns, '--class-weights', '"pet, or so=4",wild=.5',
                         '--out', tmp_path / 'out')
    assert (status, err) == (0, '')
    learn = load_learner(tmp_path / 'out/classifier')
    assert learn.dls.fields == ['a, "b"', 'c'] and learn.loss_func.settings['weight'] == [4., .5]
    said = shell('predict', tmp_path / 'out/classifier', '--data', tmp_path / 'a.csv')
    assert said == shell('predict', tmp_path / 'out/classifier', '--data', tmp_path / 'a.csv', '--text-col', columns)
    assert said[0] == 0 and len(said[1].splitlines()) == 36
    for text, message in {'"a, b': 'unexpected end of data. Quote as', '': 'leaves something out',
                          'c,': 'something out', 'a, "b",c': "no column 'a'"}.items():
        refused(shell(command, *own, '--text-col', text, '--out', tmp_path / 'no'), message, tmp_path / 'no')
    refused(shell(command, *own, '--text-col', columns, '--class-weights', 'x', '--out', tmp_path / 'no'),
            'use balanced, or .*: "pet, or so=1",wild=1', tmp_path / 'no')


def test_a_language_model_of_several_text_columns(tmp_path, shell):
    "Trained and evaluated as python does; its encoder knows every word of a classifier of the same columns, marks too."
    write(tmp_path, a=fielded, new=fielded[['body', 'title']][::5])
    argv = ['train-lm', '--data', tmp_path / 'a.csv', '--text-col', 'title,body', '--out', tmp_path / 'lm', *few]
    status,_,err = shell(*argv)
    assert (status, err) == (0, '')
    learn = load_learner(tmp_path / 'lm/language_model')
    assert learn.dls.fields == ['title', 'body'] and 'xxfld' in learn.dls.vocab
    marked = [f'xxfld 1 {t} xxfld 2 {b}' for t, b in zip(fielded['title'][::5], fielded['body'][::5])]
    assert f'perplexity {learn.evaluate(marked).perplexity:.2f}, ' in shell(
        'evaluate', tmp_path / 'lm/language_model', tmp_path / 'new.csv')[1]
    seed_all(42)
    dls = TextDataLoaders.from_df(fielded, text_col=['title', 'body'], valid_pct=.1, is_lm=True, seed=42, min_freq=1)
    assert learn.dls.vocab == dls.vocab
    status,out,err = shell('train-classifier', '--data', tmp_path / 'a.csv', '--text-col', 'title,body', '--epochs', 1,
                           '--encoder', tmp_path / 'lm/encoder', '--out', tmp_path / 'clas')
    assert (status, err) == (0, '') and ' words matched, 0 are new.' in out
    assert shell('predict', tmp_path / 'clas/classifier', '--data', tmp_path / 'new.csv')[0] == 0
    refused(shell(*argv[:4], 'title,none', *argv[5:]), "no column 'none': the columns are 'title', 'body', 'label'")
    refused(shell('tune', *argv[1:4], 'title,none', '--out', tmp_path / 'study'), "no column 'none'")


@pytest.mark.parametrize('command', ['train-classifier', 'ulmfit'])
def test_words_that_pandas_takes_for_nothing(command, tmp_path, shell):
    "Are classes and texts like others; what is empty is missing."
    odd = pd.DataFrame({'text': ['null', 'nan', *texts], 'label': ['None', 'NA', *labels]})
    odd['label'] = odd['label'].replace({'pet': 'NA', 'wild': 'None'})
    write(tmp_path, a=odd)
    own = ['--labelled', tmp_path / 'a.csv', '--config', 'small', '--lm-epochs', 1]
    own = own if command == 'ulmfit' else ['--data', tmp_path / 'a.csv', '--epochs', 1]
    status,out,err = shell(command, *own, '--out', tmp_path / 'out')
    assert (status, err) == (0, '') and 'without a label' not in out
    model = tmp_path / 'out/classifier'
    assert load_learner(model).dls.categories == ['NA', 'None']
    answers = shell('predict', model, '--data', tmp_path / 'a.csv')[1].splitlines()
    assert [line.split('\t')[2] for line in answers] == odd['text'].tolist()
    assert '38 documents' in shell('evaluate', model, tmp_path / 'a.csv')[1]
    write(tmp_path, lm=odd[['text']])
    assert '35 + 3 documents' in shell('train-lm', '--data', tmp_path / 'lm.csv', '--out', tmp_path / 'lm', *few)[1]


def test_answers_stay_beside_the_lines_of_a_table(made, tmp_path, shell):
    (tmp_path / 'a.csv').write_text(f'text\n{texts[0]}\n\n{texts[9]}\n\n')
    status,out,_ = shell('predict', made / 'clas/classifier', '--data', tmp_path / 'a.csv')
    assert (status, [line.split('\t')[2] for line in out.splitlines()]) == (0, [texts[0], '', texts[9]])


@pytest.mark.parametrize('text_col', ['body', 'text'])
def test_columns_are_asked_of_tables_only(text_col, made, tmp_path, shell):
    write(tmp_path, **folders, b=texts, c__train=texts, c__valid=texts[:9])
    both,out = ['--text-col', text_col, '--out', tmp_path / 'out'], tmp_path / 'out'
    for argv in ([name, '--data', tmp_path / data, *both] for name, data in (
            ('train-lm', 'a'), ('train-lm', 'b.txt'), ('train-lm', 'c'), ('tune', 'b.txt'), ('train-classifier', 'a'))):
        refused(shell(*argv), f'--text-col {text_col} is of a CSV, and .* is none: leave it out', out)
    said = shell('evaluate', made / 'lm/language_model', tmp_path / 'b.txt', '--text-col', text_col)
    refused(said, 'is of a CSV, and .*b.txt is none')


def test_tables_that_cannot_be_predicted(made, tmp_path, shell):
    dls = TextDataLoaders.from_df(fielded, text_col=['title', 'body'], label_col='label', bs=4, tok_tfm=BaseTokenizer())
    text_classifier_learner(dls, config=size, path=tmp_path).export('two')
    write(tmp_path, a=fielded, none=fielded[:0], gap=fielded.assign(title=[None, *fielded['title'][1:]]))
    two,one,a = tmp_path / 'two', made / 'clas/classifier', tmp_path / 'a.csv'
    for argv, message in {
            (two, texts[0]): r"reads the columns 'title', 'body': give it a CSV that has them, with --data",
            (two, '--data', made / 'labelled.csv'): "no column 'title'; it has 'text', 'label'",
            (two, '--data', a, '--text-col', 'title,body,label'): "names 3 columns: this model reads 'title'",
            (two, '--data', a, '--text-col', 'body'): 'Give a dict or a row',
            (two, '--data', tmp_path / 'gap.csv'): 'the text of row 0 is missing',
            (two, '--data', tmp_path / 'none.csv'): 'has no rows',
            (two, '--data', 'nothing.csv'): 'no file nothing.csv',
            (one, '--data', a, '--text-col', 'title,body'): 'names 2 columns: this model reads one',
            (one, 'a text', '--data', a): 'and not both',
            (one, '--text-col', 'a'): 'name one with --data',
            (made / 'lm/language_model', '--data', a): '--data is for classifiers'}.items():
        refused(shell('predict', *argv), message)


@pytest.mark.parametrize('command', ['train-classifier', 'ulmfit'])
@pytest.mark.parametrize('kinds', [['pet', 'wild'], [1, 22]], ids=str)
def test_class_weights(command, kinds, tmp_path, shell):
    rare = frame.assign(label=[kinds[label == 'wild'] for label in labels])
    write(tmp_path, a=rare)
    own = ['--labelled', tmp_path / 'a.csv', '--config', 'small', '--lm-epochs', 1]
    own = own if command == 'ulmfit' else ['--data', tmp_path / 'a.csv', '--epochs', 1]
    status,_,err = shell(command, *own, '--out', tmp_path / 'a', '--class-weights', f'{kinds[1]}=.5, {kinds[0]}=4')
    assert (status, err) == (0, '')
    assert load_learner(tmp_path / 'a/classifier').loss_func.settings['weight'] == [4., .5]
    assert shell(command, *own, '--out', tmp_path / 'b', '--class-weights', 'balanced')[0] == 0
    balanced = load_learner(tmp_path / 'b/classifier').loss_func.settings['weight']
    assert balanced[0] > 1 > balanced[1] > 0
    for bad, message in {'equal': 'use balanced, or a weight for each', 'pet': 'use balanced', '3': 'use balanced',
                         f'{kinds[0]}=1,{kinds[0]}=2': 'use balanced', f'{kinds[0]}=1': f'lack {kinds[1]!r}',
                         f'{kinds[0]}=1,{kinds[1]}=0': 'above 0', 'x=1': "name 'x'"}.items():
        refused(shell(command, *own, '--out', tmp_path / 'c', '--class-weights', bad), message, tmp_path / 'c')


def test_a_language_model_continues(made, shell):
    model = made / 'lm/language_model.safetensors'
    status,out,err = shell('predict', model, 'The cat', 'The owl sat')
    assert (status, err) == (0, '') and [line[:7] for line in out.splitlines()] == ['The cat', 'The owl']
    assert out == shell('predict', model, 'The cat', 'The owl sat')[1]
    assert shell('predict', model, '--', '-- a dash')[0] == 0


def test_generated_texts(made, shell):
    model = made / 'lm/language_model.safetensors'
    say = lambda *options: shell('generate', model, '--n-words', 9, *options)
    status,out,err = say('--seed', 1)
    assert (status, err) == (0, '') and len(set(out.splitlines())) == 3
    assert out == say('--seed', 1)[1] != say('--seed', 9)[1]
    assert say('--n-texts', 1, '--seed', 2)[1] == out.splitlines()[1] + '\n'    # text i has the seed `seed + i`
    assert all(line.startswith('The cat') for line in say('--prompt', 'The cat')[1].splitlines())
    assert len(set(say('--temperature', 0)[1].splitlines())) == 1


def test_generated_texts_are_those_of_the_library(made, shell):
    "Every option reaches it."
    model = made / 'lm/language_model.safetensors'
    learn = load_learner(model)
    common = ['--prompt', 'The cat', '--n-words', 9, '--seed', 5]
    def shown(*options): return shell('generate', model, *common, *options)[1]
    drawn = dict(temperature=1.3, top_k=9, top_p=.9, min_p=.01, repetition_penalty=1.5, stop=['.', 'xxbos'],
                 no_unk=False, seed=5)
    options = ['--temperature', 1.3, '--top-k', 9, '--top-p', .9, '--min-p', .01, '--repetition-penalty', 1.5,
               '--stop', '. xxbos', '--unk']
    expected = learn.generate(['The cat'] * 3, 9, **drawn)
    lines = shown(*options).splitlines()
    assert lines == [o.text for o in expected] == shown(*options, '--stream').splitlines()
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        for way in ('generate', 'stream'):
            patch.setattr(LMLearner, way, lambda learn, prompts, n_words, **how: asked.append(how) or [])
        for stream in ([], ['--stream']): shown(*options, *stream)
    assert asked == [drawn, drawn, drawn | {'seed': 6}, drawn | {'seed': 7}]     # all at once, or one after the other
    told = shown(*options, '--logps').splitlines()
    for text, head, tail in zip(expected, told[::2], told[1::2]):
        assert head == f'{text.logp:.4f}\t{text.text}'
        pairs = [pair.rsplit(' ', 1) for pair in tail.split('\t')[1:]]
        assert [(word, float(logp)) for word, logp in pairs] == [
            (word, pytest.approx(logp, abs=1e-4)) for word, logp in zip(text.tokens, text.logps)]
    best = learn.beam_search('The cat', 9, 4, repetition_penalty=1.2, length_penalty=1., stop=['xxbos'])
    search = ['--beam-sz', 4, '--repetition-penalty', 1.2, '--length-penalty', 1, '--stop', 'xxbos']
    assert shown(*search, '--n-texts', 2).splitlines() == [o.text for o in best[:2]]
    assert len(shown(*search, '--n-texts', 9).splitlines()) == 4


def test_texts_of_generate_grow_sixty_four_at_a_time(made, shell, monkeypatch):
    "At a temperature of 0.8, if none is given; each with the seed that it has alone."
    asked = []
    def generate(learn, prompts, n_words, **how): return asked.append((len(prompts), n_words, how)) or []
    monkeypatch.setattr(LMLearner, 'generate', generate)
    shell('generate', made / 'lm/language_model', '--n-texts', 130, '--seed', 3)
    usual = dict(no_unk=True, repetition_penalty=1., stop=[], temperature=.8, top_k=None, top_p=None, min_p=None)
    assert asked == [(n, 50, usual | {'seed': seed}) for n, seed in ((64, 3), (64, 67), (2, 131))]


def test_words_are_shown_as_they_come(made, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(LMLearner, 'stream', lambda learn, *args, **how: (seen.append(capsys.readouterr().out) or piece
                                                                          for piece in ('The', ' cat', ' sat')))
    assert main(['generate', str(made / 'lm/language_model'), '--stream', '--n-texts', '1']) == 0
    assert seen == ['', 'The', ' cat'] and capsys.readouterr().out == ' sat\n'


@pytest.mark.parametrize('options,message', [
    ('--top-k 0', 'top_k=0 must be'), ('--temperature -1', 'temperature=-1.0 must be'),
    ('--top-p 0', 'top_p=0.0 must be above 0'), ('--min-p 2', 'min_p=2.0 must lie between 0 and 1'),
    ('--repetition-penalty .5', 'repetition_penalty=0.5 must be at least 1'),
    ('--stop STOP', "the stop token 'STOP' is not in the vocabulary"), ('--n-words 0', 'n_words=0: use a whole number'),
    ('--n-texts 0', 'n_texts=0: use a whole number'), ('--beam-sz 0', 'beam_sz=0: use a whole number'),
    ('--beam-sz 2 --length-penalty -1', 'length_penalty=-1.0 must be 0 or more'),
    ('--beam-sz 2 --top-p .5', 'searches and draws nothing: leave out --top-p'),
    ('--beam-sz 2 --temperature 1', 'leave out --temperature'), ('--beam-sz 2 --stream', 'leave out --stream'),
    ('--length-penalty 1', 'give --beam-sz too'), ('--logps --stream', 'leave out --stream')])
def test_texts_that_cannot_be_generated(options, message, made, shell):
    said = shell('generate', made / 'lm/language_model', *options.split())
    refused(said, message)
    assert said[1] == ''


# Subwords and characters

@pytest.mark.parametrize('tokens,unit', [('subwords', 'subwords'), ('chars', 'characters')])
def test_other_tokens_than_words(tokens, unit, tmp_path, shell):
    write(tmp_path, a=texts, b=frame)
    options = ['--tokens', tokens, *(['--max-vocab', 320] if tokens == 'subwords' else [])]
    argv = ['train-lm', '--data', tmp_path / 'a.txt', '--out', tmp_path / 'lm', *few, *options]
    status,out,err = shell(*argv)
    assert (status, err) == (0, '')
    learn = load_learner(tmp_path / 'lm/language_model')
    assert learn.dls.tokenizer.unit == unit and len(learn.dls.vocab) < 340
    learn.score(texts)                                                           # the words can be spelt
    assert shell('generate', tmp_path / 'lm/language_model', '--prompt', 'The c')[1].startswith('The c')
    assert shell('evaluate', tmp_path / 'lm/language_model', tmp_path / 'a.txt')[0] == 0
    clas = ['train-classifier', '--data', tmp_path / 'b.csv', '--epochs', 1]
    assert shell(*clas, '--out', tmp_path / 'c', '--encoder', tmp_path / 'lm/encoder')[0] == 0
    if tokens == 'chars': assert shell(*clas, '--out', tmp_path / 'd', '--tokens', tokens)[0] == 0
    for folder in 'cd'[:1 + (tokens == 'chars')]:
        assert load_learner(tmp_path / folder / 'classifier').dls.tokenizer.unit == unit
        assert shell('predict', tmp_path / folder / 'classifier', texts[0])[0] == 0


def test_ulmfit_on_characters_in_both_directions(tmp_path, shell):
    "And what the shell does with an ensemble."
    write(tmp_path, a=frame)
    write(tmp_path, b=[f'{text} And\u2028more\x0c.' for text in texts])           # which end no line
    argv = ['ulmfit', '--labelled', tmp_path / 'a.csv', '--out', tmp_path / 'out', '--config', 'small',
            '--texts', tmp_path / 'b.txt']
    status,out,err = shell(*argv, '--lm-epochs', 1, '--tokens', 'chars', '--direction', 'both', '--pseudo-labels', 8)
    assert (status, err) == (0, '') and out.count('with labels of what was there before') == 2
    n_labelled = int(re.search(r'(\d+) labelled documents for training', out)[1])
    assert sum(map(int, re.search(r'(\d+) \+ (\d+) texts for the language model', out).groups())) == n_labelled + 36
    model = tmp_path / 'out/classifier'
    learn = load_learner(model)
    assert {part.dls.tokenizer.unit for part in learn.parts} == {'characters'}
    assert {part.dls.backwards for part in learn.parts} == {False, True}
    status,out,err = shell('evaluate', model, tmp_path / 'a.csv')
    right = sum(learn.predict(t)[0] == l for t, l in zip(texts, labels))
    assert (status, err) == (0, '') and f'accuracy {right / 36:.4f}, 36 documents' in out
    assert shell('predict', model, texts[0])[0] == 0
    refused(shell('generate', model), 'is a classifier; generate needs a language model')


def test_several_language_models_score_and_write(made, tmp_path, shell):
    learn = load_learner(made / 'lm/language_model')
    both = LMEnsemble([learn, learn]).export(tmp_path / 'both')
    assert shell('evaluate', both, made / 'text.txt')[1].startswith(f'perplexity {learn_score(learn):.2f}, ')
    for argv in (['generate', '--n-texts', 2, '--n-words', 6, '--seed', 3], ['predict', 'red paint']):
        says = [shell(argv[0], model, *argv[1:]) for model in (made / 'lm/language_model', both)]
        assert says[0] == says[1] and says[0][0] == 0, "the mean of the same is the same"


def test_models_of_two_directions_do_not_write(made, tmp_path, shell):
    learn = load_learner(made / 'lm/language_model')
    other = load_learner(made / 'lm/language_model')
    other.dls.backwards = True
    both = LMEnsemble([learn, other]).export(tmp_path / 'both')
    for name, text in (('generate', '--prompt=red'), ('predict', 'red')):
        refused(shell(name, both, text), 'a forward and a backward model cannot write together')


def learn_score(learn): return LMEnsemble([learn, learn]).evaluate(texts).perplexity


@pytest.mark.parametrize('command', ['train-lm', 'ulmfit'])
def test_without_sentencepiece_it_is_said_what_to_install(command, tmp_path, shell, monkeypatch):
    monkeypatch.setitem(sys.modules, 'sentencepiece', None)
    write(tmp_path, a=frame)
    data = '--data' if command == 'train-lm' else '--labelled'
    refused(shell(command, data, tmp_path / 'a.csv', '--out', tmp_path / 'out', '--tokens', 'subwords'),
            r"Subwords need sentencepiece: pip install 'awdtext\[subwords\]'", tmp_path / 'out')


@pytest.mark.parametrize('command', ['train-lm', 'tune', 'train-classifier', 'ulmfit'])
def test_tokens_that_there_are_not(command, tmp_path, shell):
    write(tmp_path, a=frame)
    data = '--labelled' if command == 'ulmfit' else '--data'
    argv = [command, data, tmp_path / 'a.csv', '--out', tmp_path / 'out', '--tokens']
    refused(shell(*argv, 'letters'), '--tokens letters: use words, subwords or chars', tmp_path / 'out')


def test_evaluation_of_a_classifier(made, tmp_path, shell):
    "Loss and accuracy, then what scikit-learn says of each class, and the calibration error of ten bins."
    model,some = made / 'clas/classifier.safetensors', slice(7, 17)                              # five of each
    write(tmp_path, a=frame[some], b=frame.rename(columns={'text': 'body', 'label': 'kind'}))
    status,out,err = shell('evaluate', model, tmp_path / 'a.csv')
    learn = load_learner(model)
    probs = torch.stack([learn.predict(text)[2] for text in texts[some]])
    targs = torch.tensor([learn.dls.categories.index(label) for label in labels[some]])
    conf,right = probs.amax(1), (probs.argmax(1) == targs).float()
    assert (status, err) == (0, '') and f'accuracy {right.mean():.4f}, 10 documents' in out
    report = classification_report(targs, probs.argmax(1), labels=[0, 1], zero_division=0, output_dict=True)
    for i, name in enumerate(['pet', 'wild']):
        row = report[str(i)]
        figures = [f'{row[key]:.3f}' for key in ('precision', 'recall', 'f1-score')]
        assert out.splitlines()[3 + i].split() == [name, *figures, '5']
    bins = (conf * 10).ceil()
    ece = sum((conf - right)[bins == b].sum().abs() for b in bins.unique()) / 10
    assert out.splitlines()[-1] == f'expected calibration error {ece:.4f}'
    assert shell('evaluate', model, tmp_path / 'b.csv', '--text-col', 'body', '--label-col', 'kind')[0] == 0


def test_evaluation_of_a_language_model_on_a_table(made, tmp_path, shell):
    write(tmp_path, a=frame)
    said = [shell('evaluate', made / 'lm/language_model', file)[1] for file in (tmp_path / 'a.csv', made / 'text.txt')]
    assert said[0] == said[1] != ''


@pytest.mark.parametrize('kinds', [[1, 22], [0.5, 1.5], [True, False], ['1', 'x']])
def test_labels_of_any_type_make_the_round(kinds, tmp_path, shell):
    write(tmp_path, a=frame.assign(label=kinds * 18), one=frame.assign(label=kinds * 18)[0:36:2])
    shell('train-classifier', '--data', tmp_path / 'a.csv', '--out', tmp_path, '--epochs', 1)
    model = tmp_path / 'classifier'
    says = load_learner(model).predict(texts[0])[0]
    assert type(says) is type(kinds[0]) and shell('predict', model, texts[0])[1].split('\t')[0] == str(says)
    for name in ('a', 'one'): assert shell('evaluate', model, tmp_path / f'{name}.csv')[0] == 0, name


def test_several_labels(tmp_path, shell):
    write(tmp_path, a=frame.assign(label=[f'{l}|{"far" if i % 3 else "near"}' for i, l in enumerate(labels)]))
    delim = ['--label-delim', '|']
    status,out,err = shell('train-classifier', '--data', tmp_path / 'a.csv', '--out', tmp_path, '--epochs', 1, *delim)
    assert (status, err) == (0, '') and '4 labels' in out and 'accuracy_multi' in out
    learn = load_learner(tmp_path / 'classifier')
    several = [[label, 'far' if i % 3 else 'near'] for i, label in enumerate(labels)]
    status,out,err = shell('evaluate', tmp_path / 'classifier', tmp_path / 'a.csv', *delim)
    assert (status, err) == (0, '') and 'accuracy_multi' in out
    assert repr(learn.class_report(dl=learn.dls.test_dl(texts, several))) in out and out.endswith(
        f'expected calibration error {learn.calibration(dl=learn.dls.test_dl(texts, several)).ece:.4f}\n')
    names,mask,probs = learn.predict(texts[0])
    expected = ['; '.join(names) or '-', '; '.join(f'{p:.4f}' for p in probs[mask].tolist()) or '-', texts[0]]
    assert shell('predict', tmp_path / 'classifier', texts[0])[1].rstrip('\n').split('\t') == expected
    assert 'give lists, or label_delim' in shell('evaluate', tmp_path / 'classifier', tmp_path / 'a.csv')[2]
    learn.thresholds = torch.ones(4)                                                       # which nothing is above
    assert shell('predict', learn.export(tmp_path / 'none'), texts[0])[1] == f'-\t-\t{texts[0]}\n'
    said = shell('evaluate', tmp_path / 'none', tmp_path / 'a.csv', *delim)[1]
    assert [line.split()[1:4] for line in said.splitlines()[3:7]] == [['0.000'] * 3] * 4
    write(tmp_path, b=frame.assign(label=[f'{l} | {"far" if i % 3 else "near"}|' for i, l in enumerate(labels)]))
    assert shell('evaluate', tmp_path / 'classifier', tmp_path / 'b.csv', *delim) == (status, out, err)
    write(tmp_path, c=frame.assign(label=range(36)))
    refused(shell('evaluate', tmp_path / 'classifier', tmp_path / 'c.csv', *delim), "the label '0' of row 0 is not")


def test_numbers_as_labels_stay_what_they_are_beside_rows_without(tmp_path, shell):
    write(tmp_path, a=frame.assign(label=pd.array([i % 2 if i % 6 else None for i in range(36)], dtype='Int64')))
    argv = ['--out', tmp_path / 'out', '--config', 'small', '--lm-epochs', 1]
    status,out,err = shell('ulmfit', '--labelled', tmp_path / 'a.csv', *argv)
    assert (status, err) == (0, '') and '6 labelled rows without a label' in out
    assert load_learner(tmp_path / 'out/classifier').dls.categories == [0, 1]
    assert shell('predict', tmp_path / 'out/classifier', texts[0])[1][:2] in ('0\t', '1\t')


def test_models_that_only_python_makes(tmp_path, shell):
    "A regression, and a classifier of token lists, can be used from the shell."
    dls = TextDataLoaders.from_texts(texts, [float(len(t)) for t in texts], y_block=RegressionSetup, bs=4,
                                     tok_tfm=BaseTokenizer())
    text_classifier_learner(dls, config=size, path=tmp_path).export('numbers')
    write(tmp_path, a=frame.assign(label=[len(t) for t in texts]))
    status,out,err = shell('predict', tmp_path / 'numbers', texts[0])
    assert (status, err) == (0, '') and isinstance(float(out.split('\t')[0]), float)
    assert shell('evaluate', tmp_path / 'numbers', tmp_path / 'a.csv')[1].endswith('36 documents\n')
    write(tmp_path, gap=frame.assign(label=[None, *(len(t) for t in texts[1:])]))
    refused(shell('evaluate', tmp_path / 'numbers', tmp_path / 'gap.csv'), 'the label of row 0 is missing')
    docs = [text.split() for text in texts]
    dls = TextDataLoaders.from_tokens(docs, docs[:9], bs=4)
    language_model_learner(dls, config=size, path=tmp_path).export('tokens')
    write(tmp_path, b=texts)
    out = shell('evaluate', tmp_path / 'tokens', tmp_path / 'b.txt')[1]
    assert out.endswith(f'{36 * 7 - 1} tokens in one stream\n')
    assert shell('predict', tmp_path / 'tokens', 'The cat')[1].startswith('The cat ')


# Errors

def refused(said, message, out=None):
    status,_,err = said
    assert status == 1 and len(err.splitlines()) == 1, said
    assert err.startswith('awdtext ') and re.search(message, err), err
    assert out is None or not out.exists()


lm_problems = {
    'no such file': ({}, ['--data', 'nothing.txt'], 'FileNotFoundError: There is no file or folder nothing.txt'),
    'no such column': (dict(a=frame), ['--text-col', 'body'], "no column 'body': the columns are 'text', 'label'"),
    'empty table': (dict(a=frame[:0]), [], r'0 document\(s\) cannot be split'),
    'one row': (dict(a=frame[:1]), [], r'1 document\(s\) cannot be split into training and validation'),
    'missing text': (dict(a=frame.assign(text=[None, *texts[1:]])), [], 'the text of row 0 is missing'),
    'numbers': (dict(a=frame.assign(text=range(36))), [], r'the text of row 0 is 0 \(int\), not a string'),
    'empty file': (dict(a=b''), [], r'0 document\(s\) cannot be split'),
    'blank lines': (dict(a=b'\n \n\n'), [], r'0 document\(s\) cannot be split'),
    'empty part': (dict(a__train=texts, a__valid=b''), [], 'the validation part is empty'),
    'not utf-8': (dict(a='\n'.join(texts).encode('utf-16')), [], r'a\.txt is not UTF-8 text'),
    'not even text': (dict(a=bytes(range(256)) * 9), [], 'is not UTF-8 text'),
    'folder without texts': (dict(a__b=frame), [], r'there is no \*\.txt file in'),
    'unknown language': (dict(a=texts), ['--lang', 'xx-yy'], 'xx-yy'),
    'no rows in a batch': (dict(a=texts), ['--bs', 0], 'bs=0: use a whole number, 1 or more'),
    'no window': (dict(a=texts), ['--seq-len', 0], 'seq_len=0: use a whole number, 1 or more'),
    'no epoch': (dict(a=texts), ['--epochs', 0], 'epochs=0: use a whole number, 1 or more'),
    'no such preset': (dict(a=texts), ['--config', 'huge'], "no preset 'huge': use one of laptop, small, base, paper"),
    'no share': (dict(a=texts), ['--valid-pct', 1.5], 'valid_pct=1.5: use a share between 0 and 1'),
    'no vocabulary': (dict(a=texts), ['--max-vocab', 2], 'max_vocab=2 leaves no room'),
    'too few subwords': (dict(a=texts), ['--tokens', 'subwords', '--max-vocab', 99], 'vocab_sz=99: use 300 or more'),
    'tokenised subwords': (dict(a=texts), ['--tokens', 'subwords', '--tokenized'], 'leave out --tokens subwords'),
    'too few for clusters': (dict(a=texts), ['--decoder', 'adaptive'], 'too small for the usual cutoffs'),
    'tokenised table': (dict(a=frame), ['--tokenized'], '--tokenized is for text files'),
    'rate too high': (dict(a=texts), ['--lr', 1e30], r'The loss became (nan|inf) in epoch 0.*Use a lower rate'),
}


@pytest.mark.parametrize('problem', lm_problems)
def test_language_models_that_cannot_be(problem, tmp_path, shell):
    files,options,message = lm_problems[problem]
    write(tmp_path, **files)
    data = next((p for p in tmp_path.iterdir()), tmp_path)
    out = tmp_path / 'deep/out'
    refused(shell('train-lm', '--data', data, '--out', out, *few, *options), message, out.parent)


folders = {f'a__{part}__{label}__{i}': [text] for part in ('train', 'valid')
           for i, (text, label) in enumerate(zip(texts[::4], labels[::4]))}
clas_problems = {
    'no such column': (dict(a=frame), ['--label-col', 'y'], "no column 'y': the columns are 'text', 'label'"),
    'missing label': (dict(a=frame.assign(label=[None, *labels[1:]])), [], 'the label of row 0 is missing'),
    'one label': (dict(a=frame.assign(label='pet')), [], "all labels are 'pet': a classifier needs two"),
    'label only in validation': (folders | {'a__valid__new__1': texts[:1]}, [],
                                 "the label 'new' of row .* is not among the categories of the training part: 'pet', "),
    'missing text': (dict(a=frame.assign(text=[*texts[:-1], None])), [], 'the text of row 35 is missing'),
    'one row': (dict(a=frame[:1]), [], 'cannot be split'),
    'empty file': (dict(a__b=frame), ['--data', os.devnull], 'No columns to parse'),
    'folder without texts': (dict(a__b=frame), [], r'there is no \*\.txt file in'),
    'no such encoder': (dict(a=frame), ['--encoder', 'nothing'], 'There is no file nothing.safetensors'),
    'no documents in a batch': (dict(a=frame), ['--bs', 0], 'bs=0: use a whole number'),
    'one document in a batch': (dict(a=frame), ['--bs', 1], 'batch normalisation needs two'),
    'unknown language': (dict(a=frame), ['--lang', 'xx-yy'], 'xx-yy'),
    'no such preset': (dict(a=frame), ['--config', 'huge'], "no preset 'huge'"),
}


@pytest.mark.parametrize('problem', clas_problems)
def test_classifiers_that_cannot_be(problem, tmp_path, shell):
    files,options,message = clas_problems[problem]
    write(tmp_path, **files)
    data = next(p for p in tmp_path.iterdir())
    out = tmp_path / 'out'
    refused(shell('train-classifier', '--data', data, '--out', out, *options), message, out)


def test_a_rate_too_high_for_a_classifier(tmp_path, shell):
    write(tmp_path, a=frame)
    data = next(p for p in tmp_path.iterdir())
    # epochs before the loss broke may have left their model
    said = shell('train-classifier', '--data', data, '--out', tmp_path / 'out', '--lr', 1e30)
    refused(said, r'The loss became (nan|inf)')


def test_encoders_that_are_none(made, tmp_path, shell):
    (tmp_path / 'text.safetensors').write_text('nothing of ours')
    for file, message in ((tmp_path / 'text', 'is damaged or no awdtext file'),
                          (made / 'lm/language_model', "kind 'language_model', but one of kind 'encoder' is needed")):
        out = tmp_path / 'out'
        argv = ['--data', made / 'labelled.csv', '--encoder', file, '--out', out]
        refused(shell('train-classifier', *argv), message, out)


def test_models_and_data_that_cannot_be_used(made, tmp_path, shell):
    lm,clas = made / 'lm/language_model.safetensors',made / 'clas/classifier.safetensors'
    write(tmp_path, bare=frame[['text']], odd=frame.assign(label='odd'), gone=frame.assign(label=[None, *labels[1:]]),
          none=frame[:0], latin='Zoë'.encode('latin-1'), empty=b'', model=b'not ours')
    for argv, message in [
            (['evaluate', tmp_path / 'nothing', made / 'text.txt'], 'There is no file .*nothing.safetensors'),
            (['evaluate', tmp_path / 'model.txt', made / 'text.txt'], 'There is no file .*model.txt.safetensors'),
            (['evaluate', made / 'lm/encoder', made / 'text.txt'], "kind 'encoder', but one of kind 'language_model'"),
            (['evaluate', lm, tmp_path / 'nothing.txt'], 'There is no file .*nothing.txt'),
            (['evaluate', lm, tmp_path], 'There is no file'),
            (['evaluate', lm, tmp_path / 'latin.txt'], 'latin.txt is not UTF-8 text'),
            (['evaluate', lm, tmp_path / 'empty.txt'], 'nothing to read|no text'),
            (['evaluate', clas, tmp_path / 'nothing.csv'], 'There is no file .*nothing.csv'),
            (['evaluate', clas, tmp_path / 'bare.csv'], "bare.csv has no column 'label'; it has 'text'"),
            (['evaluate', clas, tmp_path / 'odd.csv'], "the label 'odd' of row 0 is not among the categories"),
            (['evaluate', clas, tmp_path / 'gone.csv'], 'the label of row 0 is missing'),
            (['evaluate', clas, made / 'labelled.csv', '--label-delim', ';'], r"\['pet'\], where one category is"),
            (['evaluate', clas, tmp_path / 'none.csv'], 'nothing to read: there are no documents'),
            (['predict', tmp_path / 'nothing', 'a text'], 'There is no file'),
            (['generate', clas], 'classifier.safetensors is a classifier; generate needs a language model')]:
        refused(shell(*argv), message)


def test_nowhere_to_write(made, tmp_path, shell):
    "Found out before the work is done."
    file = write(tmp_path, a=texts) / 'a.txt'
    for name, data in (('train-lm', file), ('train-classifier', made / 'labelled.csv')):
        for out in (file, file / 'below'):
            refused(shell(name, '--data', data, '--out', out), 'NotADirectoryError: .*a.txt is no folder')
    refused(shell('demo', '--out', file), 'is no folder')
    if sys.platform == 'linux':
        refused(shell('train-lm', '--data', file, '--out', '/proc/1'), 'Nothing can be written to /proc/1')


@pytest.mark.skipif(os.name != 'posix' or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only(tmp_path, shell):
    file = write(tmp_path, a=texts) / 'a.txt'
    (tmp_path / 'out').mkdir(mode=0o500)
    refused(shell('train-lm', '--data', file, '--out', tmp_path / 'out'), 'Nothing can be written to .*out')


def test_where_an_error_came_from_can_be_asked(shell, monkeypatch):
    monkeypatch.setenv('AWDTEXT_DEBUG', '1')
    status,_,err = shell('predict', 'nothing', 'a text')
    assert status == 1 and 'Traceback' in err


# As processes

tiny = (f"import sys, torch; torch.set_num_threads(1)\nfrom awdtext.models.awd_lstm import AWDLSTMConfig, presets\n"
        f"presets['small'] = AWDLSTMConfig(**{size})\nfrom awdtext.training.tracking import TimeLeft\n"
        "TimeLeft.before_train = lambda self, learn: print('begun', learn.epoch, flush=True)\n"
        "from awdtext.cli import main\nsys.exit(main())")


def start(*argv): return subprocess.Popen([sys.executable, '-c', tiny, *map(str, argv)], text=True, encoding='utf-8',
                                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def interrupt(process, epoch):
    "Ctrl-C, in the terminal's way, when `epoch` has begun some time ago; what was said."
    said = []
    for line in process.stdout:
        said.append(line)
        if line == f'begun {epoch}\n': break
    time.sleep(.3)
    os.killpg(process.pid, signal.SIGINT)
    out,err = process.communicate(timeout=60)
    return process.returncode, ''.join(said) + out, err


@pytest.mark.parametrize('epoch', [0, 2])
def test_ctrl_c_leaves_a_model(epoch, tmp_path, shell):
    "Before the first epoch has ended, or later."
    write(tmp_path, data__train=texts * (2 if epoch else 5000), data__valid=texts)
    process = start('train-lm', '--data', tmp_path / 'data', '--tokenized', '--out', tmp_path / 'out',
                    '--epochs', 9999, *few[:4])
    status,out,err = interrupt(process, epoch)
    assert (status, err) == (130, 'awdtext: interrupted.\n')
    said = [line for line in out.splitlines() if 'nterrupt' in line]
    assert len(said) == 1 and re.match(r'Interrupted in epoch \d+\. The model is usable', said[0])
    assert len(list((tmp_path / 'out').iterdir())) == 4 and '\r' not in out
    assert shell('generate', tmp_path / 'out/language_model', '--n-words', 5)[0] == 0


def test_ctrl_c_in_the_training_of_a_classifier(made, tmp_path, shell):
    process = start('train-classifier', '--data', made / 'labelled.csv', '--encoder', made / 'lm/encoder',
                    '--out', tmp_path, '--epochs', 9999)
    status,_,err = interrupt(process, 2)
    assert (status, err) == (130, 'awdtext: interrupted.\n')
    assert shell('predict', tmp_path / 'classifier', texts[0])[0] == 0


def test_nobody_reads_on(made):
    process = start('generate', made / 'lm/language_model', '--n-texts', 100_000, '--n-words', 1)
    process.stdout.readline()
    process.stdout.close()
    with contextlib.closing(process.stderr): err = process.stderr.read()
    assert (process.wait(60), err) == (141, '')


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason="there is no /dev/full")
@pytest.mark.parametrize('argv', ['', '--help', '--version', 'train-lm --help', 'predict MODEL text',
                                  'generate MODEL --stream', 'evaluate MODEL DATA'])
@pytest.mark.parametrize('unbuffered', ['', '1'])
def test_a_full_disk_behind_the_output(argv, unbuffered, made, monkeypatch):
    monkeypatch.setenv('PYTHONUNBUFFERED', unbuffered)
    argv = argv.replace('MODEL', str(made / 'lm/language_model')).replace('DATA', str(made / 'text.txt')).split()
    with open('/dev/full', 'w') as full:
        done = subprocess.run([sys.executable, '-c', tiny, *argv], stdout=full, stderr=subprocess.PIPE, text=True)
    name = ' '.join(['awdtext', *(arg for arg in argv[:1] if arg in COMMANDS)])
    assert done.returncode == 1
    assert done.stderr == f'{name}: OSError: [Errno 28] No space left on device\n'


@pytest.mark.parametrize('unbuffered', ['', '1'])
def test_nobody_reads_the_help(unbuffered, monkeypatch):
    monkeypatch.setenv('PYTHONUNBUFFERED', unbuffered)
    read,write = os.pipe()
    os.close(read)
    for argv in (['--help'], ['generate', '--help']):
        done = subprocess.run([sys.executable, '-c', tiny, *argv], stdout=write, stderr=subprocess.PIPE, text=True)
        assert (done.returncode, done.stderr) == (141, '')
    os.close(write)


def test_standard_input_of_a_process(made):
    done = subprocess.run([sys.executable, '-c', tiny, 'predict', made / 'clas/classifier'], capture_output=True,
                          input=b'The cat sat\r\nThe owl sat\r\n')
    assert (done.returncode, done.stderr) == (0, b'') and done.stdout.count(b'\n') == 2
    assert done.stdout.splitlines()[0].endswith(b'\tThe cat sat')


@pytest.mark.parametrize('n_done', [0, 2])
def test_what_whole_epochs_have_learned_is_left_when_the_loss_is_no_number_any_more(monkeypatch, n_done):
    from types import SimpleNamespace

    from awdtext import cli
    left = []
    monkeypatch.setattr(cli, '_leave', lambda learn, name: left.append(name))
    def fails(n_epoch, lr, checkpoint): raise FloatingPointError('The loss became nan')
    learn = SimpleNamespace(record=[{}] * n_done, fit_one_cycle=fails)
    with pytest.raises(FloatingPointError, match='became nan'): cli._fit(learn, 'classifier', 3, 1.)
    assert left == ['classifier'] * bool(n_done)


# Every option reaches the library

class Reached(Exception): pass


def spy(patch, owner, name, call_through=False):
    "What the function is given from now on, by the names of its arguments; then the command ends, or goes on."
    usual,seen = getattr(owner, name), []
    def act(*args, **how):
        seen.append(inspect.signature(usual).bind(*args, **how).arguments)
        if not call_through: raise Reached
        return usual(*args, **how)
    patch.setattr(owner, name, act)
    return seen


def test_options_of_ulmfit_reach_it(tmp_path, shell, monkeypatch):
    rows = pd.DataFrame({'body': texts, 'tag': [f'{label};all' for label in labels]})
    write(tmp_path, a=rows, b=rows[:5], c=['one line', ' ', 'another'], d=rows[5:9])
    seen = spy(monkeypatch, ulmfit, 'ulmfit')
    argv = ['ulmfit', '--labelled', tmp_path / 'a.csv', '--texts', tmp_path / 'c.txt', '--test', tmp_path / 'b.csv',
            '--out', tmp_path / 'out', '--direction', 'backward', '--minutes', 7, '--config', 'laptop',
            '--lm-epochs', 4, '--valid-pct', .3, '--text-col', 'body', '--label-col', 'tag', '--label-delim', ';',
            '--class-weights', 'pet=1,wild=2,all=3', '--pseudo-labels', 5, '--tokens', 'chars', '--seed', 6,
            '--valid', tmp_path / 'd.csv', '--no-probe', '--precision', 'bf16', '--drop-mult', .4,
            '--label-smoothing', .1]
    assert 'Reached' in shell(*argv)[2]
    (how,) = seen
    for name, expected in (('labelled', rows), ('test', rows[:5]), ('valid', rows[5:9])):
        assert how.pop(name).to_dict('list') == expected.to_dict('list')
    assert how.pop('tok_tfm').unit == 'characters'
    assert how == dict(
        texts=['one line', 'another'], out=tmp_path / 'out', text_col=['body'], label_col='tag', label_delim=';',
        backwards=True, minutes=7., config='laptop', lm_epochs=4, valid_pct=.3, pseudo_labels=5, seed=6,
        class_weights={'pet': 1., 'wild': 2., 'all': 3.}, probe=False, precision='bf16', drop_mult=.4,
        label_smoothing=.1)
    options = inspect.signature(COMMANDS['ulmfit']).parameters
    assert {f"--{name.replace('_', '-')}" for name in options} - {'--lang'} <= set(argv)    # of words, not characters


def test_defaults_of_ulmfit_are_the_librarys(tmp_path, shell, monkeypatch):
    write(tmp_path, a=frame)
    usual = inspect.signature(ulmfit.ulmfit).parameters
    seen = spy(monkeypatch, ulmfit, 'ulmfit')
    shell('ulmfit', '--labelled', tmp_path / 'a.csv')
    assert {'valid', 'probe', 'precision', 'drop_mult'} <= set(seen[0])
    for name in set(seen[0]) - {'texts', 'labelled', 'out', 'tok_tfm', 'text_col'}:
        assert seen[0][name] == usual[name].default, name


def test_options_of_train_classifier_reach_it(tmp_path, made, shell, monkeypatch):
    rows = pd.DataFrame({'body': texts, 'tag': [f'{label};all' for label in labels]})
    write(tmp_path, a=rows)
    data = spy(monkeypatch, TextDataLoaders, 'from_csv', call_through=True)
    seen = spy(monkeypatch, text_learner, 'text_classifier_learner')
    common = ['--data', tmp_path / 'a.csv', '--out', tmp_path / 'out', '--bs', 6, '--drop-mult', .3, '--valid-pct', .25,
              '--text-col', 'body', '--label-col', 'tag', '--label-delim', ';', '--seed', 6,
              '--class-weights', 'pet=1,wild=2,all=3', '--label-smoothing', .2, '--precision', 'bf16']
    shell('train-classifier', *common, '--config', 'laptop', '--tokens', 'chars', '--min-freq', 5, '--max-vocab', 20,
          '--backwards')
    how = data[0]
    assert (how['csv_fname'], how['text_col'], how['label_col'], how['label_delim'], how['valid_pct'], how['seed'],
            how['bs'], how['tok_tfm'].unit) == ('a.csv', ['body'], 'tag', ';', .25, 6, 6, 'characters')
    assert (how['min_freq'], how['max_vocab'], how['backwards']) == (5, 20, True)
    weights,sizes = {'pet': 1., 'wild': 2., 'all': 3.}, presets['laptop'].sizes()
    assert {name: seen[0][name] for name in seen[0] if name != 'dls'} == dict(
        pretrained=False, drop_mult=.3, class_weights=weights, label_smoothing=.2, precision='bf16', config=sizes,
        path=tmp_path / 'out', model_dir='.')
    shell('train-classifier', *common, '--encoder', made / 'lm/encoder')
    assert (seen[1]['pretrained'], seen[1]['config'], seen[1]['drop_mult']) == (made / 'lm/encoder', None, .3)
    assert seen[1]['dls'].vocab.itos == load_learner(made / 'lm/language_model').dls.vocab.itos


def test_defaults_of_train_classifier_are_the_librarys(tmp_path, shell, monkeypatch):
    write(tmp_path, a=frame)
    usual = [inspect.signature(f).parameters for f in (TextDataLoaders.from_csv, text_classifier_learner)]
    data = spy(monkeypatch, TextDataLoaders, 'from_csv', call_through=True)
    seen = spy(monkeypatch, text_learner, 'text_classifier_learner')
    shell('train-classifier', '--data', tmp_path / 'a.csv')
    for name in ('min_freq', 'max_vocab', 'backwards'): assert data[0][name] == usual[0][name].default, name
    for name in ('label_smoothing', 'drop_mult'): assert seen[0][name] == usual[1][name].default, name
    assert seen[0]['precision'] == 'fp32'


@pytest.mark.parametrize('tokens,usual', [('words', 60_000), ('subwords', 8000)])
def test_the_largest_vocabulary_of_train_classifier(tokens, usual, tmp_path, shell, monkeypatch):
    "Of subwords it is how many are learned."
    write(tmp_path, a=frame)
    data = spy(monkeypatch, TextDataLoaders, 'from_csv')
    argv = ['train-classifier', '--data', tmp_path / 'a.csv', '--tokens', tokens]
    for options in ([], ['--max-vocab', 320]): shell(*argv, *options)
    found = [how['tok_tfm'].word_tok.vocab_sz if tokens == 'subwords' else how['max_vocab'] for how in data]
    assert found == [usual, 320]


def test_options_of_train_classifier_are_in_the_model(tmp_path, shell):
    write(tmp_path, a=frame)
    def made_with(*options):
        argv = ['train-classifier', '--data', tmp_path / 'a.csv', '--epochs', 1, '--out', tmp_path]
        assert shell(*argv, *options)[0] == 0
        return load_learner(tmp_path / 'classifier')
    learn = made_with('--backwards', '--max-vocab', 12, '--label-smoothing', .1)
    assert learn.dls.backwards and len(learn.dls.vocab) == 12 and learn.loss_func.settings['label_smoothing'] == .1
    known = [set(animals) & set(made_with('--min-freq', n).dls.vocab.itos) for n in (1, 7)]      # each comes six times
    assert known == [set(animals), set()]


def test_the_direction_of_an_encoder_needs_no_option(made, tmp_path, shell):
    "Against it there is none."
    write(tmp_path, a=texts, b=frame)
    shell('train-lm', '--data', tmp_path / 'a.txt', '--out', tmp_path / 'lm', '--backwards', *few)
    argv = ['train-classifier', '--data', tmp_path / 'b.csv', '--epochs', 1, '--encoder']
    for i, options in enumerate(([], ['--backwards'])):
        assert shell(*argv, tmp_path / 'lm/encoder', '--out', tmp_path / str(i), *options)[0] == 0
        assert load_learner(tmp_path / str(i) / 'classifier').dls.backwards
    refused(shell(*argv, made / 'lm/encoder', '--backwards', '--out', tmp_path / 'no'),
            'reads texts forwards: leave out --backwards', tmp_path / 'no')


@pytest.mark.parametrize('options', ['--config laptop', '--tokens chars', '--lang de', '--min-freq 2',
                                     '--max-vocab 60000'])
def test_what_the_encoder_has_decided_is_no_option(options, tmp_path, made, shell):
    write(tmp_path, a=frame)
    found = shell('train-classifier', '--data', tmp_path / 'a.csv', '--encoder', made / 'lm/encoder',
                  '--out', tmp_path / 'out', *options.split())
    refused(found, rf'{options}: size, tokens and vocabulary are those of .*encoder\. Leave out', tmp_path / 'out')


@pytest.mark.parametrize('command,options,message', [
    ('train-classifier', '--label-smoothing 1', 'label_smoothing=1.0: use 0 or more, below 1'),
    ('train-classifier', '--precision int4', "precision='int4': use 'fp32', 'fp16' or 'bf16'"),
    ('train-classifier', '--max-vocab 2', 'max_vocab=2 leaves no room'),
    ('train-classifier', '--drop-mult -1', 'drop_mult=-1.0: .* no dropout probability'),
    ('ulmfit', '--precision int4', "precision='int4': use 'fp32', 'fp16' or 'bf16'"),
    ('ulmfit', '--drop-mult -1', 'drop_mult=-1.0: .* no dropout probability'),
    ('ulmfit', '--valid none.csv', 'There is no file none.csv'),
    ('ulmfit', '--valid BARE', "bare.csv has no column 'label'; it has 'text'"),
    ('ulmfit', '--valid ODD', "the label 'odd' of row 0 is not among the categories")])
def test_values_of_options_that_cannot_be(command, options, message, tmp_path, shell):
    write(tmp_path, a=frame, bare=frame[['text']], odd=frame[:3].assign(label='odd'))
    options = options.replace('BARE', str(tmp_path / 'bare.csv')).replace('ODD', str(tmp_path / 'odd.csv')).split()
    data = '--labelled' if command == 'ulmfit' else '--data'
    refused(shell(command, data, tmp_path / 'a.csv', '--out', tmp_path / 'out', *options), message, tmp_path / 'out')


def test_validation_texts_of_ulmfit(tmp_path, shell):
    "All labelled texts are trained on, and the card's figures are of the others."
    own = pd.DataFrame({'text': [f'Now {text}' for text in texts[::4]], 'label': labels[::4]})
    write(tmp_path, a=frame, b=own)
    status,out,err = shell('ulmfit', '--labelled', tmp_path / 'a.csv', '--valid', tmp_path / 'b.csv', '--no-probe',
                           '--config', 'small', '--lm-epochs', 1, '--out', tmp_path / 'out')
    assert (status, err) == (0, '') and '36 labelled documents for training' in out
    learn = load_learner(tmp_path / 'out/classifier')
    right = sum(learn.predict(text)[0] == label for text, label in zip(own['text'], own['label']))
    assert f'accuracy {right / len(own):.4f}, {len(own)} documents' in shell(
        'evaluate', tmp_path / 'out/classifier', tmp_path / 'b.csv')[1]
    assert not hasattr(learn, 'parts') and 'probe' not in ' '.join(p.name for p in (tmp_path / 'out').rglob('*'))


@pytest.mark.parametrize('with_encoder', [False, True])
def test_rates_of_train_classifier(with_encoder, tmp_path, made, shell, monkeypatch):
    "On an encoder the head begins alone, at twice the rate; then each group has its own, up to tenfold lower."
    seen = spy(monkeypatch, Learner, 'fit_one_cycle', call_through=True)
    argv = ['train-classifier', '--data', made / 'labelled.csv', '--out', tmp_path, '--epochs', 2, '--lr', .02]
    assert shell(*argv, *(['--encoder', made / 'lm/encoder'] if with_encoder else []))[0] == 0
    fits = [(how['n_epoch'], how['lr_max']) for how in seen]
    assert fits == ([(1, .04), (2, slice(.002, .02))] if with_encoder else [(2, .02)])


def test_what_is_given_wins_over_the_file_of_settings(tmp_path, shell, monkeypatch):
    write(tmp_path, a=texts)
    (tmp_path / 's.json').write_text(json.dumps({'config': 'base', 'drop_mult': .7, 'lr': 1e-3, 'alpha': 1., 'wd': .2}))
    seen = spy(monkeypatch, text_learner, 'language_model_learner')
    common = ['train-lm', '--data', tmp_path / 'a.txt', '--out', tmp_path / 'out', *few]
    for argv in (['--settings', tmp_path / 's.json'], ['--config', 'laptop', '--lr', .3, '--drop-mult', .2], []):
        shell(*common, *argv)
    shell(*common, '--settings', tmp_path / 's.json', '--config', 'laptop', '--lr', .3, '--drop-mult', .2,
          '--precision', 'bf16', '--decoder', 'adaptive')
    shell(*common, '--schedule', 'ntasgd')
    shell(*common, '--schedule', 'ntasgd', '--lr', 9)
    numbers = [(how['config'].emb_sz, how['lr'], how['drop_mult'], how.get('alpha'), how.get('wd')) for how in seen]
    laptop,small = presets['laptop'].emb_sz, presets['small'].emb_sz
    assert numbers == [(400, 1e-3, .7, 1., .2), (laptop, .3, .2, None, None), (small, 5e-3, 1., None, None),
                       (laptop, .3, .2, 1., .2), (small, 30., 1., None, None), (small, 9., 1., None, None)]
    assert [how['precision'] for how in seen] == ['fp32'] * 3 + ['bf16'] + ['fp32'] * 2
    assert [how['config'].tie_weights for how in seen] == [True] * 3 + [False] + [True] * 2
    assert ['opt_func' in how for how in seen] == [False] * 4 + [True] * 2


def test_options_of_tune_reach_it(tmp_path, shell, monkeypatch):
    seen = spy(monkeypatch, tune, 'tune')
    shell('tune', '--out', tmp_path / 'out', '--n-trials', 3, '--epochs', 2, '--space', 'dropouts',
          '--config', 'laptop', '--seed', 6)
    (how,) = seen
    assert callable(how.pop('dls')) and how == dict(n_trials=3, n_epoch=2, space='dropouts', out=tmp_path / 'out',
                                                    config='laptop', seed=6)
