"""`uellm version`: of uellm and of what its answers depend on."""

from __future__ import annotations

from uellm_cli.cli import options


def version(
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,  # noqa: ARG001 - read by `main` when an error is shown
) -> None:
    """The version of uellm, and of the packages that it stands on."""
    import sys

    from uellm_cli.cli.output import Output
    from uellm_cli.executor.run_info import installed_versions

    versions = installed_versions()
    if json:
        Output(json=True).document(versions)
        return
    for name, number in versions.items():
        if not quiet or name == "uellm":
            sys.stdout.write(f"{name} {number}\n")
