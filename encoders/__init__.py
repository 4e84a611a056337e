"""One file per frozen side-channel encoder, imported as `pave.encoders.<name>` by `pave.load_encoder(name)`.

Your own encoders are in folders listed in PAVE_ENCODERS, separated as in PATH. They become part of this package, so
that every process finds them. Only the environment can add code, never a recipe or a patch.
"""

import os

__path__ += [os.path.abspath(folder) for folder in os.environ.get("PAVE_ENCODERS", "").split(os.pathsep) if folder]
