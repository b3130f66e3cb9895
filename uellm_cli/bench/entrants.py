"""Who takes part: uellm's own engines, and the peers that are installed."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import uellm_cli
from uellm_cli.bench import serve
from uellm_cli.bench.workers import LONGEST_FIRST, Entrant
from uellm_cli.engines import ENGINES
from uellm_cli.errors import UsageError

# Takes no time: there is nothing to measure.
NOT_MEASURED = "simulated"
# Engines of ours with other options than by default, which take part where they are asked for.
VARIANTS: Mapping[str, tuple[str, ...]] = {
    # What runs where nothing can be compiled.
    "inflight:torch": ("inflight", "kernels=torch"),
}


def default_peers() -> Path | None:
    """`benchmarks/peers` of a checkout; None in an installed package."""
    folder = Path(uellm_cli.__file__).resolve().parent.parent / "benchmarks" / "peers"
    return folder if folder.is_dir() else None


def find_entrants(names: Sequence[str], peers: Path | None) -> list[Entrant]:
    """The entrants called `names`; without any, all engines and peers, in arrival order.

    `NAME:longest-first` is NAME, peer or not, given the requests with the longest answers first.
    UsageError for a name that there is not, or a peer that is not installed.
    """
    if peers is not None and not peers.is_dir():
        raise UsageError(f"{peers}: there is no such folder of peers")
    default = {entrant.engine: entrant for entrant in (*_ours(), *_peers(peers))}
    if not names:
        return list(default.values())
    known = default | {
        name: Entrant(name, _command(*arguments)) for name, arguments in VARIANTS.items()
    }
    return [_named(name, known, peers) for name in dict.fromkeys(names)]


def _named(name: str, known: Mapping[str, Entrant], peers: Path | None) -> Entrant:
    engine = name.removesuffix(LONGEST_FIRST)
    if engine not in known:
        missing = f"; {_why_not(engine, peers)}" if peers else ""
        raise UsageError(
            f"no engine {engine!r} to measure; there are: {', '.join(known)}, "
            f"each also as NAME{LONGEST_FIRST}{missing}"
        )
    return replace(known[engine], is_longest_first=engine != name)


def _ours() -> list[Entrant]:
    names = [name for name in ENGINES.names() if name != NOT_MEASURED]
    return [Entrant(name, _command(name)) for name in names]


def _command(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "uellm_cli.bench.worker", *arguments)


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
