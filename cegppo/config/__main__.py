"""`python -m cegppo.config`: write docs/config.md anew."""

from . import reference

reference.DOC.write_text(reference.text(), encoding="utf-8")
print(reference.DOC)
