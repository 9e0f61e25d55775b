"Corner cases, faults and damaged files of `awdtext.data.datasets`; nothing here needs a network."
import gzip, hashlib, io, json, os, subprocess, sys, tarfile, threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from awdtext.data import datasets
from awdtext.data.datasets import URLs, awdtext_home, docstrings, source_docstrings, untar_data

LONG = 'one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen'


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv('AWDTEXT_HOME', str(tmp_path/'home'))
    return tmp_path/'home'


@pytest.fixture
def packages(tmp_path, monkeypatch, home):
    "Two small packages in place of the real ones: file name -> source, to be filled by `write`."
    folders = {'python': tmp_path/'lib', 'torch': tmp_path/'torch'}
    for folder in folders.values(): folder.mkdir()
    monkeypatch.setattr(datasets, '_package_folders', lambda: folders)

    def write(path, *docs, source=None):
        path = tmp_path/path
        path.parent.mkdir(parents=True, exist_ok=True)
        text = source or '\n'.join(f'def f{i}():\n    {doc!r}' for i, doc in enumerate(docs))
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return write


# The corpus

def test_source_docstrings_of_every_kind_of_definition_in_source_order():
    source = '''"module"
async def a(): "async"
try:
    def b(): "in try"
except E:
    def c(): "in except"
else:
    def d(): "in else"
finally:
    def e(): "in finally"
match x:
    case 1:
        class F:
            "in case"
            class G: "nested"
def h(x="default"): return "not first"
f = lambda: "no docstring"
'''
    wanted = ['module', 'async', 'in try', 'in except', 'in else', 'in finally', 'in case', 'nested']
    assert source_docstrings(source) == wanted


def test_declared_encodings_are_obeyed():
    assert source_docstrings('# -*- coding: latin-1 -*-\n"caf\xe9"'.encode('latin-1')) == ['caf\xe9']


def test_short_documents_and_duplicates_within_and_across_packages_are_left_out(packages):
    packages('lib/a.py', LONG, LONG.upper(), 'too short', LONG + ' a')
    packages('lib/b.py', LONG.replace(' ', '\n   '))
    packages('torch/a.py', LONG, LONG + ' b')
    df = docstrings()
    assert df.values.tolist() == [[LONG, 'python'], [LONG + ' a', 'python'], [LONG + ' b', 'torch']]


def test_order_is_by_name_and_tests_and_foreign_packages_are_passed_over(packages):
    for i, name in enumerate(['z.py', 'a.py', 'm/b.py', 'm/a.py']): packages(f'lib/{name}', f'{LONG} {i}')
    for name in ['tests/a.py', 'm/test/a.py', 'test_a.py', 'site-packages/p/a.py', '__pycache__/a.py', 'a.txt']:
        packages(f'lib/{name}', LONG)
    assert [o.split()[-1] for o in docstrings().text] == ['1', '0', '3', '2']


def test_files_that_python_cannot_read_are_passed_over(packages, tmp_path):
    packages('lib/a.py', source='print "python 2"')
    packages('lib/b.py', source=b'"nul \0"')
    packages('lib/c.py', source=b'"not utf-8: \xff"')
    packages('lib/d.py', source='# coding: no-such-encoding\n')
    (tmp_path/'lib/e.py').symlink_to('nowhere.py')
    (tmp_path/'lib/f.py').mkdir()
    packages('lib/g.py', LONG, LONG + ' \ud800')
    assert docstrings().text.tolist() == [LONG]


def test_topics_of_help_are_read_from_the_dictionary(packages):
    packages('lib/pydoc_data/topics.py', source=f'topics = {{"if": {LONG!r} + "", "for": "\\n{LONG}"}}\n')
    assert docstrings().text.tolist() == [LONG]


def test_no_sources_at_all_give_an_empty_frame(packages):
    df = docstrings()
    assert len(df) == 0 and list(df.columns) == ['text', 'label']


def test_a_missing_package_is_one_label_less(monkeypatch):
    monkeypatch.setattr(datasets, '_documented', ('torch', 'no_such_package_at_all'))
    assert list(datasets._package_folders()) == ['python', 'torch']
    assert datasets._version('no_such_package_at_all') == 'unknown'


