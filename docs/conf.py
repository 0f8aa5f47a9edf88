"""How Sphinx builds the documentation. It needs no network.

The package is imported as it is installed: the folder above holds its source without
the compiled modules, unless they were built in place.

``-t network`` links to the documentation of Python and Trio, too.
"""

from __future__ import annotations

import re
from importlib.metadata import version as version_of
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.transforms.post_transforms import SphinxPostTransform

project = "trio_wknet"
author = "the trio_wknet developers"
release = version_of("trio-wknet")
version = ".".join(release.split(".")[:2])

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinxcontrib_trio", "sphinx_copybutton"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"trio_wknet {version}"
myst_heading_anchors = 3
# Copied is what is typed: neither prompts nor what a command prints.
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False

# `name` in a docstring is something of Python's.
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [
    # Other projects'
    ("py:.*", r"(trio|anyio|socket|ssl|collections|contextlib|typing|types|os|signal|sys)\..*"),
    ("py:.*", r"(threading|io|gzip|mmap|traceback|prometheus_client)\..*|Metric"),
    # Builtins, and what annotations name
    ("py:.*", r"[A-Z]\w*(Error|Warning|Iterator|Buffer)|Any|Awaitable|Buffer|Callable|Literal"),
    ("py:.*", "Abstract(Async)?ContextManager|open"),
    ("py:.*", r"bool|bytearray|bytes|float|int|memoryview|None|object|optional|str|tuple|list|T"),
    ("py:.*", r"trio_wknet\._sockets\..*"),
    # Names of unions: what `proxy_protocol` holds, an address, a framing; and of settings and
    # functions that are passed. The text says what
    ("py:.*", r"Network|SocketAddress|Framing|OnRequest|OwnEngine|ListenSettings|ConnectSettings"),
    ("py:.*", r"Member|OnStall|OpenSettings|WhenSlow|(trio_wknet\._over_listener\.)?OverListener"),
    ("py:.*", r"(trio_wknet\.contrib\.redis\._gaps\.)?(Reason|OnGap)"),
]

if tags.has("network"):  # noqa: F821
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "trio": ("https://trio.readthedocs.io/en/stable", None),
    }


def setup(app: Sphinx) -> None:
    app.add_post_transform(LinkNames)
    app.connect("autodoc-process-docstring", read_sections)
    app.connect("autodoc-process-signature", shorten)


class LinkNames(SphinxPostTransform):
    """Link names of the API that a Markdown page has in backquotes, as `Conn.send_all(data)`.
    There are no roles in those pages, because they are read in the repository, too."""

    default_priority = 5  # before references are resolved

    def run(self, **kwargs: Any) -> None:
        known = self.env.get_domain("py").objects
        for literal in list(self.document.findall(nodes.literal)):
            if isinstance(literal.parent, (nodes.reference, pending_xref)):
                continue
            name = re.match(r"(?:trio_wknet\.)?([\w.]+)(?:\(.*\))?$", literal.astext())
            target = name and next(
                (full for place in PLACES if (full := f"{place}.{name[1]}") in known), None
            )
            if target:
                link = pending_xref(
                    "",
                    refdomain="py",
                    reftype="obj",
                    reftarget=target,
                    refdoc=self.env.docname,
                    refwarn=False,
                )
                literal.replace_self(link)
                link += literal


PLACES = (
    "trio_wknet",
    "trio_wknet.contrib.pytest",
    "trio_wknet.contrib.anyio",
    "trio_wknet.contrib.prometheus",
    "trio_wknet.contrib.redis",
)


def read_sections(
    app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]
) -> None:
    """Read ``Args:`` and ``Raises:``, as napoleon does; but not in attributes, where it
    takes the words before a colon for a type."""
    if what in ("attribute", "property"):
        return
    config = Config(napoleon_use_ivar=True)
    lines[:] = GoogleDocstring(lines, config, app, what, name, obj, options).lines()


def shorten(
    app: Sphinx,
    what: str,
    name: str,
    obj: object,
    options: Any,
    signature: str | None,
    returns: str | None,
) -> tuple[str, str | None] | None:
    """Defaults as they are written; and a context manager is no iterator to its user."""
    if signature is None:
        return None
    signature = re.sub(r"= (Limits|ConnOptions)\([^)]*\)", r"= \1()", signature)
    return signature, None if re.match(r"(Async)?Iterator\[", returns or "") else returns
