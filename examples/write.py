"""Load a model and let it write: `python examples/write.py runs/quickstart/model "def "`."""

import sys

import cueva

path = sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart/model"
prompt = sys.argv[2] if len(sys.argv) > 2 else "def "

engine = cueva.Engine(path)
sampling = cueva.Sampling(max_new_tokens=80, temperature=0.8, seed=1)

# 1. Piece by piece. `drafted` says which tokens an MTP module had proposed before the model agreed.
print(prompt, end="")
for piece in engine.stream(prompt, sampling):
    print(piece.text, end="", flush=True)
print()

# 2. Several prompts at once; none influences another.
answers = engine.generate(["import ", "class "], sampling)
for answer in answers:
    print(f"{answer.text!r} ({answer.finish_reason})")

# 3. The model itself is a torch module.
model = cueva.load(path, dtype="float32")
print(f"{sum(parameter.numel() for parameter in model.parameters()):,} weights in memory")