def test_second_call_reads_the_cache_and_another_version_does_not(packages, home, monkeypatch):
    packages('lib/a.py', LONG)
    before = docstrings()
    packages('lib/a.py', LONG + ' changed')
    assert docstrings().equals(before)
    monkeypatch.setattr(datasets, '_version', lambda label: '2')
    assert docstrings().text.tolist() == [LONG + ' changed']
    assert len(list(home.iterdir())) == 2


@pytest.mark.parametrize('damage', [b'', b'no gzip', gzip.compress(b'no json'), gzip.compress(b'["a"]' * 1000)[:-12]])
def test_a_damaged_cache_is_made_again(packages, home, damage, capsys):
    packages('lib/a.py', LONG)
    before = docstrings()
    cache, = home.iterdir()
    cache.write_bytes(damage)
    assert docstrings().equals(before)
    assert 'making it again' in capsys.readouterr().out
    assert json.loads(gzip.decompress(cache.read_bytes())) == [[LONG], ['python']]


def test_a_cache_that_cannot_be_written_costs_time_only(packages, home):
    packages('lib/a.py', LONG)
    home.write_text('a file where the folder should be')
    with pytest.warns(UserWarning, match='AWDTEXT_HOME'): assert docstrings().text.tolist() == [LONG]


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path/'x'
    path.write_text('old')
    with pytest.raises(KeyboardInterrupt):
        with datasets._write_then_rename(path) as f:
            f.write(b'half')
            raise KeyboardInterrupt
    assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]


def test_reading_imports_none_of_the_packages(tmp_path):
    code = ("import sys; from awdtext.data import datasets as d; d._documented = ('spacy', 'pandas');"
            "n = sum(1 for f in d._package_folders().values() for _ in zip(range(20), d._python_files(f)));"
            "assert n >= 20, n; print([m for m in ('spacy', 'pandas', 'pydoc_data') if m in sys.modules])")
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == '[]\n'


def test_the_real_corpus_is_as_described():
    df = docstrings()
    words = df.text.str.split().str.len()
    assert list(df.columns) == ['text', 'label']
    assert df.label.unique().tolist() == list(datasets._package_folders())
    assert words.min() >= 15 and df.text.map(str.casefold).is_unique
    assert (df.text.str.strip() == df.text).mean() > .99  # cleandoc
    assert df.text.str.startswith('The "if" statement').any()
    assert len(df) > 10_000 and words.sum() > 1_000_000


# Downloads

def make_archive(path, files, mode='w:gz'):
    with tarfile.open(path, mode) as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return path


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

    def do_GET(self):
        self.server.requests.append(self.path)
        if not self.path.startswith('/cut'): return super().do_GET()
        body = (Path(self.directory)/self.path[4:].lstrip('/')).read_bytes()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body[:len(body) // 2])


@pytest.fixture
def server(tmp_path):
    folder = tmp_path/'www'
    folder.mkdir()
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=str(folder))) as server:
        server.requests,server.folder,server.url = [], folder, f'http://127.0.0.1:{server.server_port}'
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


FILES = {'imdb/train.txt': 'good', 'imdb/deep/er.txt': 'bad'}


def test_a_corpus_is_downloaded_once(server, home):
    make_archive(server.folder/'imdb.tgz', FILES)
    for _ in range(3): path = untar_data(f'{server.url}/imdb.tgz')
    assert path == home/'data'/'imdb' and (path/'deep/er.txt').read_text() == 'bad'
    assert server.requests == ['/imdb.tgz']
    assert sorted(o.name for o in path.parent.iterdir()) == ['imdb', 'imdb.tgz', 'imdb.tgz.sha256']


def test_several_top_folders_are_kept_below_one_named_like_the_archive(server, tmp_path):
    make_archive(server.folder/'news_csv.tar.gz', {'a.csv': '1', 'b/c.csv': '2'})
    path = untar_data(f'{server.url}/news_csv.tar.gz', dest=tmp_path/'d')
    assert path.name == 'news_csv' and (path/'a.csv').read_text() == '1' and (path/'b/c.csv').read_text() == '2'


def test_a_deleted_folder_is_unpacked_again_without_a_download(server, home):
    make_archive(server.folder/'imdb.tgz', FILES)
    path = untar_data(f'{server.url}/imdb.tgz')
    datasets.rmtree(path)
    assert (untar_data(f'{server.url}/imdb.tgz')/'train.txt').read_text() == 'good'
    assert len(server.requests) == 1


