"""Check that the wheel in a folder holds the two packages, typed, and nothing else."""

import sys
import zipfile
from pathlib import Path

PACKAGES = {"zomopi_core", "zomopi_adapters"}


def main(folder: str) -> str | None:
    """Return what is wrong with the wheel in `folder`, or None."""
    wheels = list(Path(folder).glob("*.whl"))
    if len(wheels) != 1:
        return f"expected one wheel in {folder}, found {len(wheels)}"
    names = zipfile.ZipFile(wheels[0]).namelist()
    top = {name.split("/")[0] for name in names}
    extra = {name for name in top - PACKAGES if not name.endswith(".dist-info")}
    if extra or not top >= PACKAGES:
        return f"{wheels[0].name} holds {sorted(top)}, should hold {sorted(PACKAGES)}"
    odd = [
        name
        for name in names
        if name.split("/")[0] in PACKAGES and not name.endswith((".py", "py.typed"))
    ]
    missing = [f"{p}/py.typed" for p in PACKAGES if f"{p}/py.typed" not in names]
    if odd or missing:
        return f"{wheels[0].name}: unexpected {odd}, missing {missing}"
    sys.stdout.write(f"{wheels[0].name}: {len(names)} files in {', '.join(sorted(PACKAGES))}\n")
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
