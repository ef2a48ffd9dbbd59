"""What Git knows about the working folder."""

import re
import subprocess


def says(*arguments: str) -> str | None:
    """What Git prints in the working folder; None where it fails or is not there."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None


def experiments() -> list[str]:
    """The references of all DVC experiments; what DVC keeps beside them for its own use is left out."""
    refs = (says("for-each-ref", "--format=%(refname)", "refs/exps") or "").splitlines()
    return [ref for ref in refs if re.fullmatch(r"refs/exps/[0-9a-f]{2}/[0-9a-f]{38}/[^/]+", ref)]
