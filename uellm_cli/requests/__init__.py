"""From files to requests: what is asked, of whom it is promised by when, and which lines are wrong.

`read_requests` reads files, `store.RequestStore` keeps what they ask until it is run, `keys` says
what makes an answer the answer to a request, and `load_slo_rules` reads the SLO file.
"""

from uellm_cli.requests.files import expand_paths, read_requests
from uellm_cli.requests.keys import file_sha256
from uellm_cli.requests.slo import SloRules, load_slo_rules, parse_duration

__all__ = [
    "SloRules",
    "expand_paths",
    "file_sha256",
    "load_slo_rules",
    "parse_duration",
    "read_requests",
]
