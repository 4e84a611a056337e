"""One file per frozen side-channel encoder, imported as `pave.encoders.<name>` by `pave.load_encoder(name)`.

Encoders of your own lie in folders that PAVE_ENCODERS names, as PATH names folders. They belong to this package, too,
so that every process finds them; which code that is, only the environment says, never a recipe or a patch.
"""

import os

__path__ += [os.path.abspath(folder) for folder in os.environ.get("PAVE_ENCODERS", "").split(os.pathsep) if folder]
