"""Who takes part: uellm's own engines, and the peers that are installed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import uellm_cli
from uellm_cli.bench import serve
from uellm_cli.bench.worker import LONGEST_FIRST
from uellm_cli.bench.workers import Entrant
from uellm_cli.engines import ENGINES
from uellm_cli.errors import UsageError

# Takes no time: there is nothing to measure.
NOT_MEASURED = "simulated"
# Engines to which the order of requests makes a difference that is theirs to use.
IN_FLIGHT = ("inflight",)


def default_peers() -> Path | None:
    """`benchmarks/peers` of a checkout; None in an installed package."""
    folder = Path(uellm_cli.__file__).resolve().parent.parent / "benchmarks" / "peers"
    return folder if folder.is_dir() else None


def find_entrants(names: Sequence[str], peers: Path | None) -> list[Entrant]:
    """The entrants called `names`; without any, all that there are.

    `NAME:longest-first` is uellm's engine NAME, given the requests with the longest answers first.
    UsageError for a name that there is not, or a peer that is not installed.
    """
    if peers is not None and not peers.is_dir():
        raise UsageError(f"{peers}: there is no such folder of peers")
    ours = {entrant.name: entrant for entrant in _ours()}
    theirs = {entrant.name: entrant for entrant in _peers(peers)}
    if not names:
        by_default = [e for e in ours.values() if _is_default(e.name)]
        return [*by_default, *theirs.values()]
    known = ours | theirs
    for name in names:
        if name not in known:
            missing = f"; {_why_not(name, peers)}" if peers else ""
            raise UsageError(
                f"no engine {name!r} to measure; there are: {', '.join(known)}{missing}"
            )
    return [known[name] for name in dict.fromkeys(names)]


def _ours() -> list[Entrant]:
    command = (sys.executable, "-m", "uellm_cli.bench.worker")
    names = [name for name in ENGINES.names() if name != NOT_MEASURED]
    return [
        *(Entrant(name, (*command, name)) for name in names),
        *(Entrant(f"{name}:{LONGEST_FIRST}", (*command, name, LONGEST_FIRST)) for name in names),
    ]


def _is_default(name: str) -> bool:
    engine, _, order = name.partition(":")
    return not order or engine in IN_FLIGHT


def _peers(folder: Path | None) -> list[Entrant]:
    """One for each folder with a `worker.py` and an environment.

    A peer that asks for nothing of its own (no `requirements.txt`) runs in uellm's environment.
    """
    if folder is None:
        return []
    found = []
    for script in sorted(folder.glob("*/worker.py")):
        python: Path = script.parent / ".venv" / "bin" / "python"
        if not (script.parent / "requirements.txt").exists():
            python = Path(sys.executable)
        if python.exists():
            command = (str(python), "-P", str(serve.__file__), str(script.resolve()))
            found.append(Entrant(script.parent.name, command, is_peer=True))
    return found


def _why_not(name: str, peers: Path) -> str:
    if (peers / name / "worker.py").is_file():
        return f"{peers / name} has no environment yet: run {peers / 'install.sh'}"
    return f"peers are looked for in {peers}"
