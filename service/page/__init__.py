"""What a browser gets: the page for people (`static/`), and the API's documentation (`docs/`).

Files as they are, with their types: HTML, CSS, JavaScript modules, and libraries of others with
their licences. They hold no data; the page asks the routes of clients and operators for these. This
room knows files only: no HTTP, no settings, no bundle.

Reading order: `assets` (the files in memory); of the page itself, `static/index.html`, then
`static/app.js`, which names the other modules.
"""

from service.page.assets import DOCS, PAGE, Asset, assets_of

__all__ = ["DOCS", "PAGE", "Asset", "assets_of"]
