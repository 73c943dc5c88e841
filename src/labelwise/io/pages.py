"""Templates of HTML pages, which escape what is put into them."""

import functools
from collections.abc import Callable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


@functools.cache
def template(module: str, *filters: Callable[..., Any]) -> Template:
    """The template `page.html.jinja` beside a module.

    Args:
        module: its name.
        filters: of the template; each has the name of its function without leading underscores.
    """
    environment = Environment(
        loader=PackageLoader(module, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {each.__name__.lstrip("_"): each for each in filters}
    return environment.get_template("page.html.jinja")
