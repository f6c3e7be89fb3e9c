"""Print the README's opening commands, one a line: `python -m tools.readme`.

CI runs what this prints and a test reads it, so the commands in the README cannot drift from what is checked. They are
the indented lines before the first bold paragraph; a comment after `    #` is for people.
"""

from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def opening_commands(text: str) -> list[str]:
    """Return the commands that `text` opens with, without their comments."""
    opening = text.split("\n**", 1)[0]
    lines = [line.strip() for line in opening.splitlines() if line.startswith("    ")]
    return [line.split("    #", 1)[0].strip() for line in lines]


if __name__ == "__main__":
    print("\n".join(opening_commands(README.read_text(encoding="utf-8"))))
