"""From files to requests: what is asked, of whom it is promised by when, and which lines are wrong.

`read_all` and `read_requests` read files, `load_slo_rules` the SLO file; `request_hash` says
whether a request is still the one that an earlier run answered.
"""

from uellm_cli.requests.files import RequestSet, expand_paths, read_all, read_requests
from uellm_cli.requests.identity import file_sha256, request_hash
from uellm_cli.requests.slo import SloRules, load_slo_rules, parse_duration

__all__ = [
    "RequestSet",
    "SloRules",
    "expand_paths",
    "file_sha256",
    "load_slo_rules",
    "parse_duration",
    "read_all",
    "read_requests",
    "request_hash",
]
