"""Write the page as a Space of the hub: `app.py`, the packages that it needs, and the front matter of its README."""

import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import __version__
from ..atomic import atomic_folder, refuse_used
from ..data.backbones import SHIPPED_BACKBONES
from ..modeling.backbones_soundwave import as_dtype
from ..modeling.folders_soundwave import is_hub_name
from .serve import LOOPBACK, MAX_SECONDS, check_gradio, check_served


APP = '''"""The page of soundwave-hf as a Space. `python app.py` starts it on your machine too."""

import os

import torch

from soundwave_hf.app import run_app


if __name__ == "__main__":
    on_hub = "SPACE_ID" in os.environ
    run_app(
        {arguments}
        host="0.0.0.0" if on_hub else "127.0.0.1",
        port=7860 if on_hub else None,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
'''

README = """---
title: Talk to a Soundwave model
emoji: 🌊
colorFrom: blue
colorTo: yellow
sdk: gradio
sdk_version: {gradio}
app_file: app.py
python_version: "3.11"
license: apache-2.0
models:
{models}
short_description: Transcribe speech and ask questions about it
---

The page of `soundwave-hf app`: record speech or choose a file, read the transcript with the time of each word, ask
questions about the clip, and see what the CTC head finds. The model is {name}.
"""


def write_space(output: str | os.PathLike, name: str | None = None, options: Mapping[str, Any] | None = None):
    """Write the files of a Space. `hf upload USER/SPACE OUTPUT --repo-type space` puts them on the hub.

    Args:
        output: folder to write.
        name: hub name of the model; by default the shipped weights.
        options: `max_seconds` and `dtype` of `run_app`.

    Raises: `ValueError` for a folder in place of a hub name, and values that the page refuses; `FileExistsError` for a
        folder that is not empty.
    """
    check_gradio()
    options = dict(options or {})
    check_served(LOOPBACK, None, options.get("max_seconds", MAX_SECONDS))
    as_dtype(options.get("dtype"))
    if name is not None and (os.path.isdir(name) or not is_hub_name(name)):
        raise ValueError(
            f"FOLDER is `{name}`, and a Space loads its model from the hub: push the folder, and give its name there, "
            "such as USER/REPO."
        )
    refuse_used(output)
    given = {} if name is None else {"folder": name}
    arguments = "\n        ".join(f"{key}={value!r}," for key, value in (given | options).items())
    app = APP.replace("        {arguments}\n", f"        {arguments}\n" if arguments else "")
    models = "\n".join(f"- {model}" for model in ([name] if name else SHIPPED_BACKBONES))
    shown = f"[{name}](https://huggingface.co/{name})" if name else "the small one that ships with the package"
    with atomic_folder(output) as part:
        (part / "app.py").write_text(app, encoding="utf-8")
        (part / "requirements.txt").write_text(f"soundwave-hf[app]=={__version__}\n", encoding="utf-8")
        readme = README.format(gradio=version("gradio"), models=models, name=shown)
        (part / "README.md").write_text(readme, encoding="utf-8")
    return Path(output)


__all__ = ["write_space"]
