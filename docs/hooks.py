"""Pages that are made from the source when the site is built: every configuration key, and the public names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

CONF = Path(__file__).parents[1] / "conf"


def on_files(files: Files, config: Any) -> Files:
    """Add the pages to those that lie in ``docs/``."""
    files.append(File.generated(config, "configuration.md", content=configuration()))
    return files


def configuration() -> str:
    """Every file of ``conf/``, group after group, as it stands there: its comments say what each key is."""
    parts = [
        "# Configuration",
        "Each file of `conf/`, with the arguments of the class or function that it names, and what they are. "
        "`GROUP=NAME` on the command line chooses a file, `KEY=VALUE` changes a value; `python distill.py --cfg job` "
        "shows the whole.",
    ]
    groups = [CONF, *sorted(path for path in CONF.iterdir() if path.is_dir())]
    for group in groups:
        parts.append(f"## {'The two commands' if group is CONF else group.name}")
        for path in sorted(group.glob("*.yaml")):
            text = path.read_text(encoding="utf-8").strip()
            parts.append(f"### {path.stem}\n\n```yaml\n{text}\n```")
    return "\n\n".join(parts) + "\n"
