"""Reads the comments above fields and constants as their documentation, which is how the sources are written.

A constant's comment becomes its docstring, those of a struct's fields the section `Attributes` of its class. A protocol of
functions shows the signature.
"""

import textwrap

import griffe


class FieldComments(griffe.Extension):
  """A griffe extension."""

  def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs) -> None:
    """Documents a constant of a module."""
    comment = _comment(attr)
    if comment and not attr.docstring and not attr.parent.is_class:
      attr.docstring = griffe.Docstring(comment, lineno=attr.lineno, parent=attr)

  def on_class_members(self, *, cls: griffe.Class, **kwargs) -> None:
    """Adds to a class's docstring its fields, those without a comment too, or its signature."""
    if not cls.docstring or '\nAttributes:\n' in cls.docstring.value:
      return
    fields = [x for x in cls.members.values() if x.is_attribute and x.annotation and x.is_public]
    lines = [f'  {field.name}: {_comment(field)}' for field in fields]
    if lines:
      cls.docstring.value = '\n'.join([cls.docstring.value, '', 'Attributes:', *lines])
    call = cls.members.get('__call__')
    if call and not call.docstring and any(str(base) == 'Protocol' for base in cls.bases):
      source = textwrap.dedent(
        '\n'.join(cls.lines_collection[cls.filepath][call.lineno - 1 : call.endlineno])
      )
      signature = source.removesuffix(': ...')
      cls.docstring.value = f'{cls.docstring.value}\n\n```python\n{signature}\n```'


def _comment(attr: griffe.Attribute) -> str:
  """The lines of `#` right above an attribute, as one."""
  if attr.lineno is None:
    return ''
  lines = attr.lines_collection[attr.filepath]
  first = attr.lineno - 1
  while first and lines[first - 1].lstrip().startswith('# '):
    first -= 1
  return ' '.join(line.strip().removeprefix('# ') for line in lines[first : attr.lineno - 1])