def test_an_archive_that_changed_on_the_disk_is_downloaded_again(server, home):
    make_archive(server.folder/'imdb.tgz', FILES)
    path = untar_data(f'{server.url}/imdb.tgz')
    datasets.rmtree(path)
    archive = path.with_name('imdb.tgz')
    archive.write_bytes(archive.read_bytes()[:-1] + b'x')
    assert (untar_data(f'{server.url}/imdb.tgz')/'train.txt').exists()
    assert len(server.requests) == 2


def test_force_download_replaces_the_folder(server, home):
    make_archive(server.folder/'imdb.tgz', FILES)
    untar_data(f'{server.url}/imdb.tgz')
    make_archive(server.folder/'imdb.tgz', {'imdb/new.txt': 'new'})
    path = untar_data(f'{server.url}/imdb.tgz', force_download=True)
    assert [o.name for o in path.iterdir()] == ['new.txt']


def test_the_given_sha256_is_checked_before_and_after(server, home):
    archive = make_archive(server.folder/'imdb.tgz', FILES)
    good,url = hashlib.sha256(archive.read_bytes()).hexdigest(), f'{server.url}/imdb.tgz'
    assert untar_data(url, sha256=good) == untar_data(url, sha256=good)
    assert len(server.requests) == 1
    with pytest.raises(ValueError, match=rf'sha256 is {good}, expected 00'): untar_data(url, sha256='00')


@pytest.mark.parametrize('known, what', [
    ((1, None, None), 'size is .*, expected 1'),
    ((None, 'f00', None), 'md5.*expected f00'),
    ((None, None, 'f00'), 'sha256.*expected f00')])
def test_whatever_is_published_is_checked(server, home, monkeypatch, known, what):
    make_archive(server.folder/'imdb.tgz', FILES)
    monkeypatch.setitem(datasets._published, f'{server.url}/imdb.tgz', known)
    with pytest.raises(ValueError, match=what): untar_data(f'{server.url}/imdb.tgz')
    assert list((home/'data').iterdir()) == []


@pytest.mark.parametrize('path', ['/cut/imdb.tgz', '/nowhere/imdb.tgz'])
def test_a_broken_download_is_one_line_that_names_docstrings_and_leaves_nothing(server, home, path):
    make_archive(server.folder/'imdb.tgz', FILES)
    line = r'^\S+imdb.tgz cannot be downloaded \(.*\); `docstrings\(\)` .*$'
    with pytest.raises(ConnectionError, match=line) as e: untar_data(server.url + path)
    assert '\n' not in str(e.value) and list((home/'data').iterdir()) == []
    (home/'data'/'imdb.tgz').write_bytes(b'left by something else')
    assert untar_data(f'{server.url}/imdb.tgz').name == 'imdb'


def test_offline_is_the_same_line(home):
    with pytest.raises(ConnectionError, match='docstrings'): untar_data('http://127.0.0.1:9/imdb.tgz')


@pytest.mark.parametrize('name', ['../evil.txt', '{}/evil.txt'])
def test_an_archive_cannot_write_outside_its_folder(server, home, tmp_path, name):
    make_archive(server.folder/'evil.tgz', {'ok.txt': '', name.format(tmp_path): 'evil'})
    try: untar_data(f'{server.url}/evil.tgz')
    except ValueError as e: assert 'cannot be unpacked' in str(e)
    assert not (tmp_path/'evil.txt').exists() and not (home/'data'/'evil.txt').exists()
    assert not [o for o in (home/'data').iterdir() if o.name.endswith('.part')]


def test_what_is_no_tar_file_is_named(server, home):
    (server.folder/'page.tgz').write_text('<html>not what you think')
    with pytest.raises(ValueError, match='page.tgz cannot be unpacked'): untar_data(f'{server.url}/page.tgz')
    assert not (home/'data'/'page').exists()


def test_every_url_has_published_checks():
    urls = {v for k, v in vars(URLs).items() if isinstance(v, str) and v.endswith('.tgz')}
    assert urls == set(datasets._published)
    assert all(len(md5) == 32 and len(sha256 or 'x' * 64) == 64 for _, md5, sha256 in datasets._published.values())


def test_home_is_read_at_each_call(monkeypatch):
    monkeypatch.setenv('AWDTEXT_HOME', '~/x')
    assert awdtext_home() == Path(os.path.expanduser('~'))/'x'
