"""What mkdocs does besides (mkdocs.yml): pages from outside of docs/, links to them, and pages that the navigation forgot.

In the repository a page links to other files by their paths; on the site some of these files have another place, and
the others are not there: then the link's text stays.
"""
import pathlib
import posixpath
import re

from mkdocs.structure.files import File

OUTSIDE = {"CHANGELOG.md": "CHANGELOG.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "examples/README.md": "EXAMPLES.md"}
LINK = re.compile(r"\[([^\]\n]*)\]\(([^()\s#:]+)(#[^()\s]*)?\)")


def _root(config):
    return pathlib.Path(config.config_file_path).parent


def on_files(files, config):
    for path, name in OUTSIDE.items():
        files.append(File.generated(config, name, abs_src_path=str(_root(config) / path)))
    listed = set(re.findall(r"[\w/.-]+\.md", str(config.nav)))
    more = sorted(f.src_uri for f in files.documentation_pages() if f.src_uri not in listed)
    if more:
        config.nav = [*config.nav, {"More": more}]
    return files


def on_page_markdown(markdown, page, config, files):
    here = {name: path for path, name in OUTSIDE.items()}.get(page.file.src_uri, "docs/" + page.file.src_uri)

    def link(match):
        text, target, anchor = match[1], match[2], match[3] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        if path == "README.md":
            name = "index.md"
        elif path in OUTSIDE:
            name = OUTSIDE[path]
        elif path.startswith("docs/"):
            name = path.removeprefix("docs/")
        elif (_root(config) / path).exists():
            return text
        else:
            return match[0]  # mkdocs tells that it leads nowhere
        return f"[{text}]({posixpath.relpath(name, posixpath.dirname(page.file.src_uri) or '.')}{anchor})"

    return LINK.sub(link, markdown)
