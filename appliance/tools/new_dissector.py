"""Begin a new protocol: copy the template's folder and its tests under a new name (``./run new-dissector NAME``).

The copy is a working protocol that obeys every law; docs/writing-a-dissector.md says how to make it yours.
"""

import re
import sys
from pathlib import Path
from typing import Final

from appliance.dissectors.kit import spec

_NAME: Final = re.compile(r"[a-z][a-z0-9]{1,30}")
_CODE: Final = Path("appliance/dissectors")
_TESTS: Final = Path("tests/dissectors")


class NewDissectorError(Exception):
    """The protocol cannot be begun; the message says why and what to do."""


def create(name: str, root: Path) -> list[Path]:
    """Copy the template below ``root``, a checkout; return the files written. Raises ``NewDissectorError``."""
    if not _NAME.fullmatch(name):
        raise NewDissectorError(f"{name!r} is no name for a package (lower-case letters and digits, like mysql)")
    written = []
    for folder in (_CODE, _TESTS):
        source, target = root / folder / "_template", root / folder / name
        if target.exists():
            raise NewDissectorError(f"{target} exists already (choose another name, or remove it)")
        if not source.is_dir():
            raise NewDissectorError(f"{source} is missing (run this in a checkout of Weir)")
    for folder in (_CODE, _TESTS):
        source, target = root / folder / "_template", root / folder / name
        target.mkdir()
        for file in sorted(source.iterdir()):
            if file.is_file():
                copy = target / file.name
                copy.write_text(_renamed(file.read_text(), name))
                written.append(copy)
    return written


def _renamed(text: str, name: str) -> str:
    text = text.replace("dissectors._template", f"dissectors.{name}")
    text = text.replace('"template', f'"{name}').replace("# template", f"# {name}")
    return text.replace("TEMPLATE", name.upper()).replace(" Copied by new-dissector.", "")


def main() -> None:
    """The command: one argument, the protocol's name."""
    if len(sys.argv) != 2:
        sys.exit("usage: new-dissector NAME (like mysql)")
    root = Path(spec.__file__).parents[3]
    try:
        written = create(sys.argv[1], root)
    except NewDissectorError as error:
        sys.exit(f"new-dissector: {error}")
    lines = [*(f"wrote {path.relative_to(root)}" for path in written), "next: docs/writing-a-dissector.md, step 2"]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
