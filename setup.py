"Packaging: everything is read from settings.ini, the version too."
from configparser import ConfigParser
from pathlib import Path
from shlex import split

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(here / 'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
extras = {key.removesuffix('_requirements'): split(cfg[key]) for key in cfg if key.endswith('_requirements')}

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], license=cfg['license'], classifiers=['Programming Language :: Python :: 3'],
    long_description=(here / 'README.md').read_text(encoding='utf-8') if (here / 'README.md').exists() else '',
    long_description_content_type='text/markdown', python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=[cfg['lib_name'], f"{cfg['lib_name']}.*"]),
    package_data={cfg['lib_name']: ['py.typed']},
    install_requires=split(cfg['requirements']), extras_require=extras,
    entry_points={'console_scripts': split(cfg.get('console_scripts', ''))},
)
