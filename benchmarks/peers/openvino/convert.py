"""A model's folder to OpenVINO's format, in float32 and not quantised: convert.py MODEL OUTPUT"""

import sys

from optimum.exporters.openvino import main_export
from optimum.intel import OVConfig

if __name__ == "__main__":
    main_export(
        sys.argv[1],
        output=sys.argv[2],
        task="text-generation-with-past",
        library_name="transformers",
        ov_config=OVConfig(dtype="fp32"),
        convert_tokenizer=True,
    )
