"""What the site adds to the pages in docs/: the README as its front, a page of the API for each module, equations as SVG.

Nothing is imported but sources read, nothing is downloaded, and a public name without a docstring is a warning, which
ends a strict build.
"""

import html
import logging
import pathlib
import re

import griffe
import markdown as python_markdown
import ziamath
from mkdocs.structure import files as mkdocs_files

_ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
_PACKAGE = 'nlhf_jax'
# Documented by their class: a network's call, and what Flax runs before it.
_PART_OF_CLASS = ('__call__', 'setup')
_EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_log = logging.getLogger('mkdocs.plugins.nlhf_jax')

ziamath.config.math.color = 'currentColor'
# Paths in place of symbols, whose ids would be shared by all equations of a page.
ziamath.config.svg2 = False


class _PlainUnderscores(python_markdown.Extension):
  """Underscores are subscripts here, as in π_θ, and never emphasis."""

  def extendMarkdown(self, md):
    md.inlinePatterns.deregister('em_strong2', strict=False)


def on_config(config):
  """Adds the API to the navigation."""
  config.nav.append({'API': _api_nav(_modules())})
  config.markdown_extensions.append(_PlainUnderscores())
  return config


def on_files(files, config):
  """Adds the front page and the API's pages."""
  files.append(_generated(config, 'index.md', (_ROOT / 'README.md').read_text(encoding='utf-8')))
  package = griffe.load(_PACKAGE, search_paths=[_ROOT])
  files.append(_generated(config, 'api/index.md', _overview(package)))
  for module in _modules():
    files.append(_generated(config, _page(module), f'::: {module}\n'))
  for name in _undocumented(package):
    _log.warning(f'{name} has no docstring.')
  return files


def on_page_markdown(markdown, page, config, files):
  """Makes links to files of the repository links to pages of the site."""
  if page.parent is None:  # It is the only one of its tab.
    page.meta['hide'] = ['navigation']
  if page.file.src_uri == 'index.md':
    markdown = re.sub(r'\]\(docs/', '](', markdown)
  return re.sub(rf'\]\((?:\.\./)?{_PACKAGE}/([\w/]+)\.py\)', r'](api/\1.md)', markdown)


def on_page_content(content, page, config, files):
  """Renders equations."""
  return _EQUATION.sub(lambda match: _svg(html.unescape(match[2]), match[1] == 'span'), content)


def _modules() -> list[str]:
  """Public modules by name, those of the top before those of folders."""
  paths = (path.relative_to(_ROOT) for path in (_ROOT / _PACKAGE).rglob('*.py'))
  names = ['.'.join(path.with_suffix('').parts) for path in paths]
  public = [name for name in names if not re.search(r'\._', name)]
  return sorted(public, key=lambda name: (name.count('.') > 1, name))


def _page(module: str) -> str:
  return 'api/' + module.removeprefix(f'{_PACKAGE}.').replace('.', '/') + '.md'


def _overview(package: griffe.Module) -> str:
  """The API's front: the package's own words, and the first line of each module's."""
  lines = [f'# {_PACKAGE}', '', package.docstring.value, '', '| module | |', '|---|---|']
  for name in _modules():
    docstring = package[name.removeprefix(f'{_PACKAGE}.')].docstring
    summary = docstring.value.splitlines()[0].replace('|', r'\|') if docstring else ''
    link = _page(name).removeprefix('api/')
    lines.append(f'| [`{name.removeprefix(_PACKAGE + ".")}`]({link}) | {summary} |')
  return '\n'.join(lines) + '\n'


def _api_nav(modules: list[str]) -> list:
  """The navigation of the API: its front, modules at the top, then a section for each folder."""
  nav: dict[str, object] = {}
  for module in modules:
    *folders, name = module.split('.')[1:]
    if folders:
      nav.setdefault('.'.join(folders), []).append({name: _page(module)})
    else:
      nav[name] = _page(module)
  return ['api/index.md', *({name: pages} for name, pages in nav.items())]


def _generated(config, name: str, content: str) -> mkdocs_files.File:
  return mkdocs_files.File.generated(config, name, content=content)


def _undocumented(module: griffe.Module) -> list[str]:
  """Public modules, classes, functions and methods without a docstring."""
  found = []
  for name, member in module.members.items():
    if member.is_alias or (name.startswith('_') and name not in _PART_OF_CLASS):
      continue
    if member.is_module or member.is_class:
      found += _undocumented(member)
    exempt = member.is_attribute or member.is_init_module or name in _PART_OF_CLASS
    if not (exempt or member.docstring):
      found.append(member.path)
  return found


def _svg(latex: str, inline: bool) -> str:
  """An equation as a picture in the text's colour and size, which screen readers read as LaTeX."""
  math = ziamath.Latex(latex.strip(), size=16, inline=inline)
  svg = math.svgxml()
  for side in ('width', 'height'):
    svg.set(side, f'{float(svg.get(side)) / 16:.3f}em')
  svg.set('style', f'vertical-align: {(math.getyofst() - math.margin) / 16:.3f}em')
  svg.set('role', 'img')
  svg.set('aria-label', latex.strip())
  picture = ziamath.zmath.ET.tostring(svg, encoding='unicode')
  return picture if inline else f'<div class="equation">{picture}</div>'
