"""The folder that prompts are loaded from, by name; no request says a path."""

import re
from pathlib import Path

from prompt_tuning import prompt_file
from prompt_tuning.errors import UserError, nearest

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
ENDINGS = (".safetensors", ".npy")  # the first is taken where both are there


class Shelf:
    """The prompt files of one folder, `NAME.safetensors` or `NAME.npy`; read anew each time."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise UserError(f"There is no folder {folder}. Type --prompts with a folder of prompts, such as MODEL_DIR/prompts.")  # fmt: skip # noqa: E501

    def names(self) -> list[str]:
        """What there is to load, sorted."""
        found = {file.stem for file in self.folder.iterdir() if file.suffix in ENDINGS and file.is_file()}
        return sorted(name for name in found if re.fullmatch(NAME, name))

    def read(self, name: str) -> prompt_file.Prompt:
        """The prompt of that name. Raises KeyError with a sentence if there is none, UserError if it is unreadable."""
        if not re.fullmatch(NAME, name):
            raise KeyError("A prompt's name is 1 to 100 letters, digits, '.', '_' or '-', and starts with one of the first two.")  # fmt: skip # noqa: E501
        for ending in ENDINGS:
            path = self.folder / f"{name}{ending}"
            if path.is_file():
                return prompt_file.load(path)
        raise KeyError(f"There is no prompt {name!r} in the server's folder.{nearest(name, self.names())}")
